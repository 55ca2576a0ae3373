//! The change record: one captured change of a volume, as it stands in the change ring, in a
//! frame and in the journal.
//!
//! ```text
//! RecordHeader  64 bytes
//! sums          8 bytes for each piece of payload (checksum::pieces)
//! stored        stored_bytes: the payload, raw or compressed
//! padding       zeroes up to a multiple of 8
//! ```
//! `header_sum` covers the header before it and the sums; the sums cover the uncompressed
//! payload. The shipper may re-encode the payload (codec, `stored_bytes`, `header_sum`); seq,
//! time, range and sums stay as they were made at capture.

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum;
use crate::codec::{self, Codec};
use crate::error::{DecodeError, DecodeErrorKind};
use crate::id::{Seq, WallMicros};
use crate::limits::{COUNTER_MAX, RECORD_PAYLOAD_BYTES_MAX, VOLUME_BYTES_MAX};
use crate::planted::{self, Bug};

/// What a change record is about. The numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// A client wrote; the payload is what it wrote.
    Write = 1,
    /// A range became zeroes.
    WriteZeroes = 2,
    /// A range was discarded; it reads as zeroes from here on.
    Trim = 3,
    /// The backing store was flushed with success: all writes acknowledged before are durable.
    Flush = 4,
    /// A recovery point was asked for here; the body is a [`crate::body::Bookmark`].
    Bookmark = 5,
    /// The common cut of a consistency group; the body is a [`crate::body::Cut`].
    Cut = 6,
    /// The volume changed its size: `len_bytes` is the new one, `aux` the one before. What a
    /// smaller size cuts off is gone: where the volume grows again, it reads as zeroes.
    Resize = 7,
    /// Bytes read from the backing store under the range lock: what it holds from here on.
    ReadBack = 8,
    /// A range that can't be read from the backing store; `aux` is the errno.
    Unreadable = 9,
    /// Changes before this record were not captured; `aux` is a [`crate::body::GapReason`].
    Gap = 10,
    /// A resynchronization begins; the body is a [`crate::body::Resync`].
    ResyncBegin = 11,
    /// A resynchronization has ended; the body is the [`crate::body::Resync`] of its begin.
    ResyncEnd = 12,
}

impl RecordKind {
    /// From its number in the format.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Write,
            2 => Self::WriteZeroes,
            3 => Self::Trim,
            4 => Self::Flush,
            5 => Self::Bookmark,
            6 => Self::Cut,
            7 => Self::Resize,
            8 => Self::ReadBack,
            9 => Self::Unreadable,
            10 => Self::Gap,
            11 => Self::ResyncBegin,
            12 => Self::ResyncEnd,
            _ => return None,
        })
    }

    /// The name that people see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::WriteZeroes => "write-zeroes",
            Self::Trim => "trim",
            Self::Flush => "flush",
            Self::Bookmark => "bookmark",
            Self::Cut => "cut",
            Self::Resize => "resize",
            Self::ReadBack => "read-back",
            Self::Unreadable => "unreadable",
            Self::Gap => "gap",
            Self::ResyncBegin => "resync-begin",
            Self::ResyncEnd => "resync-end",
        }
    }

    /// True when the payload is the new contents of `[offset_bytes, offset_bytes + len_bytes)`.
    #[must_use]
    pub const fn has_data(self) -> bool {
        matches!(self, Self::Write | Self::ReadBack)
    }

    /// True when the range reads as zeroes after the record.
    #[must_use]
    pub const fn zeroes(self) -> bool {
        matches!(self, Self::WriteZeroes | Self::Trim)
    }

    /// True when the record changes what the volume reads as.
    #[must_use]
    pub const fn changes_bytes(self) -> bool {
        self.has_data() || self.zeroes()
    }

    /// True when the payload is a body of [`crate::body`].
    #[must_use]
    pub const fn has_body(self) -> bool {
        matches!(self, Self::Bookmark | Self::Cut | Self::ResyncBegin | Self::ResyncEnd)
    }
}

/// Flag: the client asked for forced unit access.
pub const FLAG_FUA: u8 = 1;
/// Flag: the client asked to keep the zeroed range allocated.
pub const FLAG_NO_HOLE: u8 = 2;
const FLAGS_KNOWN: u8 = FLAG_FUA | FLAG_NO_HOLE;

