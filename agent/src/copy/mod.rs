//! Makes the collector's copy of a volume equal to it again, under live writes: the first copy
//! for a collector that has none, the one that closes a gap, and the one that a person wants.
//!
//! One task per volume waits until a copy is wanted ([`crate::capture::phase`]). It puts a gap
//! record (where there is a gap) and a resync-begin record in the stream, turns the capture on,
//! and walks in several lanes at once ([`lanes`]) over what the map of what the collector may lack
//! ([`crate::intent_log`]) names, and over nothing else:
//!
//! - leaves that are known to be missing are brought, and no hash is asked for;
//! - regions in doubt are compared ([`compare`]): it hashes what the backing store holds, asks the
//!   collector which leaves differ, and brings those;
//! - into an image that is known to be all zero, everything that is not zero is brought.
//!
//! When nothing is left, a resync-end record says that the stream is whole again. Nothing that the
//! collector holds in between is a state of the volume, and none of it is offered. Where the
//! collector's volume has another size than this one, a resize record follows the begin, and
//! nothing is asked before that.
//!
//! To bring a range is to lock it, read it, and claim a read-back record for it while the lock is
//! held: a write to the range is before the read or behind the record, never between.
//!
//! What a lane takes in hand is forgotten by the map before it is read
//! ([`IntentMap::settle`](crate::intent_log::map::IntentMap::settle)), so a change that is missed
//! later is known anew; until the records that bring it are in the stream it counts as differing
//! again when the copy is given up. Records that are in the stream and are not sent after all put
//! their ranges back into the map themselves. The walk therefore ends only when its begin is at
//! the collector, and with it all that is dropped before it is in the map.
//!
//! It leaves half of the ring to the clients and keeps to a rate ([`pace`]); when it finds no
//! room it waits, and never gives the capture up itself. A crash loses the walk, and of the map
//! all but the regions' bits: the next copy compares those regions.

mod compare;
mod hash;
mod lanes;
mod pace;
#[cfg(test)]
mod tests;
pub mod verify;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidemark_block::engine::first_of;
use tidemark_block::store::Store;
use tidemark_block::{ByteRange, PAYLOAD_BYTES_MAX, StatusExtent};
use tidemark_wire::body::Resync;
use tidemark_wire::compare::{NODE_BYTES, NodeRange};
use tidemark_wire::{RecordKind, Seq};
use zerocopy::IntoBytes;

use crate::capture::desk::QUESTIONS_MAX;
use crate::capture::phase::{CopyCause, CopyRound};
use crate::intent_log::{Differing, Differs, Settling};
use crate::random::Random;
use crate::volume::{Volume, range_spec};
use hash::{Hasher, leaves_of, node_bytes};
use lanes::Lane;
use pace::{LOOK_EVERY, PAUSE_MAX, PAUSE_MIN};

pub use crate::clock::{EngineTimer, Timer};

/// Walks over different parts of the volume that go on at the same time. Each has one read or one
/// question in flight and one buffer.
const LANES: usize = 8;
/// Nodes that a lane takes at a time, at most: 32 MiB, and one question.
const LANE_NODES: usize = 8;
const _: () = assert!(2 * LANES <= QUESTIONS_MAX, "each lane has a place on the desk");

/// The round is outdated: another copy is wanted, or none.
struct Outdated;

