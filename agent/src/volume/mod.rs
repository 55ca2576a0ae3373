//! A protected disk: every change is captured in the change ring while it is written to the
//! backing store.
//!
//! What enters are requests of the frontends ([`device`]); what leaves are aligned operations of
//! the backing store and, in the same order wherever they overlap, change records in the ring.
//! A write takes these steps:
//!
//! 1. its payload is received in memory of the ring (`reserve`);
//! 2. it waits for its range ([`tidemark_block::range_lock`]), and until the write-intent log has
//!    the range's bits on stable storage ([`crate::intent_log`]);
//! 3. it takes a slot and with it its sequence number (`claim`); from here on a successor of a
//!    killed agent knows that the range is in flight;
//! 4. the backing store writes from the same memory;
//! 5. the record is committed, which hands it to the shipper, and the client gets its answer.
//!
//! Whatever keeps a change from being captured (ring full, numbers used up) never keeps it from
//! being done: the capture is given up ([`crate::capture`]), what is missing is kept in the
//! write-intent log, and a copy brings the collector level again ([`crate::copy`]). A crash of the process loses nothing of what is in the ring; a crash of the
//! machine loses the ring, which the successor notices.

mod device;
mod resize;
pub mod upkeep;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tidemark_block::engine::BufferPool;
use tidemark_block::range_lock::RangeLock;
use tidemark_block::store::{Store, Units};
use tidemark_block::{ByteRange, Chunk, PAYLOAD_BYTES_MAX, Payload};
use tidemark_wire::body::GapReason;
use tidemark_wire::planted::{self, Bug};
use tidemark_wire::record::RecordSpec;
use tidemark_wire::{RecordKind, VolumeId};

use crate::capture::Capture;
use crate::intent_log::{FlushEpoch, IntentLog};
use crate::ring::{Extent, InFlight, Ring};

pub use resize::{ResizeError, Resized};

/// Buffers for payloads while they can't be captured.
const SPARE_BUFFERS: usize = 64;

/// Memory for the payload of one write.
pub enum VolumePayload {
    /// In the change ring.
    Captured {
        /// First byte on the volume.
        start: u64,
        /// The memory.
        extent: Extent,
    },
    /// Outside of it, while the ring is full or changes are not captured.
    Spare {
        /// First byte on the volume.
        start: u64,
        /// The memory.
        chunk: Chunk,
    },
}

impl Payload for VolumePayload {
    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Captured { extent, .. } => extent.bytes_mut(),
            Self::Spare { chunk, .. } => chunk.as_mut_slice(),
        }
    }
}

/// See the module's documentation.
pub struct Volume<S> {
    id: VolumeId,
    units: Units<S>,
    capture: Arc<Capture>,
    intent: IntentLog<S>,
    locks: RangeLock,
    spare: BufferPool,
    /// See [`resize`].
    written_to: AtomicU64,
    /// A flush that no client had asked for has failed, and no client was told.
    owes_error: AtomicBool,
}

impl<S: Store> Volume<S> {
    /// Protects what `store` holds.
    ///
    /// # Panics
    /// When `capture` and `intent` have not the same map: a programmer's mistake.
    #[must_use]
    pub fn new(id: VolumeId, store: S, capture: Arc<Capture>, intent: IntentLog<S>) -> Self {
        assert!(Arc::ptr_eq(capture.intent(), intent.map()), "one map of what is missing");
        capture.set_size(store.geometry().size_bytes);
        Self {
            id,
            units: Units::new(store),
            capture,
            intent,
            locks: RangeLock::default(),
            spare: BufferPool::new(SPARE_BUFFERS, PAYLOAD_BYTES_MAX),
            written_to: AtomicU64::new(0),
            owes_error: AtomicBool::new(false),
        }
    }

    /// Identity of the volume.
    #[must_use]
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// The name that people use.
    #[must_use]
    pub fn name(&self) -> &str {
        self.capture.name()
    }

