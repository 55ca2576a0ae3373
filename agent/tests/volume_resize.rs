//! A disk that others grow and shrink below the agent, by holes and with bytes in them, while
//! tasks write, while a copy runs, and when nothing was captured. Whenever it rests, the stream,
//! replayed as strictly as a collector takes it, gives the backing file with its size.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test waits in real time")]

mod ring_support;

use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;
use ring_support::{Dice, clock, create, spec, tmpfs_dir};
use tempfile::TempDir;
use tidemark_agent::capture::Capture;
use tidemark_agent::capture::phase::{CopyCause, Phase};
use tidemark_agent::capture::verification::VerifyWish;
use tidemark_agent::copy;
use tidemark_agent::intent_log::IntentLog;
use tidemark_agent::random::SystemSource;
use tidemark_agent::ring::order::Ticket;
use tidemark_agent::ring::{Next, RecordRef};
use tidemark_agent::volume::{Resized, Volume};
use tidemark_block::engine::{Executor, ExecutorConfig, Workers};
use tidemark_block::store::{OpenMode, Store, UringStore};
use tidemark_block::{
    ByteRange, Chunk, Device, DeviceError, Durability, Geometry, Payload, ZeroOptions,
};
use tidemark_wire::body::GapReason;
use tidemark_wire::compare::{
    Compare, Differ, DifferNode, LEAF_BYTES, NodeHash, leaf_hash, node_hash,
};
use tidemark_wire::instruct::VerifyState;
use tidemark_wire::record::check_pieces;
use tidemark_wire::{RecordKind, Seq, VolumeId};

const START_BYTES: u64 = 300 << 10;
const LARGEST_BYTES: u64 = 700 << 10;
const TASKS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);

type Disk = Volume<UringStore>;

fn at(place: u64) -> usize {
    usize::try_from(place).unwrap()
}

struct Replay {
    image: Vec<u8>,
    last: Seq,
    cursor: Ticket,
    resizes: usize,
    copies: usize,
    stopped: bool,
}

impl Replay {
    fn new(image: Vec<u8>) -> Self {
        let cursor = Ticket(0);
        Self { image, last: Seq(0), cursor, resizes: 0, copies: 0, stopped: false }
    }

    /// Takes a record as a collector does.
    fn apply(&mut self, record: RecordRef<'_>) {
        let header = &record.header;
        assert!(header.seq() > self.last, "{} after {}", header.seq(), self.last);
        self.last = header.seq();
        check_pieces(header, record.sums, record.payload).unwrap();
        let kind = header.kind().unwrap();
        if kind == RecordKind::Resize {
            assert_eq!(header.aux.get(), self.image.len() as u64, "the size before {}", self.last);
            self.image.resize(at(header.len_bytes.get()), 0);
            self.resizes += 1;
            return;
        }
        self.copies += usize::from(kind == RecordKind::ResyncBegin);
        let start = at(header.offset_bytes.get());
        let end = start + at(header.len_bytes.get());
        let size = self.image.len();
        assert!(end <= size, "{} {} ends at {end} of {size}", kind.name(), self.last);
        if kind.has_data() {
            self.image[start..end].copy_from_slice(record.payload);
        } else if kind.zeroes() {
            self.image[start..end].fill(0);
        }
    }

    fn answer(&self, question: &Compare) -> Differ {
        assert!(question.range.fits(self.image.len() as u64), "a question about this volume");
        let differs = |(index, hash): (usize, &NodeHash)| {
            let (start, len) = question.range.node(index);
            let node = &self.image[at(start)..at(start + len)];
            let leaves: Vec<_> = node.chunks(at(LEAF_BYTES)).map(leaf_hash).collect();
            (!node_hash(&leaves).matches(*hash)).then_some(DifferNode { index, leaves })
        };
        let nodes = question.nodes.iter().enumerate().filter_map(differs).collect();
        Differ { id: question.id, range: question.range, nodes }
    }
}

struct Collector {
    shared: Arc<(Mutex<Replay>, Condvar)>,
    thread: JoinHandle<()>,
}

