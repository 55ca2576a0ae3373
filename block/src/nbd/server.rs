//! The server: accepts connections, spreads them over the workers, stops.
//!
//! In: listeners and the list of exports. Out: served clients. A connection stays on the worker it
//! was given to. At `connections_max` a newcomer is turned away at once. Nothing is kept, so a
//! crash loses the connections and no more.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::device::Device;
use crate::engine::socket::{Listener, PeerName, Stream};
use crate::engine::{Event, WorkersHandle, sleep};
use crate::exports::ExportList;

use super::connection::serve;
use super::error::{ConnectionError, Violation};
use super::handshake::handshake;
use super::race::{First, race};
use super::stats::{Counters, ServerStats};

/// Bounds of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Requests in flight of one connection; at the bound no more are read from its socket.
    pub in_flight_max: usize,
    /// Bytes of write payloads in flight of one connection, and about as many for its reads; at
    /// the bound no more are read from its socket. A single payload of 256 KiB always fits.
    pub payload_bytes_in_flight_max: usize,
    /// Connections open at the same time; further ones are closed as soon as they come.
    pub connections_max: usize,
    /// Time for a client to choose an export, in seconds.
    pub handshake_seconds_max: u64,
    /// Time for a client to send the rest of a payload it has announced, in seconds; up to twice
    /// as much is tolerated. Until then the payload holds memory of the disk.
    pub payload_seconds_max: u64,
    /// Time for requests in flight to end when the server stops, in seconds; the same for a
    /// client that leaves to take its last answers.
    pub stop_seconds_max: u64,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            in_flight_max: 128,
            payload_bytes_in_flight_max: 8 * 1024 * 1024,
            connections_max: 64,
            handshake_seconds_max: 30,
            payload_seconds_max: 30,
            stop_seconds_max: 10,
        }
    }
}

impl ServerConfig {
    pub(super) fn stop_duration_max(&self) -> Duration {
        Duration::from_secs(self.stop_seconds_max)
    }
}

/// Rest after a failed accept: out of descriptors, most of the time, so trying again at once
/// would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What connections and listeners of one server share.
pub(super) struct Shared<D> {
    pub(super) config: ServerConfig,
    pub(super) counters: Counters,
    exports: Arc<ExportList<D>>,
    workers: WorkersHandle,
    is_stopping: AtomicBool,
    stop: Event,
    open: Mutex<Open>,
    closed: Condvar,
}

/// What has to end before the server has.
struct Open {
    listeners: usize,
    /// Connections of each worker.
    connections: Box<[usize]>,
}

impl Open {
    fn connections(&self) -> usize {
        self.connections.iter().sum()
    }
}

impl<D> Shared<D> {
    /// Ends when the server is to stop.
    pub(super) async fn stopping(&self) {
        loop {
            let wait = self.stop.wait();
            // Acquire pairs with the release in `Server::stop`.
            if self.is_stopping.load(Ordering::Acquire) {
                return;
            }
            wait.await;
        }
    }

    fn count(&self, change: impl FnOnce(&mut Open)) {
        change(&mut self.open());
        self.closed.notify_all();
    }

    /// The numbers are valid between any two statements, so a poisoned lock is usable.
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running NBD server. Dropping it leaves it running; see [`Server::stop`].
pub struct Server<D> {
    shared: Arc<Shared<D>>,
}

impl<D: Device> Server<D> {
    /// Starts to serve `exports` on `listeners`, each on one of the workers.
    ///
    /// A connection takes three tasks of its worker and one more for each request in flight. Where
    /// the workers' `tasks_max` does not hold all of them, requests of a connection wait for each
    /// other, and a new connection may be turned away.
    #[must_use]
    pub fn start(
        exports: Arc<ExportList<D>>,
        listeners: Vec<Listener>,
        workers: &WorkersHandle,
        config: ServerConfig,
    ) -> Self {
        // Less than one of each would serve nobody.
        let config = ServerConfig { in_flight_max: config.in_flight_max.max(1), ..config };
        let shared = Arc::new(Shared {
            config,
            counters: Counters::default(),
            exports,
            workers: workers.clone(),
            is_stopping: AtomicBool::new(false),
            stop: Event::new(),
            open: Mutex::new(Open { listeners: 0, connections: vec![0; workers.count()].into() }),
            closed: Condvar::new(),
        });
        for (index, listener) in listeners.into_iter().enumerate() {
            shared.count(|open| open.listeners += 1);
            let server = Arc::clone(&shared);
            workers.spawn_on(index, move || accept_all(listener, server));
        }
        Self { shared }
    }

    /// Figures since the start.
    #[must_use]
    pub fn stats(&self) -> ServerStats {
        self.shared.counters.snapshot(self.shared.open().connections())
    }

