//! One run: two machines, the network between them, a guest, and what goes wrong.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::agent::{self, AgentMachine};
use crate::check;
use crate::collector::{self, CollectorMachine, CollectorSpec};
use crate::director::Director;
use crate::disk::{Disk, DiskSpec};
use crate::executor::{Executor, Group, Turn};
use crate::figures::{Figures, Step};
use crate::guest::Guest;
use crate::log_place::LogPlace;
use crate::model::{Model, ZONE_BYTES};
use crate::network::Network;
use crate::random::Random;
use crate::time::{MachineClock, Time};
use crate::trace::Trace;

/// Longest time a run may take until everything is quiet.
const RUN_MAX: Duration = Duration::from_secs(4 * 3600);
/// What each run has to do.
const OPERATIONS_MIN: u64 = 200;
const FAULTS_MIN: u64 = 5;

/// Everything that the tasks of a run reach.
pub(crate) struct World {
    seed: u64,
    pub(crate) executor: Rc<Executor>,
    pub(crate) time: Arc<Time>,
    pub(crate) random: Arc<Random>,
    pub(crate) trace: Rc<Trace>,
    pub(crate) network: Rc<Network>,
    pub(crate) model: Arc<Model>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) agent_clock: Arc<MachineClock>,
    pub(crate) collector_clock: Arc<MachineClock>,
    pub(crate) agent: AgentMachine,
    pub(crate) collector: CollectorMachine,
    /// What the collector's tasks say goes nowhere, because they are being dropped.
    pub(crate) collector_is_dead: Rc<Cell<bool>>,
    pub(crate) guest: Guest,
    pub(crate) figures: RefCell<Figures>,
    broken: RefCell<Option<String>>,
}

/// What came of a run.
pub(crate) struct Outcome {
    /// What it did, as a number.
    pub(crate) hash: u64,
    pub(crate) figures: Figures,
    /// What must not be, and was.
    pub(crate) violation: Option<String>,
    /// The last things that happened, when they were wanted.
    pub(crate) lines: Vec<String>,
}

impl World {
    fn new(seed: u64, dir: &Path, with_text: bool) -> Rc<Self> {
        let random = Arc::new(Random::new(seed));
        let executor = Executor::new(Arc::clone(&random));
        let time = Arc::clone(&executor.time);
        let unit_bytes = random.pick(&[512, 512, 512, 4096]);
        let tells_holes = random.chance(85);
        // What is a hole costs no time to compare.
        let pages = random.between(1100, if tells_holes { 8000 } else { 1600 });
        let spec = DiskSpec {
            size_bytes: usize::try_from(pages * 4096).expect("a small disk"),
            unit_bytes,
            can_punch: random.chance(70),
            tells_holes,
            is_cached: random.chance(40),
        };
        let model = Arc::<Model>::default();
        let disk = Disk::new(spec, Arc::clone(&model), Arc::clone(&time), Arc::clone(&random));
        prepare(&disk, &model, &random);
        let collector = CollectorSpec {
            segment_bytes_max: random.between(8, 200) * 1024,
            window: Duration::from_millis(random.pick(&[300, 3_000, 60_000, 3_600_000])),
            journal_bytes_max: random.pick(&[100, 1_000, 20_000]) * 1024,
            sync_max: random.pick(&[200, 2_000, 20_000]),
        };
        let operations = random.between(OPERATIONS_MIN, 280);
        let guest = Guest::new(
            random.between(1, 6),
            operations,
            random.pick(&[500, 4_000, 20_000, 100_000]),
            random.pick(&[0, 0, 1, 5]),
        );
        let ring_slots = 1 << random.between(4, 8);
        Rc::new(Self {
            seed,
            network: Network::new(Arc::clone(&time), Arc::clone(&random)),
            trace: Rc::new(Trace::new(Arc::clone(&time), with_text)),
            agent_clock: MachineClock::new(Arc::clone(&time)),
            collector_clock: MachineClock::new(Arc::clone(&time)),
            agent: AgentMachine::new(
                dir.to_owned(),
                ring_slots,
                LogPlace::new(Arc::clone(&time), Arc::clone(&random)),
            ),
            collector: CollectorMachine::new(collector),
            collector_is_dead: Rc::default(),
            guest,
            figures: RefCell::default(),
            broken: RefCell::default(),
            executor,
            time,
            random,
            model,
            disk,
        })
    }

