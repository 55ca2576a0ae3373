//! Payloads of the records that carry no data of the volume.
//!
//! Each body begins with a fixed struct; texts follow it with the lengths given there.

use std::mem::size_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::DecodeError;
use crate::id::PointId;
use crate::limits::{NAME_BYTES_MAX, TEXT_BYTES_MAX};

/// What a recovery point promises. The numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PointKind {
    /// As after a power cut.
    Crash = 1,
    /// The application was asked to make its files consistent first.
    App = 2,
    /// A person's bookmark; as after a power cut.
    Person = 3,
}

impl PointKind {
    /// From its number in the format.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Crash,
            2 => Self::App,
            3 => Self::Person,
            _ => return None,
        })
    }

    /// The name that people see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash-consistent",
            Self::App => "app-consistent",
            Self::Person => "bookmark",
        }
    }
}

/// Why changes were not captured. The numbers are part of the format (`aux` of a gap record).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum GapReason {
    /// The change ring was full.
    RingFull = 1,
    /// The ring was lost: power cut, or the machine was restarted.
    RingLost = 2,
    /// The collector does not hold what the agent had sent.
    CollectorBehind = 3,
    /// The collector holds more than the agent ever sent.
    SourceBehind = 4,
    /// A write or flush of the backing store failed.
    BackingError = 5,
    /// Protection was paused.
    Paused = 6,
    /// The backing store was changed while no agent served it.
    OutsideChange = 7,
    /// An earlier copy was not completed.
    CopyInterrupted = 8,
    /// The disk has another size, and what became of its bytes was not captured.
    Resized = 9,
    /// The agent could not keep what may differ.
    MapInDoubt = 10,
}

impl GapReason {
    /// From its number in the format.
    #[must_use]
    pub const fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            1 => Self::RingFull,
            2 => Self::RingLost,
            3 => Self::CollectorBehind,
            4 => Self::SourceBehind,
            5 => Self::BackingError,
            6 => Self::Paused,
            7 => Self::OutsideChange,
            8 => Self::CopyInterrupted,
            9 => Self::Resized,
            10 => Self::MapInDoubt,
            _ => return None,
        })
    }

    /// What people see.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::RingFull => "the change ring was full",
            Self::RingLost => "the change ring was lost in a restart of the machine",
            Self::CollectorBehind => "the collector holds less than was acknowledged",
            Self::SourceBehind => "the collector holds more than this source has sent",
            Self::BackingError => "the backing store failed a write or a flush",
            Self::Paused => "protection was paused",
            Self::OutsideChange => "the backing store was changed while no agent served it",
            Self::CopyInterrupted => "an earlier copy was not completed",
            Self::Resized => "the disk changed its size",
            Self::MapInDoubt => "the agent could not keep what the collector may lack",
        }
    }
}

/// Body of a bookmark record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bookmark {
    /// Identity of the point.
    pub id: PointId,
    /// What the point promises.
    pub kind: PointKind,
    /// A person's name for it; may be empty.
    pub label: String,
    /// Why it promises less than was asked for; empty when it does not.
    pub reason: String,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct BookmarkFixed {
    id: [u8; 16],
    kind: u8,
    reserved: u8,
    label_bytes: U16,
    reason_bytes: U16,
    reserved_end: U16,
}
const _: () = assert!(size_of::<BookmarkFixed>() == 24);

impl Bookmark {
    /// Appends the body. Texts beyond their limit are cut at a character.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let label = cut(&self.label, NAME_BYTES_MAX);
        let reason = cut(&self.reason, TEXT_BYTES_MAX);
        let fixed = BookmarkFixed {
            id: self.id.to_bytes(),
            kind: self.kind as u8,
            reserved: 0,
            label_bytes: text_len(label),
            reason_bytes: text_len(reason),
            reserved_end: 0.into(),
        };
        out.extend_from_slice(fixed.as_bytes());
        out.extend_from_slice(label.as_bytes());
        out.extend_from_slice(reason.as_bytes());
    }

    /// Decodes a body.
    ///
    /// # Errors
    /// `Truncated`, `Field` or `Limit`.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "bookmark";
        let (fixed, rest) = BookmarkFixed::ref_from_prefix(bytes)
            .map_err(|_| DecodeError::truncated(WHAT, bytes.len(), size_of::<BookmarkFixed>()))?;
        let kind = PointKind::from_byte(fixed.kind)
            .ok_or_else(|| DecodeError::field(WHAT, format!("point kind {}", fixed.kind)))?;
        let (label, rest) = take_text(WHAT, rest, fixed.label_bytes.get(), NAME_BYTES_MAX)?;
        let (reason, _) = take_text(WHAT, rest, fixed.reason_bytes.get(), TEXT_BYTES_MAX)?;
        Ok(Self { id: PointId::from_bytes(fixed.id), kind, label, reason })
    }
}

/// Body of a cut record: the common cut of a consistency group.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Cut {
    /// Identity of the consistency group.
    pub group_id: [u8; 16],
    /// Identity of the group's point.
    pub point_id: [u8; 16],
    /// Counter of the group's cuts.
    pub number: U64,
    /// Members that have to stamp for the cut to be one.
    pub members: U32,
    /// Zero.
    pub reserved: U32,
}
const _: () = assert!(size_of::<Cut>() == 48);

/// Body of resync-begin and resync-end records.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Resync {
    /// Identity of this resynchronization: an end belongs to the begin with the same one.
    pub id: [u8; 16],
    /// Bytes that are compared or copied.
    pub total_bytes: U64,
    /// Bytes that were sent (in the end record; 0 in the begin record).
    pub sent_bytes: U64,
    /// 1 when the collector had no copy before (initial replication), else 0.
    pub initial: u8,
    /// Zero.
    pub reserved: [u8; 7],
}
const _: () = assert!(size_of::<Resync>() == 40);

impl Resync {
    /// Decodes a body.
    ///
    /// # Errors
    /// `Truncated`.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::read_from_prefix(bytes)
            .map(|(body, _)| body)
            .map_err(|_| DecodeError::truncated("resync", bytes.len(), size_of::<Self>()))
    }
}

/// The longest prefix of `text` with at most `max` bytes that ends at a character.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The length of a text that [`cut`] made, for its field.
pub(crate) fn text_len(text: &str) -> U16 {
    u16::try_from(text.len()).expect("cut() keeps texts below 64 KiB").into()
}

/// Splits a UTF-8 text of `len` bytes off the front of `bytes`.
pub(crate) fn take_text<'a>(
    what: &'static str,
    bytes: &'a [u8],
    len: u16,
    max: usize,
) -> Result<(String, &'a [u8]), DecodeError> {
    let len = usize::from(len);
    if len > max {
        return Err(DecodeError::field(what, format!("a text of {len} bytes, at most {max}")));
    }
    let Some((text, rest)) = bytes.split_at_checked(len) else {
        return Err(DecodeError::truncated(what, bytes.len(), len));
    };
    match std::str::from_utf8(text) {
        Ok(text) => Ok((text.to_owned(), rest)),
        Err(_) => Err(DecodeError::field(what, "a text is not UTF-8")),
    }
}
