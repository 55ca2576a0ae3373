//! The frame: what goes over a session in either direction.
//!
//! ```text
//! FrameHeader  40 bytes
//! body         body_bytes
//! ```
//! A receiver reads the header, checks it, reads as many bytes as it says (bounded by
//! [`FRAME_BODY_BYTES_MAX`]) and checks the body's checksum before it looks inside. Cipher and
//! key id are here from the first version; 0 means that the body is not encrypted.

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum;
use crate::error::{DecodeError, DecodeErrorKind};
use crate::id::{Epoch, Seq, SessionToken, Timeline};
use crate::limits::{FRAME_BODY_BYTES_MAX, FRAME_RECORDS_MAX};
use crate::record::Record;

/// Version of frames and of everything inside them.
pub const WIRE_VERSION: u16 = 1;

const MAGIC: [u8; 4] = *b"TMKW";
const WHAT: &str = "frame";

/// What a frame holds. The numbers are part of the format; those that are missing below 32 are
/// reserved for repair reads, group cuts and the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Agent: opens a session ([`crate::session::Hello`]).
    Hello = 1,
    /// Collector: accepts it ([`crate::session::Welcome`]).
    Welcome = 2,
    /// Collector: refuses or ends it ([`crate::session::Refuse`]).
    Refuse = 3,
    /// Agent: change records ([`RecordsHeader`], then records).
    Records = 4,
    /// Collector: what is durable ([`crate::session::Ack`]).
    Ack = 5,
    /// Collector: mark for measuring RPO ([`crate::session::Token`]).
    Token = 6,
    /// Collector: asks for a bookmark in the stream ([`crate::body::Bookmark`]).
    BookmarkRequest = 7,
    /// Agent: how far a copy is ([`crate::session::Progress`]).
    Progress = 8,
    /// Either: nothing more follows; empty body.
    Goodbye = 9,
    /// Agent: which nodes differ ([`crate::compare::Compare`]).
    Compare = 10,
    /// Collector: these do ([`crate::compare::Differ`]).
    Differ = 11,
    /// Collector: what a person wants of the agent ([`crate::instruct::Instruct`]).
    Instruct = 12,
    /// Agent: whether its stream is whole, and why not ([`crate::session::Standing`]).
    Standing = 13,
    /// Agent: it did what a person wants ([`crate::instruct::Obeyed`]).
    Obeyed = 14,
    /// Agent: what a verification has found ([`crate::instruct::Verified`]).
    Verified = 15,
}

impl FrameKind {
    /// From its number in the format.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::Refuse,
            4 => Self::Records,
            5 => Self::Ack,
            6 => Self::Token,
            7 => Self::BookmarkRequest,
            8 => Self::Progress,
            9 => Self::Goodbye,
            10 => Self::Compare,
            11 => Self::Differ,
            12 => Self::Instruct,
            13 => Self::Standing,
            14 => Self::Obeyed,
            15 => Self::Verified,
            _ => return None,
        })
    }
}

/// Fixed part of a frame: 40 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct FrameHeader {
    /// `TMKW`.
    pub magic: [u8; 4],
    /// [`WIRE_VERSION`].
    pub version: U16,
    /// [`FrameKind`].
    pub kind: u8,
    /// Zero.
    pub flags: u8,
    /// Length of the body.
    pub body_bytes: U32,
    /// 0: not encrypted.
    pub cipher: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// Key that encrypts the body; 0 with cipher 0.
    pub key_id: U32,
    /// Zero.
    pub reserved_end: U32,
    /// XXH3-64 of the body.
    pub body_sum: U64,
    /// XXH3-64 of the 32 bytes before it.
    pub header_sum: U64,
}

/// Length of a [`FrameHeader`] in bytes.
pub const FRAME_HEADER_BYTES: usize = size_of::<FrameHeader>();

