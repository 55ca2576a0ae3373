//! One part of a comparison: hash some nodes, ask the collector, bring what differs.
//!
//! Nothing is locked while leaves are read and hashed, nor while the answer is on its way. That is
//! right because every change is captured meanwhile ([`tidemark_wire::compare`] has the argument).

use tidemark_block::ByteRange;
use tidemark_block::store::Store;
use tidemark_wire::compare::{Compare, DifferNode, LeafHash, NodeHash, NodeRange, node_hash};

use super::hash::{leaves_of, node_bytes};
use super::{Outdated, Timer, Walk};
use crate::intent_log::Settling;

impl<S: Store, T: Timer> Walk<'_, S, T> {
    /// Compares some nodes, brings the leaves that differ, and gives the bytes of the nodes.
    pub(super) async fn compare(&self, nodes: &NodeRange) -> Result<u64, Outdated> {
        let is_current = || self.is_current();
        let mut leaves = Vec::with_capacity(nodes.node_count());
        let mut settling = Vec::with_capacity(nodes.node_count());
        for index in 0..nodes.node_count() {
            settling.push(self.settle(node_bytes(nodes, index)).await?);
            leaves.push(self.hasher.node(node_bytes(nodes, index), &is_current).await?);
        }
        let hashes: Vec<NodeHash> = leaves.iter().map(|leaves| node_hash(leaves)).collect();
        let capture = self.volume.capture();
        capture.desk().post(Compare {
            id: self.id,
            min_seq: self.begun.get(),
            exact: false,
            range: *nodes,
            nodes: hashes,
        });
        capture.ring().wake_consumer();
        let answer = capture.desk().answer(self.id, *nodes, is_current).await;
        for node in answer.ok_or(Outdated)? {
            for range in differing(&leaves[node.index], &node, node_bytes(nodes, node.index)) {
                self.bring(range).await?;
            }
        }
        settling.into_iter().for_each(Settling::done);
        Ok(nodes.len_bytes())
    }
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
