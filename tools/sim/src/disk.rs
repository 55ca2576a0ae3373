//! The protected machine's disk, behind the same seam as a real one.
//!
//! Fault model. A write lands when its time is over, or at a kill of the agent: not at all, whole
//! or in any of its sectors. What has landed is in a volatile cache until a sync that begins
//! later returns; at a power cut any of its sectors may be lost, also of what was in flight. A
//! write, read or sync can be told to fail: a failed write may have landed in any of its sectors,
//! a failed sync promises nothing, and any of them may be durable. Behind a page cache it may also
//! have taken writes for made that never will be: no later sync says so, and reads show them until
//! the cache is told to forget ([`Store::uncache`]). A write that has to be stable is told of the
//! errors of others, as a sync is. A range can be unreadable until it is written. Durable bytes do
//! not rot. The model is told of every sector.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidemark_block::store::{Store, StoreGeometry};
use tidemark_block::{ByteRange, Chunk, Durability, StatusExtent};
use tidemark_collector::storage::pages::Pages;

use crate::model::{Model, SECTOR};
use crate::random::Random;
use crate::time::Time;

const EIO: i32 = 5;
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// How a disk behaves for all of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskSpec {
    /// Its size at first.
    pub(crate) size_bytes: usize,
    /// Unit of its reads and writes.
    pub(crate) unit_bytes: u32,
    pub(crate) can_punch: bool,
    /// It says where it has holes.
    pub(crate) tells_holes: bool,
    /// Its reads and writes go through a page cache.
    pub(crate) is_cached: bool,
}

#[derive(Clone)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Zero { at: usize, len: usize },
}

struct State {
    live: Pages,
    durable: Pages,
    /// Landed and not synced, oldest first.
    unsynced: Vec<(u64, Change)>,
    flying: BTreeMap<u64, Change>,
    next: u64,
    failing_writes: u64,
    failing_reads: u64,
    failing_syncs: u64,
    /// Can't be read before it is written.
    bad: Vec<ByteRange>,
    failures: u64,
    /// Syncs that have taken for made what is not.
    losses: u64,
    /// Times that its size has changed.
    resizes: u64,
}

/// See the module's documentation. It outlives the agent.
pub(crate) struct Disk {
    spec: DiskSpec,
    state: Mutex<State>,
    model: Arc<Model>,
    time: Arc<Time>,
    random: Arc<Random>,
}

impl Change {
    fn place(&self) -> (usize, usize) {
        match self {
            Self::Write { at, bytes } => (*at, bytes.len()),
            Self::Zero { at, len } => (*at, *len),
        }
    }

    /// Applies what of it lies in a run of the disk.
    fn apply(&self, image: &mut Pages, from: usize, to: usize) {
        match self {
            Self::Write { at, bytes } => image.write(from, &bytes[from - at..to - at]),
            Self::Zero { .. } => image.zero(from, to - from),
        }
    }

    /// A part of it.
    fn part(&self, from: usize, to: usize) -> Self {
        match self {
            Self::Write { at, bytes } => {
                Self::Write { at: from, bytes: bytes[from - at..to - at].to_vec() }
            }
            Self::Zero { .. } => Self::Zero { at: from, len: to - from },
        }
    }

    /// What of it lies outside of a run.
    fn without(&self, from: usize, to: usize) -> impl Iterator<Item = Self> + use<> {
        let (start, end) = whole(self);
        let sides = [(start, end.min(from)), (start.max(to), end)];
        let rest: Vec<Self> = sides
            .into_iter()
            .filter(|(from, to)| from < to)
            .map(|(from, to)| self.part(from, to))
            .collect();
        rest.into_iter()
    }

    /// Runs of it: some of its sectors. A large zeroing goes in larger pieces.
    fn some(&self, random: &Random) -> Vec<(usize, usize)> {
        let (at, len) = self.place();
        let step = if len > 64 * SECTOR { len / 64 / SECTOR * SECTOR } else { SECTOR };
        let pieces = (at..at + len).step_by(step).map(|from| (from, (from + step).min(at + len)));
        pieces.filter(|_| random.chance(50)).collect()
    }
}

