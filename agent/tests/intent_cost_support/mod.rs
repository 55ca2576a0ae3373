//! What the tests and the measurement of the write-intent log's cost share: a disk of 64 GiB with the
//! log or with its bits in memory only, and many writers at once.
#![allow(dead_code, unreachable_pub, reason = "each binary uses a part of it")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tidemark_agent::capture::Capture;
use tidemark_agent::intent_log::file::{IntentFile, LogFiles};
use tidemark_agent::intent_log::map::{IntentMap, REGION_BYTES};
use tidemark_agent::intent_log::{Coverage, IntentLog};
use tidemark_agent::ring::{Next, Ring};
use tidemark_agent::volume::Volume;
use tidemark_block::engine::{Executor, ExecutorConfig, MailSender, mailbox, spawn};
use tidemark_block::store::{OpenMode, UringStore};
use tidemark_block::{ByteRange, Device, Durability, Payload};
use tidemark_wire::VolumeId;

use crate::ring_support::{create, spec, tmpfs_dir};

pub const DISK_BYTES: u64 = 64 << 30;
pub const WRITE_BYTES: u64 = 4096;
pub const DEPTH: u64 = 32;
pub const REGIONS: u64 = DISK_BYTES / REGION_BYTES;

pub type Disk = Volume<UringStore>;

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

pub async fn write_at(disk: &Disk, block: u64) {
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
pub fn write_all<I: Iterator<Item = u64> + 'static>(disk: &Arc<Disk>, blocks: impl Fn(u64) -> I) {
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
pub fn on_disk<T>(with_log: bool, work: impl FnOnce(&Arc<Disk>) -> T) -> T {
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
