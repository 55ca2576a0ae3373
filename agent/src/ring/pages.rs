//! The page allocator: a bitmap of 64 pages per word, one bit set for each page in use.
//!
//! An extent is a run of pages within one word, so that one exchange takes it and one `and`
//! gives it back, in any order. The bitmap is not in the ring's file: after a kill it is rebuilt
//! from the slots, which own all pages that still matter. An extent that no slot owns was
//! reserved and never claimed, and is free again.

use std::sync::atomic::Ordering;

use super::atomics::Word;

/// Pages of one word, and of the longest extent.
pub const WORD_PAGES: u32 = u64::BITS;

/// A run of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// Index of the first page.
    pub first: u32,
    /// Number of pages, 1 to 64.
    pub count: u32,
}

impl PageRun {
    /// Word and bits of the run, or `None` when it is not within one word.
    #[must_use]
    pub const fn bits(self) -> Option<(usize, u64)> {
        let bit = self.first % WORD_PAGES;
        if self.count == 0 || bit + self.count > WORD_PAGES {
            return None;
        }
        Some(((self.first / WORD_PAGES) as usize, low_bits(self.count) << bit))
    }
}

const fn low_bits(count: u32) -> u64 {
    if count == u64::BITS { u64::MAX } else { (1 << count) - 1 }
}

/// The bitmap.
#[derive(Debug)]
pub struct Pages<W> {
    words: Box<[W]>,
}

impl<W: Word> Pages<W> {
    /// An allocator over as many pages as `words` have bits.
    pub fn new(words: Box<[W]>) -> Self {
        Self { words }
    }

    /// Takes `want` pages (1 to 64), or fewer where no run is that long, or `None` when all are
    /// in use. The search begins at word `hint`.
    ///
    /// A pass over the words that fails wants no more than the longest run that it saw, which is
    /// shorter than before: at most 64 passes.
    pub fn allocate(&self, want: u32, hint: usize) -> Option<PageRun> {
        assert!((1..=WORD_PAGES).contains(&want), "an extent has 1 to 64 pages, not {want}");
        let mut want = want;
        let first = hint % self.words.len();
        while want > 0 {
            let mut longest = 0;
            for word in (first..self.words.len()).chain(0..first) {
                match self.allocate_in(word, want) {
                    Ok(run) => return Some(run),
                    Err(shorter) => longest = longest.max(shorter),
                }
            }
            want = longest;
        }
        None
    }

    /// Takes a run of `want` pages in one word; the error is the longest run there.
    fn allocate_in(&self, word: usize, want: u32) -> Result<PageRun, u32> {
        // Acquire pairs with the release in `free`: who used the pages before is done.
        let mut used = self.words[word].load(Ordering::Acquire);
        loop {
            let starts = run_starts(!used, want);
            if starts == 0 {
                return Err(longest_run(!used));
            }
            let bit = starts.trailing_zeros();
            match self.words[word].exchange(used, used | low_bits(want) << bit) {
                Ok(_) => {
                    let first = u32::try_from(word).expect("pages are counted in 32 bits");
                    return Ok(PageRun { first: first * WORD_PAGES + bit, count: want });
                }
                Err(actual) => used = actual,
            }
        }
    }

    /// Gives a run back.
    pub fn free(&self, run: PageRun) {
        let (word, bits) = run.bits().expect("a run that was allocated lies in one word");
        // Release pairs with the acquire load and exchange in `allocate_in`.
        let before = self.words[word].fetch_and(!bits, Ordering::Release);
        debug_assert_eq!(before & bits, bits, "{run:?} was given back twice");
    }

    /// Takes exactly this run; false when it is not free or not a run of these words. For
    /// recovery, where the slots say which pages are in use.
    pub fn take(&self, run: PageRun) -> bool {
        let Some((word, bits)) = run.bits().filter(|(word, _)| *word < self.words.len()) else {
            return false;
        };
        let used = self.words[word].load(Ordering::Acquire);
        used & bits == 0 && self.words[word].exchange(used, used | bits).is_ok()
    }

    /// Pages in use; others may change it meanwhile.
    pub fn used(&self) -> u32 {
        self.words.iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum()
    }
}

/// The bits at which a run of `count` set bits starts.
fn run_starts(bits: u64, count: u32) -> u64 {
    let mut starts = bits;
    let mut have = 1;
    while have < count {
        let more = have.min(count - have);
        starts &= starts >> more;
        have += more;
    }
    starts
}

/// The longest run of set bits.
fn longest_run(bits: u64) -> u32 {
    let (mut starts, mut len) = (bits, 0);
    while starts != 0 {
        starts &= starts >> 1;
        len += 1;
    }
    len
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn starts_are_where_all_bits_of_the_run_are_set(bits: u64, count in 1u32..=64) {
            let starts = run_starts(bits, count);
            for bit in 0..64 {
                let run = PageRun { first: bit, count };
                let whole = run.bits().is_some_and(|(_, mask)| bits & mask == mask);
                prop_assert_eq!(starts >> bit & 1 == 1, whole);
            }
            prop_assert_eq!(starts != 0, longest_run(bits) >= count);
        }
    }
}
