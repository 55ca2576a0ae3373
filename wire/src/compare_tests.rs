use proptest::prelude::*;

use super::*;

fn hashes<T>(count: usize, seed: u8, make: impl Fn([u8; 16]) -> T) -> Vec<T> {
    (0..count)
        .map(|index| {
            let mut bytes = [seed; 16];
            bytes[0] = u8::try_from(index % 251).unwrap_or(0);
            make(bytes)
        })
        .collect()
}

fn compare(range: NodeRange) -> Compare {
    let nodes = hashes(range.node_count(), 7, NodeHash);
    Compare { id: [3; 16], min_seq: Seq(9), exact: false, range, nodes }
}

fn differ(range: NodeRange, every: usize) -> Differ {
    let node = |index| {
        let leaves = hashes(range.leaf_count(index), 9, LeafHash);
        DifferNode { index, leaves }
    };
    let nodes = (0..range.node_count()).step_by(every).map(node).collect();
    Differ { id: [3; 16], range, nodes }
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut body = Vec::new();
    encode(&mut body);
    body
}

fn ranges() -> impl Strategy<Value = NodeRange> {
    let most = NODE_BYTES * COMPARE_NODES_MAX as u64;
    (0u64..1000, 1..=most)
        .prop_map(|(node, len)| NodeRange::new(node * NODE_BYTES, len).expect("within bounds"))
}

proptest! {
    #[test]
    fn messages_come_back_as_they_were_encoded(range in ranges(), every in 1usize..70) {
        let (question, answer) = (compare(range), differ(range, every));
        let body = encoded(|out| question.encode(out));
        prop_assert_eq!(Compare::decode(&body), Ok(question));
        let body = encoded(|out| answer.encode(out));
        prop_assert!(body.len() < 1 << 17, "an answer of {} bytes", body.len());
        prop_assert_eq!(Differ::decode(&body), Ok(answer));
    }

    #[test]
    fn no_bytes_break_a_decoder(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = (Compare::decode(&bytes), Differ::decode(&bytes));
    }

    #[test]
    fn a_changed_or_cut_message_is_refused_or_still_bounded(
        range in ranges(),
        at in 0usize..64,
        to in any::<u8>(),
        keep in 0usize..2000,
    ) {
        let mut body = encoded(|out| compare(range).encode(out));
        prop_assert!(Compare::decode(&body[..body.len() - 1]).is_err());
        body[at] = to;
        if let Ok(found) = Compare::decode(&body) {
            prop_assert_eq!(found.nodes.len(), found.range.node_count());
        }
        let mut body = encoded(|out| differ(range, 1).encode(out));
        prop_assert!(Differ::decode(&body[..body.len() - 1]).is_err());
        let _ = Differ::decode(&body[..keep.min(body.len())]);
        body[at.min(47)] = to;
        if let Ok(found) = Differ::decode(&body) {
            for node in &found.nodes {
                prop_assert_eq!(node.leaves.len(), found.range.leaf_count(node.index));
            }
        }
    }

    #[test]
    fn nodes_and_leaves_cover_their_range(range in ranges()) {
        let mut at = range.offset_bytes();
        for index in 0..range.node_count() {
            let (start, len) = range.node(index);
            prop_assert_eq!(start, at);
            prop_assert!((1..=NODE_BYTES).contains(&len));
            prop_assert!(range.leaf_count(index) as u64 * LEAF_BYTES >= len);
            prop_assert!((range.leaf_count(index) as u64 - 1) * LEAF_BYTES < len);
            at += len;
        }
        prop_assert_eq!(at, range.end_bytes());
        prop_assert!(range.fits(range.end_bytes()));
    }
}

