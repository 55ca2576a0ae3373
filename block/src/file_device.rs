//! A disk that is nothing but a backing store.
//!
//! Requests of any alignment enter; aligned reads and writes of a [`Store`] leave. The store's
//! unit is hidden by reading the units at the edges of a write first, under a lock on the range,
//! so that neighbours in one unit wait for each other. A crash loses what the store loses, and a
//! unit torn by the store may take neighbouring bytes with it.
//!
//! It protects nothing; it is the reference that a protected disk is measured against, and the
//! disk of tests.

use std::io;
use std::sync::Mutex;

use crate::chunk::Chunk;
use crate::device::{
    Device, DeviceError, Durability, Geometry, PAYLOAD_BYTES_MAX, Payload, StatusExtent,
    ZeroOptions, check_range,
};
use crate::engine::{BufferPool, Event, lock};
use crate::range::ByteRange;
use crate::store::Store;

/// Buffers for requests of up to two pages, which most are.
const SMALL_BUFFERS: usize = 512;
const SMALL_BYTES: usize = 8192;
/// Buffers for everything larger.
const LARGE_BUFFERS: usize = 64;
/// Buffers for one unit at the edge of a write. Their holders wait for no other buffer.
const EDGE_BUFFERS: usize = 64;
const EDGE_BYTES: usize = 4096;
/// Buffers for zeroes that have to be written out under a range lock. They are apart, because the
/// holders of all others may be waiting for that lock.
const ZERO_BUFFERS: usize = 4;
/// Unit in which the page cache and every device are fast.
const PREFERRED_BYTES: u32 = 4096;

/// A [`Device`] on a [`Store`]. Its memory is allocated once: 4 MiB in small, 16 MiB in large
/// buffers, and little else. Requests wait for each other when all are in use.
///
/// What a request waits for, in this order, so that none waits in a circle: a small or large
/// buffer, the lock on its range, a buffer for zeroes, one for an edge.
pub struct FileDevice<S> {
    store: S,
    small: BufferPool,
    large: BufferPool,
    zeroes: BufferPool,
    edges: BufferPool,
    locks: RangeLocks,
}

/// The payload of one write: the units of the store that it touches, with the bytes of the write
/// somewhere inside.
pub struct FilePayload {
    units: Chunk,
    range: ByteRange,
    /// Bytes of the first unit in front of the write.
    head_bytes: usize,
}

impl Payload for FilePayload {
    fn bytes_mut(&mut self) -> &mut [u8] {
        let end = self.head_bytes + len_in_memory(self.range);
        &mut self.units.as_mut_slice()[self.head_bytes..end]
    }
}

impl<S: Store> FileDevice<S> {
    /// Serves a store.
    #[must_use]
    pub fn new(store: S) -> Self {
        Self {
            store,
            small: BufferPool::new(SMALL_BUFFERS, SMALL_BYTES),
            large: BufferPool::new(LARGE_BUFFERS, PAYLOAD_BYTES_MAX),
            zeroes: BufferPool::new(ZERO_BUFFERS, PAYLOAD_BYTES_MAX),
            edges: BufferPool::new(EDGE_BUFFERS, EDGE_BYTES),
            locks: RangeLocks::new(),
        }
    }

