//! Replies on their way to one client.
//!
//! Request tasks push finished replies in any order; one writer takes as many as fit into a
//! single send. The queue belongs to one connection and one thread. At its bound a push waits;
//! once the connection is dead, replies are dropped and nobody waits any more.
//!
//! A payload that does not fit in memory at once is sent in pieces that no other reply may come
//! between: its task takes the turn, and until it ends the writer takes from it alone.

use std::cell::RefCell;
use std::collections::VecDeque;

use crate::chunk::Chunk;
use crate::engine::Event;
use crate::engine::socket::{PARTS_MAX, Parts};

use super::reply::{HEAD_BYTES_MAX, Reply};

/// Bytes of memory for the heads of the replies of one send.
pub(super) const HEADS_BYTES: usize = 8 * 1024;

/// See the module's text.
pub(super) struct ReplyQueue {
    state: RefCell<State>,
    capacity: usize,
    /// Something to send, or the end.
    work: Event,
    /// Room, the turn is free, all sent, or dead.
    progress: Event,
}

struct State {
    whole: VecDeque<Reply>,
    /// Pieces of the reply that has the turn, or had it last.
    pieces: VecDeque<Reply>,
    turn_taken: bool,
    sending: bool,
    life: Life,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Open,
    /// No more replies will come.
    Closed,
    /// Nothing can be sent any more.
    Dead,
}

impl ReplyQueue {
    /// A queue for `capacity` replies.
    pub(super) fn new(capacity: usize) -> Self {
        let state = State {
            whole: VecDeque::with_capacity(capacity),
            pieces: VecDeque::new(),
            turn_taken: false,
            sending: false,
            life: Life::Open,
        };
        Self { state: RefCell::new(state), capacity, work: Event::new(), progress: Event::new() }
    }

    /// Queues a reply; false when the connection is dead and the reply was dropped.
    pub(super) async fn push(&self, reply: Reply) -> bool {
        loop {
            let progress = self.progress.wait();
            {
                let mut state = self.state.borrow_mut();
                if state.life == Life::Dead {
                    return false;
                }
                if state.whole.len() < self.capacity {
                    state.whole.push_back(reply);
                    break;
                }
            }
            progress.await;
        }
        self.work.notify_all();
        true
    }

    /// Waits for the turn to send a reply in pieces.
    pub(super) async fn take_turn(&self) -> Turn<'_> {
        loop {
            let progress = self.progress.wait();
            {
                let mut state = self.state.borrow_mut();
                if !state.turn_taken {
                    state.turn_taken = true;
                    return Turn { queue: self };
                }
            }
            progress.await;
        }
    }

    /// Says that no more replies will come; the writer ends when all are sent.
    pub(super) fn close(&self) {
        let mut state = self.state.borrow_mut();
        if state.life == Life::Open {
            state.life = Life::Closed;
        }
        drop(state);
        self.work.notify_all();
    }

    /// Drops all replies, those queued and those to come.
    pub(super) fn kill(&self) {
        let dropped = {
            let mut state = self.state.borrow_mut();
            state.life = Life::Dead;
            (std::mem::take(&mut state.whole), std::mem::take(&mut state.pieces))
        };
        drop(dropped);
        self.work.notify_all();
        self.progress.notify_all();
    }

    /// Waits until everything queued so far has been sent, or the connection is dead.
    pub(super) async fn sent(&self) {
        loop {
            let progress = self.progress.wait();
            if self.state.borrow().is_idle() {
                return;
            }
            progress.await;
        }
    }

    /// Writer: says that the last batch has left.
    pub(super) fn batch_sent(&self) {
        self.state.borrow_mut().sending = false;
        self.progress.notify_all();
    }

    /// Writer: waits for replies; false when there will be none any more.
    pub(super) async fn wait_for_work(&self) -> bool {
        loop {
            let work = self.work.wait();
            {
                let state = self.state.borrow();
                if state.life == Life::Dead {
                    return false;
                }
                if state.has_next() {
                    return true;
                }
                if state.life == Life::Closed && !state.turn_taken {
                    return false;
                }
            }
            work.await;
        }
    }

    /// Writer: moves as many replies as fit into `parts`, with their heads written to `heads` of
    /// [`HEADS_BYTES`], neighbouring heads in one part.
    pub(super) fn fill(&self, parts: &mut Parts, mut heads: Chunk) {
        let mut used = 0;
        let mut state = self.state.borrow_mut();
        // A reply takes up to two parts, and the heads behind the last payload one more.
        while parts.len() + 3 <= PARTS_MAX && heads.len() - used >= HEAD_BYTES_MAX {
            let Some(reply) = state.pop() else { break };
            let (head_bytes, payload) = reply.encode(&mut heads.as_mut_slice()[used..]);
            used += head_bytes;
            if let Some(payload) = payload {
                let rest = heads.split_off(used);
                if used > 0 {
                    append(parts, heads);
                }
                append(parts, payload);
                heads = rest;
                used = 0;
            }
        }
        if used > 0 {
            heads.truncate(used);
            append(parts, heads);
        }
        state.sending = true;
        drop(state);
        self.progress.notify_all();
    }
}

