//! The segment file, version 1, byte by byte. This is the format's only home.
//!
//! ```text
//! SegmentHeader   4096 bytes
//! records         as received (wire::record), each a multiple of 8 bytes long
//!   -- up to here while the file is named FIRST.open; sealing adds: --
//! cells           IndexEntry[], sorted by (cell, seq): every record that changes bytes, once in
//!                 each cell of CELL_BYTES that it touches, unless it touches more than two
//! wide            IndexEntry[], sorted by seq: the records that touch more than two cells
//! marks           MarkEntry[], sorted by seq: the records of the other kinds, without flushes
//! waypoints       Waypoint[], every WAYPOINT_RECORDS-th record from the first on
//! SegmentTrailer  512 bytes
//! ```
//! FIRST is the first record's sequence number in 16 hexadecimal digits. Order of writes: the
//! header is on stable storage, and the file in its directory, before the first record is
//! written, so a bad header above whole records is damage and not a torn write. Tables and
//! trailer are on stable storage before the file is renamed to FIRST.seg, so a sealed segment
//! without a good trailer is damaged too. A reader of the tables checks the two sums in the
//! trailer; a reader of a record checks the record's own.

use std::mem::{offset_of, size_of};

use tidemark_wire::checksum;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Version of the segment format.
pub const SEGMENT_VERSION: u32 = 1;
/// First bytes of a segment.
pub const HEADER_MAGIC: [u8; 8] = *b"TMKJSEG\0";
/// First bytes of the trailer.
pub const TRAILER_MAGIC: [u8; 8] = *b"TMKJEND\0";
/// Length of the header, and where the first record begins.
pub const HEADER_BYTES: u64 = size_of::<SegmentHeader>() as u64;
/// Length of the trailer.
pub const TRAILER_BYTES: u64 = size_of::<SegmentTrailer>() as u64;
/// Width of an index cell on the volume, in bytes.
pub const CELL_BYTES: u64 = 256 * 1024;
/// Cells that a record may touch to stand in the table of cells.
pub const NARROW_CELLS_MAX: u64 = 2;
/// Records from one waypoint to the next.
pub const WAYPOINT_RECORDS: u64 = 64;
/// Flag: the segment was condensed between kept points and replaces the segments whose digests
/// stand at `replaced_at`. Reserved; version 1 writes no such segment.
pub const FLAG_CONDENSED: u32 = 1;

/// Fixed start of a segment.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SegmentHeader {
    /// [`HEADER_MAGIC`].
    pub magic: [u8; 8],
    /// [`SEGMENT_VERSION`].
    pub version: U32,
    /// Length of this header.
    pub header_bytes: U32,
    /// The volume.
    pub volume: [u8; 16],
    /// The collector's copy of it.
    pub journal: [u8; 16],
    /// The branch of its history.
    pub timeline: U32,
    /// `FLAG_*`.
    pub flags: U32,
    /// The session in which the segment was begun.
    pub epoch: U64,
    /// The first record.
    pub first_seq: U64,
    /// The record before it, in the segment before; 0 when there is none.
    pub prev_seq: U64,
    /// When the first record was captured.
    pub created_us: U64,
    /// Size of the volume before the first record.
    pub size_bytes: U64,
    /// Cipher of the payloads; 0 is none.
    pub cipher: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// Key of the cipher; 0 with cipher 0.
    pub key_id: U32,
    /// `chain` of the segment before; zeroes when there is none.
    pub prev_chain: [u8; 32],
    /// The record that began the span which is open before the first record; 0 when none is.
    pub span_begin: U64,
    /// The resynchronization that will end it; zeroes while it has not begun.
    pub span_resync: [u8; 16],
    /// Zero.
    pub reserved_end: [u8; 3928],
    /// XXH3-64 of the 4088 bytes before it.
    pub header_sum: U64,
}

const _: () = {
    assert!(size_of::<SegmentHeader>() == 4096);
    assert!(offset_of!(SegmentHeader, version) == 8);
    assert!(offset_of!(SegmentHeader, header_bytes) == 12);
    assert!(offset_of!(SegmentHeader, volume) == 16);
    assert!(offset_of!(SegmentHeader, journal) == 32);
    assert!(offset_of!(SegmentHeader, timeline) == 48);
    assert!(offset_of!(SegmentHeader, flags) == 52);
    assert!(offset_of!(SegmentHeader, epoch) == 56);
    assert!(offset_of!(SegmentHeader, first_seq) == 64);
    assert!(offset_of!(SegmentHeader, prev_seq) == 72);
    assert!(offset_of!(SegmentHeader, created_us) == 80);
    assert!(offset_of!(SegmentHeader, size_bytes) == 88);
    assert!(offset_of!(SegmentHeader, cipher) == 96);
    assert!(offset_of!(SegmentHeader, key_id) == 100);
    assert!(offset_of!(SegmentHeader, prev_chain) == 104);
    assert!(offset_of!(SegmentHeader, span_begin) == 136);
    assert!(offset_of!(SegmentHeader, span_resync) == 144);
    assert!(offset_of!(SegmentHeader, header_sum) == 4088);
};

