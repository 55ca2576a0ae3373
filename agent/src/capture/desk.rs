//! Where a copy asks the collector what differs.
//!
//! What enters: the copier's questions, and the collector's answers as the shipper gets them.
//! What leaves: each question once in every session until it is answered, and its answer to the
//! lane of the copier that waits for it. The desk owns both; a crash loses them, and the copy that
//! follows asks anew.
//!
//! A question leaves only when the copy's resync-begin record is durable, since the collector may
//! answer from no older state. One that was sent in a session that broke is sent again in the
//! next one. At most [`QUESTIONS_MAX`] questions lie on the desk, one for each lane.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tidemark_block::engine::Event;
use tidemark_wire::Seq;
use tidemark_wire::compare::{Compare, Differ, DifferNode, NodeHash, NodeRange};

/// Questions that may wait for an answer, at most. The collector takes as many.
pub const QUESTIONS_MAX: usize = 8;

enum Stage {
    Posted,
    Sent,
    Answered(Vec<DifferNode>),
}

struct Question {
    range: NodeRange,
    nodes: Vec<NodeHash>,
    stage: Stage,
}

/// The copy that asks.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Asker {
    id: [u8; 16],
    min_seq: Seq,
}

#[derive(Default)]
struct State {
    asker: Option<Asker>,
    questions: Vec<Question>,
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

    /// A copy begins: `id` is its identity, `min_seq` its resync-begin record, or the resize behind
    /// it. Questions of an earlier one are forgotten.
    pub fn open(&self, id: [u8; 16], min_seq: Seq) {
        *self.state() = State { asker: Some(Asker { id, min_seq }), questions: Vec::new() };
    }

    /// The copy asks no more.
    pub fn close(&self) {
        *self.state() = State::default();
    }

    /// Puts a question on the desk.
    ///
    /// # Panics
    /// When the desk is full or the range lies on it already: a programmer's mistake.
    pub fn post(&self, range: NodeRange, nodes: Vec<NodeHash>) {
        let mut state = self.state();
        assert!(state.questions.len() < QUESTIONS_MAX, "more questions than lanes");
        assert!(state.questions.iter().all(|one| one.range != range), "a question asked twice");
        state.questions.push(Question { range, nodes, stage: Stage::Posted });
    }

    /// Waits for the answer about `range`, as long as `is_wanted` says so: it is asked at each
    /// [`Desk::look_again`]. `None` when it is wanted no more.
    pub async fn answer(
        &self,
        range: NodeRange,
        is_wanted: impl Fn() -> bool,
    ) -> Option<Vec<DifferNode>> {
        loop {
            let changed = self.changed.wait();
            if !is_wanted() {
                return None;
            }
            {
                let mut state = self.state();
                let at = state.questions.iter().position(|one| one.range == range)?;
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

    /// The copier looks whether its copy is still wanted.
    pub fn look_again(&self) {
        self.changed.notify_all();
    }

    /// A new session: what was sent and not answered is sent again.
    pub fn send_again(&self) {
        for question in &mut self.state().questions {
            if matches!(question.stage, Stage::Sent) {
                question.stage = Stage::Posted;
            }
        }
    }

    /// The next question to send, if the collector holds everything up to `durable`.
    pub fn take(&self, durable: Seq) -> Option<Compare> {
        let mut state = self.state();
        let asker = state.asker.filter(|asker| asker.min_seq <= durable)?;
        let posted = |one: &&mut Question| matches!(one.stage, Stage::Posted);
        let question = state.questions.iter_mut().find(posted)?;
        question.stage = Stage::Sent;
        let (range, nodes) = (question.range, question.nodes.clone());
        Some(Compare { id: asker.id, min_seq: asker.min_seq, range, nodes })
    }

    /// The collector's answer. One for a copy that asks no more is dropped. False when it answers
    /// nothing that was asked.
    #[must_use]
    pub fn answered(&self, differ: Differ) -> bool {
        let mut state = self.state();
        if state.asker.is_none_or(|asker| asker.id != differ.id) {
            return true;
        }
        let sent =
            |one: &&mut Question| one.range == differ.range && matches!(one.stage, Stage::Sent);
        let Some(question) = state.questions.iter_mut().find(sent) else { return false };
        question.stage = Stage::Answered(differ.nodes);
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

    fn differ(id: u8, node: u64) -> Differ {
        Differ { id: [id; 16], range: range(node), nodes: Vec::new() }
    }

    #[test]
    fn a_question_waits_for_its_begin_and_is_sent_once_in_a_session() {
        let desk = Desk::default();
        desk.open([1; 16], Seq(10));
        desk.post(range(0), vec![node_hash(&[LeafHash::ZERO])]);
        assert_eq!(desk.take(Seq(9)), None);
        let question = desk.take(Seq(10)).expect("the begin is durable");
        assert_eq!((question.min_seq, question.range), (Seq(10), range(0)));
        assert_eq!(desk.take(Seq(10)), None);
        desk.send_again();
        assert_eq!(desk.take(Seq(12)), Some(question));
        assert!(desk.answered(differ(1, 0)));
        desk.send_again();
        assert_eq!(desk.take(Seq(12)), None, "it is answered");
    }

    #[test]
    fn answers_to_nothing_are_told_apart_from_late_ones() {
        let desk = Desk::default();
        assert!(desk.answered(differ(1, 0)), "nobody asks any more");
        desk.open([1; 16], Seq(10));
        desk.post(range(0), vec![node_hash(&[LeafHash::ZERO])]);
        assert!(!desk.answered(differ(1, 0)), "it was not sent yet");
        assert!(!desk.answered(differ(1, 1)));
        assert!(desk.answered(differ(2, 0)), "of an earlier copy");
    }
}
