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

use tidemark_wire::session::{Hello, SIGN_OF_LIFE_EVERY};
use tidemark_wire::{AgentId, AgentRun};

use super::volume::Live;

/// A session is alive when its agent was heard this recently; an agent that has nothing to send
/// gives a sign of life every [`SIGN_OF_LIFE_EVERY`].
const ALIVE: Duration = Duration::from_secs(5);
const _: () = assert!(ALIVE.as_secs() >= 3 * SIGN_OF_LIFE_EVERY.as_secs());
/// The agent of a killed process may be taken for alive for a moment; whoever is refused comes
/// again, and then both are sure to be there.
const SURE_AFTER: Duration = Duration::from_secs(2);
/// Runs of agents that are remembered as fenced, at most; then the oldest is forgotten.
const FENCED_MAX: usize = 16;

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Contest {
    contender: Option<Contender>,
    fenced: VecDeque<AgentRun>,
}

/// Who was refused last.
struct Contender {
    run: AgentRun,
    /// When it was refused first.
    since: Duration,
    /// People were told of it.
    is_told: bool,
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
        if self.contender.as_ref().is_none_or(|contender| contender.run != hello.run) {
            self.contender = Some(Contender { run: hello.run, since: now, is_told: false });
        }
        let contender = self.contender.as_mut().expect("set above");
        let is_sure = heard_at >= contender.since + SURE_AFTER;
        let is_news = is_sure && !std::mem::replace(&mut contender.is_told, is_sure);
        // Also a machine that was copied with its memory is the same run of an agent: which of
        // the two is the copy is then told by its epoch alone, and no run is remembered.
        let can_tell = live.run != hello.run && hello.run != AgentRun::default();
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tidemark_wire::body::Bookmark;
    use tidemark_wire::instruct::Instruct;
    use tidemark_wire::session::{Refuse, Welcome};
    use tidemark_wire::{Epoch, JournalId, Seq, Timeline, VolumeId};

    use super::*;
    use crate::ingest::port::SessionPort;

    struct Heard(Mutex<Duration>);

    impl SessionPort for Heard {
        fn opened(&self, _: Result<Welcome, Refuse>) {}
        fn durable(&self, _: Seq) {}
        fn end(&self, _: Refuse) {}
        fn bookmark(&self, _: Bookmark) -> bool {
            false
        }
        fn instruct(&self, _: Instruct) -> bool {
            false
        }
        fn heard_at(&self) -> Duration {
            *self.0.lock().expect("no holder panics")
        }
    }

    const ONE: AgentRun = AgentRun([1; 6]);
    const OTHER: AgentRun = AgentRun([2; 6]);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn hello(run: AgentRun) -> Hello {
        Hello {
            agent: AgentId::NIL,
            volume: VolumeId::NIL,
            journal: JournalId::NIL,
            timeline: Timeline(1),
            epoch: Epoch(5),
            released: Seq(0),
            newest: Seq(0),
            size_bytes: 4096,
            block_bytes: 512,
            name: String::new(),
            run,
            unsure_after: None,
        }
    }

    fn live(run: AgentRun, heard: Duration) -> (Live, Arc<Heard>) {
        let port = Arc::new(Heard(Mutex::new(heard)));
        let (epoch, peer) = (Epoch(5), "here".to_owned());
        (Live { epoch, peer, agent: AgentId::NIL, run, port: port.clone() }, port)
    }

    #[test]
    fn a_connection_that_the_same_run_has_lost_is_taken_over_at_once() {
        let mut contest = Contest::default();
        let (live, _) = live(ONE, at(100));
        let answer = contest.judge(&hello(ONE), false, Some(&live), at(100));
        assert_eq!(answer, Answer::LetIn);
        assert_eq!(contest.judge(&hello(ONE), false, None, at(100)), Answer::LetIn);
    }

    #[test]
    fn one_that_is_heard_no_more_gives_way() {
        let mut contest = Contest::default();
        let (live, port) = live(ONE, at(100));
        let mut judge = |now| contest.judge(&hello(OTHER), true, Some(&live), now);
        assert_eq!(judge(at(101)), Answer::Fenced { is_news: false });
        assert_eq!(judge(at(104)), Answer::Fenced { is_news: false }, "not heard again");
        assert_eq!(judge(at(105)), Answer::LetIn);
        *port.0.lock().expect("no holder panics") = at(109);
        assert_eq!(judge(at(110)), Answer::Fenced { is_news: true }, "it is there after all");
    }

    #[test]
    fn a_copy_stays_fenced_also_while_the_other_one_restarts() {
        let mut contest = Contest::default();
        let (one, port) = live(ONE, at(100));
        let other = hello(OTHER);
        let answer = contest.judge(&other, false, Some(&one), at(100));
        assert_eq!(answer, Answer::Fenced { is_news: false });
        *port.0.lock().expect("no holder panics") = at(102);
        let answer = contest.judge(&other, false, Some(&one), at(103));
        assert_eq!(answer, Answer::Fenced { is_news: true });
        for now in [103, 200, 10_000] {
            let answer = contest.judge(&other, false, None, at(now));
            assert_eq!(answer, Answer::Fenced { is_news: false }, "told once");
        }
        let restarted = hello(AgentRun([3; 6]));
        assert_eq!(contest.judge(&restarted, false, None, at(300)), Answer::LetIn);
    }

    #[test]
    fn of_a_machine_that_was_copied_with_its_memory_the_older_one_is_fenced() {
        let mut contest = Contest::default();
        let (one, port) = live(ONE, at(100));
        let answer = contest.judge(&hello(ONE), true, Some(&one), at(100));
        assert_eq!(answer, Answer::Fenced { is_news: false });
        *port.0.lock().expect("no holder panics") = at(103);
        let answer = contest.judge(&hello(ONE), true, Some(&one), at(103));
        assert_eq!(answer, Answer::Fenced { is_news: true });
        let answer = contest.judge(&hello(ONE), true, Some(&one), at(104));
        assert_eq!(answer, Answer::Fenced { is_news: false }, "told once");
        // The run is that of the one that is let in, too.
        assert_eq!(contest.judge(&hello(ONE), false, Some(&one), at(103)), Answer::LetIn);
    }

    #[test]
    fn the_memory_of_fenced_runs_is_bounded() {
        let mut contest = Contest::default();
        for number in 0..100 {
            let (one, port) = live(ONE, at(100));
            let other = hello(AgentRun([number, 9, 9, 9, 9, 9]));
            let _ = contest.judge(&other, false, Some(&one), at(100));
            *port.0.lock().expect("no holder panics") = at(102);
            let _ = contest.judge(&other, false, Some(&one), at(102));
            assert!(contest.fenced.len() <= FENCED_MAX);
        }
    }
}