    /// Something is that must not be. The first counts.
    pub(crate) fn breaks(&self, text: String) {
        self.broken.borrow_mut().get_or_insert(text);
    }

    fn violation(&self) -> Option<String> {
        self.broken.borrow().clone().or_else(|| self.model.broken())
    }

    /// Starts what is down and has waited long enough, and takes away what has stopped.
    fn tend(self: &Rc<Self>) {
        let now = self.time.now();
        match self.agent.status.get() {
            agent::Status::Down { until } if until <= now => self.agent.start(self),
            agent::Status::Stopped { is_clean } => {
                let rest = Duration::from_millis(self.random.below(2_000));
                self.agent.finish_stop(self, is_clean, rest);
                self.wake_at(rest);
            }
            _ => {}
        }
        match self.collector.status.get() {
            collector::Status::Down { until } if until <= now => self.collector.start(self),
            collector::Status::Stopped => {
                let rest = Duration::from_millis(self.random.below(2_000));
                self.collector.kill(self, rest);
                self.wake_at(rest);
            }
            _ => {}
        }
    }

    /// Sees to it that time stops there, for who is not a task.
    pub(crate) fn wake_at(&self, after: Duration) {
        let sleep = self.time.sleep(after);
        self.executor.spawn(Group::World, Step::Open, sleep);
    }

    fn run(self: &Rc<Self>) {
        let mut director = Director::new(self, self.seed);
        self.tend();
        while self.violation().is_none() && !director.is_over() {
            match self.executor.turn(RUN_MAX) {
                Turn::Polled(step) => {
                    self.trace.note(step as u64, self.executor.polls());
                    director.after(self, step);
                }
                Turn::Waited => director.look(self),
                Turn::Idle => self.breaks("nothing happens any more".into()),
            }
            if self.executor.is_stuck() {
                self.breaks("a task goes round and never waits".into());
            }
            self.tend();
        }
        if self.violation().is_none()
            && let Err(text) = check::all(self).and_then(|()| self.has_done_enough())
        {
            self.breaks(text);
        }
    }

    fn has_done_enough(&self) -> Result<(), String> {
        let Figures { operations, faults, .. } = *self.figures.borrow();
        if operations < OPERATIONS_MIN || faults < FAULTS_MIN {
            return Err(format!("only {operations} operations and {faults} faults"));
        }
        Ok(())
    }
}

/// Puts something on the disk, in the zones and elsewhere, and lets the model follow the zones.
fn prepare(disk: &Disk, model: &Model, random: &Random) {
    let pages = disk.spec().size_bytes / 4096;
    let mut zones: Vec<usize> =
        (0..random.between(2, 6)).map(|_| random.place((pages - 8) / 4) * ZONE_BYTES).collect();
    zones.sort_unstable();
    zones.dedup();
    for _ in 0..random.below(8) {
        let mut bytes = vec![0; 4096];
        random.fill(&mut bytes);
        disk.prepare(random.place(pages) * 4096, &bytes);
    }
    for zone in zones.iter().filter(|_| random.chance(50)) {
        let mut bytes = vec![0; ZONE_BYTES];
        random.fill(&mut bytes);
        disk.prepare(*zone, &bytes);
    }
    let image = disk.image();
    model.follow(&zones, |at, bytes| image.read(at, bytes));
}

/// Runs a seed in an empty directory on tmpfs.
pub(crate) fn run(seed: u64, dir: &Path, with_text: bool) -> Outcome {
    let world = World::new(seed, dir, with_text);
    // What a panic of one machine leaves is looked at no more.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.run())) {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("of some sort");
        world.breaks(format!("a panic: {text}"));
    }
    let (hash, violation) = (world.trace.hash(), world.violation());
    let lines = world.trace.lines();
    world.agent.process.take();
    for group in [Group::Agent, Group::Collector, Group::World] {
        world.executor.kill(group);
    }
    let mut figures = world.figures.borrow().clone();
    figures.seeds = 1;
    figures.polls = world.executor.polls();
    figures.traces = hash;
    Outcome { hash, figures, violation, lines }
}
