//! stub of the docs
#![allow(unused_variables, clippy::unimplemented)]
use std::sync::Arc;

use tidemark_block::{ByteRange, StatusExtent};
use tidemark_wire::Seq;

use crate::error::ViewError;
use crate::journal::JournalReader;
use crate::seed::Seed;
use crate::storage::{RealStorage, Storage};

/// The volume as it was at one state; shared by many threads.
pub struct View<S: Storage = RealStorage> {
    reader: Arc<JournalReader<S>>,
    seed: Arc<Seed<S>>,
}

impl<S: Storage> View<S> {
    /// Opens the state at `at`. Costs no scan and no copy.
    ///
    /// # Errors
    /// `NotOffered`.
    pub fn open(
        reader: Arc<JournalReader<S>>,
        seed: Arc<Seed<S>>,
        at: Seq,
    ) -> Result<Self, ViewError> {
        unimplemented!()
    }
    /// The state.
    pub fn at(&self) -> Seq {
        unimplemented!()
    }
    /// Size of the volume at that state.
    pub fn size_bytes(&self) -> u64 {
        unimplemented!()
    }
    /// Reads; every piece is checked before it is given out.
    ///
    /// # Errors
    /// Every kind but `NotOffered`.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ViewError> {
        unimplemented!()
    }
    /// Appends what is hole and what is data from the start of `range` on, at most `max` extents;
    /// at least one byte of the range is covered.
    ///
    /// # Errors
    /// `OutOfRange`, `Damaged`, `Io`.
    pub fn status(
        &self,
        range: ByteRange,
        max: usize,
        out: &mut Vec<StatusExtent>,
    ) -> Result<(), ViewError> {
        unimplemented!()
    }
}
