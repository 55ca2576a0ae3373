//! The protected machine: its agent's process, and what outlives that.
//!
//! The process is the shipped volume, ring, capture, copier and shipper, opened by the shipped
//! `open_on`; its tasks end together. A kill drops them wherever they are. What stays are the
//! disk, the ring's file (tmpfs, real) and the state file (real; every store counts as durable).

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tidemark_agent::backing_mark::Change;
use tidemark_agent::capture::phase::Phase;
use tidemark_agent::clock::Clock;
use tidemark_agent::copy;
use tidemark_agent::daemon::numbers::Numbers;
use tidemark_agent::daemon::open::{Left, RingPlace, begun, new_state, open_on};
use tidemark_agent::daemon::restart::Restart;
use tidemark_agent::daemon::running::{is_late, keep_clean};
use tidemark_agent::intent_log::file::IntentFile;
use tidemark_agent::random::Random;
use tidemark_agent::ring::{Ring, RingSpec};
use tidemark_agent::shipper::{Drained, Orders, ShipperParts, VolumeFacts};
use tidemark_agent::state::{KeptState, SEQ_RESERVATION, StateFile};
use tidemark_agent::volume::{Volume, upkeep};
use tidemark_collector::storage::pages::Pages;
use tidemark_wire::{AgentId, AgentRun, Seq, VolumeId};

use crate::disk::SimStore;
use crate::executor::Group;
use crate::figures::Step;
use crate::guest;
use crate::log_place::LogPlace;
use crate::ship::{self, Shipping};
use crate::time::SimTimer;
use crate::world::World;

pub(crate) const VOLUME: VolumeId = VolumeId::from_bytes([7; 16]);
pub(crate) const NAME: &str = "data";
const STATE_FILE: &str = "data.volume.json";
const AGENT: AgentId = AgentId::from_bytes([1; 16]);
/// How long a stop waits for the collector, as the daemon's does.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
/// When another file is tried for a write-intent log that failed.
const LOG_AGAIN: Duration = Duration::from_secs(60);

/// See [`AgentMachine::snapshot`].
pub(crate) struct Snapshot {
    disk: Pages,
    log: Pages,
    state: Vec<u8>,
    size_bytes: usize,
    is_changed: bool,
}

/// What the machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// No process. It is started at this time.
    Down {
        until: Duration,
    },
    /// The volume is being opened.
    Opening,
    Up,
    /// The process stops in order.
    Stopping,
    /// It has stopped, its ring is of no more use, or is.
    Stopped {
        is_clean: bool,
    },
}

/// A process that serves.
#[derive(Clone)]
pub(crate) struct Process {
    pub(crate) volume: Arc<Volume<SimStore>>,
    pub(crate) state: Arc<KeptState>,
    orders: Rc<Cell<Orders>>,
    drained: Rc<Cell<Option<Drained>>>,
}

impl Process {
    /// True when nothing is missing at the collector, as far as the agent knows.
    pub(crate) fn is_whole(&self) -> bool {
        let capture = self.volume.capture();
        let is_whole = matches!(capture.phases().phase(), Phase::Whole { .. });
        is_whole && capture.is_on() && self.state.get().copied && capture.ring().is_empty()
    }
}

/// See the module's documentation.
pub(crate) struct AgentMachine {
    dir: PathBuf,
    pub(crate) log: LogPlace,
    boot: Cell<u8>,
    ring_slots: u32,
    /// The disk was changed while there was no process, and its mark says so.
    is_changed: Cell<bool>,
    /// Its size when a process looked last.
    size_bytes: Cell<usize>,
    pub(crate) status: Cell<Status>,
    pub(crate) process: RefCell<Option<Process>>,
}

impl AgentMachine {
    /// A machine that keeps its files in an empty directory on tmpfs.
    pub(crate) fn new(dir: PathBuf, ring_slots: u32, log: LogPlace) -> Self {
        let status = Cell::new(Status::Down { until: Duration::ZERO });
        Self {
            dir,
            log,
            boot: Cell::new(1),
            ring_slots,
            is_changed: Cell::new(false),
            size_bytes: Cell::new(0),
            status,
            process: RefCell::default(),
        }
    }

    fn ring_path(&self) -> PathBuf {
        self.dir.join("ring")
    }

    fn ring_spec(&self) -> RingSpec {
        let boot_id = [self.boot.get(); 16];
        RingSpec { volume: VOLUME, ring_bytes: 1 << 20, slots: self.ring_slots, boot_id }
    }

    pub(crate) fn start(&self, world: &Rc<World>) {
        self.status.set(Status::Opening);
        world.trace.say(|| "agent: starts".into());
        let theirs = Rc::clone(world);
        world.executor.spawn(Group::Agent, Step::Open, async move {
            if let Err(error) = open(&theirs).await {
                theirs.breaks(format!("the agent does not start: {error:#}"));
            }
        });
    }

    /// Drops the process; what it had in flight lands or not.
    pub(crate) fn kill(&self, world: &World, restart_after: Duration) {
        world.disk.agent_died();
        if let Some(log) = self.log.disk() {
            log.agent_died();
        }
        self.end(world, restart_after);
    }

