//! Those who wait for something, in the order in which they came.
//!
//! Lives inside the lock of what is waited for. The list keeps its memory, so waiting allocates
//! only when more wait than ever before.

use std::collections::VecDeque;
use std::task::Waker;

/// See the module's text.
pub(super) struct WaitList {
    waiting: VecDeque<(u64, Waker)>,
    next_ticket: u64,
}

impl WaitList {
    pub(super) fn new() -> Self {
        Self { waiting: VecDeque::new(), next_ticket: 0 }
    }

    /// Queues `waker` under the ticket, or at the end under a new one when there is no ticket
    /// yet or it was woken meanwhile.
    pub(super) fn enqueue(&mut self, ticket: &mut Option<u64>, waker: &Waker) {
        if let Some(known) = ticket {
            if let Some((_, old)) = self.waiting.iter_mut().find(|(other, _)| other == known) {
                old.clone_from(waker);
                return;
            }
        }
        *ticket = Some(self.next_ticket);
        self.waiting.push_back((self.next_ticket, waker.clone()));
        self.next_ticket += 1;
    }

    /// Takes a ticket off the list; false when it was woken already.
    pub(super) fn remove(&mut self, ticket: u64) -> bool {
        match self.waiting.iter().position(|(other, _)| *other == ticket) {
            Some(at) => {
                self.waiting.remove(at);
                true
            }
            None => false,
        }
    }

    /// Takes the one who has waited longest.
    pub(super) fn pop(&mut self) -> Option<Waker> {
        self.waiting.pop_front().map(|(_, waker)| waker)
    }
}
