//! Decides what goes wrong and when, and when a run is over.
//!
//! Each fault that is planned strikes right behind a poll in which a task of its kind ran. When the guest has done all that it wanted and all
//! faults have struck, nothing goes wrong any more; then everything has to become quiet by itself.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use tidemark_block::ByteRange;
use tidemark_collector::storage::pages::Pages;
use tidemark_collector::storage::{Fault as CallFault, MemoryStorage};
use tidemark_wire::PointId;
use tidemark_wire::body::{Bookmark, PointKind};
use tidemark_wire::instruct::{Instruct, InstructKind};

use crate::agent::{Snapshot, Status};
use crate::collector;
use crate::figures::{Fault, Step};
use crate::model::ZONE_BYTES;
use crate::plan::{self, Due, Planned};
use crate::world::World;

/// What counts as the end of a guest's long pause.
const LULL_END: Duration = Duration::from_secs(2);
/// Longest time until everything is quiet, once nothing goes wrong any more.
const QUIET_MAX: Duration = Duration::from_secs(600);
/// How long everything has to stay quiet.
const QUIET: Duration = Duration::from_millis(200);

/// A change of the world that comes later.
enum Later {
    JournalHasRoom,
    Resume,
}

enum Stage {
    Running,
    /// Nothing goes wrong any more.
    Settling {
        since: Duration,
        quiet_since: Option<Duration>,
    },
    Over,
}

/// See the module's documentation.
pub(crate) struct Director {
    planned: VecDeque<Planned>,
    later: Vec<(Duration, Later)>,
    stage: Stage,
    next_bookmark: Duration,
    next_resume: Duration,
    /// An image of the disk from before.
    snapshot: Option<Pages>,
    /// What the machines were before.
    machine: Option<Snapshot>,
    journal: Option<MemoryStorage>,
    points: Cell<u64>,
    /// What is done at the collector within a call: a kill or a power cut.
    crash: Option<Fault>,
}