    /// The machine loses its power.
    pub(crate) fn cut_power(&self, world: &World, restart_after: Duration) {
        world.network.silence();
        world.disk.power_cut();
        if let Some(log) = self.log.disk() {
            log.power_cut();
        }
        self.end(world, restart_after);
        self.boot.set(self.boot.get() + 1);
        // A file system in memory is gone; but one may be put back by whoever sets the machine up.
        if world.random.chance(70) && self.ring_path().exists() {
            std::fs::remove_file(self.ring_path()).expect("a file of ours");
        }
    }

    /// Takes the process away once its stop has ended.
    pub(crate) fn finish_stop(&self, world: &World, is_clean: bool, restart_after: Duration) {
        self.end(world, restart_after);
        if is_clean {
            // Nobody has it any more.
            Ring::discard(&self.ring_path()).expect("a ring of ours");
        }
    }

    fn end(&self, world: &World, restart_after: Duration) {
        world.model.all_gone();
        world.guest.cut_off();
        drop(self.process.take());
        world.executor.kill(Group::Agent);
        self.status.set(Status::Down { until: world.time.now() + restart_after });
    }

    /// Somebody puts an older image on the disk; false while there is a process.
    pub(crate) fn put_back(&self, world: &World, image: &Pages) -> bool {
        if !matches!(self.status.get(), Status::Down { .. }) {
            return false;
        }
        world.disk.put_back(image);
        self.is_changed.set(true);
        true
    }

    /// A copy of everything that the machine keeps; none before its first start.
    pub(crate) fn snapshot(&self, world: &World) -> Option<Snapshot> {
        let state = std::fs::read(self.dir.join(STATE_FILE)).ok()?;
        let log = self.log.disk()?.image();
        let (size_bytes, is_changed) = (self.size_bytes.get(), self.is_changed.get());
        let disk = world.disk.image();
        Some(Snapshot { disk, log, state, size_bytes, is_changed })
    }

    /// The whole machine is put back to a snapshot of itself, and loses its power with that.
    pub(crate) fn restore(&self, world: &World, snapshot: &Snapshot, restart_after: Duration) {
        self.cut_power(world, restart_after);
        world.collector.witness.agent_put_back();
        world.disk.put_back(&snapshot.disk);
        self.size_bytes.set(snapshot.size_bytes);
        self.is_changed.set(snapshot.is_changed);
        if let Some(log) = self.log.disk() {
            log.put_back(&snapshot.log);
        }
        std::fs::write(self.dir.join(STATE_FILE), &snapshot.state).expect("a file of ours");
    }

    /// True when the disk has the size that a process has seen last.
    pub(crate) fn knows_size(&self, world: &World) -> bool {
        self.size_bytes.get() == world.disk.size_bytes()
    }

    /// What the disk's mark tells the next process, as `look_at_backing` does. The mark is renewed
    /// when that process has opened the volume: another one that follows a kill in between is told
    /// the same.
    fn look(&self, restart: Restart, is: usize) -> Option<Change> {
        let (is_changed, was) = (self.is_changed.get(), self.size_bytes.get());
        if restart != Restart::First && was != is {
            return Some(Change::Resized {
                was: was as u64,
                is: is as u64,
                only_size: !is_changed,
            });
        }
        (is_changed && restart != Restart::First)
            .then_some(Change::Doubt("an older image was put on it"))
    }

    /// Begins to stop the process in order.
    pub(crate) fn stop(&self, world: &Rc<World>) {
        let Some(process) = self.process.borrow().clone() else { return };
        self.status.set(Status::Stopping);
        let theirs = Rc::clone(world);
        world.executor.spawn(Group::Agent, Step::Stop, async move {
            let is_clean = stop(&theirs, &process).await;
            theirs.trace.say(|| format!("agent: stopped, clean: {is_clean}"));
            theirs.agent.status.set(Status::Stopped { is_clean });
        });
    }
}

