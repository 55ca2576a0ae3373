//! The agent as a process: starts everything in order, waits for a signal, stops in order.
//!
//! Start: lock of the state directory, then for each volume state, backing store, ring and what
//! a predecessor left in flight ([`open`]), then shippers and copiers, and only then the
//! frontends: nobody writes before the volume can capture. Stop: frontends first, then the
//! backing stores are flushed and the rings drained, for as long as [`DRAIN_PATIENCE`]; what is
//! left stays in its ring and is shipped by the next agent.

mod instance;
mod notify;
mod open;
mod placement;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use tidemark_block::engine::socket::{Address, Listener};
use tidemark_block::engine::{Executor, ExecutorConfig, Workers};
use tidemark_block::fuse::{Directory, FuseConfig};
use tidemark_block::nbd::{Server, ServerConfig};
use tidemark_block::store::{Store, UringStore};
use tidemark_block::{Export, ExportList};

use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::copy;
use crate::random::{Random, SystemSource};
use crate::ring::order::Ticket;
use crate::ring::{Ring, RingErrorKind};
use crate::shipper::link::SocketDial;
use crate::shipper::{Drained, Shipper, ShipperParts, VolumeFacts};
use crate::state::{KeptState, SEQ_RESERVATION};
use crate::volume::Volume;
use instance::Instance;
use open::OpenVolume;
use tidemark_wire::Seq;
use tidemark_wire::body::GapReason;

/// How long a stop waits for the collector to acknowledge what is in the rings.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
/// How often the reservations of sequence numbers are looked at.
const KEEP_EVERY: Duration = Duration::from_millis(100);
/// Tasks of one worker: enough for the connections that the NBD server takes.
const TASKS_MAX: usize = 16 * 1024;

type ServedVolume = Volume<UringStore>;

struct Running {
    volume: Arc<ServedVolume>,
    state: Arc<KeptState>,
    shipper: Shipper,
    ring_path: std::path::PathBuf,
    /// The last try to reserve numbers failed, which was said.
    cannot_reserve: bool,
}

/// Runs the agent until it is told to stop.
///
/// # Errors
/// What kept it from starting, with the volume or file and what to do.
pub fn run(config: &Config) -> anyhow::Result<()> {
    // Blocked before the first thread starts, so that all of them inherit it.
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block().context("block the stop signals")?;
    placement::check(config)?;
    let instance = Instance::lock(&config.state_dir)?;
    create_dir(&config.ring_dir)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let random: Arc<dyn Random> = Arc::new(SystemSource::default());
    let agent = instance.agent_id(random.as_ref())?;
    let executor_config = ExecutorConfig { tasks_max: TASKS_MAX, ..ExecutorConfig::default() };
    let workers = Workers::start("serve", config.workers, executor_config)
        .context("start the executors (io_uring)")?;
    let exports = Arc::new(ExportList::new());
    let mut running = Vec::new();
    for (index, volume_config) in config.volumes.iter().enumerate() {
        let opened = open::open(config, volume_config, &clock, random.as_ref())?;
        running.push(start(opened, agent, config, &workers, index, &clock, &random)?);
    }
    for one in &running {
        let export = Export {
            name: one.volume.name().to_owned(),
            description: format!("volume {}", one.volume.id()),
            device: Arc::clone(&one.volume),
        };
        exports.add(export).context("serve the volumes")?;
    }
    let listeners = config.nbd.listen.iter().map(listen).collect::<Result<Vec<_>, _>>()?;
    let workers_handle = workers.handle();
    let server =
        Server::start(Arc::clone(&exports), listeners, &workers_handle, ServerConfig::default());
    let directory = match &config.fuse {
        Some(fuse) => Some(Directory::mount(
            &fuse.mount,
            Arc::clone(&exports),
            &workers_handle,
            FuseConfig::default(),
        )?),
        None => None,
    };
    tracing::info!("ready: {} volume(s) served", running.len());
    notify::ready();
    wait_for_stop(&signals, &mut running)?;
    notify::stopping();
    if let Some(directory) = directory {
        directory.unmount();
    }
    server.stop();
    let drained = drain(running, clock.as_ref());
    // The rings are free when nobody has a disk any more: neither a client nor a copier.
    drop(exports);
    workers.shutdown();
    drained.into_iter().for_each(Stopped::settle);
    tracing::info!("stopped");
    Ok(())
}

/// Listens for NBD clients; the directory of a unix socket is made when it is missing.
fn listen(address: &Address) -> anyhow::Result<Listener> {
    if let Address::Unix(path) = address
        && let Some(dir) = path.parent()
    {
        create_dir(dir)?;
    }
    Listener::bind(address).context("NBD server: can't listen")
}

fn start(
    opened: OpenVolume,
    agent: tidemark_wire::AgentId,
    config: &Config,
    workers: &Workers,
    index: usize,
    clock: &Arc<dyn Clock>,
    random: &Arc<dyn Random>,
) -> anyhow::Result<Running> {
    let OpenVolume { volume, state, ring_path } = opened;
    let (volume, state) = (Arc::new(volume), Arc::new(state));
    let (copied, source) = (Arc::clone(&volume), Arc::clone(random));
    let timer = copy::EngineTimer::new(Arc::clone(clock));
    workers.spawn_on(index, move || copy::run(copied, source, timer));
    let shipper = Shipper::start(ShipperParts {
        facts: VolumeFacts {
            id: volume.id(),
            size_bytes: volume.size_bytes(),
            block_bytes: u32::try_from(volume.unit_bytes()).context("unit of the backing store")?,
        },
        capture: Arc::clone(volume.capture()),
        state: Arc::clone(&state),
        agent,
        dial: Box::new(SocketDial::new(config.collector.clone())),
        clock: Arc::clone(clock),
        random: Arc::clone(random),
    })
    .with_context(|| format!("volume {}: start the shipper", volume.name()))?;
    Ok(Running { volume, state, shipper, ring_path, cannot_reserve: false })
}

