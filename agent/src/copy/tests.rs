//! The pure parts, and the argument why a comparison needs no lock, as a model: a disk of a few
//! bytes, writers whose writes land byte by byte, a collector that is late, and the walk.

use std::ops::Range;
use std::time::Duration;

use proptest::prelude::*;
use tidemark_block::ByteRange;
use tidemark_wire::compare::{DifferNode, LEAF_BYTES, LeafHash, leaf_hash};

use super::compare::differing;
use super::pace::Throttle;

const LEAF: usize = 4;
const DISK: usize = 4 * LEAF;
const WRITERS: usize = 3;

/// A change on its way into the stream; it is shipped once it is committed.
struct Change {
    at: usize,
    bytes: Vec<u8>,
    is_committed: bool,
}

struct Writing {
    at: usize,
    bytes: Vec<u8>,
    landed: usize,
    /// Its record; none for a write that began before the capture was on.
    record: Option<usize>,
}

enum Step {
    Barrier,
    Read(Vec<u8>),
    Ask(LeafHash),
    Bring,
}

struct Model {
    disk: [u8; DISK],
    image: [u8; DISK],
    stream: Vec<Change>,
    applied: usize,
    writers: [Option<Writing>; WRITERS],
    /// Length of the stream when the capture was turned on; none before.
    begun: Option<usize>,
    leaf: usize,
    step: Step,
    has_barrier: bool,
}

impl Model {
    fn new(disk: [u8; DISK], image: [u8; DISK], has_barrier: bool) -> Self {
        Self {
            disk,
            image,
            stream: Vec::new(),
            applied: 0,
            writers: [const { None }; WRITERS],
            begun: None,
            leaf: 0,
            step: Step::Barrier,
            has_barrier,
        }
    }

    fn is_free(&self, range: &Range<usize>) -> bool {
        self.writers
            .iter()
            .flatten()
            .all(|one| one.at >= range.end || one.at + one.bytes.len() <= range.start)
    }

    fn write(&mut self, writer: usize, at: usize, bytes: &[u8]) {
        match &mut self.writers[writer] {
            None => {
                let bytes = bytes[..bytes.len().min(DISK - at)].to_vec();
                if !self.is_free(&(at..at + bytes.len())) {
                    return;
                }
                let record = self.begun.map(|_| self.stream.len());
                if record.is_some() {
                    let change = Change { at, bytes: bytes.clone(), is_committed: false };
                    self.stream.push(change);
                }
                self.writers[writer] = Some(Writing { at, bytes, landed: 0, record });
            }
            Some(one) if one.landed < one.bytes.len() => {
                // Not in order: a device may tear a write in any way.
                let byte = one.bytes.len() - 1 - one.landed;
                self.disk[one.at + byte] = one.bytes[byte];
                one.landed += 1;
            }
            Some(one) => {
                if let Some(record) = one.record {
                    self.stream[record].is_committed = true;
                }
                self.writers[writer] = None;
            }
        }
    }

    fn apply(&mut self) {
        if let Some(change) = self.stream.get(self.applied).filter(|one| one.is_committed) {
            self.image[change.at..change.at + change.bytes.len()].copy_from_slice(&change.bytes);
            self.applied += 1;
        }
    }

    fn walk(&mut self) {
        let Some(begun) = self.begun else {
            self.begun = Some(self.stream.len());
            return;
        };
        let range = self.leaf * LEAF..(self.leaf + 1) * LEAF;
        if range.start == DISK {
            return;
        }
        let step = std::mem::replace(&mut self.step, Step::Barrier);
        self.step = match step {
            Step::Barrier if self.has_barrier && !self.is_free(&range) => Step::Barrier,
            Step::Barrier => Step::Read(Vec::new()),
            Step::Read(mut bytes) if bytes.len() < LEAF => {
                bytes.push(self.disk[range.start + bytes.len()]);
                Step::Read(bytes)
            }
            Step::Read(bytes) => Step::Ask(leaf_hash(&bytes)),
            Step::Ask(ours) if self.applied < begun => Step::Ask(ours),
            Step::Ask(ours) if ours.matches(leaf_hash(&self.image[range.clone()])) => {
                self.next_leaf()
            }
            Step::Ask(_) => Step::Bring,
            Step::Bring if !self.is_free(&range) => Step::Bring,
            Step::Bring => {
                let bytes = self.disk[range.clone()].to_vec();
                self.stream.push(Change { at: range.start, bytes, is_committed: true });
                self.next_leaf()
            }
        };
    }