impl Director {
    pub(crate) fn new(world: &World, seed: u64) -> Self {
        let random = &world.random;
        Self {
            planned: plan::faults(random, seed, world.guest.left()),
            later: Vec::new(),
            stage: Stage::Running,
            next_bookmark: Duration::from_millis(random.below(400)),
            next_resume: Duration::ZERO,
            snapshot: Some(world.disk.image()),
            machine: None,
            journal: None,
            points: Cell::new(0),
            crash: None,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    /// A task was polled that does `step`.
    pub(crate) fn after(&mut self, world: &Rc<World>, step: Step) {
        self.look(world);
        if world.collector.storage.borrow().is_crashed() {
            self.collector_crashed(world, step);
        }
        let Some(next) = self.planned.front_mut() else { return };
        match world.guest.lull_left(world.time.now()) {
            // At the end of a long pause little of what may be lost is known to differ.
            Some(left) if next.fault == Fault::AgentPower && left > LULL_END => return,
            Some(_) if next.fault == Fault::AgentPower => {}
            _ if world.guest.left() > next.armed_at => return,
            _ => {}
        }
        let (fault, due) = (next.fault, next.after(step, world.guest.left() > 0));
        match due {
            Due::NotYet => {}
            Due::Provoke(fault) => self.provoke(world, fault, step),
            Due::Strike | Due::StrikeOrChange if self.strike(world, fault, step) => {
                self.planned.pop_front();
            }
            Due::Strike => {}
            Due::StrikeOrChange => {
                if let Some(next) = self.planned.front_mut() {
                    next.change(&world.random);
                }
            }
        }
    }

    /// Brings about a step that seldom comes by itself.
    fn provoke(&mut self, world: &Rc<World>, fault: Fault, step: Step) {
        if fault != Fault::CollectorKill {
            self.strike(world, fault, step);
        } else if self.can_end_collector(world) {
            // At once: a call to be killed within may be long in coming.
            end_collector(world, fault);
            note(world, fault, step);
        }
    }

    /// Time has passed.
    pub(crate) fn look(&mut self, world: &Rc<World>) {
        let now = world.time.now();
        while let Some(index) = self.later.iter().position(|(at, _)| *at <= now) {
            let (_, later) = self.later.swap_remove(index);
            match later {
                Later::JournalHasRoom => world.collector.storage.borrow().set_full(false),
                Later::Resume if instruct(world, InstructKind::Resume) => {}
                Later::Resume => self.do_later(world, Later::Resume, 50, 500),
            }
        }
        if now >= self.next_bookmark {
            self.next_bookmark = now + Duration::from_millis(world.random.between(20, 3_000));
            self.bookmark(world);
        }
        match self.stage {
            Stage::Running => {
                let is_done = world.guest.left() == 0 && self.planned.is_empty();
                if !is_done || !self.later.is_empty() {
                    return;
                }
                // No call has come for it.
                match self.crash.take() {
                    Some(fault) => end_collector(world, fault),
                    None => self.settle(world),
                }
            }
            Stage::Settling { .. } => self.watch(world),
            Stage::Over => {}
        }
    }

    fn do_later(&mut self, world: &World, what: Later, low_ms: u64, high_ms: u64) {
        let after = Duration::from_millis(world.random.between(low_ms, high_ms));
        self.later.push((world.time.now() + after, what));
        world.wake_at(after);
    }

    /// Ends all that was made to go wrong.
    fn settle(&mut self, world: &Rc<World>) {
        world.trace.say(|| "nothing goes wrong any more".into());
        world.disk.heal();
        world.agent.log.heal();
        world.collector.storage.borrow().set_full(false);
        world.collector.storage.borrow().clear_fault();
        world.network.heal();
        let since = world.time.now();
        self.stage = Stage::Settling { since, quiet_since: None };
    }

    fn watch(&mut self, world: &Rc<World>) {
        let now = world.time.now();
        let Stage::Settling { since, quiet_since } = &mut self.stage else { return };
        if now > *since + QUIET_MAX {
            let why = standing(world);
            return world.breaks(format!("the volume did not return to protected: {why}"));
        }
        if !is_quiet(world) {
            *quiet_since = None;
            self.resume(world);
            return;
        }
        let began = *quiet_since.get_or_insert(now);
        if now < began + QUIET {
            return;
        }
        // A range that could not be read needs a person, who says so until it is mended: a wish may
        // get lost with the connection.
        if crate::check::has_unreadable(world) {
            *quiet_since = None;
            instruct(world, InstructKind::Compare);
            return;
        }
        self.stage = Stage::Over;
    }

    /// A person who wants the volume protected again says so until it is.
    fn resume(&mut self, world: &World) {
        let now = world.time.now();
        let process = world.agent.process.borrow();
        let is_paused =
            process.as_ref().is_some_and(|process| process.volume.capture().is_paused());
        if is_paused && now >= self.next_resume {
            self.next_resume = now + Duration::from_secs(1);
            instruct(world, InstructKind::Resume);
        }
    }

    fn bookmark(&self, world: &World) -> bool {
        let live = world.collector.volume().and_then(|volume| volume.facts().live);
        let Some(live) = live else { return false };
        self.points.set(self.points.get() + 1);
        let id = PointId::from_random(tidemark_agent::random::Random::bytes(&*world.random));
        world.collector.witness.asked(id, world.model.now());
        let (label, reason) = (format!("point {}", self.points.get()), String::new());
        live.port.bookmark(Bookmark { id, kind: PointKind::Crash, label, reason })
    }

    /// Puts the protected machine back to a snapshot, or takes one.
    fn restore(&mut self, world: &Rc<World>) -> bool {
        let Some(snapshot) = self.machine.take() else {
            self.machine = world.agent.snapshot(world);
            return false;
        };
        let rest = Duration::from_millis(world.random.below(3_000));
        world.agent.restore(world, &snapshot, rest);
        world.wake_at(rest);
        true
    }

    /// Puts the collector's disk back to a copy, or takes one.
    fn put_journal_back(&mut self, world: &Rc<World>) -> bool {
        if !self.can_end_collector(world) {
            return false;
        }
        let Some(copy) = self.journal.take() else {
            let copy = world.collector.storage.borrow().after_kill();
            copy.set_full(false);
            self.journal = Some(copy);
            return false;
        };
        let rest = Duration::from_millis(world.random.below(3_000));
        world.collector.put_back(world, &copy, rest);
        world.wake_at(rest);
        true
    }

    /// Kills the agent and puts an older image on its disk.
    fn put_back(&mut self, world: &Rc<World>) -> bool {
        let Some(image) = self.snapshot.take() else {
            self.snapshot = Some(world.disk.image());
            return false;
        };
        let is_down = matches!(world.agent.status.get(), Status::Down { .. });
        (is_down || strike_agent(world, Fault::AgentKill)) && world.agent.put_back(world, &image)
    }

    /// Does it; false when there is nothing that it could be done to.
    fn strike(&mut self, world: &Rc<World>, fault: Fault, step: Step) -> bool {
        let done = match fault {
            // Noted when it happens, which may be later.
            Fault::CollectorKill
            | Fault::CollectorPower
            | Fault::CollectorStop
            | Fault::CollectorAway => return self.strike_collector(world, fault, step),
            Fault::AgentKill | Fault::AgentPower | Fault::AgentStop => strike_agent(world, fault),
            Fault::AgentPutBack => self.restore(world),
            Fault::CollectorPutBack => self.put_journal_back(world),
            Fault::NetworkCut | Fault::NetworkDown | Fault::NetworkSilent | Fault::NetworkFlip => {
                strike_network(world, fault);
                true
            }
            Fault::Pause => {
                let paused = instruct(world, InstructKind::Pause);
                if paused {
                    self.do_later(world, Later::Resume, 1, 3_000);
                }
                paused
            }
            Fault::Compare => {
                let whole = world.random.chance(50);
                let what = if whole { InstructKind::Compare } else { InstructKind::CompareMarked };
                instruct(world, what)
            }
            Fault::Verify => {
                let stops = world.random.chance(20);
                let what = if stops { InstructKind::StopVerify } else { InstructKind::Verify };
                instruct(world, what)
            }
            Fault::Bookmark => self.bookmark(world),
            Fault::JournalFull => {
                world.collector.storage.borrow().set_full(true);
                self.do_later(world, Later::JournalHasRoom, 1, 10_000);
                true
            }
            Fault::JournalCall if self.crash.is_some() => false,
            Fault::JournalCall => {
                let calls = world.random.below(12);
                world.collector.storage.borrow().fail_after(calls, CallFault::Once);
                true
            }
            Fault::BackingPutBack => self.put_back(world),
            // What is cut and grown again between two looks, no agent can tell: see `volume::resize`.
            Fault::BackingResized if !world.agent.knows_size(world) => false,
            Fault::LogFails => {
                world.agent.log.fail(world.random.between(1, 3));
                true
            }
            Fault::BackingWrite
            | Fault::BackingRead
            | Fault::BackingSync
            | Fault::BackingSpoilt
            | Fault::BackingResized
            | Fault::ClockJump => {
                strike_machine(world, fault);
                true
            }
        };
        if done {
            note(world, fault, step);
        }
        done
    }

    fn can_end_collector(&self, world: &World) -> bool {
        world.collector.status.get() == collector::Status::Up && self.crash.is_none()
    }

    fn strike_collector(&mut self, world: &Rc<World>, fault: Fault, step: Step) -> bool {
        let (machine, random) = (&world.collector, &world.random);
        if !self.can_end_collector(world) {
            return false;
        }
        match fault {
            Fault::CollectorStop => machine.stop(world),
            Fault::CollectorAway => {
                let rest = Duration::from_millis(random.between(2_000, 60_000));
                machine.kill(world, rest);
                world.wake_at(rest);
            }
            // Within a call that writes, as soon as there is one.
            _ if random.chance(60) => {
                let calls = random.below(12);
                machine.storage.borrow().fail_after(calls, CallFault::Crash);
                self.crash = Some(fault);
                return true;
            }
            _ => end_collector(world, fault),
        }
        note(world, fault, step);
        true
    }

    fn collector_crashed(&mut self, world: &Rc<World>, step: Step) {
        let Some(fault) = self.crash.take() else { return };
        world.trace.say(|| "within a call".into());
        note(world, fault, step);
        end_collector(world, fault);
    }
}

fn note(world: &World, fault: Fault, step: Step) {
    world.trace.note(1_000 + fault as u64, step as u64);
    world.trace.say(|| format!("FAULT {} at {}", fault.text(), step.text()));
    world.figures.borrow_mut().hit(fault, step);
}

fn end_collector(world: &World, fault: Fault) {
    let rest = Duration::from_millis(world.random.below(1_500));
    match fault {
        Fault::CollectorPower => world.collector.cut_power(world, rest),
        _ => world.collector.kill(world, rest),
    }
    world.wake_at(rest);
}

fn strike_agent(world: &Rc<World>, fault: Fault) -> bool {
    let (machine, random) = (&world.agent, &world.random);
    let rest = Duration::from_millis(match random.below(5) {
        0 => random.between(1_000, 20_000),
        _ => random.below(800),
    });
    let is_down = matches!(machine.status.get(), Status::Down { .. } | Status::Stopped { .. });
    match fault {
        Fault::AgentStop if machine.status.get() == Status::Up => machine.stop(world),
        Fault::AgentKill if !is_down => machine.kill(world, rest),
        Fault::AgentPower if !is_down => machine.cut_power(world, rest),
        _ => return false,
    }
    world.wake_at(rest);
    true
}

fn strike_network(world: &World, fault: Fault) {
    let (network, random) = (&world.network, &world.random);
    match fault {
        Fault::NetworkCut => network.cut(),
        Fault::NetworkDown => {
            network.go_down(Duration::from_millis(random.between(5, 20_000)));
            if random.chance(50) {
                network.cut();
            }
        }
        Fault::NetworkSilent => network.silence(),
        _ => network.flip(),
    }
}

fn strike_machine(world: &World, fault: Fault) {
    let (disk, random) = (&world.disk, &world.random);
    match fault {
        Fault::BackingWrite => disk.fail_writes(random.between(1, 3)),
        Fault::BackingRead => disk.fail_reads(random.between(1, 3)),
        Fault::BackingSpoilt => {
            let zones = world.model.zones();
            let at = zones[random.place(zones.len())] + 4096 * random.place(4);
            disk.spoil(ByteRange::new(at as u64, 4096).expect("a page of the disk"));
        }
        Fault::BackingResized => {
            // The zones stay: the model follows no sector that comes and goes.
            let last = world.model.zones().into_iter().max().unwrap_or(0) + ZONE_BYTES;
            let pages = last as u64 / 4096 + random.between(16, 2_000);
            disk.resize(usize::try_from(pages * 4096).expect("a small disk"));
        }
        Fault::BackingSync => disk.fail_syncs(random.between(1, 2)),
        _ => {
            let hours = i64::try_from(random.below(20)).unwrap_or(0) - 10;
            let clock = if random.chance(50) { &world.agent_clock } else { &world.collector_clock };
            clock.jump(hours * 3_600_000_000 + 17);
        }
    }
}

fn instruct(world: &World, what: InstructKind) -> bool {
    let live = world.collector.volume().and_then(|volume| volume.facts().live);
    let id = tidemark_agent::random::Random::bytes(&*world.random);
    live.is_some_and(|live| live.port.instruct(Instruct { id, what, from_bytes: 0 }))
}

/// True when the agent has nothing more to bring, and the collector agrees.
fn is_quiet(world: &World) -> bool {
    let process = world.agent.process.borrow();
    let is_whole = world.agent.status.get() == Status::Up
        && world.guest.in_flight() == 0
        && process.as_ref().is_some_and(|process| {
            let size = world.disk.size_bytes() as u64;
            process.is_whole() && process.volume.size_bytes() == size
        });
    // A journal that was put back is behind what the agent knows until both have met.
    let is_connected = world.collector.volume().is_some_and(|volume| volume.facts().live.is_some());
    is_whole
        && is_connected
        && world.collector.held().is_some_and(|held| {
            held.reader.span_open().is_none()
                && held.reader.durable() >= world.collector.witness.acknowledged()
        })
}

fn standing(world: &World) -> String {
    let process = world.agent.process.borrow();
    let phase = process.as_ref().map(|process| {
        let capture = process.volume.capture();
        let copied = process.state.get().copied;
        (capture.phases().phase(), capture.is_on(), copied, capture.ring().used())
    });
    let held = world.collector.held().map(|held| (held.reader.durable(), held.reader.span_open()));
    format!(
        "agent {:?} {phase:?}, collector {:?} {held:?}",
        world.agent.status.get(),
        world.collector.status.get()
    )
}
