//! One client in the transmission phase: what its tasks share, and how it ends.
//!
//! In: requests from the socket. Out: replies. Tasks on one thread share a [`Connection`]: the
//! reader ([`super::reader`]) starts a task for each request ([`super::commands`]), so requests
//! run side by side and are answered in the order in which they end; the writer sends all replies
//! that wait in one call. A crash loses the requests that were not answered, as on a real disk.

use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::device::Device;
use crate::engine::socket::{Parts, Stream};
use crate::engine::{BufferPool, Event, TaskPool, sleep};
use crate::exports::Export;

use super::commands::run;
use super::error::{ConnectionError, Violation};
use super::gate::Gate;
use super::inbox::socket_error;
use super::race::{First, race};
use super::read_buffers::ReadBuffers;
use super::reader::Reader;
use super::reply_queue::{HEADS_BYTES, ReplyQueue};
use super::request::Negotiated;
use super::server::{OpenConnection, Shared};
use super::stats::Counters;

/// See the module's text.
pub(super) struct Connection<D> {
    pub(super) stream: Stream,
    pub(super) device: Arc<D>,
    pub(super) negotiated: Negotiated,
    pub(super) replies: ReplyQueue,
    pub(super) buffers: ReadBuffers,
    pub(super) gate: Gate,
    pub(super) payload_watch: PayloadWatch,
    /// New requests are answered with "shutting down".
    pub(super) stopping: Cell<bool>,
    /// The client has taken its leave; what it asked for before is carried out.
    pub(super) leaving: Cell<bool>,
    /// The first failure outside the reader.
    failure: RefCell<Option<ConnectionError>>,
    writer_done: Milestone,
    done: Milestone,
    /// Last, so that the server counts the connection as open until the disk is let go.
    place: OpenConnection<D>,
}

impl<D> Connection<D> {
    pub(super) fn counters(&self) -> &Counters {
        &self.place.server.counters
    }
}

impl<D: Device> Connection<D> {
    /// Ends the connection from within a request task or the writer.
    pub(super) fn fail(&self, error: ConnectionError) {
        self.failure.borrow_mut().get_or_insert(error);
        self.cut();
    }

    /// True when the client has closed the connection and did not take its leave: no answer would
    /// reach it.
    pub(super) fn is_given_up(&self) -> bool {
        !self.leaving.get() && self.stream.is_hung_up()
    }

    /// Drops what was to be sent and ends all waiting for the socket.
    fn cut(&self) {
        self.replies.kill();
        self.stream.shutdown();
    }
}

/// A request task's place within the connection's bounds.
pub(super) struct Pass<D> {
    connection: Rc<Connection<D>>,
    write_bytes: usize,
}

impl<D> Pass<D> {
    /// Counts a task in; the caller has waited for room.
    pub(super) fn new(connection: &Rc<Connection<D>>, write_bytes: usize) -> Self {
        connection.gate.enter(write_bytes);
        Self { connection: Rc::clone(connection), write_bytes }
    }
}

impl<D> Deref for Pass<D> {
    type Target = Connection<D>;

    fn deref(&self) -> &Connection<D> {
        &self.connection
    }
}

impl<D> Drop for Pass<D> {
    fn drop(&mut self) {
        self.connection.gate.leave(self.write_bytes);
    }
}

