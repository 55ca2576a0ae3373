//! One part of a comparison: hash some nodes, ask the collector, bring what differs.
//!
//! Nothing is locked while leaves are read and hashed, nor while the answer is on its way. That is
//! right because every change is captured meanwhile ([`tidemark_wire::compare`] has the argument),
//! with one thing to see to: a write that began before the capture was on is in no record, and may
//! still be on its way to the backing store. It holds the lock on its range until it has landed.
//! So each node is locked once, for no longer than that takes, before its first leaf is read.

use tidemark_block::store::Store;
use tidemark_block::{ByteRange, PAYLOAD_BYTES_MAX};
use tidemark_wire::compare::{
    DifferNode, LEAF_BYTES, LeafHash, NODE_LEAVES, NodeHash, NodeRange, leaf_hash, node_hash,
    zero_leaves,
};

use super::{Outdated, Timer, Walk};

/// Extents of a node that are looked at, at most; what lies behind them counts as data.
const EXTENTS_MAX: usize = 64;
/// Bytes that are read and hashed at a time.
const READ_BYTES: u64 = PAYLOAD_BYTES_MAX as u64;
const _: () = assert!(READ_BYTES.is_multiple_of(LEAF_BYTES));

impl<S: Store, T: Timer> Walk<'_, S, T> {
    /// Compares some nodes, and brings the leaves that differ.
    pub(super) async fn compare(&self, nodes: &NodeRange) -> Result<(), Outdated> {
        let mut leaves = Vec::with_capacity(nodes.node_count());
        for index in 0..nodes.node_count() {
            leaves.push(self.hash_node(node_bytes(nodes, index)).await?);
        }
        let hashes: Vec<NodeHash> = leaves.iter().map(|leaves| node_hash(leaves)).collect();
        let capture = self.volume.capture();
        capture.desk().post(*nodes, hashes);
        capture.ring().wake_consumer();
        let answer = capture.desk().answer(*nodes, || self.is_current()).await;
        for node in answer.ok_or(Outdated)? {
            for range in differing(&leaves[node.index], &node, node_bytes(nodes, node.index)) {
                self.bring(range).await?;
            }
        }
        Ok(())
    }

    async fn hash_node(&self, node: ByteRange) -> Result<Vec<LeafHash>, Outdated> {
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
            self.throttle(piece.len()).await?;
            self.hash_piece(piece, &mut leaves).await;
            if !self.is_current() {
                return Err(Outdated);
            }
            at = piece.end();
        }
        Ok(leaves)
    }

    /// Reads and hashes some leaves. One that can't be read is unknown: it differs from whatever
    /// the collector holds, and is read again and recorded as what it then is.
    async fn hash_piece(&self, piece: ByteRange, leaves: &mut Vec<LeafHash>) {
        let mut chunk = self.buffers.take().await;
        chunk.truncate(usize::try_from(piece.len()).unwrap_or(usize::MAX));
        match self.volume.units().read(piece.start(), chunk).await {
            Ok(chunk) => leaves.extend(chunk.as_slice().chunks(LEAF_USIZE).map(leaf_hash)),
            Err(_) => leaves.extend(leaves_of(piece).map(|_| LeafHash::UNKNOWN)),
        }
    }
}

// A leaf fits in memory on every machine.
#[allow(clippy::cast_possible_truncation)]
const LEAF_USIZE: usize = LEAF_BYTES as usize;

fn node_bytes(nodes: &NodeRange, index: usize) -> ByteRange {
    let (start, len) = nodes.node(index);
    ByteRange::new(start, len).expect("a node lies in a volume")
}

/// The leaves of a range that begins at one.
fn leaves_of(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let starts = (range.start()..range.end()).step_by(LEAF_USIZE);
    starts.filter_map(move |at| ByteRange::between(at, range.end().min(at + LEAF_BYTES)))
}

/// The ranges of neighbouring leaves that differ.
pub(super) fn differing(ours: &[LeafHash], theirs: &DifferNode, node: ByteRange) -> Vec<ByteRange> {
    let mut ranges: Vec<ByteRange> = Vec::new();
    let pairs = leaves_of(node).zip(ours.iter().zip(&theirs.leaves));
    for (leaf, _) in pairs.filter(|(_, (ours, theirs))| !ours.matches(**theirs)) {
        match ranges.last_mut().filter(|last| last.end() == leaf.start()) {
            Some(last) => *last = ByteRange::between(last.start(), leaf.end()).unwrap_or(leaf),
            None => ranges.push(leaf),
        }
    }
    ranges
}
