//! A clone's own bytes over a state that does not change: reads, writes, discards, flushes.
//!
//! What enters: requests at any place and length. What leaves: bytes, from the clone's file where
//! it has written, from the view below elsewhere. It owns the files in the clone's directory
//! ([`format`] has them byte by byte, and the order of writes). A kill of the process loses
//! nothing that was answered; a crash of the machine loses what was not flushed, each block by
//! itself either as it was flushed or as it was written later, as with the volatile cache of a
//! disk, and never shows zeroes where nobody zeroed. The clone's own bytes have no checksums.
//!
//! Changes that share a block of 4 KiB wait for each other. Lock order: the range, the log, the
//! map. A write to a part of a block copies the rest up from below. Space is counted in whole
//! blocks of data; at the limit writes that need more are refused, and discarding or zeroing
//! whole blocks gives room again. Zeroes are never stored, so "no hole" promises no space here.
//!
//! After a sync that failed nothing is known of what was written since the last one: the clone
//! takes no more writes, and the next start goes back to the last flush.

mod ending;
mod format;
mod live_map;
mod map_log;
mod states;
mod wait;

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidemark_block::range_lock::RangeLock;
use tidemark_block::{ByteRange, StatusExtent};

pub use self::ending::{FoundClones, find_clones, mark_ended, remove_ended};
use self::format::{BLOCK_BYTES, DATA_FILE, MAP_FILE, PAGE_BYTES};
pub use self::format::{BootId, Identity};
use self::live_map::LiveMap;
use self::map_log::{MapLog, StoreFailure};
use self::states::{BlockState, States, page_count};
use self::wait::wait_for;
use super::error::DiskError;
use crate::error::{Failure, Result, ViewError};
use crate::storage::{RealStorage, Storage, StorageFile};
use crate::view::View;

/// See the module.
pub struct Overlay<S: Storage = RealStorage> {
    storage: Arc<S>,
    dir: PathBuf,
    data_path: PathBuf,
    identity: Identity,
    space_blocks: u64,
    base: View<S>,
    data: S::File,
    live: LiveMap<S>,
    map: Mutex<Map>,
    log: Mutex<MapLog<S>>,
    locks: RangeLock,
    failed: AtomicBool,
}

/// Where a clone's files are, and what it is.
pub struct Place<S: Storage> {
    /// Where its files are kept.
    pub storage: Arc<S>,
    /// The directory there, of this clone alone.
    pub dir: PathBuf,
    /// Which clone it is.
    pub identity: Identity,
    /// What it may hold of its own, in bytes.
    pub space_bytes: u64,
    /// The boot in which this process runs.
    pub boot: BootId,
}

struct Map {
    states: States,
    /// Blocks that writes in flight will make data.
    claimed: u64,
    /// Pages that differ from the log.
    dirty: BTreeSet<u32>,
    /// A write was refused since there was room.
    full: bool,
}

/// Room for blocks that become data; given back when it is dropped.
struct Claim<'a> {
    map: &'a Mutex<Map>,
    blocks: u64,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if self.blocks > 0 {
            lock(self.map).claimed -= self.blocks;
        }
    }
}

