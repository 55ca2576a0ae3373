//! A protected disk under several tasks on two threads: writes of any alignment, zeroes, trims and
//! flushes. Each task owns a stretch of the disk that begins and ends inside a unit of the
//! backing store, and knows its bytes; some operations go to a stretch that all share. Whenever
//! the disk rests, the backing file holds what the tasks know, and the ring's records, replayed in
//! order, give the backing file; also when a copy runs meanwhile, and the file is right even when
//! nothing is captured any more.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod ring_support;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Sender, unbounded};
use ring_support::{Dice, clock, create, spec, tmpfs_dir};
use tempfile::TempDir;
use tidemark_agent::capture::Capture;
use tidemark_agent::capture::phase::{CopyCause, Phase};
use tidemark_agent::copy;
use tidemark_agent::intent_log::IntentLog;
use tidemark_agent::random::SystemSource;
use tidemark_agent::ring::order::Ticket;
use tidemark_agent::ring::{Next, RecordRef};
use tidemark_agent::volume::Volume;
use tidemark_block::engine::{ExecutorConfig, Workers};
use tidemark_block::store::{OpenMode, UringStore};
use tidemark_block::{ByteRange, Chunk, Device, Durability, Payload, ZeroOptions};
use tidemark_wire::body::GapReason;
use tidemark_wire::compare::{
    Compare, Differ, DifferNode, LEAF_BYTES, NodeHash, leaf_hash, node_hash,
};
use tidemark_wire::record::check_pieces;
use tidemark_wire::{RecordKind, Seq, VolumeId};

const TASKS: usize = 6;
const STRETCH_BYTES: usize = 50_001;
const SHARED_BYTES: usize = 20_000;
const DISK_BYTES: usize = 327_680;
const COPIES: usize = 12;
const PATIENCE: Duration = Duration::from_secs(60);

type Disk = Volume<UringStore>;

/// What a task owns, and what it knows of it.
struct Stretch {
    start: usize,
    bytes: Vec<u8>,
    dice: Dice,
}

impl Stretch {
    /// A range inside of `len` bytes, mostly a short one.
    fn pick(&mut self, len: usize) -> (usize, usize) {
        let longest = if self.dice.below(4) == 0 { len } else { 3000.min(len) };
        let count = 1 + self.roll(longest);
        (self.roll(len - count + 1), count)
    }

    fn roll(&mut self, end: usize) -> usize {
        usize::try_from(self.dice.below(end as u64)).unwrap()
    }

    fn durability(&mut self) -> Durability {
        if self.dice.below(16) == 0 { Durability::Stable } else { Durability::Cached }
    }

    async fn step(&mut self, disk: &Disk) {
        let (at, len) = self.pick(STRETCH_BYTES);
        let range = range(self.start + at, len);
        let durability = self.durability();
        match self.dice.below(10) {
            0 => disk.flush().await.unwrap(),
            1 => {
                let no_hole = self.dice.below(2) == 0;
                let options = ZeroOptions { no_hole, fast: false, durability };
                disk.write_zeroes(range, options).await.unwrap();
                self.bytes[at..at + len].fill(0);
            }
            2 => {
                disk.trim(range, durability).await.unwrap();
                let after = read(disk, range).await;
                let either = |(new, old): (&u8, &u8)| *new == 0 || new == old;
                let before = &self.bytes[at..at + len];
                assert!(after.as_slice().iter().zip(before).all(either), "a trim of {range}");
                self.bytes[at..at + len].copy_from_slice(after.as_slice());
            }
            3 | 4 => {
                let (at, len) = self.pick(SHARED_BYTES);
                let shared = range_of_shared(at, len);
                write(disk, shared, self.dice.roll().to_le_bytes()[0], durability).await;
            }
            _ => {
                let seed = self.dice.roll().to_le_bytes()[0];
                write(disk, range, seed, durability).await;
                self.bytes[at..at + len].fill(seed);
            }
        }
        let (at, len) = self.pick(STRETCH_BYTES);
        let found = read(disk, self::range(self.start + at, len)).await;
        assert!(found.as_slice() == &self.bytes[at..at + len], "read at {}", self.start + at);
    }
}

fn range(start: usize, len: usize) -> ByteRange {
    ByteRange::new(start as u64, len as u64).unwrap()
}

fn range_of_shared(at: usize, len: usize) -> ByteRange {
    range(TASKS * STRETCH_BYTES + at, len)
}

async fn read(disk: &Disk, range: ByteRange) -> Chunk {
    let into = Chunk::zeroed(usize::try_from(range.len()).unwrap());
    disk.read(range.start(), into).await.unwrap()
}

