//! The executor: one thread, one ring, one task table.
//!
//! Futures enter by [`spawn`], by a [`super::TaskPool`] or by [`Executor::block_on`]; each is
//! polled on this thread only and dropped here when it ends or when the executor is dropped.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use io_uring::squeue;

use super::ring::{Reaped, Ring, cancel_entry, doorbell_entry, tagged};
use super::task_pool::PooledTasks;
use super::wake::{MAIN_TASK, Remote, TaskWake};

/// Polls between two looks at the ring while tasks keep each other ready, so that completions
/// are not starved.
const POLLS_PER_TURN: usize = 512;

/// Sizes of an executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecutorConfig {
    /// Entries of the submission queue. More operations than that may be in flight; a full queue
    /// is submitted early.
    pub ring_entries: u32,
    /// Most tasks at a time; see [`spawn`] and [`super::TaskPool::try_spawn`] for what happens
    /// at the bound.
    pub tasks_max: usize,
}

impl Default for ExecutorConfig {
    fn default() -> Self {
        Self { ring_entries: 256, tasks_max: 4096 }
    }
}

/// What a place of the task table holds.
pub(super) enum Body {
    Empty,
    /// Taken out to be polled.
    Running,
    Boxed(Pin<Box<dyn Future<Output = ()>>>),
    Pooled(Rc<dyn PooledTasks>, u32),
}

struct TaskSlot {
    wake: Arc<TaskWake>,
    waker: Waker,
    body: Body,
}

struct TaskTable {
    slots: Vec<TaskSlot>,
    free: Vec<u32>,
}

/// What the futures of one thread share.
pub(super) struct Core {
    ring: RefCell<Ring>,
    tasks: RefCell<TaskTable>,
    ready: RefCell<VecDeque<u32>>,
    main_wake: Arc<TaskWake>,
    main_ready: Cell<bool>,
    doorbell_lost: Cell<bool>,
    /// The executor is being dropped: nothing new starts.
    closing: Cell<bool>,
    task_ended: RefCell<Option<Waker>>,
    remote: Arc<Remote>,
    tasks_max: usize,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

/// The core of the executor that runs on this thread.
pub(super) fn current() -> Rc<Core> {
    CURRENT
        .with_borrow(Clone::clone)
        .expect("this needs the thread of an executor: call it inside Executor::block_on")
}

/// Makes a task ready if it belongs to the executor that runs on this thread.
pub(super) fn push_ready_here(remote: &Arc<Remote>, task: u32) -> bool {
    let pushed = CURRENT.try_with(|current| match &*current.borrow() {
        Some(core) if Arc::ptr_eq(&core.remote, remote) => {
            core.push_ready(task);
            true
        }
        _ => false,
    });
    pushed.unwrap_or(false)
}

/// Sets the thread's executor and takes it back on drop.
struct Entered;

impl Entered {
    fn new(core: &Rc<Core>) -> Self {
        CURRENT.with_borrow_mut(|current| {
            assert!(current.is_none(), "an executor runs on this thread already");
            *current = Some(Rc::clone(core));
        });
        Self
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.with_borrow_mut(|current| *current = None);
    }
}

/// Runs futures on the thread that made it. To be dropped outside [`Executor::block_on`]: the
/// tasks that are left are dropped with it, on this executor.
pub struct Executor {
    core: Rc<Core>,
    _one_thread: PhantomData<*const ()>,
}

impl Executor {
    /// Sets up the ring and the tables.
    ///
    /// # Errors
    /// What the kernel says when it can't make a ring: `EPERM` where io_uring is forbidden by
    /// sysctl or seccomp, `ENOMEM`, or too many open files.
    pub fn new(config: &ExecutorConfig) -> io::Result<Self> {
        Self::over(Ring::new(config.ring_entries)?, config)
    }

    /// The same, with a ring whose completions the kernel brings to the thread by itself, and takes
    /// from it when it ends, at a little more cost for each.
    ///
    /// # Errors
    /// As of [`Executor::new`].
    pub(crate) fn with_plain_ring(config: &ExecutorConfig) -> io::Result<Self> {
        Self::over(Ring::plain(config.ring_entries)?, config)
    }

