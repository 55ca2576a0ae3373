//! The agent's own files never lie on a disk that it protects: a write to them would wait for
//! itself. And the change rings fit on the file system that they are for.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::bail;
use tidemark_block::engine::socket::Address;

use crate::config::Config;

/// Refuses a configuration, the one of the file `config_path`, that places the agent's files on one
/// of its volumes, or has no room for its change rings. `devices` are block devices that volumes
/// are attached as, with the volumes' names.
pub(super) fn check<'a>(
    config: &Config,
    config_path: &Path,
    devices: impl Iterator<Item = (&'a str, &'a PathBuf)>,
) -> anyhow::Result<()> {
    check_room(config)?;
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

/// Refuses change rings that the whole of their file system could not hold. Whether it has that
/// much free now is found when they are made.
fn check_room(config: &Config) -> anyhow::Result<()> {
    let Ok(place) = nix::sys::statvfs::statvfs(nearest(&config.ring_dir).as_path()) else {
        return Ok(());
    };
    let place_mib = place.blocks() * place.fragment_size() / (1024 * 1024);
    let rings_mib: u64 = config.volumes.iter().map(|volume| volume.ring_mib).sum();
    // A tmpfs without a limit says 0.
    if place_mib != 0 && rings_mib > place_mib {
        bail!(
            "the change rings take {rings_mib} MiB together, and ring_dir = {} is on a file system \
             of {place_mib} MiB; make ring_mib of some volumes smaller, or that file system larger \
             (mount -o remount,size=...)",
            config.ring_dir.display()
        );
    }
    Ok(())
}

/// `path`, or the nearest directory above it that exists.
fn nearest(path: &Path) -> PathBuf {
    let mut nearest = path.to_owned();
    while !nearest.exists() && nearest.pop() {}
    nearest
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
    let Ok(metadata) = nearest(path).metadata() else {
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
