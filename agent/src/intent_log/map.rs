//! The map of what the collector may lack, in memory.
//!
//! Per region (4 MiB, a node of the comparison) one word with its bit and its doubt ([`region`]),
//! and one with a bit for each leaf (64 KiB) that the collector is known to lack.
//!
//! The map is *covered* while every region that differs has its bit on stable storage. Changes keep
//! it so by themselves. A doubt about a region without a bit takes the cover back, durably, before
//! its caller goes on ([`Coverage`]); it is given again when the bits are written. A crash while
//! there is no cover is followed by a comparison of the whole volume.
//!
//! [`region`]: super::region

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use tidemark_block::ByteRange;
use tidemark_block::engine::Event;
use tidemark_wire::compare::{LEAF_BYTES, NODE_BYTES, NODE_LEAVES};
use tidemark_wire::limits::VOLUME_BYTES_MAX;

use super::format::{PAGES_MAX, REGIONS_PER_PAGE, page_of, pages_of};
use super::region::{Epochs, Region};

/// Bytes of a region.
pub const REGION_BYTES: u64 = NODE_BYTES;
/// Regions for which there is room at least.
const REGIONS_MIN: u64 = 64;
const _: () = assert!(NODE_LEAVES == 64, "one bit of a word for each leaf");

/// What is known of a region that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Differs {
    /// Any of its leaves may: it has to be compared.
    Doubt,
    /// These leaves do: bit `n` is the `n`th.
    Leaves(u64),
}

/// A region that differs, or may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Differing {
    /// The region, cut at the end of the volume.
    pub region: ByteRange,
    /// What of it.
    pub what: Differs,
}

/// Keeps, durably, whether the map is covered.
pub trait Coverage: Send + Sync {
    /// From here on a crash finds it so.
    ///
    /// # Errors
    /// The operating system's; a crash then finds what was kept before.
    fn keep(&self, covered: bool) -> io::Result<()>;
}

/// Of a map that no crash has to find.
struct Uncovered;

impl Coverage for Uncovered {
    fn keep(&self, _: bool) -> io::Result<()> {
        Ok(())
    }
}

/// Whether the map is covered, and how often that was taken back.
#[derive(Clone, Copy)]
struct Cover {
    covered: bool,
    round: u64,
}

struct Words {
    region: AtomicU64,
    leaves: AtomicU64,
}

/// See the module's documentation.
pub struct IntentMap {
    size_bytes: AtomicU64,
    /// Regions of the first part; each part behind it has as many as all before it.
    first_regions: u64,
    parts: Box<[OnceLock<Box<[Words]>>]>,
    epoch: AtomicU64,
    good: AtomicU64,
    /// Figures for people.
    doubted: AtomicU64,
    lacking: AtomicU64,
    /// The log can't be written: bits are wanted, and nobody waits for them.
    failed: AtomicBool,
    /// Pages of the log that are not as the words are.
    dirty: Box<[AtomicBool]>,
    /// A bit is wanted by somebody who does not put it on stable storage himself.
    wanted: Event,
    cover: Mutex<Cover>,
    coverage: Box<dyn Coverage>,
}

impl IntentMap {
    /// The map of a volume of `size_bytes`, of which nothing differs. What `coverage` keeps is
    /// `covered`.
    #[must_use]
    pub fn new(size_bytes: u64, covered: bool, coverage: Box<dyn Coverage>) -> Self {
        let first_regions = regions_of(size_bytes).max(REGIONS_MIN);
        let parts_max = (regions_of(VOLUME_BYTES_MAX) / first_regions).max(1).ilog2() + 2;
        let map = Self {
            size_bytes: AtomicU64::new(size_bytes),
            first_regions,
            parts: (0..parts_max).map(|_| OnceLock::new()).collect(),
            epoch: AtomicU64::new(1),
            good: AtomicU64::new(0),
            doubted: AtomicU64::new(0),
            lacking: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            dirty: (0..PAGES_MAX).map(|_| AtomicBool::new(false)).collect(),
            wanted: Event::new(),
            cover: Mutex::new(Cover { covered, round: 0 }),
            coverage,
        };
        map.parts[0].get_or_init(|| part(first_regions));
        map
    }

    /// The map of a volume of `size_bytes`, of which nothing differs, that no crash has to find: for
    /// tests that are not about it.
    #[must_use]
    pub fn volatile(size_bytes: u64) -> Self {
        Self::new(size_bytes, true, Box::new(Uncovered))
    }

