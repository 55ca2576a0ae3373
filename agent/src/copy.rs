//! Copies a whole volume into the stream under live writes: the first copy for a collector that
//! has none, and the one that closes a gap.
//!
//! One task per volume waits until a copy is wanted ([`crate::capture::phase`]). It puts a gap
//! record (unless the collector's image is empty) and a resync-begin record in the stream, turns
//! the capture on, and then walks over the volume: it locks a range, reads it from the backing
//! store, and claims a read-back record for it while it still holds the lock. A write to the
//! range is before the read or behind the record, never between. When it is through, a resync-end
//! record says that the stream is whole again. Nothing that the collector holds in between is a
//! state of the volume, and none of it is offered.
//!
//! It leaves half of the ring to the clients. Into an empty image holes and zeroes are not sent;
//! else a zeroed range is one record without payload, however long. A crash loses the whole
//! copy: the next session finds the span open and begins anew.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use tidemark_block::engine::sleep;
use tidemark_block::store::Store;
use tidemark_block::{ByteRange, PAYLOAD_BYTES_MAX, StatusExtent};
use tidemark_wire::body::{GapReason, Resync};
use tidemark_wire::{RecordKind, Seq};
use zerocopy::IntoBytes;

use crate::capture::phase::{CopyCause, CopyRound};
use crate::random::Random;
use crate::volume::{Volume, range_spec};

/// Longest range that is looked at and recorded as zeroes in one step.
const ZERO_STEP_BYTES: u64 = 1 << 30;
/// First and longest pause before a copy is tried again. There is one because a try may fail at
/// once, with nothing to wait for, and this task must not keep its thread from the clients.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often the copier looks for room by itself.
const ROOM_LOOK_EVERY: Duration = Duration::from_millis(50);
/// Extents asked for in one step.
const EXTENTS_MAX: usize = 1;

/// How one round ended.
enum Round {
    Done,
    Outdated,
    RingFull,
}