    fn next_leaf(&mut self) -> Step {
        self.leaf += 1;
        Step::Barrier
    }

    fn finish(&mut self) {
        for _ in 0..1000 {
            for writer in 0..WRITERS {
                if self.writers[writer].is_some() {
                    self.write(writer, 0, &[]);
                }
            }
            self.apply();
            self.walk();
        }
        assert!(self.applied == self.stream.len() && self.leaf * LEAF == DISK, "all is through");
    }
}

/// Bytes of few values, so that chance makes leaves equal that were changed back and forth.
fn bytes(len: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0u8..3, len)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn a_comparison_without_locks_ends_equal(
        disk in bytes(DISK),
        image in bytes(DISK),
        moves in prop::collection::vec((0..6usize, 0..DISK, bytes(7)), 0..200),
    ) {
        let disk: [u8; DISK] = disk.try_into().expect("its length");
        let image: [u8; DISK] = image.try_into().expect("its length");
        let mut model = Model::new(disk, image, true);
        for (who, at, bytes) in moves {
            match who {
                0..WRITERS => model.write(who, at, &bytes[..=at % 7]),
                3 => model.apply(),
                _ => model.walk(),
            }
        }
        model.finish();
        prop_assert_eq!(model.disk, model.image);
    }

    #[test]
    fn leaves_that_differ_are_brought_and_no_others(
        marks in prop::collection::vec(0u8..3, 1..64),
        short in 1..LEAF_BYTES,
    ) {
        let len = (marks.len() as u64 - 1) * LEAF_BYTES + short;
        let node = ByteRange::new(1 << 22, len).expect("a node");
        let ours: Vec<_> = marks.iter().map(|_| leaf_hash(b"ours")).collect();
        let leaves = marks.iter().map(|mark| match mark {
            0 => leaf_hash(b"ours"),
            1 => leaf_hash(b"theirs"),
            _ => LeafHash::UNKNOWN,
        });
        let node_of = DifferNode { index: 0, leaves: leaves.collect() };
        let ranges = differing(&ours, &node_of, node);
        for (leaf, mark) in marks.iter().enumerate() {
            let start = node.start() + leaf as u64 * LEAF_BYTES;
            let leaf = ByteRange::between(start, node.end().min(start + LEAF_BYTES)).expect("a leaf");
            let brought = ranges.iter().filter(|range| range.contains(leaf)).count();
            prop_assert_eq!(brought, usize::from(*mark != 0));
            prop_assert_eq!(ranges.iter().any(|range| range.overlaps(leaf)), *mark != 0);
        }
        prop_assert!(ranges.windows(2).all(|pair| pair[0].end() < pair[1].start()));
    }
}

#[test]
fn a_write_that_began_before_the_capture_is_waited_for() {
    let lost = |has_barrier| {
        let mut model = Model::new([0; DISK], [0; DISK], has_barrier);
        model.write(0, 0, &[1]);
        // Begin, barrier, four bytes, hash, answer.
        (0..8).for_each(|_| model.walk());
        model.finish();
        model.disk != model.image
    };
    assert!(lost(false), "without the barrier the model has to lose it");
    assert!(!lost(true));
}

#[test]
fn a_rate_is_kept_and_may_change() {
    let throttle = Throttle::default();
    let (mut now, mut read) = (Duration::from_secs(100), 0);
    while now < Duration::from_secs(110) {
        match throttle.take(1000, Some(100_000), now) {
            None => read += 1000,
            Some(wait) => now += wait,
        }
    }
    assert!((1_000_000..1_030_000).contains(&read), "{read} bytes in ten seconds");
    assert_eq!(throttle.take(1 << 30, None, now), None, "no limit any more");
    assert_eq!(throttle.take(1 << 30, Some(1), now), None, "what was free is not paid for");
    let wait = throttle.take(1, Some(1), now).expect("the last one is not paid yet");
    assert!(wait <= Duration::from_millis(100), "a new rate counts soon");
}
