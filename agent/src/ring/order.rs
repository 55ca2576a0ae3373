//! Tickets and stamps: the order of the records, and who may touch a slot.
//!
//! A ticket counts records from 0 and never wraps; ticket `t` lives in slot `t % slots`. The
//! slot's stamp holds the ticket and the state, `8 * ticket + state`, so one word says whose turn
//! it is and how far it got:
//!
//! ```text
//! free(t) -> [tail moves past t] -> in flight(t) -> committed(t) | void(t) -> free(t + slots)
//! ```
//! A producer owns ticket `t` from its exchange on `tail` until it stores the in-flight stamp's
//! successor; the consumer owns a finished ticket from then until it stores `free(t + slots)`.
//! No step waits for another thread: a failed exchange means that another producer got a ticket.

use std::sync::atomic::Ordering;

use tidemark_wire::{Seq, WallMicros};

use super::atomics::Word;
use super::pages::{PageRun, Pages};

/// Where the words of the order live: in mapped memory, or in a loom model.
pub trait Cells {
    /// The sort of atomic.
    type Word: Word;
    /// The next ticket to be claimed.
    fn tail(&self) -> &Self::Word;
    /// The oldest ticket that is not released.
    fn head(&self) -> &Self::Word;
    /// What is added to a ticket to get its sequence number.
    fn seq_base(&self) -> &Self::Word;
    /// The largest time that a claim has asked for.
    fn last_time(&self) -> &Self::Word;
    /// The stamp of a slot.
    fn stamp(&self, slot: usize) -> &Self::Word;
    /// Number of slots, a power of two.
    fn slot_count(&self) -> u64;
}

/// A place in the order of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// How far a ticket got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum State {
    /// Not claimed, or claimed and its slot not filled yet: the tail tells which.
    Free = 0,
    /// The slot is filled; the backing store may be written.
    InFlight = 2,
    /// The change took effect; the record counts.
    Committed = 3,
    /// The record does not count.
    Void = 4,
}

/// How a ticket ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The change took effect.
    Committed,
    /// It did not, or something later describes it.
    Void,
}

/// A claimed ticket with what it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The ticket.
    pub ticket: Ticket,
    /// Its sequence number: rises with the ticket.
    pub seq: Seq,
    /// Its time: never falls with a rising ticket.
    pub time: WallMicros,
}

/// What the consumer finds at a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The ticket is not claimed yet.
    Empty,
    /// Its producer is still at it.
    InFlight,
    /// A record.
    Committed,
    /// Nothing that counts.
    Void,
}

const STATES: u64 = 8;

/// The stamp of a ticket in a state.
#[must_use]
pub const fn stamp(ticket: Ticket, state: State) -> u64 {
    ticket.0 * STATES + state as u64
}

/// Ticket and state of a stamp, or `None` when no stamp has this value.
#[must_use]
pub const fn read_stamp(value: u64) -> Option<(Ticket, State)> {
    let state = match value % STATES {
        0 => State::Free,
        2 => State::InFlight,
        3 => State::Committed,
        4 => State::Void,
        _ => return None,
    };
    Some((Ticket(value / STATES), state))
}

/// The order, over words that live elsewhere.
#[derive(Debug)]
pub struct Order<'a, C>(pub &'a C);

