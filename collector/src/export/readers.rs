//! Threads that do an export's blocking work for the executor.
//!
//! Views and clones read and write files and expand payloads, which blocks. The executor hands a
//! job with its memory over and polls a slot; a thread fills the slot and wakes the task. Jobs
//! that wait are bounded by the requests that the frontend lets in flight; one beyond that is an
//! error of the request. A task that is dropped leaves its job to the thread, memory included.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::content::Content;
use super::error::DiskError;
use crate::storage::Storage;

/// Threads of one export.
const THREADS: usize = 4;

type Job<S> = Box<dyn FnOnce(&Content<S>) + Send>;

/// The threads of one export. They end when this is dropped, or before by [`Readers::end`].
pub(super) struct Readers<S: Storage> {
    jobs: Mutex<Option<Sender<Job<S>>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl<S: Storage> Readers<S> {
    pub(super) fn start(content: &Arc<Content<S>>, waiting_max: usize) -> io::Result<Self> {
        let (sender, receiver) = bounded(waiting_max);
        let readers = Self { jobs: Mutex::new(Some(sender)), threads: Mutex::default() };
        for _ in 0..THREADS {
            let (content, receiver) = (Arc::clone(content), receiver.clone());
            let thread = std::thread::Builder::new()
                .name("export-io".into())
                .spawn(move || work(&content, &receiver))?;
            lock(&readers.threads).push(thread);
        }
        Ok(readers)
    }

    /// Does some work on a thread and gives its result.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Content<S>) -> Result<T, DiskError> + Send + 'static,
    ) -> Result<T, DiskError> {
        let slot = Arc::new(Slot::default());
        let filled = Arc::clone(&slot);
        let job: Job<S> = Box::new(move |content| filled.fill(work(content)));
        let jobs = lock(&self.jobs).clone().ok_or(DiskError::Ended)?;
        jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => DiskError::Busy,
            TrySendError::Disconnected(_) => DiskError::Ended,
        })?;
        drop(jobs);
        Answer(slot).await
    }

    /// Lets what was handed over end, and the threads after it; later requests fail.
    pub(super) fn end(&self) {
        *lock(&self.jobs) = None;
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            if thread.join().is_err() {
                tracing::error!("a thread of an export has panicked");
            }
        }
    }
}

impl<S: Storage> Drop for Readers<S> {
    fn drop(&mut self) {
        self.end();
    }
}

/// What is guarded here is replaced whole, so a poisoned lock is usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work<S: Storage>(content: &Content<S>, jobs: &Receiver<Job<S>>) {
    while let Ok(job) = jobs.recv() {
        job(content);
    }
}

/// Where one result is put and one task waits for it.
struct Slot<T>(Mutex<SlotState<T>>);

struct SlotState<T> {
    result: Option<Result<T, DiskError>>,
    waiting: Option<Waker>,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self(Mutex::new(SlotState { result: None, waiting: None }))
    }
}

impl<T> Slot<T> {
    fn fill(&self, result: Result<T, DiskError>) {
        let mut state = lock(&self.0);
        state.result = Some(result);
        let waiting = state.waiting.take();
        drop(state);
        if let Some(waker) = waiting {
            waker.wake();
        }
    }
}

struct Answer<T>(Arc<Slot<T>>);

impl<T> Future for Answer<T> {
    type Output = Result<T, DiskError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = lock(&self.0.0);
        match state.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                state.waiting = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