async fn write(disk: &Disk, range: ByteRange, seed: u8, durability: Durability) {
    let mut at = range.start();
    while at < range.end() {
        let rest = ByteRange::between(at, range.end()).unwrap();
        let mut payload = disk.reserve(rest).await.unwrap();
        payload.bytes_mut().fill(seed);
        at += payload.bytes_mut().len() as u64;
        disk.write(payload, durability).await.unwrap();
    }
}

/// The records of the stream so far, on what a collector held before.
struct Replay {
    image: Vec<u8>,
    last: Seq,
    /// All tickets before this one are replayed.
    cursor: Ticket,
    stopped: bool,
}

impl Replay {
    fn apply(&mut self, record: RecordRef<'_>) {
        let header = &record.header;
        assert!(header.seq() > self.last, "{} after {}", header.seq(), self.last);
        self.last = header.seq();
        check_pieces(header, record.sums, record.payload).unwrap();
        let start = usize::try_from(header.offset_bytes.get()).unwrap();
        let end = start + usize::try_from(header.len_bytes.get()).unwrap();
        match header.kind().unwrap() {
            RecordKind::Write | RecordKind::ReadBack => {
                self.image[start..end].copy_from_slice(record.payload);
            }
            RecordKind::WriteZeroes | RecordKind::Trim => self.image[start..end].fill(0),
            _ => {}
        }
    }
}

impl Replay {
    /// What a collector answers that holds this image.
    fn answer(&self, question: &Compare) -> Differ {
        let differs = |(index, hash): (usize, &NodeHash)| {
            let (start, len) = question.range.node(index);
            let (start, len) = (usize::try_from(start).unwrap(), usize::try_from(len).unwrap());
            let leaf_bytes = usize::try_from(LEAF_BYTES).unwrap();
            let leaves: Vec<_> =
                self.image[start..start + len].chunks(leaf_bytes).map(leaf_hash).collect();
            (!node_hash(&leaves).matches(*hash)).then_some(DifferNode { index, leaves })
        };
        let nodes = question.nodes.iter().enumerate().filter_map(differs).collect();
        Differ { id: question.id, range: question.range, nodes }
    }
}

/// Takes records, replays and releases them, as a collector without delay.
struct Collector {
    shared: Arc<(Mutex<Replay>, Condvar)>,
    thread: JoinHandle<()>,
}

impl Collector {
    /// On an image that holds `fill` everywhere.
    fn start(capture: &Arc<Capture>, fill: u8) -> Self {
        let image = vec![fill; DISK_BYTES];
        let replay = Replay { image, last: Seq(0), cursor: Ticket(0), stopped: false };
        let shared = Arc::new((Mutex::new(replay), Condvar::new()));
        let (capture, theirs) = (Arc::clone(capture), Arc::clone(&shared));
        let thread = thread::spawn(move || {
            let mut consumer = capture.ring().consumer().unwrap();
            loop {
                let mut replay = theirs.0.lock().unwrap();
                while let Next::Record(record) = consumer.next() {
                    replay.apply(record);
                }
                while let Some(question) = capture.desk().take(replay.last, false) {
                    assert!(capture.desk().answered(replay.answer(&question)));
                }
                consumer.release_through(replay.last);
                capture.released().notify_all();
                replay.cursor = consumer.cursor();
                theirs.1.notify_all();
                if replay.stopped {
                    return;
                }
                drop(replay);
                consumer.wait(Duration::from_millis(1));
            }
        });
        Self { shared, thread }
    }

    /// The image once every record before `tail` is replayed.
    fn image_at(&self, tail: Ticket) -> Vec<u8> {
        let replay = self.shared.0.lock().unwrap();
        let behind = |replay: &mut Replay| replay.cursor < tail;
        let (replay, late) = self.shared.1.wait_timeout_while(replay, PATIENCE, behind).unwrap();
        assert!(!late.timed_out(), "replayed up to {:?} of {tail:?}", replay.cursor);
        replay.image.clone()
    }

    fn stop(self) {
        self.shared.0.lock().unwrap().stopped = true;
        self.thread.join().unwrap();
    }
}

struct Bench {
    disk: Arc<Disk>,
    path: PathBuf,
    workers: Workers,
    stretches: Vec<Stretch>,
    _folders: [TempDir; 2],
}

