//! The index of one segment, in memory while the segment is open and mapped once it is sealed,
//! with the same questions for both.
//!
//! Records enter in the order of the stream; entries leave newest first. [`MemoryIndex`] belongs
//! to the open segment and is rebuilt by a scan after a crash; it is bounded by the segment's
//! size (about 160 bytes for each record of at least 64).

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use tidemark_wire::limits::VOLUME_BYTES_MAX;
use tidemark_wire::{Record, RecordKind, Seq, WallMicros, checksum};
use zerocopy::{FromBytes, IntoBytes};

use super::format::{
    CELL_BYTES, IndexEntry, MarkEntry, NARROW_CELLS_MAX, SegmentTrailer, WAYPOINT_RECORDS,
    Waypoint, cells_of,
};
use super::span::{OpenSpan, Spans};

/// What is true of the records of a segment as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extremes {
    pub(crate) records: u64,
    pub(crate) first_seq: Seq,
    pub(crate) last_seq: Seq,
    pub(crate) first_time: WallMicros,
    pub(crate) last_time: WallMicros,
}

/// The index of an open segment.
#[derive(Debug, Default)]
pub(crate) struct MemoryIndex {
    cells: BTreeMap<(u32, u64), IndexEntry>,
    wide: Vec<IndexEntry>,
    marks: Vec<MarkEntry>,
    waypoints: Vec<Waypoint>,
    extremes: Extremes,
}

/// The range whose bytes a record changes; `None` when it changes none.
fn changed_range(record: &Record<'_>) -> Option<(u64, u64)> {
    let (offset, len) = (record.header.offset_bytes.get(), record.header.len_bytes.get());
    let range = match record.kind {
        RecordKind::Resize => {
            (len, record.header.aux.get().min(VOLUME_BYTES_MAX).saturating_sub(len))
        }
        RecordKind::Unreadable => (offset, len),
        kind if kind.changes_bytes() => (offset, len),
        _ => return None,
    };
    (range.1 > 0).then_some(range)
}

/// The entry that a record gets in the table of marks, if it is one.
pub(crate) fn mark_entry(record: &Record<'_>, position: u32) -> Option<MarkEntry> {
    if record.kind.changes_bytes() || record.kind == RecordKind::Flush {
        return None;
    }
    let mut id = [0; 16];
    if record.kind.has_body() {
        // A body that does not decode is shown as damage by whoever reads it; here it only
        // leaves the mark without an identity.
        let mut scratch = Vec::new();
        if let Ok(body) = record.payload(&mut scratch) {
            let at = if record.kind == RecordKind::Cut { 16 } else { 0 };
            if let Some(bytes) = body.get(at..at + 16) {
                id.copy_from_slice(bytes);
            }
        }
    }
    Some(MarkEntry {
        seq: record.header.seq,
        time_us: record.header.time_us,
        len_bytes: record.header.len_bytes,
        aux: record.header.aux,
        id,
        position: position.into(),
        record_bytes: record_bytes(record).into(),
        kind: record.kind as u8,
        reserved: [0; 7],
    })
}

fn record_bytes(record: &Record<'_>) -> u32 {
    u32::try_from(record.bytes.len()).expect("a decoded record is below its limit")
}

impl MemoryIndex {
    pub(crate) fn extremes(&self) -> Extremes {
        self.extremes
    }

    pub(crate) fn marks(&self) -> &[MarkEntry] {
        &self.marks
    }

    pub(crate) fn waypoints(&self) -> &[Waypoint] {
        &self.waypoints
    }

