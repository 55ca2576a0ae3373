//! Golden frames: one file for each kind of frame; this version decodes them and makes them
//! again byte by byte. Damaged ones are refused with the part that is wrong.
//!
//! `TIDEMARK_BLESS=1` writes the files anew, after a deliberate change of the protocol only.
#![allow(clippy::unwrap_used, reason = "tests")]

mod journal_support;

use std::path::PathBuf;

use journal_support::golden;
use tidemark_wire::body::{Bookmark, GapReason};
use tidemark_wire::compare::{
    Compare, Differ, DifferNode, LEAF_BYTES, LeafHash, NODE_BYTES, NodeRange, leaf_hash, node_hash,
};
use tidemark_wire::frame::{self, FRAME_HEADER_BYTES, FrameHeader, FrameKind, RecordsBody};
use tidemark_wire::frame::{RECORDS_HEADER_BYTES, RecordsHeader};
use tidemark_wire::instruct::{Instruct, InstructKind, Obeyed, Verified, VerifyState};
use tidemark_wire::session::{
    Ack, Hello, Lineage, Progress, Refuse, RefuseReason, Standing, StandingState, Token, Welcome,
};
use tidemark_wire::{
    AgentId, AgentRun, DecodeErrorKind, Epoch, JournalId, Seq, Timeline, VolumeId, WallMicros,
};
use zerocopy::IntoBytes;

fn path(name: &str) -> PathBuf {
    golden::testdata().join("wire").join(format!("frame-{name}.bin"))
}

fn hello() -> Hello {
    Hello {
        agent: AgentId::from_bytes([0xA0; 16]),
        volume: VolumeId::from_bytes([1; 16]),
        journal: JournalId::from_bytes([2; 16]),
        timeline: Timeline(1),
        epoch: Epoch(2),
        released: Seq(0x11),
        newest: Seq(0x26),
        size_bytes: 1 << 30,
        block_bytes: 512,
        name: "mail, root disk".into(),
        run: AgentRun([1, 2, 3, 4, 5, 6]),
        unsure_after: Some(Seq(0x1F)),
    }
}

fn welcome() -> Welcome {
    Welcome {
        journal: JournalId::from_bytes([2; 16]),
        timeline: Timeline(1),
        epoch: Epoch(3),
        durable: Seq(0x20),
        span_open: Seq(0),
        window_bytes: 4 << 20,
        seeded: true,
        last_time: WallMicros(1_700_000_000_000_000),
        size_bytes: 1 << 30,
        lineage: Lineage::CollectorOlder,
        compare: true,
        unsure: vec![(1 << 20, 3 << 20), (1 << 29, 512)],
    }
}

fn refuse() -> Refuse {
    Refuse { reason: RefuseReason::Fenced, text: "a newer session of the volume exists".into() }
}

fn progress() -> Progress {
    Progress { done_bytes: 7.into(), total_bytes: 9.into(), sent_bytes: 5.into() }
}

/// Two nodes of a volume that ends in the second one's third leaf.
fn nodes() -> NodeRange {
    NodeRange::new(NODE_BYTES, NODE_BYTES + 2 * LEAF_BYTES + 512).unwrap()
}

fn compare() -> Compare {
    let hash = |text: &str| node_hash(&[leaf_hash(text.as_bytes()), LeafHash::ZERO]);
    let nodes_of = vec![hash("one"), hash("two")];
    Compare { id: [0xC0; 16], min_seq: Seq(0x21), exact: true, range: nodes(), nodes: nodes_of }
}

fn differ() -> Differ {
    let leaves = vec![leaf_hash(b"three"), LeafHash::UNKNOWN, LeafHash::of_zeroes(512)];
    Differ { id: [0xC0; 16], range: nodes(), nodes: vec![DifferNode { index: 1, leaves }] }
}

