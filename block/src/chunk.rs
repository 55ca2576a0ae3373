//! Memory that a block operation owns until its completion.
//!
//! A [`Chunk`] is moved into an I/O operation and handed back with the result, so the kernel
//! never writes into memory that somebody else took back meanwhile. It does not own its bytes
//! exclusively by type: change-ring memory is shared with the shipper, which only reads it. The
//! owner inside keeps the memory mapped for as long as a chunk of it exists.

use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;

/// Keeps the memory behind a [`Chunk`] alive; its drop may return the memory to a pool.
pub type ChunkOwner = Arc<dyn Any + Send + Sync>;

/// A contiguous piece of memory with its owner.
pub struct Chunk {
    start: NonNull<u8>,
    len: usize,
    owner: Owner,
}

/// A pool that counts the chunks of each of its buffers and lends a buffer again when none is
/// left. Unlike a [`ChunkOwner`], which is allocated with each loan, it costs no allocation.
pub(crate) trait ChunkPool: Send + Sync {
    /// There is one more chunk of the buffer.
    fn retain(&self, buffer: u32);
    /// There is one chunk less of the buffer.
    fn release(&self, buffer: u32);
}

enum Owner {
    Shared(ChunkOwner),
    Pooled(Loan),
}

struct Loan {
    pool: Arc<dyn ChunkPool>,
    buffer: u32,
}

impl Clone for Owner {
    fn clone(&self) -> Self {
        match self {
            Self::Shared(owner) => Self::Shared(Arc::clone(owner)),
            Self::Pooled(loan) => {
                loan.pool.retain(loan.buffer);
                Self::Pooled(Loan { pool: Arc::clone(&loan.pool), buffer: loan.buffer })
            }
        }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.pool.release(self.buffer);
    }
}

// SAFETY: a chunk is a pointer into memory kept alive by `owner`, which is Send and Sync; access
// goes through `&self` for reads and `&mut self` for writes, as for a `Vec<u8>`.
unsafe impl Send for Chunk {}
// SAFETY: see above; `&Chunk` gives read access only.
unsafe impl Sync for Chunk {}

impl Chunk {
    /// Wraps `len` bytes at `start`.
    ///
    /// # Safety
    /// The bytes are initialized and stay valid for as long as `owner` lives, and nobody writes
    /// to them through another path while this chunk exists. Others may read them only while no
    /// holder of the chunk writes.
    #[must_use]
    pub unsafe fn from_raw(start: NonNull<u8>, len: usize, owner: ChunkOwner) -> Self {
        Self { start, len, owner: Owner::Shared(owner) }
    }

    /// Wraps a buffer that `pool` has just counted one chunk of.
    ///
    /// # Safety
    /// As for [`Chunk::from_raw`], with the pool as the owner.
    pub(crate) unsafe fn from_pool(
        start: NonNull<u8>,
        len: usize,
        pool: Arc<dyn ChunkPool>,
        buffer: u32,
    ) -> Self {
        Self { start, len, owner: Owner::Pooled(Loan { pool, buffer }) }
    }

    /// A zeroed chunk of its own on the heap, aligned to 4096 bytes. For set-up and tests; the
    /// steady state takes chunks from a pool.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let pages = len.div_ceil(PAGE_BYTES).max(1);
        let boxed: Arc<Box<[Page]>> = Arc::new(vec![Page([0; PAGE_BYTES]); pages].into());
        let start = NonNull::from(&boxed[0]).cast::<u8>();
        // SAFETY: the boxed pages hold at least `len` initialized bytes, do not move while the
        // Arc lives, and no other pointer to them escapes.
        unsafe { Self::from_raw(start, len, boxed) }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when the chunk holds no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of the first byte, for the kernel.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `from_raw` promised `len` valid, initialized bytes and no other writer.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// The bytes, to write to.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above; `&mut self` makes this the only access through the chunk.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Splits at `at` bytes: this chunk keeps the front, the rest is returned.
    ///
    /// # Panics
    /// When `at` lies behind the end: a programmer's mistake.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        assert!(at <= self.len, "split at {at} of a chunk of {} bytes", self.len);
        // SAFETY: `at <= len`, so the address stays within the chunk's memory or one behind it.
        let start = unsafe { self.start.add(at) };
        let rest = Self { start, len: self.len - at, owner: self.owner.clone() };
        self.len = at;
        rest
    }

    /// Cuts the chunk to its first `len` bytes. A longer `len` changes nothing.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

const PAGE_BYTES: usize = 4096;

#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_parts_share_the_memory_and_cover_it() {
        let mut front = Chunk::zeroed(8192);
        front.as_mut_slice()[5000] = 7;
        let back = front.split_off(4096);
        assert_eq!((front.len(), back.len()), (4096, 4096));
        assert_eq!(back.as_slice()[904], 7);
        drop(front);
        assert_eq!(back.as_slice()[904], 7, "the rest keeps the memory alive");
    }
}