impl Bench {
    fn new(seed: u64, ring_bytes: u64, slots: u32) -> Self {
        let folders = [tempfile::tempdir().unwrap(), tmpfs_dir()];
        let path = folders[0].path().join("disk");
        std::fs::File::create(&path).unwrap().set_len(DISK_BYTES as u64).unwrap();
        let ring = create(&folders[1].path().join("ring"), &spec(ring_bytes, slots)).unwrap();
        let store = UringStore::open(&path, OpenMode::ReadWrite).unwrap();
        let intent = IntentLog::volatile(DISK_BYTES as u64);
        let capture = Arc::new(Capture::new("test".into(), ring, Arc::clone(intent.map())));
        let disk = Arc::new(Volume::new(VolumeId::from_bytes([7; 16]), store, capture, intent));
        let workers = Workers::start("test", 2, ExecutorConfig::default()).unwrap();
        let stretches = (0..TASKS).map(|task| Stretch {
            start: task * STRETCH_BYTES,
            bytes: vec![0; STRETCH_BYTES],
            dice: Dice(seed * 1000 + task as u64 + 1),
        });
        Self { disk, path, workers, stretches: stretches.collect(), _folders: folders }
    }

    /// Runs `steps` of every task at the same time, and compares the file at rest.
    fn run(&mut self, steps: usize) {
        let (done, results) = unbounded();
        for (task, mut stretch) in self.stretches.drain(..).enumerate() {
            let (disk, done): (_, Sender<Stretch>) = (Arc::clone(&self.disk), done.clone());
            self.workers.spawn_on(task % 2, move || async move {
                for _ in 0..steps {
                    stretch.step(&disk).await;
                }
                done.send(stretch).unwrap();
            });
        }
        for _ in 0..TASKS {
            self.stretches.push(results.recv_timeout(PATIENCE).expect("a task failed"));
        }
        let file = file(&self.path);
        for stretch in &self.stretches {
            let part = &file[stretch.start..stretch.start + STRETCH_BYTES];
            assert!(part == stretch.bytes, "the file differs from byte {} on", stretch.start);
        }
    }

    fn end(self) {
        self.disk.capture().close();
        self.workers.shutdown();
    }
}

fn file(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// At rest the replay of all records is the backing file.
#[track_caller]
fn check_replay(bench: &Bench, collector: &Collector, what: &str) {
    let image = collector.image_at(bench.disk.capture().ring().tail_ticket());
    let differs = image.iter().zip(file(&bench.path)).position(|(one, other)| *one != other);
    assert_eq!(differs, None, "first byte where the replay is not the file: {what}");
}

#[test]
fn the_records_in_order_give_the_backing_file() {
    for seed in 1..=12 {
        let mut bench = Bench::new(seed, 4 << 20, 1024);
        let collector = Collector::start(bench.disk.capture(), 0);
        for round in 0..3 {
            bench.run(40);
            assert!(bench.disk.capture().is_on(), "the ring was never full");
            check_replay(&bench, &collector, &format!("seed {seed}, round {round}"));
        }
        collector.stop();
        bench.end();
    }
}

#[test]
fn a_copy_under_writes_brings_a_collector_level_whatever_it_held() {
    for (seed, cause, held) in [
        (11, CopyCause::Initial, 0),
        (12, CopyCause::Gap(GapReason::RingLost), 0xee),
        (13, CopyCause::Gap(GapReason::CollectorBehind), 0xee),
    ] {
        let mut bench = Bench::new(seed, 4 << 20, 1024);
        bench.disk.capture().lose(GapReason::RingLost);
        bench.run(20);
        assert!(!bench.disk.capture().is_on());
        let collector = Collector::start(bench.disk.capture(), held);
        let copied = Arc::clone(&bench.disk);
        let source = Arc::new(SystemSource::default());
        let timer = copy::EngineTimer::new(clock());
        let mut copies = 0;
        bench.disk.capture().phases().welcomed();
        bench.workers.spawn_on(0, move || copy::run(copied, source, timer));
        bench.disk.capture().want_copy(cause);
        for round in 0..200 {
            bench.run(20);
            let phase = bench.disk.capture().phases().phase();
            if matches!(phase, Phase::Whole { copy_end: Some(_) }) {
                check_replay(&bench, &collector, &format!("{cause:?}, round {round}"));
                copies += 1;
                if copies == COPIES {
                    break;
                }
                // The image is no empty one any more, whatever the first cause was.
                bench.disk.capture().want_copy(CopyCause::Gap(GapReason::CollectorBehind));
            }
        }
        assert_eq!(copies, COPIES, "copies that ended, after {cause:?}");
        collector.stop();
        bench.end();
    }
}

#[test]
fn a_full_ring_costs_the_capture_and_no_write() {
    let mut bench = Bench::new(21, 1 << 20, 64);
    bench.run(60);
    assert!(!bench.disk.capture().is_on(), "the ring was full");
    let wanted = Phase::Wanted(CopyCause::Gap(GapReason::RingFull));
    assert_eq!(bench.disk.capture().phases().phase(), wanted);
    bench.run(60);
    bench.end();
}
