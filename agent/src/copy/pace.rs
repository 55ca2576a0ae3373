//! How fast a copy may go: its waits, and the limit on what it reads.

use std::cell::Cell;
use std::time::Duration;

/// First and longest pause before a copy is tried again. There is one because a try may fail at
/// once, with nothing to wait for, and this task must not keep its thread from the clients.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(20);
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often the copier looks for room by itself.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Longest wait for a rate's next bytes before the rate is looked at again.
const WAIT_MAX: Duration = Duration::from_millis(100);
/// What a copy may have saved up while it waited for something else.
const SAVED_MAX: Duration = Duration::from_millis(200);

/// Hands out bytes at a rate that may change.
#[derive(Default)]
pub(super) struct Throttle {
    /// When everything that was handed out is paid for.
    paid_at: Cell<Duration>,
}

impl Throttle {
    /// Takes `bytes` when they are due; else says how long to wait before the next try.
    pub(super) fn take(
        &self,
        bytes: u64,
        bytes_per_second: Option<u64>,
        now: Duration,
    ) -> Option<Duration> {
        let Some(rate) = bytes_per_second else {
            self.paid_at.set(now);
            return None;
        };
        let paid_at = self.paid_at.get().max(now.saturating_sub(SAVED_MAX));
        if paid_at > now {
            return Some((paid_at - now).min(WAIT_MAX));
        }
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
        let price = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.paid_at.set(paid_at.saturating_add(price));
        None
    }
}
