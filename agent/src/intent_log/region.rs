//! One region's word: its bit, its doubt, the changes in flight and when the last one was.
//!
//! ```text
//!  bit 0       bit 1     bit 2      bits 4 to 19        bits 20 to 63
//!  on disk     wanted    doubted    changes in flight   flush epoch of the last change
//! ```
//! Everything that decides whether a bit may clear is in this one word (what the collector is known
//! to lack apart, which is set only by a change in flight or before its record is released), so a
//! clear is one exchange of the whole word. A change counts itself in flight *before* it looks at
//! the bit: either its exchange comes first, and the clear's fails, or the clear's comes first, and
//! the change finds no bit and waits for a new one. A change that came and went in between left a
//! newer epoch behind.

use std::sync::atomic::Ordering;

use crate::ring::atomics::Word;

/// The bit is on stable storage.
const SET: u64 = 1;
/// The bit has to be put there.
const WANTED: u64 = 1 << 1;
/// Which leaves differ is not known.
const DOUBT: u64 = 1 << 2;
const ONE_IN_FLIGHT: u64 = 1 << 4;
const EPOCH_SHIFT: u32 = 20;
const IN_FLIGHT_MAX: u64 = (1 << (EPOCH_SHIFT - 4)) - 1;

/// Counts the flushes of a backing store from 1 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlushEpoch(pub u64);

impl FlushEpoch {
    /// Before the first flush.
    pub const NEVER: Self = Self(0);
}

/// Words that hold a volume's flush epochs, in memory or in a loom model.
pub struct Epochs<'a, W> {
    /// The present epoch; begins with 1.
    pub now: &'a W,
    /// The newest epoch whose flush succeeded; begins with 0.
    pub good: &'a W,
}

impl<W: Word> Epochs<'_, W> {
    /// The present epoch, for a change that has just ended.
    ///
    /// The fence pairs with the one in [`Epochs::flush_begins`]: either this sees the epoch that
    /// the flush began, or the flush covers what ended before this call.
    pub fn of_change(&self) -> FlushEpoch {
        W::fence();
        FlushEpoch(self.now.load(Ordering::Acquire))
    }

    /// A flush begins: it covers all changes that ended in the epoch given, or before.
    pub fn flush_begins(&self) -> FlushEpoch {
        let mut now = self.now.load(Ordering::Acquire);
        while let Err(other) = self.now.exchange(now, now + 1) {
            now = other;
        }
        W::fence();
        FlushEpoch(now)
    }

    /// The flush that began with `epoch` succeeded.
    pub fn flush_ended(&self, epoch: FlushEpoch) {
        // Release pairs with the load in `good`: who sees the epoch sees what the flush covered.
        self.good.fetch_max(epoch.0, Ordering::AcqRel);
    }

    /// The newest epoch that is covered by a flush.
    pub fn good(&self) -> FlushEpoch {
        FlushEpoch(self.good.load(Ordering::Acquire))
    }
}

/// What has to be so that a bit may clear, its region apart.
#[derive(Clone, Copy, Debug)]
pub struct ClearUntil {
    /// The last change was in this epoch or before: a flush covers it, and whatever it put in the
    /// stream is durable at the collector.
    pub epoch: FlushEpoch,
}

/// The word of one region.
#[derive(Clone, Copy)]
pub struct Region<'a, W>(pub &'a W);

