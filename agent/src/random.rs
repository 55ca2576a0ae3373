//! Randomness behind a seam, so that the simulator can repeat a run.

use ::ring::rand::{SecureRandom, SystemRandom};

/// A source of unpredictable bytes.
pub trait Random: Send + Sync + 'static {
    /// Sixteen random bytes, for an identifier.
    fn bytes(&self) -> [u8; 16];
}

/// The operating system's source.
pub struct SystemSource(SystemRandom);

impl Default for SystemSource {
    #[allow(clippy::disallowed_methods, reason = "this is the seam to randomness")]
    fn default() -> Self {
        Self(SystemRandom::new())
    }
}

impl Random for SystemSource {
    fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.0.fill(&mut bytes).expect("the kernel's random source answers once the machine is up");
        bytes
    }
}
