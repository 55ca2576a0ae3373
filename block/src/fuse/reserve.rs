//! Waiting for a device's memory on a thread that has no executor.
//!
//! A write's payload lies in the buffer of the fuser thread that read it, and that buffer is used
//! again as soon as the call returns. So the one copy into the device's memory is made by the
//! fuser thread, and the thread has to run [`Device::reserve`](crate::Device::reserve) itself. In
//! the steady state memory is free and the future is ready at the first poll: no switch, no
//! allocation. When all memory is in use the thread parks until a waker from a worker unparks it;
//! that is the back-pressure on the kernel's queue, and no worker ever waits for a fuser thread,
//! so it ends. It asks of the device that `reserve` waits on wakers only and starts no operation
//! on an executor's ring.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

/// Unparks the thread that waits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

thread_local! {
    /// One waker for each thread, so that waiting does not allocate.
    static WAKER: Waker = Waker::from(Arc::new(Unpark(thread::current())));
}

/// Runs a future to its end on this thread, which parks in between.
pub(super) fn wait_for<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    WAKER.with(|waker| {
        let mut context = Context::from_waker(waker);
        loop {
            match future.as_mut().poll(&mut context) {
                Poll::Ready(output) => return output,
                // An unpark that came before is remembered by the thread, a needless one costs a
                // needless poll.
                Poll::Pending => thread::park(),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_ready_future_is_polled_once() {
        let mut polls = 0;
        let answer = wait_for(poll_fn(|_| {
            polls += 1;
            Poll::Ready(7)
        }));
        assert_eq!((answer, polls), (7, 1));
    }

    #[test]
    fn another_thread_wakes_the_one_that_waits() {
        let mut waker_of_other = None;
        let answer = wait_for(poll_fn(|context| {
            if waker_of_other.is_some() {
                return Poll::Ready(7);
            }
            let waker = context.waker().clone();
            waker_of_other = Some(thread::spawn(move || {
                thread::sleep(Duration::from_millis(20));
                waker.wake();
            }));
            Poll::Pending
        }));
        assert_eq!(answer, 7);
        waker_of_other.expect("it was polled").join().expect("the other thread ends");
    }
}
