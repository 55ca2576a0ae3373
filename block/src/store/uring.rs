//! A file or block device as a store.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::fcntl::{Flock, PosixFadviseAdvice, posix_fadvise};

use super::open::{OpenMode, Opened, StoreError, open, size_of};
use super::{Store, StoreGeometry};
use crate::chunk::Chunk;
use crate::device::{Durability, StatusExtent};
use crate::engine::file::File;
use crate::range::ByteRange;

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// A regular file or block device, locked for this process, with direct I/O where the kernel
/// offers it.
///
/// A file whose size is not a multiple of the unit of direct I/O goes through the page cache.
pub struct UringStore {
    file: File,
    /// Holds the lock; the same open file as `file`.
    locked: Flock<std::fs::File>,
    geometry: StoreGeometry,
    direct: bool,
    block_device: bool,
}

impl UringStore {
    /// Opens and locks a store (shared among readers when read-only).
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open(path: &Path, mode: OpenMode) -> Result<Self, StoreError> {
        let Opened { file, geometry, direct, block_device } = open(path, mode)?;
        let again = file.try_clone().map_err(|source| StoreError::Inspect {
            path: path.to_owned(),
            what: "copying its descriptor",
            source,
        })?;
        Ok(Self { file: again.into(), locked: file, geometry, direct, block_device })
    }

    /// True when reads and writes go past the page cache.
    #[must_use]
    pub fn direct(&self) -> bool {
        self.direct
    }
}

impl Store for UringStore {
    fn geometry(&self) -> StoreGeometry {
        self.geometry
    }

    fn size_now(&self) -> io::Result<u64> {
        size_of(&self.locked, self.block_device)
    }

    fn grows_by_writing(&self) -> bool {
        !self.block_device
    }

    fn uncache(&self, range: ByteRange) {
        if self.direct {
            return;
        }
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let (start, len) = (signed(range.start()), signed(range.len()));
        // A wish: what can't be dropped is what is still to be written.
        let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        let _ = posix_fadvise(&*self.locked, start, len, advice);
    }

    async fn read_at(&self, buf: Chunk, offset: u64) -> (io::Result<()>, Chunk) {
        self.file.read_exact_at(buf, offset).await
    }

    async fn write_at(
        &self,
        buf: Chunk,
        offset: u64,
        durability: Durability,
    ) -> (io::Result<()>, Chunk) {
        self.file.write_all_at(buf, offset, durability).await
    }

    async fn sync(&self) -> io::Result<()> {
        self.file.datasync().await
    }

    async fn punch(&self, range: ByteRange) -> io::Result<()> {
        self.file.fallocate(PUNCH, range).await
    }

    async fn zero(&self, range: ByteRange) -> io::Result<()> {
        self.file.fallocate(ZERO, range).await
    }

    fn data_extents(
        &self,
        range: ByteRange,
        max: usize,
        out: &mut Vec<StatusExtent>,
    ) -> io::Result<()> {
        if self.block_device {
            let all = StatusExtent { len_bytes: range.len(), hole: false, zero: false };
            out.extend((max > 0).then_some(all));
            return Ok(());
        }
        let mut at = range.start();
        for _ in 0..max {
            if at >= range.end() {
                break;
            }
            let data = self.seek(at, libc::SEEK_DATA)?;
            let hole = data != Some(at);
            let end = if hole { data } else { self.seek(at, libc::SEEK_HOLE)? };
            let end = end.unwrap_or(range.end()).min(range.end());
            out.push(StatusExtent { len_bytes: end - at, hole, zero: hole });
            at = end;
        }
        Ok(())
    }
}

impl UringStore {
    /// Where data or a hole begins at or behind an offset (in bytes); `None` when there is none
    /// before the end of the file. Nothing here uses the file position, so moving it is safe.
    fn seek(&self, from: u64, whence: i32) -> io::Result<Option<u64>> {
        let from = i64::try_from(from).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: the call takes integers only.
        let found = unsafe { libc::lseek(self.locked.as_raw_fd(), from, whence) };
        match u64::try_from(found) {
            Ok(found) => Ok(Some(found)),
            Err(_) => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
                error => Err(error),
            },
        }
    }
}
