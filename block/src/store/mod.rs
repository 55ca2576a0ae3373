//! The backing store behind a seam.
//!
//! Everything that reads and writes the bytes of a disk does it through [`Store`]: [`UringStore`]
//! is a file or block device, the simulator has one of its own. What enters are aligned reads and
//! writes; a crash may lose every write since the last [`Store::sync`] that returned, in any
//! combination of units of the store.

mod open;
#[cfg(test)]
mod tests;
mod units;
mod uring;

pub use open::{OpenMode, StoreError};
pub use units::{Units, ZeroedBy};
pub use uring::UringStore;

use std::future::Future;
use std::io;

use crate::chunk::Chunk;
use crate::device::{Durability, Geometry, StatusExtent};
use crate::range::ByteRange;

/// Size and limits of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreGeometry {
    /// Size in bytes when the store was opened; a multiple of `io_align_bytes`.
    pub size_bytes: u64,
    /// Unit of offsets and lengths of reads, writes, punches and zeroings, in bytes (a power of
    /// two, at most 4096; 1 when the page cache is in between).
    pub io_align_bytes: u32,
    /// Unit of the addresses of buffers, in bytes (a power of two, at most 4096).
    pub mem_align_bytes: u32,
    /// [`Store::punch`] can be expected to work; a device may still find out later that it can't.
    pub discard: bool,
    /// Only reads succeed.
    pub read_only: bool,
}

/// Unit in which page caches and devices are fast, in bytes.
const PREFERRED_BYTES: u32 = 4096;

impl StoreGeometry {
    /// What a disk on this store tells its clients, when [`Units`] takes requests of any alignment.
    #[must_use]
    pub fn as_device(&self) -> Geometry {
        Geometry {
            size_bytes: self.size_bytes,
            block_bytes_min: 1,
            block_bytes_preferred: PREFERRED_BYTES,
            read_only: self.read_only,
            fast_zero: self.discard,
        }
    }
}

/// Where the bytes of a disk are kept.
///
/// Operations in flight at the same time have no order among each other. The caller aligns
/// offsets, lengths and addresses as [`StoreGeometry`] says and stays inside the size; an
/// implementation may fail with `InvalidInput` otherwise.
#[allow(async_fn_in_trait)]
pub trait Store: Send + Sync + 'static {
    /// Size, when it was opened, and limits.
    fn geometry(&self) -> StoreGeometry;

    /// How large the store is just now, in bytes: others may have grown or shrunk it. It need not
    /// be whole units.
    ///
    /// # Errors
    /// The operating system's.
    fn size_now(&self) -> io::Result<u64> {
        Ok(self.geometry().size_bytes)
    }

    /// True when a write behind the end makes the store larger, as it does with a file; false
    /// when it fails.
    fn grows_by_writing(&self) -> bool {
        false
    }

    /// Lets the next read of a range show what the store itself holds, and not what a cache in
    /// memory does, which may differ once the store has failed to take it. What the store still has
    /// to take stays in the cache. Nothing to do where reads pass by such a cache.
    fn uncache(&self, _range: ByteRange) {}

    /// Fills the buffer from `offset` (in bytes). `UnexpectedEof` when the store ends before.
    fn read_at(&self, buf: Chunk, offset: u64) -> impl Future<Output = (io::Result<()>, Chunk)>;

    /// Writes the whole buffer at `offset` (in bytes).
    fn write_at(
        &self,
        buf: Chunk,
        offset: u64,
        durability: Durability,
    ) -> impl Future<Output = (io::Result<()>, Chunk)>;

    /// Makes every write, punch and zeroing that returned before this call durable. After an
    /// error it is unknown which of those since the last success are.
    fn sync(&self) -> impl Future<Output = io::Result<()>>;

    /// Gives the space of a range back; it reads as zeroes afterwards. `Unsupported` where that
    /// can't be had.
    fn punch(&self, range: ByteRange) -> impl Future<Output = io::Result<()>>;

    /// Makes a range read as zeroes without writing them out, and keeps its space. `Unsupported`
    /// where that can't be had.
    fn zero(&self, range: ByteRange) -> impl Future<Output = io::Result<()>>;

    /// Appends to `out` at most `max` extents from the start of `range` on; together they cover
    /// at least one byte of it. A store that can't tell says that all is data.
    ///
    /// # Errors
    /// The operating system's.
    fn data_extents(
        &self,
        range: ByteRange,
        max: usize,
        out: &mut Vec<StatusExtent>,
    ) -> io::Result<()>;
}
