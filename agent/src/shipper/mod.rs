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
//!
//! What is decided is decided by machines that never wait ([`stream::Session`],
//! [`pauses::Pauses`]), driven by the threads here or by the simulator.

pub mod batch;
mod driver;
pub mod incoming;
pub mod link;
pub mod pauses;
pub mod session;
pub mod stream;
mod wishes;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tidemark_wire::session::Refuse;
use tidemark_wire::{AgentId, AgentRun, Seq, VolumeId};

use crate::capture::Capture;
use crate::capture::phase::Phase;
use crate::clock::Clock;
use crate::random::Random;
use crate::ring::Consumer;
use crate::state::KeptState;
use link::Dial;

/// How long a thread that was told to stop at once may take; then it is left behind.
const LAST_WAIT: Duration = Duration::from_secs(1);
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
    /// Its process.
    pub run: AgentRun,
    /// The first number that this process may give to a record.
    pub first: Seq,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness, for the pauses.
    pub random: Arc<dyn Random>,
}

/// A running shipper.
pub struct Shipper {
    stop: Arc<StopSignal>,
    refused: Arc<Refused>,
    thread: JoinHandle<Drained>,
}

/// Why the collector serves no session, as it said last.
#[derive(Default)]
struct Refused(Mutex<Option<String>>);

impl Refused {
    fn note(&self, refuse: Option<&Refuse>) {
        *self.get() = refuse.map(|refuse| refuse.text.clone());
    }

    fn get(&self) -> MutexGuard<'_, Option<String>> {
        // What it holds is replaced whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether every change was acknowledged when the shipper stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// All of them.
    Yes,
    /// Records are left in the ring, or a copy is not complete.
    No,
}

/// What the shipper was told by now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// Ends once every change is acknowledged.
    pub stop_when_drained: bool,
    /// Ends at once.
    pub stop_now: bool,
}

type Closer = Box<dyn Fn() + Send>;

/// Tells the thread to stop: first when it has drained the ring, then at once, also when it
/// waits for a collector that neither answers nor reads.
#[derive(Default)]
struct StopSignal {
    when_drained: AtomicBool,
    now: AtomicBool,
    /// Ends the connection that is open.
    closer: Mutex<Option<Closer>>,
}

impl StopSignal {
    // Relaxed throughout: the flags are polled and order no other memory; where `now` has to be
    // seen together with the closer, the mutex orders the two.
    fn orders(&self) -> Orders {
        Orders {
            stop_when_drained: self.when_drained.load(Ordering::Relaxed),
            stop_now: self.now.load(Ordering::Relaxed),
        }
    }

    /// Ends the connection of `closer` when the result is dropped, or when it is time to stop.
    fn guard(&self, closer: Closer) -> OpenConnection<'_> {
        *self.closer() = Some(closer);
        if self.orders().stop_now {
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
struct OpenConnection<'a>(&'a StopSignal);

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Shipper {
    /// Starts the thread; `dial` is how it reaches the collector.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    ///
    /// # Panics
    /// When the ring has a consumer already: a programmer's mistake.
    pub fn start(parts: ShipperParts, dial: Box<dyn Dial>) -> std::io::Result<Self> {
        let consumer = parts.capture.ring().consumer().expect("a ring has one shipper");
        let (stop, refused) = (Arc::new(StopSignal::default()), Arc::new(Refused::default()));
        let (signal, said) = (Arc::clone(&stop), Arc::clone(&refused));
        let thread = std::thread::Builder::new()
            .name(format!("ship-{}", parts.capture.name()))
            .spawn(move || driver::run(&parts, dial.as_ref(), consumer, &signal, &said))?;
        Ok(Self { stop, refused, thread })
    }

    /// True while there is a connection to the collector.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.stop.closer().is_some()
    }

    /// Why the collector refuses the volume, in its words; `None` while it does not.
    #[must_use]
    pub fn refused(&self) -> Option<String> {
        self.refused.get().clone()
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

/// True when every change was captured and everything in the ring was acknowledged.
fn is_drained(capture: &Capture, consumer: &mut Consumer) -> bool {
    // Records that do not count at the end of the ring are not waited for by anybody else.
    consumer.release_through(Seq(0));
    let is_whole = matches!(capture.phases().phase(), Phase::Whole { .. });
    is_whole && capture.is_on() && capture.ring().is_empty()
}
