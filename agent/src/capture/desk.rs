//! Where a copy or a verification asks the collector what differs.
//!
//! What enters: questions of the copier and the verifier, and the collector's answers as the
//! shipper gets them. What leaves: each question once in every session until it is answered, and
//! its answer to the lane that waits for it. The desk owns both; a crash loses them, and whoever
//! follows asks anew.
//!
//! A question leaves only when the collector holds the state that it asks about: no older one for
//! a copy, and exactly that one for a verification. One that was sent in a session that broke is
//! sent again in the next one. At most [`QUESTIONS_MAX`] questions lie on the desk, one for each
//! lane.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tidemark_block::engine::Event;
use tidemark_wire::Seq;
use tidemark_wire::compare::{Compare, Differ, DifferNode, NodeRange};

/// Questions that may wait for an answer, at most. The collector takes as many.
pub const QUESTIONS_MAX: usize = 16;

enum Stage {
    Posted,
    Sent,
    Answered(Vec<DifferNode>),
}

struct Posted {
    question: Compare,
    stage: Stage,
}

impl Posted {
    fn is(&self, id: [u8; 16], range: NodeRange) -> bool {
        self.question.id == id && self.question.range == range
    }
}

#[derive(Default)]
struct State {
    /// Who asks.
    open: Vec<[u8; 16]>,
    questions: Vec<Posted>,
}

/// See the module's documentation.
#[derive(Default)]
pub struct Desk {
    state: Mutex<State>,
    changed: Event,
}

impl Desk {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every holder leaves the state valid at each statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy or verification begins to ask; `id` is its identity.
    pub fn open(&self, id: [u8; 16]) {
        self.state().open.push(id);
    }

    /// It asks no more; its questions are forgotten.
    pub fn close(&self, id: [u8; 16]) {
        let mut state = self.state();
        state.open.retain(|open| *open != id);
        state.questions.retain(|one| one.question.id != id);
    }

    /// Puts a question of an open asker on the desk.
    ///
    /// # Panics
    /// When the desk is full or the same one lies on it already: a programmer's mistake.
    pub fn post(&self, question: Compare) {
        let mut state = self.state();
        assert!(state.questions.len() < QUESTIONS_MAX, "more questions than lanes");
        let is_new = state.questions.iter().all(|one| !one.is(question.id, question.range));
        assert!(is_new, "a question asked twice");
        state.questions.push(Posted { question, stage: Stage::Posted });
    }

    /// Waits for the answer about `range`, as long as `is_wanted` says so: it is asked at each
    /// [`Desk::look_again`]. `None` when it is wanted no more; the question is then forgotten.
    pub async fn answer(
        &self,
        id: [u8; 16],
        range: NodeRange,
        is_wanted: impl Fn() -> bool,
    ) -> Option<Vec<DifferNode>> {
        loop {
            let changed = self.changed.wait();
            {
                let mut state = self.state();
                let at = state.questions.iter().position(|one| one.is(id, range))?;
                if !is_wanted() {
                    state.questions.swap_remove(at);
                    return None;
                }
                if matches!(state.questions[at].stage, Stage::Answered(_)) {
                    let Stage::Answered(nodes) = state.questions.swap_remove(at).stage else {
                        return None;
                    };
                    return Some(nodes);
                }
            }
            changed.await;
        }
    }

    /// Whoever waits for an answer looks whether it is still wanted.
    pub fn look_again(&self) {
        self.changed.notify_all();
    }

    /// A new session: what was sent and not answered is sent again.
    pub fn send_again(&self) {
        for one in &mut self.state().questions {
            if matches!(one.stage, Stage::Sent) {
                one.stage = Stage::Posted;
            }
        }
    }

    /// The next question to send, if the collector holds everything up to `durable`. With
    /// `is_drained` it holds everything that there is: a number behind `durable` then belongs to
    /// no change, and what is durable is the state of that number too.
    pub fn take(&self, durable: Seq, is_drained: bool) -> Option<Compare> {
        let is_held = |asked: &Compare| {
            asked.min_seq <= durable || (asked.exact && is_drained && durable > Seq(0))
        };
        let mut state = self.state();
        let one = state
            .questions
            .iter_mut()
            .find(|one| matches!(one.stage, Stage::Posted) && is_held(&one.question))?;
        one.stage = Stage::Sent;
        let mut question = one.question.clone();
        question.min_seq = question.min_seq.min(durable);
        Some(question)
    }

    /// The collector's answer. One for somebody who asks no more is dropped. False when it answers
    /// nothing that was asked.
    #[must_use]
    pub fn answered(&self, differ: Differ) -> bool {
        let mut state = self.state();
        if !state.open.contains(&differ.id) {
            return true;
        }
        let sent =
            |one: &&mut Posted| one.is(differ.id, differ.range) && matches!(one.stage, Stage::Sent);
        let Some(one) = state.questions.iter_mut().find(sent) else { return false };
        one.stage = Stage::Answered(differ.nodes);
        drop(state);
        self.changed.notify_all();
        true
    }
}

#[cfg(test)]
mod tests {
    use tidemark_wire::compare::{LeafHash, NODE_BYTES, node_hash};

    use super::*;

    fn range(node: u64) -> NodeRange {
        NodeRange::new(node * NODE_BYTES, NODE_BYTES).expect("one node")
    }

    fn question(id: u8, min_seq: u64, exact: bool) -> Compare {
        let nodes = vec![node_hash(&[LeafHash::ZERO])];
        Compare { id: [id; 16], min_seq: Seq(min_seq), exact, range: range(0), nodes }
    }

    fn differ(id: u8, node: u64) -> Differ {
        Differ { id: [id; 16], range: range(node), nodes: Vec::new() }
    }

    #[test]
    fn a_question_waits_for_its_state_and_is_sent_once_in_a_session() {
        let desk = Desk::default();
        desk.open([1; 16]);
        desk.post(question(1, 10, false));
        assert_eq!(desk.take(Seq(9), true), None);
        let sent = desk.take(Seq(10), false).expect("the begin is durable");
        assert_eq!(sent, question(1, 10, false));
        assert_eq!(desk.take(Seq(10), false), None);
        desk.send_again();
        assert_eq!(desk.take(Seq(12), false), Some(sent));
        assert!(desk.answered(differ(1, 0)));
        desk.send_again();
        assert_eq!(desk.take(Seq(12), false), None, "it is answered");
    }

    #[test]
    fn a_number_that_no_change_has_is_not_waited_for() {
        let desk = Desk::default();
        desk.open([1; 16]);
        desk.post(question(1, 10, true));
        assert_eq!(desk.take(Seq(9), false), None, "a change may have it");
        assert_eq!(desk.take(Seq(0), true), None);
        assert_eq!(desk.take(Seq(9), true), Some(question(1, 9, true)));
    }

    #[test]
    fn answers_to_nothing_are_told_apart_from_late_ones() {
        let desk = Desk::default();
        assert!(desk.answered(differ(1, 0)), "nobody asks any more");
        desk.open([1; 16]);
        desk.open([2; 16]);
        desk.post(question(1, 10, false));
        assert!(!desk.answered(differ(1, 0)), "it was not sent yet");
        assert!(!desk.answered(differ(1, 1)));
        assert!(!desk.answered(differ(2, 0)), "another one asked");
        desk.close([2; 16]);
        assert!(desk.answered(differ(2, 0)), "of an earlier copy");
    }
}
