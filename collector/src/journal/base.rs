//! What a journal stands on: the state that the seed below it is.
//!
//! The seed keeps these facts with its bytes; they enter when a journal is opened and are replaced
//! when segments leave into the seed. The first segment has to continue them.

use tidemark_wire::{Record, Seq, WallMicros};

use super::types::Mark;

/// The state below the first segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its number; 0 is the volume before its first record.
    pub at: Seq,
    /// When its last record was captured; none for state 0.
    pub time: Option<WallMicros>,
    /// `chain` of the last segment that went into it; zeroes for state 0.
    pub chain: [u8; 32],
    /// The record that began the span which is open after it; 0 when none is.
    pub span_begin: Seq,
    /// The resynchronization that will end that span; zeroes while it has not begun.
    pub span_resync: [u8; 16],
    /// Size of the volume, in bytes.
    pub size_bytes: u64,
    /// Its last record as it stood in the journal, when that is a recovery point; else empty. The
    /// state is kept, so its name has to be.
    pub point: Vec<u8>,
}

impl Base {
    /// An empty journal's: a volume of this size, in bytes, before its first record.
    #[must_use]
    pub fn empty(size_bytes: u64) -> Self {
        Self {
            at: Seq(0),
            time: None,
            chain: [0; 32],
            span_begin: Seq(0),
            span_resync: [0; 16],
            size_bytes,
            point: Vec::new(),
        }
    }

    /// The recovery point that its last record is.
    pub(crate) fn mark(&self) -> Option<Mark> {
        let record =
            Record::decode(&self.point).ok().filter(|record| record.header.seq() == self.at)?;
        Mark::from_record(&record).ok().flatten()
    }
}
