//! Virtual time: it passes only when nothing else can happen.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tidemark_wire::WallMicros;

/// The wall clocks' reading when a run begins: 2025-01-01.
const WALL_START_US: i64 = 1_735_689_600_000_000;

/// The time of a run, and who waits for which.
#[derive(Default)]
pub(crate) struct Time {
    now: AtomicU64,
    timers: Mutex<Timers>,
}

#[derive(Default)]
struct Timers {
    heap: BinaryHeap<Reverse<Timer>>,
    next_order: u64,
}

/// Of timers that are due at the same time the older one is first.
struct Timer {
    due: u64,
    order: u64,
    waker: Waker,
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        (self.due, self.order) == (other.due, other.order)
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

impl Time {
    // Relaxed throughout: a run has one thread.
    pub(crate) fn now(&self) -> Duration {
        Duration::from_nanos(self.now.load(Ordering::Relaxed))
    }

    fn timers(&self) -> MutexGuard<'_, Timers> {
        self.timers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends when `duration` has passed.
    pub(crate) fn sleep(self: &Arc<Self>, duration: Duration) -> Sleep {
        self.sleep_until(self.now() + duration)
    }

    /// Ends at a time.
    pub(crate) fn sleep_until(self: &Arc<Self>, due: Duration) -> Sleep {
        Sleep { time: Arc::clone(self), due, is_waiting: false }
    }

    /// Goes on to the next time at which somebody wants to be woken, unless that is behind `end`,
    /// and wakes them.
    pub(crate) fn advance(&self, end: Duration) -> bool {
        let mut timers = self.timers();
        let Some(Reverse(first)) = timers.heap.peek() else { return false };
        let due = first.due;
        if Duration::from_nanos(due) > end {
            return false;
        }
        self.now.fetch_max(due, Ordering::Relaxed);
        while timers.heap.peek().is_some_and(|Reverse(timer)| timer.due <= due) {
            if let Some(Reverse(timer)) = timers.heap.pop() {
                timer.waker.wake();
            }
        }
        true
    }
}

/// See [`Time::sleep`].
pub(crate) struct Sleep {
    time: Arc<Time>,
    due: Duration,
    is_waiting: bool,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.time.now() >= self.due {
            return Poll::Ready(());
        }
        // A task keeps its waker, so one timer is enough.
        if !self.is_waiting {
            self.is_waiting = true;
            let due = u64::try_from(self.due.as_nanos()).unwrap_or(u64::MAX);
            let mut timers = self.time.timers();
            let order = timers.next_order;
            timers.next_order += 1;
            timers.heap.push(Reverse(Timer { due, order, waker: cx.waker().clone() }));
        }
        Poll::Pending
    }
}

/// The clocks of one machine. The wall clock may be set.
pub(crate) struct MachineClock {
    time: Arc<Time>,
    wall_offset_us: AtomicI64,
}

impl MachineClock {
    pub(crate) fn new(time: Arc<Time>) -> Arc<Self> {
        Arc::new(Self { time, wall_offset_us: AtomicI64::new(0) })
    }

    pub(crate) fn jump(&self, micros: i64) {
        self.wall_offset_us.fetch_add(micros, Ordering::Relaxed);
    }

    fn wall_now(&self) -> WallMicros {
        let passed = i64::try_from(self.time.now().as_micros()).unwrap_or(i64::MAX);
        let wall = WALL_START_US + passed + self.wall_offset_us.load(Ordering::Relaxed);
        WallMicros(u64::try_from(wall).unwrap_or(0))
    }
}

impl tidemark_agent::clock::Clock for MachineClock {
    fn wall(&self) -> WallMicros {
        self.wall_now()
    }

    fn monotonic(&self) -> Duration {
        self.time.now()
    }

    fn sleep(&self, _duration: Duration) {
        unreachable!("no thread of the agent runs in the simulator");
    }
}

impl tidemark_collector::seam::Clock for MachineClock {
    fn wall(&self) -> WallMicros {
        self.wall_now()
    }

    fn monotonic(&self) -> Duration {
        self.time.now()
    }
}

/// What tasks of the agent wait with.
pub(crate) struct SimTimer(pub(crate) Arc<Time>);

impl tidemark_agent::clock::Timer for SimTimer {
    fn now(&self) -> Duration {
        self.0.now()
    }

    async fn sleep(&self, duration: Duration) {
        self.0.sleep(duration).await;
    }
}
