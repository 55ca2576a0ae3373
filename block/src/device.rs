//! The one trait that every way of serving a disk stands on.
//!
//! The NBD server and the FUSE directory decode a request, call a [`Device`] and encode the
//! answer. The agent's volume, the collector's view of a past state, and a plain file are
//! devices. Requests run as futures on an executor with one thread ([`crate::engine`]), so no
//! future has to be `Send`; the device itself is shared by all threads.

use std::future::Future;

use crate::chunk::Chunk;
use crate::range::ByteRange;

/// What a client has to know about a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the disk in bytes.
    pub size_bytes: u64,
    /// Smallest unit a client may address, in bytes (a power of two; 1 when any is accepted).
    pub block_bytes_min: u32,
    /// Unit in which requests are fast, in bytes (a power of two).
    pub block_bytes_preferred: u32,
    /// Writes of any kind are refused.
    pub read_only: bool,
    /// `write_zeroes` with [`ZeroOptions::fast`] can be answered without writing zeroes out.
    pub fast_zero: bool,
}

/// Why a request on a device failed. Frontends turn it into an errno or an NBD error.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The range does not lie on the disk, or not on the device's smallest unit.
    #[error("{range} is not on the disk of {size_bytes} bytes")]
    OutOfRange {
        /// What was asked for.
        range: ByteRange,
        /// What there is.
        size_bytes: u64,
    },
    /// The disk is read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The device can't do this, or not in the way asked for (a fast zeroing, for instance).
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// No space left behind the disk.
    #[error("no space left behind the disk")]
    NoSpace,
    /// The device is being taken down.
    #[error("the disk is shutting down")]
    ShuttingDown,
    /// The bytes behind the disk could not be read or written.
    #[error("I/O error at {range}: {source}")]
    Io {
        /// The range that failed.
        range: ByteRange,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The bytes were read but are not the ones that were written.
    #[error("damaged data at {range}: {detail}")]
    Damaged {
        /// The range that failed its check.
        range: ByteRange,
        /// Which check, in which file.
        detail: String,
    },
}

impl DeviceError {
    /// The error of an operation on `range` that the operating system failed.
    #[must_use]
    pub fn io(range: ByteRange, source: std::io::Error) -> Self {
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Io { range, source },
        }
    }

    /// The error of a zeroing of `range` that a store failed or could not do fast.
    #[must_use]
    pub fn zeroing(range: ByteRange, source: std::io::Error) -> Self {
        match source.kind() {
            std::io::ErrorKind::Unsupported => Self::Unsupported("fast zeroing"),
            _ => Self::io(range, source),
        }
    }
}

/// When a write counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When the device holds it; a later flush makes it durable.
    Cached,
    /// When it is on stable storage (forced unit access).
    Stable,
}

/// How a range is to be zeroed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZeroOptions {
    /// Keep the space allocated; do not punch a hole.
    pub no_hole: bool,
    /// Fail with [`DeviceError::Unsupported`] where zeroing would be as slow as writing.
    pub fast: bool,
    /// When the zeroing counts as done.
    pub durability: Durability,
}

/// One answer of [`Device::block_status`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Length in bytes.
    pub len_bytes: u64,
    /// No storage is allocated here (NBD_STATE_HOLE).
    pub hole: bool,
    /// Reads as zeroes (NBD_STATE_ZERO).
    pub zero: bool,
}

/// Memory for the payload of one write, handed out by a device before the payload is received,
/// so that it is received in the place it is needed.
pub trait Payload: Send + 'static {
    /// The memory to fill; its length is the length that this payload will write.
    fn bytes_mut(&mut self) -> &mut [u8];
}

/// A disk.
///
/// Every method may be called at any time from any executor thread; requests in flight at the
/// same time have no order among each other, as on a real disk. A request that returned is done:
/// a later one sees its effect.
#[allow(async_fn_in_trait)]
pub trait Device: Send + Sync + 'static {
    /// See [`Payload`].
    type Payload: Payload;

    /// Size and limits; the size may change between calls when the disk is resized.
    fn geometry(&self) -> Geometry;

    /// Memory for a write that begins at `range.start()`. It may be shorter than the range (at
    /// least one byte; at most [`PAYLOAD_BYTES_MAX`]); the caller then asks again for the rest.
    /// Waits when all memory is in use, for as long as other requests need to finish.
    ///
    /// Dropping the payload gives the memory back with nothing written.
    fn reserve(&self, range: ByteRange)
    -> impl Future<Output = Result<Self::Payload, DeviceError>>;

    /// Writes a filled payload at the place it was reserved for.
    fn write(
        &self,
        payload: Self::Payload,
        durability: Durability,
    ) -> impl Future<Output = Result<(), DeviceError>>;

    /// Reads `into.len()` bytes at `start` and gives the chunk back filled.
    fn read(&self, start: u64, into: Chunk) -> impl Future<Output = Result<Chunk, DeviceError>>;

    /// Makes every write that returned before this call durable.
    fn flush(&self) -> impl Future<Output = Result<(), DeviceError>>;

    /// Drops the contents of a range; it may read as anything until written, here always as
    /// zeroes or as what it was.
    fn trim(
        &self,
        range: ByteRange,
        durability: Durability,
    ) -> impl Future<Output = Result<(), DeviceError>>;

    /// Makes a range read as zeroes.
    fn write_zeroes(
        &self,
        range: ByteRange,
        options: ZeroOptions,
    ) -> impl Future<Output = Result<(), DeviceError>>;

    /// Appends what is allocated and what is zero in `range`, from its start on, to `extents`,
    /// at most `extents_max` of them; they may cover only a part of the range, at least one byte
    /// of it.
    fn block_status(
        &self,
        range: ByteRange,
        extents_max: usize,
        extents: &mut Vec<StatusExtent>,
    ) -> impl Future<Output = Result<(), DeviceError>>;

    /// Reads a range ahead, if the device can make use of that.
    fn cache(&self, range: ByteRange) -> impl Future<Output = Result<(), DeviceError>>;
}

/// Longest payload of one [`Device::reserve`], in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 256 * 1024;

/// Checks a request against the disk: inside its size and on its smallest unit.
///
/// # Errors
/// [`DeviceError::OutOfRange`].
pub fn check_range(geometry: &Geometry, range: ByteRange) -> Result<(), DeviceError> {
    if range.end() <= geometry.size_bytes && range.is_aligned(u64::from(geometry.block_bytes_min)) {
        Ok(())
    } else {
        Err(DeviceError::OutOfRange { range, size_bytes: geometry.size_bytes })
    }
}

/// Checks a change of `range` against the disk.
///
/// # Errors
/// [`DeviceError::ReadOnly`] or [`DeviceError::OutOfRange`].
pub fn check_write(geometry: &Geometry, range: ByteRange) -> Result<(), DeviceError> {
    if geometry.read_only {
        return Err(DeviceError::ReadOnly);
    }
    check_range(geometry, range)
}

/// Checks a read of `len` bytes at `start` against the disk, and gives its range.
///
/// # Errors
/// [`DeviceError::OutOfRange`].
pub fn check_read(geometry: &Geometry, start: u64, len: usize) -> Result<ByteRange, DeviceError> {
    let range = ByteRange::new(start, len as u64).ok_or_else(|| DeviceError::OutOfRange {
        range: ByteRange::between(start, u64::MAX).expect("no start lies behind the last byte"),
        size_bytes: geometry.size_bytes,
    })?;
    check_range(geometry, range)?;
    Ok(range)
}