/// Waits for a signal, and reserves sequence numbers ahead meanwhile.
fn wait_for_stop(signals: &SigSet, running: &mut [Running]) -> anyhow::Result<()> {
    loop {
        match wait_for_signal(signals, KEEP_EVERY)? {
            Some(signal) => {
                tracing::info!("{signal}: stopping");
                return Ok(());
            }
            None => running.iter_mut().for_each(reserve_ahead),
        }
    }
}

fn wait_for_signal(signals: &SigSet, timeout: Duration) -> anyhow::Result<Option<Signal>> {
    let wait = libc::timespec { tv_sec: 0, tv_nsec: timeout.subsec_nanos().into() };
    // SAFETY: the set and the time are valid for the call; no information is asked for.
    let signal =
        unsafe { libc::sigtimedwait(signals.as_ref(), std::ptr::null_mut(), &raw const wait) };
    if signal >= 0 {
        return Ok(Some(Signal::try_from(signal).context("a signal that was waited for")?));
    }
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EINTR) => Ok(None),
        _ => Err(error).context("wait for a stop signal"),
    }
}

/// Keeps at least half of a reservation ahead of the numbers in use. Where that fails, the
/// numbers run out at some point, and the volume goes on without capture.
fn reserve_ahead(one: &mut Running) {
    let next = one.volume.capture().ring().next_seq();
    if next.0 + SEQ_RESERVATION / 2 <= one.state.get().reserved_until.0 {
        return;
    }
    let until = Seq(next.0 + SEQ_RESERVATION);
    let last_time = one.volume.capture().ring().last_time();
    let kept = one.state.update(|state| {
        state.reserved_until = state.reserved_until.max(until);
        state.last_time = state.last_time.max(last_time);
    });
    match kept {
        Ok(()) => {
            one.volume.capture().ring().set_seq_limit(until);
            one.cannot_reserve = false;
        }
        Err(error) if !one.cannot_reserve => {
            tracing::error!(
                volume = one.volume.name(),
                "can't reserve more record numbers: {error}; make room there, or changes will not \
                 be captured any more"
            );
            one.cannot_reserve = true;
        }
        Err(_) => {}
    }
}

/// A volume that takes no more changes.
struct Stopped {
    volume: Arc<ServedVolume>,
    state: Arc<KeptState>,
    ring_path: std::path::PathBuf,
    is_clean: bool,
    /// Where its ring ended when the backing store was flushed.
    tail: Ticket,
}

/// Flushes the backing stores and waits until the collector has everything.
fn drain(running: Vec<Running>, clock: &dyn Clock) -> Vec<Stopped> {
    // All of them drain at the same time, however many there are.
    for one in &running {
        one.volume.capture().close();
        one.shipper.begin_stop();
    }
    tracing::info!(
        "waiting up to {} s until the collector has what is in the change rings",
        DRAIN_PATIENCE.as_secs()
    );
    let deadline = clock.monotonic() + DRAIN_PATIENCE;
    let drain_one = |one: Running| {
        let Running { volume, state, shipper, ring_path, .. } = one;
        let flushed = flush(&volume);
        if let Err(error) = &flushed {
            tracing::error!(volume = volume.name(), "flush of the backing store: {error:#}");
            // What was written since the last good flush is unknown; the ring tells the next start.
            volume.capture().lose(GapReason::BackingError);
        }
        let tail = volume.capture().ring().tail_ticket();
        let drained = shipper.stop(deadline.saturating_sub(clock.monotonic()), clock);
        let is_clean = flushed.is_ok() && drained == Drained::Yes && state.get().copied;
        Stopped { volume, state, ring_path, is_clean, tail }
    };
    running.into_iter().map(drain_one).collect()
}

impl Stopped {
    /// Notes a clean stop and removes the ring that it needs no more.
    fn settle(self) {
        let name = self.volume.name().to_owned();
        let capture = self.volume.capture();
        // A request that took too long for the stop of its frontend may have come behind the flush.
        let is_late = capture.ring().tail_ticket() != self.tail || !capture.is_on();
        if !self.is_clean || is_late {
            tracing::warn!(
                volume = name,
                "stopped before everything was acknowledged, or in a copy; the next start goes on \
                 from the change ring, as long as the machine is not restarted before"
            );
            return;
        }
        let released = self.volume.capture().ring().released_seq();
        let released = released.max(self.state.get().released);
        let last_time = self.volume.capture().ring().last_time();
        let kept = self.state.update(|state| {
            state.clean = true;
            state.released = released;
            state.last_time = state.last_time.max(last_time);
        });
        drop(self.volume);
        // An empty ring that stays is as good; a state that was not kept needs the ring.
        match kept.map(|()| Ring::discard(&self.ring_path)) {
            Ok(Ok(())) => tracing::info!(volume = name, "clean: all acknowledged up to {released}"),
            Ok(Err(error)) if error.kind == RingErrorKind::InUse => tracing::info!(
                volume = name,
                "clean: all acknowledged up to {released}; a client still holds the disk, so the \
                 empty change ring stays"
            ),
            Ok(Err(error)) => tracing::warn!(volume = name, "{error}"),
            Err(error) => tracing::warn!(volume = name, "{error}"),
        }
    }
}

fn flush(volume: &ServedVolume) -> anyhow::Result<()> {
    let executor = Executor::new(&ExecutorConfig::default()).context("start an executor")?;
    executor.block_on(volume.store().sync()).context("sync")
}

fn create_dir(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("can't make the directory {}", path.display()))
}
