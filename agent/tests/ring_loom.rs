//! Loom models of the ring's core: the code that ships, on loom's atomics. Each model runs all
//! interleavings up to a bound of preemptions.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p tidemark-agent --test ring_loom --release`, with a
//! target folder of its own.

#![allow(clippy::disallowed_methods, reason = "a test waits in real time")]
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use tidemark_agent::ring::bell::{AWAKE, Bell, Parking};
use tidemark_agent::ring::order::{Cells, Claim, Found, Order, Outcome, State, Ticket, stamp};
use tidemark_agent::ring::pages::Pages;
use tidemark_wire::{Seq, WallMicros};

const NO_LIMIT: Seq = Seq(1 << 40);

/// The words of a ring, one page, and for each slot a cell that loom checks for races.
struct Model {
    tail: AtomicU64,
    head: AtomicU64,
    seq_base: AtomicU64,
    last_time: AtomicU64,
    stamps: Vec<AtomicU64>,
    slots: Vec<UnsafeCell<u64>>,
    pages: Pages<AtomicU64>,
    wanted: AtomicU64,
    sleeping: AtomicU32,
}

impl Model {
    fn new(slots: u64) -> Self {
        let free = |t| AtomicU64::new(stamp(Ticket(t), State::Free));
        Self {
            tail: AtomicU64::new(0),
            head: AtomicU64::new(0),
            seq_base: AtomicU64::new(100),
            last_time: AtomicU64::new(0),
            stamps: (0..slots).map(free).collect(),
            slots: (0..slots).map(|_| UnsafeCell::new(0)).collect(),
            pages: Pages::new(vec![AtomicU64::new(u64::MAX << 1)].into()),
            wanted: AtomicU64::new(0),
            sleeping: AtomicU32::new(AWAKE),
        }
    }

    fn order(&self) -> Order<'_, Self> {
        Order(self)
    }

    fn bell(&self) -> Bell<'_, AtomicU64, AtomicU32> {
        Bell { wanted: &self.wanted, sleeping: &self.sleeping }
    }

    /// Claims a ticket and fills its slot, as a producer does.
    fn push(&self, now: u64) -> Option<Claim> {
        let claim = self.order().claim(WallMicros(now), NO_LIMIT)?;
        let slot = self.order().slot(claim.ticket);
        // SAFETY: the claim makes this thread the slot's owner; loom panics if it does not.
        self.slots[slot].with_mut(|cell| unsafe { *cell = claim.seq.0 });
        self.order().start(claim.ticket);
        Some(claim)
    }

    /// Reads and releases the oldest record, as the consumer does.
    fn pop(&self) -> Result<Option<u64>, Found> {
        let ticket = self.order().head();
        let found = self.order().find(ticket);
        if !matches!(found, Found::Committed | Found::Void) {
            return Err(found);
        }
        let slot = self.order().slot(ticket);
        // SAFETY: a finished ticket belongs to the consumer; loom panics if it does not.
        let value = self.slots[slot].with(|cell| unsafe { *cell });
        self.order().release(ticket, None, &self.pages);
        Ok((found == Found::Committed).then_some(value))
    }
}

impl Cells for Model {
    type Word = AtomicU64;

    fn tail(&self) -> &AtomicU64 {
        &self.tail
    }

    fn head(&self) -> &AtomicU64 {
        &self.head
    }

    fn seq_base(&self) -> &AtomicU64 {
        &self.seq_base
    }

    fn last_time(&self) -> &AtomicU64 {
        &self.last_time
    }

    fn stamp(&self, slot: usize) -> &AtomicU64 {
        &self.stamps[slot]
    }

    fn slot_count(&self) -> u64 {
        self.stamps.len() as u64
    }
}

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

#[test]
fn two_producers_and_the_consumer_share_slots_without_a_race() {
    check(3, || {
        let ring = Arc::new(Model::new(2));
        let producers = [Outcome::Committed, Outcome::Void].map(|outcome| {
            let ring = Arc::clone(&ring);
            thread::spawn(move || {
                let claim = ring.push(1).expect("two slots for two records");
                ring.order().finish(claim.ticket, outcome);
            })
        });
        let mut popped = 0;
        let mut values = Vec::new();
        while popped < 2 {
            match ring.pop() {
                Ok(value) => {
                    popped += 1;
                    values.extend(value);
                }
                Err(_) => thread::yield_now(),
            }
        }
        for producer in producers {
            producer.join().expect("no panic");
        }
        assert!(values == [100] || values == [101], "one committed record: {values:?}");
        assert_eq!(ring.pop(), Err(Found::Empty));
    });
}

#[test]
fn records_wrap_around_in_order() {
    check(4, || {
        let ring = Arc::new(Model::new(2));
        let producer = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || {
                for _ in 0..3 {
                    let claim = loop {
                        match ring.push(1) {
                            Some(claim) => break claim,
                            None => thread::yield_now(),
                        }
                    };
                    ring.order().finish(claim.ticket, Outcome::Committed);
                }
            })
        };
        let mut next = 100;
        while next < 103 {
            match ring.pop() {
                Ok(value) => {
                    assert_eq!(value, Some(next));
                    next += 1;
                }
                Err(_) => thread::yield_now(),
            }
        }
        producer.join().expect("no panic");
    });
}

