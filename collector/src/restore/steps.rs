//! Cuts a range of a state into steps: data to read and write, or zeroes.
//!
//! Every step begins where a block begins and lies within one chunk. What reads as zeroes in
//! whole blocks is never read.

use std::collections::VecDeque;

use tidemark_block::{ByteRange, StatusExtent};

use super::target::BLOCK_BYTES;
use crate::error::Result;
use crate::storage::Storage;
use crate::view::View;

/// Longest step of data.
pub(super) const STEP_BYTES: usize = 1 << 20;
/// Extents that are asked for at once.
const EXTENTS_MAX: usize = 256;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// A piece of the disk, of at most [`STEP_BYTES`] when it is data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) range: ByteRange,
    pub(super) zero: bool,
}

/// The steps of one range.
pub(super) struct Steps<'a, S: Storage> {
    view: &'a View<S>,
    at: u64,
    end: u64,
    chunk_bytes: u64,
    /// What lies from `at` on: where it ends, and whether it is zeroes.
    extents: VecDeque<(u64, bool)>,
    buffer: Vec<StatusExtent>,
}

impl<'a, S: Storage> Steps<'a, S> {
    /// `range` begins with a chunk.
    pub(super) fn new(view: &'a View<S>, range: ByteRange, chunk_bytes: u64) -> Self {
        debug_assert!(range.start().is_multiple_of(chunk_bytes));
        let extents = VecDeque::new();
        let (at, end) = (range.start(), range.end());
        Self { view, at, end, chunk_bytes, extents, buffer: Vec::new() }
    }

    /// The next step; `None` at the end of the range.
    pub(super) fn next(&mut self) -> Result<Option<Step>> {
        if self.at >= self.end {
            return Ok(None);
        }
        let (extent_end, zero) = self.extent()?;
        let stop = ((self.at / self.chunk_bytes + 1) * self.chunk_bytes).min(self.end);
        // The end of the disk may lie within its last block.
        let inside = if extent_end >= stop { stop } else { extent_end - extent_end % BLOCK };
        let (to, zero) = if zero && inside > self.at {
            (inside, true)
        } else if zero {
            (stop.min(self.at + BLOCK), false)
        } else {
            let to = extent_end.next_multiple_of(BLOCK).min(self.at + STEP_BYTES as u64);
            (to.min(stop), false)
        };
        let range = ByteRange::between(self.at, to).expect("a step goes forward");
        self.at = to;
        Ok(Some(Step { range, zero }))
    }

    /// Where what lies at the present place ends, and whether it is zeroes.
    fn extent(&mut self) -> Result<(u64, bool)> {
        while self.extents.front().is_some_and(|(end, _)| *end <= self.at) {
            self.extents.pop_front();
        }
        if self.extents.is_empty() {
            self.buffer.clear();
            let rest = ByteRange::between(self.at, self.end).expect("the range goes on");
            self.view.status(rest, EXTENTS_MAX, &mut self.buffer)?;
            let mut end = self.at;
            for extent in &self.buffer {
                end = end.saturating_add(extent.len_bytes);
                self.extents.push_back((end, extent.zero));
            }
        }
        Ok(*self.extents.front().expect("a status covers at least one byte"))
    }
}
