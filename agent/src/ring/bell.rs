//! How the consumer sleeps and a producer wakes it, with no system call while it is awake.
//!
//! The consumer says for which ticket it waits, raises the flag, and looks once more; a producer
//! ends its ticket, and looks at the flag. Between the store and the look of each stands a
//! sequentially consistent fence, and the two fences pair: whichever comes second sees the
//! other's store. So either the consumer finds the ticket ended and does not sleep, or the
//! producer finds the flag and wakes it. A producer of another ticket wakes nobody, since the
//! consumer can't go on before its ticket.

use std::sync::atomic::Ordering;

use super::atomics::{Flag, Word};
use super::order::Ticket;

/// Sleeping on a flag: the kernel's futex, or a model of it.
pub trait Parking<F> {
    /// Sleeps while the flag is `expected`, until woken; may return for no reason.
    fn sleep(&self, flag: &F, expected: u32);
    /// Wakes the thread that sleeps on the flag.
    fn wake(&self, flag: &F);
}

/// The bell, over words that live elsewhere.
#[derive(Debug)]
pub struct Bell<'a, W, F> {
    /// The ticket that the consumer waits for.
    pub wanted: &'a W,
    /// [`ASLEEP`] or [`AWAKE`].
    pub sleeping: &'a F,
}

/// The consumer sleeps or is about to.
pub const ASLEEP: u32 = 1;
/// The consumer is awake.
pub const AWAKE: u32 = 0;

impl<W: Word, F: Flag> Bell<'_, W, F> {
    /// Sleeps once for `ticket`, unless `ready` says that it has ended. For the consumer.
    pub fn sleep_for(&self, ticket: Ticket, ready: impl Fn() -> bool, parking: &impl Parking<F>) {
        self.wanted.store(ticket.0, Ordering::Relaxed);
        // Release pairs with the acquire load in `ring`: who sees the flag sees the ticket.
        self.sleeping.store(ASLEEP, Ordering::Release);
        W::fence();
        if !ready() {
            parking.sleep(self.sleeping, ASLEEP);
        }
        self.sleeping.store(AWAKE, Ordering::Relaxed);
    }

    /// Wakes the consumer if it waits for this ticket, whose end the caller has stored.
    pub fn ring(&self, ticket: Ticket, parking: &impl Parking<F>) {
        W::fence();
        // Acquire pairs with the release store in `sleep_for`.
        let asleep = self.sleeping.load(Ordering::Acquire) == ASLEEP;
        if asleep && self.wanted.load(Ordering::Relaxed) == ticket.0 {
            self.wake(parking);
        }
    }

    /// Wakes the consumer whatever it waits for.
    pub fn wake(&self, parking: &impl Parking<F>) {
        // Relaxed: the kernel compares the flag under its own lock before it lets a thread sleep.
        self.sleeping.store(AWAKE, Ordering::Relaxed);
        parking.wake(self.sleeping);
    }
}
