//! Changes and copies on the map: who enters a region, and what is known to differ.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use tidemark_block::ByteRange;
use tidemark_wire::compare::LEAF_BYTES;

use super::map::{Differing, Differs, IntentMap, REGION_BYTES, leaves_of, regions};
use super::region::{ClearUntil, FlushEpoch};

/// A change in flight; it ends when this is dropped.
#[must_use = "a change counts as in flight while this lives"]
pub struct Entered<'a> {
    map: &'a IntentMap,
    range: ByteRange,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let epoch = self.map.epochs().of_change();
        for region in regions(self.range) {
            self.map.region(region).leave(epoch);
        }
    }
}

/// A region, or leaves of one, that a copy is bringing or comparing: forgotten already, so that a
/// change of meanwhile is not. Unless it is [`Settling::done`], it differs again when this is
/// dropped. Counts as a change in flight.
#[must_use = "what is not done differs again"]
pub struct Settling<'a> {
    entered: Entered<'a>,
    was: Differs,
    done: bool,
}

impl Settling<'_> {
    /// The collector has it, or a record in the stream brings it.
    pub fn done(mut self) {
        self.done = true;
    }

    /// What was known to differ.
    #[must_use]
    pub fn was(&self) -> Differs {
        self.was
    }
}

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let region = self.entered.range.start() / REGION_BYTES;
        // The volume may have got smaller since.
        if region >= self.entered.map.regions() {
            return;
        }
        match self.was {
            Differs::Doubt => self.entered.map.doubt_region(region),
            Differs::Leaves(leaves) => self.entered.map.lack(region, leaves),
        }
    }
}

impl IntentMap {
    /// A change of `range` begins: from here on it counts as in flight. The flag is true when all
    /// bits are on stable storage, else they are wanted.
    pub(super) fn enter(&self, range: ByteRange) -> (Entered<'_>, bool) {
        // Relaxed: the epoch that counts is the one at the change's end.
        let epoch = FlushEpoch(self.epoch_hint());
        let mut all_set = true;
        for region in regions(range) {
            if !self.region(region).enter(epoch) {
                all_set = false;
                self.touch(region);
            }
        }
        (Entered { map: self, range }, all_set)
    }

    /// True when all bits of the range are on stable storage.
    pub(super) fn is_set(&self, range: ByteRange) -> bool {
        regions(range).all(|region| self.region(region).is_set())
    }

    /// The regions of the volume that a range touches.
    fn regions_of(&self, range: ByteRange) -> Range<u64> {
        let regions = regions(range);
        let end = regions.end.min(self.regions());
        regions.start.min(end)..end
    }

    /// A change of the stream is missing at the collector: it was not captured, or its record will
    /// not be sent. To be said while the change is in flight, or before its record is released.
    pub fn miss(&self, range: ByteRange) {
        for region in self.regions_of(range) {
            if let Some(part) = self.bytes_of(region).intersect(range) {
                self.lack(region, leaves_of(part));
            }
        }
    }

    fn lack(&self, region: u64, leaves: u64) {
        let leaves = leaves & self.within(region);
        // Release pairs with the load in `lacked`.
        let were = self.leaves(region).fetch_or(leaves, Ordering::AcqRel);
        add(self.lacking(), u64::from((leaves & !were).count_ones()));
        if self.region(region).want() {
            self.touch(region);
            self.wanted().notify_all();
        }
    }

    /// What the collector has of `range` is not known: it has to be compared. Returns when a crash
    /// would be followed by that, too.
    pub fn doubt(&self, range: ByteRange) {
        let mut all_set = true;
        for region in self.regions_of(range) {
            all_set &= self.doubt_one(region);
        }
        if !all_set {
            self.uncover();
            self.wanted().notify_all();
        }
    }

    /// What the collector has of the volume is not known: all of it has to be compared. Returns
    /// when a crash would be followed by that, too.
    pub fn doubt_all(&self) {
        self.doubt(ByteRange::new(0, self.size_bytes()).expect("a size from 0 on"));
    }

    /// Every region that has its bit has to be compared: what a predecessor knew of them is lost.
    pub fn doubt_marked(&self) {
        for region in (0..self.regions()).filter(|region| self.region(*region).is_marked()) {
            self.doubt_region(region);
        }
    }

    /// A write, or a flush, of the backing store failed: what was changed since the flush of `good`
    /// may hold anything, and has to be compared. For a flush that is the newest that had succeeded
    /// when it began: the kernel tells one of two flushes that overlap of the error, and the other
    /// one that all is well.
    pub fn doubt_unflushed(&self, good: FlushEpoch) {
        for region in 0..self.regions() {
            if self.region(region).is_unflushed(good) {
                self.doubt_region(region);
            }
        }
    }

    fn doubt_region(&self, region: u64) {
        if !self.doubt_one(region) {
            self.uncover();
            self.wanted().notify_all();
        }
    }

    /// True when its bit is on stable storage.
    fn doubt_one(&self, region: u64) -> bool {
        let doubted = self.region(region).doubt();
        if doubted.is_new {
            add(self.doubted(), 1);
        }
        if !doubted.is_set {
            self.touch(region);
        }
        doubted.is_set
    }