impl Collector {
    fn start(capture: &Arc<Capture>, image: Vec<u8>) -> Self {
        let shared = Arc::new((Mutex::new(Replay::new(image)), Condvar::new()));
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

    fn at_rest<T>(&self, tail: Ticket, look: impl FnOnce(&Replay) -> T) -> T {
        let replay = self.shared.0.lock().unwrap();
        let behind = |replay: &mut Replay| replay.cursor < tail;
        let (replay, late) = self.shared.1.wait_timeout_while(replay, PATIENCE, behind).unwrap();
        assert!(!late.timed_out(), "replayed up to {:?} of {tail:?}", replay.cursor);
        look(&replay)
    }
}

struct Bench {
    disk: Arc<Disk>,
    path: PathBuf,
    workers: Workers,
    executor: Executor,
    collector: Option<Collector>,
    _folders: [TempDir; 2],
}

impl Bench {
    fn new(ring_bytes: u64) -> Self {
        let folders = [tempfile::tempdir().unwrap(), tmpfs_dir()];
        let path = folders[0].path().join("disk");
        std::fs::File::create(&path).unwrap().set_len(START_BYTES).unwrap();
        let ring = create(&folders[1].path().join("ring"), &spec(ring_bytes, 1024)).unwrap();
        let store = UringStore::open(&path, OpenMode::ReadWrite).unwrap();
        let intent = IntentLog::volatile(store.geometry().size_bytes);
        let capture = Arc::new(Capture::new("test".into(), ring, Arc::clone(intent.map())));
        let disk = Arc::new(Volume::new(VolumeId::from_bytes([7; 16]), store, capture, intent));
        let workers = Workers::start("test", 2, ExecutorConfig::default()).unwrap();
        let executor = Executor::new(&ExecutorConfig::default()).unwrap();
        Self { disk, path, workers, executor, collector: None, _folders: folders }
    }

    /// A collector that holds a volume of `held_bytes`, and a copier.
    fn with_session(mut self, held_bytes: u64) -> Self {
        let capture = self.disk.capture();
        self.collector = Some(Collector::start(capture, vec![0; at(held_bytes)]));
        assert!(capture.continues(|| Some(held_bytes)));
        capture.phases().welcomed();
        let (copied, source) = (Arc::clone(&self.disk), Arc::new(SystemSource::default()));
        let timer = copy::EngineTimer::new(clock());
        self.workers.spawn_on(0, move || copy::run(copied, source, timer));
        self
    }

    fn resize(&self) -> Option<Resized> {
        self.executor.block_on(self.disk.resize()).unwrap()
    }

    /// What somebody else does to the backing file.
    fn set_len(&self, len: u64) {
        std::fs::File::options().write(true).open(&self.path).unwrap().set_len(len).unwrap();
    }

    fn append(&self, bytes: &[u8]) {
        self.put(std::fs::metadata(&self.path).unwrap().len(), bytes);
    }

    fn put(&self, place: u64, bytes: &[u8]) {
        let mut file = std::fs::File::options().write(true).open(&self.path).unwrap();
        file.seek(SeekFrom::Start(place)).unwrap();
        file.write_all(bytes).unwrap();
    }

    fn write(&self, place: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.executor.block_on(write(&self.disk, place, bytes))
    }

    /// Waits until the stream is whole, and holds its replay against the file.
    #[track_caller]
    fn check(&self, what: &str) {
        let capture = self.disk.capture();
        wait_for(what, || capture.phases().phase().is_whole() && capture.is_on());
        let file = std::fs::read(&self.path).unwrap();
        let size = at(self.disk.size_bytes());
        let unit = at(self.disk.unit_bytes());
        assert_eq!(size, file.len() - file.len() % unit, "{what}: the volume and its file");
        let collector = self.collector.as_ref().unwrap();
        collector.at_rest(capture.ring().tail_ticket(), |replay| {
            assert_eq!(replay.image.len(), size, "{what}: the replay's size");
            let differs = replay.image.iter().zip(&file).position(|(one, other)| one != other);
            assert_eq!(differs, None, "{what}: first byte where the replay is not the file");
        });
    }

