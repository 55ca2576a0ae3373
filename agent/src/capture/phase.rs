//! Whether a stream is whole, and the copy that makes it whole again.
//!
//! ```text
//!            lose                    begin                  end
//!  Whole ───────────▶ Wanted ─────────────────▶ Copying ───────────▶ Whole
//!    │                  ▲  ▲                       │
//!    └─ want_copy, ask ─┘  └── lose, want_copy ────┘
//!
//!  any ── pause ──▶ Paused ── resume ──▶ Wanted
//! ```
//! The ring's own flag says whether writers capture; it lies in shared memory, so that it also
//! tells a successor of a killed agent. This state says why a copy is wanted and which one runs.
//!
//! A writer looks at the flag while it holds its range and captures or not. It may claim its
//! record after another lost the capture: then both writes were in flight together, and a state
//! with the one and without the other is one that a power cut could have left. While the flag is
//! off only the copier claims records: gap and resync-begin first, then it turns the flag on, all
//! under this state's mutex, so nothing captured later can stand before the gap.
//!
//! No copy begins before this process has been welcomed by the collector once: only then are the
//! ring's numbers and times sure to lie behind those that the collector holds.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidemark_block::engine::Event;
use tidemark_wire::body::GapReason;
use tidemark_wire::session::{Standing, StandingState};
use tidemark_wire::{Seq, WallMicros};

use crate::clock::Clock;

/// Why a volume has to be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyCause {
    /// The collector has no copy: its image is all zeroes.
    Initial,
    /// The collector has no record, but an image that it was seeded with.
    Seeded,
    /// The stream is whole; a person wants to be sure of it.
    Asked,
    /// The stream has a gap.
    Gap(GapReason),
}

impl CopyCause {
    /// What people see.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Initial => "the collector has none",
            Self::Seeded => "the collector begins with an image of the volume",
            Self::Asked => "a person wants a comparison",
            Self::Gap(reason) => reason.text(),
        }
    }

    /// The gap that comes before the copy.
    #[must_use]
    pub const fn gap(self) -> Option<GapReason> {
        match self {
            Self::Gap(reason) => Some(reason),
            Self::Initial | Self::Seeded | Self::Asked => None,
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
        /// Why it was wanted.
        cause: CopyCause,
    },
    /// A person wants that changes are not captured; no copy begins.
    Paused,
}

impl Phase {
    /// True when nothing is missing from the stream, as far as this state knows.
    #[must_use]
    pub const fn is_whole(self) -> bool {
        matches!(self, Self::Whole { .. } | Self::Wanted(CopyCause::Asked))
    }
}

/// Names one wish for a copy: a later wish outdates the copy that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyRound(u64);

struct State {
    phase: Phase,
    /// When the phase began.
    since: WallMicros,
    round: u64,
    is_welcomed: bool,
    closed: bool,
}

/// See the module's documentation.
pub struct Phases {
    state: Mutex<State>,
    changed: Event,
    clock: Arc<dyn Clock>,
}

