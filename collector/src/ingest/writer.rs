//! The thread that writes one volume's journal, and the bounded way to it.
//!
//! What enters: commands of the sessions; those that wait hold at most [`QUEUE_BYTES_MAX`] of
//! records, then the session that brings more waits. What leaves: everything that [`VolumeCore`]
//! does. The thread takes what waits, up to [`GROUP_BYTES_MAX`], and syncs once for all of it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::owner::{Command, VolumeCore};
use crate::storage::Storage;

/// Bytes of records that may wait for the thread.
pub const QUEUE_BYTES_MAX: usize = 32 << 20;
/// Bytes of records that one sync makes durable, at most (one frame may go beyond it).
pub const GROUP_BYTES_MAX: usize = 16 << 20;
/// Commands that may wait; frames without records are small, so this bounds those.
const QUEUE_COMMANDS_MAX: usize = 1024;

/// The way to a volume's writer.
#[derive(Clone)]
pub struct WriterQueue {
    commands: Sender<Command>,
    budget: Arc<ByteBudget>,
}

/// The writer has ended.
#[derive(Debug, thiserror::Error)]
#[error("the volume's writer has stopped")]
pub struct WriterStopped;

impl WriterQueue {
    /// Hands a command over; waits while too much waits already.
    ///
    /// # Errors
    /// [`WriterStopped`].
    pub fn send(&self, command: Command) -> Result<(), WriterStopped> {
        self.budget.take(weight(&command))?;
        self.commands.send(command).map_err(|_| WriterStopped)
    }
}

fn weight(command: &Command) -> usize {
    match command {
        Command::Append(batch) => batch.body.len(),
        Command::Open(_)
        | Command::Standing { .. }
        | Command::Closed(_)
        | Command::Change(_)
        | Command::Stop => 0,
    }
}

/// A volume's writer. It ends with [`Command::Stop`], or when every queue to it is gone.
pub struct Writer {
    thread: JoinHandle<()>,
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// What the system says when it can't make one.
    pub fn start<S: Storage>(core: VolumeCore<S>) -> std::io::Result<(Self, WriterQueue)> {
        let (sender, receiver) = bounded(QUEUE_COMMANDS_MAX);
        let budget = Arc::new(ByteBudget::default());
        let queue = WriterQueue { commands: sender, budget: Arc::clone(&budget) };
        let thread = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || write(core, &receiver, &budget))?;
        Ok((Self { thread }, queue))
    }

    /// Waits until everything that was handed over is durable.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("a volume's writer has panicked");
        }
    }
}

fn write<S: Storage>(mut core: VolumeCore<S>, commands: &Receiver<Command>, budget: &ByteBudget) {
    // Also when this thread panics: whoever waits for room then has to hear of it.
    let _closed = CloseOnDrop(budget);
    let mut stopping = false;
    while !stopping && let Ok(first) = commands.recv() {
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(command) = next {
            stopping |= matches!(command, Command::Stop);
            bytes += weight(&command);
            core.handle(command);
            let more = !stopping && bytes < GROUP_BYTES_MAX;
            next = if more { commands.try_recv().ok() } else { None };
        }
        core.finish();
        budget.give(bytes);
    }
}

struct CloseOnDrop<'a>(&'a ByteBudget);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

/// Counts bytes that wait.
#[derive(Default)]
struct ByteBudget {
    state: Mutex<BudgetState>,
    changed: Condvar,
}

#[derive(Default)]
struct BudgetState {
    used_bytes: usize,
    closed: bool,
}

impl ByteBudget {
    /// Waits for room. Something larger than the whole budget gets in when nothing else waits.
    fn take(&self, bytes: usize) -> Result<(), WriterStopped> {
        let full = |state: &mut BudgetState| {
            !state.closed && state.used_bytes > 0 && state.used_bytes + bytes > QUEUE_BYTES_MAX
        };
        let waited = self.changed.wait_while(self.lock(), full);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return Err(WriterStopped);
        }
        state.used_bytes += bytes;
        Ok(())
    }

    fn give(&self, bytes: usize) {
        self.lock().used_bytes -= bytes;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, BudgetState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
