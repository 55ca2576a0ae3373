//! Something that happened, for any number of waiting tasks on any threads.

use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use super::lock;
use super::wait_list::WaitList;

/// Wakes everybody who waits. The waiting begins when [`Event::wait`] is called, not when its
/// future is first polled, so this loop misses nothing:
///
/// ```text
/// loop {
///     let wait = event.wait();
///     if condition() { break }
///     wait.await;
/// }
/// ```
pub struct Event {
    round: AtomicU64,
    waiting: Mutex<WaitList>,
}

impl Event {
    /// An event that has not happened.
    #[must_use]
    pub fn new() -> Self {
        Self { round: AtomicU64::new(0), waiting: Mutex::new(WaitList::new()) }
    }

    /// Wakes every task whose wait began before this call.
    pub fn notify_all(&self) {
        let mut waiting = lock(&self.waiting);
        // Release pairs with the acquire loads in `wait` and `poll`: who sees the new round sees
        // what was done before it was announced.
        self.round.fetch_add(1, Ordering::Release);
        // Under the lock: a waker of this engine takes the lock of its executor's queue and none
        // besides, and never comes back here.
        while let Some(waker) = waiting.pop() {
            waker.wake();
        }
    }

    /// Ends at the next [`Event::notify_all`] after this call.
    pub fn wait(&self) -> EventWait<'_> {
        // Acquire pairs with the release in `notify_all`.
        EventWait { event: self, round: self.round.load(Ordering::Acquire), ticket: None }
    }
}

impl Default for Event {
    fn default() -> Self {
        Self::new()
    }
}

/// The future of [`Event::wait`].
#[must_use = "a future does nothing until it is awaited"]
pub struct EventWait<'a> {
    event: &'a Event,
    round: u64,
    ticket: Option<u64>,
}

impl Future for EventWait<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        // Under the lock, so that a notification is either seen here or finds the waker.
        let mut waiting = lock(&this.event.waiting);
        // Acquire pairs with the release in `notify_all`.
        if this.event.round.load(Ordering::Acquire) != this.round {
            if let Some(ticket) = this.ticket.take() {
                waiting.remove(ticket);
            }
            return Poll::Ready(());
        }
        match this.ticket {
            // Whoever is taken off the list finds a new round, above.
            Some(ticket) => assert!(waiting.refresh(ticket, cx.waker()), "woken for nothing"),
            None => this.ticket = Some(waiting.push(cx.waker())),
        }
        Poll::Pending
    }
}

impl Drop for EventWait<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            lock(&self.event.waiting).remove(ticket);
        }
    }
}
