//! The log's file on a disk that loses power at every one of its operations, with whatever part of
//! what it had not synced; and damaged.
#![allow(clippy::cast_possible_truncation, reason = "a test runs where usize has 64 bits")]

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tidemark_block::store::{Store, StoreGeometry};
use tidemark_block::{ByteRange, Chunk, Durability, StatusExtent};
use tidemark_wire::{Seq, VolumeId};
use zerocopy::IntoBytes;

use super::file::{FileError, IntentFile, LogFiles};
use super::format::{PAGE_BYTES, Page, new_file, place_of};
use super::map::{IntentMap, REGION_BYTES};
use super::sweep::{Marks, Swept};
use super::{Coverage, FlushEpoch, IntentLog};

const REGIONS: u64 = 40_000;
const SECTOR: usize = 512;

fn volume() -> VolumeId {
    VolumeId::from_bytes([7; 16])
}

/// Xorshift (Marsaglia 2003).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

#[derive(Default)]
struct Disk {
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
    /// Operations that it still does before it loses power.
    left: Option<u64>,
    /// From then on every operation fails, as on a disk that is broken.
    broken: bool,
    /// Writes are on their way for ever.
    stuck: bool,
}

impl Disk {
    fn operation(&mut self) -> io::Result<()> {
        if self.broken || self.left == Some(0) {
            self.broken = true;
            return Err(io::Error::from_raw_os_error(5));
        }
        self.left = self.left.map(|left| left - 1);
        Ok(())
    }

    /// What a start finds after the power cut: any sectors of what was not synced have arrived.
    fn after_power_cut(&self, dice: &mut Dice) -> Vec<u8> {
        let mut image = self.durable.clone();
        for (at, bytes) in &self.unsynced {
            for (n, sector) in bytes.chunks(SECTOR).enumerate() {
                if dice.roll(2) == 0 {
                    let at = at + n * SECTOR;
                    image[at..at + SECTOR].copy_from_slice(sector);
                }
            }
        }
        image
    }
}

#[derive(Clone, Default)]
struct DiskStore(Arc<Mutex<Disk>>);

impl DiskStore {
    fn with(content: &[u8]) -> Self {
        Self(Arc::new(Mutex::new(Disk { durable: content.to_vec(), ..Disk::default() })))
    }
}

impl Store for DiskStore {
    fn geometry(&self) -> StoreGeometry {
        StoreGeometry {
            size_bytes: self.0.lock().expect("no panic").durable.len() as u64,
            io_align_bytes: 512,
            mem_align_bytes: 512,
            discard: false,
            read_only: false,
        }
    }

