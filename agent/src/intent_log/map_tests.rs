#![allow(clippy::cast_possible_truncation, reason = "a test runs where usize has 64 bits")]

use proptest::prelude::*;

use super::*;
use crate::intent_log::Differing;
use crate::intent_log::region::ClearUntil;

const SIZE: u64 = 9 * REGION_BYTES + 5 * LEAF_BYTES + 512;
const REGIONS: u64 = 10;

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(start, len).expect("test ranges fit")
}

/// What differs, leaf by leaf.
fn listed(map: &IntentMap) -> Vec<(u64, Differs)> {
    let mut all = Vec::new();
    let mut from = 0;
    while let Some(Differing { region, what }) = map.next_differing(from) {
        assert!(region.end() == map.size_bytes() || region.len() == REGION_BYTES);
        all.push((region.start() / REGION_BYTES, what));
        from = region.end();
    }
    all
}

#[test]
fn a_change_that_is_missing_is_known_to_the_leaf() {
    let map = IntentMap::volatile(SIZE);
    map.miss(range(REGION_BYTES - 1, 2));
    map.miss(range(SIZE - 1, 1));
    let expected = [(0, 1 << 63), (1, 1), (9, 1 << 5)];
    assert_eq!(listed(&map), expected.map(|(region, leaves)| (region, Differs::Leaves(leaves))));
    assert_eq!(map.differing_bytes(), 3 * LEAF_BYTES);
}

#[test]
fn a_change_of_while_a_region_is_settled_is_not_forgotten() {
    let map = IntentMap::volatile(SIZE);
    map.doubt(range(0, 1));
    map.miss(range(LEAF_BYTES, 1));
    let settling = map.settle(range(0, REGION_BYTES));
    assert_eq!(settling.was(), Differs::Doubt);
    assert!(listed(&map).is_empty());
    map.miss(range(0, 1));
    settling.done();
    assert_eq!(listed(&map), [(0, Differs::Leaves(1))]);
}

#[test]
fn a_copy_that_is_given_up_leaves_what_it_found() {
    let map = IntentMap::volatile(SIZE);
    map.doubt_all();
    drop(map.settle(range(3 * REGION_BYTES, REGION_BYTES)));
    assert_eq!(map.differing_bytes(), SIZE);
    let settling = map.settle(range(9 * REGION_BYTES, SIZE - 9 * REGION_BYTES));
    settling.done();
    assert_eq!(listed(&map).len(), 9);
    map.miss(range(9 * REGION_BYTES, 3 * LEAF_BYTES));
    drop(map.settle(range(9 * REGION_BYTES + LEAF_BYTES, LEAF_BYTES)));
    assert_eq!(listed(&map)[9], (9, Differs::Leaves(0b111)));
    map.settle(range(9 * REGION_BYTES + LEAF_BYTES, LEAF_BYTES)).done();
    assert_eq!(listed(&map)[9], (9, Differs::Leaves(0b101)));
}

/// Found by the simulator: a copy went round such a leaf for ever, without waiting for anything.
#[test]
fn a_copy_that_is_given_up_brings_back_no_leaf_behind_a_new_end() {
    let map = IntentMap::volatile(SIZE);
    let leaves = range(9 * REGION_BYTES + LEAF_BYTES, 3 * LEAF_BYTES);
    map.miss(leaves);
    let settling = map.settle(leaves);
    map.resize(9 * REGION_BYTES + 2 * LEAF_BYTES);
    drop(settling);
    assert_eq!(listed(&map), [(9, Differs::Leaves(1 << 1))]);
    assert_eq!(map.differing_bytes(), LEAF_BYTES);
    // It was noted in the very moment of the cut.
    map.leaves(9).store(1 << 2, Ordering::Release);
    assert!(listed(&map).is_empty());
    assert!(map.lacks_nothing(9));
}

