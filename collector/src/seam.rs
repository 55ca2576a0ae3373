//! Where time and randomness come from. Everything in the collector that needs either is given
//! one of these, so that the simulator can run the same code with its own.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ring::rand::{SecureRandom, SystemRandom};
use tidemark_wire::WallMicros;

/// A clock.
pub trait Clock: Send + Sync + 'static {
    /// Time since some fixed moment; never goes back.
    fn monotonic(&self) -> Duration;
    /// The time that people use; may jump.
    fn wall(&self) -> WallMicros;
}

/// The machine's clock; its fixed moment is its making.
pub struct RealClock {
    origin: Instant,
}

impl RealClock {
    /// A clock that begins now.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "this is the seam")]
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Clock for RealClock {
    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }

    #[allow(clippy::disallowed_methods, reason = "this is the seam")]
    fn wall(&self) -> WallMicros {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        WallMicros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }
}

/// A source of identities.
pub trait Random: Send + Sync + 'static {
    /// Sixteen bytes that nobody has seen before.
    fn id_bytes(&self) -> [u8; 16];
}

/// The system's generator.
pub struct RealRandom(SystemRandom);

impl RealRandom {
    /// The system's generator.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "this is the seam")]
    pub fn new() -> Self {
        Self(SystemRandom::new())
    }
}

impl Default for RealRandom {
    fn default() -> Self {
        Self::new()
    }
}

impl Random for RealRandom {
    fn id_bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        // getrandom(2) fails on no kernel that this program runs on once the pool is seeded, and
        // it waits until then.
        self.0.fill(&mut bytes).expect("the system gives random bytes");
        bytes
    }
}
