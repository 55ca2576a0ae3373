//! The journal: the append-only log of one volume's change records.
//!
//! Frames of records enter at [`Journal::append`] as they came off the wire; durable records
//! leave through [`JournalReader`], to views and to people. One [`Journal`] owns the files of a
//! directory and is their only writer. A crash loses what was appended and not committed, and
//! nothing else.
//!
//! - [`format`]: the segment file, byte by byte;
//! - `writer`: append, group commit, sealing, latching after a failed write;
//! - `recover`: what is done with the files at start, and with damage;
//! - `reader`, `segment`, `ends`, `index`, `span`, `files`, `cache`: what readers ask;
//! - `resolve`, `payload`: from a place on the volume to the checked bytes of a record;
//! - `base`: the state of the seed, on which the first segment stands;
//! - `places`: how much was journaled between two marks, whether anything was, and times;
//! - `inspect`, `scan`: segment files without a journal around them.
//!
//! Order of locks: what is published, then the state of a segment, then the cache of open files;
//! none is held over a write or a sync.

mod base;
mod cache;
mod ends;
mod files;
pub mod format;
mod index;
mod inspect;
mod payload;
mod places;
mod reader;
mod recover;
mod resolve;
mod scan;
mod segment;
mod span;
mod types;
mod writer;

pub use base::Base;
pub(crate) use cache::Cache;
pub use inspect::{inspect_records, inspect_segment};
pub(crate) use payload::Payloads;
pub use reader::{JournalReader, Pin};
pub(crate) use resolve::{Extent, Place, Source, resolve};
pub(crate) use segment::Segment;
pub use types::{
    Committed, Cut, InspectedRecord, JournalConfig, JournalIdentity, Mark, MarkBody, OpenReport,
    SegmentInfo, SegmentReport, Span,
};
pub use writer::{Journal, PENDING_BYTES_MAX};