#[test]
fn what_a_flush_covers_ended_before_it_began() {
    let map = IntentMap::volatile(SIZE);
    let of =
        |map: &IntentMap| map.unflushed().map(|r| r.start() / REGION_BYTES).collect::<Vec<_>>();
    let (early, _) = map.enter(range(0, 1));
    drop(map.enter(range(REGION_BYTES, 1)));
    let flush = map.flush_begins();
    drop(early);
    drop(map.enter(range(2 * REGION_BYTES, 1)));
    assert_eq!(of(&map), [0, 1, 2]);
    map.flush_ended(flush);
    assert_eq!(of(&map), [0, 2], "one was in flight when the flush began, one came after it");
    let failed = map.flush_begins();
    let _ = failed;
    assert_eq!(of(&map), [0, 2], "a flush that did not end well covers nothing");
    map.doubt_unflushed(map.flushed());
    assert_eq!(listed(&map), [(0, Differs::Doubt), (2, Differs::Doubt)]);
    let flush = map.flush_begins();
    map.flush_ended(flush);
    assert!(of(&map).is_empty());
    assert_eq!(listed(&map).len(), 2, "what failed once is not made good by a later flush");
}

#[test]
fn a_flush_that_overlaps_one_that_failed_makes_nothing_good() {
    let map = IntentMap::volatile(SIZE);
    drop(map.enter(range(0, 1)));
    let good = map.flushed();
    let failing = map.flush_begins();
    let other = map.flush_begins();
    assert!(failing < other);
    // The kernel has told the first one of the error, and says so to nobody else.
    map.flush_ended(other);
    map.doubt_unflushed(good);
    assert_eq!(listed(&map), [(0, Differs::Doubt)]);
}