const _: () = {
    assert!(FRAME_HEADER_BYTES == 40);
    assert!(offset_of!(FrameHeader, version) == 4);
    assert!(offset_of!(FrameHeader, kind) == 6);
    assert!(offset_of!(FrameHeader, flags) == 7);
    assert!(offset_of!(FrameHeader, body_bytes) == 8);
    assert!(offset_of!(FrameHeader, cipher) == 12);
    assert!(offset_of!(FrameHeader, key_id) == 16);
    assert!(offset_of!(FrameHeader, body_sum) == 24);
    assert!(offset_of!(FrameHeader, header_sum) == 32);
};

impl FrameHeader {
    /// The header for a body given in parts.
    ///
    /// # Panics
    /// When the body is beyond [`FRAME_BODY_BYTES_MAX`]: a programmer's mistake.
    #[must_use]
    pub fn for_body(kind: FrameKind, parts: &[&[u8]]) -> Self {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let body_bytes = u32::try_from(len).unwrap_or(u32::MAX);
        Self::for_summed(kind, body_bytes, checksum::sum_parts(parts))
    }

    /// The header for a body of `body_bytes` whose XXH3-64 is `body_sum`.
    ///
    /// # Panics
    /// When the body is beyond [`FRAME_BODY_BYTES_MAX`]: a programmer's mistake.
    #[must_use]
    pub fn for_summed(kind: FrameKind, body_bytes: u32, body_sum: u64) -> Self {
        assert!(body_bytes <= FRAME_BODY_BYTES_MAX, "frame body of {body_bytes} bytes");
        let mut header = Self {
            magic: MAGIC,
            version: WIRE_VERSION.into(),
            kind: kind as u8,
            flags: 0,
            body_bytes: body_bytes.into(),
            cipher: 0,
            reserved: [0; 3],
            key_id: 0.into(),
            reserved_end: 0.into(),
            body_sum: body_sum.into(),
            header_sum: 0.into(),
        };
        header.header_sum = header.compute_sum().into();
        header
    }

    fn compute_sum(&self) -> u64 {
        checksum::sum(&self.as_bytes()[..offset_of!(FrameHeader, header_sum)])
    }

    /// Decodes and checks a header; the version is checked first, so that a newer peer is named
    /// as such.
    ///
    /// # Errors
    /// `Truncated`, `Magic`, `Version`, `Checksum`, `Field` or `Limit`.
    pub fn decode(bytes: &[u8]) -> Result<(Self, FrameKind), DecodeError> {
        let (header, _) = Self::read_from_prefix(bytes)
            .map_err(|_| DecodeError::truncated(WHAT, bytes.len(), FRAME_HEADER_BYTES))?;
        let fail = |kind, detail| Err(DecodeError::new(kind, WHAT, detail));
        if header.magic != MAGIC {
            return fail(DecodeErrorKind::Magic, "the peer does not speak this protocol".into());
        }
        if header.version.get() != WIRE_VERSION {
            let detail = format!("version {}, this side speaks {WIRE_VERSION}", header.version);
            return fail(DecodeErrorKind::Version, detail);
        }
        if header.compute_sum() != header.header_sum.get() {
            return fail(DecodeErrorKind::Checksum, "header checksum does not match".into());
        }
        let Some(kind) = FrameKind::from_byte(header.kind) else {
            return fail(DecodeErrorKind::Field, format!("kind {} is unknown", header.kind));
        };
        if header.body_bytes.get() > FRAME_BODY_BYTES_MAX {
            return fail(DecodeErrorKind::Limit, format!("body of {} bytes", header.body_bytes));
        }
        if header.cipher != 0 {
            return fail(DecodeErrorKind::Field, format!("cipher {} is unknown", header.cipher));
        }
        Ok((header, kind))
    }

    /// Checks a body against the header.
    ///
    /// # Errors
    /// `Checksum`.
    pub fn check_body(&self, body: &[u8]) -> Result<(), DecodeError> {
        if checksum::sum(body) == self.body_sum.get() {
            Ok(())
        } else {
            let detail = "body checksum does not match";
            Err(DecodeError::new(DecodeErrorKind::Checksum, WHAT, detail))
        }
    }
}

/// Appends a whole frame.
pub fn encode(kind: FrameKind, body: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(FrameHeader::for_body(kind, &[body]).as_bytes());
    out.extend_from_slice(body);
}

