//! What a write to a protected disk costs in the steady state: no allocation, from the memory for
//! its payload to the release of its record, whatever its alignment, with and without waiting for
//! its range, and also while changes are not captured.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod ring_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use ring_support::{create, spec, tmpfs_dir};
use tidemark_agent::capture::Capture;
use tidemark_agent::intent_log::IntentLog;
use tidemark_agent::ring::{Next, Ring};
use tidemark_agent::volume::Volume;
use tidemark_block::engine::{Executor, ExecutorConfig, MailSender, TaskPool, mailbox};
use tidemark_block::store::{OpenMode, UringStore};
use tidemark_block::{ByteRange, Device, Durability, Payload};
use tidemark_wire::VolumeId;

const DEPTH: u64 = 32;
const WARM_UP: u64 = 2_000;
const WRITES: u64 = 10_000;
const DISK_BYTES: u64 = 64 * 1024 * 1024;
const WRITE_BYTES: u64 = 4096;

/// Counts the allocations of all threads.
struct Counting;

// Relaxed throughout: what is compared was counted by this thread, or by the consumer before a
// release that the writes waited for.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Where the writes of one case go.
#[derive(Clone, Copy, Debug)]
struct Pattern {
    name: &'static str,
    /// Distance of one write from the next, in bytes.
    stride_bytes: u64,
    /// The writes stay in the first so many bytes of the disk.
    within_bytes: u64,
    captured: bool,
}

const PATTERNS: [Pattern; 4] = [
    Pattern {
        name: "on pages",
        stride_bytes: 7 * WRITE_BYTES,
        within_bytes: DISK_BYTES,
        captured: true,
    },
    Pattern {
        name: "on no unit",
        stride_bytes: 7 * WRITE_BYTES + 13,
        within_bytes: DISK_BYTES,
        captured: true,
    },
    Pattern {
        name: "waiting for each other",
        stride_bytes: 513,
        within_bytes: 4 * WRITE_BYTES,
        captured: true,
    },
    Pattern {
        name: "not captured",
        stride_bytes: 7 * WRITE_BYTES + 13,
        within_bytes: DISK_BYTES,
        captured: false,
    },
];

/// Takes and releases every record, as the shipper does.
fn consume(ring: &Ring, records: &AtomicU64, stop: &AtomicBool) {
    let mut consumer = ring.consumer().expect("nobody has the role");
    loop {
        let stopping = stop.load(Ordering::Acquire);
        let mut newest = None;
        while let Next::Record(record) = consumer.next() {
            newest = Some(record.header.seq());
            records.fetch_add(1, Ordering::Relaxed);
        }
        match newest {
            Some(seq) => consumer.release_through(seq),
            None if stopping => return,
            None => consumer.wait(Duration::from_millis(1)),
        }
    }
}

/// One of the writers: every `DEPTH`th write of the pattern.
async fn write_some(
    volume: Arc<Volume<UringStore>>,
    pattern: Pattern,
    writer: u64,
    writes: u64,
    done: MailSender<()>,
) {
    for number in (writer..writes).step_by(usize::try_from(DEPTH).unwrap()) {
        let start = number * pattern.stride_bytes % (pattern.within_bytes - WRITE_BYTES);
        let range = ByteRange::new(start, WRITE_BYTES).unwrap();
        let mut at = range.start();
        while at < range.end() {
            let rest = ByteRange::between(at, range.end()).unwrap();
            let mut payload = volume.reserve(rest).await.unwrap();
            payload.bytes_mut().fill(number.to_le_bytes()[0]);
            at += payload.bytes_mut().len() as u64;
            volume.write(payload, Durability::Cached).await.unwrap();
        }
    }
    assert!(done.try_send(()).is_ok());
}

/// The allocations of `WRITES` writes behind a warm-up.
fn allocations(volume: &Arc<Volume<UringStore>>, pattern: Pattern) -> u64 {
    let executor = Executor::new(&ExecutorConfig::default()).unwrap();
    let depth = usize::try_from(DEPTH).unwrap();
    executor.block_on(async {
        let (done, mut all_done) = mailbox(depth);
        let writers = TaskPool::new(depth);
        let mut before = 0;
        for writes in [WARM_UP, WRITES] {
            before = ALLOCATIONS.load(Ordering::Relaxed);
            for writer in 0..DEPTH {
                let volume = Arc::clone(volume);
                let task = write_some(volume, pattern, writer, writes, done.clone());
                assert!(writers.try_spawn(task).is_ok());
            }
            for _ in 0..DEPTH {
                all_done.recv().await.unwrap();
            }
        }
        assert!(before > 0, "the set-up was not counted");
        ALLOCATIONS.load(Ordering::Relaxed) - before
    })
}

fn open_volume(disk: &Path, ring: Ring) -> Arc<Volume<UringStore>> {
    std::fs::File::create(disk).unwrap().set_len(DISK_BYTES).unwrap();
    let store = UringStore::open(disk, OpenMode::ReadWrite).unwrap();
    let intent = IntentLog::volatile(DISK_BYTES);
    let capture = Arc::new(Capture::new("test".into(), ring, Arc::clone(intent.map())));
    Arc::new(Volume::new(VolumeId::from_bytes([7; 16]), store, capture, intent))
}

#[test]
fn a_write_allocates_nothing_from_its_payload_to_its_release() {
    let (disks, rings) = (tempfile::tempdir().unwrap(), tmpfs_dir());
    for (index, pattern) in PATTERNS.into_iter().enumerate() {
        let path = rings.path().join(index.to_string());
        let ring = create(&path, &spec(8 << 20, 2048)).unwrap();
        let volume = open_volume(&disks.path().join(index.to_string()), ring.clone());
        if !pattern.captured {
            ring.turn_capture_off();
        }
        let (records, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let allocated = thread::scope(|scope| {
            scope.spawn(|| consume(&ring, &records, &stop));
            let allocated = allocations(&volume, pattern);
            // Release pairs with the load in `consume`: it sees all records before it stops.
            stop.store(true, Ordering::Release);
            ring.wake_consumer();
            allocated
        });
        let records = records.load(Ordering::Relaxed);
        println!("{WRITES} writes {}: {allocated} allocations", pattern.name);
        assert_eq!(allocated, 0, "{pattern:?}");
        assert_eq!(ring.capture_is_on(), pattern.captured, "the ring was never full: {pattern:?}");
        if pattern.captured {
            assert!(records >= WARM_UP + WRITES, "{records} records: {pattern:?}");
        }
    }
}