#[test]
fn a_map_that_was_made_small_has_room_for_a_large_volume() {
    let map = IntentMap::volatile(1);
    for region in [0, 63, 64, 127, 128, 1000, 1 << 20] {
        assert!(!map.region(region).enter(crate::intent_log::FlushEpoch(1)));
        assert!(!map.region(region).want(), "the change wants it already");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Miss(u64, u64),
    Doubt(u64, u64),
    Settle { region: u64, first_leaf: u64, leaves: u64, done: bool },
    SettleWhole { region: u64, done: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let start = 0..SIZE;
    let len = prop_oneof![1..LEAF_BYTES, 1..SIZE];
    prop_oneof![
        (start.clone(), len.clone()).prop_map(|(start, len)| Step::Miss(start, len)),
        (start, len).prop_map(|(start, len)| Step::Doubt(start, len)),
        (0..REGIONS - 1, 0..64_u64, 1..64_u64, any::<bool>()).prop_map(
            |(region, first_leaf, leaves, done)| Step::Settle { region, first_leaf, leaves, done }
        ),
        (0..REGIONS, any::<bool>()).prop_map(|(region, done)| Step::SettleWhole { region, done }),
    ]
}

#[test]
fn what_lies_behind_a_new_end_differs_no_more() {
    let map = IntentMap::volatile(SIZE);
    map.miss(range(REGION_BYTES, 4 * LEAF_BYTES));
    map.doubt(range(2 * REGION_BYTES, 1));
    map.resize(REGION_BYTES + LEAF_BYTES + 512);
    assert_eq!(listed(&map), [(1, Differs::Leaves(0b11))]);
    assert_eq!(map.differing_bytes(), 2 * LEAF_BYTES);
    map.resize(REGION_BYTES);
    assert_eq!((listed(&map), map.differing_bytes()), (Vec::new(), 0));
    map.resize(SIZE);
    assert_eq!((listed(&map), map.differing_bytes()), (Vec::new(), 0));
    map.resize(1 << 45);
    map.doubt(range((1 << 45) - 1, 1));
    assert_eq!(map.differing_bytes(), REGION_BYTES);
}

proptest! {
    #[test]
    fn the_map_says_what_a_plain_list_of_leaves_says(steps in prop::collection::vec(step(), 1..40)) {
        let map = IntentMap::volatile(SIZE);
        let leaves = SIZE.div_ceil(LEAF_BYTES);
        let mut lacking = vec![false; usize::try_from(leaves).expect("few")];
        let mut doubted = [false; REGIONS as usize];
        for step in steps {
            match step {
                Step::Miss(start, len) => {
                    let end = (start + len).min(SIZE);
                    map.miss(range(start, end - start));
                    (start / LEAF_BYTES..end.div_ceil(LEAF_BYTES)).for_each(|n| lacking[n as usize] = true);
                }
                Step::Doubt(start, len) => {
                    let end = (start + len).min(SIZE);
                    map.doubt(range(start, end - start));
                    (start / REGION_BYTES..end.div_ceil(REGION_BYTES)).for_each(|n| doubted[n as usize] = true);
                }
                Step::Settle { region, first_leaf, leaves, done } => {
                    let last = (first_leaf + leaves).min(63);
                    let first = (region * 64 + first_leaf.min(last.saturating_sub(1))) as usize;
                    let end = (region * 64 + last.max(1)) as usize;
                    let bytes = range(first as u64 * LEAF_BYTES, (end - first) as u64 * LEAF_BYTES);
                    let settling = map.settle(bytes);
                    if done {
                        settling.done();
                        lacking[first..end].fill(false);
                    }
                }
                Step::SettleWhole { region, done } => {
                    let settling = map.settle(map.bytes_of(region));
                    let was_doubted = doubted[region as usize];
                    let of_region = region as usize * 64..((region as usize + 1) * 64).min(lacking.len());
                    // Doubt says more than leaves: they may be forgotten for it.
                    if done || was_doubted {
                        lacking[of_region].fill(false);
                    }
                    if done {
                        settling.done();
                        doubted[region as usize] = false;
                    }
                }
            }
            let mut expected = Vec::new();
            for (region, is_doubted) in doubted.iter().enumerate() {
                let bit = |leaf: usize| lacking.get(region * 64 + leaf).copied().unwrap_or(false);
                let bits = (0..64).filter(|leaf| bit(*leaf)).fold(0_u64, |all, leaf| all | 1 << leaf);
                if *is_doubted {
                    expected.push((region as u64, Differs::Doubt));
                } else if bits != 0 {
                    expected.push((region as u64, Differs::Leaves(bits)));
                }
            }
            prop_assert_eq!(listed(&map), expected);
            let lacking = lacking.iter().filter(|lacks| **lacks).count() as u64;
            let doubted = doubted.iter().filter(|doubt| **doubt).count() as u64;
            let bytes = (lacking * LEAF_BYTES + doubted * REGION_BYTES).min(SIZE);
            prop_assert_eq!(map.differing_bytes(), bytes);
        }
    }
}

/// The page of a region that was cut off is written without its bit: it has to be wanted anew by
/// whatever grows there again.
#[test]
fn what_grows_again_wants_its_bits_again() {
    let map = IntentMap::volatile(SIZE);
    drop(map.enter(range(8 * REGION_BYTES, REGION_BYTES)));
    map.set_all_wanted();
    assert!(map.is_set(range(8 * REGION_BYTES, REGION_BYTES)));
    map.resize(7 * REGION_BYTES);
    map.resize(SIZE);
    assert!(!map.is_set(range(8 * REGION_BYTES, REGION_BYTES)));
    let (entered, all_set) = map.enter(range(8 * REGION_BYTES, REGION_BYTES));
    assert!(!all_set && map.is_dirty());
    drop(entered);
}

#[test]
fn a_doubted_region_that_is_cut_off_just_now_is_passed_over() {
    let map = IntentMap::volatile(SIZE);
    map.doubt_all();
    // As between the two steps of `resize`.
    map.size_bytes.store(9 * REGION_BYTES, Ordering::Release);
    assert_eq!(listed(&map).len(), 9);
}

/// After a kill nothing is known to differ, and no flush has covered what was written.
#[test]
fn bits_that_could_not_be_read_are_marked_and_need_a_flush() {
    let map = IntentMap::volatile(SIZE);
    map.mark_all();
    assert_eq!((map.marked(), map.differing_bytes()), (REGIONS, 0));
    map.set_all_wanted();
    assert_eq!(map.clear(ClearUntil { epoch: map.flushed() }), 0);
    let epoch = map.flush_begins();
    map.flush_ended(epoch);
    assert_eq!(map.clear(ClearUntil { epoch: map.flushed() }), REGIONS);
}