async fn open(world: &Rc<World>) -> anyhow::Result<()> {
    let machine = &world.agent;
    let file = StateFile::new(&machine.dir, NAME);
    let found = file.load()?;
    let state = begun(&found.clone().unwrap_or_else(|| new_state(VOLUME)));
    file.store(&state)?;
    let state = Arc::new(KeptState::new(file, state));
    let path = machine.ring_path();
    let left = Left {
        name: NAME,
        ring: RingPlace { path: &path, spec: machine.ring_spec() },
        log: &machine.log,
        was: found.as_ref(),
        state: &state,
    };
    let clock: Arc<dyn Clock> = world.agent_clock.clone();
    let store = SimStore::open(Arc::clone(&world.disk));
    let look = |_: &Ring, restart| Ok(machine.look(restart, world.disk.size_bytes()));
    let (volume, started) = open_on(store, &left, &clock, look).await?;
    machine.is_changed.set(false);
    machine.size_bytes.set(usize::try_from(volume.size_bytes()).unwrap_or(0));
    let volume = Arc::new(volume);
    world.trace.say(|| format!("agent: {started}"));
    let process = Process {
        volume: Arc::clone(&volume),
        state: Arc::clone(&state),
        orders: Rc::default(),
        drained: Rc::default(),
    };
    let random: Arc<dyn Random> = world.random.clone();
    let timer = || SimTimer(Arc::clone(&world.time));
    let copier = copy::run(Arc::clone(&volume), Arc::clone(&random), timer());
    world.executor.spawn(Group::Agent, Step::Copy, copier);
    let verifier = copy::verify::run(Arc::clone(&volume), timer());
    world.executor.spawn(Group::Agent, Step::Copy, verifier);
    let sweeper = upkeep::run(Arc::clone(&volume), timer());
    world.executor.spawn(Group::Agent, Step::Sweep, sweeper);
    let (mended, theirs) = (Arc::clone(&volume), Rc::clone(world));
    let mender = async move { mend_log(&theirs, &mended).await };
    world.executor.spawn(Group::Agent, Step::Sweep, mender);
    let (resized, theirs) = (Arc::clone(&volume), Rc::clone(world));
    let watcher = async move { watch_size(&theirs, &resized).await };
    world.executor.spawn(Group::Agent, Step::Sweep, watcher);
    let facts = VolumeFacts { id: VOLUME, block_bytes: world.disk.spec().unit_bytes };
    let capture = Arc::clone(volume.capture());
    let (kept, keeper) = (process.clone(), Rc::clone(world));
    let keeper = async move { keep_numbers(&keeper, &kept).await };
    world.executor.spawn(Group::Agent, Step::Sweep, keeper);
    let (run, first) = (AgentRun::from_random(random.bytes()), first_of(&state));
    let parts = ShipperParts { facts, capture, state, agent: AGENT, run, first, clock, random };
    let shipping = Shipping {
        parts,
        executor: Rc::clone(&world.executor),
        network: Rc::clone(&world.network),
        trace: Rc::clone(&world.trace),
        orders: Rc::clone(&process.orders),
    };
    let drained = Rc::clone(&process.drained);
    world.executor.spawn(Group::Agent, Step::Ship, async move {
        drained.set(Some(ship::run(shipping).await));
    });
    *machine.process.borrow_mut() = Some(process);
    machine.status.set(Status::Up);
    world.trace.say(|| format!("agent: serves ({:?})", volume.capture().phases().phase()));
    guest::start(world, &volume);
    Ok(())
}

/// The first number of a process that has just reserved some.
fn first_of(state: &KeptState) -> Seq {
    Seq(state.get().reserved_until.0 - SEQ_RESERVATION)
}

/// Reserves numbers ahead, as the daemon does.
async fn keep_numbers(world: &World, process: &Process) {
    let ring = process.volume.capture().ring();
    let mut numbers = Numbers::new(ring, world.time.now());
    loop {
        world.time.sleep(Duration::from_secs(1)).await;
        numbers.keep(NAME, &process.state, ring, world.time.now());
    }
}

/// Looks every second whether the disk has another size, as the daemon does.
async fn watch_size(world: &World, volume: &Volume<SimStore>) {
    loop {
        world.time.sleep(Duration::from_secs(1)).await;
        if matches!(volume.has_other_size(), Ok(Some(_)))
            && let Ok(Some(resized)) = volume.resize().await
        {
            world.agent.size_bytes.set(usize::try_from(resized.new_bytes).unwrap_or(0));
            world.trace.say(|| format!("agent: {resized:?}"));
        }
    }
}

/// Tries another file every minute while the write-intent log can't be written, as the daemon does.
async fn mend_log(world: &World, volume: &Volume<SimStore>) {
    loop {
        world.time.sleep(LOG_AGAIN).await;
        let map = volume.intent().map();
        if map.is_failed()
            && let Ok(file) = IntentFile::make(&world.agent.log, VOLUME, map)
        {
            volume.intent().adopt(file).await;
        }
    }
}

/// As the daemon stops a volume; says whether the stop is clean.
async fn stop(world: &Rc<World>, process: &Process) -> bool {
    let time = &world.time;
    // The frontends first.
    world.guest.stop();
    while world.guest.in_flight() > 0 {
        time.sleep(Duration::from_micros(200)).await;
    }
    let capture = process.volume.capture();
    capture.close();
    process.orders.set(Orders { stop_when_drained: true, stop_now: false });
    let begun = world.model.now();
    let flushed = process.volume.sync().await;
    if flushed.is_ok() {
        world.model.flushed(begun);
    }
    let deadline = time.now() + DRAIN_PATIENCE;
    while process.drained.get().is_none() && time.now() < deadline {
        time.sleep(Duration::from_millis(20)).await;
    }
    let is_drained = process.drained.get() == Some(Drained::Yes);
    let is_clean = flushed.is_ok() && is_drained && process.state.get().copied && !is_late(capture);
    is_clean && keep_clean(capture, &process.state, None).is_ok()
}
