//! Comparison of a volume with the collector's copy of it, without its bytes crossing the wire.
//!
//! ```text
//! agent      Compare (hashes of nodes) ───▶
//!                  ◀─── Differ (for each node that differs: hashes of its leaves)    collector
//! ```
//! The volume is cut on a grid of nodes of [`NODE_BYTES`], and each node in leaves of
//! [`LEAF_BYTES`]; only the last ones may be shorter. A leaf's hash is XXH3-128 of its bytes, a
//! node's is XXH3-128 of its leaves' hashes one after the other. The agent hashes what its
//! backing store holds, the collector what its journal holds, neither under a lock.
//!
//! That is right while every change is captured: the agent hashes after the resync-begin record
//! `min_seq`, and the collector hashes a state that is not older than it. From there on both
//! sides apply the same changes in the same order wherever they overlap, so a byte that is equal
//! at any two such moments is equal in the end. A byte that was changed in between may make its
//! leaf differ for nothing, which costs a leaf and no truth: what differs is read and recorded
//! anew under the range's lock.
//!
//! A verification wants the truth and changes nothing. It asks about one state exactly: a leaf is
//! hashed while the agent holds the lock on it, so no change to it is on its way, and with the
//! newest number that was given out by then. The collector's state at that number has every change
//! to the leaf that the hash has, and no other.

use std::mem::size_of;

use xxhash_rust::xxh3::{Xxh3, xxh3_128};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{DecodeError, DecodeErrorKind};
use crate::id::Seq;
use crate::limits::{COMPARE_NODES_MAX, COUNTER_MAX, VOLUME_BYTES_MAX};

/// Bytes of a leaf.
pub const LEAF_BYTES: u64 = 64 * 1024;
/// Leaves of a node.
pub const NODE_LEAVES: usize = 64;
/// Bytes of a node.
pub const NODE_BYTES: u64 = LEAF_BYTES * NODE_LEAVES as u64;

const HASH_BYTES: usize = 16;

/// Hash of one leaf: XXH3-128 of its bytes, little-endian.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(transparent)]
pub struct LeafHash(pub [u8; HASH_BYTES]);

/// Hash of one node: XXH3-128 of its leaves' hashes, little-endian.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(transparent)]
pub struct NodeHash(pub [u8; HASH_BYTES]);

impl NodeHash {
    /// The hash of a node with a leaf that is unknown. It equals no node's hash.
    pub const UNKNOWN: Self = Self([0; HASH_BYTES]);

    /// True when both are known and the same.
    #[must_use]
    pub fn matches(self, other: Self) -> bool {
        self == other && self != Self::UNKNOWN
    }
}

impl LeafHash {
    /// What a side says of a leaf that it can't read. It equals no leaf's hash, not even itself.
    pub const UNKNOWN: Self = Self([0; HASH_BYTES]);
    /// The hash of a whole leaf of zeroes.
    pub const ZERO: Self = Self(0xfd5e_e061_c843_3a0f_33b2_02d3_02b6_5caa_u128.to_le_bytes());

    /// True when both are known and the same.
    #[must_use]
    pub fn matches(self, other: Self) -> bool {
        self == other && self != Self::UNKNOWN
    }

    /// The hash of a leaf of `len_bytes` zeroes, at most [`LEAF_BYTES`]: known without reading
    /// for a whole one.
    #[must_use]
    pub fn of_zeroes(len_bytes: u64) -> Self {
        if len_bytes == LEAF_BYTES {
            return Self::ZERO;
        }
        let mut state = Xxh3::new();
        let mut left = usize::try_from(len_bytes.min(LEAF_BYTES)).unwrap_or(0);
        while left > 0 {
            let step = left.min(ZEROES.len());
            state.update(&ZEROES[..step]);
            left -= step;
        }
        Self(state.digest128().to_le_bytes())
    }
}

const ZEROES: [u8; 4096] = [0; 4096];

