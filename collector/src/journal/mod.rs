//! stub of the docs
#![allow(unused_variables, clippy::unimplemented)]

mod types;

use std::path::Path;
use std::sync::Arc;

use tidemark_wire::frame::RecordsBody;
use tidemark_wire::{Epoch, Seq, WallMicros};

use crate::error::{JournalError, NotOffered};
use crate::storage::{RealStorage, Storage};

pub use types::{
    Committed, Cut, InspectedRecord, JournalConfig, JournalIdentity, Mark, MarkBody, OpenReport,
    SegmentInfo, SegmentReport, Span,
};

/// Bytes of records that may wait for a commit.
pub const PENDING_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The writer of one volume's journal.
pub struct Journal<S: Storage = RealStorage> {
    reader: Arc<JournalReader<S>>,
}

impl<S: Storage> Journal<S> {
    /// Opens the journal in `dir`.
    ///
    /// # Errors
    /// ...
    pub fn open_or_create(
        storage: Arc<S>,
        dir: &Path,
        identity: JournalIdentity,
        config: JournalConfig,
    ) -> Result<(Self, OpenReport), JournalError> {
        unimplemented!()
    }
    /// Appends; nothing is durable before [`Journal::commit`].
    ///
    /// # Errors
    /// ...
    pub fn append(&mut self, records: &RecordsBody<'_>) -> Result<(), JournalError> {
        unimplemented!()
    }
    /// Writes and syncs what was appended.
    ///
    /// # Errors
    /// ...
    pub fn commit(&mut self) -> Result<Committed, JournalError> {
        unimplemented!()
    }
    /// Bytes that wait for a commit.
    pub fn pending_bytes(&self) -> usize {
        unimplemented!()
    }
    /// The newest record appended.
    pub fn last_appended(&self) -> Seq {
        unimplemented!()
    }
    /// Seals what is durable of the segment that failed and takes records again, from
    /// `reader().durable()` on.
    ///
    /// # Errors
    /// `Io`: still closed.
    pub fn reopen(&mut self) -> Result<(), JournalError> {
        unimplemented!()
    }
    /// True after a failed write until [`Journal::reopen`].
    pub fn is_latched(&self) -> bool {
        unimplemented!()
    }
    /// The epoch that new segments carry.
    pub fn set_epoch(&mut self, epoch: Epoch) {
        unimplemented!()
    }
    /// For readers.
    pub fn reader(&self) -> Arc<JournalReader<S>> {
        Arc::clone(&self.reader)
    }
}

/// The readers' side.
pub struct JournalReader<S: Storage = RealStorage> {
    storage: Arc<S>,
}

impl<S: Storage> JournalReader<S> {
    /// Newest durable record; 0 when there is none.
    pub fn durable(&self) -> Seq {
        unimplemented!()
    }
    /// When it was captured.
    pub fn last_time(&self) -> Option<WallMicros> {
        unimplemented!()
    }
    /// The oldest state kept.
    pub fn first_seq(&self) -> Option<Seq> {
        unimplemented!()
    }
    /// All spans, oldest first.
    pub fn spans(&self) -> Vec<Span> {
        unimplemented!()
    }
    /// All marks, oldest first.
    ///
    /// # Errors
    /// `Io` or `Damaged`.
    pub fn marks(&self) -> Result<Vec<Mark>, JournalError> {
        unimplemented!()
    }
    /// The last record captured at or before a time.
    ///
    /// # Errors
    /// `Io` or `Damaged`.
    pub fn seq_at_time(&self, time: WallMicros) -> Result<Option<(Seq, WallMicros)>, JournalError> {
        unimplemented!()
    }
    /// The last record at or before a sequence number.
    ///
    /// # Errors
    /// `Io` or `Damaged`.
    pub fn floor(&self, seq: Seq) -> Result<Option<(Seq, WallMicros)>, JournalError> {
        unimplemented!()
    }
    /// Whether the state at `seq` may be opened.
    ///
    /// # Errors
    /// Why not.
    pub fn offerable(&self, seq: Seq) -> Result<(), NotOffered> {
        unimplemented!()
    }
    /// All segments, oldest first.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        unimplemented!()
    }
    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        unimplemented!()
    }
    /// Views that are open.
    pub fn pins(&self) -> usize {
        unimplemented!()
    }
    /// Size of the volume at a state, in bytes.
    pub fn size_at(&self, seq: Seq) -> u64 {
        unimplemented!()
    }
}

/// Decodes a segment file for a person, also a damaged one.
///
/// # Errors
/// `Io` when the file can't be read; damage is in the report.
pub fn inspect_segment<S: Storage>(
    storage: &S,
    path: &Path,
) -> Result<SegmentReport, JournalError> {
    unimplemented!()
}

/// The records after `after` of a segment file, at most `limit`, decoded for a person; the last
/// item may be the damage at which reading stopped.
///
/// # Errors
/// `Io` when the file can't be read, `Damaged` or `Version` when its header is no header.
pub fn inspect_records<S: Storage>(
    storage: &S,
    path: &Path,
    after: Seq,
    limit: usize,
) -> Result<(Vec<InspectedRecord>, Option<crate::error::Damage>), JournalError> {
    unimplemented!()
}
