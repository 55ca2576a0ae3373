//! An operation of the kernel as a future.
//!
//! Why the kernel never touches memory that was given back: an [`Op`] owns its operation, and the
//! operation owns or borrows everything its queue entry points to. Memory inside the operation
//! (message headers, time values) is at a fixed address, because an entry is built only when the
//! future is first polled and therefore pinned. The operation is handed out or dropped only after
//! the completion was seen: either the future returns it with the result, or its drop asks the
//! kernel to cancel and waits, on the spot, until the completion is there. Leaking a pinned
//! future leaks its memory too, so that is no way around it. An entry that points to no memory may
//! say that it is not waited for ([`Operation::WAITS_AT_DROP`]).

use std::future::Future;
use std::io;
use std::marker::PhantomPinned;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use io_uring::squeue;

use super::executor::{Core, current};

/// What an [`Op`] runs.
///
/// # Safety
/// Every address in the entry points into `self` or into memory that stays valid while `self`
/// lives, and is not used by others in a way that conflicts with what the kernel does there.
pub(super) unsafe trait Operation {
    /// Builds the entry. Called once, with `self` at the address it keeps until completion.
    fn entry(&mut self) -> squeue::Entry;

    /// Called instead of handing out the result when the future was dropped before it.
    fn discard(&mut self, _result: io::Result<u32>) {}

    /// False for an operation that the kernel can't cancel and that ends only when somebody else
    /// wants it to: a future that is dropped leaves it in flight, and it ends with its ring at the
    /// latest. Its entry must then point to no memory, and its descriptor outlive the executor.
    const WAITS_AT_DROP: bool = true;
}

enum State {
    New,
    InFlight { core: Rc<Core>, id: u32 },
    Finished,
}

/// See the module's text.
pub(super) struct Op<T: Operation> {
    state: State,
    operation: Option<T>,
    _pinned: PhantomPinned,
}

impl<T: Operation> Op<T> {
    pub(super) fn new(operation: T) -> Self {
        Self { state: State::New, operation: Some(operation), _pinned: PhantomPinned }
    }
}

impl<T: Operation> Future for Op<T> {
    type Output = (io::Result<u32>, T);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: the operation is moved out only after the kernel is done with it, and nothing
        // else in here is moved.
        let this = unsafe { self.get_unchecked_mut() };
        match &this.state {
            State::New => {
                let core = current();
                let operation = this.operation.as_mut().expect("a new operation is there");
                let entry = operation.entry();
                // SAFETY: by the contract of `Operation` the entry's addresses are valid while
                // `operation` lives where it is, and that is until the completion (module text).
                let id = unsafe { core.submit(entry, cx.waker().clone()) };
                this.state = State::InFlight { core, id };
                Poll::Pending
            }
            State::InFlight { core, id } => match core.take_result(*id, cx.waker()) {
                None => Poll::Pending,
                Some(result) => {
                    this.state = State::Finished;
                    let operation = this.operation.take().expect("taken only once, here");
                    Poll::Ready((checked(result), operation))
                }
            },
            State::Finished => panic!("an operation was polled after its end"),
        }
    }
}

impl<T: Operation> Drop for Op<T> {
    fn drop(&mut self) {
        if let State::InFlight { core, id } = &self.state {
            if !T::WAITS_AT_DROP {
                core.abandon(*id);
                return;
            }
            let result = checked(core.cancel_and_wait(*id));
            if let Some(operation) = &mut self.operation {
                operation.discard(result);
            }
        }
    }
}

/// The kernel's result: a count, or a negated errno.
fn checked(result: i32) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}
