//! The collector: its process, and the disk that outlives that.
//!
//! The process is the shipped session, volume, journal, seed and merge, driven by tasks where the
//! daemon has threads. Calls of the storage take no time by themselves; the tasks wait around
//! them, and a kill or a power cut can also strike at any call within
//! ([`tidemark_collector::storage::Fault`]).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tidemark_block::engine::Event;
use tidemark_collector::config::Config;
use tidemark_collector::config::settings::Settings;
use tidemark_collector::error::NotOffered;
use tidemark_collector::ingest::manifest::Manifest;
use tidemark_collector::ingest::observer::Observer;
use tidemark_collector::ingest::owner::{Command, VolumeCore};
use tidemark_collector::ingest::volume::{Held, Volume, volume_dir};
use tidemark_collector::journal::{JournalConfig, JournalReader};
use tidemark_collector::merge::{MergeLimits, merge_once};
use tidemark_collector::policy::Overrides;
use tidemark_collector::seam::Clock;
use tidemark_collector::storage::{MemoryStorage, Storage};
use tidemark_wire::session::Hello;
use tidemark_wire::{Epoch, JournalId, Seq, Timeline, WallMicros};

use crate::agent::VOLUME;
use crate::executor::Group;
use crate::figures::Step;
use crate::session;
use crate::witness::Witness;
use crate::world::World;

const DATA_DIR: &str = "/data";

/// The collector's volume, for everybody in the simulation.
pub(crate) type SimVolume = Volume<MemoryStorage>;

/// Whether there is a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// It is started at this time.
    Down {
        until: Duration,
    },
    Up,
    /// It stops in order.
    Stopping,
    Stopped,
}

/// How the journal and its merge are bounded in a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CollectorSpec {
    pub(crate) segment_bytes_max: u64,
    pub(crate) window: Duration,
    pub(crate) journal_bytes_max: u64,
    /// Longest time of a sync, in microseconds.
    pub(crate) sync_max: u64,
}

/// Commands that wait for a volume's writer.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: RefCell<VecDeque<Command>>,
    filled: Event,
}

impl Queue {
    pub(crate) fn send(&self, command: Command) {
        self.waiting.borrow_mut().push_back(command);
        self.filled.notify_all();
    }

    fn try_next(&self) -> Option<Command> {
        self.waiting.borrow_mut().pop_front()
    }

    async fn next(&self) -> Command {
        loop {
            let filled = self.filled.wait();
            if let Some(command) = self.try_next() {
                return command;
            }
            filled.await;
        }
    }
}

/// See the module's documentation.
pub(crate) struct CollectorMachine {
    pub(crate) spec: CollectorSpec,
    pub(crate) status: Cell<Status>,
    pub(crate) storage: RefCell<MemoryStorage>,
    pub(crate) witness: Arc<Witness>,
    settings: Arc<Settings>,
    volume: RefCell<Option<(Arc<SimVolume>, Rc<Queue>)>>,
    /// A state could be opened once.
    has_offered: Cell<bool>,
}

impl CollectorMachine {
    pub(crate) fn new(spec: CollectorSpec) -> Self {
        let storage = MemoryStorage::default();
        storage.create_dir(Path::new(DATA_DIR)).expect("memory makes directories");
        let defaults = Config::parse("", Path::new("no file")).expect("defaults are fine");
        Self {
            spec,
            status: Cell::new(Status::Down { until: Duration::ZERO }),
            storage: RefCell::new(storage),
            witness: Arc::default(),
            settings: Settings::new(defaults),
            volume: RefCell::default(),
            has_offered: Cell::new(false),
        }
    }

    /// The volume, once it is known to this process.
    pub(crate) fn volume(&self) -> Option<Arc<SimVolume>> {
        self.volume.borrow().as_ref().map(|(volume, _)| Arc::clone(volume))
    }

    pub(crate) fn held(&self) -> Option<Held<MemoryStorage>> {
        self.volume()?.held().ok()
    }

    pub(crate) fn start(&self, world: &Rc<World>) {
        self.status.set(Status::Up);
        world.trace.say(|| "collector: starts".into());
        let storage = Arc::new(self.storage.borrow().clone());
        let dir = volume_dir(Path::new(DATA_DIR), VOLUME);
        if let Ok(manifest) = Manifest::load(&storage, &dir) {
            self.open_volume(world, &storage, manifest, dir);
        }
        world.network.listen(true);
        let theirs = Rc::clone(world);
        world.executor.spawn(Group::Collector, Step::Session, async move {
            loop {
                let link = theirs.network.accept().await;
                session::start(&theirs, link);
            }
        });
        let theirs = Rc::clone(world);
        world.executor.spawn(Group::Collector, Step::Merge, async move { merge(&theirs).await });
    }

