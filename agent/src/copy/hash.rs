//! Reads nodes of the backing store and hashes their leaves, for copies and verifications, at the
//! rate that the volume's configuration gives.
//!
//! Nothing is locked while leaves are read. What that is good for is the caller's to argue. A
//! write that began before the capture was on is in no record, and may still be on its way to the
//! backing store; it holds the lock on its range until it has landed. So each node is locked once,
//! for no longer than that takes, before its first leaf is read.

use tidemark_block::ByteRange;
use tidemark_block::engine::BufferPool;
use tidemark_block::store::Store;
use tidemark_wire::compare::{
    LEAF_BYTES, LeafHash, NODE_LEAVES, NodeRange, leaf_hash, zero_leaves,
};

use super::pace::Throttle;
use super::{LANES, Outdated, Timer};
use crate::volume::Volume;

/// Extents of a node that are looked at, at most; what lies behind them counts as data.
const EXTENTS_MAX: usize = 64;
/// Bytes that are read at a time: long enough that a disk is read as fast as it can be.
const READ_BYTES: u64 = 1 << 20;
const _: () = assert!(READ_BYTES.is_multiple_of(LEAF_BYTES));

/// See the module's documentation.
pub(super) struct Hasher<'a, S, T> {
    volume: &'a Volume<S>,
    timer: &'a T,
    throttle: Throttle,
    buffers: BufferPool,
}

impl<'a, S: Store, T: Timer> Hasher<'a, S, T> {
    pub(super) fn new(volume: &'a Volume<S>, timer: &'a T) -> Self {
        let buffers = BufferPool::new(LANES, in_memory(READ_BYTES));
        Self { volume, timer, throttle: Throttle::default(), buffers }
    }

    /// Waits until `bytes` may be read from the backing store.
    pub(super) async fn throttle(
        &self,
        bytes: u64,
        is_current: &dyn Fn() -> bool,
    ) -> Result<(), Outdated> {
        let rate = || self.volume.capture().copy_rate();
        while let Some(wait) = self.throttle.take(bytes, rate(), self.timer.now()) {
            self.timer.sleep(wait).await;
            if !is_current() {
                return Err(Outdated);
            }
        }
        Ok(())
    }

    /// Hashes the leaves of a node, as long as `is_current` says so.
    pub(super) async fn node(
        &self,
        node: ByteRange,
        is_current: &dyn Fn() -> bool,
    ) -> Result<Vec<LeafHash>, Outdated> {
        drop(self.volume.locks().lock(node).await);
        let mut leaves = Vec::with_capacity(NODE_LEAVES);
        let mut extents = Vec::with_capacity(EXTENTS_MAX);
        let asked = self.volume.units().store().data_extents(node, EXTENTS_MAX, &mut extents);
        if asked.is_err() {
            extents.clear();
        }
        let mut at = node.start();
        while let Some(ahead) = ByteRange::between(at, node.end()).filter(|r| !r.is_empty()) {
            let zeroes = extents.iter().map(|extent| (extent.len_bytes, extent.zero));
            let zero_len = zero_leaves(zeroes, at - node.start(), ahead.len());
            if zero_len > 0 {
                let zero = ByteRange::new(at, zero_len).unwrap_or(ahead);
                leaves.extend(leaves_of(zero).map(|leaf| LeafHash::of_zeroes(leaf.len())));
                at = zero.end();
                continue;
            }
            let piece = ByteRange::new(at, ahead.len().min(READ_BYTES)).unwrap_or(ahead);
            self.throttle(piece.len(), is_current).await?;
            self.leaves(piece, &mut leaves).await;
            if !is_current() {
                return Err(Outdated);
            }
            at = piece.end();
        }
        Ok(leaves)
    }

    /// Reads and hashes some leaves, at most [`READ_BYTES`] of them. One that can't be read is
    /// unknown: it differs from whatever the collector holds.
    pub(super) async fn leaves(&self, piece: ByteRange, leaves: &mut Vec<LeafHash>) {
        let mut chunk = self.buffers.take().await;
        chunk.truncate(in_memory(piece.len()));
        // A page that a failed flush has left behind shows what the disk does not hold.
        self.volume.units().store().uncache(piece);
        match self.volume.units().read(piece.start(), chunk).await {
            Ok(chunk) => leaves.extend(chunk.as_slice().chunks(LEAF_USIZE).map(leaf_hash)),
            Err(_) => leaves.extend(leaves_of(piece).map(|_| LeafHash::UNKNOWN)),
        }
    }
}

// A leaf fits in memory on every machine.
#[allow(clippy::cast_possible_truncation)]
const LEAF_USIZE: usize = LEAF_BYTES as usize;

fn in_memory(len_bytes: u64) -> usize {
    usize::try_from(len_bytes).unwrap_or(usize::MAX)
}

/// The bytes of one of several nodes.
pub(super) fn node_bytes(nodes: &NodeRange, index: usize) -> ByteRange {
    let (start, len) = nodes.node(index);
    ByteRange::new(start, len).expect("a node lies in a volume")
}

/// The leaves of a range that begins at one.
pub(super) fn leaves_of(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let starts = (range.start()..range.end()).step_by(LEAF_USIZE);
    starts.filter_map(move |at| ByteRange::between(at, range.end().min(at + LEAF_BYTES)))
}
