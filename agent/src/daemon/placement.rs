//! The agent's own files never lie on a disk that it protects: a write to them would wait for
//! itself.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::bail;

use crate::config::Config;
use tidemark_block::engine::socket::Address;

/// Refuses a configuration, the one of the file `config_path`, that places the agent's files on one
/// of its volumes. `devices` are block devices that volumes are attached as, with the volumes'
/// names.
pub(super) fn check<'a>(
    config: &Config,
    config_path: &Path,
    devices: impl Iterator<Item = (&'a str, &'a PathBuf)>,
) -> anyhow::Result<()> {
    let mut own = vec![
        ("the configuration", config_path.to_owned()),
        ("state_dir", config.state_dir.clone()),
        ("ring_dir", config.ring_dir.clone()),
        ("control_socket", config.control_socket.clone()),
    ];
    own.extend(config.nbd.listen.iter().filter_map(|address| match address {
        Address::Unix(path) => Some(("[nbd] listen", path.clone())),
        Address::Tcp(_) => None,
    }));
    for volume in &config.volumes {
        if let Some(fuse) = &config.fuse
            && volume.backing.starts_with(&fuse.mount)
        {
            bail!(
                "volume {:?}: its backing {} lies in the FUSE directory {}, whose mount would \
                 hide it; place one of them elsewhere",
                volume.name,
                volume.backing.display(),
                fuse.mount.display()
            );
        }
    }
    for (key, path) in &own {
        if let Some(fuse) = &config.fuse
            && path.starts_with(&fuse.mount)
        {
            bail!(
                "{key} = {} lies in the FUSE directory {}; place it elsewhere",
                path.display(),
                fuse.mount.display()
            );
        }
        for volume in &config.volumes {
            if holds(&volume.backing, path) {
                bail!(
                    "{key} = {} lies on {}, which volume {:?} protects; place it on another disk",
                    path.display(),
                    volume.backing.display(),
                    volume.name
                );
            }
        }
    }
    for (volume, device) in devices {
        for (key, path) in &own {
            if holds(device, path) {
                bail!(
                    "{key} = {} lies on {}, as which volume {volume:?} is attached; place it on \
                     another disk",
                    path.display(),
                    device.display()
                );
            }
        }
    }
    Ok(())
}

/// True when `path`, or the nearest directory above it that exists, is on the block device
/// `backing` or on a partition of it.
fn holds(backing: &Path, path: &Path) -> bool {
    let Ok(device) = backing.metadata() else {
        return false;
    };
    if !device.file_type().is_block_device() {
        return false;
    }
    let mut nearest: PathBuf = path.to_owned();
    while !nearest.exists() && nearest.pop() {}
    let Ok(metadata) = nearest.metadata() else {
        return false;
    };
    let place = metadata.dev();
    place == device.rdev() || disk_of(place) == Some(device.rdev())
}

/// The whole disk that a partition belongs to.
fn disk_of(partition: u64) -> Option<u64> {
    let (major, minor) = (libc::major(partition), libc::minor(partition));
    let link = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    let numbers = std::fs::read_to_string(link.parent()?.join("dev")).ok()?;
    let (major, minor) = numbers.trim().split_once(':')?;
    Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
}