/// The hash of a leaf with these bytes.
#[must_use]
pub fn leaf_hash(bytes: &[u8]) -> LeafHash {
    LeafHash(xxh3_128(bytes).to_le_bytes())
}

/// The hash of a node with these leaves; unknown when one of them is.
#[must_use]
pub fn node_hash(leaves: &[LeafHash]) -> NodeHash {
    if leaves.contains(&LeafHash::UNKNOWN) {
        return NodeHash::UNKNOWN;
    }
    NodeHash(xxh3_128(leaves.as_bytes()).to_le_bytes())
}

/// Length of the whole leaves that read as zeroes from byte `at` of a node on, 0 when there are
/// none. `extents` are lengths from the node's first byte on, and whether each is known to read as
/// zeroes; what they do not cover is data. `left` bytes of the node lie behind `at`, which is the
/// first byte of a leaf.
#[must_use]
pub fn zero_leaves(extents: impl IntoIterator<Item = (u64, bool)>, at: u64, left: u64) -> u64 {
    let (mut start, mut zero_until) = (0, at);
    for (len_bytes, is_zero) in extents {
        let end = start + len_bytes;
        if start <= zero_until && zero_until < end {
            if !is_zero {
                break;
            }
            zero_until = end;
        }
        start = end;
    }
    let zero = (zero_until - at).min(left);
    if zero == left { left } else { zero - zero % LEAF_BYTES }
}

/// Some nodes of a volume one after the other: from a node's first byte on, and up to a node's
/// end or the volume's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRange {
    offset_bytes: u64,
    len_bytes: u64,
}

impl NodeRange {
    /// `len_bytes` bytes from `offset_bytes` on; `None` when they do not begin at a node, are
    /// none, lie beyond the largest volume, or are more than [`COMPARE_NODES_MAX`] nodes.
    #[must_use]
    pub fn new(offset_bytes: u64, len_bytes: u64) -> Option<Self> {
        let end = offset_bytes.checked_add(len_bytes)?;
        let is_good = offset_bytes.is_multiple_of(NODE_BYTES)
            && len_bytes > 0
            && end <= VOLUME_BYTES_MAX
            && len_bytes.div_ceil(NODE_BYTES) <= COMPARE_NODES_MAX as u64;
        is_good.then_some(Self { offset_bytes, len_bytes })
    }

    /// The nodes that begin at or behind `offset_bytes`, a node's first byte, of a volume of
    /// `size_bytes`: at most `nodes_max` of them. `None` when there are none.
    #[must_use]
    pub fn next(offset_bytes: u64, size_bytes: u64, nodes_max: usize) -> Option<Self> {
        let left = size_bytes.checked_sub(offset_bytes)?;
        Self::new(offset_bytes, left.min(NODE_BYTES * nodes_max as u64))
    }

    /// First byte on the volume.
    #[must_use]
    pub const fn offset_bytes(&self) -> u64 {
        self.offset_bytes
    }

    /// Length in bytes.
    #[must_use]
    pub const fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The first byte behind it.
    #[must_use]
    pub const fn end_bytes(&self) -> u64 {
        self.offset_bytes + self.len_bytes
    }

    /// True when nothing follows it in a volume of `size_bytes`, or it ends at a node's end.
    #[must_use]
    pub fn fits(&self, size_bytes: u64) -> bool {
        let end = self.end_bytes();
        end == size_bytes || (end < size_bytes && end.is_multiple_of(NODE_BYTES))
    }

    /// How many nodes it has.
    #[must_use]
    pub fn node_count(&self) -> usize {
        // At most `COMPARE_NODES_MAX`.
        usize::try_from(self.len_bytes.div_ceil(NODE_BYTES)).unwrap_or(usize::MAX)
    }

    /// First byte and length of a node, in bytes on the volume.
    ///
    /// # Panics
    /// When there is no such node: a programmer's mistake.
    #[must_use]
    pub fn node(&self, index: usize) -> (u64, u64) {
        assert!(index < self.node_count(), "node {index} of {}", self.node_count());
        let at = index as u64 * NODE_BYTES;
        (self.offset_bytes + at, NODE_BYTES.min(self.len_bytes - at))
    }

