//! Whether a stream is whole, and the copy that makes it whole again.
//!
//! ```text
//!            lose                    begin                  end
//!  Whole ───────────▶ Wanted ─────────────────▶ Copying ───────────▶ Whole
//!    │                  ▲  ▲                       │
//!    └──── want_copy ───┘  └── lose, want_copy ────┘
//! ```
//! The ring's own flag says whether writers capture; it lies in shared memory, so that it also
//! tells a successor of a killed agent. This state says why a copy is wanted and which one runs.
//!
//! A writer looks at the flag while it holds its range and captures or not. It may claim its
//! record after another lost the capture: then both writes were in flight together, and a state
//! with the one and without the other is one that a power cut could have left. While the flag is
//! off only the copier claims records: gap and resync-begin first, then it turns the flag on, all
//! under this state's mutex, so nothing captured later can stand before the gap.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tidemark_block::engine::Event;
use tidemark_wire::Seq;
use tidemark_wire::body::GapReason;

/// Why a volume has to be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyCause {
    /// The collector has no copy: its image is all zeroes.
    Initial,
    /// The stream has a gap.
    Gap(GapReason),
}

impl CopyCause {
    /// What people see.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Initial => "the collector has none",
            Self::Gap(reason) => reason.text(),
        }
    }
}

/// What the capture of a volume is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Every change is in the stream. `copy_end` is the record that ended a copy made by this
    /// process.
    Whole {
        /// Number of the resync-end record, when there was a copy.
        copy_end: Option<Seq>,
    },
    /// A copy has to begin.
    Wanted(CopyCause),
    /// A copy runs.
    Copying {
        /// Number of its first record (gap or resync-begin).
        first: Seq,
    },
}

/// Names one wish for a copy: a later wish outdates the copy that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyRound(u64);

struct State {
    phase: Phase,
    round: u64,
    closed: bool,
}

/// See the module's documentation.
pub struct Phases {
    state: Mutex<State>,
    changed: Event,
}

impl Default for Phases {
    fn default() -> Self {
        let state = State { phase: Phase::Whole { copy_end: None }, round: 0, closed: false };
        Self { state: Mutex::new(state), changed: Event::new() }
    }
}

impl Phases {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every holder leaves the state valid at each statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the capture is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.state().phase
    }

    /// Changes can't be captured: runs `turn_off`, which turns the ring's flag off, before
    /// anybody can begin the copy that is wanted from now on. True when none was wanted before.
    pub fn lose(&self, reason: GapReason, turn_off: impl FnOnce()) -> bool {
        let mut state = self.state();
        turn_off();
        let phase = state.phase;
        // What is wanted already stays: the first cause is the one that people look for, and a
        // copy into an empty image may skip zeroes.
        let anew = !matches!(phase, Phase::Wanted(_));
        if anew {
            state.phase = Phase::Wanted(CopyCause::Gap(reason));
        }
        self.next_round(state);
        anew
    }

    /// The collector can't go on from what it holds: a copy is wanted for `cause`, whatever was
    /// wanted or running before. Gives what `place` finds before anybody can begin it, and when
    /// nobody can end one that ran.
    pub fn want_copy<T>(&self, cause: CopyCause, place: impl FnOnce() -> T) -> T {
        let mut state = self.state();
        let found = place();
        state.phase = Phase::Wanted(cause);
        self.next_round(state);
        found
    }

    fn next_round(&self, mut state: MutexGuard<'_, State>) {
        state.round += 1;
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until a copy is wanted, and says why; `None` once the volume is taken down.
    pub async fn wanted(&self) -> Option<(CopyCause, CopyRound)> {
        loop {
            let changed = self.changed.wait();
            {
                let state = self.state();
                if state.closed {
                    return None;
                }
                if let Phase::Wanted(cause) = state.phase {
                    return Some((cause, CopyRound(state.round)));
                }
            }
            changed.await;
        }
    }

    /// The volume is taken down: no copy goes on or begins.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        self.next_round(state);
    }

    /// Begins the copy of `round`: `claim` puts its first records in the stream and turns the
    /// capture on, and gives the number of the first. False when the round is outdated or the
    /// records could not be had; the copy is then still wanted.
    pub fn begin(&self, round: CopyRound, claim: impl FnOnce() -> Option<Seq>) -> bool {
        let mut state = self.state();
        if state.round != round.0 || state.closed {
            return false;
        }
        let Some(first) = claim() else {
            return false;
        };
        state.phase = Phase::Copying { first };
        true
    }

    /// True while the copy of `round` is the one that is wanted.
    #[must_use]
    pub fn is_current(&self, round: CopyRound) -> bool {
        self.state().round == round.0
    }

    /// Ends the copy of `round`: `claim` puts the resync-end record in the stream. False when the
    /// round is outdated or the record could not be had.
    pub fn end(&self, round: CopyRound, claim: impl FnOnce() -> Option<Seq>) -> bool {
        let mut state = self.state();
        if state.round != round.0 {
            return false;
        }
        let Some(end) = claim() else {
            return false;
        };
        state.phase = Phase::Whole { copy_end: Some(end) };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_during_a_copy_outdates_it() {
        let capture = Phases::default();
        assert!(capture.lose(GapReason::RingFull, || ()));
        let round = CopyRound(1);
        assert!(capture.begin(round, || Some(Seq(5))));
        assert!(capture.lose(GapReason::RingFull, || ()), "a copy was running");
        assert!(!capture.is_current(round));
        assert!(!capture.end(round, || panic!("an outdated copy must not end")));
        assert_eq!(capture.phase(), Phase::Wanted(CopyCause::Gap(GapReason::RingFull)));
    }

    #[test]
    fn a_first_copy_that_has_not_begun_stays_one_unless_the_collector_says_otherwise() {
        let capture = Phases::default();
        capture.want_copy(CopyCause::Initial, || ());
        assert!(!capture.begin(CopyRound(1), || None));
        assert!(!capture.lose(GapReason::RingFull, || ()));
        assert_eq!(capture.phase(), Phase::Wanted(CopyCause::Initial));
        capture.want_copy(CopyCause::Gap(GapReason::CollectorBehind), || ());
        let behind = CopyCause::Gap(GapReason::CollectorBehind);
        assert_eq!(capture.phase(), Phase::Wanted(behind));
    }
}
