//! Ships the records of one volume's change ring to the collector.
//!
//! What enters are committed records, in the order of their numbers; what leaves are frames on a
//! session ([`tidemark_wire::session`]), and released ring memory for what the collector
//! acknowledged as durable. One thread per volume owns the ring's consumer and the session; a
//! second one reads the connection and hands over what it says. Between the frames go the
//! copier's questions, whose answers it hands back, and how the stream stands; what a person wants
//! (pause, resume, compare) comes in and is done here. A crash or a lost connection loses nothing:
//! the next session begins behind what the collector holds, and asks again what was not answered.
//!
//! The stream never stops for long: a connection that fails is dialed again after a pause that
//! doubles up to [`PAUSE_MAX`].

pub mod batch;
mod incoming;
pub mod link;
pub mod session;
mod stream;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tidemark_wire::{AgentId, Seq, VolumeId};

use crate::capture::Capture;
use crate::capture::phase::Phase;
use crate::clock::Clock;
use crate::random::Random;
use crate::ring::Consumer;
use crate::state::KeptState;
use link::Dial;

/// How long a thread that was told to stop at once may take; then it is left behind.
const LAST_WAIT: Duration = Duration::from_secs(1);
/// First pause after a failed connection.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause between two tries.
pub const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What the collector is told of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeFacts {
    /// Its identity.
    pub id: VolumeId,
    /// Smallest unit in which it is written.
    pub block_bytes: u32,
}

/// What the shipper works with.
pub struct ShipperParts {
    /// The volume whose records are shipped.
    pub facts: VolumeFacts,
    /// The stream of its changes.
    pub capture: Arc<Capture>,
    /// The volume's durable state.
    pub state: Arc<KeptState>,
    /// Identity of this agent.
    pub agent: AgentId,
    /// How to reach the collector.
    pub dial: Box<dyn Dial>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness, for the pauses.
    pub random: Arc<dyn Random>,
}

/// A running shipper.
pub struct Shipper {
    stop: Arc<StopSignal>,
    thread: JoinHandle<Drained>,
}

/// Whether every change was acknowledged when the shipper stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// All of them.
    Yes,
    /// Records are left in the ring, or a copy is not complete.
    No,
}

type Closer = Box<dyn Fn() + Send>;

/// Tells the thread to stop: first when it has drained the ring, then at once, also when it
/// waits for a collector that neither answers nor reads.
#[derive(Default)]
pub(crate) struct StopSignal {
    when_drained: AtomicBool,
    now: AtomicBool,
    /// Ends the connection that is open.
    closer: Mutex<Option<Closer>>,
}

impl StopSignal {
    // Relaxed throughout: the flags are polled and order no other memory; where `now` has to be
    // seen together with the closer, the mutex orders the two.
    pub(crate) fn when_drained(&self) -> bool {
        self.when_drained.load(Ordering::Relaxed)
    }

    pub(crate) fn now(&self) -> bool {
        self.now.load(Ordering::Relaxed)
    }

    /// Ends the connection of `closer` when the result is dropped, or when it is time to stop.
    pub(crate) fn guard(&self, closer: Closer) -> OpenConnection<'_> {
        *self.closer() = Some(closer);
        if self.now() {
            self.close();
        }
        OpenConnection(self)
    }

    fn stop_now(&self) {
        self.now.store(true, Ordering::Relaxed);
        self.close();
    }

    fn close(&self) {
        if let Some(close) = self.closer().take() {
            close();
        }
    }

    fn closer(&self) -> MutexGuard<'_, Option<Closer>> {
        // What it holds is replaced whole.
        self.closer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`StopSignal::guard`].
pub(crate) struct OpenConnection<'a>(&'a StopSignal);

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Shipper {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    ///
    /// # Panics
    /// When the ring has a consumer already: a programmer's mistake.
    pub fn start(parts: ShipperParts) -> std::io::Result<Self> {
        let consumer = parts.capture.ring().consumer().expect("a ring has one shipper");
        let stop = Arc::new(StopSignal::default());
        let signal = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name(format!("ship-{}", parts.capture.name()))
            .spawn(move || run(&parts, consumer, &signal))?;
        Ok(Self { stop, thread })
    }

    /// True while there is a connection to the collector.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.stop.closer().is_some()
    }

    /// Lets the thread end once everything in the ring is acknowledged; does not wait for it.
    pub fn begin_stop(&self) {
        self.stop.when_drained.store(true, Ordering::Relaxed);
    }

    /// Stops when everything in the ring is acknowledged, or after `patience`. The volume gets
    /// no more changes by now.
    pub fn stop(self, patience: Duration, clock: &dyn Clock) -> Drained {
        self.begin_stop();
        self.wait(patience, clock);
        self.stop.stop_now();
        self.wait(LAST_WAIT, clock);
        if !self.thread.is_finished() {
            return Drained::No;
        }
        self.thread.join().unwrap_or(Drained::No)
    }

    fn wait(&self, patience: Duration, clock: &dyn Clock) {
        let deadline = clock.monotonic() + patience;
        while !self.thread.is_finished() && clock.monotonic() < deadline {
            clock.sleep(Duration::from_millis(5));
        }
    }
}

fn run(parts: &ShipperParts, mut consumer: Consumer, stop: &StopSignal) -> Drained {
    let name = parts.capture.name();
    let mut pause = PAUSE_MIN;
    let mut sent = None;
    let mut said = String::new();
    loop {
        let ended = stream::serve(parts, &mut consumer, &mut sent, stop);
        let error = match ended {
            Ok(drained) => return drained,
            Err(error) => error,
        };
        if error.was_of_use() {
            pause = PAUSE_MIN;
            said.clear();
        }
        // The same failure again and again is said once.
        let text = error.to_string();
        if text != said {
            let peer = parts.dial.peer();
            tracing::warn!(volume = name, "collector {peer}: {text}; trying again");
            said = text;
        }
        let longer = error.pause_min().unwrap_or(pause).max(pause);
        let until = parts.clock.monotonic() + jittered(longer, parts.random.as_ref());
        while parts.clock.monotonic() < until {
            if stop.now() {
                return Drained::No;
            }
            // A collector that can't be reached is no reason to wait for nothing.
            if stop.when_drained() && is_drained(&parts.capture, &mut consumer) {
                return Drained::Yes;
            }
            parts.clock.sleep(Duration::from_millis(10));
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// True when every change was captured and everything in the ring was acknowledged.
fn is_drained(capture: &Capture, consumer: &mut Consumer) -> bool {
    // Records that do not count at the end of the ring are not waited for by anybody else.
    consumer.release_through(Seq(0));
    let is_whole = matches!(capture.phases().phase(), Phase::Whole { .. });
    is_whole && capture.is_on() && capture.ring().is_empty()
}

/// Between half and all of a pause, so that many volumes do not come back at one instant.
fn jittered(pause: Duration, random: &dyn Random) -> Duration {
    pause / 2 + pause / 2 * u32::from(random.bytes()[0]) / 255
}
