//! The write-intent log: a small persistent map of what may differ from the collector.
//!
//! Before a change reaches the backing store, the bits of the regions that it touches are on stable
//! storage ([`IntentLog::enter`]). A bit clears when the collector has everything of its region and
//! a flush of the backing store began after the last change ended ([`sweep`]). So after a power cut
//! the regions that have a bit are compared, and no others; a hot set of regions keeps its bits and
//! costs nothing.
//!
//! What enters: changes before they are done, what is known to be missing at the collector, flushes
//! of the backing store. What leaves: what a copy has to bring or compare ([`map`]). The map in
//! memory says it exactly, to the leaf; a crash loses that, and leaves the bits.
//!
//! Bits are written in groups and without a thread: the first change that needs one leads, writes
//! every page that has a wanted bit, syncs once and wakes the others. Who can't write the log fails
//! it for good: changes go on, a crash is followed by a whole comparison ([`map::Coverage`]), until
//! another file takes its place ([`IntentLog::adopt`]).

pub mod file;
pub mod format;
pub mod map;
mod marks;
pub mod region;
pub mod sweep;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidemark_block::ByteRange;
use tidemark_block::engine::Event;
use tidemark_block::store::Store;
use tidemark_wire::planted::{self, Bug};

use file::IntentFile;
use map::{IntentMap, regions};

pub use map::{Coverage, Differing, Differs};
pub use marks::{Entered, Settling};
pub use region::FlushEpoch;

/// Regions whose bits are wanted ahead of changes that go through the volume from front to back.
const AHEAD: u64 = 15;

/// What people and tests want to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IntentFigures {
    /// Regions whose bit is set, or wanted.
    pub marked: u64,
    /// Times that the log was synced.
    pub syncs: u64,
    /// Pages that were written.
    pub pages: u64,
    /// Bits that were cleared.
    pub cleared: u64,
    /// Bytes that differ from the collector, at most.
    pub differing_bytes: u64,
}

#[derive(Default)]
struct Counters {
    syncs: AtomicU64,
    pages: AtomicU64,
    cleared: AtomicU64,
}

/// Where bits are kept.
enum Place<S> {
    /// In memory only.
    Nowhere,
    File(Arc<IntentFile<S>>),
    /// Could not be written.
    Failed,
}

/// See the module's documentation.
pub struct IntentLog<S> {
    map: Arc<IntentMap>,
    place: Mutex<Place<S>>,
    /// Somebody writes the file.
    leading: AtomicBool,
    /// Whoever led, leads no more.
    written: Event,
    /// The region that a change wants next, if changes go from front to back.
    next: AtomicU64,
    counters: Counters,
}

/// The role of writing the file; it passes on when this is dropped.
struct Lead<'a> {
    leading: &'a AtomicBool,
    written: &'a Event,
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        // Release pairs with the swap in `lead`.
        self.leading.store(false, Ordering::Release);
        self.written.notify_all();
    }
}

impl<S: Store> IntentLog<S> {
    /// Bits in memory only, of a volume of which nothing differs: for tests that are not about
    /// crashes of the machine.
    #[must_use]
    pub fn volatile(size_bytes: u64) -> Self {
        Self::at(Arc::new(IntentMap::volatile(size_bytes)), Place::Nowhere)
    }

    /// The log of `map`, whose bits are those that `file` holds.
    #[must_use]
    pub fn in_file(map: Arc<IntentMap>, file: IntentFile<S>) -> Self {
        Self::at(map, Place::File(Arc::new(file)))
    }

    /// The log of `map` while there is no file: as after a failure.
    #[must_use]
    pub fn failed(map: Arc<IntentMap>) -> Self {
        map.uncover();
        map.set_failed(true);
        Self::at(map, Place::Failed)
    }

    fn at(map: Arc<IntentMap>, place: Place<S>) -> Self {
        Self {
            map,
            place: Mutex::new(place),
            leading: AtomicBool::new(false),
            written: Event::new(),
            next: AtomicU64::new(u64::MAX),
            counters: Counters::default(),
        }
    }

    /// What differs.
    #[must_use]
    pub fn map(&self) -> &Arc<IntentMap> {
        &self.map
    }

