//! Runs agent and collector whole, over simulated disks, network and time, and looks for what
//! must never be. See `scripts/simulate`.
//!
//! One agent with one volume, and one collector. Not simulated: several volumes and their common
//! cuts, the catalog and its policies, exports, and the daemons' threads.

mod agent;
mod check;
mod collector;
mod director;
mod disk;
mod executor;
mod figures;
mod guest;
mod log_place;
mod memory;
mod model;
mod network;
mod plan;
mod random;
mod session;
mod ship;
mod time;
mod trace;
mod witness;
mod world;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;

use figures::Figures;
use world::Outcome;

#[global_allocator]
static MEMORY: memory::Memory = memory::Memory;

/// Longest time that a seed may take, which takes some hundredths of a second.
const SEED_MAX: Duration = Duration::from_secs(60);
/// How often that is looked at, and how late the program ends.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Lines that are shown of a run that broke something.
const LINES: usize = 60;

/// Runs agent and collector whole, over simulated disks, network and time.
#[derive(Debug, Parser)]
#[command(name = "simulate", version, max_term_width = 100)]
struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Threads, each with seeds of its own.
    #[arg(long, default_value_t = 2)]
    threads: u64,
    /// Where the agent's files are meanwhile: a directory on a tmpfs.
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// Shows everything that one seed does.
    #[arg(long)]
    verbose: bool,
    /// Makes this mistake on purpose; needs the feature planted-bugs.
    #[arg(long)]
    bug: Option<String>,
    /// Lists the mistakes.
    #[arg(long)]
    bugs: bool,
}

struct Violation {
    seed: u64,
    text: String,
    lines: Vec<String>,
}

#[derive(Default)]
struct Shared {
    next: AtomicU64,
    /// Seeds that run, and since when.
    running: Mutex<Vec<(u64, Instant)>>,
    is_done: AtomicBool,
    is_over: AtomicBool,
    violation: Mutex<Option<Violation>>,
    figures: Mutex<Figures>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("simulate: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    if arguments.bugs {
        for bug in tidemark_wire::planted::Bug::ALL {
            println!("{} {}", bug.invariant(), bug.name());
        }
        return Ok(true);
    }
    if let Some(name) = &arguments.bug {
        plant(name)?;
    }
    let shared = Shared::default();
    std::thread::scope(|scope| {
        scope.spawn(|| watch(&shared));
        let workers: Vec<_> = (0..arguments.threads.max(1))
            .map(|_| scope.spawn(|| work(arguments, &shared)))
            .collect();
        let ended: Vec<_> = workers.into_iter().map(ScopedJoinHandle::join).collect();
        // Relaxed: it orders nothing else.
        shared.is_done.store(true, Ordering::Relaxed);
        ended.into_iter().try_for_each(|ended| ended.expect("a worker has panicked"))
    })?;
    report(arguments, shared)
}

#[cfg(feature = "planted-bugs")]
fn plant(name: &str) -> anyhow::Result<()> {
    let bugs = tidemark_wire::planted::Bug::ALL;
    let bug = bugs.iter().find(|bug| bug.name() == name);
    tidemark_wire::planted::plant(*bug.with_context(|| format!("no mistake is named {name:?}"))?);
    Ok(())
}

#[cfg(not(feature = "planted-bugs"))]
fn plant(name: &str) -> anyhow::Result<()> {
    anyhow::bail!("{name} is not in this program; build it with --features planted-bugs")
}

/// Ends the program when a seed does not end: what goes round within one poll is never left.
#[expect(clippy::disallowed_methods, reason = "the simulator's own time")]
fn watch(shared: &Shared) {
    while !shared.is_done.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK_EVERY);
        let running = shared.running.lock().expect("nobody panics with it");
        if let Some((seed, _)) = running.iter().find(|(_, since)| since.elapsed() > SEED_MAX) {
            let begun = shared.next.load(Ordering::Relaxed);
            println!("simulate: seed {seed} after {begun} seeds: it does not end");
            std::process::exit(1);
        }
    }
}

/// Runs seed after seed, until there is none left or one broke something.
fn work(arguments: &Arguments, shared: &Shared) -> anyhow::Result<()> {
    let mut figures = Figures::default();
    // Relaxed: the numbers order nothing else.
    while !shared.is_over.load(Ordering::Relaxed) {
        let index = shared.next.fetch_add(1, Ordering::Relaxed);
        if index >= arguments.seeds {
            break;
        }
        let seed = arguments.from + index;
        let outcome = run_seed(shared, seed, &arguments.dir, arguments.verbose)?;
        figures.add(&outcome.figures);
        if arguments.verbose {
            outcome.lines.iter().for_each(|line| println!("{line}"));
            println!("seed {seed}: trace {:016x}", outcome.hash);
        }
        if let Some(text) = outcome.violation {
            shared.is_over.store(true, Ordering::Relaxed);
            let lines = run_seed(shared, seed, &arguments.dir, true)?.lines;
            let mut first = shared.violation.lock().expect("nobody panics with it");
            if first.as_ref().is_none_or(|first| seed < first.seed) {
                *first = Some(Violation { seed, text, lines });
            }
        }
    }
    shared.figures.lock().expect("nobody panics with it").add(&figures);
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "how long the simulator itself takes")]
fn run_seed(shared: &Shared, seed: u64, dir: &Path, with_text: bool) -> anyhow::Result<Outcome> {
    let running = || shared.running.lock().expect("nobody panics with it");
    running().push((seed, Instant::now()));
    let made = tempfile::Builder::new().prefix("tidemark-sim-").tempdir_in(dir);
    let made = made.with_context(|| format!("make a directory in {}", dir.display()))?;
    let outcome = world::run(seed, made.path(), with_text);
    running().retain(|(other, _)| *other != seed);
    Ok(outcome)
}

/// Prints what was done; false when something must not have been.
fn report(arguments: &Arguments, shared: Shared) -> anyhow::Result<bool> {
    let figures = shared.figures.into_inner().expect("nobody panics with it");
    if let Some(Violation { seed, text, lines }) = shared.violation.into_inner()? {
        let skipped = lines.len().saturating_sub(LINES);
        lines.iter().skip(skipped).for_each(|line| println!("{line}"));
        println!("simulate: seed {seed} after {} seeds: {text}", figures.seeds);
        let bug = arguments.bug.as_ref().map(|bug| format!(" --bug {bug}")).unwrap_or_default();
        println!("again: scripts/simulate --seeds 1 --from {seed} --verbose{bug}");
        return Ok(false);
    }
    println!("{}", figures.table());
    println!("traces: {:016x}", figures.traces);
    println!(
        "simulate: {} seeds, {} operations, {} faults, {} sessions, {} merges, {} states and {} \
         points opened, {} polls; no violation",
        figures.seeds,
        figures.operations,
        figures.faults,
        figures.sessions,
        figures.merges,
        figures.states,
        figures.points,
        figures.polls
    );
    let missing = figures.missing();
    if arguments.seeds >= 1000 && arguments.bug.is_none() && !missing.is_empty() {
        for (fault, step) in &missing {
            println!("never: {} at {}", fault.text(), step.text());
        }
        return Ok(false);
    }
    Ok(true)
}
