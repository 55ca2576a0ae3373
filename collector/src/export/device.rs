//! A view as a block device: reads and block status, nothing that writes.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tidemark_block::{
    ByteRange, Chunk, Device, DeviceError, Durability, Geometry, Payload, StatusExtent,
    ZeroOptions, check_range,
};

use super::readers::{ReadFailure, Readers};
use crate::error::ViewError;
use crate::storage::Storage;
use crate::view::View;

/// Unit of checksums, and so the unit in which reads cost least.
const BLOCK_BYTES_PREFERRED: u32 = 4096;
/// Damaged places that one export reports; what lies beyond is only answered with an error.
const REPORTS_MAX: usize = 64;

/// Hears of damage that a reader met.
pub trait DamageListener: Send + Sync + 'static {
    /// Called once for each damaged place of an export.
    fn damaged(&self, message: String);
}

/// The read-only disk.
pub struct ViewDevice<S: Storage> {
    view: Arc<View<S>>,
    readers: Readers,
    damage: Arc<dyn DamageListener>,
    reported: Mutex<BTreeSet<u64>>,
}

/// No payload is ever handed out.
pub struct NoPayload(Infallible);

impl Payload for NoPayload {
    fn bytes_mut(&mut self) -> &mut [u8] {
        match self.0 {}
    }
}

impl<S: Storage> ViewDevice<S> {
    /// A disk over a view, for at most `requests_max` requests at a time.
    ///
    /// # Errors
    /// What the system says when it can't make threads.
    pub fn start(
        view: View<S>,
        requests_max: usize,
        damage: Arc<dyn DamageListener>,
    ) -> io::Result<Self> {
        let view = Arc::new(view);
        let readers = Readers::start(&view, requests_max)?;
        Ok(Self { view, readers, damage, reported: Mutex::default() })
    }

    fn explain(&self, range: ByteRange, failure: ReadFailure) -> DeviceError {
        let error = match failure {
            ReadFailure::View(error) => error,
            ReadFailure::Busy => {
                let source = io::Error::from(io::ErrorKind::ResourceBusy);
                return DeviceError::Io { range, source };
            }
        };
        match error {
            ViewError::OutOfRange { range, size_bytes } => {
                DeviceError::OutOfRange { range, size_bytes }
            }
            ViewError::Io { source, .. } => DeviceError::Io { range, source },
            ViewError::Damaged { range, .. } => {
                self.report(range, error.to_string());
                DeviceError::Damaged { range, detail: error.to_string() }
            }
            ViewError::Unreadable { .. } | ViewError::NotOffered(_) => {
                DeviceError::Io { range, source: io::Error::other(error) }
            }
        }
    }

    fn report(&self, range: ByteRange, message: String) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.len() < REPORTS_MAX && reported.insert(range.start()) {
            drop(reported);
            self.damage.damaged(message);
        }
    }
}

impl<S: Storage> Device for ViewDevice<S> {
    type Payload = NoPayload;

    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.view.size_bytes(),
            block_bytes_min: 1,
            block_bytes_preferred: BLOCK_BYTES_PREFERRED,
            read_only: true,
            fast_zero: false,
        }
    }

    async fn reserve(&self, _range: ByteRange) -> Result<NoPayload, DeviceError> {
        Err(DeviceError::ReadOnly)
    }

    async fn write(&self, payload: NoPayload, _: Durability) -> Result<(), DeviceError> {
        match payload.0 {}
    }

    async fn read(&self, start: u64, into: Chunk) -> Result<Chunk, DeviceError> {
        let geometry = self.geometry();
        let Some(range) = ByteRange::new(start, into.len() as u64) else {
            let size_bytes = geometry.size_bytes;
            let range =
                ByteRange::between(start, u64::MAX).expect("no number is larger than the largest");
            return Err(DeviceError::OutOfRange { range, size_bytes });
        };
        check_range(&geometry, range)?;
        self.readers.read(start, into).await.map_err(|failure| self.explain(range, failure))
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn trim(&self, _range: ByteRange, _: Durability) -> Result<(), DeviceError> {
        Err(DeviceError::ReadOnly)
    }

    async fn write_zeroes(&self, _range: ByteRange, _: ZeroOptions) -> Result<(), DeviceError> {
        Err(DeviceError::ReadOnly)
    }

    async fn block_status(
        &self,
        range: ByteRange,
        extents_max: usize,
        extents: &mut Vec<StatusExtent>,
    ) -> Result<(), DeviceError> {
        check_range(&self.geometry(), range)?;
        let found = self.readers.status(range, extents_max).await;
        extents.append(&mut found.map_err(|failure| self.explain(range, failure))?);
        Ok(())
    }

    async fn cache(&self, range: ByteRange) -> Result<(), DeviceError> {
        check_range(&self.geometry(), range)
    }
}
