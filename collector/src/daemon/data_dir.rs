//! The data directory: made, looked at and locked before anything else.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use tidemark_wire::VolumeId;

use crate::catalog::Catalog;
use crate::config::Config;
use crate::error::{Failure, Result};
use crate::ingest::erase::erased_volume;
use crate::storage::{RealStorage, Storage};

/// Locked by the daemon that uses the directory; holds its process id.
const LOCK_FILE: &str = "lock";
const VOLUMES_DIR: &str = "volumes";

/// The data directory of this daemon, and of no other as long as this lives.
pub(super) struct DataDir {
    /// Volumes that are kept.
    pub(super) volumes: Vec<VolumeId>,
    /// Volumes whose erasing an earlier daemon has begun, and their directories.
    erased: Vec<(VolumeId, PathBuf)>,
    /// Held for its drop.
    _lock: Flock<File>,
}

impl DataDir {
    /// Makes what is missing, and refuses a directory that can't be used, with what to do.
    pub(super) fn prepare(config: &Config) -> Result<Self> {
        let dir = &config.data_dir;
        make_private(dir)?;
        let lock = lock(&dir.join(LOCK_FILE))?;
        let free = RealStorage.free_bytes(dir).map_err(|e| Failure::io("look at", dir, e))?;
        if free < config.free_bytes_min {
            let message = format!(
                "only {free} bytes are free below {}, at least {} are needed to start",
                dir.display(),
                config.free_bytes_min
            );
            return Err(
                Failure::unavailable(message).with_hint("make room there, or lower free_bytes_min")
            );
        }
        let volumes = dir.join(VOLUMES_DIR);
        RealStorage.create_dir(&volumes).map_err(|e| Failure::io("make", &volumes, e))?;
        let (volumes, erased) = find_volumes(&volumes)?;
        Ok(Self { volumes, erased, _lock: lock })
    }

    /// Removes what is left of erased volumes: first from the catalog, so that a crash in between
    /// leaves the directory to tell of it.
    pub(super) async fn finish_erasing(&self, catalog: &Catalog) -> Result<()> {
        for (id, dir) in &self.erased {
            // The same disk may have been protected anew since.
            if !self.volumes.contains(id) {
                catalog.forget_volume(*id).await?;
            }
            match RealStorage.remove_tree(dir) {
                Ok(()) => tracing::info!(volume = %id, "the erasing of a volume was completed"),
                Err(error) => tracing::warn!(dir = %dir.display(), %error, "can't be removed"),
            }
        }
        Ok(())
    }
}

/// Makes the directory of a socket or a file, for this user only.
pub(super) fn make_parent(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), make_private)
}

fn make_private(dir: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| {
        let failure = Failure::io("use the directory", dir, source);
        if failure.hint.is_some() { failure } else { failure.with_hint("choose another path") }
    })
}

fn lock(path: &Path) -> Result<Flock<File>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|source| Failure::io("write", path, source))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let written = lock
                .set_len(0)
                .and_then(|()| writeln!(lock, "{}", std::process::id()))
                .and_then(|()| lock.sync_all());
            written.map_err(|source| Failure::io("write", path, source))?;
            Ok(lock)
        }
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            // Without a number the message still says what is wrong.
            let _ = Read::take(file, 32).read_to_string(&mut pid);
            Err(Failure::conflict(format!(
                "another collector (process {}) uses {}",
                pid.trim(),
                path.parent().unwrap_or(path).display()
            ))
            .with_hint("stop it first, or give this one another data_dir"))
        }
        Err((_, errno)) => Err(Failure::io("lock", path, errno.into())),
    }
}

/// Volumes with the directories of those that are erased.
type Found = (Vec<VolumeId>, Vec<(VolumeId, PathBuf)>);

/// Directories named by a volume's identity.
fn find_volumes(dir: &Path) -> Result<Found> {
    let failed = |source: io::Error| Failure::io("list", dir, source);
    let (mut found, mut erased) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let text = name.to_string_lossy();
        if let Ok(id) = text.parse() {
            found.push(id);
        } else if let Some(id) = erased_volume(&text) {
            erased.push((id, dir.join(&name)));
        } else {
            tracing::warn!(?name, "not a volume, left alone");
        }
    }
    found.sort_unstable();
    Ok((found, erased))
}
