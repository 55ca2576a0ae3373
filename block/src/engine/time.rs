//! Waiting for time to pass.

use std::time::Duration;

use io_uring::{opcode, squeue, types};

use super::op::{Op, Operation};

struct Timeout {
    after: types::Timespec,
}

// SAFETY: the entry points to `after`, inside the operation.
unsafe impl Operation for Timeout {
    fn entry(&mut self) -> squeue::Entry {
        opcode::Timeout::new(&raw const self.after).build()
    }
}

/// Returns when `duration` has passed on the monotonic clock.
pub async fn sleep(duration: Duration) {
    // The result says that the time is over; an error of this operation means the same here.
    let _ = Op::new(Timeout { after: duration.into() }).await;
}
