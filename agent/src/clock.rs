//! The seam to time: the core asks a [`Clock`], so that a simulation can own it.

#![allow(clippy::disallowed_methods, reason = "this is the seam to time")]

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tidemark_block::engine::sleep;
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

/// Time, as a task of an executor sees it.
pub trait Timer: 'static {
    /// Time since some fixed moment; it never goes back.
    fn now(&self) -> Duration;

    /// Ends when `duration` has passed.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()>;
}

/// The time of the engine's executors.
pub struct EngineTimer {
    clock: Arc<dyn Clock>,
}

impl EngineTimer {
    /// Takes the monotonic time from `clock`, which is that of the machine.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock }
    }
}

impl Timer for EngineTimer {
    fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    async fn sleep(&self, duration: Duration) {
        sleep(duration).await;
    }
}
