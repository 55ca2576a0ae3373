//! Makes the collector's copy of a volume equal to it again, under live writes: the first copy
//! for a collector that has none, and the one that closes a gap.
//!
//! One task per volume waits until a copy is wanted ([`crate::capture::phase`]). It puts a gap
//! record (where there is a gap) and a resync-begin record in the stream, turns the capture on,
//! and walks over the volume in several lanes at once ([`lanes`]). Into an image that is known to
//! be all zero the walk sends what is not ([`Walk::bring`]). Everywhere else it compares
//! ([`compare`]): it hashes what the backing store holds, asks the collector which leaves differ,
//! and brings those. When it is through, a resync-end record says that the stream is whole again.
//! Nothing that the collector holds in between is a state of the volume, and none of it is
//! offered. Where the collector's volume has another size than this one, a resize record follows
//! the begin, and nothing is asked before that.
//!
//! To bring a range is to lock it, read it, and claim a read-back record for it while the lock is
//! held: a write to the range is before the read or behind the record, never between.
//!
//! It leaves half of the ring to the clients and keeps to a rate ([`pace`]); when it finds no
//! room it waits, and never gives the capture up itself. A crash loses the walk: the next session
//! finds the span open and compares, which sends nothing again that has arrived.

mod compare;
mod lanes;
mod pace;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidemark_block::engine::{BufferPool, first_of};
use tidemark_block::store::Store;
use tidemark_block::{ByteRange, PAYLOAD_BYTES_MAX, StatusExtent};
use tidemark_wire::RecordKind;
use tidemark_wire::body::Resync;
use tidemark_wire::compare::NodeRange;
use zerocopy::IntoBytes;

use crate::capture::desk::QUESTIONS_MAX;
use crate::capture::phase::{CopyCause, CopyRound};
use crate::random::Random;
use crate::volume::{Volume, range_spec};
use lanes::Lane;
use pace::{LOOK_EVERY, PAUSE_MAX, PAUSE_MIN, Throttle};

pub use crate::clock::{EngineTimer, Timer};

/// Walks over different parts of the volume that go on at the same time. Each has one read or one
/// question in flight and one buffer.
const LANES: usize = 4;
/// Nodes that a lane takes at a time: 32 MiB, and one question.
const LANE_NODES: usize = 8;
const _: () = assert!(LANES <= QUESTIONS_MAX, "each lane has a place on the desk");

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
                "copy begins: {} bytes ({})",
                volume.size_bytes(),
                cause.text()
            );
            let ended = walk.run().await;
            capture.desk().close();
            if ended.is_ok() {
                pause = PAUSE_MIN;
                let (done, _, sent) = capture.progress().get();
                tracing::info!(
                    volume = name,
                    "copy ends: {done} bytes looked at, {sent} sent; the volume is whole at the \
                     collector when this is acknowledged"
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
    throttle: Throttle,
    /// Where the next lane goes on.
    next: Cell<u64>,
    buffers: BufferPool,
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
            throttle: Throttle::default(),
            next: Cell::new(0),
            buffers: BufferPool::new(LANES, PAYLOAD_BYTES_MAX),
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
        progress.total_bytes.store(self.volume.size_bytes(), Ordering::Relaxed);
        let body = self.body(0);
        capture.phases().begin(self.round, || {
            let gap = match self.cause.gap() {
                None => None,
                Some(reason) => Some(capture.stamp(RecordKind::Gap, reason as u64, &[])?),
            };
            let begin = capture.stamp(RecordKind::ResyncBegin, 0, body.as_bytes())?;
            let sized = capture.stamp_size(begin)?;
            capture.ring().turn_capture_on();
            capture.desk().open(self.id, sized);
            Some(gap.unwrap_or(begin))
        })
    }

    async fn run(&self) -> Result<(), Outdated> {
        let lanes: Vec<Lane<'_>> = (0..LANES).map(|_| Box::pin(self.lane()) as Lane<'_>).collect();
        lanes::all(lanes).await;
        loop {
            let sent = self.volume.capture().progress().sent_bytes.load(Ordering::Relaxed);
            let body = self.body(sent);
            let end = || self.volume.capture().stamp(RecordKind::ResyncEnd, 0, body.as_bytes());
            if self.volume.capture().phases().end(self.round, end) {
                return Ok(());
            }
            self.wait_for_memory().await?;
        }
    }

    /// Walks until nothing is left or the round is outdated, which ends all lanes.
    async fn lane(&self) {
        while let Some(nodes) = self.take() {
            let done = match self.cause {
                CopyCause::Initial => self.bring(bytes_of(&nodes)).await,
                CopyCause::Seeded | CopyCause::Asked | CopyCause::Gap(_) => {
                    self.compare(&nodes).await
                }
            };
            if done.is_err() {
                return;
            }
            add(&self.volume.capture().progress().done_bytes, nodes.len_bytes());
        }
    }

    fn take(&self) -> Option<NodeRange> {
        let nodes = NodeRange::next(self.next.get(), self.volume.size_bytes(), LANE_NODES)?;
        self.next.set(nodes.end_bytes());
        Some(nodes)
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
                self.throttle(piece.len()).await?;
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
        // A copy that was outdated by a resize may have a range that is not on the volume any more.
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

    /// Waits until `bytes` may be read from the backing store.
    async fn throttle(&self, bytes: u64) -> Result<(), Outdated> {
        while let Some(wait) =
            self.throttle.take(bytes, self.volume.capture().copy_rate(), self.timer.now())
        {
            self.timer.sleep(wait).await;
            if !self.is_current() {
                return Err(Outdated);
            }
        }
        Ok(())
    }

    fn body(&self, sent_bytes: u64) -> Resync {
        Resync {
            id: self.id,
            total_bytes: self.volume.size_bytes().into(),
            sent_bytes: sent_bytes.into(),
            initial: u8::from(self.cause == CopyCause::Initial),
            reserved: [0; 7],
        }
    }
}

fn bytes_of(nodes: &NodeRange) -> ByteRange {
    ByteRange::new(nodes.offset_bytes(), nodes.len_bytes()).expect("nodes lie in a volume")
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
