//! Waking a task, from its own thread or from another one.
//!
//! A wake-up on the executor's own thread pushes the task on the ready queue. One from elsewhere
//! puts it into [`Remote`], and rings an eventfd only when the executor sleeps in the kernel. A
//! task is in at most one of the two queues, at most once, so both are bounded by the number of
//! tasks and never grow after set-up.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Wake;

use super::executor::push_ready_here;
use super::lock;

/// Number of the future given to `block_on`, which is not in the task table.
pub(super) const MAIN_TASK: u32 = u32::MAX;

/// The part of an executor that other threads may touch.
pub(super) struct Remote {
    queue: Mutex<RemoteQueue>,
    doorbell: OwnedFd,
}

struct RemoteQueue {
    tasks: Vec<u32>,
    /// The executor waits in the kernel, or is about to: who adds a task rings.
    sleeping: bool,
}

impl Remote {
    pub(super) fn new(tasks_max: usize) -> io::Result<Self> {
        // SAFETY: eventfd takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just created and nobody else knows it.
        let doorbell = unsafe { OwnedFd::from_raw_fd(fd) };
        let tasks = Vec::with_capacity(tasks_max + 1);
        Ok(Self { queue: Mutex::new(RemoteQueue { tasks, sleeping: false }), doorbell })
    }

    pub(super) fn doorbell(&self) -> RawFd {
        self.doorbell.as_raw_fd()
    }

    /// Hands every queued task to `ready`. When there was none and `may_sleep` holds, marks the
    /// executor as sleeping and returns true; from then on a wake-up rings the doorbell.
    pub(super) fn drain(&self, may_sleep: bool, mut ready: impl FnMut(u32)) -> bool {
        let mut queue = lock(&self.queue);
        queue.sleeping = may_sleep && queue.tasks.is_empty();
        for task in queue.tasks.drain(..) {
            ready(task);
        }
        queue.sleeping
    }

    fn push(&self, task: u32) {
        let ring_it = {
            let mut queue = lock(&self.queue);
            queue.tasks.push(task);
            std::mem::take(&mut queue.sleeping)
        };
        if ring_it {
            let one = 1_u64.to_ne_bytes();
            // SAFETY: the buffer is 8 readable bytes for the duration of the call. The result is
            // ignored: a full counter (EAGAIN) means that the doorbell has been rung.
            unsafe { libc::write(self.doorbell(), one.as_ptr().cast(), one.len()) };
        }
    }
}

/// What the wakers of one place in the task table share. It outlives the tasks of that place, so
/// a late wake-up reaches the next task there, which must take it as a spurious one.
pub(super) struct TaskWake {
    task: u32,
    queued: AtomicBool,
    remote: Arc<Remote>,
}

impl TaskWake {
    pub(super) fn new(task: u32, remote: Arc<Remote>) -> Self {
        Self { task, queued: AtomicBool::new(false), remote }
    }

    /// To be called when the task was taken from its queue, before it is polled, so that a
    /// wake-up during the poll queues it again.
    pub(super) fn clear_queued(&self) {
        // Acquire pairs with the release in `wake_by_ref`: the poll sees what the waker did
        // before it found the task already queued.
        self.queued.swap(false, Ordering::Acquire);
    }
}

impl Wake for TaskWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Release pairs with the acquire in `clear_queued`.
        if self.queued.swap(true, Ordering::Release) {
            return;
        }
        if !push_ready_here(&self.remote, self.task) {
            self.remote.push(self.task);
        }
    }
}
