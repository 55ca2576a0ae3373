//! What the journal tells its callers.

use std::path::PathBuf;

use tidemark_block::ByteRange;
use tidemark_wire::body::{Bookmark, Cut as GroupCut, GapReason, Resync};
use tidemark_wire::{
    DecodeError, Epoch, JournalId, KeyId, Record, RecordKind, Seq, Timeline, VolumeId, WallMicros,
};
use zerocopy::FromBytes;

use crate::error::Damage;

/// Whose journal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalIdentity {
    /// The volume.
    pub volume: VolumeId,
    /// This copy of it.
    pub journal: JournalId,
    /// The branch of its history.
    pub timeline: Timeline,
    /// The session that new segments name.
    pub epoch: Epoch,
    /// Size of the volume before the first record, in bytes; later sizes are in the journal.
    pub size_bytes: u64,
}

/// Bounds of a journal.
#[derive(Clone, Copy, Debug)]
pub struct JournalConfig {
    /// A segment is sealed by the commit that brings its records to this many bytes. One commit
    /// may go beyond it.
    pub segment_bytes_max: u64,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self { segment_bytes_max: 64 * 1024 * 1024 }
    }
}

/// What was cut off the open segment when the journal was opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: cut {bytes} bytes at byte {at}, after record {after_seq}: {why}", file.display())]
pub struct Cut {
    /// The segment file.
    pub file: PathBuf,
    /// Where it ends now.
    pub at: u64,
    /// How many bytes went.
    pub bytes: u64,
    /// The last record that is held.
    pub after_seq: Seq,
    /// What was found there.
    pub why: String,
    /// Where the bytes were copied to, when whole records stand among them: then they are damage
    /// rather than the end of a write that a crash tore.
    pub kept: Option<PathBuf>,
}

/// What was found when the journal was opened.
#[derive(Clone, Debug)]
pub struct OpenReport {
    /// The tail that was cut off.
    pub cut: Option<Cut>,
    /// Segments that are damaged: states from their first record on are not offered, and the
    /// journal takes no records.
    pub damaged: Vec<Damage>,
    /// Records held.
    pub records: u64,
    /// The newest of them; 0 when there is none.
    pub durable: Seq,
}

/// What a commit made durable.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The newest durable record.
    pub durable: Seq,
    /// The marks among the records that became durable.
    pub new_marks: Vec<Mark>,
}

/// A run of states that is never offered: from `begin` up to, but without, `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The gap or resync-begin record.
    pub begin: Seq,
    /// The resync-end record; none while the span is open.
    pub end: Option<Seq>,
}

/// A record that people or programs look for by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its number.
    pub seq: Seq,
    /// When it was captured.
    pub time: WallMicros,
    /// Its kind.
    pub kind: RecordKind,
    /// What it says.
    pub body: MarkBody,
}

/// What a mark says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MarkBody {
    /// A recovery point.
    Bookmark(Bookmark),
    /// The common cut of a consistency group.
    Cut(GroupCut),
    /// The volume has a new size.
    Resize {
        /// Size from here on, in bytes.
        size_bytes: u64,
        /// Size before, in bytes.
        old_bytes: u64,
    },
    /// A range that can't be read on the protected machine.
    Unreadable {
        /// The range.
        range: ByteRange,
        /// The error there.
        errno: u64,
    },
    /// Changes are missing; the reason, when it is a known one.
    Gap(Option<GapReason>),
    /// A resynchronization begins.
    ResyncBegin(Resync),
    /// It has ended.
    ResyncEnd(Resync),
}