    /// Takes the next record, which lies at `position` of the file.
    pub(crate) fn note(&mut self, record: &Record<'_>, position: u32) {
        let (seq, time) = (record.header.seq(), WallMicros(record.header.time_us.get()));
        if self.extremes.records == 0 {
            self.extremes.first_seq = seq;
            self.extremes.first_time = time;
        }
        if self.extremes.records.is_multiple_of(WAYPOINT_RECORDS) {
            self.waypoints.push(Waypoint {
                seq: record.header.seq,
                time_us: record.header.time_us,
                position: position.into(),
                reserved: 0.into(),
            });
        }
        self.extremes.records += 1;
        self.extremes.last_seq = seq;
        self.extremes.last_time = time;
        self.marks.extend(mark_entry(record, position));
        if let Some((offset, len)) = changed_range(record) {
            self.note_change(record, position, offset, len);
        }
    }

    fn note_change(&mut self, record: &Record<'_>, position: u32, offset: u64, len: u64) {
        let mut entry = IndexEntry {
            seq: record.header.seq,
            offset_bytes: offset.into(),
            len_bytes: len.into(),
            cell: 0.into(),
            position: position.into(),
            record_bytes: record_bytes(record).into(),
            kind: record.kind as u8,
            reserved: [0; 3],
        };
        let cells = cells_of(offset, len);
        if cells.end - cells.start > NARROW_CELLS_MAX {
            self.wide.push(entry);
            return;
        }
        for cell in cells {
            // A volume of the largest size has 2^32 cells; `check_fields` bounds every range.
            let cell = u32::try_from(cell).expect("ranges end within the largest volume");
            entry.cell = cell.into();
            self.cells.insert((cell, record.header.seq.get()), entry);
        }
    }

    /// The tables as they stand in a sealed segment, and the trailer's fields about them.
    pub(crate) fn encode(&self, records_end: u64, spans: &Spans) -> (Vec<u8>, SegmentTrailer) {
        let mut bytes = Vec::new();
        let at = |bytes: &Vec<u8>| records_end + bytes.len() as u64;
        for entry in self.cells.values() {
            bytes.extend_from_slice(entry.as_bytes());
        }
        let wide_at = at(&bytes);
        bytes.extend_from_slice(self.wide.as_bytes());
        let marks_at = at(&bytes);
        let index_bytes = bytes.len();
        bytes.extend_from_slice(self.marks.as_bytes());
        let waypoints_at = at(&bytes);
        bytes.extend_from_slice(self.waypoints.as_bytes());

        let (span_begin, span_resync) = OpenSpan::to_fields(spans.open());
        let mut trailer = SegmentTrailer::blank();
        trailer.records_end = records_end.into();
        trailer.record_count = self.extremes.records.into();
        trailer.first_seq = self.extremes.first_seq.0.into();
        trailer.last_seq = self.extremes.last_seq.0.into();
        trailer.first_time_us = self.extremes.first_time.0.into();
        trailer.last_time_us = self.extremes.last_time.0.into();
        trailer.cells_count = (self.cells.len() as u64).into();
        trailer.wide_at = wide_at.into();
        trailer.wide_count = (self.wide.len() as u64).into();
        trailer.marks_at = marks_at.into();
        trailer.marks_count = (self.marks.len() as u64).into();
        trailer.waypoints_at = waypoints_at.into();
        trailer.waypoints_count = (self.waypoints.len() as u64).into();
        trailer.index_sum = checksum::sum(&bytes[..index_bytes]).into();
        trailer.marks_sum = checksum::sum(&bytes[index_bytes..]).into();
        trailer.span_begin = span_begin.0.into();
        trailer.span_resync = span_resync;
        (bytes, trailer)
    }

    /// Every entry: those by cell, then the wide ones.
    pub(crate) fn changes(&self) -> impl Iterator<Item = &IndexEntry> {
        self.cells.values().chain(&self.wide)
    }

    /// See [`Tables::visit_cell`].
    pub(crate) fn visit_cell(&self, cell: u32, at: Seq, visit: &mut Visit<'_>) {
        let narrow = self.cells.range((cell, 0)..=(cell, at.0)).rev().map(|(_, entry)| entry);
        newest_first(narrow, wide_of(&self.wide, cell, at), visit);
    }
}