    /// Takes the process away: what it had not written is lost, no more.
    pub(crate) fn kill(&self, world: &World, restart_after: Duration) {
        let left = self.storage.borrow().after_kill();
        self.end(world, left, restart_after);
    }

    /// The machine loses its power.
    pub(crate) fn cut_power(&self, world: &World, restart_after: Duration) {
        world.network.silence();
        let left = self.storage.borrow().after_crash(world.random.number());
        self.end(world, left, restart_after);
    }

    /// Somebody puts an older copy of the disk in its place.
    pub(crate) fn put_back(&self, world: &World, copy: &MemoryStorage, restart_after: Duration) {
        self.end(world, copy.after_kill(), restart_after);
        self.witness.put_back();
        self.has_offered.set(false);
    }

    fn end(&self, world: &World, left: MemoryStorage, restart_after: Duration) {
        // Before the tasks go: what they would still say is not said.
        let muted = Rc::clone(&world.collector_is_dead);
        muted.set(true);
        world.network.listen(false);
        self.volume.take();
        world.executor.kill(Group::Collector);
        muted.set(false);
        *self.storage.borrow_mut() = left;
        self.status.set(Status::Down { until: world.time.now() + restart_after });
    }

    /// Begins to stop the process in order.
    pub(crate) fn stop(&self, world: &Rc<World>) {
        self.status.set(Status::Stopping);
        world.network.listen(false);
        match &*self.volume.borrow() {
            Some((_, queue)) => queue.send(Command::Stop),
            None => self.status.set(Status::Stopped),
        }
    }

    /// The volume of an agent; registers it when it is new, as `Volumes::get_or_register` does.
    pub(crate) fn get_or_register(
        &self,
        world: &Rc<World>,
        hello: &Hello,
    ) -> Result<(Arc<SimVolume>, Rc<Queue>), String> {
        if let Some((volume, queue)) = &*self.volume.borrow() {
            return Ok((Arc::clone(volume), Rc::clone(queue)));
        }
        let storage = Arc::new(self.storage.borrow().clone());
        let dir = volume_dir(Path::new(DATA_DIR), hello.volume);
        let manifest = match Manifest::load(&storage, &dir) {
            Ok(manifest) => manifest,
            Err(_) => {
                let manifest = Manifest {
                    volume: hello.volume,
                    name: hello.name.clone(),
                    size_bytes: hello.size_bytes,
                    block_bytes: hello.block_bytes,
                    journal: JournalId::from_random(tidemark_agent::random::Random::bytes(
                        &*world.random,
                    )),
                    timeline: Timeline(1),
                    epoch: Epoch(0),
                    agent: hello.agent,
                    created: world.collector_clock.wall(),
                    policy: Overrides::default(),
                    retired: None,
                    seeded: false,
                    heard: Epoch(0),
                    compare_next: false,
                };
                storage.create_dir(&dir).map_err(|error| error.to_string())?;
                manifest.store(&storage, &dir).map_err(|error| error.to_string())?;
                manifest
            }
        };
        Ok(self.open_volume(world, &storage, manifest, dir))
    }

    fn open_volume(
        &self,
        world: &Rc<World>,
        storage: &Arc<MemoryStorage>,
        manifest: Manifest,
        dir: PathBuf,
    ) -> (Arc<SimVolume>, Rc<Queue>) {
        let volume = Arc::new(Volume::new(dir, manifest, Arc::clone(&self.settings)));
        let queue = Rc::<Queue>::default();
        *self.volume.borrow_mut() = Some((Arc::clone(&volume), Rc::clone(&queue)));
        let (theirs, storage) = (Rc::clone(world), Arc::clone(storage));
        let (written, commands) = (Arc::clone(&volume), Rc::clone(&queue));
        world.executor.spawn(Group::Collector, Step::Recover, async move {
            write(&theirs, storage, written, &commands).await;
        });
        (volume, queue)
    }

