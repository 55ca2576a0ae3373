//! The bound on what one client has in flight.
//!
//! The reader of a connection waits here before it takes in more; a client beyond the bound finds
//! its socket full. The gate belongs to one connection and one thread.

use std::cell::Cell;

use crate::engine::Event;

/// How much of a connection's bounds is in use.
pub(super) struct Gate {
    requests: Cell<usize>,
    requests_max: usize,
    write_bytes: Cell<usize>,
    write_bytes_max: usize,
    left: Event,
}

impl Gate {
    /// A gate for `requests_max` tasks and `write_bytes_max` bytes of write payloads.
    pub(super) fn new(requests_max: usize, write_bytes_max: usize) -> Self {
        Self {
            requests: Cell::new(0),
            requests_max,
            write_bytes: Cell::new(0),
            write_bytes_max,
            left: Event::new(),
        }
    }

    /// Waits until one more task with this many bytes of payload has room. A payload beyond the
    /// bound has room when there is no other.
    pub(super) async fn room(&self, write_bytes: usize) {
        self.until(|gate| {
            let bytes = gate.write_bytes.get();
            let bytes_fit = bytes == 0 || bytes + write_bytes <= gate.write_bytes_max;
            gate.requests.get() < gate.requests_max && bytes_fit
        })
        .await;
    }

    /// Waits until no task is left.
    pub(super) async fn idle(&self) {
        self.until(|gate| gate.requests.get() == 0).await;
    }

    /// Counts a task in.
    pub(super) fn enter(&self, write_bytes: usize) {
        self.requests.set(self.requests.get() + 1);
        self.write_bytes.set(self.write_bytes.get() + write_bytes);
    }

    /// Counts a task out.
    pub(super) fn leave(&self, write_bytes: usize) {
        self.requests.set(self.requests.get() - 1);
        self.write_bytes.set(self.write_bytes.get() - write_bytes);
        self.left.notify_all();
    }

    async fn until(&self, condition: impl Fn(&Self) -> bool) {
        loop {
            let left = self.left.wait();
            if condition(self) {
                return;
            }
            left.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn is_ready(future: impl Future<Output = ()>) -> bool {
        pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn the_gate_closes_at_either_bound_and_opens_again() {
        let gate = Gate::new(3, 1000);
        assert!(is_ready(gate.room(5000)), "alone, any payload fits");
        gate.enter(5000);
        assert!(!is_ready(gate.room(0)), "the bytes are used up");
        gate.leave(5000);
        gate.enter(600);
        assert!(is_ready(gate.room(400)) && !is_ready(gate.room(401)));
        gate.enter(0);
        gate.enter(0);
        assert!(!is_ready(gate.room(0)), "three tasks");
        assert!(!is_ready(gate.idle()));
        gate.leave(600);
        gate.leave(0);
        gate.leave(0);
        assert!(is_ready(gate.idle()));
    }
}
