//! What an agent that may have been put back to an older state does not remember: the ranges that
//! the newest records have changed.
//!
//! What enters: the record up to which the agent is sure (`Hello::unsure_after`). What leaves: a
//! bounded list of ranges that covers everything that the durable records behind it have changed,
//! coarser where there is much of it; the whole volume where that can't be told any more, because
//! some of these records are in the seed already or can't be read. The agent compares these ranges
//! beside those that its write-intent log marks. After a plain power cut its log marks nearly all
//! of them anyway, so the answer costs little; an agent whose whole machine was put back has no
//! other way to know of them.

use std::sync::Arc;

use tidemark_wire::Seq;
use tidemark_wire::session::UNSURE_RANGES_MAX;

use crate::error::JournalError;
use crate::journal::JournalReader;
use crate::storage::Storage;

/// Ranges begin and end at multiples of this, in bytes.
const GRAIN_BYTES: u64 = 1 << 20;
/// Ranges that are kept before they are drawn together.
const KEPT_MAX: usize = 1 << 16;
/// Records that are looked at for one answer: their tables have 40 bytes each.
const RECORDS_MAX: u64 = 1 << 26;

/// What the durable records behind `after` have changed: first bytes and lengths.
pub(super) fn changed_behind<S: Storage>(reader: &JournalReader<S>, after: Seq) -> Vec<(u64, u64)> {
    let durable = reader.durable();
    if durable <= after {
        return Vec::new();
    }
    let size_bytes = reader.size_at(durable);
    match look(reader, after, size_bytes) {
        Ok(Some(ranges)) => ranges,
        Ok(None) => vec![(0, size_bytes)],
        Err(error) => {
            tracing::warn!("what record {after} was followed by can't be told: {error}");
            vec![(0, size_bytes)]
        }
    }
}

/// `None` when it can't be told.
fn look<S: Storage>(
    reader: &JournalReader<S>,
    after: Seq,
    size_bytes: u64,
) -> Result<Option<Vec<(u64, u64)>>, JournalError> {
    // Both at one moment: a merge in between would take segments away behind the first look.
    let (base_at, segments) = {
        let published = reader.published();
        (published.base.at, Arc::clone(&published.segments))
    };
    if after < base_at {
        return Ok(None);
    }
    let newer = segments.iter().filter(|segment| segment.extremes().last_seq > after);
    if newer.clone().map(|segment| segment.extremes().records).sum::<u64>() > RECORDS_MAX {
        return Ok(None);
    }
    let mut ranges = Ranges::new(size_bytes);
    for segment in newer {
        segment.visit_changes(|entry| {
            if entry.seq.get() > after.0 {
                ranges.add(entry.offset_bytes.get(), entry.len_bytes.get());
            }
        })?;
    }
    Ok(Some(ranges.into_few()))
}

/// Ranges of a volume, drawn together where they touch.
struct Ranges {
    size_bytes: u64,
    grain_bytes: u64,
    /// First byte and end.
    kept: Vec<(u64, u64)>,
}

impl Ranges {
    fn new(size_bytes: u64) -> Self {
        Self { size_bytes, grain_bytes: GRAIN_BYTES, kept: Vec::new() }
    }

    fn add(&mut self, start: u64, len: u64) {
        let range = self.coarse((start, start.saturating_add(len)));
        let is_new = self.kept.last() != Some(&range);
        if range.0 < range.1 && is_new {
            self.kept.push(range);
        }
        if self.kept.len() > KEPT_MAX {
            self.draw_together(KEPT_MAX / 2);
        }
    }

    fn coarse(&self, (start, end): (u64, u64)) -> (u64, u64) {
        let grain = self.grain_bytes;
        let end = end.checked_next_multiple_of(grain).unwrap_or(u64::MAX);
        (start - start % grain, end.min(self.size_bytes))
    }

    /// Leaves so many ranges at most.
    fn draw_together(&mut self, max: usize) {
        loop {
            self.kept.sort_unstable();
            let mut joined: Vec<(u64, u64)> = Vec::new();
            for (start, end) in &self.kept {
                match joined.last_mut() {
                    Some(last) if *start <= last.1 => last.1 = last.1.max(*end),
                    _ => joined.push((*start, *end)),
                }
            }
            self.kept = joined;
            if self.kept.len() <= max {
                return;
            }
            self.grain_bytes *= 2;
            self.kept = self.kept.iter().map(|range| self.coarse(*range)).collect();
        }
    }

    fn into_few(mut self) -> Vec<(u64, u64)> {
        self.draw_together(UNSURE_RANGES_MAX);
        self.kept.iter().map(|(start, end)| (*start, end - start)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn ranges_that_touch_become_one_and_end_with_the_volume() {
        let mut ranges = Ranges::new(10 * MIB + 512);
        for (start, len) in [(5 * MIB, 1), (0, 4096), (MIB - 512, 1024), (10 * MIB, 512), (7, 0)] {
            ranges.add(start, len);
        }
        ranges.add(20 * MIB, 512);
        ranges.add(9 * MIB, u64::MAX);
        let few = ranges.into_few();
        assert_eq!(few, [(0, 2 * MIB), (5 * MIB, MIB), (9 * MIB, MIB + 512)]);
    }

    #[test]
    fn many_ranges_become_few_that_cover_them() {
        let size_bytes = 1 << 44;
        let mut ranges = Ranges::new(size_bytes);
        let places: Vec<u64> = (0..3 * KEPT_MAX as u64).map(|n| n * 67 * MIB + 512).collect();
        for place in &places {
            ranges.add(*place, 512);
        }
        let few = ranges.into_few();
        assert!(few.len() <= UNSURE_RANGES_MAX, "{}", few.len());
        for place in places {
            assert!(few.iter().any(|(start, len)| (*start..start + len).contains(&place)));
        }
        assert!(few.iter().all(|(start, len)| start + len <= size_bytes));
    }
}