impl SegmentHeader {
    /// A header with magic, version and length set and every other field zero.
    #[must_use]
    pub fn blank() -> Self {
        let mut header = Self::new_zeroed();
        header.magic = HEADER_MAGIC;
        header.version = SEGMENT_VERSION.into();
        header.header_bytes = U32::new(4096);
        header
    }

    /// The checksum that belongs into `header_sum`.
    #[must_use]
    pub fn compute_sum(&self) -> U64 {
        checksum::sum(&self.as_bytes()[..offset_of!(Self, header_sum)]).into()
    }
}

/// Where a record that changes bytes lies.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct IndexEntry {
    /// The record.
    pub seq: U64,
    /// First byte of its range on the volume. Of a resize that shrinks: the new end.
    pub offset_bytes: U64,
    /// Length of the range. Of a resize that shrinks: what went.
    pub len_bytes: U64,
    /// Cell of the volume; 0 in the table of wide records.
    pub cell: U32,
    /// Byte of the file at which the record begins.
    pub position: U32,
    /// Length of the whole record in the file.
    pub record_bytes: U32,
    /// [`tidemark_wire::RecordKind`].
    pub kind: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

const _: () = {
    assert!(size_of::<IndexEntry>() == 40);
    assert!(offset_of!(IndexEntry, offset_bytes) == 8);
    assert!(offset_of!(IndexEntry, len_bytes) == 16);
    assert!(offset_of!(IndexEntry, cell) == 24);
    assert!(offset_of!(IndexEntry, position) == 28);
    assert!(offset_of!(IndexEntry, record_bytes) == 32);
    assert!(offset_of!(IndexEntry, kind) == 36);
};

/// A record that people or programs look for by itself.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct MarkEntry {
    /// The record.
    pub seq: U64,
    /// When it was captured.
    pub time_us: U64,
    /// `len_bytes` of the record: the new size of a resize.
    pub len_bytes: U64,
    /// `aux` of the record.
    pub aux: U64,
    /// Of a resync-begin or resync-end: which one. Of a bookmark or cut: the point.
    pub id: [u8; 16],
    /// Byte of the file at which the record begins.
    pub position: U32,
    /// Length of the whole record in the file.
    pub record_bytes: U32,
    /// [`tidemark_wire::RecordKind`].
    pub kind: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

const _: () = {
    assert!(size_of::<MarkEntry>() == 64);
    assert!(offset_of!(MarkEntry, time_us) == 8);
    assert!(offset_of!(MarkEntry, len_bytes) == 16);
    assert!(offset_of!(MarkEntry, aux) == 24);
    assert!(offset_of!(MarkEntry, id) == 32);
    assert!(offset_of!(MarkEntry, position) == 48);
    assert!(offset_of!(MarkEntry, record_bytes) == 52);
    assert!(offset_of!(MarkEntry, kind) == 56);
};

/// From a time or a number to a place in the file, without reading all of it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Waypoint {
    /// The record.
    pub seq: U64,
    /// When it was captured.
    pub time_us: U64,
    /// Byte of the file at which it begins.
    pub position: U32,
    /// Zero.
    pub reserved: U32,
}

const _: () = {
    assert!(size_of::<Waypoint>() == 24);
    assert!(offset_of!(Waypoint, time_us) == 8);
    assert!(offset_of!(Waypoint, position) == 16);
};

