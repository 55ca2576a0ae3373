//! What an export shows: a state, or a clone of one. All calls block.

use tidemark_block::{ByteRange, StatusExtent};

use super::error::DiskError;
use super::overlay::Overlay;
use crate::storage::Storage;
use crate::view::View;

/// See the module.
pub enum Content<S: Storage> {
    /// A state, to be read only.
    State(Box<View<S>>),
    /// A clone of a state, with writes of its own.
    Clone(Box<Overlay<S>>),
}

impl<S: Storage> Content<S> {
    /// Size of the disk.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::State(view) => view.size_bytes(),
            Self::Clone(overlay) => overlay.size_bytes(),
        }
    }

    /// The clone; `None` when it is a state.
    pub fn clone_of_state(&self) -> Option<&Overlay<S>> {
        match self {
            Self::State(_) => None,
            Self::Clone(overlay) => Some(overlay),
        }
    }

    fn writable(&self) -> Result<&Overlay<S>, DiskError> {
        self.clone_of_state().ok_or(DiskError::ReadOnly)
    }

    pub(super) fn read_at(&self, buf: &mut [u8], start: u64) -> Result<(), DiskError> {
        match self {
            Self::State(view) => Ok(view.read_at(buf, start)?),
            Self::Clone(overlay) => overlay.read_at(buf, start),
        }
    }

    pub(super) fn status(
        &self,
        range: ByteRange,
        extents_max: usize,
    ) -> Result<Vec<StatusExtent>, DiskError> {
        let mut extents = Vec::new();
        match self {
            Self::State(view) => view.status(range, extents_max, &mut extents)?,
            Self::Clone(overlay) => overlay.status(range, extents_max, &mut extents)?,
        }
        Ok(extents)
    }

    pub(super) fn write_at(&self, bytes: &[u8], start: u64) -> Result<(), DiskError> {
        self.writable()?.write_at(bytes, start)
    }

    pub(super) fn write_zeroes(&self, range: ByteRange) -> Result<(), DiskError> {
        self.writable()?.write_zeroes(range)
    }

    pub(super) fn trim(&self, range: ByteRange) -> Result<(), DiskError> {
        self.writable()?.trim(range)
    }

    /// Makes what was written durable; nothing for a state.
    pub(super) fn flush(&self) -> Result<(), DiskError> {
        self.clone_of_state().map_or(Ok(()), Overlay::flush)
    }
}