impl<C: Cells> Order<'_, C> {
    /// The slot of a ticket.
    #[must_use]
    pub fn slot(&self, ticket: Ticket) -> usize {
        // The remainder is below the number of slots, which are in memory.
        #[allow(clippy::cast_possible_truncation)]
        let slot = (ticket.0 & (self.0.slot_count() - 1)) as usize;
        slot
    }

    fn stamp_of(&self, ticket: Ticket) -> &C::Word {
        self.0.stamp(self.slot(ticket))
    }

    /// Takes the next ticket, or `None` when its slot is still in use or its number would not
    /// lie below `limit`.
    ///
    /// Numbers and times rise with tickets because they are read between the load of `tail` and
    /// the exchange on it: who gets ticket `t + 1` has loaded `tail` after `t`'s exchange, so it
    /// reads a base and a last time that are no older than those of `t`.
    pub fn claim(&self, now: WallMicros, limit: Seq) -> Option<Claim> {
        let tail_word = self.0.tail();
        // Acquire pairs with the release half of the exchange below.
        let mut tail = tail_word.load(Ordering::Acquire);
        loop {
            let ticket = Ticket(tail);
            let free = stamp(ticket, State::Free);
            // Acquire pairs with the release store in `release`: the consumer is done reading.
            let seen = self.stamp_of(ticket).load(Ordering::Acquire);
            if seen != free {
                let again = tail_word.load(Ordering::Acquire);
                if again == tail {
                    return None;
                }
                tail = again;
                continue;
            }
            // Relaxed: coherence through `tail`, as said above, is all that is needed.
            let seq = Seq(self.0.seq_base().load(Ordering::Relaxed) + tail);
            if seq >= limit {
                return None;
            }
            let last = self.0.last_time().fetch_max(now.0, Ordering::Relaxed);
            let time = WallMicros(last.max(now.0));
            match tail_word.exchange(tail, tail + 1) {
                Ok(_) => return Some(Claim { ticket, seq, time }),
                Err(actual) => tail = actual,
            }
        }
    }

    /// Says that the slot of a claimed ticket is filled.
    pub fn start(&self, ticket: Ticket) {
        // Release pairs with the acquire load in `find`, and orders the slot's bytes before the
        // stamp for whoever looks after a kill.
        self.stamp_of(ticket).store(stamp(ticket, State::InFlight), Ordering::Release);
    }

    /// Ends a ticket.
    pub fn finish(&self, ticket: Ticket, outcome: Outcome) {
        let state = match outcome {
            Outcome::Committed => State::Committed,
            Outcome::Void => State::Void,
        };
        // Release pairs with the acquire load in `find`.
        self.stamp_of(ticket).store(stamp(ticket, state), Ordering::Release);
    }

    /// What is at a ticket that is not released. For the consumer.
    pub fn find(&self, ticket: Ticket) -> Found {
        // Acquire pairs with the release stores in `start` and `finish`.
        let seen = self.stamp_of(ticket).load(Ordering::Acquire);
        if seen == stamp(ticket, State::Committed) {
            Found::Committed
        } else if seen == stamp(ticket, State::Void) {
            Found::Void
        } else if ticket < self.tail() {
            Found::InFlight
        } else {
            Found::Empty
        }
    }

    /// Gives the slot of the oldest ticket to the next lap, and its pages back. For the
    /// consumer, which has read all it needs of the slot.
    ///
    /// The pages come after the stamp, so that a committed stamp never stands over bytes of
    /// another record. The head moves after the stamp, so after a kill in between the stamp is a
    /// lap ahead of the head, which recovery takes as released.
    pub fn release(&self, ticket: Ticket, run: Option<PageRun>, pages: &Pages<C::Word>) {
        let next = Ticket(ticket.0 + self.0.slot_count());
        // Release pairs with the acquire load in `claim`.
        self.stamp_of(ticket).store(stamp(next, State::Free), Ordering::Release);
        // Release pairs with the acquire load in `head`.
        self.0.head().store(ticket.0 + 1, Ordering::Release);
        if let Some(run) = run {
            pages.free(run);
        }
    }

    /// The next ticket to be claimed.
    pub fn tail(&self) -> Ticket {
        // Acquire pairs with the exchange in `claim`.
        Ticket(self.0.tail().load(Ordering::Acquire))
    }

    /// The oldest ticket that is not released.
    pub fn head(&self) -> Ticket {
        // Acquire pairs with the store in `release`.
        Ticket(self.0.head().load(Ordering::Acquire))
    }

    /// Makes the numbers of all claims that begin from now on larger than `min`.
    pub fn raise_seq(&self, min: Seq) {
        // The tail may have grown meanwhile, which makes numbers larger still.
        let base = (min.0 + 1).saturating_sub(self.tail().0);
        // Relaxed: see `claim`; whoever relies on the raise is ordered after it by its own means.
        self.0.seq_base().fetch_max(base, Ordering::Relaxed);
    }

    /// Makes the times of all claims that begin from now on no smaller than `min`.
    pub fn raise_time(&self, min: WallMicros) {
        // Relaxed: as in `raise_seq`.
        self.0.last_time().fetch_max(min.0, Ordering::Relaxed);
    }

    /// The largest time that a claim got, or that was raised to.
    pub fn last_time(&self) -> WallMicros {
        // Relaxed: a figure; no other memory depends on it.
        WallMicros(self.0.last_time().load(Ordering::Relaxed))
    }

    /// The number that the next claim gets, if nobody raises it before.
    pub fn next_seq(&self) -> Seq {
        let tail = self.tail();
        Seq(self.0.seq_base().load(Ordering::Relaxed) + tail.0)
    }
}
