//! Tasks of one type in memory that was allocated once.

use std::cell::{RefCell, UnsafeCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::executor::{Body, current};

/// Preallocated places for tasks that are all the same kind of future. Clones share the places.
///
/// At the bound [`TaskPool::try_spawn`] gives the future back.
pub struct TaskPool<F> {
    places: Rc<Places<F>>,
}

struct Places<F> {
    futures: Box<[UnsafeCell<Option<F>>]>,
    free: RefCell<Vec<u32>>,
}

/// The executor's view of a pool.
pub(super) trait PooledTasks {
    /// Polls the task at `index`; one that is ready leaves its place.
    fn poll(&self, index: u32, cx: &mut Context<'_>) -> Poll<()>;
    /// Drops the task at `index`, if there is one.
    fn clear(&self, index: u32);
}

impl<F: Future<Output = ()> + 'static> TaskPool<F> {
    /// Allocates places for `capacity` tasks.
    ///
    /// # Panics
    /// When `capacity` does not fit in 32 bits.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let last = u32::try_from(capacity).expect("a pool has fewer than 2^32 places");
        let futures = (0..capacity).map(|_| UnsafeCell::new(None)).collect();
        let free = RefCell::new((0..last).rev().collect());
        Self { places: Rc::new(Places { futures, free }) }
    }

    /// Starts a task on the executor of the current thread, without allocating.
    ///
    /// # Errors
    /// The future itself, when every place of the pool, or of the executor's task table, is in
    /// use.
    ///
    /// # Panics
    /// Outside `Executor::block_on`.
    pub fn try_spawn(&self, future: F) -> Result<(), F> {
        let core = current();
        if !core.has_room() {
            return Err(future);
        }
        let Some(index) = self.places.free.borrow_mut().pop() else { return Err(future) };
        // SAFETY: a free place holds no future that could be in use, and this thread is the only
        // one that knows the pool.
        unsafe { *self.places.futures[index as usize].get() = Some(future) };
        let tasks: Rc<dyn PooledTasks> = Rc::clone(&self.places) as Rc<dyn PooledTasks>;
        let started = core.start(Body::Pooled(tasks, index));
        assert!(started.is_ok(), "there was room in the task table");
        Ok(())
    }
}

impl<F> Clone for TaskPool<F> {
    fn clone(&self) -> Self {
        Self { places: Rc::clone(&self.places) }
    }
}

impl<F: Future<Output = ()> + 'static> PooledTasks for Places<F> {
    fn poll(&self, index: u32, cx: &mut Context<'_>) -> Poll<()> {
        // SAFETY: the executor polls a task once at a time and on this thread, and the place is
        // not free, so `try_spawn` does not touch it: this is the only reference.
        let place = unsafe { &mut *self.futures[index as usize].get() };
        let future = place.as_mut().expect("a task that is not done is in its place");
        // SAFETY: the boxed places never move, and the future is dropped where it is.
        let polled = unsafe { Pin::new_unchecked(future) }.poll(cx);
        if polled.is_ready() {
            self.clear(index);
        }
        polled
    }

    fn clear(&self, index: u32) {
        // SAFETY: as in `poll`; the caller holds no reference into the place any more.
        unsafe { *self.futures[index as usize].get() = None };
        self.free.borrow_mut().push(index);
    }
}
