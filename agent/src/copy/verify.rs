//! Compares the volume with the collector's copy and changes nothing: what differs is reported.
//!
//! One task per volume waits until a verification is wanted ([`crate::capture::verification`]) and
//! walks over the volume in several lanes. It is exact under live writes, and no lock is held over
//! the network:
//!
//! 1. A lane notes the newest number that was given out, hashes some nodes without a lock, and
//!    asks the collector about exactly the state of that number. What is equal is equal.
//! 2. Leaves that differ may have been written meanwhile. Each is locked, hashed, and the number
//!    is noted before the lock is let go: whatever changed the leaf before has a smaller number
//!    and has landed, whatever comes later has a larger one. The collector is asked about that
//!    state; what differs now differs.
//!
//! A leaf that one of the sides can't read is looked at a few times and then reported as such. A
//! verification says something only of a stream that is whole: it ends as soon as a copy is
//! wanted or changes are not captured. It opens no span, so the newest state is offered all the
//! time. A crash loses it.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use tidemark_block::store::Store;
use tidemark_block::{ByteRange, PAYLOAD_BYTES_MAX};
use tidemark_wire::Seq;
use tidemark_wire::compare::{
    Compare, DifferNode, LEAF_BYTES, LeafHash, NODE_BYTES, NodeHash, NodeRange, node_hash,
};
use tidemark_wire::instruct::{VERIFIED_RANGES_MAX, Verified, VerifyState};

use super::compare::differing;
use super::hash::{Hasher, leaves_of, node_bytes};
use super::lanes::{self, Lane};
use super::{LANE_NODES, LANES, Outdated, Timer};
use crate::capture::phase::CopyRound;
use crate::capture::verification::VerifyWish;
use crate::volume::Volume;

/// How often a leaf is looked at that one of the sides can't read.
const LOOKS_MAX: usize = 3;
/// Pause between two looks: a merge may have passed the state that was asked about.
const LOOK_PAUSE: Duration = Duration::from_millis(200);
/// Longest range that is locked at once while it is read.
const LOCK_BYTES: u64 = PAYLOAD_BYTES_MAX as u64;
const _: () = assert!(LOCK_BYTES.is_multiple_of(LEAF_BYTES));

/// Makes every verification that is wanted, until the volume is taken down.
pub async fn run<S: Store, T: Timer>(volume: Arc<Volume<S>>, timer: T) {
    let (capture, name) = (Arc::clone(volume.capture()), volume.name());
    while let Some(wish) = capture.verifications().wanted().await {
        tracing::info!(volume = name, "verification begins at byte {}", wish.from_bytes);
        capture.desk().open(wish.id);
        let verification = Verification::new(&volume, &timer, wish);
        let state = verification.run().await;
        capture.desk().close(wish.id);
        let report = verification.report(state);
        tracing::info!(
            volume = name,
            "verification ends ({state:?}): {} bytes compared, {} differ, {} can't be read",
            report.compared_bytes,
            report.differing_bytes,
            report.unreadable_bytes
        );
        capture.verifications().report(report);
        capture.ring().wake_consumer();
    }
}

/// What the lanes have found.
#[derive(Default)]
struct Found {
    compared_bytes: u64,
    differing_bytes: u64,
    unreadable_bytes: u64,
    ranges: Vec<(u64, u64)>,
}

struct Verification<'a, S, T> {
    volume: &'a Volume<S>,
    timer: &'a T,
    hasher: Hasher<'a, S, T>,
    wish: VerifyWish,
    /// The stream as it was found whole; `None` when it was not.
    round: Option<CopyRound>,
    /// Size of the volume at the begin.
    size_bytes: u64,
    /// Where the next lane goes on.
    next: Cell<u64>,
    /// First bytes of what the lanes have in hand.
    in_hand: RefCell<Vec<u64>>,
    found: RefCell<Found>,
}

impl<'a, S: Store, T: Timer> Verification<'a, S, T> {
    fn new(volume: &'a Volume<S>, timer: &'a T, wish: VerifyWish) -> Self {
        let from = wish.from_bytes - wish.from_bytes % NODE_BYTES;
        Self {
            volume,
            timer,
            hasher: Hasher::new(volume, timer),
            wish,
            round: volume.capture().whole_round(),
            size_bytes: volume.size_bytes(),
            next: Cell::new(from),
            in_hand: RefCell::default(),
            found: RefCell::default(),
        }
    }

    /// Also that it was not cut: the collector refuses a question about what is behind the end, and
    /// with it the session, each time that it is asked.
    fn is_whole(&self) -> bool {
        let is_there = self.volume.size_bytes() >= self.size_bytes;
        is_there && self.round.is_some() && self.volume.capture().whole_round() == self.round
    }

    fn is_current(&self) -> bool {
        self.is_whole() && self.volume.capture().verifications().is_wanted(self.wish.id)
    }