    /// How many leaves a node has.
    ///
    /// # Panics
    /// As [`NodeRange::node`].
    #[must_use]
    pub fn leaf_count(&self, index: usize) -> usize {
        let (_, len_bytes) = self.node(index);
        usize::try_from(len_bytes.div_ceil(LEAF_BYTES)).unwrap_or(usize::MAX)
    }
}

/// The agent's question: which of these nodes differ from what the collector holds?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// Identity of the resynchronization or verification that asks.
    pub id: [u8; 16],
    /// The collector answers from no state that is older. For a resynchronization that is its
    /// resync-begin record.
    pub min_seq: Seq,
    /// The collector answers from the state `min_seq` itself, and that has to be one that is
    /// offered: for a verification.
    pub exact: bool,
    /// The nodes.
    pub range: NodeRange,
    /// Their hashes.
    pub nodes: Vec<NodeHash>,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct CompareFixed {
    id: [u8; 16],
    min_seq: U64,
    offset_bytes: U64,
    len_bytes: U64,
    node_count: U32,
    flags: U32,
}
const _: () = assert!(size_of::<CompareFixed>() == 48);

/// Bit of a question's flags: [`Compare::exact`].
const FLAG_EXACT: u32 = 1;

impl Compare {
    /// Appends the body.
    ///
    /// # Panics
    /// When there is not one hash for each node: a programmer's mistake.
    pub fn encode(&self, out: &mut Vec<u8>) {
        assert_eq!(self.nodes.len(), self.range.node_count(), "one hash for each node");
        let fixed = CompareFixed {
            id: self.id,
            min_seq: self.min_seq.0.into(),
            offset_bytes: self.range.offset_bytes.into(),
            len_bytes: self.range.len_bytes.into(),
            node_count: count_field(self.nodes.len()),
            flags: if self.exact { FLAG_EXACT } else { 0 }.into(),
        };
        out.extend_from_slice(fixed.as_bytes());
        out.extend_from_slice(self.nodes.as_bytes());
    }

    /// Decodes a body.
    ///
    /// # Errors
    /// `Truncated` or `Field`.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "comparison";
        let (fixed, rest) = CompareFixed::ref_from_prefix(bytes)
            .map_err(|_| DecodeError::truncated(WHAT, bytes.len(), size_of::<CompareFixed>()))?;
        let min_seq = fixed.min_seq.get();
        if min_seq > COUNTER_MAX {
            return Err(DecodeError::field(WHAT, format!("a number of {min_seq}")));
        }
        let range = take_range(WHAT, fixed.offset_bytes.get(), fixed.len_bytes.get())?;
        let count = fixed.node_count.get() as usize;
        if count != range.node_count() {
            let detail = format!("{count} hashes for {} nodes", range.node_count());
            return Err(DecodeError::field(WHAT, detail));
        }
        let nodes = <[NodeHash]>::ref_from_prefix_with_elems(rest, count)
            .map_err(|_| DecodeError::truncated(WHAT, rest.len(), count * HASH_BYTES))?
            .0;
        let exact = fixed.flags.get() & FLAG_EXACT != 0;
        Ok(Self { id: fixed.id, min_seq: Seq(min_seq), exact, range, nodes: nodes.to_vec() })
    }
}

/// One node that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DifferNode {
    /// Which one of the question's nodes.
    pub index: usize,
    /// The hashes of all its leaves as the collector holds them; [`LeafHash::UNKNOWN`] for one
    /// that it can't read.
    pub leaves: Vec<LeafHash>,
}