/// Serves a client until it leaves, breaks the protocol, or the server stops.
///
/// # Errors
/// Why it ended, when the client did not end it properly.
pub(super) async fn serve<D: Device>(
    stream: Stream,
    export: Export<D>,
    negotiated: Negotiated,
    place: OpenConnection<D>,
) -> Result<(), ConnectionError> {
    let server = Arc::clone(&place.server);
    let config = &server.config;
    let connection = Rc::new(Connection {
        stream,
        device: export.device,
        negotiated,
        replies: ReplyQueue::new(config.in_flight_max),
        buffers: ReadBuffers::new(config.in_flight_max, config.payload_bytes_in_flight_max),
        gate: Gate::new(config.in_flight_max, config.payload_bytes_in_flight_max),
        payload_watch: PayloadWatch::default(),
        stopping: Cell::new(false),
        leaving: Cell::new(false),
        failure: RefCell::new(None),
        writer_done: Milestone::default(),
        done: Milestone::default(),
        place,
    });
    let started = start(write_replies(Rc::clone(&connection)))
        && start(watch(Rc::clone(&connection), Arc::clone(&server)));
    if !started {
        // Ends the writer, should that have been started.
        connection.cut();
        return Err(ConnectionError::WorkerFull);
    }
    // A task that ended may hold its place until it has been polled to the end.
    let tasks = TaskPool::new(config.in_flight_max + 1);
    let result =
        Reader::new(&connection, |pass, work| tasks.try_spawn(run(pass, work))).run().await;
    if result.is_err() {
        // Nothing more is owed to a peer that broke the protocol or is gone.
        connection.cut();
    }
    connection.gate.idle().await;
    connection.replies.close();
    // A client that wants to leave but takes no answers is not waited for without end.
    race(connection.writer_done.reached(), sleep(config.stop_duration_max())).await;
    connection.cut();
    connection.writer_done.reached().await;
    connection.done.reach();
    match connection.failure.take() {
        Some(failure) => Err(failure),
        None => result,
    }
}

/// Starts a task of a connection; false when its worker has no room.
fn start(task: impl Future<Output = ()> + 'static) -> bool {
    TaskPool::new(1).try_spawn(task).is_ok()
}

/// The writer: sends what is queued, as much at once as fits.
async fn write_replies<D: Device>(connection: Rc<Connection<D>>) {
    let heads = BufferPool::new(1, HEADS_BYTES);
    let mut parts = Parts::new();
    while connection.replies.wait_for_work().await {
        connection.replies.fill(&mut parts, heads.take().await);
        let (result, sent) = connection.stream.send_all(parts).await;
        parts = sent;
        parts.clear();
        if let Err(error) = result {
            connection.fail(socket_error("sending replies")(error));
        }
        connection.replies.batch_sent();
    }
    connection.writer_done.reach();
}

/// Watches from outside the flow of requests: cuts a client that leaves a payload unfinished, and
/// when the server stops lets the requests in flight end, for a bounded time, and hangs up.
async fn watch<D: Device>(connection: Rc<Connection<D>>, server: Arc<Shared<D>>) {
    let payload_seconds = server.config.payload_seconds_max;
    loop {
        let payload = connection.payload_watch.current();
        let end = race(connection.done.reached(), server.stopping());
        match race(end, sleep(Duration::from_secs(payload_seconds))).await {
            First::Left(First::Left(())) => return,
            First::Left(First::Right(())) => break,
            First::Right(()) if payload.is_some() => {
                if connection.payload_watch.current() == payload {
                    connection.fail(Violation::PayloadStalled(payload_seconds).into());
                }
            }
            First::Right(()) => {}
        }
    }
    connection.stopping.set(true);
    let settled = async {
        connection.gate.idle().await;
        connection.replies.sent().await;
    };
    race(settled, sleep(server.config.stop_duration_max())).await;
    connection.cut();
}

/// Tells whether the payload being received is still the same. Costs a write's path two stores,
/// where a timer for each payload would cost an operation of the ring.
#[derive(Default)]
pub(super) struct PayloadWatch {
    begun: Cell<u64>,
    is_open: Cell<bool>,
}

impl PayloadWatch {
    pub(super) fn begin(&self) {
        self.begun.set(self.begun.get() + 1);
        self.is_open.set(true);
    }

    pub(super) fn end(&self) {
        self.is_open.set(false);
    }

    /// Number of the payload being received, if any.
    fn current(&self) -> Option<u64> {
        self.is_open.get().then(|| self.begun.get())
    }
}

/// Something that happens once and stays so, on one thread.
#[derive(Default)]
struct Milestone {
    is_reached: Cell<bool>,
    event: Event,
}

impl Milestone {
    fn reach(&self) {
        self.is_reached.set(true);
        self.event.notify_all();
    }

    fn is_reached(&self) -> bool {
        self.is_reached.get()
    }

    async fn reached(&self) {
        loop {
            let wait = self.event.wait();
            if self.is_reached() {
                return;
            }
            wait.await;
        }
    }
}
