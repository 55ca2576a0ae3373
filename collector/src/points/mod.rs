//! Recovery points: the named states of a volume, and what a person means by AT.
//!
//! What enters: the marks of a journal, and a text. What leaves: a state that can be opened, or
//! the nearest ones that can. Nothing is owned here; the journal is the truth.

pub mod at;
pub mod interval;

use jiff::Timestamp;
use tidemark_wire::body::PointKind;
use tidemark_wire::{PointId, Seq, WallMicros};

use crate::error::NotOffered;
use crate::journal::{JournalReader, Mark, MarkBody};
use crate::storage::Storage;

/// A named state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Its identity.
    pub id: PointId,
    /// What it promises.
    pub kind: PointKind,
    /// A person's name for it; may be empty.
    pub label: String,
    /// Why it promises less than was asked for; may be empty.
    pub reason: String,
    /// The state.
    pub seq: Seq,
    /// When it was captured.
    pub time: WallMicros,
}

impl Point {
    /// The point that a mark is, if it is one.
    #[must_use]
    pub fn from_mark(mark: &Mark) -> Option<Self> {
        let MarkBody::Bookmark(bookmark) = &mark.body else { return None };
        Some(Self {
            id: bookmark.id,
            kind: bookmark.kind,
            label: bookmark.label.clone(),
            reason: bookmark.reason.clone(),
            seq: mark.seq,
            time: mark.time,
        })
    }
}

/// A wall-clock time for people. What lies beyond the calendar is its last moment.
#[must_use]
pub fn timestamp(time: WallMicros) -> Timestamp {
    i64::try_from(time.0)
        .ok()
        .and_then(|micros| Timestamp::from_microsecond(micros).ok())
        .unwrap_or(Timestamp::MAX)
}

impl<S: Storage> at::History for JournalReader<S> {
    fn durable(&self) -> Seq {
        self.durable()
    }

    fn oldest(&self) -> Option<Seq> {
        self.first_seq()
    }

    fn floor(&self, seq: Seq) -> crate::error::Result<Option<(Seq, WallMicros)>> {
        Ok(self.floor(seq)?)
    }

    fn at_time(&self, time: WallMicros) -> crate::error::Result<Option<(Seq, WallMicros)>> {
        Ok(self.seq_at_time(time)?)
    }

    fn offerable(&self, seq: Seq) -> Result<(), NotOffered> {
        self.offerable(seq)
    }
}