    /// The store behind it.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.store
    }

    fn unit_bytes(&self) -> u64 {
        u64::from(self.store.geometry().io_align_bytes)
    }

    fn check_write(&self, range: ByteRange) -> Result<(), DeviceError> {
        let geometry = self.geometry();
        if geometry.read_only {
            return Err(DeviceError::ReadOnly);
        }
        check_range(&geometry, range)
    }

    /// The pool whose buffers hold that many bytes.
    fn pool(&self, len_bytes: usize) -> &BufferPool {
        if len_bytes <= SMALL_BYTES { &self.small } else { &self.large }
    }

    /// The longest piece from the start of a range whose units fit in one buffer.
    fn piece(&self, range: ByteRange) -> ByteRange {
        let head = range.start() % self.unit_bytes();
        let len = range.len().min(PAYLOAD_BYTES_MAX as u64 - head);
        ByteRange::new(range.start(), len).expect("a part of a range")
    }

    /// A payload for a piece. `pool` picks where the memory for its units comes from.
    async fn payload<'a>(
        &self,
        piece: ByteRange,
        pool: impl FnOnce(usize) -> &'a BufferPool,
    ) -> FilePayload {
        let outer = piece.align_outward(self.unit_bytes());
        let len = len_in_memory(outer);
        let mut units = pool(len).take().await;
        units.truncate(len);
        FilePayload { units, range: piece, head_bytes: offset_in(outer.start(), piece.start()) }
    }

    /// Completes the edges of a payload and writes it. The caller holds the lock on its units.
    async fn write_locked(
        &self,
        mut payload: FilePayload,
        durability: Durability,
    ) -> Result<(), DeviceError> {
        let range = payload.range;
        let outer = range.align_outward(self.unit_bytes());
        let last_unit = outer.end() - self.unit_bytes().min(outer.len());
        if outer.start() != range.start() {
            self.complete_unit(&mut payload, outer.start()).await?;
        }
        let done_already = last_unit == outer.start() && outer.start() != range.start();
        if outer.end() != range.end() && !done_already {
            self.complete_unit(&mut payload, last_unit).await?;
        }
        let (result, _) = self.store.write_at(payload.units, outer.start(), durability).await;
        result.map_err(|error| io_error(range, error))
    }

    /// Fills the bytes of the unit at `unit_start` that the write leaves alone with what the
    /// store has there.
    async fn complete_unit(
        &self,
        payload: &mut FilePayload,
        unit_start: u64,
    ) -> Result<(), DeviceError> {
        let range = payload.range;
        let unit = ByteRange::new(unit_start, self.unit_bytes()).expect("a unit of the store");
        let mut edge = self.edges.take().await;
        edge.truncate(len_in_memory(unit));
        let (result, edge) = self.store.read_at(edge, unit_start).await;
        result.map_err(|error| io_error(unit, error))?;
        let first = range.start() - payload.head_bytes as u64;
        let before = ByteRange::between(unit.start(), range.start().min(unit.end()));
        let behind = ByteRange::between(range.end().max(unit.start()), unit.end());
        for kept in [before, behind].into_iter().flatten() {
            let from = offset_in(unit.start(), kept.start());
            let to = offset_in(first, kept.start());
            let len = len_in_memory(kept);
            payload.units.as_mut_slice()[to..to + len]
                .copy_from_slice(&edge.as_slice()[from..from + len]);
        }
        Ok(())
    }

    /// Writes zeroes out. The caller holds the lock on the units of the range.
    async fn write_zeroes_locked(&self, range: ByteRange) -> Result<(), DeviceError> {
        let mut rest = range;
        while !rest.is_empty() {
            let mut payload = self.payload(self.piece(rest), |_| &self.zeroes).await;
            payload.bytes_mut().fill(0);
            let end = payload.range.end();
            self.write_locked(payload, Durability::Cached).await?;
            rest = ByteRange::between(end, rest.end()).expect("a payload is a part of its range");
        }
        Ok(())
    }

    /// Zeroes whole units without writing them; false when the store can't.
    async fn zero_units(&self, units: ByteRange, no_hole: bool) -> Result<bool, DeviceError> {
        let mut result =
            if no_hole { self.store.zero(units).await } else { self.store.punch(units).await };
        if !no_hole && result.as_ref().is_err_and(unsupported) {
            result = self.store.zero(units).await;
        }
        match result {
            Ok(()) => Ok(true),
            Err(error) if unsupported(&error) => Ok(false),
            Err(error) => Err(io_error(units, error)),
        }
    }

    async fn settle(&self, range: ByteRange, durability: Durability) -> Result<(), DeviceError> {
        match durability {
            Durability::Cached => Ok(()),
            Durability::Stable => self.store.sync().await.map_err(|error| io_error(range, error)),
        }
    }
}

impl<S: Store> Device for FileDevice<S> {
    type Payload = FilePayload;

    fn geometry(&self) -> Geometry {
        let store = self.store.geometry();
        Geometry {
            size_bytes: store.size_bytes,
            block_bytes_min: 1,
            block_bytes_preferred: PREFERRED_BYTES,
            read_only: store.read_only,
            fast_zero: store.discard,
        }
    }

    async fn reserve(&self, range: ByteRange) -> Result<FilePayload, DeviceError> {
        self.check_write(range)?;
        Ok(self.payload(self.piece(range), |len| self.pool(len)).await)
    }

    async fn write(&self, payload: FilePayload, durability: Durability) -> Result<(), DeviceError> {
        let range = payload.range;
        if range.is_empty() {
            return self.settle(range, durability).await;
        }
        let _held = self.locks.lock(range.align_outward(self.unit_bytes())).await;
        self.write_locked(payload, durability).await
    }