/// The collector's answer to [`Compare`]: the nodes that differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Differ {
    /// As in the question.
    pub id: [u8; 16],
    /// As in the question.
    pub range: NodeRange,
    /// The nodes that differ, by rising index; none when all are equal.
    pub nodes: Vec<DifferNode>,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DifferFixed {
    id: [u8; 16],
    offset_bytes: U64,
    len_bytes: U64,
    node_count: U32,
    reserved: U32,
}
const _: () = assert!(size_of::<DifferFixed>() == 40);

/// Before the leaves of each node.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DifferNodeFixed {
    index: U32,
    leaf_count: U32,
}
const _: () = assert!(size_of::<DifferNodeFixed>() == 8);

impl Differ {
    /// Appends the body.
    ///
    /// # Panics
    /// When a node has not one hash for each of its leaves: a programmer's mistake.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let fixed = DifferFixed {
            id: self.id,
            offset_bytes: self.range.offset_bytes.into(),
            len_bytes: self.range.len_bytes.into(),
            node_count: count_field(self.nodes.len()),
            reserved: 0.into(),
        };
        out.extend_from_slice(fixed.as_bytes());
        for node in &self.nodes {
            let count = self.range.leaf_count(node.index);
            assert_eq!(node.leaves.len(), count, "one hash for each leaf");
            let head =
                DifferNodeFixed { index: count_field(node.index), leaf_count: count_field(count) };
            out.extend_from_slice(head.as_bytes());
            out.extend_from_slice(node.leaves.as_bytes());
        }
    }

    /// Decodes a body.
    ///
    /// # Errors
    /// `Truncated`, `Field` or `Limit`.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "differences";
        let (fixed, mut rest) = DifferFixed::ref_from_prefix(bytes)
            .map_err(|_| DecodeError::truncated(WHAT, bytes.len(), size_of::<DifferFixed>()))?;
        let range = take_range(WHAT, fixed.offset_bytes.get(), fixed.len_bytes.get())?;
        let count = fixed.node_count.get() as usize;
        if count > range.node_count() {
            let detail = format!("{count} of {} nodes differ", range.node_count());
            return Err(DecodeError::new(DecodeErrorKind::Limit, WHAT, detail));
        }
        let mut nodes = Vec::with_capacity(count);
        let mut index_min = 0;
        for _ in 0..count {
            let (node, behind) = take_node(WHAT, rest, &range, index_min)?;
            index_min = node.index + 1;
            nodes.push(node);
            rest = behind;
        }
        Ok(Self { id: fixed.id, range, nodes })
    }
}

fn take_node<'a>(
    what: &'static str,
    bytes: &'a [u8],
    range: &NodeRange,
    index_min: usize,
) -> Result<(DifferNode, &'a [u8]), DecodeError> {
    let (head, rest) = DifferNodeFixed::ref_from_prefix(bytes)
        .map_err(|_| DecodeError::truncated(what, bytes.len(), size_of::<DifferNodeFixed>()))?;
    let index = head.index.get() as usize;
    if !(index_min..range.node_count()).contains(&index) {
        let detail = format!("node {index} where {index_min} to {} may be", range.node_count());
        return Err(DecodeError::field(what, detail));
    }
    let (count, wanted) = (head.leaf_count.get() as usize, range.leaf_count(index));
    if count != wanted {
        let detail = format!("{count} hashes for {wanted} leaves of node {index}");
        return Err(DecodeError::field(what, detail));
    }
    let (leaves, behind) = <[LeafHash]>::ref_from_prefix_with_elems(rest, count)
        .map_err(|_| DecodeError::truncated(what, rest.len(), count * HASH_BYTES))?;
    Ok((DifferNode { index, leaves: leaves.to_vec() }, behind))
}

fn take_range(what: &'static str, offset: u64, len: u64) -> Result<NodeRange, DecodeError> {
    NodeRange::new(offset, len).ok_or_else(|| {
        DecodeError::field(what, format!("{len} bytes from {offset} are not nodes to compare"))
    })
}

/// A count that `NodeRange` bounds, for its field.
fn count_field(count: usize) -> U32 {
    u32::try_from(count).expect("nodes and leaves of a range are few").into()
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
