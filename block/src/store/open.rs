//! Opening the file or block device behind a disk.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::StoreGeometry;
use crate::chunk::Chunk;

/// Largest unit of direct I/O that is used; a device with a larger one goes through the page
/// cache.
const ALIGN_BYTES_MAX: u32 = 4096;

nix::ioctl_read!(block_size_bytes, 0x12, 114, u64);
nix::ioctl_read_bad!(logical_block_bytes, 0x1268, libc::c_int);

/// What a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Reads and writes. Block devices are claimed exclusively.
    ReadWrite,
    /// Reads.
    ReadOnly,
}

/// Why a store could not be opened. The text names the path and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It can't be opened, or not for writing.
    #[error("{}: can't be opened: {source}; check the path and its permissions", path.display())]
    Open {
        /// The store.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// Another process works on it.
    #[error(
        "{}: another process holds it (a running agent, a mounted file system, a loop device); \
         stop that one first",
        path.display()
    )]
    InUse {
        /// The store.
        path: PathBuf,
    },
    /// It is a directory, a pipe or the like.
    #[error("{}: is neither a regular file nor a block device", path.display())]
    WrongKind {
        /// The store.
        path: PathBuf,
    },
    /// It has no bytes.
    #[error("{}: is empty; give it its size first, with truncate -s SIZE for instance", path.display())]
    Empty {
        /// The store.
        path: PathBuf,
    },
    /// Its size or limits can't be found out.
    #[error("{}: {what} failed: {source}", path.display())]
    Inspect {
        /// The store.
        path: PathBuf,
        /// The call that failed.
        what: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
}

/// An open and locked store.
pub(super) struct Opened {
    /// Locked as long as it is open.
    pub(super) file: Flock<File>,
    pub(super) geometry: StoreGeometry,
    pub(super) direct: bool,
    pub(super) block_device: bool,
}

/// Opens, locks and inspects a store.
pub(super) fn open(path: &Path, mode: OpenMode) -> Result<Opened, StoreError> {
    let wrap = |source| StoreError::Open { path: path.to_owned(), source };
    // First without waiting or side effects, to learn what it is.
    let found = std::fs::metadata(path).map_err(wrap)?;
    let block_device = found.file_type().is_block_device();
    if !block_device && !found.is_file() {
        return Err(StoreError::WrongKind { path: path.to_owned() });
    }
    let exclusive = block_device && mode == OpenMode::ReadWrite;
    let base_flags = libc::O_CLOEXEC | if exclusive { libc::O_EXCL } else { 0 };
    let file = open_with(path, mode, base_flags)?;
    let inspect =
        |what| move |source: io::Error| StoreError::Inspect { path: path.to_owned(), what, source };
    let lock = match mode {
        OpenMode::ReadWrite => FlockArg::LockExclusiveNonblock,
        OpenMode::ReadOnly => FlockArg::LockSharedNonblock,
    };
    let file = Flock::lock(file, lock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => StoreError::InUse { path: path.to_owned() },
        other => inspect("locking it")(other.into()),
    })?;
    let size_bytes = size_of(&file, block_device).map_err(inspect("finding out its size"))?;
    if size_bytes == 0 {
        return Err(StoreError::Empty { path: path.to_owned() });
    }
    let limits = direct_limits(&file, block_device)
        .map_err(inspect("finding out its unit of direct I/O"))?
        .filter(|limits| limits.suit(size_bytes));
    // The descriptor is changed to direct I/O, not opened again, so that the lock stays on it.
    let direct = limits.is_some_and(|limits| set_direct(&file, limits));
    let (io_align_bytes, mem_align_bytes) = match limits {
        Some(limits) if direct => (limits.io_bytes, limits.mem_bytes),
        _ => (1, 1),
    };
    let punches = !block_device || zeroes_without_writing(&file);
    let geometry = StoreGeometry {
        size_bytes,
        io_align_bytes,
        mem_align_bytes,
        discard: punches && mode == OpenMode::ReadWrite,
        read_only: mode == OpenMode::ReadOnly,
    };
    Ok(Opened { file, geometry, direct, block_device })
}