/// What is guarded is whole between any two statements that could panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Storage> Overlay<S> {
    /// Makes the files of a new clone; they are durable on return.
    ///
    /// # Errors
    /// `Conflict` when there is a clone, else what the system says.
    pub fn create(place: Place<S>, base: View<S>) -> Result<Self> {
        let (storage, dir) = (&place.storage, &place.dir);
        storage.create_dir(dir).map_err(|e| Failure::io("make", dir, e))?;
        let found = storage.list(dir).map_err(|e| Failure::io("list", dir, e))?;
        if !found.is_empty() {
            let message = format!("{} holds the files of another clone", dir.display());
            return Err(Failure::conflict(message).with_hint("move that directory away"));
        }
        let path = dir.join(DATA_FILE);
        let failed = |e| Failure::io("make", &path, e);
        let size_bytes = place.identity.size_bytes;
        let data = storage.create(&path).map_err(failed)?;
        data.set_len(size_bytes.next_multiple_of(BLOCK_BYTES)).map_err(failed)?;
        data.datasync().map_err(failed)?;
        Self::assemble(place, base, data, States::absent(size_bytes))
    }

    /// Opens the files of a clone as an earlier process or boot left them.
    ///
    /// # Errors
    /// `Internal` when they are damaged or belong to another clone, else what the system says.
    pub fn open(place: Place<S>, base: View<S>) -> Result<Self> {
        let Place { storage, dir, identity, boot, .. } = &place;
        let path = dir.join(DATA_FILE);
        let failed = |e| Failure::io("open", &path, e);
        let data = storage.open(&path).map_err(failed)?;
        if data.len().map_err(failed)? < identity.size_bytes {
            return Err(Failure::internal(format!("{} is too short", path.display()))
                .with_hint("put back a copy of it, or end the clone"));
        }
        let states = match LiveMap::load(storage, dir, identity, *boot) {
            Some(states) => states,
            None => MapLog::load(storage, dir, identity)?,
        };
        // What the map will call data has to be durable first.
        data.datasync().map_err(|e| Failure::io("sync", &path, e))?;
        let overlay = Self::assemble(place, base, data, states)?;
        overlay.give_back().map_err(|e| Failure::io("free space in", &path, e))?;
        Ok(overlay)
    }

    fn assemble(place: Place<S>, base: View<S>, data: S::File, states: States) -> Result<Self> {
        let Place { storage, dir, identity, space_bytes, boot } = place;
        if base.size_bytes() != identity.size_bytes {
            let (there, wanted) = (base.size_bytes(), identity.size_bytes);
            let message = format!("the state has {there} bytes, its clone {wanted}");
            return Err(Failure::internal(message));
        }
        let failed = |e| Failure::io("write a map in", &dir, e);
        let live = LiveMap::write_new(&storage, &dir, &identity, boot, states.bytes());
        let live = live.map_err(failed)?;
        let log = MapLog::write_new(&storage, &dir, &identity, states.bytes());
        let log = log.map_err(|failure| match failure {
            StoreFailure::Unwritten(error) | StoreFailure::Unknown(error) => failed(error),
        })?;
        let map = Map { states, claimed: 0, dirty: BTreeSet::new(), full: false };
        Ok(Self {
            data_path: dir.join(DATA_FILE),
            storage,
            dir,
            identity,
            space_blocks: space_bytes / BLOCK_BYTES,
            base,
            data,
            live,
            map: Mutex::new(map),
            log: Mutex::new(log),
            locks: RangeLock::default(),
            failed: AtomicBool::new(false),
        })
    }

    /// Frees what the file holds beyond the map: bytes of writes that were cut off, and of
    /// discards whose last step was.
    fn give_back(&self) -> io::Result<()> {
        let map = lock(&self.map);
        let end = map.states.blocks() * BLOCK_BYTES;
        let mut at = 0;
        while at < end {
            let extent = self.data.extent_at(at)?;
            if extent.len_bytes == 0 {
                break;
            }
            let extent_end = end.min(at + extent.len_bytes);
            while !extent.hole && at < extent_end {
                let blocks = at / BLOCK_BYTES..extent_end.div_ceil(BLOCK_BYTES);
                let (state, run_end) = map.states.run(blocks);
                let run = ByteRange::between(at, extent_end.min(run_end * BLOCK_BYTES))
                    .expect("a run has at least one block, and ends behind its start");
                if state != BlockState::Data {
                    punch(&self.data, run)?;
                }
                at = run.end();
            }
            at = extent_end;
        }
        Ok(())
    }

    /// Size of the disk.
    pub fn size_bytes(&self) -> u64 {
        self.identity.size_bytes
    }

    /// Bytes of the clone's own, in whole blocks.
    pub fn used_bytes(&self) -> u64 {
        lock(&self.map).states.data_blocks() * BLOCK_BYTES
    }

    /// Whether anything was written, zeroed or discarded.
    pub fn is_changed(&self) -> bool {
        let map = lock(&self.map);
        let blocks = map.states.blocks();
        blocks > 0 && map.states.run(0..blocks) != (BlockState::Absent, blocks)
    }

    fn check(&self, start: u64, len: u64) -> Result<ByteRange, DiskError> {
        let size_bytes = self.identity.size_bytes;
        match ByteRange::new(start, len).filter(|range| range.end() <= size_bytes) {
            Some(range) => Ok(range),
            None => {
                let range = ByteRange::between(start, u64::MAX).expect("no start is behind it");
                Err(ViewError::OutOfRange { range, size_bytes }.into())
            }
        }
    }

    fn io(&self, operation: &'static str) -> impl FnOnce(io::Error) -> DiskError + use<S> {
        DiskError::io(operation, &self.data_path)
    }

    fn fail(&self) {
        // Release pairs with the acquire in `check_works`.
        self.failed.store(true, Ordering::Release);
        if let Err(error) = self.live.distrust() {
            tracing::error!(dir = %self.dir.display(), %error, "the map of a failed clone stays");
        }
    }

    fn check_works(&self) -> Result<(), DiskError> {
        // Acquire pairs with the release in `fail`.
        if self.failed.load(Ordering::Acquire) {
            return Err(DiskError::Failed { path: self.data_path.clone() });
        }
        Ok(())
    }

    /// Fills `buf` from a place.
    ///
    /// # Errors
    /// `View`, `Io`.
    pub fn read_at(&self, buf: &mut [u8], start: u64) -> Result<(), DiskError> {
        let range = self.check(start, buf.len() as u64)?;
        let mut rest = buf;
        let mut at = range.start();
        while at < range.end() {
            let (state, end) = self.run(at, range.end());
            let len = usize::try_from(end - at).expect("no longer than the buffer");
            let (part, behind) = rest.split_at_mut(len);
            match state {
                BlockState::Absent => self.base.read_at(part, at)?,
                BlockState::Data => self.data.read_at(part, at).map_err(self.io("read"))?,
                BlockState::Zero => part.fill(0),
            }
            (rest, at) = (behind, end);
        }
        Ok(())
    }

    /// The state at a byte, and where the run of it ends, at most at `end`.
    fn run(&self, at: u64, end: u64) -> (BlockState, u64) {
        let blocks = at / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        let (state, run_end) = lock(&self.map).states.run(blocks);
        (state, end.min(run_end * BLOCK_BYTES))
    }

    /// Appends what is hole and what is data from the start of `range` on, as
    /// [`View::status`] does.
    ///
    /// # Errors
    /// `View`.
    pub fn status(
        &self,
        range: ByteRange,
        extents_max: usize,
        out: &mut Vec<StatusExtent>,
    ) -> Result<(), DiskError> {
        let range = self.check(range.start(), range.len())?;
        let room = out.len() + extents_max;
        let mut at = range.start();
        while at < range.end() && out.len() < room {
            let (state, end) = self.run(at, range.end());
            let len_bytes = end - at;
            let hole = state == BlockState::Zero;
            if state != BlockState::Absent {
                out.push(StatusExtent { len_bytes, hole, zero: hole });
                at = end;
                continue;
            }
            let (before, left) = (out.len(), room - out.len());
            let part = ByteRange::between(at, end).expect("a run ends behind its start");
            self.base.status(part, left, out)?;
            let covered: u64 = out[before..].iter().map(|extent| extent.len_bytes).sum();
            if covered < len_bytes {
                break;
            }
            at = end;
        }
        Ok(())
    }

    /// Writes bytes at a place. On return a kill of the process does not lose them.
    ///
    /// # Errors
    /// `NoSpace`, `View` where the rest of a block can't be copied up, `Io`, `Failed`.
    pub fn write_at(&self, bytes: &[u8], start: u64) -> Result<(), DiskError> {
        let range = self.check(start, bytes.len() as u64)?;
        if range.is_empty() {
            return Ok(());
        }
        let _held = wait_for(self.locks.lock(range.align_outward(BLOCK_BYTES)));
        self.check_works()?;
        self.write_held(bytes, range)
    }

    /// Writes bytes whose blocks are locked.
    fn write_held(&self, bytes: &[u8], range: ByteRange) -> Result<(), DiskError> {
        let blocks = range.start() / BLOCK_BYTES..range.end().div_ceil(BLOCK_BYTES);
        let claim = self.claim(blocks.clone())?;
        let (mut at, mut rest) = (range.start(), bytes);
        while at < range.end() {
            let block = self.block(at / BLOCK_BYTES);
            let whole_end = self.whole_end(range.end());
            let end = if at == block.start() && whole_end > at {
                whole_end
            } else {
                block.end().min(range.end())
            };
            let len = usize::try_from(end - at).expect("no longer than the bytes");
            let (part, behind) = rest.split_at(len);
            if at == block.start() && whole_end > at {
                self.data.write_at(part, at).map_err(|error| self.write_failed(error))?;
            } else {
                self.write_part(block, part, at)?;
            }
            (at, rest) = (end, behind);
        }
        self.settle(blocks, BlockState::Data, Some(claim)).map(|_| ())
    }

    /// The bytes of a block, fewer than others at the disk's end.
    fn block(&self, block: u64) -> ByteRange {
        let start = block * BLOCK_BYTES;
        ByteRange::between(start, self.identity.size_bytes.min(start + BLOCK_BYTES))
            .expect("the block lies on the disk")
    }

    /// Where the last whole block up to `end` ends.
    fn whole_end(&self, end: u64) -> u64 {
        if end == self.identity.size_bytes { end } else { end - end % BLOCK_BYTES }
    }

    /// Writes a part of one block, with the rest of it from below.
    fn write_part(&self, block: ByteRange, part: &[u8], at: u64) -> Result<(), DiskError> {
        let (state, _) = self.run(block.start(), block.end());
        if state == BlockState::Data {
            return self.data.write_at(part, at).map_err(|error| self.write_failed(error));
        }
        let mut whole = vec![0; usize::try_from(block.len()).expect("a block is 4 KiB")];
        if state == BlockState::Absent {
            self.base.read_at(&mut whole, block.start())?;
        }
        let within = usize::try_from(at - block.start()).expect("a block is 4 KiB");
        whole[within..within + part.len()].copy_from_slice(part);
        self.data.write_at(&whole, block.start()).map_err(|error| self.write_failed(error))
    }

    fn write_failed(&self, error: io::Error) -> DiskError {
        if error.kind() != io::ErrorKind::StorageFull {
            return self.io("write")(error);
        }
        let first = !std::mem::replace(&mut lock(&self.map).full, true);
        let message = format!(
            "the file system of clone {} in {} is full; make room there",
            self.identity.clone,
            self.dir.display()
        );
        DiskError::NoSpace { message, first }
    }

    /// Room for those of some blocks that are not data yet.
    fn claim(&self, blocks: Range<u64>) -> Result<Claim<'_>, DiskError> {
        let mut map = lock(&self.map);
        let wanted = blocks.end - blocks.start - map.states.count_data(blocks);
        if wanted > 0 && map.states.data_blocks() + map.claimed + wanted > self.space_blocks {
            let first = !std::mem::replace(&mut map.full, true);
            let message = format!(
                "clone {} holds {} bytes of its own and may hold {}; discard what is not needed, \
                 or make a clone with more --space",
                self.identity.clone,
                map.states.data_blocks() * BLOCK_BYTES,
                self.space_blocks * BLOCK_BYTES
            );
            return Err(DiskError::NoSpace { message, first });
        }
        map.claimed += wanted;
        Ok(Claim { map: &self.map, blocks: wanted })
    }

    /// Makes the new state of some blocks, which are locked, the one that everybody sees and a
    /// kill leaves behind. Returns whether any of them was data.
    fn settle(
        &self,
        blocks: Range<u64>,
        state: BlockState,
        claim: Option<Claim<'_>>,
    ) -> Result<bool, DiskError> {
        let mut map = lock(&self.map);
        if let Some(mut claim) = claim {
            map.claimed -= std::mem::take(&mut claim.blocks);
        }
        let data_before = map.states.data_blocks();
        let held_data = map.states.count_data(blocks.clone()) > 0;
        let Some(changed) = map.states.set(blocks, state) else { return Ok(held_data) };
        if map.states.data_blocks() < data_before {
            map.full = false;
        }
        let page = |byte: usize| u32::try_from(byte / PAGE_BYTES).expect("fewer than 2^32 pages");
        map.dirty.extend(page(changed.start)..=page(changed.end - 1));
        let put = self.live.put(&map.states, changed);
        drop(map);
        put.map_err(|error| {
            self.fail();
            self.io("write the map of")(error)
        })?;
        Ok(held_data)
    }

    /// Makes a range read as zeroes and gives the space of whole blocks back.
    ///
    /// # Errors
    /// As [`Overlay::write_at`].
    pub fn write_zeroes(&self, range: ByteRange) -> Result<(), DiskError> {
        let range = self.check(range.start(), range.len())?;
        if range.is_empty() {
            return Ok(());
        }
        let _held = wait_for(self.locks.lock(range.align_outward(BLOCK_BYTES)));
        self.check_works()?;
        let first = range.start().next_multiple_of(BLOCK_BYTES).min(range.end());
        let last = self.whole_end(range.end()).max(first);
        self.zero_part(range.start(), first)?;
        self.zero_part(last, range.end())?;
        self.zero_blocks(first, last)
    }

    /// Zeroes a part of one block, which may be empty.
    fn zero_part(&self, start: u64, end: u64) -> Result<(), DiskError> {
        let part = ByteRange::between(start, end).expect("a part does not end before it starts");
        if part.is_empty() || self.run(start, end).0 == BlockState::Zero {
            return Ok(());
        }
        let zeroes = vec![0; usize::try_from(part.len()).expect("shorter than a block")];
        self.write_held(&zeroes, part)
    }

    /// Zeroes whole blocks.
    fn zero_blocks(&self, start: u64, end: u64) -> Result<(), DiskError> {
        if start == end {
            return Ok(());
        }
        let blocks = start / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        let space = ByteRange::between(start, blocks.end * BLOCK_BYTES)
            .expect("blocks do not end before they start");
        if self.settle(blocks, BlockState::Zero, None)? {
            punch(&self.data, space).map_err(self.io("free space in"))?;
        }
        Ok(())
    }

    /// Drops the contents of the whole blocks in a range; they read as zeroes.
    ///
    /// # Errors
    /// `Io`, `Failed`.
    pub fn trim(&self, range: ByteRange) -> Result<(), DiskError> {
        let range = self.check(range.start(), range.len())?;
        let start = range.start().next_multiple_of(BLOCK_BYTES);
        let end = self.whole_end(range.end());
        let Some(inside) = ByteRange::between(start, end).filter(|inside| !inside.is_empty())
        else {
            return Ok(());
        };
        let _held = wait_for(self.locks.lock(inside.align_outward(BLOCK_BYTES)));
        self.check_works()?;
        self.zero_blocks(start, end)
    }

    /// Makes everything durable that was answered before this call.
    ///
    /// # Errors
    /// `Io`, after which the clone may take no more writes; `Failed`.
    pub fn flush(&self) -> Result<(), DiskError> {
        let mut log = lock(&self.log);
        self.check_works()?;
        let pages_max = page_count(self.identity.size_bytes);
        // Copied before the sync: a block that becomes data meanwhile is not durable by it.
        let (whole, pages) = {
            let mut map = lock(&self.map);
            let dirty = std::mem::take(&mut map.dirty);
            let whole = log.has_grown(pages_max).then(|| map.states.bytes().to_vec());
            let copy = |page: &u32| (*page, Box::<[u8]>::from(map.states.page(*page)));
            (whole, dirty.iter().map(copy).collect::<Vec<_>>())
        };
        self.data.datasync().map_err(|error| {
            self.fail();
            self.io("sync")(error)
        })?;
        let stored = match whole {
            _ if pages.is_empty() => return Ok(()),
            Some(states) => MapLog::write_new(&self.storage, &self.dir, &self.identity, &states)
                .map(|new| *log = new),
            None => log.append(&pages),
        };
        stored.map_err(|failure| {
            let path = self.dir.join(MAP_FILE);
            match failure {
                StoreFailure::Unwritten(error) => {
                    lock(&self.map).dirty.extend(pages.iter().map(|(page, _)| *page));
                    DiskError::io("write", &path)(error)
                }
                StoreFailure::Unknown(error) => {
                    self.fail();
                    DiskError::io("sync", &path)(error)
                }
            }
        })
    }
}

/// Frees the space of a range; where the file system can't, the space stays.
fn punch<F: StorageFile>(file: &F, range: ByteRange) -> io::Result<()> {
    match file.punch(range) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
        done => done,
    }
}
