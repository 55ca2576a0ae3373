//! Requests of any alignment on a store that takes only whole units.
//!
//! What enters are ranges and chunks as a client gave them; what leaves are aligned operations of
//! the [`Store`]. The units at the edges of a write are read first and written back whole, so the
//! caller holds a lock on every unit that it changes: neighbours in one unit would otherwise undo
//! each other. A unit torn by a crash of the store may take neighbouring bytes with it.

use std::io;

use super::Store;
use crate::chunk::Chunk;
use crate::device::{Durability, PAYLOAD_BYTES_MAX};
use crate::engine::BufferPool;
use crate::range::ByteRange;

/// Buffers for requests that do not lie on units. Their holders wait for an edge at most.
const BUFFERS: usize = 32;
/// A longest payload and the two units at its edges.
const BUFFER_BYTES: usize = PAYLOAD_BYTES_MAX + 2 * EDGE_BYTES;
/// Buffers for one unit at the edge of a write. Their holders wait for no other buffer, so that
/// everybody gets one in the end.
const EDGES: usize = 32;
const EDGE_BYTES: usize = 4096;

/// How a range was made to read as zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroedBy {
    /// The store's own means: a hole, or a range marked as unwritten.
    Store,
    /// Zeroes were written out, at least at the edges.
    Writing,
}

/// A store that takes requests of any alignment. Its memory, 8 MiB, is allocated once.
pub struct Units<S> {
    store: S,
    buffers: BufferPool,
    edges: BufferPool,
}

impl<S: Store> Units<S> {
    /// On a store.
    #[must_use]
    pub fn new(store: S) -> Self {
        Self {
            store,
            buffers: BufferPool::new(BUFFERS, BUFFER_BYTES),
            edges: BufferPool::new(EDGES, EDGE_BYTES),
        }
    }

    /// The store itself.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The store's unit in bytes: what a range lock has to be aligned to.
    #[must_use]
    pub fn unit_bytes(&self) -> u64 {
        u64::from(self.store.geometry().io_align_bytes)
    }

    fn in_place(&self, chunk: &Chunk, range: ByteRange) -> bool {
        let geometry = self.store.geometry();
        range.is_aligned(u64::from(geometry.io_align_bytes))
            && chunk.as_ptr().addr().is_multiple_of(geometry.mem_align_bytes as usize)
    }

    async fn buffer(&self, len_bytes: usize) -> Chunk {
        let mut buffer = self.buffers.take().await;
        buffer.truncate(len_bytes);
        buffer
    }

    /// Writes `chunk`, at most [`PAYLOAD_BYTES_MAX`] long, at `start`. The caller holds the lock
    /// on its units.
    ///
    /// # Errors
    /// The operating system's; the range then holds anything.
    pub async fn write(&self, start: u64, chunk: Chunk, durability: Durability) -> io::Result<()> {
        let range = range_of(start, chunk.len())?;
        if range.is_empty() {
            return Ok(());
        }
        if self.in_place(&chunk, range) {
            return self.store.write_at(chunk, start, durability).await.0;
        }
        let unit = self.unit_bytes();
        let outer = range.align_outward(unit);
        let mut buffer = self.buffer(in_memory(outer.len())).await;
        let (first_unit, last_unit) = (outer.start(), outer.end() - unit);
        if first_unit != range.start() {
            buffer = self.read_unit(buffer, outer, first_unit).await?;
        }
        let read_already = last_unit == first_unit && first_unit != range.start();
        if outer.end() != range.end() && !read_already {
            buffer = self.read_unit(buffer, outer, last_unit).await?;
        }
        let at = in_memory(range.start() - outer.start());
        buffer.as_mut_slice()[at..at + chunk.len()].copy_from_slice(chunk.as_slice());
        self.store.write_at(buffer, outer.start(), durability).await.0
    }