fn standing() -> Standing {
    let since = WallMicros(1_700_000_000_000_001);
    let reason = Some(GapReason::RingFull);
    let differing_bytes = 3 * LEAF_BYTES;
    Standing { state: StandingState::Lost, reason, since, differing_bytes, compare_next: true }
}

fn instruct() -> Instruct {
    Instruct { id: [0xD0; 16], what: InstructKind::Verify, from_bytes: NODE_BYTES }
}

fn verified() -> Verified {
    Verified {
        id: [0xD0; 16],
        state: VerifyState::Done,
        reached_bytes: 5 * NODE_BYTES,
        compared_bytes: 4 * NODE_BYTES,
        differing_bytes: LEAF_BYTES,
        unreadable_bytes: 512,
        ranges: vec![(NODE_BYTES, LEAF_BYTES), (5 * NODE_BYTES - 512, 512)],
    }
}

fn records_body() -> Vec<u8> {
    let records = golden::records();
    let header = RecordsHeader {
        timeline: 1.into(),
        count: u32::try_from(records.len()).unwrap().into(),
        epoch: 3.into(),
        prev_seq: 0.into(),
        first_seq: 1.into(),
        last_seq: 0x26.into(),
        token: 77.into(),
    };
    let mut body = header.as_bytes().to_vec();
    records.iter().for_each(|made| body.extend_from_slice(&made.bytes));
    body
}

/// The body of each kind as this version makes it.
fn bodies() -> Vec<(&'static str, FrameKind, Vec<u8>)> {
    let body = |encode: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        encode(&mut out);
        out
    };
    vec![
        ("hello", FrameKind::Hello, body(&|out| hello().encode(out))),
        ("welcome", FrameKind::Welcome, body(&|out| welcome().encode(out))),
        ("refuse", FrameKind::Refuse, body(&|out| refuse().encode(out))),
        ("records", FrameKind::Records, records_body()),
        ("ack", FrameKind::Ack, body(&|out| Ack { durable: 0x26.into() }.encode(out))),
        ("token", FrameKind::Token, body(&|out| Token { token: 77.into() }.encode(out))),
        (
            "bookmark-request",
            FrameKind::BookmarkRequest,
            body(&|out| golden::bookmark("before the upgrade").encode(out)),
        ),
        ("progress", FrameKind::Progress, body(&|out| progress().encode(out))),
        ("goodbye", FrameKind::Goodbye, Vec::new()),
        ("compare", FrameKind::Compare, body(&|out| compare().encode(out))),
        ("differ", FrameKind::Differ, body(&|out| differ().encode(out))),
        ("instruct", FrameKind::Instruct, body(&|out| instruct().encode(out))),
        ("standing", FrameKind::Standing, body(&|out| standing().encode(out))),
        ("obeyed", FrameKind::Obeyed, body(&|out| Obeyed { id: [0xD0; 16] }.encode(out))),
        ("verified", FrameKind::Verified, body(&|out| verified().encode(out))),
    ]
}

/// The file of a frame: its kind and body, checked.
fn read(name: &str) -> (FrameKind, Vec<u8>) {
    let bytes = std::fs::read(path(name)).unwrap();
    let (header, kind) = FrameHeader::decode(&bytes).unwrap();
    let body = bytes[FRAME_HEADER_BYTES..].to_vec();
    assert_eq!(header.body_bytes.get() as usize, body.len());
    header.check_body(&body).unwrap();
    let mut again = Vec::new();
    frame::encode(kind, &body, &mut again);
    assert!(again == bytes, "{name} is framed differently now");
    (kind, body)
}

#[test]
fn golden_frames_are_made_again_byte_by_byte() {
    for (name, kind, body) in bodies() {
        if golden::blessing() {
            std::fs::create_dir_all(path(name).parent().unwrap()).unwrap();
            let mut bytes = Vec::new();
            frame::encode(kind, &body, &mut bytes);
            std::fs::write(path(name), bytes).unwrap();
        }
        let (found, held) = read(name);
        assert_eq!(found, kind);
        if kind != FrameKind::Records {
            assert_eq!(held, body, "{name}");
        }
    }
}

