//! What the witness does next: kinds, places and lengths, from the seed.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::log::Kind;
use crate::random::Random;

const SECTOR_BYTES: u64 = 512;
const BLOCK_BYTES: u64 = 4096;
const LEN_MAX: u64 = 64 * 1024;
/// Places that were used last, to be met again while they are still in flight.
const RECENT: usize = 16;

/// Places that all connections used last.
#[derive(Default)]
pub(crate) struct Recent {
    offsets: [AtomicU64; RECENT],
    // Relaxed throughout: any of the offsets will do, no other memory depends on them.
    next: AtomicUsize,
}

impl Recent {
    fn note(&self, offset: u64) {
        let place = self.next.fetch_add(1, Ordering::Relaxed) % RECENT;
        self.offsets[place].store(offset, Ordering::Relaxed);
    }

    fn any(&self, random: &mut Random) -> u64 {
        self.offsets[random.place(RECENT)].load(Ordering::Relaxed)
    }
}

/// One operation to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) kind: Kind,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

/// The steps of one connection.
pub(crate) struct Plan<'a> {
    random: Random,
    size_bytes: u64,
    recent: &'a Recent,
}

impl<'a> Plan<'a> {
    /// The disk has at least 1 MiB.
    pub(crate) fn new(random: Random, size_bytes: u64, recent: &'a Recent) -> Self {
        Self { random, size_bytes, recent }
    }

    pub(crate) fn next(&mut self) -> Step {
        let kind = match self.random.below(100) {
            0..4 => return Step { kind: Kind::Flush, offset: 0, len: 0 },
            4..9 => Kind::Trim,
            9..15 => Kind::Zeroes { no_hole: self.random.chance(30) },
            _ => Kind::Write { fua: self.random.chance(4) },
        };
        let unit = match self.random.below(100) {
            0..55 => BLOCK_BYTES,
            55..80 => SECTOR_BYTES,
            _ => 1,
        };
        let len = self.len(unit);
        let offset = self.offset(unit, len);
        self.recent.note(offset);
        Step { kind, offset, len: u32::try_from(len).expect("at most 64 KiB") }
    }

    /// Short ones more often, all from 4 KiB to 64 KiB but for a few.
    fn len(&mut self, unit: u64) -> u64 {
        let max = if self.random.chance(60) { 16 * 1024 } else { LEN_MAX };
        let min = if unit == 1 && self.random.chance(20) { 1 } else { BLOCK_BYTES };
        let len = min + self.random.below(max - min + 1);
        (len - len % unit).max(unit)
    }

    fn offset(&mut self, unit: u64, len: u64) -> u64 {
        let last = self.size_bytes - len;
        let offset = match self.random.below(100) {
            // A part of the disk that is written again and again.
            0..20 => self.size_bytes / 3 + self.random.below(self.size_bytes / 16),
            // Beside or over what is in flight.
            20..35 => {
                let near = self.recent.any(&mut self.random) + self.random.below(LEN_MAX);
                near.saturating_sub(LEN_MAX / 2)
            }
            // The first and the last bytes of the disk.
            35..36 => 0,
            36..37 => last,
            _ => self.random.below(last + 1),
        };
        let offset = offset.min(last);
        offset - offset % unit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_stay_on_the_disk_and_meet_each_other() {
        let recent = Recent::default();
        let size_bytes = 8 << 20;
        let mut plan = Plan::new(Random::new(1, 2), size_bytes, &recent);
        let steps: Vec<Step> = (0..20_000).map(|_| plan.next()).collect();
        for step in &steps {
            assert!(step.offset + u64::from(step.len) <= size_bytes, "{step:?}");
            assert_eq!(step.len == 0, step.kind == Kind::Flush, "{step:?}");
        }
        let odd = steps.iter().filter(|step| step.offset % SECTOR_BYTES != 0).count();
        let aligned = steps.iter().filter(|step| step.offset % BLOCK_BYTES == 0).count();
        assert!(odd > 2000 && aligned > 8000, "{odd} odd, {aligned} aligned");
        let overlaps = steps.windows(16).filter(|near| {
            let (last, before) = near.split_last().expect("eight");
            let end = last.offset + u64::from(last.len);
            before.iter().any(|b| b.offset < end && last.offset < b.offset + u64::from(b.len))
        });
        let overlaps = overlaps.count();
        assert!(overlaps > 2000, "{overlaps}");
    }
}
