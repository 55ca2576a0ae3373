//! Ranges of the seed whose bytes are not known: the protected machine could not read them, or the
//! record that brought them was damaged here.
//!
//! What enters: ranges that records cover, and unreadable ones, in the order of the stream. What
//! leaves: the part of a range that can't be given out. Sorted, without overlaps, bounded by
//! [`LOST_MAX`]: a merge that would go beyond it fails, and the journal keeps its segments.

use tidemark_block::ByteRange;
use tidemark_wire::Seq;

/// Ranges of one seed, at most (about 6 MiB of its state file).
pub(super) const LOST_MAX: usize = 65_536;

/// The record was whole on the protected machine, and damaged when it was merged.
pub(super) const DAMAGED_HERE: u64 = 0;

/// One range, and which record says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) range: ByteRange,
    pub(super) seq: Seq,
    /// The error on the protected machine, or [`DAMAGED_HERE`].
    pub(super) errno: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LostRanges(Vec<Lost>);

impl LostRanges {
    /// From a file; `None` when they overlap or are not sorted.
    pub(super) fn from_sorted(list: Vec<Lost>) -> Option<Self> {
        let sorted = list.is_sorted_by(|a, b| a.range.end() <= b.range.start());
        (sorted && list.len() <= LOST_MAX).then_some(Self(list))
    }

    pub(super) fn list(&self) -> &[Lost] {
        &self.0
    }

    /// The first one that overlaps a range, cut to it.
    pub(super) fn first_in(&self, range: ByteRange) -> Option<Lost> {
        let at = self.0.partition_point(|lost| lost.range.end() <= range.start());
        let lost = self.0.get(at)?;
        lost.range.intersect(range).map(|range| Lost { range, ..*lost })
    }

    /// A range has bytes again.
    pub(super) fn remove(&mut self, range: ByteRange) {
        let start = self.0.partition_point(|lost| lost.range.end() <= range.start());
        let end = self.0.partition_point(|lost| lost.range.start() < range.end());
        if start >= end {
            return;
        }
        let (first, last) = (self.0[start], self.0[end - 1]);
        let before = ByteRange::between(first.range.start(), range.start())
            .filter(|part| !part.is_empty())
            .map(|range| Lost { range, ..first });
        let behind = ByteRange::between(range.end(), last.range.end())
            .filter(|part| !part.is_empty())
            .map(|range| Lost { range, ..last });
        self.0.splice(start..end, before.into_iter().chain(behind));
    }

    /// A range has no bytes from here on.
    pub(super) fn add(&mut self, lost: Lost) {
        self.remove(lost.range);
        let at = self.0.partition_point(|other| other.range.end() <= lost.range.start());
        match at.checked_sub(1).map(|before| &mut self.0[before]) {
            Some(before)
                if before.range.end() == lost.range.start()
                    && (before.seq, before.errno) == (lost.seq, lost.errno) =>
            {
                before.range = ByteRange::between(before.range.start(), lost.range.end())
                    .expect("the second ends behind the first");
            }
            _ => self.0.insert(at, lost),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_are_those_of_a_map_of_bytes(
            ops in prop::collection::vec((any::<bool>(), 0u64..60, 1u64..30), 0..40)
        ) {
            let (mut lost, mut model) = (LostRanges::default(), [0; 90]);
            for (seq, (add, at, len)) in (1..).zip(ops) {
                let range = ByteRange::new(at, len).unwrap();
                if add {
                    lost.add(Lost { range, seq: Seq(seq), errno: 5 });
                } else {
                    lost.remove(range);
                }
                for byte in at..at + len {
                    model[usize::try_from(byte).unwrap()] = if add { seq } else { 0 };
                }
                prop_assert!(LostRanges::from_sorted(lost.0.clone()).is_some());
                for (byte, seq) in (0..).zip(model) {
                    let found = lost.first_in(ByteRange::new(byte, 1).unwrap());
                    prop_assert_eq!(found.map_or(0, |lost| lost.seq.0), seq);
                }
            }
        }
    }
}