    pub(super) fn over(ring: Ring, config: &ExecutorConfig) -> io::Result<Self> {
        let remote = Arc::new(Remote::new(config.tasks_max)?);
        let core = Rc::new(Core {
            ring: RefCell::new(ring),
            tasks: RefCell::new(TaskTable { slots: Vec::new(), free: Vec::new() }),
            ready: RefCell::new(VecDeque::with_capacity(config.tasks_max + 1)),
            main_wake: Arc::new(TaskWake::new(MAIN_TASK, Arc::clone(&remote))),
            main_ready: Cell::new(false),
            doorbell_lost: Cell::new(true),
            closing: Cell::new(false),
            task_ended: RefCell::new(None),
            remote,
            tasks_max: config.tasks_max,
        });
        Ok(Self { core, _one_thread: PhantomData })
    }

    /// Runs `future` to its end, and the spawned tasks beside it. Tasks that have not ended by
    /// then stay, and go on in the next call.
    ///
    /// # Panics
    /// When called on a thread that is inside `block_on` already, and when the ring fails.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let _entered = Entered::new(&self.core);
        let waker = Waker::from(Arc::clone(&self.core.main_wake));
        let mut future = pin!(future);
        self.core.main_ready.set(true);
        loop {
            if self.core.main_ready.take() {
                self.core.main_wake.clear_queued();
                let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
                if let Poll::Ready(output) = polled {
                    return output;
                }
            }
            self.core.turn();
        }
    }

    /// Holds the kernel's side of the ring, and what is given up and still in flight on it, beyond
    /// the executor, until this is dropped.
    ///
    /// # Errors
    /// Too many open files.
    pub(crate) fn hold_ring(&self) -> io::Result<OwnedFd> {
        self.core.ring.borrow().share()
    }

    /// Number of `io_uring_enter` calls so far, for measurements.
    #[must_use]
    pub fn enter_calls(&self) -> u64 {
        self.core.ring.borrow().enter_calls()
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.core.closing.set(true);
        let _entered = Entered::new(&self.core);
        let places = self.core.tasks.borrow().slots.len();
        for place in 0..places {
            let body = std::mem::replace(
                &mut self.core.tasks.borrow_mut().slots[place].body,
                Body::Running,
            );
            if let Body::Pooled(pool, index) = &body {
                pool.clear(*index);
            }
            drop(body);
        }
    }
}

/// Starts a task on the executor of the current thread. Allocates the memory of the future; see
/// [`super::TaskPool`] for a way without.
///
/// # Panics
/// Outside [`Executor::block_on`], and when `tasks_max` tasks exist: the callers bound what they
/// start.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    let started = current().start(Body::Boxed(Box::pin(future)));
    assert!(started.is_ok(), "more tasks than the executor was made for");
}

impl Core {
    fn push_ready(&self, task: u32) {
        if task == MAIN_TASK {
            self.main_ready.set(true);
        } else {
            self.ready.borrow_mut().push_back(task);
        }
    }

    /// True when another task can be started.
    pub(super) fn has_room(&self) -> bool {
        self.live_tasks() < self.tasks_max
    }

    pub(super) fn live_tasks(&self) -> usize {
        let tasks = self.tasks.borrow();
        tasks.slots.len() - tasks.free.len()
    }

    /// Remembers whom to wake when the next task ends; there is one such place.
    pub(super) fn wake_at_task_end(&self, waker: &Waker) {
        *self.task_ended.borrow_mut() = Some(waker.clone());
    }

    /// Puts a task into the table; gives it back when the table is full. While the executor is
    /// being dropped the task is dropped unrun.
    pub(super) fn start(&self, body: Body) -> Result<(), Body> {
        if self.closing.get() {
            if let Body::Pooled(pool, index) = &body {
                pool.clear(*index);
            }
            return Ok(());
        }
        let mut tasks = self.tasks.borrow_mut();
        let place = match tasks.free.pop() {
            Some(place) => {
                tasks.slots[place as usize].body = body;
                place
            }
            None if tasks.slots.len() < self.tasks_max => {
                let place = u32::try_from(tasks.slots.len()).expect("tasks_max fits in 32 bits");
                let wake = Arc::new(TaskWake::new(place, Arc::clone(&self.remote)));
                let waker = Waker::from(Arc::clone(&wake));
                tasks.slots.push(TaskSlot { wake, waker, body });
                // The list of free places must not grow when a task ends.
                let free_max = tasks.slots.capacity();
                tasks.free.reserve(free_max);
                place
            }
            None => return Err(body),
        };
        let wake = Arc::clone(&tasks.slots[place as usize].wake);
        drop(tasks);
        Waker::from(wake).wake();
        Ok(())
    }