impl<W: Word> Region<'_, W> {
    /// Exchanges the word for what `change` makes of it, `None` when nothing; gives what it was.
    fn update(self, change: impl Fn(u64) -> Option<u64>) -> Result<u64, u64> {
        let mut was = self.0.load(Ordering::Acquire);
        loop {
            let Some(new) = change(was) else { return Err(was) };
            match self.0.exchange(was, new) {
                Ok(_) => return Ok(was),
                Err(other) => was = other,
            }
        }
    }

    /// A change begins: it counts as in flight, and wants the bit. True when the bit is on stable
    /// storage.
    pub fn enter(self, epoch: FlushEpoch) -> bool {
        let was = self.update(|word| {
            assert!((word >> 4) & IN_FLIGHT_MAX < IN_FLIGHT_MAX, "changes in flight are bounded");
            let wanted = if word & SET == 0 { WANTED } else { 0 };
            Some(with_epoch(word + ONE_IN_FLIGHT, epoch) | wanted)
        });
        was.is_ok_and(|word| word & SET != 0)
    }

    /// The change ended in `epoch`.
    pub fn leave(self, epoch: FlushEpoch) {
        let was = self.update(|word| Some(with_epoch(word - ONE_IN_FLIGHT, epoch)));
        debug_assert!(was.is_ok_and(in_flight), "it had entered");
    }

    /// Wants the bit, where it is neither set nor wanted yet. True when that is news.
    pub fn want(self) -> bool {
        self.update(|word| (word & (SET | WANTED) == 0).then_some(word | WANTED)).is_ok()
    }

    /// The wanted bit is on stable storage now.
    pub fn set(self) {
        // Nothing to do where nobody wants it.
        let _ = self.update(|word| (word & WANTED != 0).then_some((word | SET) & !WANTED));
    }

    /// The bit does not stay on stable storage.
    pub fn drop_bit(self) {
        let _ = self.update(|word| Some(word & !(SET | WANTED)));
    }

    /// Wants the bit, as of a change that no flush has covered yet.
    pub fn suspect(self, epoch: FlushEpoch) {
        let _ = self.update(|word| {
            let wanted = if word & SET == 0 { WANTED } else { 0 };
            Some(with_epoch(word, epoch) | wanted)
        });
    }

    /// Found on stable storage at the start: set, and of a change that no flush has covered yet.
    pub fn found(self, epoch: FlushEpoch) {
        let _ = self.update(|word| Some(with_epoch(word, epoch) | SET));
    }

    /// Which leaves differ is not known. Gives whether that is news, and whether the bit is on
    /// stable storage; it is wanted where it is not.
    pub fn doubt(self) -> Doubted {
        let was = self.update(|word| {
            let wanted = if word & SET == 0 { WANTED } else { 0 };
            Some(word | DOUBT | wanted)
        });
        let was = was.unwrap_or_else(|word| word);
        Doubted { is_new: was & DOUBT == 0, is_set: was & SET != 0 }
    }

    /// Takes the doubt back. True when there was one.
    pub fn trust(self) -> bool {
        self.update(|word| (word & DOUBT != 0).then_some(word & !DOUBT)).is_ok()
    }

    /// Clears the bit when the region is known to be equal: not in doubt, nothing in flight, the
    /// last change not newer than `until`, and `lacks_nothing`, which is asked after the word was
    /// read. True when it cleared.
    pub fn clear(self, until: ClearUntil, lacks_nothing: impl FnOnce() -> bool) -> bool {
        let word = self.0.load(Ordering::Acquire);
        let may = word & SET != 0
            && word & (DOUBT | WANTED) == 0
            && !in_flight(word)
            && epoch_of(word) <= until.epoch;
        may && lacks_nothing() && self.0.exchange(word, word & !SET).is_ok()
    }

    /// True when the bit is on stable storage.
    pub fn is_set(self) -> bool {
        self.0.load(Ordering::Acquire) & SET != 0
    }

    /// True when the bit belongs on stable storage.
    pub fn is_marked(self) -> bool {
        self.0.load(Ordering::Acquire) & (SET | WANTED) != 0
    }

    /// True when which leaves differ is not known.
    pub fn is_doubted(self) -> bool {
        self.0.load(Ordering::Acquire) & DOUBT != 0
    }

    /// True when a change is in flight, or newer than `good`.
    pub fn is_unflushed(self, good: FlushEpoch) -> bool {
        let word = self.0.load(Ordering::Acquire);
        in_flight(word) || epoch_of(word) > good
    }
}

/// What [`Region::doubt`] found.
#[derive(Clone, Copy, Debug)]
pub struct Doubted {
    /// It was not in doubt before.
    pub is_new: bool,
    /// The bit is on stable storage.
    pub is_set: bool,
}

fn in_flight(word: u64) -> bool {
    (word >> 4) & IN_FLIGHT_MAX != 0
}

fn epoch_of(word: u64) -> FlushEpoch {
    FlushEpoch(word >> EPOCH_SHIFT)
}

/// `word` with the newer of the two epochs.
fn with_epoch(word: u64, epoch: FlushEpoch) -> u64 {
    let newer = epoch_of(word).max(epoch);
    word & ((1 << EPOCH_SHIFT) - 1) | newer.0 << EPOCH_SHIFT
}
