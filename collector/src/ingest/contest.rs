//! When two agents say that they are the same one.
//!
//! What enters: the hello of an agent, and the session that is open. What leaves: whether the one
//! that comes is let in. A machine that was copied with its agent's state, or put back to an older
//! snapshot while its successor runs, has the identity of another one; a session that both fed
//! would mix two histories. Nothing tells the two apart but which of them is there: the one whose
//! session lives keeps it, the other is fenced. A connection that the same run of an agent has
//! lost is not alive in that sense and is taken over at once.
//!
//! The owner of the volume has the state. A crash loses it, and with it only which run of an agent
//! was fenced: that is then found again, as long as the other one is there.

use std::collections::VecDeque;
use std::time::Duration;

use tidemark_wire::session::Hello;
use tidemark_wire::{AgentId, AgentRun};

use super::volume::Live;

/// A session is alive when its agent was heard this recently; an agent that has nothing to send
/// gives a sign of life every second.
const ALIVE: Duration = Duration::from_secs(5);
/// The agent of a killed process may be taken for alive for a moment; whoever is refused comes
/// again, and then both are sure to be there.
const SURE_AFTER: Duration = Duration::from_secs(2);
/// Runs of agents that are remembered as fenced, at most; then the oldest is forgotten.
const FENCED_MAX: usize = 16;

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Contest {
    /// Who was refused last, and when first.
    contender: Option<(AgentRun, Duration)>,
    fenced: VecDeque<AgentRun>,
}

/// What becomes of an agent that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nobody else is there.
    LetIn,
    /// Another one is, or was shown to be; it has to come again. `is_news` the first time that
    /// both are sure to be there.
    Fenced { is_news: bool },
}

/// One who says that it is the volume's agent.
pub(super) struct Claim<'a> {
    /// Its installation.
    pub(super) agent: AgentId,
    /// Who it is, for people.
    pub(super) peer: &'a str,
}

impl Contest {
    /// Judges the agent of `hello`, which comes at `now`; `is_older` when the collector has heard
    /// a later session than its last one.
    pub(super) fn judge(
        &mut self,
        hello: &Hello,
        is_older: bool,
        live: Option<&Live>,
        now: Duration,
    ) -> Answer {
        if self.fenced.contains(&hello.run) {
            return Answer::Fenced { is_news: false };
        }
        let Some(live) = live else { return Answer::LetIn };
        let heard_at = live.port.heard_at();
        let is_other = live.run != hello.run || is_older;
        if !is_other || now.saturating_sub(heard_at) >= ALIVE {
            return Answer::LetIn;
        }
        let since = match self.contender {
            Some((run, since)) if run == hello.run => since,
            _ => {
                self.contender = Some((hello.run, now));
                now
            }
        };
        // Also a machine that was copied with its memory is the same run of an agent: which of
        // the two is the copy is then told by its epoch alone, and no run is remembered.
        let can_tell = live.run != hello.run && hello.run != AgentRun::default();
        let is_news = heard_at >= since + SURE_AFTER;
        if is_news && can_tell {
            self.fenced.truncate(FENCED_MAX - 1);
            self.fenced.push_front(hello.run);
        }
        Answer::Fenced { is_news }
    }
}

/// What people are told: who has the volume, who wants it, and what to do.
pub(super) fn fenced_text(name: &str, holder: Option<&Claim<'_>>, other: &Claim<'_>) -> String {
    let Claim { agent, peer } = other;
    let holder = match holder {
        Some(holder) => format!("the agent of {} (id {}) has it", holder.peer, holder.agent),
        None => "another agent had it and was there at the same time".to_owned(),
    };
    format!(
        "two agents say that they protect volume {name}: {holder}, {peer} (id {agent}) is fenced \
         and keeps serving its disk unprotected. One machine is a copy of the other, or was put \
         back to an older state beside it. On the copy, stop the agent, remove its state_dir and \
         start it: it is then a volume of its own. If the copy is the one to go on, stop the other \
         agent and restart that one"
    )
}