    /// One round of the loop: tasks, then the ring.
    fn turn(&self) {
        for _ in 0..POLLS_PER_TURN {
            let Some(task) = self.ready.borrow_mut().pop_front() else { break };
            self.run(task);
        }
        self.rearm_doorbell();
        let idle = |core: &Self| core.ready.borrow().is_empty() && !core.main_ready.get();
        let sleeping = self.remote.drain(idle(self), |task| self.push_ready(task));
        // Completions may be there without a call, and then there is nothing to wait for.
        let wait = sleeping && !self.reap();
        if wait {
            self.enter(1);
        } else if self.ring.borrow_mut().needs_enter() {
            self.enter(0);
        }
        self.reap();
    }

    fn run(&self, task: u32) {
        let (mut body, waker) = {
            let mut tasks = self.tasks.borrow_mut();
            let slot = &mut tasks.slots[task as usize];
            slot.wake.clear_queued();
            // Nothing to poll: the task has ended, or its last poll panicked.
            if matches!(slot.body, Body::Empty | Body::Running) {
                return;
            }
            (std::mem::replace(&mut slot.body, Body::Running), slot.waker.clone())
        };
        let mut cx = Context::from_waker(&waker);
        let polled = match &mut body {
            Body::Boxed(future) => future.as_mut().poll(&mut cx),
            Body::Pooled(pool, index) => pool.poll(*index, &mut cx),
            Body::Empty | Body::Running => unreachable!("a task is polled once at a time"),
        };
        if polled.is_pending() {
            self.tasks.borrow_mut().slots[task as usize].body = body;
            return;
        }
        drop(body);
        {
            let mut tasks = self.tasks.borrow_mut();
            tasks.slots[task as usize].body = Body::Empty;
            tasks.free.push(task);
        }
        if let Some(waker) = self.task_ended.take() {
            waker.wake();
        }
    }

    fn rearm_doorbell(&self) {
        if self.doorbell_lost.take() {
            // SAFETY: the entry points to no memory.
            unsafe { self.push(&doorbell_entry(self.remote.doorbell())) };
        }
    }

    /// Takes every completion that is there; true when there was one.
    fn reap(&self) -> bool {
        let mut any = false;
        loop {
            // The borrow ends before the waker runs.
            let reaped = self.ring.borrow_mut().reap_one();
            match reaped {
                Reaped::Nothing => return any,
                Reaped::Silent => {}
                Reaped::Wake(waker) => waker.wake(),
                Reaped::DoorbellLost => self.doorbell_lost.set(true),
            }
            any = true;
        }
    }

    fn enter(&self, wanted: u32) {
        let entered = self.ring.borrow_mut().enter(wanted);
        // Only a programmer's mistake makes the call fail: a bad descriptor, address or thread.
        entered.expect("io_uring_enter on a ring that this thread owns");
    }

    /// Queues an entry, and submits first when the queue is full.
    ///
    /// # Safety
    /// As for [`Ring::try_push`].
    unsafe fn push(&self, entry: &squeue::Entry) {
        // SAFETY: the caller's promise.
        while !unsafe { self.ring.borrow_mut().try_push(entry) } {
            self.enter(0);
            self.reap();
        }
    }

    /// Starts an operation; its completion wakes `waker`.
    ///
    /// # Safety
    /// As for [`Ring::try_push`].
    pub(super) unsafe fn submit(&self, entry: squeue::Entry, waker: Waker) -> u32 {
        let id = self.ring.borrow_mut().allocate(waker);
        // SAFETY: the caller's promise.
        unsafe { self.push(&tagged(entry, id)) };
        id
    }

    /// The result of an operation, or `None` and `waker` is woken when it is there.
    pub(super) fn take_result(&self, id: u32, waker: &Waker) -> Option<i32> {
        self.ring.borrow_mut().take_result(id, Some(waker))
    }

    /// Wants no result of an operation any more.
    pub(super) fn abandon(&self, id: u32) {
        self.ring.borrow_mut().abandon(id);
    }

    /// Cancels an operation and waits for its completion, which may take as long as a disk takes.
    pub(super) fn cancel_and_wait(&self, id: u32) -> i32 {
        if let Some(result) = self.ring.borrow_mut().take_result(id, None) {
            return result;
        }
        // SAFETY: the entry points to no memory.
        unsafe { self.push(&cancel_entry(id)) };
        loop {
            self.reap();
            if let Some(result) = self.ring.borrow_mut().take_result(id, None) {
                return result;
            }
            self.enter(1);
        }
    }
}
