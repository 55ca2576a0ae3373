//! From a cell of the volume to the places that hold its bytes at a state.

use std::ops::ControlFlow;
use std::sync::Arc;

use tidemark_block::ByteRange;
use tidemark_wire::{RecordKind, Seq};

use super::format::{CELL_BYTES, IndexEntry};
use super::segment::Segment;
use crate::error::ReadError;
use crate::storage::Storage;

/// A record within the segments of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) seq: Seq,
    /// Number of the segment in the view's list.
    pub(crate) segment: u32,
    pub(crate) position: u32,
    pub(crate) record_bytes: u32,
    /// The record's whole range.
    pub(crate) range: ByteRange,
}

/// Who holds the bytes of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The payload of a record.
    Record(Place),
    /// They are zeroes.
    Zero,
    /// Nobody: the protected machine could not read them.
    Unreadable(Place),
    /// The seed.
    Seed,
}

/// A range of the volume whose bytes are in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) range: ByteRange,
    pub(crate) source: Source,
}

/// The extents of a cell at a state, sorted, without gaps. `segments` are newest first; those
/// behind the one with which the cell is covered are not looked at.
pub(crate) fn resolve<S: Storage>(
    segments: &[Arc<Segment<S>>],
    cell: u32,
    at: Seq,
) -> Result<Box<[Extent]>, ReadError> {
    let whole = ByteRange::new(u64::from(cell) * CELL_BYTES, CELL_BYTES)
        .expect("2^32 cells of 2^18 bytes do not wrap");
    let mut open = vec![whole];
    let mut extents = Vec::new();
    for (number, segment) in (0u32..).zip(segments) {
        segment.visit_cell(cell, at, |entry| {
            if let Some((range, source)) = source_of(entry, number) {
                take(range, source, &mut open, &mut extents);
            }
            if open.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if open.is_empty() {
            break;
        }
    }
    extents.extend(open.into_iter().map(|range| Extent { range, source: Source::Seed }));
    extents.sort_unstable_by_key(|extent: &Extent| extent.range.start());
    Ok(extents.into())
}

/// What an entry says about its range; `None` for one that no writer makes, which is passed over
/// as the index's checksum is not proof against a forger.
fn source_of(entry: &IndexEntry, segment: u32) -> Option<(ByteRange, Source)> {
    let range = ByteRange::new(entry.offset_bytes.get(), entry.len_bytes.get())?;
    let place = Place {
        seq: Seq(entry.seq.get()),
        segment,
        position: entry.position.get(),
        record_bytes: entry.record_bytes.get(),
        range,
    };
    let source = match RecordKind::from_byte(entry.kind)? {
        kind if kind.has_data() => Source::Record(place),
        kind if kind.zeroes() => Source::Zero,
        // What lies behind the new end is gone, also when the volume grows again.
        RecordKind::Resize => Source::Zero,
        RecordKind::Unreadable => Source::Unreadable(place),
        _ => return None,
    };
    Some((range, source))
}

/// Gives the parts of `range` that are still open to `source`.
fn take(range: ByteRange, source: Source, open: &mut Vec<ByteRange>, extents: &mut Vec<Extent>) {
    if !open.iter().any(|piece| piece.overlaps(range)) {
        return;
    }
    let mut left = Vec::with_capacity(open.len() + 1);
    for piece in open.drain(..) {
        let Some(taken) = piece.intersect(range) else {
            left.push(piece);
            continue;
        };
        extents.push(Extent { range: taken, source });
        let before = ByteRange::between(piece.start(), taken.start());
        let behind = ByteRange::between(taken.end(), piece.end());
        left.extend([before, behind].into_iter().flatten().filter(|part| !part.is_empty()));
    }
    *open = left;
}
