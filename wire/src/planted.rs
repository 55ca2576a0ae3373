//! Mistakes on purpose, for the simulator to find: a check of the checks.
//!
//! Each of them is a place in the shipped code that asks [`is`] whether to go wrong. Without the
//! feature `planted-bugs`, which only the simulator's own build has, the answer is a constant
//! `false` and nothing of it is left in the program. `scripts/accept/simulate` turns one on at a
//! time and fails when it is not found.

macro_rules! bugs {
    ($($(#[$doc:meta])* $bug:ident = $name:literal, invariant $invariant:literal;)*) => {
        /// A mistake.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Bug {
            $($(#[$doc])* $bug,)*
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$bug,)*];

            /// The name that the command line takes.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$bug => $name,)*
                }
            }

            /// Which of the seven invariants it breaks.
            #[must_use]
            pub const fn invariant(self) -> u8 {
                match self {
                    $(Self::$bug => $invariant,)*
                }
            }
        }
    };
}

bugs! {
    /// A write takes no lock on its range.
    RangeUnlocked = "range-unlocked", invariant 1;
    /// The next process gives out numbers that were reserved, and used, by the one before.
    NumberReused = "number-reused", invariant 1;
    /// A record that is still in flight is passed over by what comes behind it.
    InFlightPassed = "in-flight-passed", invariant 1;
    /// What was in flight when the agent was killed is not read back.
    InFlightForgotten = "in-flight-forgotten", invariant 2;
    /// The ring is lost in a power cut, and the next process believes it was empty.
    LostRingTrusted = "lost-ring-trusted", invariant 2;
    /// A full ring is not noted: changes are missing from the stream without a gap.
    GapUnrecorded = "gap-unrecorded", invariant 2;
    /// A change goes on before its bit of the write-intent log is on stable storage.
    IntentBitDropped = "intent-bit-dropped", invariant 2;
    /// A bit of the write-intent log clears without a flush of the backing store.
    ClearedWithoutFlush = "cleared-without-flush", invariant 2;
    /// The journal believes that a segment is synced, without a sync.
    SyncSkipped = "sync-skipped", invariant 3;
    /// Records are acknowledged when they are appended, before the sync.
    AcknowledgedEarly = "acknowledged-early", invariant 3;
    /// A write waits until the full ring has room.
    FullRingBlocks = "full-ring-blocks", invariant 4;
    /// A write fails when the ring is full.
    FullRingFails = "full-ring-fails", invariant 4;
    /// States within a span are offered.
    SpanOffered = "span-offered", invariant 5;
    /// A point is listed when its record has arrived, before it is durable.
    PointListedEarly = "point-listed-early", invariant 5;
    /// A merge goes past the newest state that can be opened.
    LastGoodMerged = "last-good-merged", invariant 5;
    /// The collector checks no checksum of what it receives.
    ReceiptUnchecked = "receipt-unchecked", invariant 6;
    /// A view gives out bytes that it has not checked.
    ReadUnchecked = "read-unchecked", invariant 6;
    /// What a failed write left on the backing store is not read back.
    FailedWriteForgotten = "failed-write-forgotten", invariant 7;
    /// A client is told that a flush has succeeded that has failed.
    FlushFailureHidden = "flush-failure-hidden", invariant 7;
    /// A client is told that a write has succeeded that has failed.
    FailureHidden = "failure-hidden", invariant 7;
}

#[cfg(feature = "planted-bugs")]
static PLANTED: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(u8::MAX);

/// True when this mistake is to be made.
#[cfg(feature = "planted-bugs")]
#[inline]
#[must_use]
pub fn is(bug: Bug) -> bool {
    // Relaxed: it is set once, before anything runs.
    PLANTED.load(std::sync::atomic::Ordering::Relaxed) == bug as u8
}

/// False: this program makes no mistakes on purpose.
#[cfg(not(feature = "planted-bugs"))]
#[inline]
#[must_use]
pub const fn is(_bug: Bug) -> bool {
    false
}

/// Makes this mistake from now on, instead of another.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Bug) {
    // Relaxed: see `is`.
    PLANTED.store(bug as u8, std::sync::atomic::Ordering::Relaxed);
}