/// Fixed part of a frame of records: 48 bytes, then `count` whole records without gaps.
///
/// `prev_seq` is the sequence number of the record that the agent sent or would have sent before
/// the first one here. Since numbers have gaps, this is what shows a lost record.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct RecordsHeader {
    /// [`Timeline`] of all records.
    pub timeline: U32,
    /// Number of records; 0 when the frame only carries a token.
    pub count: U32,
    /// [`Epoch`] of the session.
    pub epoch: U64,
    /// The record before the first one.
    pub prev_seq: U64,
    /// First record's number; `prev_seq` when there is none.
    pub first_seq: U64,
    /// Last record's number; `prev_seq` when there is none.
    pub last_seq: U64,
    /// The newest [`SessionToken`] behind which all acknowledged writes are at or before
    /// `last_seq`; 0 when there is none.
    pub token: U64,
}

/// Length of a [`RecordsHeader`] in bytes.
pub const RECORDS_HEADER_BYTES: usize = size_of::<RecordsHeader>();
const _: () = {
    assert!(RECORDS_HEADER_BYTES == 48);
    assert!(offset_of!(RecordsHeader, epoch) == 8);
    assert!(offset_of!(RecordsHeader, prev_seq) == 16);
    assert!(offset_of!(RecordsHeader, token) == 40);
};

impl RecordsHeader {
    /// Timeline of all records.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        Timeline(self.timeline.get())
    }

    /// Epoch of the session.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch.get())
    }

    /// The record before the first one.
    #[must_use]
    pub fn prev_seq(&self) -> Seq {
        Seq(self.prev_seq.get())
    }

    /// The token, if one is there.
    #[must_use]
    pub fn token(&self) -> Option<SessionToken> {
        (self.token.get() != 0).then_some(SessionToken(self.token.get()))
    }
}

/// A decoded frame of records.
#[derive(Clone, Copy, Debug)]
pub struct RecordsBody<'a> {
    /// The fixed part.
    pub header: RecordsHeader,
    bytes: &'a [u8],
}

impl<'a> RecordsBody<'a> {
    /// Decodes the body of a frame of records and checks the structure of all of them: count,
    /// strictly rising numbers, first and last as announced, no byte left over.
    ///
    /// # Errors
    /// As [`Record::decode`], or `Field` when the records are not those that were announced.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "frame of records";
        let (header, bytes) = RecordsHeader::read_from_prefix(body)
            .map_err(|_| DecodeError::truncated(WHAT, body.len(), RECORDS_HEADER_BYTES))?;
        let decoded = Self { header, bytes };
        let (mut count, mut last, mut first) = (0u32, header.prev_seq(), None);
        for record in decoded.records() {
            let seq = record?.header.seq();
            if seq <= last {
                let detail = format!("record {seq} follows record {last}");
                return Err(DecodeError::field(WHAT, detail));
            }
            first.get_or_insert(seq);
            last = seq;
            count += 1;
            if count > FRAME_RECORDS_MAX {
                return Err(DecodeError::new(DecodeErrorKind::Limit, WHAT, "too many records"));
            }
        }
        let first = first.unwrap_or(header.prev_seq());
        let announced = (header.count.get(), header.first_seq.get(), header.last_seq.get());
        if announced != (count, first.0, last.0) {
            return Err(DecodeError::field(WHAT, "the records are not those that it announces"));
        }
        Ok(decoded)
    }

    /// The records' bytes, one record after the other.
    #[must_use]
    pub fn record_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The records in order. After an error nothing follows.
    pub fn records(&self) -> impl Iterator<Item = Result<Record<'a>, DecodeError>> + use<'a> {
        records(self.bytes)
    }
}

/// The records in a byte string that holds nothing else, in order. After an error nothing
/// follows.
pub fn records(bytes: &[u8]) -> impl Iterator<Item = Result<Record<'_>, DecodeError>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let record = Record::decode(rest);
        rest = record.as_ref().map_or(&[], |record| &rest[record.bytes.len()..]);
        Some(record)
    })
}
