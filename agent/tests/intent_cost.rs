//! What the write-intent log costs: writes of 4 KiB at random over a disk of 64 GiB, with the log
//! and without, while the disk is new to it and when it knows all regions. The figures that do not
//! depend on the machine are checked; `scripts/accept/intent-cost` runs the others.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test may look at the machine's clock")]

mod ring_support;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ring_support::{Dice, create, spec, tmpfs_dir};
use tidemark_agent::capture::Capture;
use tidemark_agent::clock::Timer;
use tidemark_agent::intent_log::file::{IntentFile, LogFiles};
use tidemark_agent::intent_log::map::{IntentMap, REGION_BYTES};
use tidemark_agent::intent_log::{Coverage, IntentFigures, IntentLog};
use tidemark_agent::ring::{Next, Ring};
use tidemark_agent::volume::{Volume, upkeep};
use tidemark_block::engine::{Executor, ExecutorConfig, MailSender, mailbox, sleep, spawn};
use tidemark_block::store::{OpenMode, UringStore};
use tidemark_block::{ByteRange, Device, Durability, Payload};
use tidemark_wire::VolumeId;

const DISK_BYTES: u64 = 64 << 30;
const WRITE_BYTES: u64 = 4096;
const DEPTH: u64 = 32;
const REGIONS: u64 = DISK_BYTES / REGION_BYTES;

type Disk = Volume<UringStore>;

struct LogFile(PathBuf);

impl LogFiles for LogFile {
    type Store = UringStore;

    fn open(&self) -> std::io::Result<UringStore> {
        UringStore::open(&self.0, OpenMode::ReadWrite).map_err(std::io::Error::other)
    }

    fn make(&self, content: &[u8]) -> std::io::Result<UringStore> {
        std::fs::write(&self.0, content)?;
        File::open(&self.0)?.sync_all()?;
        self.open()
    }
}

struct InMemory;

impl Coverage for InMemory {
    fn keep(&self, _: bool) -> std::io::Result<()> {
        Ok(())
    }
}

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

/// A new disk in `dir`, with a write-intent log or with bits in memory only.
fn disk(dir: &Path, ring: Ring, with_log: bool) -> Arc<Disk> {
    let (backing, log) = (dir.join("disk"), LogFile(dir.join("disk.intent")));
    File::create(&backing).unwrap().set_len(DISK_BYTES).unwrap();
    let store = UringStore::open(&backing, OpenMode::ReadWrite).unwrap();
    let id = VolumeId::from_bytes([7; 16]);
    let intent = if with_log {
        let map = Arc::new(IntentMap::new(DISK_BYTES, true, Box::new(InMemory)));
        let file = IntentFile::make(&log, id, &map).unwrap();
        IntentLog::in_file(map, file)
    } else {
        IntentLog::volatile(DISK_BYTES)
    };
    let capture = Arc::new(Capture::new("test".into(), ring, Arc::clone(intent.map())));
    capture.phases().welcomed();
    Arc::new(Volume::new(id, store, capture, intent))
}

/// Takes and releases every record, as the shipper does.
fn consume(ring: &Ring, stop: &AtomicBool) {
    let mut consumer = ring.consumer().expect("nobody has the role");
    loop {
        let stopping = stop.load(Ordering::Acquire);
        let mut newest = None;
        while let Next::Record(record) = consumer.next() {
            newest = Some(record.header.seq());
        }
        match newest {
            Some(seq) => consumer.release_through(seq),
            None if stopping => return,
            None => consumer.wait(Duration::from_millis(1)),
        }
    }
}

/// Ends the consumer, also when a test fails.
struct StopConsumer<'a>(&'a Ring, &'a AtomicBool);

impl Drop for StopConsumer<'_> {
    fn drop(&mut self) {
        // Release pairs with the load in `consume`: it sees all records before it stops.
        self.1.store(true, Ordering::Release);
        self.0.wake_consumer();
    }
}

async fn write_at(disk: &Disk, block: u64) {
    let range = ByteRange::new(block * WRITE_BYTES, WRITE_BYTES).unwrap();
    let mut payload = disk.reserve(range).await.unwrap();
    payload.bytes_mut().fill(block.to_le_bytes()[0] | 1);
    disk.write(payload, Durability::Cached).await.unwrap();
}

/// One of the writers, until `blocks` gives no more.
async fn write_some(disk: Arc<Disk>, mut blocks: impl Iterator<Item = u64>, done: MailSender<()>) {
    for block in blocks.by_ref() {
        write_at(&disk, block).await;
    }
    assert!(done.try_send(()).is_ok());
}

/// Runs `DEPTH` writers at once; `blocks` gives each its own blocks.
fn write_all<I: Iterator<Item = u64> + 'static>(disk: &Arc<Disk>, blocks: impl Fn(u64) -> I) {
    let executor = Executor::new(&ExecutorConfig::default()).unwrap();
    executor.block_on(async {
        let (done, mut all_done) = mailbox(usize::try_from(DEPTH).unwrap());
        for writer in 0..DEPTH {
            spawn(write_some(Arc::clone(disk), blocks(writer), done.clone()));
        }
        for _ in 0..DEPTH {
            all_done.recv().await.unwrap();
        }
    });
}

/// Runs `work` on a new disk whose records are released as they come.
fn on_disk<T>(with_log: bool, work: impl FnOnce(&Arc<Disk>) -> T) -> T {
    let (dir, rings) = (tempfile::tempdir().unwrap(), tmpfs_dir());
    let ring = create(&rings.path().join("ring"), &spec(64 << 20, 16384)).unwrap();
    let disk = disk(dir.path(), ring.clone(), with_log);
    let stop = AtomicBool::new(false);
    let result = thread::scope(|scope| {
        scope.spawn(|| consume(&ring, &stop));
        let _stop = StopConsumer(&ring, &stop);
        work(&disk)
    });
    assert!(ring.capture_is_on(), "the ring was never full");
    result
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

struct Rate {
    per_second: f64,
    syncs_per_second: f64,
    figures: IntentFigures,
}

/// Random writes for `seconds`.
fn rate(disk: &Arc<Disk>, seconds: u64, round: u64) -> Rate {
    let before = disk.intent().figures();
    let written = Arc::new(std::sync::atomic::AtomicU64::new(0));
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

#[test]
#[ignore = "takes minutes and a machine for itself: scripts/accept/intent-cost"]
fn rates_with_and_without_the_log() {
    let seconds = std::env::var("TIDEMARK_INTENT_COST_SECONDS").unwrap().parse().unwrap();
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
