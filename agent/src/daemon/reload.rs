//! What a configuration that is read anew changes, and what has to wait for the next start. Pure:
//! the owner of the volumes does it.

use crate::config::{Config, VolumeConfig};

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// The configuration that is in force when all of it was done.
    pub(super) config: Config,
    /// Volumes to be added.
    pub(super) added: Vec<VolumeConfig>,
    /// Names of the volumes to be removed.
    pub(super) removed: Vec<String>,
    /// Volumes whose copies get another rate.
    pub(super) rates: Vec<VolumeConfig>,
    /// Other settings that change, for a person.
    pub(super) changed: Vec<String>,
    /// Settings that can't change in a running agent, for a person.
    pub(super) kept: Vec<String>,
}

/// Compares the configuration in force with a new one.
pub(super) fn plan(now: &Config, new: &Config) -> Plan {
    let mut plan = Plan {
        config: Config { volumes: Vec::new(), ..now.clone() },
        added: Vec::new(),
        removed: Vec::new(),
        rates: Vec::new(),
        changed: Vec::new(),
        kept: Vec::new(),
    };
    for (key, is_same) in [
        ("state_dir", now.state_dir == new.state_dir),
        ("ring_dir", now.ring_dir == new.ring_dir),
        ("collector", now.collector == new.collector),
        ("workers", now.workers == new.workers),
        ("control_socket", now.control_socket == new.control_socket),
        ("lock_memory", now.lock_memory == new.lock_memory),
        ("[nbd] listen", now.nbd == new.nbd),
        ("[fuse] mount", now.fuse == new.fuse),
    ] {
        if !is_same {
            plan.kept.push(key.to_owned());
        }
    }
    if now.ring_total_mib != new.ring_total_mib {
        plan.config.ring_total_mib = new.ring_total_mib;
        plan.changed.push("ring_total_mib".to_owned());
    }
    if now.attach != new.attach {
        plan.config.attach = new.attach.clone();
        plan.changed.push("[attach], for devices that are made from now on".to_owned());
    }
    for volume in &new.volumes {
        match now.volumes.iter().find(|old| old.name == volume.name) {
            Some(old) => plan.compare(old, volume),
            None => {
                plan.added.push(volume.clone());
                plan.config.volumes.push(volume.clone());
            }
        }
    }
    for old in &now.volumes {
        if !new.volumes.iter().any(|volume| volume.name == old.name) {
            plan.removed.push(old.name.clone());
        }
    }
    plan
}

impl Plan {
    /// A volume that was there and stays.
    fn compare(&mut self, old: &VolumeConfig, new: &VolumeConfig) {
        let name = &new.name;
        if old.backing != new.backing {
            self.kept.push(format!("backing of volume {name:?}"));
        }
        if old.ring_mib != new.ring_mib {
            self.kept.push(format!("ring_mib of volume {name:?}"));
        }
        let in_force = VolumeConfig { copy_mib_per_second: new.copy_mib_per_second, ..old.clone() };
        if old.copy_mib_per_second != new.copy_mib_per_second {
            self.rates.push(in_force.clone());
            self.changed.push(format!("copy_mib_per_second of volume {name:?}"));
        }
        self.config.volumes.push(in_force);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(text: &str) -> Config {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        Config::load(file.path()).expect("a good configuration")
    }

    const NOW: &str = "collector = 'unix:/c'\n[nbd]\nlisten = ['unix:/n']\n[[volume]]\n\
                       name = 'a'\nbacking = '/a'\n[[volume]]\nname = 'b'\nbacking = '/b'\n";

    #[test]
    fn the_same_again_changes_nothing() {
        let now = config(NOW);
        let plan = plan(&now, &now);
        assert_eq!(plan.config, now);
        assert!(plan.added.is_empty() && plan.removed.is_empty() && plan.rates.is_empty());
        assert!(plan.changed.is_empty() && plan.kept.is_empty());
    }

    #[test]
    fn what_can_change_changes_and_the_rest_is_named() {
        let now = config(NOW);
        let new = NOW
            .replace("'unix:/c'", "'unix:/d'\nworkers = 9\nring_total_mib = 8000")
            .replace("[nbd]", "[attach]\nnbd_connections = 2\n[nbd]")
            .replace("'/a'", "'/other'\nring_mib = 8\ncopy_mib_per_second = 3")
            .replace("name = 'b'", "name = 'c'");
        let plan = plan(&now, &config(&new));
        assert_eq!(plan.removed, ["b"]);
        assert_eq!(plan.added.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(), ["c"]);
        assert_eq!(plan.rates[0].copy_mib_per_second, 3);
        assert_eq!(
            plan.kept,
            ["collector", "workers", "backing of volume \"a\"", "ring_mib of volume \"a\""]
        );
        assert_eq!(plan.changed.len(), 3);
        let in_force = &plan.config;
        assert_eq!(in_force.collector, now.collector, "stays until the next start");
        assert_eq!(in_force.volumes[0].backing, Path::new("/a"));
        assert_eq!(in_force.volumes[0].ring_mib, 256);
        assert_eq!(in_force.attach.nbd_connections, 2);
        assert_eq!(in_force.ring_total_mib, 8000);
    }
}
