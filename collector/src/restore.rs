//! Restores a state of a volume to a raw sparse file.
//!
//! What enters: a view and the path of the file. What leaves: the file, whole and synced, under
//! its name; until then it is `NAME.partial`, which is locked, so that two restores to one file
//! under two paths do not write into each other. Ranges that read as zeroes stay holes. A crash
//! leaves the partial file, which the next restore to the same path replaces; the name itself is
//! only ever a whole disk.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, OFlag, RenameFlags, renameat2};
use tidemark_block::ByteRange;

use crate::error::{Failure, Result};
use crate::storage::Storage;
use crate::view::View;

/// Bytes that are read at once.
const STEP_BYTES: usize = 1 << 20;
/// Extents that are asked for at once.
const EXTENTS_MAX: usize = 256;
/// Unit in which zeroes inside data are left out.
const HOLE_BYTES: usize = 64 << 10;
/// Ends the name of a file that is not whole yet.
const PARTIAL: &str = "partial";
/// Unit of checksums.
const CHECK_BYTES: u64 = 4096;

/// Shared between a restore and whoever watches it.
#[derive(Debug, Default)]
pub struct Progress {
    done_bytes: AtomicU64,
    cancelled: AtomicBool,
}

impl Progress {
    /// Bytes of the disk that are done.
    #[must_use]
    pub fn done_bytes(&self) -> u64 {
        // Relaxed: a figure for people, nothing hangs on its order.
        self.done_bytes.load(Ordering::Relaxed)
    }

    /// Asks the restore to end; it removes what it has written.
    pub fn cancel(&self) {
        // Relaxed: the restore looks often, and nothing else is handed over by this.
        self.cancelled.store(true, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// How a restore ended when it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// The file is there.
    Done {
        /// Bytes written; the rest is holes.
        written_bytes: u64,
        /// Blocks of 4 KiB that the view gave out, each only after its checksum held.
        checksums_verified: u64,
    },
    /// It was cancelled; nothing is left of it.
    Cancelled,
}

/// Says at once whether a restore to `target` can begin.
///
/// # Errors
/// `Invalid`, `NotFound` or `Conflict`, with the path.
pub fn check_target(target: &Path, overwrite: bool) -> Result<()> {
    let shown = target.display();
    if !target.is_absolute() || target.file_name().is_none() {
        return Err(Failure::invalid(format!("{shown} is not the absolute path of a file")));
    }
    if target.extension().is_some_and(|extension| extension == PARTIAL) {
        let message = format!("{shown} ends in .{PARTIAL}, as unfinished restores do");
        return Err(Failure::invalid(message).with_hint("choose another name"));
    }
    let parent = parent_of(target);
    let above =
        fs::metadata(parent).map_err(|source| Failure::io("restore into", parent, source))?;
    if !above.is_dir() {
        return Err(Failure::invalid(format!("{} is not a directory", parent.display())));
    }
    match fs::symlink_metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Failure::io("look at", target, source)),
        Ok(found) if !found.is_file() => {
            Err(Failure::conflict(format!("{shown} exists and is not a plain file")))
        }
        Ok(_) if overwrite => check_unused(target),
        Ok(_) => Err(exists(target)),
    }
}

/// Refuses a target below the directory in which the collector keeps everything: a restore
/// there could replace a seed, a segment or the catalog.
///
/// # Errors
/// `Invalid`.
pub fn check_outside(target: &Path, data_dir: &Path) -> Result<()> {
    let real =
        |path: &Path| fs::canonicalize(path).map_err(|source| Failure::io("look at", path, source));
    if real(parent_of(target))?.starts_with(real(data_dir)?) {
        let (target, data_dir) = (target.display(), data_dir.display());
        let message = format!("{target} lies in the collector's own directory {data_dir}");
        return Err(Failure::invalid(message).with_hint("restore to a path outside of it"));
    }
    Ok(())
}

/// Refuses a file that a program has locked: an agent serves its disk from there, and would go on
/// writing to the file that is no longer at this path.
fn check_unused(target: &Path) -> Result<()> {
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

/// Writes the state to `target`.
///
/// # Errors
/// As [`check_target`]; `Unavailable` when the disk is full; `Internal` when the state is
/// damaged. Nothing is left of a restore that failed.
pub fn restore<S: Storage>(
    view: &View<S>,
    target: &Path,
    overwrite: bool,
    progress: &Progress,
) -> Result<Restored> {
    check_target(target, overwrite)?;
    let partial = partial_of(target);
    remove_stale(&partial)?;
    let file = create(&partial)?;
    let restored = fill(view, &file, &partial, progress).and_then(|restored| {
        if restored != Restored::Cancelled {
            publish(&file, &partial, target, overwrite)?;
        }
        Ok(restored)
    });
    if !matches!(restored, Ok(Restored::Done { .. }))
        && is_at(&file, &partial)
        && let Err(error) = remove_if_there(&partial)
    {
        tracing::warn!(path = %partial.display(), %error, "a partial restore is left behind");
    }
    restored
}

/// Removes what a restore that has ended left. A file that is locked belongs to one that runs.
fn remove_stale(partial: &Path) -> Result<()> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    // What can't be opened for reading is no file of a restore; removing it says why.
    let left = OpenOptions::new().read(true).custom_flags(flags).open(partial).ok();
    let _held = match left.map(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock)) {
        Some(Err((_, nix::errno::Errno::EWOULDBLOCK))) => return Err(busy(partial)),
        lock => lock,
    };
    remove_if_there(partial).map_err(|source| Failure::io("remove", partial, source))
}

