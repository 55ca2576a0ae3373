//! What the write-intent log costs in time: writes of 4 KiB at random over a disk of 64 GiB in
//! `TMPDIR`, with the log and with its bits in memory only, while the disk is new to it and when it
//! knows all regions. It prints the rates; `scripts/accept/intent-cost` runs and judges it.
#![allow(clippy::disallowed_methods, reason = "a measurement looks at the machine's clock")]
#![allow(clippy::unwrap_used, reason = "a measurement fails by panicking")]

#[path = "../tests/intent_cost_support/mod.rs"]
mod intent_cost_support;
#[path = "../tests/ring_support/mod.rs"]
mod ring_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use intent_cost_support::{DEPTH, DISK_BYTES, Disk, REGIONS, WRITE_BYTES, on_disk, write_all};
use ring_support::Dice;
use tidemark_agent::intent_log::IntentFigures;
use tidemark_agent::intent_log::map::REGION_BYTES;

struct Rate {
    per_second: f64,
    syncs_per_second: f64,
    figures: IntentFigures,
}

/// Random writes for `seconds`.
fn rate(disk: &Arc<Disk>, seconds: u64, round: u64) -> Rate {
    let before = disk.intent().figures();
    let written = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let until = start + Duration::from_secs(seconds);
    write_all(disk, |writer| {
        let written = Arc::clone(&written);
        let mut dice = Dice(round * 1000 + writer + 1);
        std::iter::from_fn(move || {
            // Relaxed: read when all writers have ended.
            (Instant::now() < until).then(|| {
                written.fetch_add(1, Ordering::Relaxed);
                dice.below(DISK_BYTES / WRITE_BYTES)
            })
        })
    });
    let seconds = start.elapsed().as_secs_f64();
    let figures = disk.intent().figures();
    Rate {
        per_second: written.load(Ordering::Relaxed) as f64 / seconds,
        syncs_per_second: (figures.syncs - before.syncs) as f64 / seconds,
        figures,
    }
}

fn main() {
    let seconds = std::env::var("TIDEMARK_INTENT_COST_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .expect("TIDEMARK_INTENT_COST_SECONDS says how long each of four loads takes");
    let run = |with_log: bool| {
        on_disk(with_log, |disk| {
            let first = rate(disk, seconds, 1);
            // Every region that is not marked yet, so that the steady state begins.
            write_all(disk, |writer| {
                let per_region = REGION_BYTES / WRITE_BYTES;
                (0..REGIONS / DEPTH).map(move |n| (n * DEPTH + writer) * per_region)
            });
            (first, rate(disk, seconds, 2))
        })
    };
    let (without, with) = (run(false), run(true));
    for (name, without, with) in [("first", &without.0, &with.0), ("steady", &without.1, &with.1)] {
        println!(
            "{name}: {:.0} writes/s without, {:.0} with, ratio {:.3}; {:.1} syncs/s, {} of {} \
             regions marked",
            without.per_second,
            with.per_second,
            with.per_second / without.per_second,
            with.syncs_per_second,
            with.figures.marked,
            REGIONS
        );
    }
}
