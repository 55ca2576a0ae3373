//! One case from start to end.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidemark_collector::error::ViewError;
use tidemark_collector::view::View;
use tidemark_wire::{RecordKind, Seq};
use xxhash_rust::xxh3::xxh3_64;

use super::client;
use super::effects::{Effects, Moment};
use super::figures::Figures;
use super::journal::{self, Entry};
use super::log::{Log, Logged};
use super::owners::{self, Owners};
use super::plan::{Case, Plan, Sort};
use super::replay::Replay;
use super::spoil::Spoil;
use super::world::{Collector, NAME, Stopped, World, unit_bytes};

/// A zeroing that can't be fast is refused with this error (ENOTSUP of the protocol).
const NOT_SUPPORTED: u32 = 95;
/// Rest between two views while the clients are at work.
const LIVE_PAUSE: Duration = Duration::from_millis(15);

/// Hashes of states that were read while records came in.
type Live = HashMap<Seq, u64>;

/// Runs a case and checks everything that came of it.
pub(crate) fn case(case: &Case, spoil: Option<Spoil>, figures: &mut Figures) -> Result<(), String> {
    let unit_bytes = unit_bytes();
    let mut plan = case.plan(unit_bytes);
    let written: u64 = plan.ops.iter().map(|op| op.data.len() as u64).sum();
    let world = World::start(case, &plan.base, written);
    let log = Log::new(plan.ops.len());
    let worked = work(case, &plan, &world, &log);
    let stopped = world.stop();
    let (live, stopped) = (worked?, stopped?);
    let mut log = log.finish()?;
    check_answers(&plan, &log)?;

    let Stopped { collector, backing, cuts, .. } = &stopped;
    let (mut records, sealed) = journal::read(&collector.journal_dir())?;
    if let Some(spoil) = spoil {
        spoil.apply(&mut plan, &mut log, &mut records);
    }
    let owners = owners::find(&plan.ops, &log, &records, unit_bytes)?;
    let effects = Effects::new(&plan, &log, &records, &owners, unit_bytes)?;
    check_stream(case, &records, &owners, &effects)?;
    let backing = std::fs::read(backing).map_err(|error| error.to_string())?;
    let cuts = cuts.load(Ordering::Relaxed);
    count(figures, &plan, &records, &owners);
    figures.uncaptured += effects.uncaptured;
    figures.sealed += sealed;
    figures.cuts += cuts;
    figures.written_bytes += written;
    figures.reads += check_reads(&plan, &log, &effects)?;
    let collector = if case.reopen { stopped.collector.reopen() } else { stopped.collector };
    let held = collector.held().ok_or("the journal can't be opened")?;
    let replay = Replay {
        held: &held,
        ops: &plan.ops,
        records: &records,
        owners: &owners,
        effects: &effects,
        live: &live,
        spoil: spoil == Some(Spoil::Image),
    };
    let image = replay.run(plan.size_bytes, figures)?;
    drop(held);
    collector.stop(case.is_gapless())?;
    if image != backing {
        return Err("the last state is not what the backing file holds".into());
    }
    figures.cases += 1;
    Ok(())
}

/// The clients at work, and views of what is durable meanwhile.
fn work(case: &Case, plan: &Plan, world: &World, log: &Log) -> Result<Live, String> {
    if !case.early {
        world.agent.wait_whole()?;
    }
    let streams: Vec<_> = case
        .depths
        .iter()
        .map(|_| client::connect(&world.nbd_socket, NAME, plan.size_bytes))
        .collect::<Result<_, _>>()
        .map_err(|error| format!("connect: {error}"))?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looker = scope.spawn(|| look(&world.collector, &done));
        let clients: Vec<_> = streams
            .iter()
            .zip(&case.depths)
            .enumerate()
            .map(|(number, (stream, depth))| {
                let mine: Vec<usize> = (number..plan.ops.len()).step_by(streams.len()).collect();
                scope.spawn(move || client::run(stream, &plan.ops, &mine, *depth, log))
            })
            .collect();
        let results: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        done.store(true, Ordering::Relaxed);
        let live = looker.join().expect("the looker does not panic")?;
        for result in results {
            let result = result.map_err(|_| "a client has panicked".to_owned())?;
            result.map_err(|error| format!("a client: {error}"))?;
        }
        Ok(live)
    })
    .and_then(|live| {
        let left = streams.into_iter().try_for_each(client::leave);
        left.map(|()| live).map_err(|error| format!("leave: {error}"))
    })
}

