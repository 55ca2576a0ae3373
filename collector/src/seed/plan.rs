//! What a merge has to touch.
//!
//! The indexes of segments enter; the cells leave that are computed block by block, and the runs
//! of cells between them that one wide record makes zero, so that a trim of a whole disk costs
//! one step and not one for each cell. Records with data touch two cells at the most, so what is
//! wide is zeroes or unreadable.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use tidemark_block::ByteRange;
use tidemark_wire::{RecordKind, Seq};

use crate::error::ReadError;
use crate::journal::Segment;
use crate::journal::format::{CELL_BYTES, IndexEntry, NARROW_CELLS_MAX, cells_of};
use crate::storage::Storage;

/// What a merge has to touch.
pub(super) struct Plan {
    /// Sorted, each once.
    pub(super) cells: Vec<u32>,
    /// Sorted, between the cells.
    pub(super) runs: Vec<Run>,
}

/// Cells that one record covers whole and is the newest for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) cells: Range<u64>,
    pub(super) wide: Wide,
}

/// A record that touches more than two cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Wide {
    pub(super) seq: Seq,
    /// Number of its segment.
    pub(super) segment: usize,
    pub(super) position: u32,
    pub(super) unreadable: bool,
}

/// Plans for segments of a volume of `span_bytes`, its largest size between here and there.
pub(super) fn plan<S: Storage>(
    segments: &[Arc<Segment<S>>],
    span_bytes: u64,
) -> Result<Plan, ReadError> {
    let mut cells = BTreeSet::new();
    let mut wides = Vec::new();
    for (number, segment) in segments.iter().enumerate() {
        segment.visit_changes(|entry| {
            let range = ByteRange::new(entry.offset_bytes.get(), entry.len_bytes.get());
            let volume = ByteRange::new(0, span_bytes);
            let within = range.zip(volume).and_then(|(range, volume)| range.intersect(volume));
            if let Some(range) = within {
                note(entry, number, range, &mut cells, &mut wides);
            }
        })?;
    }
    let mut runs = Vec::new();
    for (range, wide) in newest(wides) {
        let mut start = range.start;
        for cell in cells.range(to_cell(range.start)..to_cell(range.end)) {
            push(&mut runs, start..u64::from(*cell), wide);
            start = u64::from(*cell) + 1;
        }
        push(&mut runs, start..range.end, wide);
    }
    Ok(Plan { cells: cells.into_iter().collect(), runs })
}

fn to_cell(cell: u64) -> u32 {
    u32::try_from(cell).unwrap_or(u32::MAX)
}

fn push(runs: &mut Vec<Run>, cells: Range<u64>, wide: Wide) {
    if !cells.is_empty() {
        runs.push(Run { cells, wide });
    }
}

fn note(
    entry: &IndexEntry,
    number: usize,
    range: ByteRange,
    cells: &mut BTreeSet<u32>,
    wides: &mut Vec<(Range<u64>, Wide)>,
) {
    let touched = cells_of(entry.offset_bytes.get(), entry.len_bytes.get());
    if touched.end - touched.start <= NARROW_CELLS_MAX {
        let start = u64::from(entry.cell.get()) * CELL_BYTES;
        if start < range.end() {
            cells.insert(entry.cell.get());
        }
        return;
    }
    let whole = range.start().div_ceil(CELL_BYTES)..range.end() / CELL_BYTES;
    // Its edges; also the last cell of a volume that does not end with one.
    if !range.start().is_multiple_of(CELL_BYTES) {
        cells.insert(to_cell(range.start() / CELL_BYTES));
    }
    if !range.end().is_multiple_of(CELL_BYTES) {
        cells.insert(to_cell(range.end() / CELL_BYTES));
    }
    if !whole.is_empty() {
        let wide = Wide {
            seq: Seq(entry.seq.get()),
            segment: number,
            position: entry.position.get(),
            unreadable: RecordKind::from_byte(entry.kind) == Some(RecordKind::Unreadable),
        };
        wides.push((whole, wide));
    }
}

/// Cuts overlapping ranges where one begins or ends, and gives each piece to the newest.
fn newest(wides: Vec<(Range<u64>, Wide)>) -> Vec<(Range<u64>, Wide)> {
    let mut edges: Vec<(u64, bool, Wide)> = Vec::with_capacity(2 * wides.len());
    for (range, wide) in wides {
        edges.push((range.start, true, wide));
        edges.push((range.end, false, wide));
    }
    edges.sort_unstable();
    let (mut active, mut pieces, mut from) = (BTreeSet::new(), Vec::new(), 0);
    for (at, begins, wide) in edges {
        if let Some(newest) = active.last().filter(|_| at > from) {
            pieces.push((from..at, *newest));
        }
        if begins {
            active.insert(wide);
        } else {
            active.remove(&wide);
        }
        from = at;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wide(seq: u64) -> Wide {
        Wide { seq: Seq(seq), segment: 0, position: 0, unreadable: false }
    }

    proptest! {
        #[test]
        fn each_cell_goes_to_the_newest(ranges in prop::collection::vec((0u64..40, 1u64..20), 0..20)) {
            let mut model = vec![0; 64];
            let wides = (1..).zip(&ranges).map(|(seq, (at, len))| {
                for cell in *at..at + len {
                    model[usize::try_from(cell).expect("small")] = seq;
                }
                (*at..at + len, wide(seq))
            });
            let mut found = vec![0; 64];
            for (range, wide) in newest(wides.collect()) {
                for cell in range {
                    let cell = usize::try_from(cell).expect("small");
                    prop_assert_eq!(found[cell], 0);
                    found[cell] = wide.seq.0;
                }
            }
            prop_assert_eq!(found, model);
        }
    }
}