    /// The first region that begins at byte `from` or behind it and differs.
    #[must_use]
    pub fn next_differing(&self, from: u64) -> Option<Differing> {
        (from.div_ceil(REGION_BYTES)..self.regions()).find_map(|region| {
            let what = if self.region(region).is_doubted() {
                Differs::Doubt
            } else {
                match self.lacked(region) {
                    0 => return None,
                    leaves => Differs::Leaves(leaves),
                }
            };
            // The volume may be cut just now.
            let region = self.bytes_of(region);
            (!region.is_empty()).then_some(Differing { region, what })
        })
    }

    /// The copier, which holds the lock on `range`, is about to read it: what was known to differ
    /// of it is forgotten, so that whatever changes later is known anew. A whole region loses its
    /// doubt as well, part of one only its leaves. The range lies in one region.
    pub fn settle(&self, range: ByteRange) -> Settling<'_> {
        let (entered, _) = self.enter(range);
        let region = range.start() / REGION_BYTES;
        let is_whole = range == self.bytes_of(region);
        let doubted = is_whole && self.region(region).trust();
        if doubted {
            subtract(self.doubted(), 1);
        }
        let brought = if range.is_empty() { 0 } else { leaves_of(range) };
        let were = self.leaves(region).fetch_and(!brought, Ordering::AcqRel) & brought;
        subtract(self.lacking(), u64::from(were.count_ones()));
        let was = if doubted { Differs::Doubt } else { Differs::Leaves(were) };
        Settling { entered, was, done: false }
    }

    /// Every region may differ after a crash, and nothing is known to: what a predecessor had marked
    /// can't be read.
    pub fn mark_all(&self) {
        for region in 0..self.regions() {
            self.region(region).suspect(FlushEpoch(1));
            self.touch(region);
        }
        self.wanted().notify_all();
    }

    /// A region that is behind the end of the volume: nothing of it differs, and its bit is no
    /// longer written with its page.
    pub(super) fn forget(&self, region: u64) {
        self.region(region).drop_bit();
        if self.region(region).trust() {
            subtract(self.doubted(), 1);
        }
        let were = self.leaves(region).swap(0, Ordering::AcqRel);
        subtract(self.lacking(), u64::from(were.count_ones()));
    }

    /// No leaf behind the end of the volume, of whose regions this is the last, is known to be
    /// missing.
    pub(super) fn forget_behind_end(&self, region: u64) {
        let within = self.within(region);
        let were = self.leaves(region).fetch_and(within, Ordering::AcqRel);
        subtract(self.lacking(), u64::from((were & !within).count_ones()));
    }

    /// Clears the bits of all regions that are known to be equal, and gives their number.
    pub(super) fn clear(&self, until: ClearUntil) -> u64 {
        let clear = |region: &u64| {
            let cleared = self.region(*region).clear(until, || self.lacks_nothing(*region));
            if cleared {
                self.touch(*region);
            }
            cleared
        };
        (0..self.regions()).filter(clear).count() as u64
    }

    /// True when no leaf of the region is known to be missing at the collector.
    pub(super) fn lacks_nothing(&self, region: u64) -> bool {
        self.lacked(region) == 0
    }

    /// The leaves of a region that are known to be missing at the collector. A copy that was given
    /// up while the volume was cut may have noted one behind the new end: that is none of it, and
    /// who took it for one would find nothing to bring, again and again.
    fn lacked(&self, region: u64) -> u64 {
        // Acquire pairs with the release in `lack`.
        self.leaves(region).load(Ordering::Acquire) & self.within(region)
    }

    /// The leaves that a region has, as the volume is now.
    fn within(&self, region: u64) -> u64 {
        let bytes = self.bytes_of(region);
        if bytes.is_empty() { 0 } else { leaves_of(bytes) }
    }

    /// How many bytes differ at most.
    #[must_use]
    pub fn differing_bytes(&self) -> u64 {
        // Relaxed: figures for people, no other memory depends on them.
        let doubted = self.doubted().load(Ordering::Relaxed) * REGION_BYTES;
        let lacking = self.lacking().load(Ordering::Relaxed) * LEAF_BYTES;
        (doubted + lacking).min(self.size_bytes())
    }

    /// The newest flush of the backing store that succeeded.
    #[must_use]
    pub fn flushed(&self) -> FlushEpoch {
        self.epochs().good()
    }

    /// A flush of the backing store begins.
    #[must_use]
    pub fn flush_begins(&self) -> FlushEpoch {
        self.epochs().flush_begins()
    }

    /// The flush that began with `epoch` succeeded.
    pub fn flush_ended(&self, epoch: FlushEpoch) {
        self.epochs().flush_ended(epoch);
    }

    /// The regions that were changed since the last good flush, or are being changed.
    pub fn unflushed(&self) -> impl Iterator<Item = ByteRange> {
        let good = self.epochs().good();
        let regions = 0..self.regions();
        let unflushed = regions.filter(move |region| self.region(*region).is_unflushed(good));
        unflushed.map(|region| self.bytes_of(region))
    }

    /// Regions whose bit is set, or wanted.
    #[must_use]
    pub fn marked(&self) -> u64 {
        (0..self.regions()).filter(|region| self.region(*region).is_marked()).count() as u64
    }
}

fn add(figure: &AtomicU64, count: u64) {
    // Relaxed: a figure for people, no other memory depends on it.
    figure.fetch_add(count, Ordering::Relaxed);
}

fn subtract(figure: &AtomicU64, count: u64) {
    // Relaxed: as above.
    figure.fetch_sub(count, Ordering::Relaxed);
}