    /// Size of the volume in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        // Acquire pairs with the store in `resize`.
        self.size_bytes.load(Ordering::Acquire)
    }

    /// The volume has `size_bytes` from here on. What was known to differ behind its end differs no
    /// more; the caller holds the lock on all of it.
    pub(crate) fn resize(&self, size_bytes: u64) {
        let old = self.regions();
        // Release pairs with the load in `size_bytes`.
        self.size_bytes.store(size_bytes, Ordering::Release);
        (self.regions()..old).for_each(|region| self.forget(region));
        if let Some(last) = self.regions().checked_sub(1) {
            self.forget_behind_end(last);
        }
    }

    /// Number of regions, the last of which may be shorter than the others.
    #[must_use]
    pub fn regions(&self) -> u64 {
        regions_of(self.size_bytes())
    }

    fn words(&self, region: u64) -> &Words {
        let (part, at) = if region < self.first_regions {
            (0, region)
        } else {
            let power = (region / self.first_regions).ilog2();
            (power as usize + 1, region - (self.first_regions << power))
        };
        let regions = self.first_regions << part.saturating_sub(1);
        let words = self.parts[part].get_or_init(|| self::part(regions));
        &words[usize::try_from(at).expect("a part fits in memory")]
    }

    pub(super) fn region(&self, region: u64) -> Region<'_, AtomicU64> {
        Region(&self.words(region).region)
    }

    pub(super) fn leaves(&self, region: u64) -> &AtomicU64 {
        &self.words(region).leaves
    }

    /// The present flush epoch, or one before: no other memory depends on it.
    pub(super) fn epoch_hint(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    pub(super) fn doubted(&self) -> &AtomicU64 {
        &self.doubted
    }

    pub(super) fn lacking(&self) -> &AtomicU64 {
        &self.lacking
    }

    pub(super) fn epochs(&self) -> Epochs<'_, AtomicU64> {
        Epochs { now: &self.epoch, good: &self.good }
    }

    /// The bytes of a region.
    pub(super) fn bytes_of(&self, region: u64) -> ByteRange {
        let start = region * REGION_BYTES;
        let end = (start + REGION_BYTES).min(self.size_bytes()).max(start);
        ByteRange::between(start, end).expect("a region of a volume")
    }

    /// Happens when a bit is wanted by somebody who does not write it himself.
    pub(super) fn wanted(&self) -> &Event {
        &self.wanted
    }

    /// True when bits can't be put on stable storage: a crash of the machine is followed by a
    /// comparison of the whole volume.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        // SeqCst: with the fences of `set_failed` and `is_failed_behind_wish`.
        self.failed.load(Ordering::SeqCst)
    }

    /// The same for who has just wanted bits. Either the failure is over, and who made it so writes
    /// these bits, or it is seen here.
    pub(super) fn is_failed_behind_wish(&self) -> bool {
        fence(Ordering::SeqCst);
        self.is_failed()
    }

    pub(super) fn set_failed(&self, failed: bool) {
        self.failed.store(failed, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// The page of the log that has the region's bit is not as its word.
    pub(super) fn touch(&self, region: u64) {
        // Release pairs with the swap in `take_dirty`: who takes the page sees the word.
        self.dirty[page_of(region)].store(true, Ordering::Release);
    }

    /// The same of every page.
    pub(super) fn touch_all(&self) {
        let pages = &self.dirty[..pages_of(self.size_bytes())];
        // Release as in `touch`.
        pages.iter().for_each(|dirty| dirty.store(true, Ordering::Release));
    }

    /// Wants the bit of a region; whoever writes the page next writes it, too.
    pub(super) fn want(&self, region: u64) {
        if self.region(region).want() {
            self.touch(region);
        }
    }

    /// Where bits are in memory only, wanted ones are set at once.
    pub(super) fn set_all_wanted(&self) {
        for page in 0..self.dirty.len() {
            if self.take_dirty(page) {
                let first = page as u64 * REGIONS_PER_PAGE;
                let regions = first..self.regions().min(first + REGIONS_PER_PAGE);
                regions.for_each(|region| self.region(region).set());
            }
        }
    }

    /// True when `page` is not as the words are; it counts as written from here on.
    pub(super) fn take_dirty(&self, page: usize) -> bool {
        let flag = &self.dirty[page];
        // Acquire pairs with the release in `touch`.
        flag.load(Ordering::Relaxed) && flag.swap(false, Ordering::AcqRel)
    }

    /// True when a page is not as the words are.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty.iter().any(|flag| flag.load(Ordering::Acquire))
    }

    fn cover(&self) -> MutexGuard<'_, Cover> {
        // The state is valid between any two statements of a holder.
        self.cover.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A crash is followed by a whole comparison from here on; returns when that is durable, or
    /// can't be made so.
    pub(crate) fn uncover(&self) {
        let mut cover = self.cover();
        cover.round += 1;
        if !cover.covered {
            return;
        }
        cover.covered = false;
        if let Err(error) = self.coverage.keep(false) {
            tracing::error!(
                "the write-intent log does not cover what changes, and that can't be noted: \
                 {error}; if this machine crashes before that is mended, compare the volume with \
                 its copy (tidemark resync VOLUME --full)"
            );
        }
    }

    /// What tells whether the cover was taken back meanwhile.
    pub(super) fn cover_round(&self) -> u64 {
        self.cover().round
    }

    /// Everything that was wanted when the round was `round` is on stable storage.
    pub(super) fn recover_cover(&self, round: u64) {
        let mut cover = self.cover();
        if cover.covered || cover.round != round {
            return;
        }
        match self.coverage.keep(true) {
            Ok(()) => cover.covered = true,
            Err(error) => tracing::warn!(
                "that the write-intent log covers everything again can't be noted: {error}; a \
                 crash of this machine is followed by a comparison of the whole volume"
            ),
        }
    }

    /// True when every region that differs has its bit on stable storage.
    #[must_use]
    pub fn is_covered(&self) -> bool {
        self.cover().covered
    }
}

fn regions_of(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(REGION_BYTES)
}

/// The regions that a range touches.
pub(super) fn regions(range: ByteRange) -> std::ops::Range<u64> {
    if range.is_empty() {
        return 0..0;
    }
    range.start() / REGION_BYTES..range.end().div_ceil(REGION_BYTES)
}

/// A bit for each leaf that a range, which is not empty and within one region, touches.
pub(super) fn leaves_of(range: ByteRange) -> u64 {
    let first = range.start() % REGION_BYTES / LEAF_BYTES;
    let last = (range.end() - 1) % REGION_BYTES / LEAF_BYTES;
    u64::MAX << first & u64::MAX >> (63 - last)
}

fn part(regions: u64) -> Box<[Words]> {
    let words = |_| Words { region: AtomicU64::new(0), leaves: AtomicU64::new(0) };
    (0..regions).map(words).collect()
}

#[cfg(test)]
#[path = "map_tests.rs"]
mod tests;
