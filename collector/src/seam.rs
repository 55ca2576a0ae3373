//! What a run can't repeat by itself: time and randomness, behind traits.
//!
//! The daemon passes [`SystemClock`] and [`SystemRandom`] down; the simulator passes its own.
//! Nothing else in the collector asks the operating system for either.

#![allow(clippy::disallowed_methods, reason = "these are the seams to time and randomness")]

use std::time::{Duration, Instant};

use ring::rand::{SecureRandom, SystemRandom as RingRandom};
use tidemark_wire::WallMicros;

/// The two clocks.
pub trait Clock: Send + Sync + 'static {
    /// Wall-clock time, for people; may jump.
    fn wall(&self) -> WallMicros;
    /// Time since a fixed moment of this run; never goes back. Ages are measured with it.
    fn monotonic(&self) -> Duration;
}

/// The boot of the machine, as the kernel names it; what it is says nothing else.
///
/// # Errors
/// The operating system's.
pub fn boot_id() -> std::io::Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let id: uuid::Uuid = text.trim().parse().map_err(std::io::Error::other)?;
    Ok(*id.as_bytes())
}

/// Source of random bytes that nobody can guess.
pub trait Random: Send + Sync + 'static {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    started: Instant,
}

impl Default for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "this is the seam")]
    fn default() -> Self {
        Self { started: Instant::now() }
    }
}

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "this is the seam")]
    fn wall(&self) -> WallMicros {
        let now = jiff::Timestamp::now().as_microsecond();
        WallMicros(u64::try_from(now).unwrap_or(0))
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}

/// The kernel's random bytes.
#[derive(Debug)]
pub struct SystemRandom(RingRandom);

impl Default for SystemRandom {
    #[allow(clippy::disallowed_methods, reason = "this is the seam")]
    fn default() -> Self {
        Self(RingRandom::new())
    }
}

impl Random for SystemRandom {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.fill(bytes).expect("getrandom(2) fails only for an invalid buffer");
    }
}
