//! Threads that read views for the executor.
//!
//! A view reads files and expands payloads, which blocks. The executor hands a job with its
//! memory over and polls a slot; a reading thread fills the slot and wakes the task. Jobs that
//! wait are bounded by the requests that the server lets in flight; one beyond that is an error
//! of the request. A task that is dropped leaves its slot to the thread, memory included.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use tidemark_block::{ByteRange, Chunk, StatusExtent};

use crate::error::ViewError;
use crate::storage::Storage;
use crate::view::View;

/// Reading threads of one view.
const THREADS: usize = 4;

enum Job {
    Read { start: u64, chunk: Chunk, slot: Arc<Slot<Chunk>> },
    Status { range: ByteRange, extents_max: usize, slot: Arc<Slot<Vec<StatusExtent>>> },
}

/// The threads of one view. They end when this is dropped.
pub(super) struct Readers {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

/// Why a job brought nothing.
pub(super) enum ReadFailure {
    /// The view failed.
    View(ViewError),
    /// More jobs wait than are allowed.
    Busy,
}

impl Readers {
    pub(super) fn start<S: Storage>(view: &Arc<View<S>>, waiting_max: usize) -> io::Result<Self> {
        let (sender, receiver) = bounded(waiting_max);
        let mut readers = Self { jobs: Some(sender), threads: Vec::new() };
        for _ in 0..THREADS {
            let (view, receiver) = (Arc::clone(view), receiver.clone());
            let thread = std::thread::Builder::new()
                .name("view".into())
                .spawn(move || work(&view, &receiver))?;
            readers.threads.push(thread);
        }
        Ok(readers)
    }

    /// Fills the chunk from a place on.
    pub(super) async fn read(&self, start: u64, chunk: Chunk) -> Result<Chunk, ReadFailure> {
        let slot = Arc::new(Slot::default());
        self.hand_over(Job::Read { start, chunk, slot: Arc::clone(&slot) })?;
        Answer(slot).await.map_err(ReadFailure::View)
    }

    /// What is hole and what is data from the start of `range` on.
    pub(super) async fn status(
        &self,
        range: ByteRange,
        extents_max: usize,
    ) -> Result<Vec<StatusExtent>, ReadFailure> {
        let slot = Arc::new(Slot::default());
        self.hand_over(Job::Status { range, extents_max, slot: Arc::clone(&slot) })?;
        Answer(slot).await.map_err(ReadFailure::View)
    }

    fn hand_over(&self, job: Job) -> Result<(), ReadFailure> {
        let jobs = self.jobs.as_ref().ok_or(ReadFailure::Busy)?;
        jobs.try_send(job).map_err(|_| ReadFailure::Busy)
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that reads a view has panicked");
            }
        }
    }
}

fn work<S: Storage>(view: &View<S>, jobs: &Receiver<Job>) {
    while let Ok(job) = jobs.recv() {
        match job {
            Job::Read { start, mut chunk, slot } => {
                let read = view.read_at(chunk.as_mut_slice(), start);
                slot.fill(read.map(|()| chunk));
            }
            Job::Status { range, extents_max, slot } => {
                let mut extents = Vec::new();
                let found = view.status(range, extents_max, &mut extents);
                slot.fill(found.map(|()| extents));
            }
        }
    }
}

/// Where one result is put and one task waits for it.
struct Slot<T>(Mutex<SlotState<T>>);

struct SlotState<T> {
    result: Option<Result<T, ViewError>>,
    waiting: Option<Waker>,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self(Mutex::new(SlotState { result: None, waiting: None }))
    }
}

impl<T> Slot<T> {
    fn fill(&self, result: Result<T, ViewError>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
    type Output = Result<T, ViewError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                state.waiting = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
