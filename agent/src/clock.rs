//! The seam to time: the core asks a [`Clock`], so that a simulation can own it.

#![allow(clippy::disallowed_methods, reason = "this is the seam to time")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tidemark_wire::WallMicros;

/// Tells the time.
pub trait Clock: Send + Sync {
    /// The wall clock; it may step in either direction.
    fn wall(&self) -> WallMicros;
    /// Time since some fixed moment; it never goes back.
    fn monotonic(&self) -> Duration;
    /// Lets the calling thread sleep; in a simulation this is where others get their turn.
    fn sleep(&self, duration: Duration);
}

/// The machine's own clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn wall(&self) -> WallMicros {
        // A clock set before 1970 reads as 1970; times of records only ever rise from there.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        WallMicros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}