    /// What has to hold of a journal that a start has opened.
    fn check_start(&self, world: &World, volume: &SimVolume) {
        for event in self.witness.take_events() {
            world.trace.say(|| event);
        }
        let Ok(held) = volume.held() else { return };
        let (durable, acknowledged) = (held.reader.durable(), self.witness.acknowledged());
        world.trace.say(|| format!("collector: opened, durable {durable}"));
        if durable < acknowledged {
            world.breaks(format!("record {acknowledged} was acknowledged, {durable} is durable"));
        }
        let oldest = held.reader.first_seq().unwrap_or(Seq(0));
        if let Some(lost) = self.witness.lost_point(oldest) {
            world.breaks(format!("the point at record {lost} was listed and is gone"));
        }
        self.check_offer(world, &held.reader);
    }

    /// Once there was a state to open there always is one.
    pub(crate) fn check_offer(&self, world: &World, reader: &JournalReader<MemoryStorage>) {
        let newest = match reader.offerable(reader.durable()) {
            Ok(()) => Some(reader.durable()),
            Err(NotOffered::InSpan { before, .. }) => before,
            Err(_) => None,
        };
        let offers = newest.is_some_and(|seq| reader.offerable(seq).is_ok());
        if self.has_offered.get() && !offers {
            world.breaks(format!("the newest state that can be opened is gone: {newest:?}"));
        }
        self.has_offered.set(self.has_offered.get() || offers);
    }
}

/// The volume's writer: takes what waits, then syncs once.
async fn write(
    world: &Rc<World>,
    storage: Arc<MemoryStorage>,
    volume: Arc<SimVolume>,
    queue: &Queue,
) {
    let (machine, executor, random) = (&world.collector, &world.executor, &world.random);
    let pause = async |step, micros: u64| {
        world.time.sleep(Duration::from_micros(random.below(micros + 1))).await;
        executor.at(step);
    };
    for _ in 0..random.between(1, 4) {
        pause(Step::Recover, 1_000).await;
    }
    let observer: Arc<dyn Observer> = machine.witness.clone();
    let config = JournalConfig { segment_bytes_max: machine.spec.segment_bytes_max };
    let mut core = VolumeCore::start(storage, Arc::clone(&volume), observer, config);
    machine.check_start(world, &volume);
    // The poll that has opened the journal did nothing else.
    world.time.sleep(Duration::from_micros(1)).await;
    loop {
        let mut next = Some(queue.next().await);
        executor.at(Step::Append);
        let mut is_stopping = false;
        while let Some(command) = next {
            is_stopping |= matches!(command, Command::Stop);
            core.handle(command);
            if random.chance(30) {
                pause(Step::Append, 200).await;
            }
            next = if is_stopping || random.chance(20) { None } else { queue.try_next() };
        }
        pause(Step::Sync, machine.spec.sync_max).await;
        core.finish();
        for event in machine.witness.take_events() {
            world.trace.say(|| event);
        }
        if is_stopping {
            pause(Step::Sync, 1_000).await;
            machine.status.set(Status::Stopped);
            return;
        }
    }
}

/// The merger: one step now and then.
async fn merge(world: &World) {
    let machine = &world.collector;
    // With nothing to merge it looks less often.
    let mut longest = 400_000;
    loop {
        let micros = world.random.between(1_000, longest);
        world.time.sleep(Duration::from_micros(micros)).await;
        let Some(held) = machine.held() else { continue };
        let window_us = u64::try_from(machine.spec.window.as_micros()).unwrap_or(u64::MAX);
        let limits = MergeLimits {
            older_than: WallMicros(world.collector_clock.wall().0.saturating_sub(window_us)),
            journal_bytes_max: Some(machine.spec.journal_bytes_max),
        };
        let stops = world.random.chance(10);
        let mut pace = |_| {
            let is_over = stops && world.random.chance(20);
            if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let merged = merge_once(&held, &limits, &mut pace);
        match merged {
            Ok(step) => {
                longest = if step.merged.to.is_some() { 400_000 } else { 2_000_000 };
                if let Some(to) = step.merged.to {
                    world.figures.borrow_mut().merges += 1;
                    world.trace.say(|| format!("collector: merged to {to}"));
                }
            }
            Err(error) => world.trace.say(|| format!("collector: merge: {error}")),
        }
        if !machine.storage.borrow().is_crashed() {
            machine.check_offer(world, &held.reader);
        }
    }
}