impl Disk {
    pub(crate) fn new(
        spec: DiskSpec,
        model: Arc<Model>,
        time: Arc<Time>,
        random: Arc<Random>,
    ) -> Arc<Self> {
        let live = Pages::zeroed(spec.size_bytes);
        let state = State {
            durable: live.clone(),
            live,
            unsynced: Vec::new(),
            flying: BTreeMap::new(),
            next: 0,
            failing_writes: 0,
            failing_reads: 0,
            failing_syncs: 0,
            bad: Vec::new(),
            failures: 0,
            losses: 0,
            resizes: 0,
        };
        Arc::new(Self { spec, state: Mutex::new(state), model, time, random })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn spec(&self) -> DiskSpec {
        self.spec
    }

    /// Puts bytes there before the run begins.
    pub(crate) fn prepare(&self, at: usize, bytes: &[u8]) {
        let mut state = self.lock();
        state.live.write(at, bytes);
        state.durable.write(at, bytes);
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.lock().live.len()
    }

    /// Times that its size has changed.
    pub(crate) fn resizes(&self) -> u64 {
        self.lock().resizes
    }

    /// Gives it another size at once; what was behind the end is gone for good.
    pub(crate) fn resize(&self, size_bytes: usize) {
        let mut state = self.lock();
        state.live.resize(size_bytes);
        state.durable.resize(size_bytes);
        let unsynced = std::mem::take(&mut state.unsynced);
        let rest = |(id, change): (u64, Change)| {
            change.without(size_bytes, usize::MAX).map(move |change| (id, change))
        };
        state.unsynced = unsynced.into_iter().flat_map(rest).collect();
        state.resizes += 1;
    }

    /// What reads see.
    pub(crate) fn image(&self) -> Pages {
        self.lock().live.clone()
    }

    /// Puts another image in place of what is there, durably.
    pub(crate) fn put_back(&self, image: &Pages) {
        let mut state = self.lock();
        state.resizes += u64::from(image.len() != state.live.len());
        state.live = image.clone();
        state.durable = image.clone();
        state.unsynced.clear();
        state.bad.clear();
        let live = state.live.clone();
        drop(state);
        self.model.fate(false, |at, bytes| live.read(at, bytes));
    }

    /// Operations that have failed so far.
    pub(crate) fn failures(&self) -> u64 {
        self.lock().failures
    }

    /// Syncs so far that have lost what was written.
    pub(crate) fn losses(&self) -> u64 {
        self.lock().losses
    }

    pub(crate) fn fail_writes(&self, count: u64) {
        self.lock().failing_writes = count;
    }

    pub(crate) fn fail_reads(&self, count: u64) {
        self.lock().failing_reads = count;
    }

    pub(crate) fn fail_syncs(&self, count: u64) {
        self.lock().failing_syncs = count;
    }

    pub(crate) fn spoil(&self, range: ByteRange) {
        self.lock().bad.push(range);
    }

    /// From here on nothing fails.
    pub(crate) fn heal(&self) {
        let mut state = self.lock();
        (state.failing_writes, state.failing_reads, state.failing_syncs) = (0, 0, 0);
        state.bad.clear();
    }

    /// The agent was killed: what it had in flight lands in whatever part.
    pub(crate) fn agent_died(&self) {
        let flying = std::mem::take(&mut self.lock().flying);
        for change in flying.into_values() {
            match self.random.below(3) {
                0 => {}
                1 => self.land(&change, &[whole(&change)]),
                _ => self.land(&change, &change.some(&self.random)),
            }
        }
    }

    /// The machine lost its power: see the fault model.
    pub(crate) fn power_cut(&self) {
        self.agent_died();
        let live = {
            let mut state = self.lock();
            let mut after = state.durable.clone();
            for (_, change) in std::mem::take(&mut state.unsynced) {
                for (from, to) in change.some(&self.random) {
                    change.apply(&mut after, from, to);
                }
            }
            state.durable = after.clone();
            state.live = after.clone();
            after
        };
        self.model.fate(true, |at, bytes| live.read(at, bytes));
    }

    /// Puts runs of a change on the disk.
    fn land(&self, change: &Change, runs: &[(usize, usize)]) {
        let end = self.size_bytes();
        let inside = runs.iter().map(|(from, to)| (*from, (*to).min(end)));
        for (from, to) in inside.filter(|(from, to)| from < to) {
            {
                let mut state = self.lock();
                change.apply(&mut state.live, from, to);
                let written = ByteRange::new(from as u64, (to - from) as u64);
                state.bad.retain(|bad| written.is_none_or(|run| bad.intersect(run).is_none()));
                let id = state.next;
                state.next += 1;
                state.unsynced.push((id, change.part(from, to)));
            }
            match change {
                Change::Write { at, bytes } => {
                    self.model.landed(from, &bytes[from - at..to - at]);
                }
                Change::Zero { .. } => {
                    for at in (from..to).step_by(ZEROES.len()) {
                        self.model.landed(at, &ZEROES[..(to - at).min(ZEROES.len())]);
                    }
                }
            }
        }
    }

    async fn pause(&self) {
        let micros = match self.random.below(40) {
            0 => self.random.between(2_000, 30_000),
            _ => self.random.between(20, 300),
        };
        self.time.sleep(Duration::from_micros(micros)).await;
    }

    async fn change(self: &Arc<Self>, change: Change, durability: Durability) -> io::Result<()> {
        let flight = Flight::new(self, change.clone());
        self.pause().await;
        drop(flight);
        if self.fails(|state| &mut state.failing_writes) {
            if let Change::Write { at, bytes } = &change {
                self.model.failed(*at, bytes);
            }
            let landed = change.some(&self.random);
            self.land(&change, &landed);
            return Err(io::Error::from_raw_os_error(EIO));
        }
        self.land(&change, &[whole(&change)]);
        if durability == Durability::Stable && self.fails(|state| &mut state.failing_syncs) {
            self.lose_some(u64::MAX);
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let mut state = self.lock();
        if whole(&change).1 > state.live.len() {
            state.failures += 1;
            return Err(io::Error::from_raw_os_error(EIO));
        }
        drop(state);
        if durability == Durability::Stable {
            let (from, to) = whole(&change);
            let mut state = self.lock();
            change.apply(&mut state.durable, from, to);
            // What came before it to the same place can't come back.
            let unsynced = std::mem::take(&mut state.unsynced);
            let rest = |(id, change): (u64, Change)| change.without(from, to).map(move |c| (id, c));
            state.unsynced = unsynced.into_iter().flat_map(rest).collect();
        }
        Ok(())
    }

    /// Whether the next operation of a sort fails.
    fn fails(&self, which: impl FnOnce(&mut State) -> &mut u64) -> bool {
        let mut state = self.lock();
        let left = which(&mut state);
        let fails = *left > 0;
        *left = left.saturating_sub(1);
        state.failures += u64::from(fails);
        fails
    }

    async fn sync(&self) -> io::Result<()> {
        let upto = self.lock().next;
        self.pause().await;
        if self.fails(|state| &mut state.failing_syncs) {
            self.lose_some(upto);
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let mut state = self.lock();
        let State { durable, unsynced, .. } = &mut *state;
        for (_, change) in unsynced.extract_if(.., |(id, _)| *id < upto) {
            let (from, to) = whole(&change);
            change.apply(durable, from, to);
        }
        Ok(())
    }

    /// A sync of what had landed before `upto` has failed: of each change it may have made some
    /// durable, have taken some for made, and have left some for the next one.
    fn lose_some(&self, upto: u64) {
        if !self.spec.is_cached {
            return;
        }
        let mut lost = Vec::new();
        let mut state = self.lock();
        let mut left: Vec<(u64, Change)> = Vec::new();
        for (id, change) in std::mem::take(&mut state.unsynced) {
            // What a file system zeroes is its own matter, and not the page cache's.
            let fates = if matches!(change, Change::Write { .. }) { 3 } else { 2 };
            let fate = if id < upto { self.random.below(fates) } else { 0 };
            if fate > 0 {
                let (from, to) = whole(&change);
                // What came before it to the same place can't come back.
                left = left
                    .into_iter()
                    .flat_map(|(id, change)| change.without(from, to).map(move |c| (id, c)))
                    .collect();
                if fate == 1 {
                    change.apply(&mut state.durable, from, to);
                } else {
                    lost.push((from, to));
                }
            } else {
                left.push((id, change));
            }
        }
        state.unsynced = left;
        state.losses += u64::from(!lost.is_empty());
        drop(state);
        lost.into_iter().for_each(|(from, to)| self.model.lost(from, to));
    }

    /// What a range holds without the page cache is what is read from here on.
    pub(crate) fn uncache(&self, start: usize, end: usize) {
        let live = {
            let mut state = self.lock();
            let end = end.min(state.live.len());
            if state.losses == 0 || start >= end {
                return;
            }
            let mut is = state.durable.clone();
            for (_, change) in &state.unsynced {
                let (from, to) = whole(change);
                change.apply(&mut is, from, to);
            }
            let mut bytes = vec![0; end - start];
            is.read(start, &mut bytes);
            state.live.write(start, &bytes);
            state.live.clone()
        };
        self.model.fate(false, |at, bytes| live.read(at, bytes));
    }

    fn read(&self, buf: &mut Chunk, offset: u64) -> io::Result<()> {
        let range = ByteRange::new(offset, buf.len() as u64);
        let fails = self.fails(|state| &mut state.failing_reads);
        let mut state = self.lock();
        let is_bad =
            state.bad.iter().any(|bad| range.is_some_and(|range| bad.intersect(range).is_some()));
        let is_behind = range.is_none_or(|range| place(range.end()) > state.live.len());
        if fails || is_bad || is_behind {
            state.failures += u64::from(!fails);
            return Err(io::Error::from_raw_os_error(EIO));
        }
        state.live.read(place(offset), buf.as_mut_slice());
        Ok(())
    }
}

fn whole(change: &Change) -> (usize, usize) {
    let (at, len) = change.place();
    (at, at + len)
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).expect("a simulated disk fits in memory")
}

/// A change on its way; gone from the disk's list when its future is.
struct Flight<'a> {
    disk: &'a Disk,
    id: u64,
}

impl<'a> Flight<'a> {
    fn new(disk: &'a Disk, change: Change) -> Self {
        let mut state = disk.lock();
        let id = state.next;
        state.next += 1;
        state.flying.insert(id, change);
        Self { disk, id }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.disk.lock().flying.remove(&self.id);
    }
}

/// The disk as one agent's process has it open.
pub(crate) struct SimStore {
    disk: Arc<Disk>,
    /// Its size when it was opened, in bytes.
    size_bytes: usize,
}

impl SimStore {
    pub(crate) fn open(disk: Arc<Disk>) -> Self {
        let size_bytes = disk.size_bytes();
        Self { disk, size_bytes }
    }
}

impl Store for SimStore {
    fn geometry(&self) -> StoreGeometry {
        let spec = self.disk.spec;
        StoreGeometry {
            size_bytes: self.size_bytes as u64,
            io_align_bytes: spec.unit_bytes,
            mem_align_bytes: spec.unit_bytes,
            discard: spec.can_punch,
            read_only: false,
        }
    }

