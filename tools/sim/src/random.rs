//! The one source of chance in a run: the same seed gives the same run.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rand_core::{Rng, SeedableRng};
use rand_xorshift::XorShiftRng;

/// A stream of numbers that everything in a run draws from, in the order in which it runs.
pub(crate) struct Random(Mutex<XorShiftRng>);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Mutex::new(XorShiftRng::seed_from_u64(seed)))
    }

    fn rng(&self) -> MutexGuard<'_, XorShiftRng> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn number(&self) -> u64 {
        self.rng().next_u64()
    }

    /// A number below `bound`, which is at least 1.
    pub(crate) fn below(&self, bound: u64) -> u64 {
        // The slight preference for small numbers does not matter here.
        self.number() % bound
    }

    /// A number from `low` up to and with `high`.
    pub(crate) fn between(&self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// A place in a list of `count` things, at least 1.
    pub(crate) fn place(&self, count: usize) -> usize {
        usize::try_from(self.below(count as u64)).expect("below a usize")
    }

    /// True `percent` times in a hundred.
    pub(crate) fn chance(&self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&self, of: &[T]) -> T {
        of[self.place(of.len())]
    }

    /// Bytes that are not all zero and do not shrink.
    pub(crate) fn fill(&self, bytes: &mut [u8]) {
        self.rng().fill_bytes(bytes);
    }
}

impl tidemark_agent::random::Random for Random {
    fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.fill(&mut bytes);
        bytes
    }
}