#[test]
fn golden_frames_say_what_was_put_in() {
    assert_eq!(Hello::decode(&read("hello").1).unwrap(), hello());
    assert_eq!(Welcome::decode(&read("welcome").1).unwrap(), welcome());
    assert_eq!(Refuse::decode(&read("refuse").1).unwrap(), refuse());
    assert_eq!(Ack::decode(&read("ack").1).unwrap().durable.get(), 0x26);
    assert_eq!(Token::decode(&read("token").1).unwrap().token.get(), 77);
    assert_eq!(Progress::decode(&read("progress").1).unwrap(), progress());
    assert_eq!(Compare::decode(&read("compare").1).unwrap(), compare());
    assert_eq!(Differ::decode(&read("differ").1).unwrap(), differ());
    assert_eq!(Instruct::decode(&read("instruct").1).unwrap(), instruct());
    assert_eq!(Obeyed::decode(&read("obeyed").1).unwrap(), Obeyed { id: [0xD0; 16] });
    assert_eq!(Verified::decode(&read("verified").1).unwrap(), verified());
    assert_eq!(Standing::decode(&read("standing").1).unwrap(), standing());
    let bookmark = Bookmark::decode(&read("bookmark-request").1).unwrap();
    assert_eq!(bookmark, golden::bookmark("before the upgrade"));

    let (_, body) = read("records");
    let decoded = RecordsBody::decode(&body).unwrap();
    assert_eq!((decoded.header.epoch(), decoded.header.prev_seq()), (Epoch(3), Seq(0)));
    // How small a payload gets may change with the compressor; the payload may not.
    let wanted = records_body();
    let wanted = RecordsBody::decode(&wanted).unwrap();
    let mut count = 0;
    for (decoded, wanted) in decoded.records().zip(wanted.records()) {
        let (decoded, wanted) = (decoded.unwrap(), wanted.unwrap());
        let (mut one, mut other) = (Vec::new(), Vec::new());
        assert_eq!(decoded.payload(&mut one).unwrap(), wanted.payload(&mut other).unwrap());
        assert_eq!((decoded.header.seq(), decoded.kind), (wanted.header.seq(), wanted.kind));
        assert_eq!(decoded.sums, wanted.sums);
        count += 1;
    }
    assert_eq!(count, golden::records().len());
}

#[test]
fn damaged_frames_are_refused_with_the_part_that_is_wrong() {
    let bytes = std::fs::read(path("records")).unwrap();
    let header = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        FrameHeader::decode(&bytes).map(|(header, _)| header)
    };
    let magic = header(&|bytes| bytes[0] ^= 1).unwrap_err();
    assert_eq!(magic.to_string(), "frame: the peer does not speak this protocol");
    let version = header(&|bytes| bytes[4] = 9).unwrap_err();
    assert_eq!(version.to_string(), "frame: version 9, this side speaks 1");
    let sum = header(&|bytes| bytes[9] ^= 1).unwrap_err();
    assert_eq!(sum.to_string(), "frame: header checksum does not match");
    let short = header(&|bytes| bytes.truncate(39)).unwrap_err();
    assert_eq!(short.to_string(), "frame: 39 of 40 bytes are there");

    let (good, _) = FrameHeader::decode(&bytes).unwrap();
    let mut body = bytes[FRAME_HEADER_BYTES..].to_vec();
    body[5000] ^= 1;
    let refused = good.check_body(&body).unwrap_err();
    assert_eq!(refused.to_string(), "frame: body checksum does not match");

    let mut body = bytes[FRAME_HEADER_BYTES..].to_vec();
    body[RECORDS_HEADER_BYTES + 3] ^= 1;
    let refused = RecordsBody::decode(&body).unwrap_err();
    assert_eq!(refused.kind, DecodeErrorKind::Checksum);
    assert!(refused.to_string().starts_with("change record: header checksum of record"));
}
