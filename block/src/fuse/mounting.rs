//! Mounting and unmounting the directory.
//!
//! Enters: a path. Leaves: a mounted file system and the `/dev/fuse` descriptor that serves it.
//! The mount is made here and not by `fuser`, whose own check before it unmounts can't tell an
//! ended mount from a live one and may take away what a successor mounted at the same path. A
//! killed process leaves a mount that answers `ENOTCONN`; the next one takes it away first.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sys::statfs::FUSE_SUPER_MAGIC;

use super::FuseError;
use super::attributes::Owner;

/// Source shown by `mount` and `findmnt`.
const SOURCE: &str = "tidemark";

/// File system type with its subtype.
const FILE_SYSTEM: &str = "fuse.tidemark";

/// Dead mounts on top of each other that are taken away before this gives up.
const STALE_MOUNTS_MAX: usize = 16;

/// Pause between two tries to unmount.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// A mounted directory. Dropping it detaches the mount at once, in use or not.
#[derive(Debug)]
pub(super) struct Mount {
    path: PathBuf,
    /// The directory below did not exist before and goes with the mount.
    created: bool,
    mounted: bool,
}

/// How a mount ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unmounted {
    /// Nobody used it.
    Clean,
    /// It was in use; it left the tree, and ends when the last user lets go.
    Detached,
    /// Somebody else had unmounted it.
    Before,
}

impl Mount {
    /// Mounts a new file system at `path`, which is created if it is missing.
    pub(super) fn new(path: &Path, owner: Owner) -> Result<(Self, OwnedFd), FuseError> {
        let created = prepare(path)?;
        let path = fs::canonicalize(path)
            .map_err(|source| FuseError::Path { path: path.to_owned(), source })?;
        let mut mount = Self { path, created, mounted: false };
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .map_err(|source| FuseError::Fuse { source })?;
        let options = format!(
            "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
            device.as_raw_fd(),
            owner.uid,
            owner.gid
        );
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        nix::mount::mount(
            Some(SOURCE),
            &mount.path,
            Some(FILE_SYSTEM),
            flags,
            Some(options.as_str()),
        )
        .map_err(|errno| FuseError::Mount { path: mount.path.clone(), source: errno.into() })?;
        mount.mounted = true;
        Ok((mount, device.into()))
    }

    /// Where it is mounted.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts. While the mount is in use it tries again for `wait`, then detaches it.
    pub(super) fn unmount(&mut self, wait: Duration) -> io::Result<Unmounted> {
        let until = Instant::now() + wait;
        let outcome = loop {
            match nix::mount::umount2(&self.path, MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => break Unmounted::Clean,
                // Nothing is mounted there.
                Err(Errno::EINVAL) => break Unmounted::Before,
                Err(Errno::EBUSY) if Instant::now() < until => std::thread::sleep(BUSY_PAUSE),
                Err(Errno::EBUSY) => {
                    let lazily = MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH;
                    nix::mount::umount2(&self.path, lazily)?;
                    break Unmounted::Detached;
                }
                Err(errno) => return Err(errno.into()),
            }
        };
        self.forget();
        Ok(outcome)
    }

    /// Takes note that the mount is gone; only the directory below is left to remove.
    pub(super) fn forget(&mut self) -> Unmounted {
        self.mounted = false;
        if std::mem::take(&mut self.created) {
            // Somebody may have put a file there meanwhile; then the directory stays.
            let _still_used = fs::remove_dir(&self.path);
        }
        Unmounted::Before
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !self.mounted {
            self.forget();
        } else if let Err(error) = self.unmount(Duration::ZERO) {
            tracing::warn!(path = %self.path.display(), %error, "the FUSE mount stays: unmount it by hand");
        }
    }
}

/// Makes sure that `path` is a directory where nothing of FUSE is mounted; true when it was
/// created here.
fn prepare(path: &Path) -> Result<bool, FuseError> {
    let failed = |source| FuseError::Path { path: path.to_owned(), source };
    for _ in 0..STALE_MOUNTS_MAX {
        match fs::metadata(path) {
            Ok(found) if !found.is_dir() => {
                return Err(failed(io::Error::from(io::ErrorKind::NotADirectory)));
            }
            Ok(found) => {
                let file_system = nix::sys::statfs::statfs(path).map_err(|e| failed(e.into()))?;
                // The root of every FUSE file system has the inode number 1.
                if file_system.filesystem_type() == FUSE_SUPER_MAGIC && found.ino() == 1 {
                    return Err(FuseError::InUse { path: path.to_owned() });
                }
                return Ok(false);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
                return Ok(true);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
                tracing::info!(path = %path.display(), "taking away the mount of a process that died");
                nix::mount::umount2(path, MntFlags::MNT_DETACH).map_err(|e| failed(e.into()))?;
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Err(failed(io::Error::from_raw_os_error(libc::ENOTCONN)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_directory_is_created_for_its_owner_only() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("a/b");
        assert!(prepare(&path).expect("creates it"));
        let mode = fs::metadata(&path).expect("it is there").mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(!prepare(&path).expect("finds it"));
    }

    #[test]
    fn a_file_is_no_place_to_mount() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let error = prepare(file.path()).expect_err("not a directory");
        assert!(matches!(error, FuseError::Path { .. }), "{error}");
    }
}
