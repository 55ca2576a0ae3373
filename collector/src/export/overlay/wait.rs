//! Waiting for a range on a thread that has no executor.
//!
//! The threads of an export take and hold their ranges themselves, so that a request whose
//! client has gone still ends under its lock. Whoever holds a range runs on a thread and waits
//! for no other range, so every wait ends.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future to its end on this thread, which parks in between.
pub(super) fn wait_for<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            // An unpark that came before is remembered by the thread.
            Poll::Pending => thread::park(),
        }
    }
}
