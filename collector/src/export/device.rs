//! An export as a block device: a state that is only read, or a clone that is written too.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tidemark_block::engine::BufferPool;
use tidemark_block::{
    ByteRange, Chunk, Device, DeviceError, Durability, Geometry, PAYLOAD_BYTES_MAX, Payload,
    StatusExtent, ZeroOptions, check_range, check_read, check_write,
};

use super::content::Content;
use super::error::DiskError;
use super::readers::Readers;
use crate::error::ViewError;
use crate::storage::Storage;

/// Unit of checksums and of a clone's blocks, and so the unit in which requests cost least.
const BLOCK_BYTES_PREFERRED: u32 = 4096;
/// Damaged places that one export reports; what lies beyond is only answered with an error.
const REPORTS_MAX: usize = 64;
/// Buffers for a clone's payloads of up to two pages, which most are; 1 MiB together.
const SMALL_BUFFERS: usize = 128;
const SMALL_BYTES: usize = 8192;
/// Buffers for everything larger; 8 MiB together.
const LARGE_BUFFERS: usize = 32;

/// Hears of what a person should know of an export.
pub trait ExportListener: Send + Sync + 'static {
    /// Called once for each damaged place of an export.
    fn damaged(&self, message: String);
    /// A clone was refused room, for the first time since there was some.
    fn out_of_space(&self, message: String);
    /// A clone takes no more writes. Called once.
    fn failed(&self, message: String);
}

/// The disk.
pub struct ExportDevice<S: Storage> {
    size_bytes: u64,
    readers: Readers<S>,
    /// Memory for payloads; `None` for a state.
    memory: Option<Memory>,
    listener: Arc<dyn ExportListener>,
    reported: Mutex<Reported>,
}

#[derive(Default)]
struct Reported {
    damage: BTreeSet<u64>,
    failure: bool,
}

struct Memory {
    small: BufferPool,
    large: BufferPool,
}

/// The payload of one write.
pub struct ExportPayload {
    start: u64,
    chunk: Chunk,
}

impl Payload for ExportPayload {
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.chunk.as_mut_slice()
    }
}

impl<S: Storage> ExportDevice<S> {
    /// A disk for at most `requests_max` requests at a time.
    ///
    /// # Errors
    /// What the system says when it can't make threads.
    pub fn start(
        content: &Arc<Content<S>>,
        requests_max: usize,
        listener: Arc<dyn ExportListener>,
    ) -> io::Result<Self> {
        let memory = content.clone_of_state().map(|_| Memory {
            small: BufferPool::new(SMALL_BUFFERS, SMALL_BYTES),
            large: BufferPool::new(LARGE_BUFFERS, PAYLOAD_BYTES_MAX),
        });
        Ok(Self {
            size_bytes: content.size_bytes(),
            readers: Readers::start(content, requests_max)?,
            memory,
            listener,
            reported: Mutex::default(),
        })
    }

    /// Lets the requests in flight end and refuses later ones. Blocks.
    pub(super) fn end(&self) {
        self.readers.end();
    }

    fn explain(&self, range: ByteRange, error: DiskError) -> DeviceError {
        let error = match error {
            DiskError::View(error) => error,
            DiskError::NoSpace { message, first } => {
                if first {
                    self.listener.out_of_space(message);
                }
                return DeviceError::NoSpace;
            }
            DiskError::Io { .. } | DiskError::Failed { .. } => {
                self.report_failure(&error);
                return DeviceError::Io { range, source: io::Error::other(error) };
            }
            DiskError::ReadOnly => return DeviceError::ReadOnly,
            DiskError::Busy => {
                return DeviceError::Io { range, source: io::ErrorKind::ResourceBusy.into() };
            }
            DiskError::Ended => return DeviceError::ShuttingDown,
        };
        match error {
            ViewError::OutOfRange { range, size_bytes } => {
                DeviceError::OutOfRange { range, size_bytes }
            }
            ViewError::Io { source, .. } => DeviceError::Io { range, source },
            ViewError::Damaged { range, .. } => {
                self.report_damage(range, error.to_string());
                DeviceError::Damaged { range, detail: error.to_string() }
            }
            ViewError::Unreadable { .. } | ViewError::NotOffered(_) => {
                DeviceError::Io { range, source: io::Error::other(error) }
            }
        }
    }