#[test]
fn a_producer_that_stops_anywhere_keeps_no_other_from_pushing() {
    for filled in [false, true] {
        check(4, move || {
            let ring = Arc::new(Model::new(2));
            let stopped = {
                let ring = Arc::clone(&ring);
                thread::spawn(move || {
                    if filled { ring.push(1) } else { ring.order().claim(WallMicros(1), NO_LIMIT) }
                })
            };
            let claim = ring.push(1).expect("the other slot is free");
            ring.order().finish(claim.ticket, Outcome::Committed);
            let first = stopped.join().expect("no panic").expect("a slot").ticket;
            assert_eq!(ring.push(1), None, "two slots are in use, and nobody waits");
            if first < claim.ticket {
                assert_eq!(ring.pop(), Err(Found::InFlight));
            } else {
                assert_eq!(ring.pop(), Ok(Some(100)));
                assert_eq!(ring.pop(), Err(Found::InFlight));
            }
        });
    }
}

#[test]
fn numbers_and_times_rise_with_tickets_whoever_raises_them() {
    check(3, || {
        let ring = Arc::new(Model::new(4));
        let other = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || ring.push(30).expect("room"))
        };
        let raiser = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || ring.order().raise_seq(Seq(500)))
        };
        let first = ring.push(20).expect("room");
        let second = ring.push(10).expect("room");
        let other = other.join().expect("no panic");
        raiser.join().expect("no panic");
        let last = ring.push(1).expect("room");
        assert!(last.seq > Seq(500));
        let mut claims = [first, second, other, last];
        claims.sort_by_key(|claim| claim.ticket);
        for pair in claims.windows(2) {
            assert!(pair[0].seq < pair[1].seq, "{claims:?}");
            assert!(pair[0].time <= pair[1].time, "{claims:?}");
        }
    });
}

#[test]
fn no_page_has_two_owners() {
    check(4, || {
        let words = vec![AtomicU64::new(u64::MAX << 3)].into_boxed_slice();
        let pages = Arc::new(Pages::new(words));
        let cells: Arc<Vec<_>> = Arc::new((0..3).map(|_| UnsafeCell::new(0)).collect());
        let threads = [2, 1].map(|want| {
            let (pages, cells) = (Arc::clone(&pages), Arc::clone(&cells));
            thread::spawn(move || {
                for _ in 0..2 {
                    let run = pages.allocate(want, 0).expect("three pages for three");
                    for page in run.first..run.first + run.count {
                        // SAFETY: the run belongs to this thread; loom panics if it does not.
                        cells[page as usize].with_mut(|cell| unsafe { *cell += 1 });
                    }
                    pages.free(run);
                }
            })
        });
        for thread in threads {
            thread.join().expect("no panic");
        }
        assert_eq!(pages.used(), 61);
    });
}

/// What a kill, or the independent reader, may find at any instant: a thread that only looks
/// never sees a committed stamp over the bytes of another record.
#[test]
fn no_committed_stamp_stands_over_anothers_page() {
    check(4, || {
        let ring = Arc::new(Model::new(2));
        let page = Arc::new(AtomicU64::new(0));
        let run = ring.pages.allocate(1, 0).expect("one page");
        page.store(1, Ordering::Release);
        let first = ring.push(1).expect("room").ticket;
        ring.order().finish(first, Outcome::Committed);
        let consumer = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || ring.order().release(first, Some(run), &ring.pages))
        };
        let producer = {
            let (ring, page) = (Arc::clone(&ring), Arc::clone(&page));
            thread::spawn(move || {
                if ring.pages.allocate(1, 0).is_some() {
                    page.store(2, Ordering::Release);
                }
            })
        };
        let before = ring.order().find(first);
        let bytes = page.load(Ordering::Acquire);
        if before == Found::Committed && ring.order().find(first) == Found::Committed {
            assert_eq!(bytes, 1);
        }
        consumer.join().expect("no panic");
        producer.join().expect("no panic");
    });
}

/// A futex as the kernel has it: the flag is compared under the lock that wakers take.
struct ModelFutex {
    lock: Mutex<()>,
    woken: Condvar,
}

impl Parking<AtomicU32> for ModelFutex {
    fn sleep(&self, flag: &AtomicU32, expected: u32) {
        let guard = self.lock.lock().expect("not poisoned");
        if flag.load(Ordering::Relaxed) == expected {
            drop(self.woken.wait(guard).expect("not poisoned"));
        }
    }

    fn wake(&self, _: &AtomicU32) {
        drop(self.lock.lock().expect("not poisoned"));
        self.woken.notify_one();
    }
}

/// A wake-up that is lost leaves the consumer asleep for good, which loom calls a deadlock.
#[test]
fn no_wakeup_is_lost() {
    check(4, || {
        let ring = Arc::new(Model::new(2));
        let futex = Arc::new(ModelFutex { lock: Mutex::new(()), woken: Condvar::new() });
        let producer = {
            let (ring, futex) = (Arc::clone(&ring), Arc::clone(&futex));
            thread::spawn(move || {
                let first = ring.push(1).expect("room");
                let second = ring.push(1).expect("room");
                for claim in [second, first] {
                    ring.order().finish(claim.ticket, Outcome::Committed);
                    ring.bell().ring(claim.ticket, &*futex);
                }
            })
        };
        let mut next = 100;
        while next < 102 {
            if let Ok(value) = ring.pop() {
                assert_eq!(value, Some(next));
                next += 1;
                continue;
            }
            let ticket = ring.order().head();
            let ready = || ring.order().find(ticket) == Found::Committed;
            ring.bell().sleep_for(ticket, ready, &*futex);
        }
        producer.join().expect("no panic");
    });
}