/// Takes an entry; says whether older ones are wanted.
pub(crate) type Visit<'a> = dyn FnMut(&IndexEntry) -> ControlFlow<()> + 'a;

/// The tables of a sealed segment.
#[derive(Clone, Copy)]
pub(crate) struct Tables<'a> {
    cells: &'a [IndexEntry],
    wide: &'a [IndexEntry],
    pub(crate) marks: &'a [MarkEntry],
    pub(crate) waypoints: &'a [Waypoint],
}

impl<'a> Tables<'a> {
    /// Cuts `bytes`, which lie between the records and the trailer, into tables. `None` when
    /// they are not as long as the trailer says.
    pub(crate) fn cut(bytes: &'a [u8], trailer: &SegmentTrailer) -> Option<Self> {
        let count = |count: zerocopy::little_endian::U64| usize::try_from(count.get()).ok();
        let (cells, rest) =
            <[IndexEntry]>::ref_from_prefix_with_elems(bytes, count(trailer.cells_count)?).ok()?;
        let (wide, rest) =
            <[IndexEntry]>::ref_from_prefix_with_elems(rest, count(trailer.wide_count)?).ok()?;
        let (marks, waypoints) = cut_marks(rest, trailer)?;
        Some(Self { cells, wide, marks, waypoints })
    }

    /// Every entry: those by cell, then the wide ones.
    pub(crate) fn changes(&self) -> impl Iterator<Item = &'a IndexEntry> + use<'a> {
        self.cells.iter().chain(self.wide)
    }

    /// Shows the entries of a cell up to a state, newest first, until the visitor has enough.
    pub(crate) fn visit_cell(&self, cell: u32, at: Seq, visit: &mut Visit<'_>) {
        let key = |entry: &IndexEntry| (entry.cell.get(), entry.seq.get());
        let start = self.cells.partition_point(|entry| key(entry) < (cell, 0));
        let end = self.cells.partition_point(|entry| key(entry) <= (cell, at.0));
        newest_first(self.cells[start..end].iter().rev(), wide_of(self.wide, cell, at), visit);
    }
}

/// Cuts the tables of marks and waypoints. `None` when they are not as long as the trailer says.
pub(crate) fn cut_marks<'a>(
    bytes: &'a [u8],
    trailer: &SegmentTrailer,
) -> Option<(&'a [MarkEntry], &'a [Waypoint])> {
    let marks = usize::try_from(trailer.marks_count.get()).ok()?;
    let waypoints = usize::try_from(trailer.waypoints_count.get()).ok()?;
    let (marks, rest) = <[MarkEntry]>::ref_from_prefix_with_elems(bytes, marks).ok()?;
    Some((marks, <[Waypoint]>::ref_from_bytes_with_elems(rest, waypoints).ok()?))
}

fn wide_of(wide: &[IndexEntry], cell: u32, at: Seq) -> impl Iterator<Item = &IndexEntry> {
    let start = u64::from(cell) * CELL_BYTES;
    let end = wide.partition_point(|entry| entry.seq.get() <= at.0);
    wide[..end].iter().rev().filter(move |entry| {
        let (offset, len) = (entry.offset_bytes.get(), entry.len_bytes.get());
        offset < start + CELL_BYTES && start < offset.saturating_add(len)
    })
}

fn newest_first<'a>(
    narrow: impl Iterator<Item = &'a IndexEntry>,
    wide: impl Iterator<Item = &'a IndexEntry>,
    visit: &mut Visit<'_>,
) {
    let (mut narrow, mut wide) = (narrow.peekable(), wide.peekable());
    loop {
        let next = match (narrow.peek(), wide.peek()) {
            (Some(a), Some(b)) if b.seq.get() > a.seq.get() => wide.next(),
            (Some(_), _) => narrow.next(),
            (None, _) => wide.next(),
        };
        match next {
            Some(entry) if visit(entry).is_continue() => {}
            _ => return,
        }
    }
}