fn open_with(path: &Path, mode: OpenMode, flags: i32) -> Result<File, StoreError> {
    let opened = OpenOptions::new()
        .read(true)
        .write(mode == OpenMode::ReadWrite)
        .custom_flags(flags)
        .open(path);
    opened.map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => StoreError::InUse { path: path.to_owned() },
        _ => StoreError::Open { path: path.to_owned(), source },
    })
}

/// Size of a file or block device, in bytes.
pub(super) fn size_of(file: &File, block_device: bool) -> io::Result<u64> {
    if !block_device {
        return Ok(file.metadata()?.len());
    }
    let mut bytes = 0_u64;
    // SAFETY: the call writes one u64 to the address, which is that of a local variable.
    unsafe { block_size_bytes(file.as_raw_fd(), &raw mut bytes) }?;
    Ok(bytes)
}

/// Units of direct I/O.
#[derive(Clone, Copy)]
struct Limits {
    io_bytes: u32,
    mem_bytes: u32,
    /// The kernel names them for this very file.
    certain: bool,
}

impl Limits {
    fn suit(self, size_bytes: u64) -> bool {
        let unit_ok = |unit: u32| unit.is_power_of_two() && unit <= ALIGN_BYTES_MAX;
        unit_ok(self.io_bytes)
            && unit_ok(self.mem_bytes)
            && size_bytes.is_multiple_of(u64::from(self.io_bytes))
    }
}

/// What the kernel says about direct I/O on this file; `None` when there is none.
fn direct_limits(file: &File, block_device: bool) -> io::Result<Option<Limits>> {
    // SAFETY: all zeroes is a valid value of this plain structure.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a NUL-terminated empty string, the result is a local variable.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &raw mut found,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if found.stx_mask & libc::STATX_DIOALIGN != 0 {
        let limits = Limits {
            io_bytes: found.stx_dio_offset_align,
            mem_bytes: found.stx_dio_mem_align,
            certain: true,
        };
        return Ok((limits.io_bytes != 0).then_some(limits));
    }
    // A kernel or file system that does not tell: the logical block of a device is always
    // enough, and 4096 bytes are for any file.
    if !block_device {
        return Ok(Some(Limits {
            io_bytes: ALIGN_BYTES_MAX,
            mem_bytes: ALIGN_BYTES_MAX,
            certain: false,
        }));
    }
    let mut logical: libc::c_int = 0;
    // SAFETY: the call writes one int to the address, which is that of a local variable.
    unsafe { logical_block_bytes(file.as_raw_fd(), &raw mut logical) }?;
    let logical = logical.unsigned_abs();
    Ok(Some(Limits { io_bytes: logical, mem_bytes: logical, certain: false }))
}

/// True when the block device says that it can zero a range without being sent the zeroes.
fn zeroes_without_writing(file: &File) -> bool {
    let Ok(found) = file.metadata() else { return false };
    let (major, minor) = (libc::major(found.rdev()), libc::minor(found.rdev()));
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    // A partition has no queue of its own; its disk is one level up.
    ["queue", "../queue"].iter().any(|queue| {
        std::fs::read_to_string(device.join(queue).join("write_zeroes_max_bytes"))
            .is_ok_and(|text| text.trim() != "0")
    })
}

/// Switches the descriptor to direct I/O, and tries it where that is not certain; false when the file system refuses.
fn set_direct(file: &File, limits: Limits) -> bool {
    // SAFETY: these calls take integers only.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    let set = |flags: libc::c_int| {
        // SAFETY: as above.
        flags >= 0 && unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) } == 0
    };
    if !set(flags | libc::O_DIRECT) {
        return false;
    }
    // Some file systems accept the flag and then refuse every read. Other errors are those of
    // the medium and will be met, and reported, by whoever reads there.
    let mut unit = Chunk::zeroed(limits.io_bytes as usize);
    let refused = |error: io::Error| error.raw_os_error() == Some(libc::EINVAL);
    let works = limits.certain || !file.read_at(unit.as_mut_slice(), 0).is_err_and(refused);
    works || !set(flags)
}
