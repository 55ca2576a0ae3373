//! Where the bytes of an unfinished restore lie, under which name, and who may write there.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, OFlag, RenameFlags, renameat2};

use super::device_facts::DeviceFacts;
use super::record::Format;
use crate::error::{Failure, Result};

/// Ends the name of a file that is not whole yet.
const PARTIAL: &str = ".partial";
/// Ends the name of the record of a restore that is not whole yet.
const RECORD: &str = ".partial.json";

/// Where a restore goes.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// A raw sparse file.
    Raw { path: PathBuf },
    /// A qcow2 image; `run_dir` is where a socket may be made for a moment.
    Qcow2 { path: PathBuf, run_dir: PathBuf },
    /// A block device.
    Device { path: PathBuf, facts: DeviceFacts, record: PathBuf },
}

impl Place {
    pub(super) fn format(&self) -> Format {
        match self {
            Self::Qcow2 { .. } => Format::Qcow2,
            Self::Raw { .. } | Self::Device { .. } => Format::Raw,
        }
    }

    /// Where the record of what was written is kept: beside a file, for a device among the
    /// collector's own files.
    pub(super) fn record_path(&self) -> PathBuf {
        match self {
            Self::Raw { path } | Self::Qcow2 { path, .. } => beside(path, RECORD),
            Self::Device { record, .. } => record.clone(),
        }
    }

    /// Makes the directory of the record.
    pub(super) fn prepare(&self) -> Result<()> {
        let Self::Device { record, .. } = self else { return Ok(()) };
        let dir = parent_of(record);
        fs::create_dir_all(dir).map_err(|source| Failure::io("make", dir, source))
    }

    /// Removes the record. It goes before what it describes is begun anew, and after the target
    /// is whole.
    pub(super) fn forget(&self) -> Result<()> {
        let record = self.record_path();
        remove_if_there(&record).map_err(|source| Failure::io("remove", &record, source))
    }
}

/// Whether a file is named as unfinished restores are.
pub(super) fn is_unfinished_name(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    name.is_some_and(|name| name.ends_with(PARTIAL) || name.ends_with(RECORD))
}

pub(super) fn partial_of(target: &Path) -> PathBuf {
    beside(target, PARTIAL)
}

/// The record of a device, named by its path.
pub(super) fn device_record(data_dir: &Path, device: &Path) -> PathBuf {
    let name = device.to_string_lossy().trim_start_matches('/').replace('/', "-");
    data_dir.join("restores").join(format!("{name}.json"))
}

pub(super) fn record_of(target: &Path) -> PathBuf {
    beside(target, RECORD)
}

fn beside(target: &Path, ending: &str) -> PathBuf {
    let mut name = target.file_name().map_or_else(OsString::new, OsString::from);
    name.push(ending);
    target.with_file_name(name)
}

pub(super) fn parent_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

pub(super) fn sync_parent(path: &Path) -> Result<()> {
    let parent = parent_of(path);
    let synced = File::open(parent).and_then(|dir| dir.sync_all());
    synced.map_err(|source| Failure::io("sync", parent, source))
}

pub(super) fn exists(target: &Path) -> Failure {
    Failure::conflict(format!("{} exists", target.display()))
        .with_hint("choose another path, or allow that it is replaced (--overwrite)")
}

pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Refuses a file that a program has locked: an agent serves its disk from there, and would go on
/// writing to the file that is no longer at this path.
pub(super) fn check_unused(target: &Path) -> Result<()> {
    let file = File::open(target).map_err(|source| Failure::io("open", target, source))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(_unlocked_at_once) => Ok(()),
        Err((_, Errno::EWOULDBLOCK)) => Err(Failure::conflict(format!(
            "{} is in use by another program, such as the agent that serves it",
            target.display()
        ))
        .with_hint("stop that program first, or choose another path")),
        Err((_, errno)) => Err(Failure::io("lock", target, errno.into())),
    }
}

/// `NAME.partial`, locked, so that two restores to one file under two paths do not write into
/// each other.
pub(super) struct Partial {
    pub(super) file: Flock<File>,
    pub(super) path: PathBuf,
    target: PathBuf,
}

impl Partial {
    /// A new one; what a restore that has ended left is removed.
    pub(super) fn create(target: &Path) -> Result<Self> {
        let path = partial_of(target);
        remove_stale(&path)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| Failure::io("create", &path, source))?;
        Self::locked(file, path, target)
    }

    /// The one that an earlier run left.
    pub(super) fn reopen(target: &Path) -> Result<Self> {
        let path = partial_of(target);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(&path)
            .map_err(|source| Failure::io("open", &path, source))?;
        Self::locked(file, path, target)
    }

    fn locked(file: File, path: PathBuf, target: &Path) -> Result<Self> {
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| busy(&path))?;
        Ok(Self { file, path, target: target.to_owned() })
    }

    /// Gives the whole file its name, durably, and replaces nothing that nobody wanted replaced.
    pub(super) fn publish(self, overwrite: bool) -> Result<()> {
        if !self.is_there() {
            return Err(busy(&self.path));
        }
        let flags = if overwrite { RenameFlags::empty() } else { RenameFlags::RENAME_NOREPLACE };
        renameat2(AT_FDCWD, &self.path, AT_FDCWD, &self.target, flags).map_err(
            |errno| match errno {
                Errno::EEXIST => exists(&self.target),
                other => Failure::io("rename to", &self.target, other.into()),
            },
        )?;
        sync_parent(&self.target)
    }

    /// Removes it, unless it is to be gone on with.
    pub(super) fn leave(self, keep: bool) {
        if !keep
            && self.is_there()
            && let Err(error) = remove_if_there(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a partial restore is left behind");
        }
    }

    /// Whether the path still leads to this very file.
    fn is_there(&self) -> bool {
        let (here, there) = (self.file.metadata(), fs::symlink_metadata(&self.path));
        matches!((here, there), (Ok(a), Ok(b)) if (a.dev(), a.ino()) == (b.dev(), b.ino()))
    }
}

/// Removes what a restore that has ended left. A file that is locked belongs to one that runs.
fn remove_stale(partial: &Path) -> Result<()> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    // What can't be opened for reading is no file of a restore; removing it says why.
    let left = OpenOptions::new().read(true).custom_flags(flags).open(partial).ok();
    let _held = match left.map(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock)) {
        Some(Err((_, Errno::EWOULDBLOCK))) => return Err(busy(partial)),
        lock => lock,
    };
    remove_if_there(partial).map_err(|source| Failure::io("remove", partial, source))
}

fn busy(partial: &Path) -> Failure {
    Failure::conflict(format!("{} is being written by another restore", partial.display()))
        .with_hint("wait until that one has ended, or choose another path")
}