/// Fixed part of a change record: 64 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct RecordHeader {
    /// Sequence number, never 0.
    pub seq: U64,
    /// First byte of the range on the volume.
    pub offset_bytes: U64,
    /// Length of the range on the volume.
    pub len_bytes: U64,
    /// When the change was captured ([`WallMicros`]).
    pub time_us: U64,
    /// Uncompressed length of the payload.
    pub payload_bytes: U32,
    /// Length of the payload as it is stored.
    pub stored_bytes: U32,
    /// [`RecordKind`].
    pub kind: u8,
    /// [`FLAG_FUA`], [`FLAG_NO_HOLE`].
    pub flags: u8,
    /// [`Codec`].
    pub codec: u8,
    /// Zero.
    pub reserved: u8,
    /// Number of checksums behind the header.
    pub sum_count: U32,
    /// Depends on the kind.
    pub aux: U64,
    /// XXH3-64 of the 56 bytes before it and of the sums.
    pub header_sum: U64,
}

/// Length of a [`RecordHeader`] in bytes.
pub const RECORD_HEADER_BYTES: usize = size_of::<RecordHeader>();
const SUMMED_BYTES: usize = offset_of!(RecordHeader, header_sum);
const WHAT: &str = "change record";

const _: () = {
    assert!(RECORD_HEADER_BYTES == 64);
    assert!(offset_of!(RecordHeader, seq) == 0);
    assert!(offset_of!(RecordHeader, offset_bytes) == 8);
    assert!(offset_of!(RecordHeader, len_bytes) == 16);
    assert!(offset_of!(RecordHeader, time_us) == 24);
    assert!(offset_of!(RecordHeader, payload_bytes) == 32);
    assert!(offset_of!(RecordHeader, stored_bytes) == 36);
    assert!(offset_of!(RecordHeader, kind) == 40);
    assert!(offset_of!(RecordHeader, flags) == 41);
    assert!(offset_of!(RecordHeader, codec) == 42);
    assert!(offset_of!(RecordHeader, reserved) == 43);
    assert!(offset_of!(RecordHeader, sum_count) == 44);
    assert!(offset_of!(RecordHeader, aux) == 48);
    assert!(offset_of!(RecordHeader, header_sum) == 56);
};

/// What a new record says, before it has a sequence number.
#[derive(Clone, Copy, Debug)]
pub struct RecordSpec {
    /// What it is about.
    pub kind: RecordKind,
    /// First byte of the range on the volume (0 where the kind has none).
    pub offset_bytes: u64,
    /// Length of the range (0 where the kind has none).
    pub len_bytes: u64,
    /// Length of the payload, or of the body.
    pub payload_bytes: u32,
    /// `FLAG_*`.
    pub flags: u8,
    /// Depends on the kind.
    pub aux: u64,
}

impl RecordHeader {
    /// A header for an uncompressed record; [`RecordHeader::seal`] completes it.
    #[must_use]
    pub fn new(spec: &RecordSpec, seq: Seq, time: WallMicros) -> Self {
        let mut header = Self::new_zeroed_spec(spec);
        header.seq = seq.0.into();
        header.time_us = time.0.into();
        header
    }

    fn new_zeroed_spec(spec: &RecordSpec) -> Self {
        let mut header = Self {
            seq: 0.into(),
            offset_bytes: spec.offset_bytes.into(),
            len_bytes: spec.len_bytes.into(),
            time_us: 0.into(),
            payload_bytes: spec.payload_bytes.into(),
            stored_bytes: spec.payload_bytes.into(),
            kind: spec.kind as u8,
            flags: spec.flags,
            codec: Codec::Raw as u8,
            reserved: 0,
            sum_count: 0.into(),
            aux: spec.aux.into(),
            header_sum: 0.into(),
        };
        header.sum_count = header.expected_sums().into();
        header
    }

    /// Number of checksums that a record of this kind, place and payload has.
    #[must_use]
    pub fn expected_sums(&self) -> u32 {
        checksum::piece_count(self.grid_offset(), self.payload_bytes.get())
    }

