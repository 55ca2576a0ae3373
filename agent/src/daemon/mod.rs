//! The agent as a process: starts everything in order, then does what it is told, stops in order.
//!
//! Start: lock of the state directory, then for each volume state, backing store, ring and what
//! a predecessor left in flight ([`open`]), then shippers and copiers, and only then the
//! frontends: nobody writes before the volume can capture. Devices that a predecessor made are
//! taken over once the frontends serve them, and then the agent is ready. While it runs, one
//! [`owner`] gets signals and what people ask. Stop: frontends first, then the backing stores are
//! flushed and the rings drained ([`running`]).

mod attachment;
mod holder;
mod instance;
mod links;
mod log_files;
mod memory;
mod notify;
pub mod numbers;
pub mod open;
mod owner;
mod placement;
mod reload;
mod resize;
pub mod restart;
pub mod running;
mod served;
mod ublk;
mod volumes;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use nix::sys::signal::{SigSet, Signal};
use tidemark_block::ExportList;
use tidemark_block::engine::socket::{Address, Listener};
use tidemark_block::engine::{ExecutorConfig, Workers};
use tidemark_block::fuse::{Directory, FuseConfig};
use tidemark_block::nbd::{Server, ServerConfig};
use tidemark_wire::AgentRun;

use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::control::server::ControlSocket;
use crate::random::{Random, SystemSource};
use attachment::Records;
use instance::Instance;
use links::LostLinks;
use owner::{EVENTS_MAX, Event, Next, Owner};
use running::Surroundings;
use served::Served;
use volumes::Volumes;

/// How often the volumes get what has to be done now and then.
const KEEP_EVERY: Duration = Duration::from_millis(100);
/// How long a stop waits for a device that is just being attached or detached.
const DEVICES_PATIENCE: Duration = Duration::from_secs(10);
/// Tasks of one worker: enough for the connections that the NBD server takes.
const TASKS_MAX: usize = 16 * 1024;

/// Runs the agent with the configuration that the file at `config_path` holds until it is told to
/// stop; the file is read anew when somebody asks for it.
///
/// # Errors
/// What kept it from starting, with the volume or file and what to do.
pub fn run(config: Config, config_path: &Path) -> anyhow::Result<()> {
    // Blocked before the first thread starts, so that all of them inherit it.
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().context("block the signals")?;
    let config_path = std::path::absolute(config_path).context("place of the configuration")?;
    placement::check(&config, &config_path, std::iter::empty())?;
    let instance = Instance::lock(&config.state_dir)?;
    create_dir(&config.ring_dir)?;
    let control = bind_control(&config.control_socket)?;
    memory::settle(config.lock_memory);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let random: Arc<dyn Random> = Arc::new(SystemSource::default());
    let agent = instance.agent_id(random.as_ref())?;
    let executor_config = ExecutorConfig { tasks_max: TASKS_MAX, ..ExecutorConfig::default() };
    let workers = Workers::start("serve", config.workers, executor_config)
        .context("start the executors (io_uring)")?;
    let exports = Arc::new(ExportList::new());
    let around = Surroundings {
        agent,
        run: AgentRun::from_random(random.bytes()),
        collector: config.collector.clone(),
        clock: Arc::clone(&clock),
        random,
        workers: workers.handle(),
    };
    let mut volumes = Volumes::new(around, Arc::clone(&exports));
    let opened = config.volumes.iter().try_for_each(|volume| volumes.add(&config, volume));
    let frontends = match opened.and_then(|()| Frontends::start(&config, &exports, &workers)) {
        Ok(frontends) => frontends,
        Err(error) => {
            // In order, so that a start that fails does not make a later one compare anything.
            close(volumes, exports, workers, clock.as_ref());
            return Err(error);
        }
    };
    let (sender, events) = crossbeam_channel::bounded(EVENTS_MAX);
    let mut owner = Owner {
        records: Records::new(&config.state_dir),
        nbd: frontends.nbd_address.clone(),
        ublk: Arc::clone(&frontends.ublk),
        config,
        config_path,
        volumes,
        links: LostLinks::default(),
        events: sender.clone(),
    };
    let served = serve(&mut owner, control, sender, &events, signals, &clock);
    owner.warn_of_devices();
    drop(events);
    frontends.stop();
    close(owner.into_volumes(), exports, workers, clock.as_ref());
    served?;
    tracing::info!("stopped");
    Ok(())
}