    /// Fills the unit at `unit_start` of a buffer that stands for `outer`.
    async fn read_unit(
        &self,
        mut buffer: Chunk,
        outer: ByteRange,
        unit_start: u64,
    ) -> io::Result<Chunk> {
        let unit = in_memory(self.unit_bytes());
        let at = in_memory(unit_start - outer.start());
        let mut edge = self.edges.take().await;
        edge.truncate(unit);
        let (result, edge) = self.store.read_at(edge, unit_start).await;
        result?;
        buffer.as_mut_slice()[at..at + unit].copy_from_slice(edge.as_slice());
        Ok(buffer)
    }

    /// Fills `into` from `start` on.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn read(&self, start: u64, mut into: Chunk) -> io::Result<Chunk> {
        let range = range_of(start, into.len())?;
        if range.is_empty() {
            return Ok(into);
        }
        if self.in_place(&into, range) {
            let (result, into) = self.store.read_at(into, start).await;
            return result.map(|()| into);
        }
        let unit = self.unit_bytes();
        let mut done = 0;
        while done < into.len() {
            let at = start + done as u64;
            let len = (into.len() - done).min(PAYLOAD_BYTES_MAX);
            let outer = range_of(at, len)?.align_outward(unit);
            let buffer = self.buffer(in_memory(outer.len())).await;
            let (result, buffer) = self.store.read_at(buffer, outer.start()).await;
            result?;
            let from = in_memory(at - outer.start());
            into.as_mut_slice()[done..done + len]
                .copy_from_slice(&buffer.as_slice()[from..from + len]);
            done += len;
        }
        Ok(into)
    }

    /// Gives the space of the whole units inside `range` back; they read as zeroes afterwards.
    /// `None` when the store can't or there is no whole unit: the bytes are then as they were.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn punch(&self, range: ByteRange) -> io::Result<Option<ByteRange>> {
        let Some(units) = range.align_inward(self.unit_bytes()) else {
            return Ok(None);
        };
        match self.store.punch(units).await {
            Ok(()) => Ok(Some(units)),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes `range` read as zeroes; with `keep_space` without a hole. With `fast` it fails with
    /// `Unsupported`, having changed nothing, where whole units would have to be written out. The
    /// caller holds the lock on its units.
    ///
    /// # Errors
    /// The operating system's; the range then holds anything.
    pub async fn zero(
        &self,
        range: ByteRange,
        keep_space: bool,
        fast: bool,
    ) -> io::Result<ZeroedBy> {
        let mut slow = [Some(range), None];
        let mut by = ZeroedBy::Writing;
        if let Some(units) = range.align_inward(self.unit_bytes()) {
            if self.zero_units(units, keep_space).await? {
                by = if units == range { ZeroedBy::Store } else { ZeroedBy::Writing };
                slow = [
                    ByteRange::between(range.start(), units.start()),
                    ByteRange::between(units.end(), range.end()),
                ];
            } else if fast {
                return Err(io::Error::from(io::ErrorKind::Unsupported));
            }
        }
        for part in slow.into_iter().flatten() {
            self.write_zeroes(part).await?;
        }
        Ok(by)
    }

    /// Zeroes whole units without writing them; false when the store can't.
    async fn zero_units(&self, units: ByteRange, keep_space: bool) -> io::Result<bool> {
        let unsupported = |error: &io::Error| error.kind() == io::ErrorKind::Unsupported;
        let mut result =
            if keep_space { self.store.zero(units).await } else { self.store.punch(units).await };
        if !keep_space && result.as_ref().is_err_and(unsupported) {
            result = self.store.zero(units).await;
        }
        match result {
            Ok(()) => Ok(true),
            Err(error) if unsupported(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn write_zeroes(&self, range: ByteRange) -> io::Result<()> {
        let mut at = range.start();
        while at < range.end() {
            let unit = self.unit_bytes();
            let head = at % unit;
            let len = (range.end() - at).min(PAYLOAD_BYTES_MAX as u64 - head);
            self.write(at, Chunk::zeroed(in_memory(len)), Durability::Cached).await?;
            at += len;
        }
        Ok(())
    }
}

fn range_of(start: u64, len: usize) -> io::Result<ByteRange> {
    ByteRange::new(start, len as u64).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// A length that was cut to what fits in a buffer.
fn in_memory(len_bytes: u64) -> usize {
    usize::try_from(len_bytes).expect("pieces are as long as a buffer at most")
}