impl Mark {
    /// The mark that a record is, if it is one.
    ///
    /// # Errors
    /// When its body does not decode.
    pub fn from_record(record: &Record<'_>) -> Result<Option<Self>, DecodeError> {
        let header = record.header;
        let mut scratch = Vec::new();
        let body = match record.kind {
            RecordKind::Bookmark => {
                MarkBody::Bookmark(Bookmark::decode(record.payload(&mut scratch)?)?)
            }
            RecordKind::Cut => MarkBody::Cut(
                GroupCut::read_from_prefix(record.payload(&mut scratch)?)
                    .map(|(cut, _)| cut)
                    .map_err(|_| {
                        let kind = tidemark_wire::DecodeErrorKind::Truncated;
                        DecodeError::new(kind, "cut", "the body is too short")
                    })?,
            ),
            RecordKind::Resize => {
                MarkBody::Resize { size_bytes: header.len_bytes.get(), old_bytes: header.aux.get() }
            }
            RecordKind::Unreadable => MarkBody::Unreadable {
                range: ByteRange::new(header.offset_bytes.get(), header.len_bytes.get())
                    .expect("a checked header's range ends within the largest volume"),
                errno: header.aux.get(),
            },
            RecordKind::Gap => MarkBody::Gap(GapReason::from_number(header.aux.get())),
            RecordKind::ResyncBegin => {
                MarkBody::ResyncBegin(Resync::decode(record.payload(&mut scratch)?)?)
            }
            RecordKind::ResyncEnd => {
                MarkBody::ResyncEnd(Resync::decode(record.payload(&mut scratch)?)?)
            }
            RecordKind::Write
            | RecordKind::WriteZeroes
            | RecordKind::Trim
            | RecordKind::Flush
            | RecordKind::ReadBack => return Ok(None),
        };
        let time = WallMicros(header.time_us.get());
        Ok(Some(Self { seq: header.seq(), time, kind: record.kind, body }))
    }
}

/// A segment, for people.
#[derive(Clone, Debug)]
pub struct SegmentInfo {
    /// Name of the file.
    pub name: String,
    /// It is complete and has its index on disk.
    pub sealed: bool,
    /// First record.
    pub first_seq: Seq,
    /// Last record; the first one where it is not known.
    pub last_seq: Seq,
    /// When the first was captured; 0 where it is not known.
    pub first_time: WallMicros,
    /// When the last was captured; 0 where it is not known.
    pub last_time: WallMicros,
    /// Number of records.
    pub records: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// SHA-256 chain up to and with this segment, once it is sealed.
    pub chain: Option<[u8; 32]>,
    /// What is wrong with it.
    pub damage: Option<Damage>,
}

/// A segment file, decoded for people.
#[derive(Clone, Debug)]
pub struct SegmentReport {
    /// The file.
    pub file: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its format version.
    pub version: u32,
    /// The volume.
    pub volume: VolumeId,
    /// The copy of it.
    pub journal: JournalId,
    /// The branch of its history.
    pub timeline: Timeline,
    /// The session in which the segment was begun.
    pub epoch: Epoch,
    /// Cipher; 0 is none.
    pub cipher: u8,
    /// Key; 0 is none.
    pub key_id: KeyId,
    /// When the segment was begun (time of its first record).
    pub created: WallMicros,
    /// The record before the first one.
    pub prev_seq: Seq,
    /// First record that the header announces.
    pub first_seq: Seq,
    /// Last whole record.
    pub last_seq: Seq,
    /// When the first was captured.
    pub first_time: WallMicros,
    /// When the last was captured.
    pub last_time: WallMicros,
    /// Whole records.
    pub records: u64,
    /// Whole records of each kind that occurs.
    pub kinds: Vec<(RecordKind, u64)>,
    /// It has an index and a trailer.
    pub sealed: bool,
    /// The trailer's chain digest.
    pub chain: Option<[u8; 32]>,
    /// Everything that is wrong, in the order of the file.
    pub damage: Vec<Damage>,
}

/// A record, decoded for people.
#[derive(Clone, Debug)]
pub struct InspectedRecord {
    /// Its number.
    pub seq: Seq,
    /// When it was captured.
    pub time: WallMicros,
    /// Its kind.
    pub kind: RecordKind,
    /// Range on the volume; empty where the kind has none.
    pub range: ByteRange,
    /// Payload in bytes.
    pub payload_bytes: u32,
    /// Payload as stored, in bytes.
    pub stored_bytes: u32,
    /// `FLAG_*` of [`tidemark_wire::record`].
    pub flags: u8,
    /// Byte of the file at which it begins.
    pub position: u64,
    /// What it says, when it is a mark.
    pub mark: Option<MarkBody>,
}