    fn report_damage(&self, range: ByteRange, message: String) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.damage.len() < REPORTS_MAX && reported.damage.insert(range.start()) {
            drop(reported);
            self.listener.damaged(message);
        }
    }

    fn report_failure(&self, error: &DiskError) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut reported.failure, true) {
            drop(reported);
            self.listener.failed(error.to_string());
        }
    }

    async fn run<T: Send + 'static>(
        &self,
        range: ByteRange,
        work: impl FnOnce(&Content<S>) -> Result<T, DiskError> + Send + 'static,
    ) -> Result<T, DeviceError> {
        self.readers.run(work).await.map_err(|error| self.explain(range, error))
    }
}

/// Ends a change: on stable storage where that was asked for.
fn settle<S: Storage>(content: &Content<S>, durability: Durability) -> Result<(), DiskError> {
    match durability {
        Durability::Cached => Ok(()),
        Durability::Stable => content.flush(),
    }
}

impl<S: Storage> Device for ExportDevice<S> {
    type Payload = ExportPayload;

    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.size_bytes,
            block_bytes_min: 1,
            block_bytes_preferred: BLOCK_BYTES_PREFERRED,
            read_only: self.memory.is_none(),
            fast_zero: self.memory.is_some(),
        }
    }

    async fn reserve(&self, range: ByteRange) -> Result<ExportPayload, DeviceError> {
        check_write(&self.geometry(), range)?;
        let memory = self.memory.as_ref().ok_or(DeviceError::ReadOnly)?;
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX).min(PAYLOAD_BYTES_MAX);
        let pool = if len <= SMALL_BYTES { &memory.small } else { &memory.large };
        let mut chunk = pool.take().await;
        chunk.truncate(len);
        Ok(ExportPayload { start: range.start(), chunk })
    }

    async fn write(
        &self,
        payload: ExportPayload,
        durability: Durability,
    ) -> Result<(), DeviceError> {
        let ExportPayload { start, chunk } = payload;
        let range = ByteRange::new(start, chunk.len() as u64).expect("checked when reserved");
        let work = move |content: &Content<S>| {
            content.write_at(chunk.as_slice(), start)?;
            settle(content, durability)
        };
        self.run(range, work).await
    }

    async fn read(&self, start: u64, mut into: Chunk) -> Result<Chunk, DeviceError> {
        let range = check_read(&self.geometry(), start, into.len())?;
        let work = move |content: &Content<S>| {
            content.read_at(into.as_mut_slice(), start)?;
            Ok(into)
        };
        self.run(range, work).await
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        let all = ByteRange::new(0, self.size_bytes).expect("from 0 on");
        match self.memory {
            Some(_) => self.run(all, Content::flush).await,
            None => Ok(()),
        }
    }

    async fn trim(&self, range: ByteRange, durability: Durability) -> Result<(), DeviceError> {
        check_write(&self.geometry(), range)?;
        let work = move |content: &Content<S>| {
            content.trim(range)?;
            settle(content, durability)
        };
        self.run(range, work).await
    }

    async fn write_zeroes(
        &self,
        range: ByteRange,
        options: ZeroOptions,
    ) -> Result<(), DeviceError> {
        check_write(&self.geometry(), range)?;
        let work = move |content: &Content<S>| {
            content.write_zeroes(range)?;
            settle(content, options.durability)
        };
        self.run(range, work).await
    }

    async fn block_status(
        &self,
        range: ByteRange,
        extents_max: usize,
        extents: &mut Vec<StatusExtent>,
    ) -> Result<(), DeviceError> {
        check_range(&self.geometry(), range)?;
        let work = move |content: &Content<S>| content.status(range, extents_max);
        extents.append(&mut self.run(range, work).await?);
        Ok(())
    }

    async fn cache(&self, range: ByteRange) -> Result<(), DeviceError> {
        check_range(&self.geometry(), range)
    }
}