/// Makes the partial file, locked.
fn create(partial: &Path) -> Result<Flock<File>> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(partial)
        .map_err(|source| Failure::io("create", partial, source))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| busy(partial))
}

fn busy(partial: &Path) -> Failure {
    Failure::conflict(format!("{} is being written by another restore", partial.display()))
        .with_hint("wait until that one has ended, or choose another path")
}

/// Whether a path leads to this very file.
fn is_at(file: &File, path: &Path) -> bool {
    let (here, there) = (file.metadata(), fs::symlink_metadata(path));
    matches!((here, there), (Ok(a), Ok(b)) if (a.dev(), a.ino()) == (b.dev(), b.ino()))
}

fn fill<S: Storage>(
    view: &View<S>,
    file: &File,
    partial: &Path,
    progress: &Progress,
) -> Result<Restored> {
    let failed = |doing: &'static str| move |source| Failure::io(doing, partial, source);
    let size_bytes = view.size_bytes();
    file.set_len(size_bytes).map_err(failed("size"))?;
    let mut copy = Copy { view, file, partial, buffer: vec![0; STEP_BYTES], written: 0, read: 0 };
    let (mut at, mut extents) = (0, Vec::new());
    while at < size_bytes {
        extents.clear();
        let rest = ByteRange::between(at, size_bytes).expect("the loop ends at the size");
        view.status(rest, EXTENTS_MAX, &mut extents)?;
        for extent in &extents {
            let end = at.saturating_add(extent.len_bytes).min(size_bytes);
            while at < end {
                if progress.is_cancelled() {
                    return Ok(Restored::Cancelled);
                }
                let step = if extent.zero { end - at } else { (end - at).min(STEP_BYTES as u64) };
                if !extent.zero {
                    copy.step(at, step)?;
                }
                at += step;
                progress.done_bytes.store(at, Ordering::Relaxed);
            }
        }
    }
    let (written_bytes, checksums_verified) = (copy.written, copy.read);
    file.sync_all().map_err(failed("sync"))?;
    Ok(Restored::Done { written_bytes, checksums_verified })
}

struct Copy<'a, S: Storage> {
    view: &'a View<S>,
    file: &'a File,
    partial: &'a Path,
    buffer: Vec<u8>,
    written: u64,
    read: u64,
}

impl<S: Storage> Copy<'_, S> {
    /// Copies `len_bytes` (at most [`STEP_BYTES`]) at one place; zeroes stay a hole.
    fn step(&mut self, at: u64, len_bytes: u64) -> Result<()> {
        let len = usize::try_from(len_bytes).map_or(STEP_BYTES, |len| len.min(STEP_BYTES));
        let bytes = &mut self.buffer[..len];
        self.view.read_at(bytes, at)?;
        self.read += (at + len as u64).div_ceil(CHECK_BYTES) - at / CHECK_BYTES;
        let mut place = at;
        for part in bytes.chunks(HOLE_BYTES) {
            if part.iter().any(|byte| *byte != 0) {
                self.file
                    .write_all_at(part, place)
                    .map_err(|source| Failure::io("write", self.partial, source))?;
                self.written += part.len() as u64;
            }
            place += part.len() as u64;
        }
        Ok(())
    }
}

/// Gives the whole file its name, durably, and replaces nothing that nobody wanted replaced.
fn publish(file: &File, partial: &Path, target: &Path, overwrite: bool) -> Result<()> {
    if !is_at(file, partial) {
        return Err(busy(partial));
    }
    let flags = if overwrite { RenameFlags::empty() } else { RenameFlags::RENAME_NOREPLACE };
    renameat2(AT_FDCWD, partial, AT_FDCWD, target, flags).map_err(|errno| match errno {
        nix::errno::Errno::EEXIST => exists(target),
        other => Failure::io("rename to", target, other.into()),
    })?;
    let parent = parent_of(target);
    let synced = File::open(parent).and_then(|dir| dir.sync_all());
    synced.map_err(|source| Failure::io("sync", parent, source))
}

fn exists(target: &Path) -> Failure {
    Failure::conflict(format!("{} exists", target.display()))
        .with_hint("choose another path, or allow that it is replaced (--overwrite)")
}

fn parent_of(target: &Path) -> &Path {
    target.parent().unwrap_or(Path::new("/"))
}

fn partial_of(target: &Path) -> PathBuf {
    let mut name = target.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".");
    name.push(PARTIAL);
    target.with_file_name(name)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