    /// Where the payload's pieces are cut: at the volume's blocks for data, from zero for bodies.
    #[must_use]
    pub fn grid_offset(&self) -> u64 {
        if self.kind().is_some_and(RecordKind::has_data) { self.offset_bytes.get() } else { 0 }
    }

    /// The kind, when it is one that this version knows.
    #[must_use]
    pub fn kind(&self) -> Option<RecordKind> {
        RecordKind::from_byte(self.kind)
    }

    /// The sequence number.
    #[must_use]
    pub fn seq(&self) -> Seq {
        Seq(self.seq.get())
    }

    /// Length of the whole record with sums, stored payload and padding, in bytes.
    #[must_use]
    pub fn record_bytes(&self) -> usize {
        RECORD_HEADER_BYTES
            + self.sum_count.get() as usize * size_of::<U64>()
            + (self.stored_bytes.get() as usize).next_multiple_of(8)
    }

    /// Zero bytes between the stored payload and the end of the record.
    #[must_use]
    pub fn padding_bytes(&self) -> usize {
        let stored = self.stored_bytes.get() as usize;
        stored.next_multiple_of(8) - stored
    }

    /// Computes `header_sum` over the header and `sums`.
    pub fn seal(&mut self, sums: &[U64]) {
        self.header_sum = self.compute_sum(sums).into();
    }

    fn compute_sum(&self, sums: &[U64]) -> u64 {
        checksum::sum_parts(&[&self.as_bytes()[..SUMMED_BYTES], sums.as_bytes()])
    }

    /// Checks every field that needs no other bytes.
    ///
    /// # Errors
    /// `Field` or `Limit`, with the field's name.
    pub fn check_fields(&self) -> Result<RecordKind, DecodeError> {
        let bad = |detail: String| Err(DecodeError::field(WHAT, detail));
        let Some(kind) = self.kind() else {
            return bad(format!("kind {} is unknown", self.kind));
        };
        let (payload, stored) = (self.payload_bytes.get(), self.stored_bytes.get());
        if payload > RECORD_PAYLOAD_BYTES_MAX || stored > payload {
            let detail = format!("payload of {payload} bytes stored in {stored}");
            return Err(DecodeError::new(DecodeErrorKind::Limit, WHAT, detail));
        }
        if !(1..=COUNTER_MAX).contains(&self.seq.get()) {
            return bad(format!("sequence number {}", self.seq));
        }
        if self.time_us.get() > COUNTER_MAX {
            return bad(format!("a time of {}", self.time_us));
        }
        if self.flags & !FLAGS_KNOWN != 0 || self.reserved != 0 {
            return bad("an unknown flag or a reserved byte set".into());
        }
        let end = self.offset_bytes.get().checked_add(self.len_bytes.get());
        if end.is_none_or(|end| end > VOLUME_BYTES_MAX) {
            return bad("range lies beyond the largest volume".into());
        }
        if kind == RecordKind::Resize {
            let sizes = [self.len_bytes.get(), self.aux.get()];
            if self.offset_bytes.get() != 0
                || sizes.iter().any(|size| !(1..=VOLUME_BYTES_MAX).contains(size))
            {
                return bad(format!("a resize from {} to {} bytes", self.aux, self.len_bytes));
            }
        }
        let codec = Codec::from_byte(self.codec)?;
        if codec == Codec::Raw && stored != payload {
            return bad(format!("raw payload of {payload} bytes stored in {stored}"));
        }
        let shape_holds = if kind.has_data() {
            payload > 0 && u64::from(payload) == self.len_bytes.get()
        } else {
            kind.has_body() == (payload > 0)
        };
        if !shape_holds || self.sum_count.get() != self.expected_sums() {
            return bad(format!("{} with a payload of {payload} bytes", kind.name()));
        }
        Ok(kind)
    }
}

/// A whole record within a byte string.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The fixed part, its fields checked.
    pub header: &'a RecordHeader,
    /// The kind, decoded.
    pub kind: RecordKind,
    /// One checksum for each piece.
    pub sums: &'a [U64],
    /// The payload as it is stored.
    pub stored: &'a [u8],
    /// The record's bytes, whole.
    pub bytes: &'a [u8],
}

