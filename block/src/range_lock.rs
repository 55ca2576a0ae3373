//! The range lock: overlapping changes of a volume happen one after the other, in the order in
//! which they asked.
//!
//! A change takes its sequence number and does its backing write while it holds its range, so
//! the order of numbers is the order of effects wherever two changes overlap. The ranges locked
//! are whole units of the backing store's alignment: two neighbours in one unit would read and
//! rewrite each other's bytes.
//!
//! One short list in order of arrival serves: it is as long as the requests in flight, which the
//! frontends bound, and a range that is granted has no earlier entry that overlaps it. Whole-disk
//! ranges cost the same as small ones.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::range::ByteRange;

/// Entries for which the list has room before it allocates.
const ENTRIES_EXPECTED: usize = 1024;

/// See the module's documentation.
pub struct RangeLock {
    list: Mutex<List>,
}

struct List {
    entries: Vec<Entry>,
    next_id: u64,
}

struct Entry {
    id: u64,
    range: ByteRange,
    state: EntryState,
}

enum EntryState {
    Granted,
    Waiting(Waker),
}

impl Default for RangeLock {
    fn default() -> Self {
        let entries = Vec::with_capacity(ENTRIES_EXPECTED);
        Self { list: Mutex::new(List { entries, next_id: 0 }) }
    }
}

impl RangeLock {
    /// Waits for `range`; it is released when the guard is dropped. The place in the queue is
    /// taken at the first poll.
    pub fn lock(&self, range: ByteRange) -> Lock<'_> {
        Lock { owner: self, range, id: None }
    }

    fn list(&self) -> MutexGuard<'_, List> {
        // The list is consistent between any two statements that could panic, so a poisoned
        // mutex still guards a good list.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, id: u64) {
        let mut list = self.list();
        list.remove(id);
    }
}

impl List {
    fn enter(&mut self, range: ByteRange, waker: &Waker) -> (u64, bool) {
        let id = self.next_id;
        self.next_id += 1;
        let free = !self.entries.iter().any(|entry| entry.range.overlaps(range));
        let state = if free { EntryState::Granted } else { EntryState::Waiting(waker.clone()) };
        self.entries.push(Entry { id, range, state });
        (id, free)
    }

    /// True when the entry is granted; else its waker is replaced.
    fn poll(&mut self, id: u64, waker: &Waker) -> bool {
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.id == id) else {
            return false;
        };
        match &mut entry.state {
            EntryState::Granted => true,
            EntryState::Waiting(old) => {
                old.clone_from(waker);
                false
            }
        }
    }

    fn remove(&mut self, id: u64) {
        let Some(at) = self.entries.iter().position(|entry| entry.id == id) else {
            return;
        };
        let gone = self.entries.remove(at);
        for index in at..self.entries.len() {
            let candidate = &self.entries[index];
            let waits = matches!(candidate.state, EntryState::Waiting(_));
            if !waits || !candidate.range.overlaps(gone.range) {
                continue;
            }
            let range = candidate.range;
            if self.entries[..index].iter().any(|earlier| earlier.range.overlaps(range)) {
                continue;
            }
            let state = std::mem::replace(&mut self.entries[index].state, EntryState::Granted);
            if let EntryState::Waiting(waker) = state {
                waker.wake();
            }
        }
    }
}

/// Future of [`RangeLock::lock`].
pub struct Lock<'a> {
    owner: &'a RangeLock,
    range: ByteRange,
    id: Option<u64>,
}

impl<'a> Future for Lock<'a> {
    type Output = RangeGuard<'a>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let owner = self.owner;
        let (id, granted) = match self.id {
            None => owner.list().enter(self.range, cx.waker()),
            Some(id) => (id, owner.list().poll(id, cx.waker())),
        };
        if granted {
            self.id = None;
            Poll::Ready(RangeGuard { owner, id })
        } else {
            self.id = Some(id);
            Poll::Pending
        }
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.owner.leave(id);
        }
    }
}

/// A held range.
pub struct RangeGuard<'a> {
    owner: &'a RangeLock,
    id: u64,
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        self.owner.leave(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::task::Wake;

    struct Idle;

    impl Wake for Idle {
        fn wake(self: Arc<Self>) {}
    }

    fn poll<'a>(lock: &mut Lock<'a>) -> Option<RangeGuard<'a>> {
        let waker = Waker::from(Arc::new(Idle));
        match Pin::new(lock).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(guard) => Some(guard),
            Poll::Pending => None,
        }
    }

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange::new(start, len).expect("test ranges fit")
    }

    #[test]
    fn a_later_one_does_not_overtake_through_a_waiting_one() {
        let locks = RangeLock::default();
        let first = poll(&mut locks.lock(range(0, 10))).expect("free");
        let mut wide = locks.lock(range(5, 20));
        assert!(poll(&mut wide).is_none());
        let mut third = locks.lock(range(15, 5));
        assert!(poll(&mut third).is_none(), "it overlaps the one that waits");
        drop(first);
        let second = poll(&mut wide).expect("granted on release");
        assert!(poll(&mut third).is_none());
        drop(second);
        assert!(poll(&mut third).is_some());
    }

    #[test]
    fn one_that_gives_up_lets_the_next_pass() {
        let locks = RangeLock::default();
        let held = poll(&mut locks.lock(range(0, 10))).expect("free");
        let mut quitter = locks.lock(range(0, 30));
        assert!(poll(&mut quitter).is_none());
        let mut last = locks.lock(range(20, 5));
        assert!(poll(&mut last).is_none());
        drop(quitter);
        assert!(poll(&mut last).is_some());
        drop(held);
        assert!(locks.list().entries.len() <= 1);
    }

    proptest! {
        #[test]
        fn held_ranges_never_overlap_and_all_get_their_turn(
            wants in prop::collection::vec((0u64..64, 1u64..16), 1..40),
            picks in prop::collection::vec(any::<prop::sample::Index>(), 40),
        ) {
            let locks = RangeLock::default();
            let mut waiting: Vec<_> =
                wants.iter().map(|&(start, len)| (range(start, len), locks.lock(range(start, len)))).collect();
            let mut held: Vec<(ByteRange, RangeGuard<'_>)> = Vec::new();
            let mut served = 0;
            for pick in picks.iter().cycle().take(400) {
                waiting.retain_mut(|(range, lock)| match poll(lock) {
                    Some(guard) => { held.push((*range, guard)); served += 1; false }
                    None => true,
                });
                for (i, (a, _)) in held.iter().enumerate() {
                    prop_assert!(held[..i].iter().all(|(b, _)| !a.overlaps(*b)));
                }
                if held.is_empty() { break; }
                held.swap_remove(pick.index(held.len()));
            }
            prop_assert_eq!(served, wants.len());
        }
    }
}
