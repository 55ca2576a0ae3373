//! The disk that frontends get of a volume. Everybody who has it open holds this value, and only
//! they and the list of exports do: when it is gone, nobody uses the volume any more.

use std::sync::Arc;

use tidemark_block::{
    ByteRange, Chunk, Device, DeviceError, Durability, Geometry, StatusExtent, ZeroOptions,
};

use super::running::ProtectedVolume;
use crate::volume::VolumePayload;

/// See the module's documentation.
pub(super) struct Served(pub(super) Arc<ProtectedVolume>);

impl Device for Served {
    type Payload = VolumePayload;

    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    async fn reserve(&self, range: ByteRange) -> Result<VolumePayload, DeviceError> {
        self.0.reserve(range).await
    }

    async fn write(
        &self,
        payload: VolumePayload,
        durability: Durability,
    ) -> Result<(), DeviceError> {
        self.0.write(payload, durability).await
    }

    async fn read(&self, start: u64, into: Chunk) -> Result<Chunk, DeviceError> {
        self.0.read(start, into).await
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.0.flush().await
    }

    async fn trim(&self, range: ByteRange, durability: Durability) -> Result<(), DeviceError> {
        self.0.trim(range, durability).await
    }

    async fn write_zeroes(
        &self,
        range: ByteRange,
        options: ZeroOptions,
    ) -> Result<(), DeviceError> {
        self.0.write_zeroes(range, options).await
    }

    async fn block_status(
        &self,
        range: ByteRange,
        extents_max: usize,
        extents: &mut Vec<StatusExtent>,
    ) -> Result<(), DeviceError> {
        self.0.block_status(range, extents_max, extents).await
    }

    async fn cache(&self, range: ByteRange) -> Result<(), DeviceError> {
        self.0.cache(range).await
    }
}