/// Fixed end of a sealed segment.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SegmentTrailer {
    /// [`TRAILER_MAGIC`].
    pub magic: [u8; 8],
    /// [`SEGMENT_VERSION`].
    pub version: U32,
    /// `FLAG_*`, as in the header.
    pub flags: U32,
    /// Where the records end and the table of cells begins.
    pub records_end: U64,
    /// Number of records.
    pub record_count: U64,
    /// First record.
    pub first_seq: U64,
    /// Last record.
    pub last_seq: U64,
    /// When the first was captured.
    pub first_time_us: U64,
    /// When the last was captured.
    pub last_time_us: U64,
    /// Entries in the table of cells.
    pub cells_count: U64,
    /// Where the table of wide records begins.
    pub wide_at: U64,
    /// Its entries.
    pub wide_count: U64,
    /// Where the table of marks begins.
    pub marks_at: U64,
    /// Its entries.
    pub marks_count: U64,
    /// Where the table of waypoints begins.
    pub waypoints_at: U64,
    /// Its entries.
    pub waypoints_count: U64,
    /// Where the digests of replaced segments begin; 0 when the segment is not condensed.
    pub replaced_at: U64,
    /// How many there are.
    pub replaced_count: U64,
    /// XXH3-64 of the tables of cells and of wide records.
    pub index_sum: U64,
    /// XXH3-64 of the tables of marks and of waypoints.
    pub marks_sum: U64,
    /// Size of the volume after the last record.
    pub size_bytes: U64,
    /// The record that began the span which is open after the last record; 0 when none is.
    pub span_begin: U64,
    /// The resynchronization that will end it; zeroes while it has not begun.
    pub span_resync: [u8; 16],
    /// SHA-256 of the file before this trailer.
    pub digest: [u8; 32],
    /// SHA-256 of the header's `prev_chain` and `digest`.
    pub chain: [u8; 32],
    /// Zero.
    pub reserved: [u8; 256],
    /// XXH3-64 of the 504 bytes before it.
    pub trailer_sum: U64,
}

const _: () = {
    assert!(size_of::<SegmentTrailer>() == 512);
    assert!(offset_of!(SegmentTrailer, version) == 8);
    assert!(offset_of!(SegmentTrailer, flags) == 12);
    assert!(offset_of!(SegmentTrailer, records_end) == 16);
    assert!(offset_of!(SegmentTrailer, record_count) == 24);
    assert!(offset_of!(SegmentTrailer, first_seq) == 32);
    assert!(offset_of!(SegmentTrailer, last_seq) == 40);
    assert!(offset_of!(SegmentTrailer, first_time_us) == 48);
    assert!(offset_of!(SegmentTrailer, last_time_us) == 56);
    assert!(offset_of!(SegmentTrailer, cells_count) == 64);
    assert!(offset_of!(SegmentTrailer, wide_at) == 72);
    assert!(offset_of!(SegmentTrailer, wide_count) == 80);
    assert!(offset_of!(SegmentTrailer, marks_at) == 88);
    assert!(offset_of!(SegmentTrailer, marks_count) == 96);
    assert!(offset_of!(SegmentTrailer, waypoints_at) == 104);
    assert!(offset_of!(SegmentTrailer, waypoints_count) == 112);
    assert!(offset_of!(SegmentTrailer, replaced_at) == 120);
    assert!(offset_of!(SegmentTrailer, replaced_count) == 128);
    assert!(offset_of!(SegmentTrailer, index_sum) == 136);
    assert!(offset_of!(SegmentTrailer, marks_sum) == 144);
    assert!(offset_of!(SegmentTrailer, size_bytes) == 152);
    assert!(offset_of!(SegmentTrailer, span_begin) == 160);
    assert!(offset_of!(SegmentTrailer, span_resync) == 168);
    assert!(offset_of!(SegmentTrailer, digest) == 184);
    assert!(offset_of!(SegmentTrailer, chain) == 216);
    assert!(offset_of!(SegmentTrailer, trailer_sum) == 504);
};

impl SegmentTrailer {
    /// A trailer with magic and version set and every other field zero.
    #[must_use]
    pub fn blank() -> Self {
        let mut trailer = Self::new_zeroed();
        trailer.magic = TRAILER_MAGIC;
        trailer.version = SEGMENT_VERSION.into();
        trailer
    }

    /// The checksum that belongs into `trailer_sum`.
    #[must_use]
    pub fn compute_sum(&self) -> U64 {
        checksum::sum(&self.as_bytes()[..offset_of!(Self, trailer_sum)]).into()
    }

    /// Where the tables lie one after the other, from the counts alone: starts of wide, marks,
    /// waypoints and the trailer. `None` when they do not fit in 64 bits.
    #[must_use]
    pub fn expected_places(&self) -> Option<[u64; 4]> {
        let entry = size_of::<IndexEntry>() as u64;
        let table = |at: u64, count: U64, each: u64| at.checked_add(count.get().checked_mul(each)?);
        let wide = table(self.records_end.get(), self.cells_count, entry)?;
        let marks = table(wide, self.wide_count, entry)?;
        let waypoints = table(marks, self.marks_count, size_of::<MarkEntry>() as u64)?;
        let end = table(waypoints, self.waypoints_count, size_of::<Waypoint>() as u64)?;
        Some([wide, marks, waypoints, end])
    }
}

/// Cells of the volume that a range touches: first and one behind the last.
#[must_use]
pub fn cells_of(offset_bytes: u64, len_bytes: u64) -> std::ops::Range<u64> {
    if len_bytes == 0 {
        return 0..0;
    }
    offset_bytes / CELL_BYTES..(offset_bytes + len_bytes).div_ceil(CELL_BYTES)
}