impl<'a> Record<'a> {
    /// Decodes the record at the start of `bytes` and checks header and sums against
    /// `header_sum`; what follows is at `bytes[record.bytes.len()..]`. The payload itself is
    /// checked by [`Record::payload`].
    ///
    /// # Errors
    /// `Truncated` when bytes are missing, else `Field`, `Limit` or `Checksum`.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let (header, rest) = RecordHeader::ref_from_prefix(bytes)
            .map_err(|_| DecodeError::truncated(WHAT, bytes.len(), RECORD_HEADER_BYTES))?;
        let kind = header.check_fields()?;
        let need = header.record_bytes();
        if bytes.len() < need {
            return Err(DecodeError::truncated(WHAT, bytes.len(), need));
        }
        let (sums, rest) =
            <[U64]>::ref_from_prefix_with_elems(rest, header.sum_count.get() as usize)
                .map_err(|_| DecodeError::truncated(WHAT, bytes.len(), need))?;
        if header.compute_sum(sums) != header.header_sum.get() {
            let detail = format!("header checksum of record {} does not match", header.seq());
            return Err(DecodeError::new(DecodeErrorKind::Checksum, WHAT, detail));
        }
        let stored = &rest[..header.stored_bytes.get() as usize];
        Ok(Self { header, kind, sums, stored, bytes: &bytes[..need] })
    }

    /// The uncompressed payload, checked piece by piece; `scratch` is used where it has to be
    /// expanded.
    ///
    /// # Errors
    /// `Field` when it does not expand, `Checksum` with the place of the first damaged piece.
    pub fn payload<'s>(&'s self, scratch: &'s mut Vec<u8>) -> Result<&'s [u8], DecodeError> {
        let payload: &[u8] = match Codec::from_byte(self.header.codec)? {
            Codec::Raw => self.stored,
            packed @ Codec::Snappy => {
                codec::expand(packed, self.stored, self.header.payload_bytes.get(), scratch)?;
                scratch
            }
        };
        check_pieces(self.header, self.sums, payload)?;
        Ok(payload)
    }
}

/// Checks an uncompressed payload against its sums.
///
/// # Errors
/// `Checksum` with record, piece and place on the volume.
pub fn check_pieces(
    header: &RecordHeader,
    sums: &[U64],
    payload: &[u8],
) -> Result<(), DecodeError> {
    if planted::is(Bug::ReadUnchecked) {
        return Ok(());
    }
    for (piece, want) in checksum::pieces(header.grid_offset(), payload.len()).zip(sums) {
        let start = piece.start;
        if checksum::sum(&payload[piece]) != want.get() {
            let at = header.grid_offset() + start as u64;
            let detail = format!("payload of record {} is damaged at byte {at}", header.seq());
            return Err(DecodeError::new(DecodeErrorKind::Checksum, WHAT, detail));
        }
    }
    Ok(())
}

/// Fills `sums` with the checksums of a payload.
///
/// # Panics
/// When `sums` is not as long as the header says: a programmer's mistake.
pub fn fill_sums(header: &RecordHeader, payload: &[u8], sums: &mut [U64]) {
    assert_eq!(sums.len(), header.sum_count.get() as usize, "one sum for each piece");
    for (piece, out) in checksum::pieces(header.grid_offset(), payload.len()).zip(sums) {
        *out = checksum::sum(&payload[piece]).into();
    }
}

/// Appends a whole uncompressed record to `out`.
///
/// # Panics
/// When the payload is not as long as the spec says: a programmer's mistake.
pub fn encode(spec: &RecordSpec, seq: Seq, time: WallMicros, payload: &[u8], out: &mut Vec<u8>) {
    assert_eq!(payload.len(), spec.payload_bytes as usize, "payload as the spec says");
    let mut header = RecordHeader::new(spec, seq, time);
    let mut sums = vec![U64::new(0); header.sum_count.get() as usize];
    fill_sums(&header, payload, &mut sums);
    header.seal(&sums);
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(sums.as_bytes());
    out.extend_from_slice(payload);
    out.resize(out.len() + header.padding_bytes(), 0);
}
