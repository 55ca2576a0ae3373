//! What comes between two sessions: a pause that doubles with each session that was of no use,
//! and the log's line about it. A machine that never waits, as [`super::stream::Session`] is.

use std::time::Duration;

use tidemark_wire::session::RefuseReason;

use super::incoming::StreamError;
use super::{Drained, Orders, PAUSE_MAX, ShipperParts, is_drained};
use crate::random::Random;
use crate::ring::Consumer;

/// First pause after a failed connection.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// An agent that is fenced for so many sessions in a row is not just restarted; from then on it asks
/// seldom, and the other one is left alone.
const FENCED_QUICK: u32 = 8;
/// Pause of an agent that is fenced.
const FENCED_PAUSE: Duration = Duration::from_secs(60);

/// What the driver does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Dials, and serves a session.
    Dial,
    /// Lets some of this time pass and asks again.
    Rest(Duration),
    /// Nothing: the shipper was told to stop.
    Done(Drained),
}

/// See the module's documentation.
pub struct Pauses {
    peer: String,
    pause: Duration,
    until: Option<Duration>,
    said: String,
    /// Sessions in a row that the collector refused for another agent's.
    fenced: u32,
}

impl Pauses {
    /// For sessions with `peer`, which is only a name; the first one begins at once.
    #[must_use]
    pub fn new(peer: String) -> Self {
        Self { peer, pause: PAUSE_MIN, until: None, said: String::new(), fenced: 0 }
    }

    /// A session ended, or did not come about.
    pub fn begin(&mut self, parts: &ShipperParts, error: &StreamError) {
        if error.was_of_use() {
            self.pause = PAUSE_MIN;
            self.said.clear();
        }
        // The same failure again and again is said once.
        let text = error.to_string();
        if text != self.said {
            let (volume, peer) = (parts.capture.name(), &self.peer);
            tracing::warn!(volume, "collector {peer}: {text}; trying again");
            self.said = text;
        }
        let longer = error.pause_min().unwrap_or(self.pause).max(self.pause);
        let longer = longer.max(self.fenced_pause(parts, error));
        self.until = Some(parts.clock.monotonic() + jittered(longer, parts.random.as_ref()));
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    fn fenced_pause(&mut self, parts: &ShipperParts, error: &StreamError) -> Duration {
        match error.refusal() {
            Some(refuse) if refuse.reason == RefuseReason::Fenced => self.fenced += 1,
            // A collector that can't be reached says nothing about the other agent.
            None if matches!(error, StreamError::Dial(_)) => {}
            _ => self.fenced = 0,
        }
        if self.fenced < FENCED_QUICK {
            return Duration::ZERO;
        }
        if self.fenced == FENCED_QUICK {
            tracing::error!(
                volume = parts.capture.name(),
                "the volume is fenced: another agent protects it, and nothing of this disk is \
                 sent; the collector is asked once a minute from here on"
            );
        }
        FENCED_PAUSE
    }

    /// What to do now.
    pub fn next(&self, parts: &ShipperParts, consumer: &mut Consumer, orders: Orders) -> Next {
        let now = parts.clock.monotonic();
        let Some(left) = self.until.and_then(|until| until.checked_sub(now)) else {
            return Next::Dial;
        };
        if left.is_zero() {
            return Next::Dial;
        }
        if orders.stop_now {
            return Next::Done(Drained::No);
        }
        // A collector that can't be reached is no reason to wait for nothing.
        if orders.stop_when_drained && is_drained(&parts.capture, consumer) {
            return Next::Done(Drained::Yes);
        }
        Next::Rest(left)
    }
}

/// Between half and all of a pause, so that many volumes do not come back at one instant.
fn jittered(pause: Duration, random: &dyn Random) -> Duration {
    pause / 2 + pause / 2 * u32::from(random.bytes()[0]) / 255
}
