//! A directory with one file for each disk, served over FUSE, for loop devices.
//!
//! What enters: requests of the kernel for the files of a mount. What leaves: calls of a
//! [`Device`], and answers. The files follow an [`ExportList`]; the mount, the threads that read
//! requests and the tasks that run them belong to a [`Directory`]. Nothing is kept that a crash
//! could lose: a write is acknowledged when the device says so, and after a crash the kernel
//! fails what was in flight. The mount of a killed process is taken away by the next one.
//!
//! Every file is opened for direct I/O, so a write reaches the device before it is acknowledged,
//! in the pieces in which the kernel sends it: no page cache, no write-back cache, no passthrough.
//!
//! The path of a write: a fuser thread reads the request into its buffer, reserves the device's
//! memory, copies the payload there (the one copy) and sends it to a worker's mailbox; the worker
//! writes and answers. fuser threads never wait for a device's I/O, only for memory or for room
//! in a mailbox.
//!
//! - `filesystem`: decodes and hands over; `decode`, `attributes`, `errno` and `files` hold its
//!   decisions;
//! - `request`: mailboxes, tasks, answers; `split`: writes in several parts; `seek`: holes;
//! - `reserve`: how a thread without an executor waits for memory;
//! - `mounting`: mount and unmount.

mod attributes;
mod decode;
mod errno;
mod files;
mod filesystem;
mod mounting;
mod request;
mod reserve;
mod seek;
mod split;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Session, SessionACL};

use self::attributes::Owner;
use self::files::Files;
use self::filesystem::Disks;
use self::mounting::{Mount, Unmounted};
use self::request::Outbox;
use crate::device::Device;
use crate::engine::WorkersHandle;
use crate::exports::ExportList;

/// How a directory is served.
#[derive(Clone, Debug)]
pub struct FuseConfig {
    /// Threads that read requests and copy payloads, each with a descriptor and a buffer of its
    /// own (16 MiB of address space, of which 1 MiB is ever touched). At least one.
    pub threads: usize,
    /// Requests running at one time, all files and workers together. As many again may wait in
    /// this process; the kernel keeps the others. At least one for each worker.
    pub in_flight_max: u16,
    /// How long an unmount waits for users of the directory before it detaches the mount.
    pub unmount_wait: Duration,
}

impl Default for FuseConfig {
    fn default() -> Self {
        Self { threads: 2, in_flight_max: 256, unmount_wait: Duration::from_secs(2) }
    }
}

/// Why a directory could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum FuseError {
    /// The path can't be used.
    #[error("can't mount the FUSE directory at {path}: {source}", path = path.display())]
    Path {
        /// The path as given.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// A FUSE file system is mounted there and answers.
    #[error(
        "{path} is in use by a FUSE file system that is alive; unmount it or choose another path",
        path = path.display()
    )]
    InUse {
        /// The path as given.
        path: PathBuf,
    },
    /// The kernel's FUSE device can't be opened.
    #[error("can't open /dev/fuse: {source}; load the kernel module fuse and run as root")]
    Fuse {
        /// The operating system's error.
        source: io::Error,
    },
    /// The kernel refused to mount.
    #[error("the kernel refuses the FUSE mount at {path}: {source}; run as root", path = path.display())]
    Mount {
        /// Where.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The mount could not be served.
    #[error("can't serve the FUSE mount at {path}: {source}", path = path.display())]
    Session {
        /// Where.
        path: PathBuf,
        /// What failed: the first exchange with the kernel, or a thread's start.
        source: io::Error,
    },
}

/// A mounted directory. Dropping it unmounts, as [`Directory::unmount`] does.
pub struct Directory<D: Device> {
    // Taken when the directory is closed.
    session: Option<BackgroundSession>,
    mount: Mount,
    outbox: Arc<Outbox<D>>,
    unmount_wait: Duration,
}

/// How long the threads may take to see that their mount is gone.
const THREADS_END_WAIT: Duration = Duration::from_secs(1);

/// Pause between two looks at them.
const THREADS_END_PAUSE: Duration = Duration::from_millis(5);

impl<D: Device> Directory<D> {
    /// Mounts a directory at `path`, which is created (mode 0700) when it is missing and then
    /// removed again at the end. Requests run on `workers`.
    ///
    /// [`Device::reserve`] is called on threads without an executor: it may wait for wakers, but
    /// start no operation on a ring.
    ///
    /// # Errors
    /// [`FuseError`]; nothing stays mounted then.
    pub fn mount(
        path: &Path,
        exports: Arc<ExportList<D>>,
        workers: &WorkersHandle,
        config: FuseConfig,
    ) -> Result<Self, FuseError> {
        let owner =
            Owner { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() };
        let (mount, device) = Mount::new(path, owner)?;
        let failed = |source| FuseError::Session { path: mount.path().to_owned(), source };

        let in_flight_max = config.in_flight_max.max(1);
        let per_worker = usize::from(in_flight_max).div_ceil(workers.count());
        let outbox = Arc::new(Outbox::start(workers, per_worker));
        let disks = Disks::new(Files::new(exports), Arc::clone(&outbox), owner, in_flight_max);

        let mut options = fuser::Config::default();
        options.n_threads = Some(config.threads.max(1));
        options.clone_fd = true;
        let session = Session::from_fd(disks, device, SessionACL::Owner, options)
            .and_then(Session::spawn)
            .map_err(failed)?;
        tracing::info!(path = %mount.path().display(), "FUSE directory mounted");
        Ok(Self { session: Some(session), mount, outbox, unmount_wait: config.unmount_wait })
    }

    /// Unmounts and ends the threads. Waits for users of the directory as long as the
    /// configuration says; then the mount leaves the tree while they still have it, which is
    /// logged, and what they ask from then on fails. Requests that were handed over are answered.
    ///
    /// Blocks: not for a worker's thread, and not for a process that has files of the directory
    /// open itself.
    pub fn unmount(mut self) {
        self.close();
    }

    fn close(&mut self) {
        let Some(session) = self.session.take() else { return };
        let path = self.mount.path().to_owned();
        let path = path.display();
        // Threads that have ended say that the mount is gone: what is at the path now is not ours.
        let unmounted = if session.guard.is_finished() {
            Ok(self.mount.forget())
        } else {
            self.mount.unmount(self.unmount_wait)
        };
        match unmounted {
            Ok(Unmounted::Clean) => tracing::info!(%path, "FUSE directory unmounted"),
            Ok(Unmounted::Before) => {
                tracing::warn!(%path, "the FUSE directory was unmounted by somebody else");
            }
            Ok(Unmounted::Detached) => tracing::warn!(
                %path,
                "the FUSE directory is still in use and was detached; what its users do from now on fails"
            ),
            Err(error) => tracing::warn!(%path, %error, "can't unmount the FUSE directory"),
        }
        self.outbox.close();
        let until = Instant::now() + THREADS_END_WAIT;
        while !session.guard.is_finished() && Instant::now() < until {
            std::thread::sleep(THREADS_END_PAUSE);
        }
        if !session.guard.is_finished() {
            // They end with the last user, or with the process; until then they refuse requests.
            tracing::warn!(%path, "threads of the FUSE directory stay until its last user lets go");
        } else if let Err(error) = session.join() {
            tracing::warn!(%path, %error, "the FUSE session ended with an error");
        }
    }
}

impl<D: Device> Drop for Directory<D> {
    fn drop(&mut self) {
        self.close();
    }
}