    /// Size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.capture.size_bytes()
    }

    /// Smallest unit in which the backing store is written, in bytes.
    #[must_use]
    pub fn unit_bytes(&self) -> u64 {
        self.units.unit_bytes()
    }

    /// The backing store.
    #[must_use]
    pub fn store(&self) -> &S {
        self.units.store()
    }

    /// The stream of the volume's changes.
    #[must_use]
    pub fn capture(&self) -> &Arc<Capture> {
        &self.capture
    }

    /// What the collector may lack, on stable storage.
    #[must_use]
    pub fn intent(&self) -> &IntentLog<S> {
        &self.intent
    }

    /// Makes every change that has ended durable. A failure leaves what was changed since the last
    /// success unknown: it is compared.
    ///
    /// # Errors
    /// The backing store's; also once that of a flush in between that nobody was told of: the kernel
    /// tells of an error only once, and whoever flushes has to hear of what was lost.
    pub async fn sync(&self) -> std::io::Result<()> {
        let map = self.intent.map();
        let epoch = map.flush_begins();
        match self.sync_store().await {
            Err(_) if planted::is(Bug::FlushFailureHidden) => return Ok(()),
            synced => synced?,
        }
        map.flush_ended(epoch);
        // Acquire pairs with the release in `sync_for_itself`.
        if self.owes_error.load(Ordering::Relaxed) && self.owes_error.swap(false, Ordering::Acquire)
        {
            return Err(std::io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }

    /// As [`Volume::sync`], wanted by no client.
    async fn sync_for_itself(&self) -> std::io::Result<()> {
        let synced = self.sync_store().await;
        if synced.is_err() {
            self.owes_error.store(true, Ordering::Release);
        }
        synced
    }

    async fn sync_store(&self) -> std::io::Result<()> {
        let good = self.intent.map().flushed();
        let result = self.units.store().sync().await;
        if result.is_err() {
            self.doubt_since(good);
        }
        result
    }

    /// A change or a flush of the backing store failed: what was changed since the newest flush
    /// that was `good` when it began may hold anything. One that has to be stable is told of the
    /// errors of others, as a flush is.
    fn doubt_since(&self, good: FlushEpoch) {
        self.intent.map().doubt_unflushed(good);
        self.capture.lose(GapReason::BackingError);
    }

    fn ring(&self) -> &Ring {
        self.capture.ring()
    }

    pub(crate) fn units(&self) -> &Units<S> {
        &self.units
    }

    pub(crate) fn locks(&self) -> &RangeLock {
        &self.locks
    }

    /// Reads `range`, whole units and at most one payload long, from the backing store into the
    /// stream: what it holds from here on. The caller holds the lock on it. With `skip_zeroes`
    /// nothing is recorded where all of it is zero; else that is a record without payload. A
    /// range that can't be read is recorded as such. Gives the bytes that have to be sent, `None`
    /// when the ring is full.
    pub(crate) async fn copy_back(&self, range: ByteRange, skip_zeroes: bool) -> Option<u64> {
        let mut at = range.start();
        let mut sent = 0;
        while at < range.end() {
            let mut extent = self.ring().reserve(at, in_memory(range.end() - at))?;
            let piece = ByteRange::new(at, extent.len() as u64).expect("a part of the range");
            // A page that a failed flush has left behind shows what the disk does not hold.
            self.units.store().uncache(piece);
            // The chunk is gone before the extent can be claimed.
            let read = self.units.read(at, extent.lend()).await;
            let claimed = match read.map(|chunk| is_zero(chunk.as_slice())) {
                Ok(true) => {
                    let spec = range_spec(RecordKind::WriteZeroes, piece, 0);
                    (!skip_zeroes).then(|| self.ring().claim(&spec, None))
                }
                Ok(false) => {
                    sent += piece.len();
                    Some(
                        self.ring().claim(&data_spec(RecordKind::ReadBack, piece, 0), Some(extent)),
                    )
                }
                Err(error) => {
                    tracing::error!(
                        volume = self.name(),
                        "{piece} of the backing store can't be read: {error}; the collector is \
                         told so, the volume needs a person"
                    );
                    let errno = error.raw_os_error().unwrap_or(0).unsigned_abs();
                    Some(self.ring().claim(&unreadable_spec(piece, errno), None))
                }
            };
            if let Some(claimed) = claimed {
                claimed.ok()?.commit();
            }
            at = piece.end();
        }
        Some(sent)
    }

    /// Records what a predecessor had in flight when it was killed. The caller serves no client
    /// yet.
    pub async fn recover(&self, in_flight: &[ByteRange]) {
        for range in in_flight {
            let size = ByteRange::new(0, self.size_bytes()).expect("a size from 0 on");
            let Some(range) = range.align_outward(self.unit_bytes()).intersect(size) else {
                continue;
            };
            let mut at = range.start();
            while at < range.end() {
                let len = (range.end() - at).min(PAYLOAD_BYTES_MAX as u64 - at % 4096);
                let piece = ByteRange::new(at, len).expect("a part of a range");
                let _held = self.locks.lock(piece).await;
                if self.copy_back(piece, false).await.is_none() {
                    in_flight.iter().for_each(|range| self.intent.map().doubt(*range));
                    self.capture.lose(GapReason::RingFull);
                    return;
                }
                at += len;
            }
        }
    }

    /// Ends a record as its backing write ended, while it counts as in flight in the write-intent
    /// log. A range that failed holds anything: a copy compares it.
    /// `good` is the newest good flush when it began.
    fn settle(
        &self,
        record: InFlight,
        result: std::io::Result<()>,
        good: FlushEpoch,
    ) -> std::io::Result<()> {
        match result {
            Ok(()) => record.commit(),
            Err(_) => {
                // In this order: a kill in between must leave one of the two in the ring's file,
                // the range in flight or the capture given up.
                if !planted::is(Bug::FailedWriteForgotten) {
                    self.doubt_since(good);
                }
                record.void();
                if planted::is(Bug::FailureHidden) {
                    return Ok(());
                }
            }
        }
        result
    }
}

/// A record of data.
pub(crate) fn data_spec(kind: RecordKind, range: ByteRange, flags: u8) -> RecordSpec {
    RecordSpec {
        kind,
        offset_bytes: range.start(),
        len_bytes: range.len(),
        payload_bytes: length(in_memory(range.len())),
        flags,
        aux: 0,
    }
}

/// A record of a range without a payload.
pub(crate) fn range_spec(kind: RecordKind, range: ByteRange, flags: u8) -> RecordSpec {
    RecordSpec {
        kind,
        offset_bytes: range.start(),
        len_bytes: range.len(),
        payload_bytes: 0,
        flags,
        aux: 0,
    }
}

fn unreadable_spec(range: ByteRange, errno: u32) -> RecordSpec {
    RecordSpec { aux: u64::from(errno), ..range_spec(RecordKind::Unreadable, range, 0) }
}

fn length(len: usize) -> u32 {
    u32::try_from(len).expect("payloads are at most PAYLOAD_BYTES_MAX long")
}

fn in_memory(len_bytes: u64) -> usize {
    usize::try_from(len_bytes).expect("the address space holds a payload")
}

/// True when every byte is zero.
fn is_zero(bytes: &[u8]) -> bool {
    // Comparing with itself moved by one byte turns into a fast memcmp.
    bytes.first().is_none_or(|first| *first == 0 && bytes[1..] == bytes[..bytes.len() - 1])
}
