//! Writes to an export over several connections and keeps the log.
//!
//! Each connection has two threads: one sends while fewer than `depth` operations have no answer
//! yet, the other reads the answers. The load comes in bursts at full depth: a budget of bytes
//! for each half second, so that the amount is known and the disk of the collector bounded. When
//! the server goes away, the run ends early and what had no answer is logged so.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::log::{Kind, Log, NEVER, Op};
use super::pattern::{OpNumber, Pattern};
use super::plan::{Plan, Recent, Step};
use crate::clock::{Stopwatch, sleep, wall_us};
use crate::nbd::{Command, Connection, ERROR_SHUTTING_DOWN, FLAG_FUA, FLAG_NO_HOLE, Request};
use crate::random::Random;

/// Time for which one budget of bytes is given out.
const BURST: Duration = Duration::from_millis(500);
/// Longest operation, in bytes.
const LEN_MAX: usize = 64 * 1024;

/// What to write, and where.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) socket: PathBuf,
    pub(crate) export: String,
    pub(crate) seconds: u64,
    pub(crate) connections: u32,
    pub(crate) depth: usize,
    pub(crate) mib_per_second: u64,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    pub(crate) ops: usize,
    pub(crate) acknowledged: usize,
    /// Answers that were errors.
    pub(crate) errors: usize,
    /// Refused because the server was stopping.
    pub(crate) refused: usize,
    /// Connections that ended before the time.
    pub(crate) lost: usize,
    /// Most operations without an answer at once, on one connection.
    pub(crate) in_flight_max: usize,
}

/// What all connections share.
struct Shared<'a> {
    run: &'a Run,
    pattern: Pattern,
    recent: Recent,
    number: AtomicU32,
    event: AtomicU64,
    bytes: AtomicU64,
    watch: Stopwatch,
}

impl Shared<'_> {
    /// Takes the next place in the order of events.
    ///
    /// AcqRel pairs with itself in the other threads: who reads a later number also sees, and so
    /// comes after, what the taker of an earlier one had done before, its reading of an answer.
    fn event(&self) -> u64 {
        self.event.fetch_add(1, Ordering::AcqRel)
    }

    fn is_over(&self) -> bool {
        self.watch.elapsed() >= Duration::from_secs(self.run.seconds)
    }

    /// Waits until the budget has room for `bytes`; false when the time is over first.
    fn wait_for_budget(&self, bytes: u64) -> bool {
        // Relaxed: a figure that bounds the load; no other memory depends on it.
        let used = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let burst_bytes = (self.run.mib_per_second << 20) * 500 / 1000;
        while !self.is_over() {
            let bursts = self.watch.elapsed().as_millis() / BURST.as_millis() + 1;
            if u128::from(used) < bursts * u128::from(burst_bytes) {
                return true;
            }
            sleep(Duration::from_millis(5));
        }
        false
    }
}

/// The operations of one connection.
#[derive(Default)]
struct Flight {
    state: Mutex<FlightState>,
    changed: Condvar,
}

#[derive(Default)]
struct FlightState {
    open: HashMap<u64, Op>,
    closed: Vec<Op>,
    in_flight_max: usize,
    errors: usize,
    refused: usize,
    /// No more is sent (sender's end) or nothing can be (receiver's end).
    ended: bool,
    lost: bool,
}

impl Flight {
    fn with<T>(&self, work: impl FnOnce(&mut FlightState) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut state);
        drop(state);
        self.changed.notify_all();
        result
    }

    fn wait_while(&self, mut condition: impl FnMut(&FlightState) -> bool) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(state, |state| condition(state)));
    }
}

/// Runs the load and adds its operations to `log`, whose last number and event it goes on from.
pub(crate) fn run(run: &Run, log: &mut Log) -> anyhow::Result<Done> {
    let first = log.ops.iter().map(|op| op.number).max().unwrap_or(0) + 1;
    let shared = Shared {
        run,
        pattern: log.pattern,
        recent: Recent::default(),
        number: AtomicU32::new(first),
        event: AtomicU64::new(log.last_event() + 1),
        bytes: AtomicU64::new(0),
        watch: Stopwatch::start(),
    };
    let mut connections = Vec::new();
    for _ in 0..run.connections {
        let connection = Connection::open(&run.socket, &run.export)?;
        ensure!(
            connection.size_bytes() == log.size_bytes,
            "the export has {} bytes, the log is about {}",
            connection.size_bytes(),
            log.size_bytes
        );
        connections.push(connection);
    }
    let flights: Vec<Flight> = connections.iter().map(|_| Flight::default()).collect();
    thread::scope(|scope| -> anyhow::Result<()> {
        for (index, (connection, flight)) in connections.iter().zip(&flights).enumerate() {
            let (sender, receiver) = (connection.second_handle()?, connection.second_handle()?);
            let random = Random::new(log.pattern.seed, u64::from(first) + ((index as u64) << 32));
            let index = u32::try_from(index).context("connection")?;
            let shared = &shared;
            scope.spawn(move || send_all(shared, flight, sender, random, index));
            scope.spawn(move || receive_all(shared, flight, receiver));
        }
        Ok(())
    })?;
    Ok(collect(flights, log))
}