    async fn run(&self) -> VerifyState {
        self.tell();
        let lanes: Vec<Lane<'_>> = (0..LANES).map(|_| Box::pin(self.lane()) as Lane<'_>).collect();
        lanes::all(lanes).await;
        if !self.is_whole() {
            return VerifyState::NotWhole;
        }
        let is_through = self.reached() >= self.volume.size_bytes();
        if is_through { VerifyState::Done } else { VerifyState::Stopped }
    }

    fn tell(&self) {
        self.volume.capture().verifications().report(self.report(VerifyState::Running));
    }

    fn report(&self, state: VerifyState) -> Verified {
        let found = self.found.borrow();
        Verified {
            id: self.wish.id,
            state,
            reached_bytes: self.reached(),
            compared_bytes: found.compared_bytes,
            differing_bytes: found.differing_bytes,
            unreadable_bytes: found.unreadable_bytes,
            ranges: found.ranges.clone(),
        }
    }

    fn reached(&self) -> u64 {
        self.in_hand.borrow().iter().copied().min().unwrap_or(self.next.get())
    }

    /// Walks until nothing is left or nothing is wanted. What it had in hand then stays there, so
    /// that nobody takes it for compared.
    async fn lane(&self) {
        let (size_bytes, capture) = (self.size_bytes, self.volume.capture());
        while let Some(nodes) = NodeRange::next(self.next.get(), size_bytes, LANE_NODES) {
            self.next.set(nodes.end_bytes());
            self.in_hand.borrow_mut().push(nodes.offset_bytes());
            if !self.is_current() || self.verify(&nodes).await.is_err() {
                return;
            }
            self.in_hand.borrow_mut().retain(|start| *start != nodes.offset_bytes());
            self.found.borrow_mut().compared_bytes += nodes.len_bytes();
            if capture.verifications().is_wanted(self.wish.id) {
                self.tell();
            }
        }
    }

    /// The newest number that was given out.
    fn newest(&self) -> Seq {
        Seq(self.volume.capture().ring().next_seq().0.saturating_sub(1))
    }

    async fn verify(&self, nodes: &NodeRange) -> Result<(), Outdated> {
        let is_current = || self.is_current();
        let at = self.newest();
        let mut leaves = Vec::with_capacity(nodes.node_count());
        for index in 0..nodes.node_count() {
            leaves.push(self.hasher.node(node_bytes(nodes, index), &is_current).await?);
        }
        let hashes = leaves.iter().map(|leaves| node_hash(leaves)).collect();
        for node in self.ask(nodes, at, hashes).await? {
            let bytes = node_bytes(nodes, node.index);
            let only = NodeRange::new(bytes.start(), bytes.len()).expect("a node of a volume");
            for range in differing(&leaves[node.index], &node, bytes) {
                let pieces = (range.start()..range.end()).step_by(LOCK_STEP);
                for start in pieces {
                    let piece = ByteRange::between(start, range.end().min(start + LOCK_BYTES));
                    self.look_again(&only, piece.expect("a part of the range")).await?;
                }
            }
        }
        Ok(())
    }

    async fn ask(
        &self,
        nodes: &NodeRange,
        at: Seq,
        hashes: Vec<NodeHash>,
    ) -> Result<Vec<DifferNode>, Outdated> {
        let (id, capture) = (self.wish.id, self.volume.capture());
        let question = Compare { id, min_seq: at, exact: true, range: *nodes, nodes: hashes };
        capture.desk().post(question);
        capture.ring().wake_consumer();
        let answer = capture.desk().answer(id, *nodes, || self.is_current()).await;
        answer.filter(|_| self.is_current()).ok_or(Outdated)
    }

    /// Compares some leaves of one node as they are at one moment, and notes what differs.
    async fn look_again(&self, node: &NodeRange, piece: ByteRange) -> Result<(), Outdated> {
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        for look in 0..LOOKS_MAX {
            if look > 0 {
                self.timer.sleep(LOOK_PAUSE).await;
            }
            ours.clear();
            let at = {
                let _held = self.volume.locks().lock(piece).await;
                self.hasher.leaves(piece, &mut ours).await;
                self.newest()
            };
            // A hash that nothing matches: all leaves of the node come back.
            let answer = self.ask(node, at, vec![NodeHash::UNKNOWN]).await?;
            let first = usize::try_from((piece.start() - node.offset_bytes()) / LEAF_BYTES);
            let first = first.expect("leaves of a node are few");
            let all = answer.into_iter().next().map(|node| node.leaves).unwrap_or_default();
            theirs = all.into_iter().skip(first).take(ours.len()).collect();
            let is_known = !ours.contains(&LeafHash::UNKNOWN)
                && theirs.len() == ours.len()
                && !theirs.contains(&LeafHash::UNKNOWN);
            if is_known {
                break;
            }
        }
        theirs.resize(ours.len(), LeafHash::UNKNOWN);
        for (leaf, (ours, theirs)) in leaves_of(piece).zip(ours.iter().zip(&theirs)) {
            self.note(leaf, *ours, *theirs);
        }
        Ok(())
    }

    fn note(&self, leaf: ByteRange, ours: LeafHash, theirs: LeafHash) {
        if ours.matches(theirs) {
            return;
        }
        let mut found = self.found.borrow_mut();
        if ours == LeafHash::UNKNOWN || theirs == LeafHash::UNKNOWN {
            found.unreadable_bytes += leaf.len();
        } else {
            found.differing_bytes += leaf.len();
        }
        let touches = |(start, len): &&mut (u64, u64)| *start + *len == leaf.start();
        if let Some((_, len)) = found.ranges.last_mut().filter(touches) {
            *len += leaf.len();
        } else if found.ranges.len() < VERIFIED_RANGES_MAX {
            found.ranges.push((leaf.start(), leaf.len()));
        }
    }
}

// It fits in memory on every machine.
#[allow(clippy::cast_possible_truncation)]
const LOCK_STEP: usize = LOCK_BYTES as usize;
