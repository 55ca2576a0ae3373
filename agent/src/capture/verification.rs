//! Which verification of the volume is wanted, and what it has found so far.
//!
//! What enters: wishes of people, from the shipper, and reports of the verifier
//! ([`crate::copy`]). What leaves: the wish to the verifier, and the newest report to the shipper,
//! which tells the collector in every session. A crash loses it: a verification changes nothing
//! and is begun anew.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tidemark_block::engine::Event;
use tidemark_wire::instruct::{InstructId, Verified};

/// A verification that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyWish {
    /// Which one.
    pub id: InstructId,
    /// Where it begins.
    pub from_bytes: u64,
}

#[derive(Default)]
struct State {
    wish: Option<VerifyWish>,
    report: Option<Verified>,
    /// Counts the reports whose state differs from the one before.
    turns: u64,
    closed: bool,
}

/// See the module's documentation.
#[derive(Default)]
pub struct Verifications {
    state: Mutex<State>,
    changed: Event,
}

impl Verifications {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every holder leaves the state valid at each statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A verification is wanted; it takes the place of one that runs.
    pub fn ask(&self, wish: VerifyWish) {
        self.state().wish = Some(wish);
        self.changed.notify_all();
    }

    /// None is wanted any more.
    pub fn stop(&self) {
        self.state().wish = None;
    }

    /// The volume is taken down.
    pub fn close(&self) {
        let mut state = self.state();
        (state.wish, state.closed) = (None, true);
        drop(state);
        self.changed.notify_all();
    }

    /// True while the verification `id` is the one that is wanted.
    #[must_use]
    pub fn is_wanted(&self, id: InstructId) -> bool {
        self.state().wish.is_some_and(|wish| wish.id == id)
    }

    /// Waits until one is wanted; `None` once the volume is taken down.
    pub async fn wanted(&self) -> Option<VerifyWish> {
        loop {
            let changed = self.changed.wait();
            {
                let state = self.state();
                if state.closed {
                    return None;
                }
                if let Some(wish) = state.wish {
                    return Some(wish);
                }
            }
            changed.await;
        }
    }

    /// Tells how one stands. Once it has ended, it is wanted no more.
    pub fn report(&self, report: Verified) {
        let mut state = self.state();
        state.wish.take_if(|wish| report.is_over() && wish.id == report.id);
        let was = state.report.as_ref().map(|report| (report.id, report.state));
        if was != Some((report.id, report.state)) {
            state.turns += 1;
        }
        state.report = Some(report);
    }

    /// The newest report, with a number that changes when another verification has begun or one
    /// has ended.
    #[must_use]
    pub fn newest(&self) -> Option<(u64, Verified)> {
        let state = self.state();
        state.report.clone().map(|report| (state.turns, report))
    }
}

#[cfg(test)]
mod tests {
    use tidemark_wire::instruct::VerifyState;

    use super::*;

    fn report(id: u8, state: VerifyState) -> Verified {
        Verified {
            id: [id; 16],
            state,
            reached_bytes: 0,
            compared_bytes: 0,
            differing_bytes: 0,
            unreadable_bytes: 0,
            ranges: Vec::new(),
        }
    }

    #[test]
    fn a_wish_ends_with_its_own_verification_only() {
        let all = Verifications::default();
        all.ask(VerifyWish { id: [1; 16], from_bytes: 0 });
        all.report(report(1, VerifyState::Running));
        let (first, _) = all.newest().expect("a report");
        all.ask(VerifyWish { id: [2; 16], from_bytes: 7 });
        assert!(!all.is_wanted([1; 16]));
        all.report(report(1, VerifyState::Stopped));
        assert!(all.is_wanted([2; 16]), "the first one's end is not the second one's");
        assert_ne!(all.newest().expect("a report").0, first);
        all.report(report(2, VerifyState::Running));
        let (running, _) = all.newest().expect("a report");
        all.report(report(2, VerifyState::Running));
        assert_eq!(all.newest().expect("a report").0, running, "only its figures changed");
        all.report(report(2, VerifyState::Done));
        assert!(!all.is_wanted([2; 16]));
    }
}
