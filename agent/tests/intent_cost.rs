//! What the write-intent log costs, in figures that do not depend on the machine: a region costs a
//! sync at most, and an idle one gives its bit back. `benches/intent_cost.rs` has the rates.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test may look at the machine's clock")]

mod intent_cost_support;
mod ring_support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use intent_cost_support::{DEPTH, DISK_BYTES, WRITE_BYTES, on_disk, write_all, write_at};
use ring_support::Dice;
use tidemark_agent::clock::Timer;
use tidemark_agent::intent_log::map::REGION_BYTES;
use tidemark_agent::volume::upkeep;
use tidemark_block::engine::{Executor, ExecutorConfig, sleep, spawn};

/// Lets a second pass in a millisecond.
struct Fast;

impl Timer for Fast {
    fn now(&self) -> Duration {
        Duration::ZERO
    }

    async fn sleep(&self, duration: Duration) {
        sleep(duration / 1000).await;
    }
}

fn random_blocks(seed: u64, count: u64) -> impl Iterator<Item = u64> + Clone {
    let mut dice = Dice(seed);
    let blocks: Vec<u64> = (0..count).map(|_| dice.below(DISK_BYTES / WRITE_BYTES)).collect();
    blocks.into_iter()
}

#[test]
fn a_region_costs_one_sync_at_most_and_an_idle_one_gives_its_bit_back() {
    const WRITES: u64 = 64;
    let own = |writer: u64| random_blocks(writer + 1, WRITES);
    let touched: BTreeSet<u64> =
        (0..DEPTH).flat_map(own).map(|block| block * WRITE_BYTES / REGION_BYTES).collect();
    on_disk(true, |disk| {
        write_all(disk, own);
        let first = disk.intent().figures();
        write_all(disk, own);
        let again = disk.intent().figures();
        println!(
            "{} random writes of 4 KiB: {} regions marked, {} syncs of the log; the same writes \
             again: {} syncs",
            DEPTH * WRITES,
            first.marked,
            first.syncs,
            again.syncs - first.syncs
        );
        // A change may follow another by chance, and then wants 15 regions more.
        let touched = touched.len() as u64;
        assert!((touched..touched + touched / 8).contains(&first.marked), "{touched} touched");
        assert!(first.syncs < touched / 4, "{first:?}: many changes share a sync");
        assert_eq!(again.syncs, first.syncs, "a region that has its bit costs nothing");

        let executor = Executor::new(&ExecutorConfig::default()).unwrap();
        let volume = Arc::clone(disk);
        let idle = executor.block_on(async {
            spawn(upkeep::run(Arc::clone(&volume), Fast));
            // A hot region among the idle ones.
            let deadline = Instant::now() + Duration::from_secs(60);
            while volume.intent().figures().marked > 1 {
                assert!(Instant::now() < deadline, "{:?}", volume.intent().figures());
                write_at(&volume, 0).await;
                sleep(Duration::from_millis(1)).await;
            }
            volume.intent().figures()
        });
        println!("idle: {} bits cleared, {} left", idle.cleared, idle.marked);
        assert!(idle.cleared >= touched - 1, "{idle:?}");
        assert!(idle.syncs <= again.syncs + 16, "{idle:?}: a sweep syncs once");
        disk.capture().close();
    });
}