#[test]
fn ranges_off_the_grid_are_refused() {
    let most = NODE_BYTES * COMPARE_NODES_MAX as u64;
    for (offset, len) in [
        (0, 0),
        (1, 100),
        (LEAF_BYTES, NODE_BYTES),
        (0, most + 1),
        (VOLUME_BYTES_MAX, 1),
        (VOLUME_BYTES_MAX - NODE_BYTES, NODE_BYTES + 1),
        (u64::MAX - NODE_BYTES + 1, u64::MAX),
    ] {
        assert_eq!(NodeRange::new(offset, len), None, "{offset} {len}");
    }
    let last = NodeRange::new(VOLUME_BYTES_MAX - NODE_BYTES, NODE_BYTES).expect("the last node");
    assert!(last.fits(VOLUME_BYTES_MAX) && !last.fits(VOLUME_BYTES_MAX - 1));
    let torn = NodeRange::new(0, NODE_BYTES + 4096).expect("a node and a block");
    assert!(torn.fits(NODE_BYTES + 4096) && !torn.fits(NODE_BYTES * 3));
    assert_eq!(NodeRange::next(NODE_BYTES, NODE_BYTES, 4), None);
    assert_eq!(NodeRange::next(NODE_BYTES, NODE_BYTES + 1, 4), NodeRange::new(NODE_BYTES, 1));
    assert_eq!(NodeRange::next(0, 1 << 40, 4), NodeRange::new(0, 4 * NODE_BYTES));
}

#[test]
fn a_question_of_a_number_that_nobody_reaches_is_refused() {
    let range = NodeRange::new(0, NODE_BYTES).expect("a node");
    let mut question = compare(range);
    question.min_seq = Seq(COUNTER_MAX + 1);
    let error = Compare::decode(&encoded(|out| question.encode(out))).expect_err("refused");
    assert_eq!(error.kind, DecodeErrorKind::Field);
}

#[test]
fn nodes_of_an_answer_rise() {
    let range = NodeRange::new(0, 2 * LEAF_BYTES + NODE_BYTES).expect("two nodes");
    let mut answer = differ(range, 1);
    answer.nodes.truncate(1);
    answer.nodes.push(answer.nodes[0].clone());
    let error = Differ::decode(&encoded(|out| answer.encode(out))).expect_err("refused");
    assert!(error.to_string().contains("node 0 where 1 to 2"), "{error}");
}

#[test]
fn zeroes_have_the_hash_that_reading_them_would_give() {
    for len in [0, 1, 512, 4096, 4097, LEAF_BYTES - 1, LEAF_BYTES] {
        let zeroes = vec![0; usize::try_from(len).expect("small")];
        assert_eq!(LeafHash::of_zeroes(len), leaf_hash(&zeroes), "{len}");
    }
    assert!(LeafHash::ZERO.matches(LeafHash::ZERO));
    assert!(!LeafHash::UNKNOWN.matches(LeafHash::UNKNOWN));
    assert!(!LeafHash::ZERO.matches(leaf_hash(b"x")));
}

#[test]
fn the_hash_of_a_node_is_pinned() {
    // XXH3-128 as xxhsum prints it, so that no other library may give another order of bytes.
    let leaf = leaf_hash(b"");
    assert_eq!(leaf.0, 0x99aa_06d3_0147_98d8_6001_c324_468d_497f_u128.to_le_bytes());
    assert_ne!(node_hash(&[leaf]).0, leaf.0);
    let unknown = node_hash(&[leaf, LeafHash::UNKNOWN]);
    assert!(unknown == NodeHash::UNKNOWN && !unknown.matches(unknown));
    assert_ne!(node_hash(&[leaf, LeafHash::ZERO]), node_hash(&[LeafHash::ZERO, leaf]));
}

#[test]
fn holes_give_whole_leaves_of_zeroes() {
    let half = LEAF_BYTES / 2;
    let extents =
        [(2 * LEAF_BYTES + half, true), (half, false), (half, true), (LEAF_BYTES + half, true)];
    let left = |at| 5 * LEAF_BYTES - at;
    let zero = |at| zero_leaves(extents, at, left(at));
    assert_eq!(zero(0), 2 * LEAF_BYTES);
    assert_eq!(zero(LEAF_BYTES), LEAF_BYTES);
    assert_eq!(zero(2 * LEAF_BYTES), 0, "data in its second half");
    assert_eq!(zero(3 * LEAF_BYTES), 2 * LEAF_BYTES, "two extents without data");
    assert_eq!(zero_leaves(extents, 4 * LEAF_BYTES, half), half, "the volume's short last leaf");
    assert_eq!(zero_leaves([], 0, LEAF_BYTES), 0, "a store that can't tell");
    assert_eq!(zero_leaves([(LEAF_BYTES, true)], LEAF_BYTES, LEAF_BYTES), 0);
}
