//! Which faults strike in a run, and where each is to strike.
//!
//! The seed chooses kinds of faults, and for each a kind of step. Beside those by chance, each run
//! aims at one pair of the two, the next seed at the next one, so that a thousand seeds have aimed
//! at every pair: for that the step is brought about again and again where it seldom comes.

use std::collections::VecDeque;

use crate::figures::{Fault, Step};
use crate::random::Random;

/// Polls after which a fault strikes anywhere, its step not having come.
const PATIENCE: u64 = 400;
/// The same once the guest has nothing more to do.
const PATIENCE_IDLE: u64 = 60;
/// The same for the pair that the run aims at.
const PATIENCE_AIMED: u64 = 2_000;
/// Polls after which a step is brought about that has not come.
const PROVOKE_AFTER: u64 = 20;
/// Polls after which it is brought about again for the pair that the run aims at.
const PROVOKE_EVERY: u64 = 200;

/// A fault that is to strike.
pub(crate) struct Planned {
    pub(crate) fault: Fault,
    pub(crate) step: Step,
    /// It is armed when the guest has no more than this many operations before it.
    pub(crate) armed_at: u64,
    /// Polls of that step to let pass.
    skip: u64,
    is_aimed: bool,
    /// Polls since it was armed.
    waited: u64,
}

/// What is to be done about a fault that is armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    NotYet,
    /// Its step has to be brought about, by this fault.
    Provoke(Fault),
    Strike,
    /// As well, if it can be done; another one takes its place if not.
    StrikeOrChange,
}

/// What strikes in a run, in the order in which it is armed, while the guest has `operations`.
pub(crate) fn faults(random: &Random, seed: u64, operations: u64) -> VecDeque<Planned> {
    // Some runs are mostly about one machine, or about what lies between them.
    let favourites = random.pick(&[
        Fault::ALL,
        Fault::ALL,
        Fault::ALL,
        &[Fault::AgentPower, Fault::AgentPower, Fault::BackingSync, Fault::AgentKill],
        &[Fault::CollectorPower, Fault::JournalCall, Fault::JournalFull, Fault::AgentKill],
        &[Fault::NetworkFlip, Fault::BackingWrite, Fault::AgentKill, Fault::AgentKill],
    ]);
    let count = random.between(6, 11);
    let aimed_at = random.below(count);
    let planned = (0..count).map(|index| {
        let by_chance = (
            random.pick(if random.chance(70) { favourites } else { Fault::ALL }),
            any_step(random),
        );
        let is_aimed = index == aimed_at;
        let (fault, step) = if is_aimed { aim(seed) } else { by_chance };
        let armed_at = operations - operations * index / count;
        Planned { fault, step, armed_at, skip: random.below(6), is_aimed, waited: 0 }
    });
    planned.collect()
}

fn any_step(random: &Random) -> Step {
    random.pick(Step::ALL)
}

/// The pair that a seed aims at.
fn aim(seed: u64) -> (Fault, Step) {
    let pairs: Vec<_> = Fault::pairs().collect();
    let place = usize::try_from(seed % pairs.len() as u64).expect("below a usize");
    pairs[place]
}

/// What makes a step come that seldom does, so that `fault` can strike there.
fn provocation(step: Step, fault: Fault) -> Option<Fault> {
    Some(match step {
        // Without its power the agent takes no leave, and its last session is there for a while.
        Step::Open | Step::Greet if fault.needs_session() => Fault::AgentPower,
        Step::Open => Fault::AgentKill,
        Step::Stop => Fault::AgentStop,
        Step::Greet => Fault::NetworkCut,
        Step::Recover => Fault::CollectorKill,
        Step::Compare => Fault::Compare,
        _ => return None,
    })
}

impl Planned {
    /// A task was polled that does `step`, while this was armed. Without `has_more` the guest has
    /// nothing more to do.
    pub(crate) fn after(&mut self, step: Step, has_more: bool) -> Due {
        self.waited += 1;
        let provocation = provocation(self.step, self.fault);
        if let Some(fault) = provocation.filter(|_| self.is_time_to_provoke()) {
            return Due::Provoke(fault);
        }
        let patience = match (self.is_aimed, has_more) {
            (true, _) => PATIENCE_AIMED,
            (false, true) => PATIENCE,
            (false, false) => PATIENCE_IDLE,
        };
        if self.waited > 2 * patience {
            return Due::StrikeOrChange;
        }
        if self.waited > patience {
            return Due::Strike;
        }
        if self.step != step {
            return Due::NotYet;
        }
        if self.skip > 0 && provocation.is_none() {
            self.skip -= 1;
            return Due::NotYet;
        }
        Due::Strike
    }

    fn is_time_to_provoke(&self) -> bool {
        let since = self.waited.checked_sub(PROVOKE_AFTER + 1);
        since.is_some_and(|since| since == 0 || (self.is_aimed && since % PROVOKE_EVERY == 0))
    }

    /// It can't be done in this run; another one can.
    pub(crate) fn change(&mut self, random: &Random) {
        (self.fault, self.step) = (random.pick(Fault::ALL), any_step(random));
        (self.is_aimed, self.waited) = (false, 0);
    }
}
