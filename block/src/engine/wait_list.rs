//! Those who wait for something, in the order in which they came.
//!
//! Lives inside the lock of what is waited for. The list keeps its memory, so waiting allocates
//! only when more wait than ever before, and more than a few.

use std::collections::VecDeque;
use std::task::Waker;

/// How many can wait in the memory that a list begins with.
const FEW: usize = 8;

/// See the module's text.
pub(super) struct WaitList {
    waiting: VecDeque<(u64, Waker)>,
    next_ticket: u64,
}

impl WaitList {
    pub(super) fn new() -> Self {
        Self { waiting: VecDeque::with_capacity(FEW), next_ticket: 0 }
    }

    /// Queues `waker` at the end and returns its ticket.
    pub(super) fn push(&mut self, waker: &Waker) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting.push_back((ticket, waker.clone()));
        ticket
    }

    /// Replaces the waker of a ticket; false when the ticket was woken already.
    pub(super) fn refresh(&mut self, ticket: u64, waker: &Waker) -> bool {
        match self.waiting.iter_mut().find(|(other, _)| *other == ticket) {
            Some((_, known)) => {
                known.clone_from(waker);
                true
            }
            None => false,
        }
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