    fn place(&self) -> MutexGuard<'_, Place<S>> {
        // The place is replaced whole.
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change of `range` is about to begin; its range is locked. Waits until the bits of the
    /// range are on stable storage, or the log has failed. The change counts as in flight until
    /// what is given is dropped, which has to be when the backing store is done with it.
    pub async fn enter(&self, range: ByteRange) -> Entered<'_> {
        let (entered, all_set) = self.map.enter(range);
        if !all_set && !planted::is(Bug::IntentBitDropped) {
            self.want_ahead(range);
            self.make_stable(range).await;
        }
        entered
    }

    async fn make_stable(&self, range: ByteRange) {
        loop {
            let written = self.written.wait();
            // Behind the wish for the bits: see `IntentMap::is_failed`.
            if self.map.is_set(range) || self.map.is_failed_behind_wish() {
                return;
            }
            match self.lead() {
                Some(lead) => self.commit(&lead).await,
                None => written.await,
            }
        }
    }

    /// Wants the bits of the regions behind `range` when it goes on where the last wish ended.
    fn want_ahead(&self, range: ByteRange) {
        let range = regions(range);
        // Relaxed: a guess, which costs a sync or some bits at most.
        let expected = self.next.load(Ordering::Relaxed);
        let mut next = range.end;
        if range.contains(&expected) || range.end == expected {
            next = (range.end + AHEAD).min(self.map.regions()).max(range.end);
            (range.end..next).for_each(|region| self.map.want(region));
        }
        self.next.store(next, Ordering::Relaxed);
    }

    fn lead(&self) -> Option<Lead<'_>> {
        // Acquire pairs with the release of who led before.
        let taken = self.leading.swap(true, Ordering::AcqRel);
        (!taken).then(|| Lead { leading: &self.leading, written: &self.written })
    }

    /// Puts every wanted bit on stable storage.
    async fn commit(&self, _lead: &Lead<'_>) {
        let file = match &*self.place() {
            Place::File(file) => Arc::clone(file),
            Place::Nowhere => {
                self.map.set_all_wanted();
                return;
            }
            Place::Failed => return,
        };
        let round = self.map.cover_round();
        match file.write_dirty(&self.map).await {
            Ok(0) => {}
            Ok(pages) => {
                // Relaxed: figures for people.
                self.counters.syncs.fetch_add(1, Ordering::Relaxed);
                self.counters.pages.fetch_add(pages, Ordering::Relaxed);
                self.map.recover_cover(round);
            }
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&self, error: &io::Error) {
        tracing::error!(
            "the write-intent log can't be written: {error}; clients go on, and a crash of this \
             machine would be followed by a comparison of the whole volume; a new file is tried \
             every minute, make room or look at the disk of the state directory"
        );
        // In this order: no change goes on without its bit before a crash is known to need it.
        self.map.uncover();
        self.map.set_failed(true);
        *self.place() = Place::Failed;
    }

    /// Puts whatever is wanted on stable storage, after who does so already.
    pub async fn write(&self) {
        loop {
            let written = self.written.wait();
            match self.lead() {
                Some(lead) => return self.commit(&lead).await,
                None => written.await,
            }
        }
    }

    /// Goes on in another file, which holds no bit yet, after a failure. True when everything that
    /// may differ has its bit in it.
    pub async fn adopt(&self, file: IntentFile<S>) -> bool {
        loop {
            let written = self.written.wait();
            let Some(lead) = self.lead() else {
                written.await;
                continue;
            };
            *self.place() = Place::File(Arc::new(file));
            // From here on changes wait for the lead. Those that went on before had wanted their
            // bits, and the pages are made after this.
            self.map.uncover();
            self.map.set_failed(false);
            self.map.touch_all();
            self.commit(&lead).await;
            return !self.map.is_failed();
        }
    }

    /// What people and tests want to know.
    #[must_use]
    pub fn figures(&self) -> IntentFigures {
        // Relaxed: figures for people.
        let load = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        IntentFigures {
            marked: self.map.marked(),
            syncs: load(&self.counters.syncs),
            pages: load(&self.counters.pages),
            cleared: load(&self.counters.cleared),
            differing_bytes: self.map.differing_bytes(),
        }
    }
}

#[cfg(test)]
mod crash_tests;
