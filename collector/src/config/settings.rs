//! The configuration in force, and its change while the daemon runs.
//!
//! What enters: the order to read the file anew. What leaves: the configuration, to everybody
//! who asks or waits for a change. A file that is wrong changes nothing. What can't change while
//! the daemon runs keeps its value, and is named.

use std::sync::Arc;

use tokio::sync::watch;

use super::Config;
use crate::error::Result;

/// What a reload has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Keys whose new values are in force now.
    pub changed: Vec<&'static str>,
    /// Keys whose new values wait for the next start.
    pub kept: Vec<&'static str>,
}

/// The configuration in force.
pub struct Settings {
    now: watch::Sender<Arc<Config>>,
}

impl Settings {
    /// Begins with this configuration.
    #[must_use]
    pub fn new(config: Config) -> Arc<Self> {
        Arc::new(Self { now: watch::Sender::new(Arc::new(config)) })
    }

    /// What is in force now.
    #[must_use]
    pub fn now(&self) -> Arc<Config> {
        Arc::clone(&self.now.borrow())
    }

    /// Wakes at every change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Arc<Config>> {
        self.now.subscribe()
    }

    /// Reads the file anew and puts in force what can change.
    ///
    /// # Errors
    /// What is wrong with the file; nothing has changed then.
    pub fn reload(&self) -> Result<Reloaded> {
        let file = self.now().file.clone();
        let new = Config::load(file.as_deref())?;
        let mut reloaded = Reloaded::default();
        // Under the lock of the channel, so that of two reloads the later one names its changes.
        self.now.send_if_modified(|now| {
            let (config, done) = now.with_changes(&new);
            *now = Arc::new(config);
            reloaded = done;
            !reloaded.changed.is_empty()
        });
        Ok(reloaded)
    }
}

impl Config {
    /// This configuration with those values of `new` that can change while the daemon runs.
    fn with_changes(&self, new: &Self) -> (Self, Reloaded) {
        let mut done = Reloaded::default();
        for (key, differs) in [
            ("data_dir", self.data_dir != new.data_dir),
            ("listen", self.listen != new.listen),
            ("control_socket", self.control_socket != new.control_socket),
            ("fuse_mount", self.fuse_mount != new.fuse_mount),
            ("sessions_max", self.sessions_max != new.sessions_max),
            ("exports_max", self.exports_max != new.exports_max),
        ] {
            if differs {
                done.kept.push(key);
            }
        }
        for (key, differs) in [
            ("volumes_max", self.volumes_max != new.volumes_max),
            ("free_bytes_min", self.free_bytes_min != new.free_bytes_min),
            ("behind_after_seconds", self.behind_after_seconds != new.behind_after_seconds),
            ("policy", self.policy != new.policy),
            ("merge_mib_per_second", self.merge_bytes_per_second != new.merge_bytes_per_second),
            ("clone_mib_max", self.clone_bytes_max != new.clone_bytes_max),
            ("erase_grace_seconds", self.erase_grace != new.erase_grace),
        ] {
            if differs {
                done.changed.push(key);
            }
        }
        let config = Self {
            data_dir: self.data_dir.clone(),
            listen: self.listen.clone(),
            control_socket: self.control_socket.clone(),
            fuse_mount: self.fuse_mount.clone(),
            sessions_max: self.sessions_max,
            exports_max: self.exports_max,
            ..new.clone()
        };
        (config, done)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_reload_takes_what_can_change_and_names_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("collector.toml");
        std::fs::write(&file, "data_dir = '/one'").unwrap();
        let settings = Settings::new(Config::load(Some(&file)).unwrap());
        assert_eq!(settings.reload().unwrap(), Reloaded::default());

        std::fs::write(&file, "data_dir = '/two'\nvolumes_max = 3\n[policy]\nwindow_seconds = 9")
            .unwrap();
        let wanted = Reloaded { changed: vec!["volumes_max", "policy"], kept: vec!["data_dir"] };
        assert_eq!(settings.reload().unwrap(), wanted);
        let now = settings.now();
        assert_eq!(now.data_dir, std::path::Path::new("/one"));
        assert_eq!((now.volumes_max, now.policy.window.as_secs()), (3, 9));

        std::fs::write(&file, "volumes_max = 4\nwrong = 1").unwrap();
        settings.reload().unwrap_err();
        assert_eq!(settings.now(), now, "a wrong file changes nothing");
    }
}
