//! One-threaded executors on io_uring, and the files and sockets that are used on them.
//!
//! What enters: futures that are not `Send`, spawned on the thread that will run them. What
//! leaves: their effects on files and sockets, by way of one ring for each thread. The executor
//! owns its tasks and its ring; other threads reach it through wakers, mailboxes, events and
//! [`WorkersHandle::spawn_on`] only. Nothing here is persistent, so a crash loses what was in
//! flight and nothing else.
//!
//! One loop does everything: tasks run until none is ready, then a single `io_uring_enter`
//! submits what they queued and waits for the next completion. In the steady state no memory is
//! allocated for an operation, a wake-up, a buffer of a [`BufferPool`] or a task of a
//! [`TaskPool`].
//!
//! An operation owns its buffers until the kernel is done with them; `op.rs` has the argument.

mod buffers;
mod driver;
mod event;
mod executor;
pub mod file;
mod first_of;
mod mailbox;
mod op;
mod ring;
pub mod socket;
mod task_pool;
#[cfg(test)]
mod tests;
mod time;
mod wait_list;
mod wake;
mod workers;

pub use buffers::BufferPool;
pub(crate) use driver::driver_command;
pub use event::{Event, EventWait};
pub use executor::{Executor, ExecutorConfig, spawn};
pub use first_of::first_of;
pub use mailbox::{MailReceiver, MailSender, SendError, TrySendError, mailbox};
pub use task_pool::TaskPool;
pub use time::sleep;
pub use workers::{Workers, WorkersHandle};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex whose data is valid between any two statements of its holders, so that a panic
/// of one of them leaves nothing half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