    fn counts(&self) -> (usize, usize) {
        let tail = self.disk.capture().ring().tail_ticket();
        let collector = self.collector.as_ref().unwrap();
        collector.at_rest(tail, |replay| (replay.resizes, replay.copies))
    }

    fn end(self) {
        self.disk.capture().close();
        self.workers.shutdown();
        if let Some(collector) = self.collector {
            collector.shared.0.lock().unwrap().stopped = true;
            collector.thread.join().unwrap();
        }
    }
}

async fn write(disk: &Disk, place: u64, bytes: &[u8]) -> Result<(), DeviceError> {
    let mut done = 0;
    while done < bytes.len() {
        let rest = ByteRange::new(place + done as u64, (bytes.len() - done) as u64).unwrap();
        let mut payload = disk.reserve(rest).await?;
        let len = payload.bytes_mut().len();
        payload.bytes_mut().copy_from_slice(&bytes[done..done + len]);
        disk.write(payload, Durability::Cached).await?;
        done += len;
    }
    Ok(())
}

#[track_caller]
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn assert_out_of_range<T: std::fmt::Debug>(result: Result<T, DeviceError>) {
    assert!(matches!(result, Err(DeviceError::OutOfRange { .. })), "{result:?}");
}

#[test]
fn a_hole_at_the_end_and_a_cut_are_one_record_each() {
    let bench = Bench::new(4 << 20).with_session(START_BYTES);
    bench.write(START_BYTES - 512, &[1; 512]).unwrap();
    assert_eq!(bench.resize(), None);
    bench.set_len(2 * START_BYTES);
    assert_out_of_range(bench.write(START_BYTES, &[2; 512]));
    let resized = bench.resize().unwrap();
    let expected =
        Resized { old_bytes: START_BYTES, new_bytes: 2 * START_BYTES, is_recorded: true };
    assert_eq!(resized, expected);
    bench.write(2 * START_BYTES - 512, &[3; 512]).unwrap();
    bench.check("grown");
    assert_eq!(bench.disk.has_other_size().unwrap(), None, "a second without a write begins");
    bench.set_len(8192);
    assert!(bench.resize().unwrap().is_recorded);
    bench.check("cut");
    let (buffer, options) = (
        Chunk::zeroed(1024),
        ZeroOptions { no_hole: false, fast: false, durability: Durability::Cached },
    );
    assert_out_of_range(bench.executor.block_on(bench.disk.read(8192 - 512, buffer)).map(drop));
    assert_out_of_range(bench.write(8192, &[4]));
    let behind = ByteRange::new(8000, 512).unwrap();
    assert_out_of_range(bench.executor.block_on(bench.disk.write_zeroes(behind, options)));
    assert_out_of_range(bench.executor.block_on(bench.disk.trim(behind, Durability::Cached)));
    bench.set_len(START_BYTES);
    assert!(bench.resize().unwrap().is_recorded);
    bench.check("grown again: zeroes where bytes were before the cut");
    assert_eq!(bench.counts(), (3, 0), "no copy");
    bench.end();
}

#[test]
fn bytes_that_nobody_captured_bring_a_copy() {
    let bench = Bench::new(4 << 20).with_session(START_BYTES);
    bench.append(&[5; 70_000]);
    assert!(!bench.resize().unwrap().is_recorded);
    bench.check("appended");
    assert_eq!(bench.counts(), (1, 1));
    bench.end();
}

#[test]
fn a_write_behind_a_cut_that_was_not_seen_yet_does_not_hide_it() {
    let bench = Bench::new(4 << 20).with_session(START_BYTES);
    bench.write(0, &[6; 200_000]).unwrap();
    assert_eq!(bench.disk.has_other_size().unwrap(), None);
    bench.set_len(4096);
    // It makes the file larger again, with zeroes where bytes were.
    bench.write(24 * 4096, &[7; 4096]).unwrap();
    let last = START_BYTES - bench.disk.unit_bytes();
    assert_out_of_range(bench.write(last, &vec![8; at(START_BYTES - last)]));
    assert!(bench.disk.capture().is_on(), "nothing was lost yet");
    assert!(!bench.resize().unwrap().is_recorded, "where it was cut is not known");
    bench.check("cut and grown by a write");
    bench.end();
}

#[test]
fn a_cut_that_nobody_was_told_of_is_not_hidden_by_growing_again() {
    let bench = Bench::new(4 << 20).with_session(START_BYTES);
    bench.write(0, &[6; 200_000]).unwrap();
    bench.check("before");
    bench.disk.capture().pause();
    bench.set_len(8192);
    assert!(!bench.resize().unwrap().is_recorded);
    bench.set_len(START_BYTES);
    assert!(!bench.resize().unwrap().is_recorded, "the stream is at the size before the cut");
    bench.disk.capture().resume();
    bench.check("zeroes where the collector had bytes");
    assert_eq!(bench.counts(), (0, 1));
    bench.end();
}

#[test]
fn a_size_that_nobody_was_told_of_is_said_by_the_copy() {
    for held_bytes in [START_BYTES / 2, START_BYTES, 2 * START_BYTES] {
        let bench = Bench::new(4 << 20);
        bench.write(1000, &[9; 100_000]).unwrap();
        bench.disk.capture().lose(GapReason::Resized);
        // Of an earlier agent: in no record, and marked nowhere.
        bench.put(START_BYTES - 5000, &[8; 3000]);
        if held_bytes >= START_BYTES {
            bench.disk.intent().map().doubt_all();
        }
        let bench = bench.with_session(held_bytes);
        bench.check("another size at the start");
        let is_other = held_bytes != START_BYTES;
        assert_eq!(bench.counts(), (usize::from(is_other), 1));
        bench.end();
    }
}

/// A collector refuses a question about what is behind the end, and with it the session; the same
/// question would come first in each session that follows.
#[test]
fn a_verification_ends_when_the_volume_is_cut() {
    let bench = Bench::new(4 << 20).with_session(START_BYTES);
    bench.write(0, &[6; 200_000]).unwrap();
    bench.check("before");
    assert_eq!(bench.disk.has_other_size().unwrap(), None, "a second without a write begins");
    let verified = Arc::clone(&bench.disk);
    let timer = copy::EngineTimer::new(clock());
    bench.workers.spawn_on(1, move || copy::verify::run(verified, timer));
    let capture = bench.disk.capture();
    // Until this is let go the collector takes no question and no record.
    let held = bench.collector.as_ref().unwrap().shared.0.lock().unwrap();
    capture.verify(VerifyWish { id: [1; 16], from_bytes: 0 });
    wait_for("it asks", || capture.desk().take(Seq(u64::MAX), false).is_some());
    capture.desk().send_again();
    bench.set_len(8192);
    assert!(bench.resize().unwrap().is_recorded);
    let newest = || capture.verifications().newest().map(|(_, report)| report);
    wait_for("it ends", || newest().is_some_and(|report| report.is_over()));
    drop(held);
    assert_eq!(newest().unwrap().state, VerifyState::NotWhole);
    bench.check("cut");
    assert_eq!(bench.counts(), (1, 0), "no copy");
    bench.end();
}

#[test]
fn a_stream_that_no_collector_would_take_is_found() {
    let bench = Bench::new(4 << 20);
    let capture = bench.disk.capture();
    assert!(capture.continues(|| Some(START_BYTES)));
    bench.set_len(2 * START_BYTES);
    assert!(bench.resize().unwrap().is_recorded);
    let behind = |held_bytes| capture.ring().consumer().unwrap().size_behind(Seq(0), held_bytes);
    assert_eq!(behind(START_BYTES), Some(2 * START_BYTES));
    assert!(capture.continues(|| behind(START_BYTES)), "the record leads to the size");
    assert!(!capture.continues(|| Some(START_BYTES)), "the record was dropped");
    assert!(!capture.continues(|| behind(4096)), "the collector was put back");
    capture.lose(GapReason::RingFull);
    assert!(capture.continues(|| Some(4096)), "the copy says the size");
    bench.end();
}

/// Found by the simulator: the collector refused such a stream for ever. A process wrote to a disk
/// that had grown a moment before it was opened, and was killed before its first session.
#[test]
fn a_change_behind_the_end_of_what_the_collector_holds_is_found_while_a_copy_is_wanted() {
    let bench = Bench::new(4 << 20);
    let capture = bench.disk.capture();
    let (disk, range) = (Arc::clone(&bench.disk), ByteRange::new(4096, 4096).unwrap());
    bench.executor.block_on(async move {
        let mut payload = disk.reserve(range).await.unwrap();
        payload.bytes_mut().fill(1);
        disk.write(payload, Durability::Cached).await.unwrap();
    });
    capture.lose(GapReason::RingFull);
    let behind = |held_bytes| capture.ring().consumer().unwrap().size_behind(Seq(0), held_bytes);
    assert_eq!(behind(8192), Some(8192), "it fits");
    assert!(!capture.continues(|| behind(4096)), "it lies behind the end");
    bench.end();
}

#[test]
fn a_size_that_no_volume_has_changes_nothing() {
    let bench = Bench::new(4 << 20).with_session(START_BYTES);
    bench.set_len(100);
    let error = bench.executor.block_on(bench.disk.resize()).unwrap_err();
    assert!(error.to_string().contains("which no volume can have"), "{error}");
    let Geometry { size_bytes, .. } = bench.disk.geometry();
    assert_eq!(size_bytes, START_BYTES);
    bench.end();
}

/// One task's writes, which never reach the very end of the disk: see `volume::resize`.
async fn writes(disk: Arc<Disk>, mut dice: Dice) {
    for _ in 0..12 {
        let unit = disk.unit_bytes();
        let longest = if dice.below(4) == 0 { 60_000 } else { 3000 };
        let len = 1 + dice.below(longest);
        let end = disk.size_bytes().saturating_sub(unit);
        if end <= len {
            continue;
        }
        let place = dice.below(end - len);
        let byte = dice.roll().to_le_bytes()[0];
        match write(&disk, place, &vec![byte; at(len)]).await {
            Ok(()) | Err(DeviceError::OutOfRange { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn the_stream_gives_the_file_whatever_happens_to_its_size() {
    for seed in 1..=5 {
        let bench = Bench::new(if seed % 2 == 0 { 1 << 20 } else { 4 << 20 });
        let bench = bench.with_session(START_BYTES);
        let mut dice = Dice(seed);
        for round in 0..25 {
            let (done, ended) = unbounded::<()>();
            for task in 0..TASKS {
                let (disk, done) = (Arc::clone(&bench.disk), done.clone());
                let dice = Dice(dice.roll());
                bench.workers.spawn_on(task % 2, move || async move {
                    writes(disk, dice).await;
                    drop(done);
                });
            }
            drop(done);
            let len = bench.disk.unit_bytes() * (8 + dice.below(100));
            match dice.below(5) {
                0 => bench.append(&vec![dice.roll().to_le_bytes()[0]; at(len) / 3]),
                1 => bench.disk.capture().want_copy(CopyCause::Gap(GapReason::RingLost)),
                _ => bench.set_len(len),
            }
            if dice.below(2) == 0 {
                bench.resize();
            }
            assert!(ended.recv_timeout(PATIENCE).is_err_and(|error| error.is_disconnected()));
            if std::fs::metadata(&bench.path).unwrap().len() > LARGEST_BYTES {
                bench.set_len(LARGEST_BYTES);
            }
            while bench.resize().is_some() {}
            bench.check(&format!("seed {seed}, round {round}"));
        }
        let ended = bench.disk.capture().phases().phase();
        assert!(matches!(ended, Phase::Whole { .. }), "{ended:?}");
        let (resizes, copies) = bench.counts();
        assert!(resizes > 5 && copies > 0, "{resizes} resizes, {copies} copies");
        bench.end();
    }
}
