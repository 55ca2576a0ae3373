//! A disk that is nothing but a backing store.
//!
//! Requests of any alignment enter; operations of a [`Store`] leave, by way of [`Units`]. Changes
//! that share a unit of the store wait for each other ([`RangeLock`]). A crash loses what the
//! store loses.
//!
//! It protects nothing; it is the reference that a protected disk is measured against, and the
//! disk of tests.

use crate::chunk::Chunk;
use crate::device::{
    Device, DeviceError, Durability, Geometry, PAYLOAD_BYTES_MAX, Payload, StatusExtent,
    ZeroOptions, check_range, check_read, check_write,
};
use crate::engine::BufferPool;
use crate::range::ByteRange;
use crate::range_lock::RangeLock;
use crate::store::{Store, Units};

/// Buffers for payloads of up to two pages, which most are.
const SMALL_BUFFERS: usize = 512;
const SMALL_BYTES: usize = 8192;
/// Buffers for everything larger.
const LARGE_BUFFERS: usize = 64;

/// A [`Device`] on a [`Store`]. Its memory is allocated once: 4 MiB in small, 16 MiB in large
/// buffers, and that of [`Units`]. Requests wait for each other when all are in use.
pub struct FileDevice<S> {
    units: Units<S>,
    small: BufferPool,
    large: BufferPool,
    locks: RangeLock,
}

/// The payload of one write.
pub struct FilePayload {
    start: u64,
    chunk: Chunk,
}

impl Payload for FilePayload {
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.chunk.as_mut_slice()
    }
}

impl<S: Store> FileDevice<S> {
    /// Serves a store.
    #[must_use]
    pub fn new(store: S) -> Self {
        Self {
            units: Units::new(store),
            small: BufferPool::new(SMALL_BUFFERS, SMALL_BYTES),
            large: BufferPool::new(LARGE_BUFFERS, PAYLOAD_BYTES_MAX),
            locks: RangeLock::default(),
        }
    }

    /// The store behind it.
    #[must_use]
    pub fn store(&self) -> &S {
        self.units.store()
    }

    async fn settle(&self, range: ByteRange, durability: Durability) -> Result<(), DeviceError> {
        match durability {
            Durability::Cached => Ok(()),
            Durability::Stable => {
                self.store().sync().await.map_err(|error| DeviceError::io(range, error))
            }
        }
    }
}

impl<S: Store> Device for FileDevice<S> {
    type Payload = FilePayload;

    fn geometry(&self) -> Geometry {
        self.store().geometry().as_device()
    }

    async fn reserve(&self, range: ByteRange) -> Result<FilePayload, DeviceError> {
        check_write(&self.geometry(), range)?;
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX).min(PAYLOAD_BYTES_MAX);
        let pool = if len <= SMALL_BYTES { &self.small } else { &self.large };
        let mut chunk = pool.take().await;
        chunk.truncate(len);
        Ok(FilePayload { start: range.start(), chunk })
    }

    async fn write(&self, payload: FilePayload, durability: Durability) -> Result<(), DeviceError> {
        let FilePayload { start, chunk } = payload;
        let range = ByteRange::new(start, chunk.len() as u64).expect("checked when reserved");
        if range.is_empty() {
            return self.settle(range, durability).await;
        }
        let _held = self.locks.lock(range.align_outward(self.units.unit_bytes())).await;
        let written = self.units.write(start, chunk, durability).await;
        written.map_err(|error| DeviceError::io(range, error))
    }

    async fn read(&self, start: u64, into: Chunk) -> Result<Chunk, DeviceError> {
        let range = check_read(&self.geometry(), start, into.len())?;
        self.units.read(start, into).await.map_err(|error| DeviceError::io(range, error))
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        let all = ByteRange::new(0, self.store().geometry().size_bytes).expect("from 0 on");
        self.settle(all, Durability::Stable).await
    }

    async fn trim(&self, range: ByteRange, durability: Durability) -> Result<(), DeviceError> {
        check_write(&self.geometry(), range)?;
        {
            let _held = self.locks.lock(range).await;
            // A trim is a wish; one that can't be granted leaves the bytes as they were.
            self.units.punch(range).await.map_err(|error| DeviceError::io(range, error))?;
        }
        self.settle(range, durability).await
    }

    async fn write_zeroes(
        &self,
        range: ByteRange,
        options: ZeroOptions,
    ) -> Result<(), DeviceError> {
        check_write(&self.geometry(), range)?;
        if !range.is_empty() {
            let _held = self.locks.lock(range.align_outward(self.units.unit_bytes())).await;
            let zeroed = self.units.zero(range, options.no_hole, options.fast).await;
            zeroed.map_err(|error| DeviceError::zeroing(range, error))?;
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
        let status = self.store().data_extents(range, extents_max, extents);
        status.map_err(|error| DeviceError::io(range, error))
    }

    async fn cache(&self, range: ByteRange) -> Result<(), DeviceError> {
        check_range(&self.geometry(), range)
    }
}

#[cfg(test)]
mod tests;