fn collect(flights: Vec<Flight>, log: &mut Log) -> Done {
    let mut done = Done::default();
    for flight in flights {
        let state = flight.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let unanswered = state.open.len();
        done.ops += state.closed.len() + unanswered;
        done.acknowledged += state.closed.len() - state.errors - state.refused;
        done.errors += state.errors;
        done.refused += state.refused;
        done.lost += usize::from(state.lost);
        done.in_flight_max = done.in_flight_max.max(state.in_flight_max);
        log.ops.extend(state.closed);
        log.ops.extend(state.open.into_values());
    }
    log.ops.sort_by_key(|op| op.submitted);
    done
}

fn send_all(
    shared: &Shared<'_>,
    flight: &Flight,
    mut connection: Connection,
    random: Random,
    index: u32,
) {
    let mut plan = Plan::new(random, connection.size_bytes(), &shared.recent);
    let mut payload = vec![0; LEN_MAX];
    while !shared.is_over() {
        let step = plan.next();
        if !shared.wait_for_budget(u64::from(step.len)) {
            break;
        }
        flight.wait_while(|state| state.open.len() >= shared.run.depth && !state.ended);
        // Relaxed: only that no two operations have the same number matters.
        let number = shared.number.fetch_add(1, Ordering::Relaxed);
        let mut bytes: &[u8] = &[];
        if matches!(step.kind, Kind::Write { .. }) {
            let out = &mut payload[..step.len as usize];
            shared.pattern.fill(number, step.offset, out);
            bytes = out;
        }
        let op = submit(shared, step, number, index);
        let goes_on = flight.with(|state| {
            state.open.insert(u64::from(number), op);
            state.in_flight_max = state.in_flight_max.max(state.open.len());
            !state.ended
        });
        if !goes_on || connection.send(&request(&op), bytes).is_err() {
            break;
        }
    }
    flight.wait_while(|state| !state.open.is_empty() && !state.ended);
    let over = flight.with(|state| std::mem::replace(&mut state.ended, true));
    if !over {
        let bye = Request {
            command: Command::Disconnect,
            flags: 0,
            cookie: 0,
            offset_bytes: 0,
            len_bytes: 0,
        };
        // Whether the server still hears it does not matter.
        drop(connection.send(&bye, &[]));
    }
    connection.shut_down();
}

fn submit(shared: &Shared<'_>, step: Step, number: OpNumber, connection: u32) -> Op {
    Op {
        number,
        connection,
        kind: step.kind,
        offset: step.offset,
        len: step.len,
        submitted_us: wall_us(),
        submitted: shared.event(),
        acknowledged: NEVER,
        answered_us: i64::MAX,
    }
}

fn request(op: &Op) -> Request {
    let (command, flags) = match op.kind {
        Kind::Write { fua } => (Command::Write, if fua { FLAG_FUA } else { 0 }),
        Kind::Zeroes { no_hole } => (Command::WriteZeroes, if no_hole { FLAG_NO_HOLE } else { 0 }),
        Kind::Trim => (Command::Trim, 0),
        Kind::Flush => (Command::Flush, 0),
    };
    let cookie = u64::from(op.number);
    Request { command, flags, cookie, offset_bytes: op.offset, len_bytes: op.len }
}

fn receive_all(shared: &Shared<'_>, flight: &Flight, mut connection: Connection) {
    loop {
        flight.wait_while(|state| state.open.is_empty() && !state.ended);
        if flight.with(|state| state.open.is_empty() && state.ended) {
            return;
        }
        let Ok(reply) = connection.receive() else { break };
        let (event, answered_us) = (shared.event(), wall_us());
        let known = flight.with(|state| {
            let Some(mut op) = state.open.remove(&reply.cookie) else { return false };
            match reply.error {
                0 => (op.acknowledged, op.answered_us) = (event, answered_us),
                ERROR_SHUTTING_DOWN => state.refused += 1,
                _ => state.errors += 1,
            }
            state.closed.push(op);
            true
        });
        if !known {
            break;
        }
    }
    flight.with(|state| {
        state.lost = !state.ended;
        state.ended = true;
    });
    connection.shut_down();
}