impl Phases {
    /// A stream that is whole.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let state = State {
            phase: Phase::Whole { copy_end: None },
            since: clock.wall(),
            round: 0,
            is_welcomed: false,
            closed: false,
        };
        Self { state: Mutex::new(state), changed: Event::new(), clock }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every holder leaves the state valid at each statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, state: &mut State, phase: Phase) {
        if state.phase != phase {
            state.phase = phase;
            state.since = self.clock.wall();
        }
    }

    /// What the capture is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.state().phase
    }

    /// The same for the collector; `is_on` is the ring's flag.
    #[must_use]
    pub fn standing(&self, is_on: bool) -> Standing {
        let state = self.state();
        let (of_phase, reason) = match state.phase {
            phase if phase.is_whole() => (StandingState::Whole, None),
            Phase::Wanted(cause) if !is_on => (StandingState::Lost, cause.gap()),
            Phase::Wanted(cause) | Phase::Copying { cause, .. } => {
                (StandingState::Copying, cause.gap())
            }
            _ => (StandingState::Paused, Some(GapReason::Paused)),
        };
        let since = state.since;
        Standing { state: of_phase, reason, since, differing_bytes: 0, compare_next: false }
    }

    /// Runs `act` with the phase, which stays as it is meanwhile.
    pub fn held<T>(&self, act: impl FnOnce(Phase) -> T) -> T {
        act(self.state().phase)
    }

    /// Changes can't be captured: runs `turn_off`, which turns the ring's flag off, before
    /// anybody can begin the copy that is wanted from now on. True when none was wanted before.
    pub fn lose(&self, reason: GapReason, turn_off: impl FnOnce()) -> bool {
        let mut state = self.state();
        turn_off();
        // What is wanted already stays: the first cause is the one that people look for, and a
        // copy into an empty image may skip zeroes. One that a person asked for has no gap.
        let anew = match state.phase {
            Phase::Paused => false,
            Phase::Wanted(cause) => cause == CopyCause::Asked,
            Phase::Whole { .. } | Phase::Copying { .. } => true,
        };
        if anew {
            self.enter(&mut state, Phase::Wanted(CopyCause::Gap(reason)));
        }
        self.next_round(state);
        anew
    }

    /// The collector can't go on from what it holds: a copy is wanted for `cause`, whatever was
    /// wanted or running before. Gives what `place` finds before anybody can begin it, and when
    /// nobody can end one that ran. While the capture is paused the wish is that of the resume.
    pub fn want_copy<T>(&self, cause: CopyCause, place: impl FnOnce() -> T) -> T {
        let mut state = self.state();
        let found = place();
        if state.phase != Phase::Paused {
            self.enter(&mut state, Phase::Wanted(cause));
        }
        self.next_round(state);
        found
    }

    /// A person wants a copy. One that is wanted or runs already does what is marked, as does the
    /// one that follows a pause.
    pub fn ask_copy(&self) {
        let mut state = self.state();
        if matches!(state.phase, Phase::Whole { .. }) {
            self.enter(&mut state, Phase::Wanted(CopyCause::Asked));
            self.next_round(state);
        }
    }

    /// Changes are not captured until [`Phases::resume`]: runs `turn_off`, which turns the ring's
    /// flag off. False when that is so already.
    pub fn pause(&self, turn_off: impl FnOnce()) -> bool {
        let mut state = self.state();
        turn_off();
        let anew = state.phase != Phase::Paused;
        self.enter(&mut state, Phase::Paused);
        self.next_round(state);
        anew
    }

    /// Ends a pause: a copy is wanted. False when there was none.
    pub fn resume(&self) -> bool {
        let mut state = self.state();
        if state.phase != Phase::Paused {
            return false;
        }
        self.enter(&mut state, Phase::Wanted(CopyCause::Gap(GapReason::Paused)));
        self.next_round(state);
        true
    }

    /// The collector has welcomed this process: copies may begin.
    pub fn welcomed(&self) {
        self.state().is_welcomed = true;
        self.changed.notify_all();
    }

    fn next_round(&self, mut state: MutexGuard<'_, State>) {
        state.round += 1;
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until a copy is wanted and may begin, and says why; `None` once the volume is taken
    /// down.
    pub async fn wanted(&self) -> Option<(CopyCause, CopyRound)> {
        loop {
            let changed = self.changed.wait();
            {
                let state = self.state();
                if state.closed {
                    return None;
                }
                if let Phase::Wanted(cause) = state.phase
                    && state.is_welcomed
                {
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

    /// True when the collector has welcomed this process.
    #[must_use]
    pub fn is_welcomed(&self) -> bool {
        self.state().is_welcomed
    }

    /// True when the volume is taken down.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Waits until the volume is taken down.
    pub async fn closed(&self) {
        loop {
            let changed = self.changed.wait();
            if self.is_closed() {
                return;
            }
            changed.await;
        }
    }

    /// Begins the copy of `round`: `claim` puts its first records in the stream and turns the
    /// capture on, and gives the number of the first. False when the round is outdated or the
    /// records could not be had; the copy is then still wanted.
    pub fn begin(&self, round: CopyRound, claim: impl FnOnce() -> Option<Seq>) -> bool {
        let mut state = self.state();
        let Phase::Wanted(cause) = state.phase else { return false };
        if state.round != round.0 || state.closed {
            return false;
        }
        let Some(first) = claim() else {
            return false;
        };
        self.enter(&mut state, Phase::Copying { first, cause });
        true
    }

    /// True while the copy of `round` is the one that is wanted.
    #[must_use]
    pub fn is_current(&self, round: CopyRound) -> bool {
        self.state().round == round.0
    }

    /// The newest wish for a copy, while the stream is whole and none is wanted or runs.
    #[must_use]
    pub fn whole_round(&self) -> Option<CopyRound> {
        let state = self.state();
        let is_whole = matches!(state.phase, Phase::Whole { .. }) && !state.closed;
        is_whole.then_some(CopyRound(state.round))
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
        self.enter(&mut state, Phase::Whole { copy_end: Some(end) });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    fn phases() -> Phases {
        Phases::new(Arc::new(SystemClock::default()))
    }

    fn state(phases: &Phases, is_on: bool) -> (StandingState, Option<GapReason>) {
        let standing = phases.standing(is_on);
        (standing.state, standing.reason)
    }

    #[test]
    fn a_loss_during_a_copy_outdates_it() {
        let capture = phases();
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
        let capture = phases();
        capture.want_copy(CopyCause::Initial, || ());
        assert!(!capture.begin(CopyRound(1), || None));
        assert!(!capture.lose(GapReason::RingFull, || ()));
        assert_eq!(capture.phase(), Phase::Wanted(CopyCause::Initial));
        capture.want_copy(CopyCause::Gap(GapReason::CollectorBehind), || ());
        let behind = CopyCause::Gap(GapReason::CollectorBehind);
        assert_eq!(capture.phase(), Phase::Wanted(behind));
    }

    #[test]
    fn a_comparison_that_a_person_asked_for_never_hides_a_gap() {
        let capture = phases();
        capture.ask_copy();
        assert!(capture.phase().is_whole(), "nothing is missing before it begins");
        assert!(capture.is_current(CopyRound(1)));
        capture.ask_copy();
        assert!(capture.is_current(CopyRound(1)), "one is enough");
        assert!(capture.lose(GapReason::RingFull, || ()));
        assert_eq!(capture.phase(), Phase::Wanted(CopyCause::Gap(GapReason::RingFull)));
        capture.ask_copy();
        assert_eq!(capture.phase(), Phase::Wanted(CopyCause::Gap(GapReason::RingFull)));
    }

    #[test]
    fn a_pause_outlasts_whatever_else_wants_a_copy() {
        let capture = phases();
        capture.want_copy(CopyCause::Initial, || ());
        assert!(capture.begin(CopyRound(1), || Some(Seq(5))));
        assert!(capture.pause(|| ()));
        assert!(!capture.is_current(CopyRound(1)), "the copy that ran is outdated");
        assert!(!capture.pause(|| ()));
        assert!(!capture.lose(GapReason::RingFull, || ()));
        capture.want_copy(CopyCause::Initial, || ());
        assert!(!capture.begin(CopyRound(5), || panic!("no copy begins in a pause")));
        assert_eq!(state(&capture, false), (StandingState::Paused, Some(GapReason::Paused)));
        assert!(capture.resume());
        assert!(!capture.resume());
        assert_eq!(capture.phase(), Phase::Wanted(CopyCause::Gap(GapReason::Paused)));
    }

    #[test]
    fn the_collector_is_told_what_holds() {
        let capture = phases();
        assert_eq!(state(&capture, true), (StandingState::Whole, None));
        let since = capture.standing(true).since;
        capture.lose(GapReason::RingFull, || ());
        let full = Some(GapReason::RingFull);
        assert_eq!(state(&capture, false), (StandingState::Lost, full));
        assert!(capture.standing(false).since >= since);
        assert_eq!(state(&capture, true), (StandingState::Copying, full));
        assert!(capture.begin(CopyRound(1), || Some(Seq(5))));
        assert_eq!(state(&capture, true), (StandingState::Copying, full));
        assert!(capture.end(CopyRound(1), || Some(Seq(9))));
        assert_eq!(state(&capture, true), (StandingState::Whole, None));
    }
}