/// Makes every copy of the volume that is wanted, until the volume is taken down.
pub async fn run<S: Store, T: Timer>(volume: Arc<Volume<S>>, random: Arc<dyn Random>, timer: T) {
    let (capture, name) = (Arc::clone(volume.capture()), volume.name());
    let mut pause = PAUSE_MIN;
    while let Some((cause, round)) = capture.phases().wanted().await {
        let walk = Walk::new(&volume, &timer, cause, round, random.bytes());
        if walk.room().await.is_ok() && walk.begin() {
            tracing::info!(
                volume = name,
                "copy begins: {} bytes may differ ({})",
                capture.progress().get().1,
                cause.text()
            );
            let begun = timer.now();
            let ended = walk.run().await;
            capture.desk().close(walk.id);
            if ended.is_ok() {
                pause = PAUSE_MIN;
                let (done, _, sent) = capture.progress().get();
                tracing::info!(
                    volume = name,
                    "copy ends: {done} bytes looked at, {sent} sent in {:.1} s; the volume is \
                     whole at the collector when this is acknowledged",
                    (timer.now() - begun).as_secs_f64()
                );
                continue;
            }
            tracing::info!(volume = name, "the copy is given up before its end");
        }
        timer.sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// One copy.
struct Walk<'a, S, T> {
    volume: &'a Volume<S>,
    timer: &'a T,
    cause: CopyCause,
    round: CopyRound,
    id: [u8; 16],
    hasher: Hasher<'a, S, T>,
    /// The resync-begin record, or the resize behind it: the collector answers from no older state.
    begun: Cell<Seq>,
    /// Where the next lane goes on.
    next: Cell<u64>,
}

impl<'a, S: Store, T: Timer> Walk<'a, S, T> {
    fn new(
        volume: &'a Volume<S>,
        timer: &'a T,
        cause: CopyCause,
        round: CopyRound,
        id: [u8; 16],
    ) -> Self {
        Self {
            volume,
            timer,
            cause,
            round,
            id,
            hasher: Hasher::new(volume, timer),
            begun: Cell::new(Seq(0)),
            next: Cell::new(0),
        }
    }

    fn is_current(&self) -> bool {
        self.volume.capture().phases().is_current(self.round)
    }

    fn begin(&self) -> bool {
        let capture = self.volume.capture();
        let progress = capture.progress();
        // Relaxed: figures for people, no other memory depends on them.
        progress.done_bytes.store(0, Ordering::Relaxed);
        progress.sent_bytes.store(0, Ordering::Relaxed);
        progress.total_bytes.store(capture.intent().differing_bytes(), Ordering::Relaxed);
        let body = self.body();
        capture.phases().begin(self.round, || {
            let gap = match self.cause.gap() {
                None => None,
                Some(reason) => Some(capture.stamp(RecordKind::Gap, reason as u64, &[])?),
            };
            let begin = capture.stamp(RecordKind::ResyncBegin, 0, body.as_bytes())?;
            let sized = capture.stamp_size(begin)?;
            capture.ring().turn_capture_on();
            capture.desk().open(self.id);
            self.begun.set(sized);
            Some(gap.unwrap_or(begin))
        })
    }

    async fn run(&self) -> Result<(), Outdated> {
        loop {
            self.next.set(0);
            let lanes: Vec<Lane<'_>> =
                (0..LANES).map(|_| Box::pin(self.lane()) as Lane<'_>).collect();
            lanes::all(lanes).await;
            self.wait_for_begin().await?;
            let capture = self.volume.capture();
            let is_level = || capture.intent().next_differing(0).is_none();
            if !is_level() {
                continue;
            }
            // Looked at again where the phase can't change: a wish for a whole comparison marks the
            // map first, and then either finds this copy running or ended.
            let end = || {
                let record = || capture.stamp(RecordKind::ResyncEnd, 0, self.body().as_bytes());
                is_level().then(record).flatten()
            };
            if capture.phases().end(self.round, end) {
                return Ok(());
            }
            self.wait_for_memory().await?;
        }
    }

    /// Waits until the collector has the copy's begin.
    async fn wait_for_begin(&self) -> Result<(), Outdated> {
        let capture = self.volume.capture();
        loop {
            let released = capture.released().wait();
            if !self.is_current() {
                return Err(Outdated);
            }
            if capture.ring().released_seq() >= self.begun.get() || capture.ring().is_empty() {
                return Ok(());
            }
            first_of(released, self.timer.sleep(LOOK_EVERY)).await;
        }
    }

    /// Walks until nothing is left or the round is outdated, which ends all lanes.
    async fn lane(&self) {
        while let Some(item) = self.take() {
            let done = match item {
                Item::Lacking { region, leaves } => self.bring_leaves(region, leaves).await,
                Item::Doubted(nodes) if self.cause == CopyCause::Initial => {
                    self.bring_nodes(&nodes).await
                }
                Item::Doubted(nodes) => self.compare(&nodes).await,
            };
            let Ok(bytes) = done else { return };
            self.advance(bytes);
        }
    }

    fn take(&self) -> Option<Item> {
        let map = self.volume.capture().intent();
        let Differing { region, what } = map.next_differing(self.next.get())?;
        let mut end = region.end();
        let item = match what {
            Differs::Leaves(leaves) => Item::Lacking { region, leaves },
            Differs::Doubt => {
                let nodes_max = region.start() + LANE_NODES as u64 * NODE_BYTES;
                while let Some(behind) = map.next_differing(end)
                    && (behind.region.start(), behind.what) == (end, Differs::Doubt)
                    && behind.region.end() <= nodes_max
                {
                    end = behind.region.end();
                }
                let nodes = NodeRange::new(region.start(), end - region.start());
                Item::Doubted(nodes.expect("regions are nodes"))
            }
        };
        self.next.set(end);
        Some(item)
    }

    /// So many bytes of what differs are done.
    fn advance(&self, bytes: u64) {
        let capture = self.volume.capture();
        let progress = capture.progress();
        add(&progress.done_bytes, bytes);
        let (done, _, _) = progress.get();
        let known = done + capture.intent().differing_bytes();
        // Relaxed: figures for people, no other memory depends on them.
        progress.total_bytes.fetch_max(known, Ordering::Relaxed);
    }

    /// Takes a region, or leaves of it, in hand; what changes there from now on is known anew.
    async fn settle(&self, range: ByteRange) -> Result<Settling<'_>, Outdated> {
        let _held = self.volume.locks().lock(range).await;
        // A copy that was outdated by a resize may have a range that is not on the volume any more.
        if !self.is_current() {
            return Err(Outdated);
        }
        Ok(self.volume.capture().intent().settle(range))
    }

    /// Brings leaves of a region, and gives their bytes.
    async fn bring_leaves(&self, region: ByteRange, leaves: u64) -> Result<u64, Outdated> {
        let mut bytes = 0;
        for run in runs(region, leaves) {
            let settling = self.settle(run).await?;
            self.bring(run).await?;
            settling.done();
            bytes += run.len();
        }
        Ok(bytes)
    }

    /// Brings all that is not zero of some nodes, and gives their bytes.
    async fn bring_nodes(&self, nodes: &NodeRange) -> Result<u64, Outdated> {
        for index in 0..nodes.node_count() {
            let node = node_bytes(nodes, index);
            let settling = self.settle(node).await?;
            self.bring(node).await?;
            settling.done();
        }
        Ok(nodes.len_bytes())
    }

    /// Brings a range of whole units into the stream. What reads as zeroes becomes a record
    /// without payload, or none in a first copy.
    async fn bring(&self, range: ByteRange) -> Result<(), Outdated> {
        let mut at = range.start();
        while let Some(ahead) = ByteRange::between(at, range.end()).filter(|r| !r.is_empty()) {
            let extent = extent_at(self.volume, ahead);
            // No client waits for more than the piece that is read.
            let longest = if extent.zero { ahead.len() } else { PAYLOAD_BYTES_MAX as u64 };
            let len = extent.len_bytes.min(longest);
            let piece = ByteRange::new(at, self.whole_units(len, ahead.len())).unwrap_or(ahead);
            self.room().await?;
            if !extent.zero {
                self.hasher.throttle(piece.len(), &|| self.is_current()).await?;
            }
            match self.bring_piece(piece).await {
                Some(end) => at = end,
                None => self.wait_for_memory().await?,
            }
            if extent.zero {
                // Nothing was waited for, however long the hole is.
                lanes::turn().await;
            }
        }
        Ok(())
    }

    /// Brings one piece, or as much of it as a payload holds, and gives the end of that; `None`
    /// when the ring is full.
    async fn bring_piece(&self, range: ByteRange) -> Option<u64> {
        let held = self.volume.locks().lock(range).await;
        // As in `settle`.
        if !self.is_current() {
            return None;
        }
        // What was a hole may have been written before the lock was held.
        let extent = extent_at(self.volume, range);
        if extent.zero && extent.len_bytes >= range.len() {
            return self.zeroes(range).then_some(range.end());
        }
        let piece = ByteRange::new(range.start(), range.len().min(PAYLOAD_BYTES_MAX as u64))?;
        let sent = self.volume.copy_back(piece, self.cause == CopyCause::Initial).await;
        drop(held);
        add(&self.volume.capture().progress().sent_bytes, sent?);
        Some(piece.end())
    }

    /// A length of whole units, at least one.
    fn whole_units(&self, len: u64, max: u64) -> u64 {
        let unit = self.volume.unit_bytes();
        (len - len % unit).max(unit).min(max)
    }

    fn zeroes(&self, range: ByteRange) -> bool {
        if self.cause == CopyCause::Initial {
            return true;
        }
        let spec = range_spec(RecordKind::WriteZeroes, range, 0);
        let record = self.volume.capture().ring().claim(&spec, None).ok();
        record.map(|record| record.commit()).is_some()
    }

    /// Waits until at most half of the ring is in use. It also looks every now and then: memory
    /// that is given back without a record was in use by a client, and releases nothing.
    async fn room(&self) -> Result<(), Outdated> {
        let capture = self.volume.capture();
        loop {
            let released = capture.released().wait();
            if !self.is_current() {
                return Err(Outdated);
            }
            if !capture.ring().used().is_beyond_half() {
                return Ok(());
            }
            first_of(released, self.timer.sleep(LOOK_EVERY)).await;
        }
    }

    /// The ring had no memory, slot or number, whatever it seemed to have before.
    async fn wait_for_memory(&self) -> Result<(), Outdated> {
        self.timer.sleep(LOOK_EVERY).await;
        self.room().await
    }

    /// What is to be looked at and what was sent, as far as it is known by now.
    fn body(&self) -> Resync {
        let (_, total, sent) = self.volume.capture().progress().get();
        Resync {
            id: self.id,
            total_bytes: total.into(),
            sent_bytes: sent.into(),
            initial: u8::from(self.cause == CopyCause::Initial),
            reserved: [0; 7],
        }
    }
}

/// What a lane takes in hand.
enum Item {
    /// What differs in these nodes is not known.
    Doubted(NodeRange),
    /// Leaves of a region, a bit for each, are missing.
    Lacking { region: ByteRange, leaves: u64 },
}

/// The ranges of neighbouring leaves of a region; `leaves` has a bit for each.
fn runs(region: ByteRange, leaves: u64) -> Vec<ByteRange> {
    let mut runs: Vec<ByteRange> = Vec::new();
    let wanted = leaves_of(region).enumerate().filter(|(at, _)| leaves & (1 << at) != 0);
    for (_, leaf) in wanted {
        match runs.last_mut().filter(|last| last.end() == leaf.start()) {
            Some(last) => *last = ByteRange::between(last.start(), leaf.end()).unwrap_or(leaf),
            None => runs.push(leaf),
        }
    }
    runs
}

/// What the backing store has at the start of `range`; data where it can't tell.
fn extent_at<S: Store>(volume: &Volume<S>, range: ByteRange) -> StatusExtent {
    let mut extents = Vec::with_capacity(1);
    let asked = volume.units().store().data_extents(range, 1, &mut extents);
    match (asked, extents.first()) {
        (Ok(()), Some(extent)) => *extent,
        _ => StatusExtent { len_bytes: range.len(), hole: false, zero: false },
    }
}

fn add(figure: &AtomicU64, bytes: u64) {
    // Relaxed: a figure for people, no other memory depends on it.
    figure.fetch_add(bytes, Ordering::Relaxed);
}