    fn size_now(&self) -> io::Result<u64> {
        Ok(self.disk.size_bytes() as u64)
    }

    fn uncache(&self, range: ByteRange) {
        self.disk.uncache(place(range.start()), place(range.end()));
    }

    async fn read_at(&self, mut buf: Chunk, offset: u64) -> (io::Result<()>, Chunk) {
        self.disk.pause().await;
        let read = self.disk.read(&mut buf, offset);
        (read, buf)
    }

    async fn write_at(
        &self,
        buf: Chunk,
        offset: u64,
        durability: Durability,
    ) -> (io::Result<()>, Chunk) {
        let change = Change::Write { at: place(offset), bytes: buf.as_slice().to_vec() };
        (self.disk.change(change, durability).await, buf)
    }

    fn sync(&self) -> impl Future<Output = io::Result<()>> {
        self.disk.sync()
    }

    async fn punch(&self, range: ByteRange) -> io::Result<()> {
        if !self.disk.spec.can_punch {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.zero(range).await
    }

    async fn zero(&self, range: ByteRange) -> io::Result<()> {
        let change = Change::Zero { at: place(range.start()), len: place(range.len()) };
        self.disk.change(change, Durability::Cached).await
    }

    fn data_extents(
        &self,
        range: ByteRange,
        max: usize,
        out: &mut Vec<StatusExtent>,
    ) -> io::Result<()> {
        if !self.disk.spec.tells_holes {
            out.push(StatusExtent { len_bytes: range.len(), hole: false, zero: false });
            return Ok(());
        }
        let state = self.disk.lock();
        let (mut at, end) = (place(range.start()), place(range.end()));
        for _ in 0..max {
            let (len, kept) = state.live.run(at, end);
            if len == 0 {
                break;
            }
            out.push(StatusExtent { len_bytes: len as u64, hole: !kept, zero: !kept });
            at += len;
        }
        Ok(())
    }
}