/// Takes over the devices of a predecessor, and serves until somebody says that it is enough.
fn serve(
    owner: &mut Owner,
    control: ControlSocket,
    sender: Sender<Event>,
    events: &Receiver<Event>,
    signals: SigSet,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<()> {
    owner.reattach_all();
    placement::check(&owner.config, &owner.config_path, owner.volumes.devices())?;
    watch_signals(signals, sender.clone())?;
    let control = control
        .serve(owner::ask_through(sender), Arc::clone(clock))
        .context("serve the control socket")?;
    tracing::info!("ready: {} volume(s) served", owner.volumes.names().len());
    notify::ready();
    while next(owner, events) == Next::GoOn {}
    notify::stopping();
    control.stop();
    owner.finish_attachments(events, DEVICES_PATIENCE, clock.as_ref());
    Ok(())
}

/// Drains and closes all volumes. Nobody changes them any more.
fn close(volumes: Volumes, exports: Arc<ExportList<Served>>, workers: Workers, clock: &dyn Clock) {
    let drained = volumes.drain();
    // The rings are free when nobody has a disk any more: neither a client nor a copier.
    drop(exports);
    workers.shutdown();
    drained.into_iter().for_each(|volume| volume.settle(clock));
}

/// Checks of a good configuration, the one of the file at `config_path`, whether the agent's own
/// files lie on a disk that it is to protect.
///
/// # Errors
/// Which file lies on which volume.
pub fn check(config: &Config, config_path: &Path) -> anyhow::Result<()> {
    placement::check(config, config_path, std::iter::empty())
}

/// Handles the next event, or does what has to be done now and then.
fn next(owner: &mut Owner, events: &Receiver<Event>) -> Next {
    let next = match events.recv_timeout(KEEP_EVERY) {
        Ok(event) => owner.handle(event),
        Err(RecvTimeoutError::Timeout) => Next::GoOn,
        Err(RecvTimeoutError::Disconnected) => {
            unreachable!("the owner itself has a sender of its events")
        }
    };
    owner.volumes.keep();
    owner.ublk.reap();
    owner.follow_sizes();
    next
}

/// Starts the thread that waits for signals; it ends with the process.
fn watch_signals(signals: SigSet, events: Sender<Event>) -> anyhow::Result<()> {
    let wait = move || {
        loop {
            let sent = match signals.wait() {
                Ok(signal) => events.send(Event::Signal(signal)),
                // Another signal came, one with a handler.
                Err(_) => continue,
            };
            if sent.is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).context("watch for signals")?;
    Ok(())
}

/// What clients of disks talk to.
struct Frontends {
    server: Server<Served>,
    directory: Option<Directory<Served>>,
    ublk: Arc<ublk::Devices>,
    /// Where the server listens, for the kernel's own client.
    nbd_address: Option<Address>,
}

impl Frontends {
    fn start(
        config: &Config,
        exports: &Arc<ExportList<Served>>,
        workers: &Workers,
    ) -> anyhow::Result<Self> {
        let listeners = config.nbd.listen.iter().map(listen).collect::<Result<Vec<_>, _>>()?;
        let unix = listeners.iter().find(|one| matches!(one.address(), Address::Unix(_)));
        let nbd_address = unix.or(listeners.first()).map(|one| one.address().clone());
        let handle = workers.handle();
        let server =
            Server::start(Arc::clone(exports), listeners, &handle, ServerConfig::default());
        let mount = |fuse: &crate::config::Fuse| {
            Directory::mount(&fuse.mount, Arc::clone(exports), &handle, FuseConfig::default())
        };
        let directory = config.fuse.as_ref().map(mount).transpose()?;
        let ublk = Arc::new(ublk::Devices::new(Arc::clone(exports)));
        Ok(Self { server, directory, ublk, nbd_address })
    }

    fn stop(self) {
        if let Some(directory) = self.directory {
            directory.unmount();
        }
        self.ublk.stop();
        self.server.stop();
    }
}

/// Listens for NBD clients; the directory of a unix socket is made when it is missing.
fn listen(address: &Address) -> anyhow::Result<Listener> {
    if let Address::Unix(path) = address {
        create_parent(path)?;
    }
    Listener::bind(address).context("NBD server: can't listen")
}

fn bind_control(path: &Path) -> anyhow::Result<ControlSocket> {
    create_parent(path)?;
    ControlSocket::bind(path).context("control socket: can't listen")
}

fn create_parent(path: &Path) -> anyhow::Result<()> {
    path.parent().map_or(Ok(()), create_dir)
}

fn create_dir(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("can't make the directory {}", path.display()))
}