/// Makes every copy of the volume that is wanted, until the volume is taken down.
pub async fn run<S: Store>(volume: Arc<Volume<S>>, random: Arc<dyn Random>) {
    let mut pause = PAUSE_MIN;
    while let Some((cause, round)) = volume.capture().phases().wanted().await {
        room(&volume, round).await;
        let mut copy = Copy { volume: &volume, cause, round, id: random.bytes() };
        if !copy.begin() {
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            continue;
        }
        tracing::info!(
            volume = volume.name(),
            "copy begins: {} bytes ({})",
            volume.size_bytes(),
            cause.text()
        );
        match copy.walk().await {
            Round::Done => {
                pause = PAUSE_MIN;
                tracing::info!(
                    volume = volume.name(),
                    "copy ends: {} bytes looked at, {} sent; the volume is whole at the collector \
                     when this is acknowledged",
                    volume.capture().progress().done_bytes.load(Ordering::Relaxed),
                    volume.capture().progress().sent_bytes.load(Ordering::Relaxed)
                );
                continue;
            }
            Round::Outdated => {
                tracing::info!(volume = volume.name(), "the copy is given up before its end");
            }
            Round::RingFull => volume.capture().lose(GapReason::RingFull),
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Waits until at most half of the ring is in use, or the round is outdated. It also looks every
/// now and then: memory that is given back without a record was in use by a client, and releases
/// nothing.
async fn room<S: Store>(volume: &Volume<S>, round: CopyRound) {
    loop {
        let released = volume.capture().released().wait();
        if !volume.capture().ring().used().is_beyond_half()
            || !volume.capture().phases().is_current(round)
        {
            return;
        }
        first_of(released, sleep(ROOM_LOOK_EVERY)).await;
    }
}

async fn first_of(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    let (mut one, mut other) = (pin!(one), pin!(other));
    poll_fn(|cx| match one.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => other.as_mut().poll(cx),
    })
    .await;
}

struct Copy<'a, S> {
    volume: &'a Volume<S>,
    cause: CopyCause,
    round: CopyRound,
    id: [u8; 16],
}

impl<S: Store> Copy<'_, S> {
    fn begin(&mut self) -> bool {
        let progress = self.volume.capture().progress();
        // Relaxed: figures for people, no other memory depends on them.
        progress.done_bytes.store(0, Ordering::Relaxed);
        progress.sent_bytes.store(0, Ordering::Relaxed);
        progress.total_bytes.store(self.volume.size_bytes(), Ordering::Relaxed);
        let body = self.body(0);
        self.volume.capture().phases().begin(self.round, || {
            let gap = match self.cause {
                CopyCause::Initial => None,
                CopyCause::Gap(reason) => {
                    Some(self.volume.capture().stamp(RecordKind::Gap, reason as u64, &[])?)
                }
            };
            let begin = self.volume.capture().stamp(RecordKind::ResyncBegin, 0, body.as_bytes())?;
            self.volume.capture().ring().turn_capture_on();
            Some(gap.unwrap_or(begin))
        })
    }

    async fn walk(&self) -> Round {
        let size = self.volume.size_bytes();
        let mut at = 0;
        while at < size {
            room(self.volume, self.round).await;
            if !self.volume.capture().phases().is_current(self.round) {
                return Round::Outdated;
            }
            match self.step(at, size).await {
                Some(next) => at = next,
                None => return Round::RingFull,
            }
            self.volume.capture().progress().done_bytes.store(at, Ordering::Relaxed);
        }
        let end = || -> Option<Seq> {
            let sent = self.volume.capture().progress().sent_bytes.load(Ordering::Relaxed);
            self.volume.capture().stamp(RecordKind::ResyncEnd, 0, self.body(sent).as_bytes())
        };
        if self.volume.capture().phases().end(self.round, end) {
            Round::Done
        } else if self.volume.capture().phases().is_current(self.round) {
            Round::RingFull
        } else {
            Round::Outdated
        }
    }

    /// Brings the range from `at` on into the stream and gives its end; `None` when the ring is
    /// full.
    async fn step(&self, at: u64, size: u64) -> Option<u64> {
        let ahead = ByteRange::between(at, size.min(at.saturating_add(ZERO_STEP_BYTES)))?;
        let extent = extent_at(self.volume, ahead);
        // No client waits for more than the piece that is read.
        let step = if extent.zero { ZERO_STEP_BYTES } else { PAYLOAD_BYTES_MAX as u64 };
        let len = extent.len_bytes.min(ahead.len()).min(step);
        let range = ByteRange::new(at, self.aligned(len, ahead.len()))?;
        let held = self.volume.locks().lock(range).await;
        // What was a hole may have been written before the lock was held.
        let extent = extent_at(self.volume, range);
        if extent.zero && extent.len_bytes >= range.len() {
            return self.zeroes(range).then_some(range.end());
        }
        let piece = ByteRange::new(at, range.len().min(PAYLOAD_BYTES_MAX as u64))?;
        let done = self.volume.copy_back(piece, self.cause == CopyCause::Initial).await;
        drop(held);
        done.map(|sent| {
            add(&self.volume.capture().progress().sent_bytes, sent);
            piece.end()
        })
    }

    /// A length of whole units, at least one.
    fn aligned(&self, len: u64, max: u64) -> u64 {
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

/// What the backing store has at the start of `range`; data where it can't tell.
fn extent_at<S: Store>(volume: &Volume<S>, range: ByteRange) -> StatusExtent {
    let mut extents = Vec::with_capacity(EXTENTS_MAX);
    let asked = volume.units().store().data_extents(range, EXTENTS_MAX, &mut extents);
    match (asked, extents.first()) {
        (Ok(()), Some(extent)) => *extent,
        _ => StatusExtent { len_bytes: range.len(), hole: false, zero: false },
    }
}

fn add(figure: &AtomicU64, bytes: u64) {
    figure.fetch_add(bytes, Ordering::Relaxed);
}