    /// Stops: listeners close, handshakes are dropped, requests in flight get
    /// `stop_seconds_max` to end and be answered while new ones are refused, then connections are
    /// closed. Blocks the calling thread, which must not be a worker, until all are gone; a device
    /// that never answers is left behind after twice that time, with a warning.
    pub fn stop(self) {
        let shared = &self.shared;
        // Release pairs with the acquire in `Shared::stopping`.
        shared.is_stopping.store(true, Ordering::Release);
        shared.stop.notify_all();
        let patience = shared.config.stop_duration_max() * 2 + Duration::from_secs(1);
        let deadline = Instant::now() + patience;
        let mut open = shared.open();
        while open.listeners + open.connections() > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(
                    connections = open.connections(),
                    "nbd server stopped with requests that the disk never answered"
                );
                return;
            }
            open = shared.closed.wait_timeout(open, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Accepts on one listener until the server stops.
async fn accept_all<D: Device>(listener: Listener, server: Arc<Shared<D>>) {
    loop {
        match race(server.stopping(), listener.accept()).await {
            First::Left(()) => break,
            First::Right(Ok((stream, peer))) => admit(&server, stream, peer),
            First::Right(Err(error)) => {
                tracing::warn!(address = %listener.address(), %error, "nbd accept failed");
                race(server.stopping(), sleep(ACCEPT_PAUSE)).await;
            }
        }
    }
    // Unlinks a socket file before the stop is reported.
    drop(listener);
    server.count(|open| open.listeners -= 1);
}

/// Hands a new connection to a worker, or turns it away.
fn admit<D: Device>(server: &Arc<Shared<D>>, stream: Stream, peer: PeerName) {
    let Some(place) = OpenConnection::new(server) else {
        server.counters.count_refused();
        let max = server.config.connections_max;
        tracing::warn!(%peer, max, "nbd client turned away: too many connections");
        return;
    };
    server.counters.count_accepted();
    server.workers.spawn_on(place.worker, move || welcome(place, stream, peer));
}

/// Counts a connection as open for as long as it lives, also when its worker never starts it.
pub(super) struct OpenConnection<D> {
    pub(super) server: Arc<Shared<D>>,
    worker: usize,
}

impl<D> OpenConnection<D> {
    /// A place on the worker that has the fewest; `None` when `connections_max` are open.
    fn new(server: &Arc<Shared<D>>) -> Option<Self> {
        let mut open = server.open();
        if open.connections() >= server.config.connections_max {
            return None;
        }
        let (worker, count) =
            open.connections.iter_mut().enumerate().min_by_key(|(_, count)| **count)?;
        *count += 1;
        drop(open);
        Some(Self { server: Arc::clone(server), worker })
    }
}

impl<D> Drop for OpenConnection<D> {
    fn drop(&mut self) {
        self.server.count(|open| open.connections[self.worker] -= 1);
    }
}

/// The whole life of a connection.
async fn welcome<D: Device>(place: OpenConnection<D>, stream: Stream, peer: PeerName) {
    let server = Arc::clone(&place.server);
    let (result, export) = match choose(&server, &stream).await {
        Ok(Some((export, negotiated))) => {
            let name = export.name.clone();
            tracing::debug!(%peer, export = name, ?negotiated, "nbd client attached");
            (serve(stream, export, negotiated, place).await, name)
        }
        Ok(None) => (Ok(()), String::new()),
        Err(error) => (Err(error), String::new()),
    };
    match result {
        Ok(()) => tracing::debug!(%peer, export, "nbd client left"),
        Err(reason @ ConnectionError::Violation(_)) => {
            server.counters.count_violation();
            tracing::warn!(%peer, export, %reason, "nbd client broke the protocol, cut off");
        }
        Err(reason @ ConnectionError::WorkerFull) => {
            tracing::warn!(%peer, export, %reason, "nbd client turned away");
        }
        Err(reason) => tracing::info!(%peer, export, %reason, "nbd connection ended"),
    }
}

/// The handshake within its time, or until the server stops.
async fn choose<D: Device>(
    server: &Arc<Shared<D>>,
    stream: &Stream,
) -> Result<Option<Chosen<D>>, ConnectionError> {
    let seconds = server.config.handshake_seconds_max;
    let limit = race(server.stopping(), sleep(Duration::from_secs(seconds)));
    match race(handshake(stream, &server.exports), limit).await {
        First::Left(chosen) => chosen,
        First::Right(First::Left(())) => Ok(None),
        First::Right(First::Right(())) => Err(Violation::HandshakeTooSlow(seconds).into()),
    }
}

type Chosen<D> = (crate::exports::Export<D>, super::request::Negotiated);