fn append(parts: &mut Parts, chunk: Chunk) {
    assert!(parts.push(chunk).is_ok(), "`fill` left room for this part");
}

impl State {
    fn has_next(&self) -> bool {
        !self.pieces.is_empty() || (!self.turn_taken && !self.whole.is_empty())
    }

    fn pop(&mut self) -> Option<Reply> {
        match self.pieces.pop_front() {
            None if !self.turn_taken => self.whole.pop_front(),
            next => next,
        }
    }

    fn is_idle(&self) -> bool {
        self.life == Life::Dead
            || (self.whole.is_empty()
                && self.pieces.is_empty()
                && !self.turn_taken
                && !self.sending)
    }
}

/// The right to send one reply in pieces; ends when dropped. What is pushed is bounded by the
/// buffers that its pieces are in.
pub(super) struct Turn<'a> {
    queue: &'a ReplyQueue,
}

impl Turn<'_> {
    /// Queues the next part of the reply; false when the connection is dead.
    pub(super) fn push(&self, reply: Reply) -> bool {
        {
            let mut state = self.queue.state.borrow_mut();
            if state.life == Life::Dead {
                return false;
            }
            state.pieces.push_back(reply);
        }
        self.queue.work.notify_all();
        true
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.queue.state.borrow_mut().turn_taken = false;
        self.queue.work.notify_all();
        self.queue.progress.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::super::request::Cookie;
    use super::*;

    /// The result of a future that has nothing to wait for, or `None`.
    fn now<F: Future>(future: F) -> Option<F::Output> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    fn done(number: u8) -> Reply {
        Reply::Done { cookie: Cookie([number; 8]) }
    }

    fn data(number: u8) -> Reply {
        Reply::SimpleData { cookie: Cookie([number; 8]), data: Chunk::zeroed(512) }
    }

    /// Lengths of the parts of the next send.
    fn batch(queue: &ReplyQueue) -> Vec<usize> {
        let mut parts = Parts::new();
        queue.fill(&mut parts, Chunk::zeroed(HEADS_BYTES));
        parts.drain().map(|chunk| chunk.len()).collect()
    }

    #[test]
    fn waiting_replies_leave_in_one_send_with_neighbouring_heads_joined() {
        let queue = ReplyQueue::new(100);
        for reply in [done(1), done(2), data(3), data(4), done(5), done(6)] {
            assert_eq!(now(queue.push(reply)), Some(true));
        }
        assert_eq!(batch(&queue), [48, 512, 16, 512, 32]);
        for number in 0..100 {
            assert_eq!(now(queue.push(data(number))), Some(true));
        }
        assert_eq!(now(queue.push(done(1))), None, "full");
        assert_eq!(batch(&queue).len(), PARTS_MAX - 2);
        assert_eq!(now(queue.push(done(1))), Some(true), "room again");
    }

    #[test]
    fn the_turn_keeps_other_replies_back() {
        let queue = ReplyQueue::new(10);
        let turn = now(queue.take_turn()).expect("nobody else has it");
        assert_eq!(now(queue.push(done(1))), Some(true));
        assert!(now(queue.take_turn()).is_none());
        assert_eq!(now(queue.wait_for_work()), None);
        assert!(turn.push(Reply::StreamPiece { data: Chunk::zeroed(100) }));
        assert_eq!(batch(&queue), [100]);
        assert!(turn.push(Reply::StreamPiece { data: Chunk::zeroed(200) }));
        drop(turn);
        assert_eq!(batch(&queue), [200, 16], "pieces first, then the others");
        queue.close();
        assert_eq!(now(queue.wait_for_work()), Some(false));
    }

    #[test]
    fn a_dead_queue_takes_everything_and_keeps_nothing() {
        let queue = ReplyQueue::new(1);
        assert_eq!(now(queue.push(done(1))), Some(true));
        let turn = now(queue.take_turn()).expect("nobody else has it");
        queue.kill();
        assert_eq!(now(queue.push(done(2))), Some(false));
        assert!(!turn.push(done(3)));
        assert_eq!(now(queue.sent()), Some(()));
        assert_eq!(now(queue.wait_for_work()), Some(false));
    }
}
