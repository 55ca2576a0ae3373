//! What an operation writes: bytes that name it.
//!
//! The disk is a row of 8-byte words. The word at index `i`, written by operation `n`, holds `n`
//! in one half and a check of `n`, `i` and the run's seed in the other, so that one word of any
//! state tells who wrote it, and that it is where it belongs. A write that begins or ends inside
//! a word has the bytes of that word which lie in its range.
//!
//! Operations of odd number have words that all differ (they don't compress); those of even
//! number repeat one word through a sector of 512 bytes (they do), so that both ways to store a
//! payload are met. Operation 0 stands for the disk as it was before the first write.

use crate::random::mix;

/// Bytes of one word.
pub(crate) const WORD_BYTES: u64 = 8;
const WORDS_IN_SECTOR: u64 = 64;
/// The disk of the beginning changes its kind at each such step.
const BASE_STEP_BYTES: u64 = 1 << 20;

/// Number of an operation.
pub(crate) type OpNumber = u32;

/// How the disk began at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// Never written.
    Hole,
    /// Written, all zeroes.
    Zeroes,
    /// The pattern of operation 0.
    Pattern,
}

/// How the disk began at byte `offset`, and where that ends.
pub(crate) const fn base_at(offset: u64) -> (Base, u64) {
    let step = offset / BASE_STEP_BYTES;
    let base = match step % 4 {
        0 => Base::Hole,
        1 => Base::Zeroes,
        _ => Base::Pattern,
    };
    (base, (step + 1) * BASE_STEP_BYTES)
}

/// The words of one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern {
    pub(crate) seed: u64,
}

impl Pattern {
    /// The word at `index` as operation `op` writes it.
    pub(crate) const fn word(self, op: OpNumber, index: u64) -> u64 {
        let place = if op % 2 == 1 { index } else { index / WORDS_IN_SECTOR };
        let check = mix(self.seed ^ ((op as u64) << 20), place) & 0xffff_ffff;
        // Masked, so that also a single byte of it looks like nothing else.
        (((op as u64) << 32) | check) ^ self.mask(place)
    }

    /// Who wrote the word at `index`; `None` when no operation did, or several did.
    pub(crate) fn writer(self, word: u64, index: u64) -> Option<OpNumber> {
        [index / WORDS_IN_SECTOR, index].into_iter().find_map(|place| {
            let number = OpNumber::try_from((word ^ self.mask(place)) >> 32).ok()?;
            (self.word(number, index) == word).then_some(number)
        })
    }

    /// The byte at `offset` as operation `op` writes it.
    pub(crate) fn byte(self, op: OpNumber, offset: u64) -> u8 {
        let word = self.word(op, offset / WORD_BYTES).to_le_bytes();
        word[(offset % WORD_BYTES) as usize]
    }

    /// Fills `out` with what operation `op` writes from `offset` on.
    pub(crate) fn fill(self, op: OpNumber, offset: u64, out: &mut [u8]) {
        let mut at = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let word = self.word(op, at / WORD_BYTES).to_le_bytes();
            let from = (at % WORD_BYTES) as usize;
            let len = (word.len() - from).min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            now.copy_from_slice(&word[from..from + len]);
            at += len as u64;
            rest = later;
        }
    }

    /// Fills `out` with the disk of the beginning from `offset` on.
    pub(crate) fn fill_base(self, offset: u64, out: &mut [u8]) {
        let mut at = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let (base, end) = base_at(at);
            let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            match base {
                Base::Hole | Base::Zeroes => now.fill(0),
                Base::Pattern => self.fill(0, at, now),
            }
            at += len as u64;
            rest = later;
        }
    }

    const fn mask(self, place: u64) -> u64 {
        mix(self.seed.rotate_left(17), place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_names_its_writer_and_its_place() {
        let pattern = Pattern { seed: 7 };
        for op in [0, 1, 2, 3, 4_000_000_000, u32::MAX] {
            for index in [0, 1, 63, 64, 1 << 40] {
                let word = pattern.word(op, index);
                assert_ne!(word, 0);
                assert_eq!(pattern.writer(word, index), Some(op));
                assert_eq!(pattern.writer(word, index + WORDS_IN_SECTOR), None, "{op} {index}");
                assert_eq!(pattern.writer(word ^ (1 << 40), index), None, "{op} {index}");
            }
        }
        assert_eq!(pattern.writer(0, 5), None);
    }

    #[test]
    fn a_range_may_begin_and_end_inside_words() {
        let pattern = Pattern { seed: 7 };
        let mut whole = [0; 64];
        pattern.fill(9, 4096, &mut whole);
        let mut part = [0; 30];
        pattern.fill(9, 4096 + 5, &mut part);
        assert_eq!(part, whole[5..35]);
        assert_eq!(pattern.byte(9, 4096 + 13), whole[13]);
    }
}
