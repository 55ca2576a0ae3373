//! Runs the tasks of both machines on one thread, in an order that the seed decides.
//!
//! What enters: tasks, each of a group (what dies together) and, but for the world's, with a step
//! (what it does, for the figures). What leaves: the step of the one that was polled. Which of
//! those that can go on goes on next is chance; time passes when none can. Nothing is ever dropped
//! during a poll: a machine is killed between two polls, by whoever drives this.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tidemark_block::engine::Event;

use crate::figures::Step;
use crate::random::Random;
use crate::time::Time;

/// What ends together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    Agent,
    Collector,
    /// Only sees to it that time stops there.
    World,
}

/// What [`Executor::turn`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It polled a task that does this.
    Polled(Step),
    /// It let time pass.
    Waited,
    /// Nothing can happen up to the time that was given.
    Idle,
}

type TaskFuture = Pin<Box<dyn Future<Output = ()>>>;

struct Task {
    group: Group,
    /// What it does, or did when it was polled last.
    step: Step,
    future: Option<TaskFuture>,
    waker: Waker,
    queued: Arc<TaskWaker>,
}

struct TaskWaker {
    index: usize,
    is_queued: AtomicBool,
    ready: Arc<Mutex<Vec<usize>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Relaxed: a run has one thread.
        if !self.is_queued.swap(true, Ordering::Relaxed) {
            self.ready.lock().unwrap_or_else(PoisonError::into_inner).push(self.index);
        }
    }
}

/// See the module's documentation.
pub(crate) struct Executor {
    pub(crate) time: Arc<Time>,
    pub(crate) random: Arc<Random>,
    ready: Arc<Mutex<Vec<usize>>>,
    tasks: RefCell<Vec<Option<Task>>>,
    /// Happens after each poll of a task of the agent but the shipper's: the ring may hold more.
    ring_may_hold_more: Event,
    /// What the task that is polled does.
    step: Cell<Step>,
    polls: Cell<u64>,
    /// Polls since time passed last.
    polls_now: Cell<u64>,
}

/// More polls than this without any time passing is a loop that never waits.
const POLLS_NOW_MAX: u64 = 200_000;

impl Executor {
    pub(crate) fn new(random: Arc<Random>) -> Rc<Self> {
        Rc::new(Self {
            time: Arc::default(),
            random,
            ready: Arc::default(),
            tasks: RefCell::default(),
            ring_may_hold_more: Event::new(),
            step: Cell::new(Step::Open),
            polls: Cell::new(0),
            polls_now: Cell::new(0),
        })
    }

    pub(crate) fn spawn(
        &self,
        group: Group,
        step: Step,
        future: impl Future<Output = ()> + 'static,
    ) {
        let mut tasks = self.tasks.borrow_mut();
        let queued = Arc::new(TaskWaker {
            index: tasks.len(),
            is_queued: AtomicBool::new(false),
            ready: Arc::clone(&self.ready),
        });
        let waker = Waker::from(Arc::clone(&queued));
        tasks.push(Some(Task { group, step, future: Some(Box::pin(future)), waker, queued }));
        let task = tasks.last().and_then(Option::as_ref).expect("it was just pushed");
        task.waker.wake_by_ref();
    }

    /// Drops all tasks of a group. Not to be called by one.
    pub(crate) fn kill(&self, group: Group) {
        let mut killed = Vec::new();
        for slot in &mut *self.tasks.borrow_mut() {
            killed.extend(slot.take_if(|task| task.group == group));
        }
        // What their drop does must find the list free.
        drop(killed);
    }

    /// The task that is polled does this from now on.
    pub(crate) fn at(&self, step: Step) {
        self.step.set(step);
    }

    pub(crate) fn polls(&self) -> u64 {
        self.polls.get()
    }

    pub(crate) fn is_stuck(&self) -> bool {
        self.polls_now.get() > POLLS_NOW_MAX
    }

    /// The event of [`Executor::ring_may_hold_more`].
    pub(crate) fn ring_event(&self) -> &Event {
        &self.ring_may_hold_more
    }

    /// Polls one task, or lets time pass, but not beyond `end`.
    pub(crate) fn turn(&self, end: Duration) -> Turn {
        loop {
            let next = {
                let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
                let count = ready.len();
                (count > 0).then(|| ready.swap_remove(self.random.place(count)))
            };
            let Some(index) = next else {
                self.polls_now.set(0);
                return if self.time.advance(end) { Turn::Waited } else { Turn::Idle };
            };
            if let Some(turn) = self.poll(index) {
                return turn;
            }
        }
    }

    fn poll(&self, index: usize) -> Option<Turn> {
        let (mut future, waker, group, step) = {
            let mut tasks = self.tasks.borrow_mut();
            let task = tasks[index].as_mut()?;
            task.queued.is_queued.store(false, Ordering::Relaxed);
            (task.future.take()?, task.waker.clone(), task.group, task.step)
        };
        self.polls.set(self.polls.get() + 1);
        self.polls_now.set(self.polls_now.get() + 1);
        self.step.set(step);
        let ended = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        if ended {
            drop(future);
            self.tasks.borrow_mut()[index] = None;
        } else if let Some(task) = &mut self.tasks.borrow_mut()[index] {
            task.future = Some(future);
            task.step = self.step.get();
        }
        // The shipper's own polls are none that it has to look after.
        if group == Group::Agent && step != Step::Ship {
            self.ring_may_hold_more.notify_all();
        }
        // The world's only wake who drives this.
        Some(if group == Group::World { Turn::Waited } else { Turn::Polled(self.step.get()) })
    }
}

/// Ends when either does.
pub(crate) async fn first_of(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    let (mut one, mut other) = (pin!(one), pin!(other));
    poll_fn(|cx| match one.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => other.as_mut().poll(cx),
    })
    .await;
}