    async fn read_at(&self, mut buf: Chunk, offset: u64) -> (io::Result<()>, Chunk) {
        let disk = self.0.lock().expect("no panic");
        let at = usize::try_from(offset).expect("small");
        let mut seen = disk.durable.clone();
        for (at, bytes) in &disk.unsynced {
            seen[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        let len = buf.len();
        buf.as_mut_slice().copy_from_slice(&seen[at..at + len]);
        (Ok(()), buf)
    }

    async fn write_at(&self, buf: Chunk, at: u64, _: Durability) -> (io::Result<()>, Chunk) {
        let is_stuck = self.0.lock().expect("no panic").stuck;
        if is_stuck {
            std::future::pending::<()>().await;
        }
        let mut disk = self.0.lock().expect("no panic");
        disk.unsynced.push((usize::try_from(at).expect("small"), buf.as_slice().to_vec()));
        (disk.operation(), buf)
    }

    async fn sync(&self) -> io::Result<()> {
        let mut disk = self.0.lock().expect("no panic");
        disk.operation()?;
        for (at, bytes) in std::mem::take(&mut disk.unsynced) {
            disk.durable[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(())
    }

    async fn punch(&self, _: ByteRange) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn zero(&self, _: ByteRange) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn data_extents(&self, _: ByteRange, _: usize, _: &mut Vec<StatusExtent>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

struct Files(DiskStore);

impl LogFiles for Files {
    type Store = DiskStore;

    fn open(&self) -> io::Result<DiskStore> {
        Ok(self.0.clone())
    }

    fn make(&self, content: &[u8]) -> io::Result<DiskStore> {
        let mut disk = self.0.0.lock().expect("no panic");
        *disk = Disk { durable: content.to_vec(), left: disk.left, ..Disk::default() };
        drop(disk);
        Ok(self.0.clone())
    }
}

/// What a state file on another disk keeps.
#[derive(Clone)]
struct Kept(Arc<AtomicBool>);

impl Coverage for Kept {
    fn keep(&self, covered: bool) -> io::Result<()> {
        self.0.store(covered, Ordering::Relaxed);
        Ok(())
    }
}

/// The future's end; nothing here waits.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut context) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits for nobody"),
    }
}

/// A volume whose collector has everything at once.
struct Volume {
    newest: AtomicU64,
}

impl Swept for Volume {
    fn newest(&self) -> Seq {
        Seq(self.newest.load(Ordering::Relaxed))
    }

    fn released(&self) -> Option<Seq> {
        Some(self.newest())
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn pause(&self, _: Duration) -> bool {
        false
    }
}

/// An agent's run on a disk, and what the log must hold after it.
struct Run {
    disk: DiskStore,
    kept: Kept,
    log: IntentLog<DiskStore>,
    volume: Volume,
    marks: Marks,
    /// When each region was changed last, in steps; 0 for never.
    changed: Vec<u64>,
    /// Steps of the last sweep and of the one before.
    sweeps: [u64; 2],
    step: u64,
}

fn bytes(region: u64) -> ByteRange {
    ByteRange::new(region * REGION_BYTES, 1).expect("small")
}

impl Run {
    fn new(left: Option<u64>) -> Self {
        let disk = DiskStore::default();
        disk.0.lock().expect("no panic").left = left;
        let kept = Kept(Arc::new(AtomicBool::new(true)));
        let map = IntentMap::new(REGIONS * REGION_BYTES, true, Box::new(kept.clone()));
        let file = IntentFile::make(&Files(disk.clone()), volume(), &map).expect("made");
        let log = IntentLog::in_file(Arc::new(map), file);
        let changed = vec![0; usize::try_from(REGIONS).expect("small")];
        let volume = Volume { newest: AtomicU64::new(0) };
        Self { disk, kept, log, volume, marks: Marks::NONE, changed, sweeps: [0; 2], step: 0 }
    }

    /// One of the things that happen; false once the power is gone.
    fn go(&mut self, dice: &mut Dice) -> bool {
        self.step += 1;
        match dice.roll(12) {
            0 => {
                self.marks = now(self.log.sweep(&self.volume, self.marks));
                self.sweeps = [self.step, self.sweeps[0]];
                now(self.log.write());
            }
            1 => self.log.map().doubt(bytes(dice.roll(REGIONS))),
            2 => now(self.log.write()),
            _ => {
                // Few regions, over both pages, so that they get idle and hot again.
                let region = dice.roll(6) * (REGIONS / 6);
                let range = bytes(region + dice.roll(3));
                let entered = now(self.log.enter(range));
                if !self.is_cut() {
                    let region = usize::try_from(range.start() / REGION_BYTES).expect("small");
                    self.changed[region] = self.step;
                    self.volume.newest.fetch_add(1, Ordering::Relaxed);
                }
                drop(entered);
            }
        }
        !self.is_cut()
    }

    fn is_cut(&self) -> bool {
        self.disk.0.lock().expect("no panic").broken
    }

    /// Nothing that was changed since the last sweep but one is without its bit.
    fn check(&self, dice: &mut Dice, covered_before: bool) {
        let image = self.disk.0.lock().expect("no panic").after_power_cut(dice);
        // What the process did after the cut did not happen.
        if !covered_before {
            return;
        }
        let map = IntentMap::volatile(REGIONS * REGION_BYTES);
        now(IntentFile::read(DiskStore::with(&image), volume(), &map)).expect("nothing is damaged");
        let must = |region: &u64| {
            let changed = self.changed[usize::try_from(*region).expect("small")];
            changed > self.sweeps[1] || (self.sweeps[1] == 0 && changed > 0)
        };
        for region in (0..REGIONS).filter(must) {
            assert!(map.region(region).is_set(), "region {region} was changed and has no bit");
        }
        for region in (0..REGIONS).filter(|region| self.log.map().region(*region).is_doubted()) {
            assert!(map.region(region).is_set(), "region {region} is in doubt and has no bit");
        }
    }
}

#[test]
fn a_power_cut_at_any_operation_leaves_a_bit_for_every_change() {
    for seed in 1..=12 {
        for cut_at in 0..60 {
            let mut dice = Dice(seed * 0x9E37_79B9 + 1);
            let mut run = Run::new(Some(cut_at));
            let mut covered = true;
            for _ in 0..200 {
                covered = run.kept.0.load(Ordering::Relaxed);
                if !run.go(&mut dice) {
                    break;
                }
                covered = run.kept.0.load(Ordering::Relaxed);
            }
            for _ in 0..4 {
                run.check(&mut dice, covered);
            }
        }
    }
}

#[test]
fn idle_bits_clear_and_a_hot_set_costs_nothing() {
    let run = Run::new(None);
    for region in 0..10 {
        drop(now(run.log.enter(bytes(region * 3))));
    }
    let before = run.log.figures();
    (0..1000).for_each(|n| drop(now(run.log.enter(bytes(n % 10 * 3)))));
    assert_eq!(run.log.figures(), before, "nothing is written for a region that has its bit");
    let marks = now(run.log.sweep(&run.volume, Marks::NONE));
    drop(now(run.log.enter(bytes(0))));
    let marks = now(run.log.sweep(&run.volume, marks));
    now(run.log.write());
    let after = run.log.figures();
    assert_eq!((after.marked, after.cleared), (1, before.marked - 1), "one was not idle");
    now(run.log.sweep(&run.volume, marks));
    assert_eq!(run.log.figures().marked, 0);
}

#[test]
fn changes_that_go_through_the_volume_sync_once_for_many_regions() {
    let run = Run::new(None);
    (0..160).for_each(|region| drop(now(run.log.enter(bytes(region)))));
    let figures = run.log.figures();
    assert!(figures.syncs <= 12, "{figures:?}");
    let run = Run::new(None);
    (0..160).for_each(|n| drop(now(run.log.enter(bytes(n * 97 % 1000)))));
    assert_eq!(run.log.figures().marked, 160, "nothing is wanted ahead of random changes");
}

#[test]
fn a_log_that_fails_lets_changes_go_on_and_a_crash_is_known_to_need_everything() {
    let run = Run::new(Some(2));
    drop(now(run.log.enter(bytes(1))));
    assert!(run.kept.0.load(Ordering::Relaxed) && !run.log.map().is_failed());
    let entered = now(run.log.enter(bytes(100)));
    assert!(run.log.map().is_failed() && !run.kept.0.load(Ordering::Relaxed));
    drop(now(run.log.enter(bytes(200))));
    // Another file has the bits of all that was changed meanwhile.
    let files = Files(DiskStore::default());
    let file = IntentFile::make(&files, volume(), run.log.map()).expect("made");
    assert!(now(run.log.adopt(file)));
    assert!(run.kept.0.load(Ordering::Relaxed) && !run.log.map().is_failed());
    drop(entered);
    let map = IntentMap::volatile(REGIONS * REGION_BYTES);
    now(IntentFile::read(files.0.clone(), volume(), &map)).expect("good");
    let marked = (0..REGIONS).filter(|region| map.region(*region).is_set());
    assert_eq!(marked.collect::<Vec<_>>(), [1, 100, 200]);
}

#[test]
fn whoever_waits_for_a_leader_leads_after_it() {
    let run = Run::new(None);
    run.log.map().doubt(bytes(5));
    let lead = run.log.lead().expect("nobody leads");
    let mut waiting = Box::pin(run.log.enter(bytes(7)));
    let mut context = Context::from_waker(Waker::noop());
    assert!(waiting.as_mut().poll(&mut context).is_pending(), "somebody else leads");
    drop(lead);
    assert!(waiting.as_mut().poll(&mut context).is_ready());
    assert!(run.log.map().is_set(bytes(5)), "the new leader wrote what the old one had to");
}

#[test]
fn a_write_that_was_given_up_is_never_written_over() {
    let run = Run::new(None);
    run.disk.0.lock().expect("no panic").stuck = true;
    let mut waiting = Box::pin(run.log.enter(bytes(7)));
    let mut context = Context::from_waker(Waker::noop());
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    drop(waiting);
    run.disk.0.lock().expect("no panic").stuck = false;
    // The write may land at any time from here on, with an image that lacks this bit.
    drop(now(run.log.enter(bytes(9))));
    assert!(run.log.map().is_failed() && !run.kept.0.load(Ordering::Relaxed));
    assert!(run.disk.0.lock().expect("no panic").unsynced.is_empty());
}

/// The file of the golden log: a volume of 40,000 regions, of which three are marked.
fn golden() -> Vec<u8> {
    let run = Run::new(None);
    for region in [0, 4_000, 39_999] {
        drop(now(run.log.enter(bytes(region))));
    }
    run.disk.0.lock().expect("no panic").durable.clone()
}

#[test]
fn the_golden_log_is_read_and_made_again_byte_by_byte() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/intent/data.intent");
    if std::env::var_os("TIDEMARK_BLESS").is_some() {
        std::fs::write(path, golden()).expect("written");
    }
    let stored = std::fs::read(path).expect("the golden log");
    assert!(stored == golden(), "the format has changed: raise its version, then bless it");
    let map = IntentMap::volatile(REGIONS * REGION_BYTES);
    now(IntentFile::read(DiskStore::with(&stored), volume(), &map)).expect("good");
    let marked = (0..REGIONS).filter(|region| map.region(*region).is_set());
    assert_eq!(marked.collect::<Vec<_>>(), [0, 4_000, 39_999]);
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    let content = new_file(volume(), REGIONS * REGION_BYTES);
    let mut dice = Dice(99);
    let places = (0..48).chain((0..400).map(|_| dice.roll(content.len() as u64) as usize));
    for at in places {
        let mut damaged = content.clone();
        damaged[at] ^= 1 << (at % 8);
        let map = IntentMap::volatile(REGIONS * REGION_BYTES);
        let read = now(IntentFile::read(DiskStore::with(&damaged), volume(), &map));
        let is_padding = (40..PAGE_BYTES).contains(&at);
        assert_eq!(read.is_err(), !is_padding, "byte {at}");
        assert_eq!(map.marked(), 0);
    }
}

#[test]
fn a_file_that_is_not_the_volumes_says_nothing() {
    let map = IntentMap::volatile(REGIONS * REGION_BYTES);
    let read = |content: &[u8], id| {
        let read: Result<_, FileError> = now(IntentFile::read(DiskStore::with(content), id, &map));
        read.map(|_| ()).map_err(|error| error.to_string())
    };
    let good = new_file(volume(), REGIONS * REGION_BYTES);
    assert_eq!(read(&good, volume()), Ok(()));
    let other = VolumeId::from_bytes([8; 16]);
    assert!(read(&good, other).unwrap_err().contains("it is that of volume 07070707"));
    assert!(read(&good[..2 * PAGE_BYTES], volume()).unwrap_err().contains("8192 bytes"));
    assert!(read(&good[..100], volume()).unwrap_err().contains("100 bytes"));
    assert!(read(&vec![0; good.len()], volume()).unwrap_err().contains("does not begin"));
}

#[test]
fn what_was_changed_before_a_restart_is_not_taken_for_flushed() {
    let run = Run::new(None);
    drop(now(run.log.enter(bytes(3))));
    let map = IntentMap::volatile(REGIONS * REGION_BYTES);
    now(IntentFile::read(run.disk.clone(), volume(), &map)).expect("good");
    assert_eq!(map.unflushed().count(), 1);
    map.flush_ended(FlushEpoch(1));
    assert_eq!(map.unflushed().count(), 0);
}

/// Found by the simulator: a kill in the middle of a sync, and a power cut half a minute later.
#[test]
fn bits_that_a_killed_agent_had_not_synced_are_durable_before_they_are_believed() {
    let left = || {
        let disk = DiskStore::with(&new_file(volume(), REGIONS * REGION_BYTES));
        let mut page = Page::empty(0);
        page.mark(3);
        page.seal();
        let unsynced = (place_of(0) as usize, page.as_bytes().to_vec());
        disk.0.lock().expect("no panic").unsynced.push(unsynced);
        disk
    };
    let map = IntentMap::volatile(REGIONS * REGION_BYTES);
    let disk = left();
    now(IntentFile::read(disk.clone(), volume(), &map)).expect("good");
    assert!(map.region(3).is_set());
    assert!(disk.0.lock().expect("no panic").unsynced.is_empty(), "a power cut takes it");

    let map = IntentMap::volatile(REGIONS * REGION_BYTES);
    let disk = left();
    disk.0.lock().expect("no panic").broken = true;
    assert!(now(IntentFile::read(disk, volume(), &map)).is_err(), "nothing is durable there");
    assert_eq!(map.marked(), 0);
}