/// Reads the newest durable state again and again.
fn look(collector: &Collector, done: &AtomicBool) -> Result<Live, String> {
    let mut live = Live::new();
    // Relaxed: the flag orders nothing else.
    while !done.load(Ordering::Relaxed) {
        std::thread::sleep(LIVE_PAUSE);
        let Some(held) = collector.held() else { continue };
        let at = held.reader.durable();
        let view = match View::open(Arc::clone(&held.reader), Arc::clone(&held.seed), at) {
            Ok(view) => view,
            Err(ViewError::NotOffered(_)) => continue,
            Err(error) => return Err(format!("state {at} during the run: {error}")),
        };
        let mut bytes = vec![0; usize::try_from(view.size_bytes()).expect("a small disk")];
        view.read_at(&mut bytes, 0)
            .map_err(|error| format!("state {at} during the run: {error}"))?;
        live.insert(at, xxh3_64(&bytes));
    }
    Ok(live)
}

fn check_answers(plan: &Plan, log: &[Logged]) -> Result<(), String> {
    for (number, (op, logged)) in plan.ops.iter().zip(log).enumerate() {
        let error = logged.answer.error;
        if error != 0 && !(op.fast && error == NOT_SUPPORTED) {
            return Err(format!("operation {number} ({op:?}) failed with error {error}"));
        }
    }
    Ok(())
}

fn check_reads(plan: &Plan, log: &[Logged], effects: &Effects<'_>) -> Result<u64, String> {
    let mut reads = 0;
    for (number, (op, logged)) in plan.ops.iter().zip(log).enumerate() {
        if op.sort == Sort::Read {
            let moment = Moment::Stamps { sent: logged.sent, answered: logged.answered };
            effects
                .check(&logged.answer.data, op.range.start(), moment)
                .map_err(|error| format!("read {number} at {}: {error}", op.range))?;
            reads += 1;
        }
    }
    Ok(reads)
}

/// In a case without gaps the stream has all operations, and one copy.
fn check_stream(
    case: &Case,
    records: &[Entry],
    owners: &Owners,
    effects: &Effects<'_>,
) -> Result<(), String> {
    if !case.is_gapless() {
        return Ok(());
    }
    if let Some(gap) = records.iter().find(|record| record.kind == RecordKind::Gap) {
        return Err(format!("record {} is a gap, and the ring had room", gap.seq));
    }
    if effects.uncaptured > 0 {
        return Err(format!("{} changes are in no record, and no gap", effects.uncaptured));
    }
    match owners.flushes_missing {
        0 => Ok(()),
        missing => Err(format!("{missing} flushes are in no record, and there is no gap")),
    }
}

fn count(figures: &mut Figures, plan: &Plan, records: &[Entry], owners: &Owners) {
    let begins = records.iter().filter(|record| record.kind == RecordKind::ResyncBegin).count();
    let ends = records.iter().filter(|record| record.kind == RecordKind::ResyncEnd).count();
    figures.operations += plan.ops.len() as u64;
    figures.records += records.len() as u64;
    figures.packed += records.iter().filter(|record| record.is_packed).count() as u64;
    figures.torn += owners.of_ops.iter().filter(|numbers| numbers.parts.len() > 1).count() as u64;
    figures.restarted += begins.saturating_sub(ends) as u64;
}