    async fn read(&self, start: u64, mut into: Chunk) -> Result<Chunk, DeviceError> {
        let geometry = self.store.geometry();
        let out_of_range =
            |range| DeviceError::OutOfRange { range, size_bytes: geometry.size_bytes };
        let all = ByteRange::new(start, into.len() as u64)
            .ok_or_else(|| out_of_range(ByteRange::between(start, u64::MAX).expect("in order")))?;
        check_range(&self.geometry(), all)?;
        let unit = self.unit_bytes();
        let in_place = all.is_aligned(unit)
            && into.as_ptr().addr().is_multiple_of(geometry.mem_align_bytes as usize);
        if in_place && !all.is_empty() {
            let (result, into) = self.store.read_at(into, start).await;
            return result.map(|()| into).map_err(|error| io_error(all, error));
        }
        let mut done = 0;
        while done < into.len() {
            let rest = ByteRange::between(start + done as u64, all.end()).expect("in order");
            let piece = self.piece(rest);
            let mut buffer = self.payload(piece, |len| self.pool(len)).await;
            let from = piece.start() - buffer.head_bytes as u64;
            let (result, units) = self.store.read_at(buffer.units, from).await;
            result.map_err(|error| io_error(piece, error))?;
            buffer.units = units;
            let len = len_in_memory(piece);
            into.as_mut_slice()[done..done + len].copy_from_slice(buffer.bytes_mut());
            done += len;
        }
        Ok(into)
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        let size_bytes = self.store.geometry().size_bytes;
        let all = ByteRange::new(0, size_bytes).expect("from 0 every length fits");
        self.settle(all, Durability::Stable).await
    }

    async fn trim(&self, range: ByteRange, durability: Durability) -> Result<(), DeviceError> {
        self.check_write(range)?;
        if let Some(units) = range.align_inward(self.unit_bytes()) {
            let _held = self.locks.lock(units).await;
            match self.store.punch(units).await {
                // A trim is a wish; one that can't be granted leaves the bytes as they were.
                Err(error) if !unsupported(&error) => return Err(io_error(units, error)),
                Ok(()) | Err(_) => {}
            }
        }
        self.settle(range, durability).await
    }

    async fn write_zeroes(
        &self,
        range: ByteRange,
        options: ZeroOptions,
    ) -> Result<(), DeviceError> {
        self.check_write(range)?;
        if range.is_empty() {
            return self.settle(range, options.durability).await;
        }
        let unit = self.unit_bytes();
        let _held = self.locks.lock(range.align_outward(unit)).await;
        let fast = match range.align_inward(unit) {
            Some(units) if self.zero_units(units, options.no_hole).await? => Some(units),
            Some(_) if options.fast => return Err(DeviceError::Unsupported("fast zeroing")),
            _ => None,
        };
        let slow = match fast {
            Some(units) => [
                ByteRange::between(range.start(), units.start()),
                ByteRange::between(units.end(), range.end()),
            ],
            None => [Some(range), None],
        };
        for part in slow.into_iter().flatten() {
            self.write_zeroes_locked(part).await?;
        }
        self.settle(range, options.durability).await
    }

    async fn block_status(
        &self,
        range: ByteRange,
        extents_max: usize,
        extents: &mut Vec<StatusExtent>,
    ) -> Result<(), DeviceError> {
        check_range(&self.geometry(), range)?;
        self.store.data_extents(range, extents_max, extents).map_err(|error| io_error(range, error))
    }

    async fn cache(&self, range: ByteRange) -> Result<(), DeviceError> {
        check_range(&self.geometry(), range)
    }
}

/// The length of a range that is, or fits, in memory.
fn len_in_memory(range: ByteRange) -> usize {
    usize::try_from(range.len()).expect("pieces are at most PAYLOAD_BYTES_MAX long")
}

/// Where `at` lies in memory that begins with `first`.
fn offset_in(first: u64, at: u64) -> usize {
    usize::try_from(at - first).expect("pieces are at most PAYLOAD_BYTES_MAX long")
}

fn unsupported(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
}

fn io_error(range: ByteRange, source: io::Error) -> DeviceError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DeviceError::NoSpace,
        _ => DeviceError::Io { range, source },
    }
}

/// Ranges that are being written. Bounded by the requests in flight; a waiting one looks again
/// whenever another ends, so there is no order among those that wait.
struct RangeLocks {
    held: Mutex<Vec<ByteRange>>,
    released: Event,
}

struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    range: ByteRange,
}

impl RangeLocks {
    fn new() -> Self {
        Self { held: Mutex::new(Vec::with_capacity(SMALL_BUFFERS)), released: Event::new() }
    }

    async fn lock(&self, range: ByteRange) -> RangeGuard<'_> {
        loop {
            let released = self.released.wait();
            {
                let mut held = lock(&self.held);
                if !held.iter().any(|other| other.overlaps(range)) {
                    held.push(range);
                    return RangeGuard { locks: self, range };
                }
            }
            released.await;
        }
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        {
            let mut held = lock(&self.locks.held);
            // Held ranges do not overlap, so the equal one is this one.
            if let Some(at) = held.iter().position(|other| *other == self.range) {
                held.swap_remove(at);
            }
        }
        self.locks.released.notify_all();
    }
}

#[cfg(test)]
mod tests;
