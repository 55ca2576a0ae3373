//! The state machine of a session, driven by hand.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use tidemark_wire::body::GapReason;
use tidemark_wire::compare::{LeafHash, NODE_BYTES, NodeRange, node_hash};
use tidemark_wire::frame::RecordsHeader;
use tidemark_wire::instruct::InstructKind;
use tidemark_wire::record::{self, RecordSpec};
use tidemark_wire::session::{Lineage, StandingState};
use tidemark_wire::{AgentId, AgentRun, JournalId, WallMicros};
use zerocopy::IntoBytes;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn hello() -> Hello {
    Hello {
        agent: AgentId::from_bytes([1; 16]),
        volume: VolumeId::from_bytes([2; 16]),
        journal: JournalId::NIL,
        timeline: Timeline(1),
        epoch: Epoch(0),
        released: Seq(0),
        newest: Seq(0),
        size_bytes: 1 << 20,
        block_bytes: 512,
        name: "disk".into(),
        run: AgentRun::default(),
        unsure_after: None,
    }
}

fn welcome(epoch: u64, durable: u64) -> Welcome {
    Welcome {
        journal: JournalId::from_bytes([3; 16]),
        timeline: Timeline(1),
        epoch: Epoch(epoch),
        durable: Seq(durable),
        span_open: Seq(0),
        window_bytes: 1 << 20,
        seeded: false,
        last_time: WallMicros(0),
        size_bytes: 1 << 20,
        lineage: Lineage::Same,
        compare: false,
        unsure: Vec::new(),
    }
}

fn give(session: &mut Session, now: Duration, kind: FrameKind, body: &[u8]) -> Vec<Action> {
    let mut out = Vec::new();
    let header = FrameHeader::for_body(kind, &[body]);
    session.frame(now, &header, kind, body.to_vec(), &mut out);
    out
}

/// A session that was opened at one second, and the first token that it has sent.
fn streaming(epoch: u64, durable: u64) -> (Session, SessionToken) {
    let mut session = Session::new(Duration::ZERO);
    let mut body = Vec::new();
    hello().encode(&mut body);
    let actions = give(&mut session, SECOND, FrameKind::Hello, &body);
    assert!(matches!(actions[..], [Action::Open(_)]));
    let mut out = Vec::new();
    session.opened(SECOND, Ok(welcome(epoch, durable)), &mut out);
    let [Action::Send(first), Action::Send(token)] = &out[..] else { panic!("{out:?}") };
    assert_eq!(first[6], FrameKind::Welcome as u8);
    (session, token_in(token))
}

fn token_in(frame: &[u8]) -> SessionToken {
    assert_eq!(frame[6], FrameKind::Token as u8);
    SessionToken(u64::from_le_bytes(frame[40..48].try_into().unwrap()))
}

fn records(epoch: u64, prev: u64, seqs: &[(u64, RecordKind)], token: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (seq, kind) in seqs {
        let payload: &[u8] = if *kind == RecordKind::Write { &[7; 512] } else { &[] };
        let len_bytes = payload.len() as u64;
        let payload_bytes = u32::try_from(payload.len()).unwrap();
        let spec =
            RecordSpec { kind: *kind, offset_bytes: 0, len_bytes, payload_bytes, flags: 0, aux: 0 };
        record::encode(&spec, Seq(*seq), WallMicros(*seq), payload, &mut bytes);
    }
    let header = RecordsHeader {
        timeline: 1.into(),
        count: u32::try_from(seqs.len()).unwrap().into(),
        epoch: epoch.into(),
        prev_seq: prev.into(),
        first_seq: seqs.first().map_or(prev, |(seq, _)| *seq).into(),
        last_seq: seqs.last().map_or(prev, |(seq, _)| *seq).into(),
        token: token.into(),
    };
    let mut body = header.as_bytes().to_vec();
    body.extend_from_slice(&bytes);
    body
}

fn refusal(actions: &[Action]) -> &Refuse {
    let [.., Action::Send(_), Action::Close(Close::Refused(refusal))] = actions else {
        panic!("{actions:?}")
    };
    refusal
}

#[test]
fn a_token_comes_back_with_the_time_at_which_it_was_sent() {
    let (mut session, first) = streaming(5, 10);
    let mut out = Vec::new();
    session.tick(SECOND * 2, &mut out);
    let [Action::Send(frame)] = &out[..] else { panic!("{out:?}") };
    let second = token_in(frame);
    assert!(second > first);
    for (token, sent_at) in [(first, SECOND), (second, SECOND * 2)] {
        let body = records(5, 10, &[], token.0);
        let actions = give(&mut session, SECOND * 9, FrameKind::Records, &body);
        let [Action::Append(batch)] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!((batch.count, batch.token_sent_at), (0, Some(sent_at)));
    }
    // Tokens of another session, or that were never sent, say nothing.
    let (_, foreign) = streaming(6, 10);
    for token in [foreign.0, second.0 + 1, u64::MAX] {
        let body = records(5, 10, &[], token);
        let actions = give(&mut session, SECOND * 9, FrameKind::Records, &body);
        let [Action::Append(batch)] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!(batch.token_sent_at, None);
    }
}

#[test]
fn only_a_gap_or_a_copy_may_follow_something_that_is_not_held() {
    use RecordKind::{Flush, Gap, Write};
    for (prev, seqs, fits) in [
        (10, vec![(11, Write), (14, Flush)], true),
        (10, vec![(400, Write)], true),
        (9, vec![(11, Write)], false),
        (12, vec![(13, Write)], false),
        (12, vec![(13, Gap)], true),
        (3, vec![(11, Gap), (12, Write)], true),
        (3, vec![(9, Gap)], false),
        (12, vec![], false),
    ] {
        let (mut session, _) = streaming(5, 10);
        let body = records(5, prev, &seqs, 0);
        let actions = give(&mut session, SECOND, FrameKind::Records, &body);
        if fits {
            assert!(matches!(actions[..], [Action::Append(_)]), "{prev} {seqs:?} {actions:?}");
        } else {
            assert_eq!(refusal(&actions).reason, RefuseReason::Protocol, "{prev} {seqs:?}");
        }
    }
}

/// The size of [`hello`].
const SIZE: u64 = 1 << 20;

fn resize(from: u64, to: u64) -> RecordSpec {
    let kind = RecordKind::Resize;
    RecordSpec { kind, offset_bytes: 0, len_bytes: to, payload_bytes: 0, flags: 0, aux: from }
}

fn trim(at: u64, len_bytes: u64) -> RecordSpec {
    let kind = RecordKind::Trim;
    RecordSpec { kind, offset_bytes: at, len_bytes, payload_bytes: 0, flags: 0, aux: 0 }
}

/// A frame of epoch 5 with records numbered from 11 on.
fn frame_of(specs: &[RecordSpec]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (seq, spec) in (11..).zip(specs) {
        record::encode(spec, Seq(seq), WallMicros(seq), &[], &mut bytes);
    }
    let count = u32::try_from(specs.len()).unwrap();
    let header = RecordsHeader {
        timeline: 1.into(),
        count: count.into(),
        epoch: 5.into(),
        prev_seq: 10.into(),
        first_seq: 11.into(),
        last_seq: (10 + u64::from(count)).into(),
        token: 0.into(),
    };
    [header.as_bytes(), &bytes].concat()
}

#[test]
fn every_record_has_to_fit_the_size_that_those_before_it_made() {
    for (specs, refused) in [
        (vec![resize(SIZE, 2 * SIZE), trim(SIZE, SIZE)], None),
        (vec![resize(SIZE, 512), trim(0, 512), resize(512, SIZE), trim(512, 512)], None),
        (vec![trim(SIZE, 1)], Some("ends at byte 1048577 of a volume of 1048576 bytes")),
        (vec![trim(SIZE, 1), resize(SIZE, 2 * SIZE)], Some("ends at byte")),
        (vec![resize(SIZE, 512), trim(0, 513)], Some("of a volume of 512 bytes")),
        (vec![resize(512, SIZE)], Some("of 512 bytes to 1048576, but it has 1048576")),
        (vec![resize(2 * SIZE, SIZE)], Some("but it has 1048576")),
        (vec![resize(SIZE, 0)], Some("a resize from 1048576 to 0 bytes")),
        (vec![resize(SIZE, u64::MAX)], Some("beyond the largest volume")),
    ] {
        let (mut session, _) = streaming(5, 10);
        let actions = give(&mut session, SECOND, FrameKind::Records, &frame_of(&specs));
        match refused {
            None => assert!(matches!(actions[..], [Action::Append(_)]), "{specs:?} {actions:?}"),
            Some(text) => {
                let refusal = refusal(&actions);
                assert_eq!(refusal.reason, RefuseReason::Protocol, "{specs:?}");
                assert!(refusal.text.contains(text), "{specs:?}: {}", refusal.text);
            }
        }
    }
}

#[test]
fn a_question_is_about_the_size_that_the_stream_has_reached() {
    let (mut session, _) = streaming(5, 10);
    give(&mut session, SECOND, FrameKind::Records, &frame_of(&[resize(SIZE, 8192)]));
    let range = NodeRange::new(0, 8192).unwrap();
    let actions = give(&mut session, SECOND, FrameKind::Compare, &question(10, range));
    assert!(matches!(actions[..], [Action::Compare(_)]), "{actions:?}");
    let actions = give(&mut session, SECOND, FrameKind::Compare, &question(10, whole()));
    assert!(refusal(&actions).text.contains("of a volume of 8192 bytes"), "{actions:?}");
}

#[test]
fn a_frame_of_another_epoch_is_never_appended() {
    let (mut session, _) = streaming(5, 10);
    let body = records(4, 10, &[(11, RecordKind::Write)], 0);
    let actions = give(&mut session, SECOND, FrameKind::Records, &body);
    assert!(refusal(&actions).text.contains("epoch 4"));
    assert!(give(&mut session, SECOND, FrameKind::Records, &body).is_empty(), "it is over");
}

#[test]
fn silence_and_waiting_have_a_bound() {
    let mut session = Session::new(SECOND);
    let mut out = Vec::new();
    session.tick(SECOND * 10, &mut out);
    assert!(out.is_empty());
    session.tick(session.due().unwrap(), &mut out);
    assert_eq!(refusal(&out).reason, RefuseReason::Protocol);

    let (mut session, _) = streaming(1, 0);
    let mut out = Vec::new();
    while !session.is_over() {
        session.tick(session.due().unwrap(), &mut out);
        assert!(out.len() < 100);
    }
    assert!(matches!(out.last(), Some(Action::Close(Close::Lost(_)))));
}

#[test]
fn a_body_that_does_not_match_its_sum_is_damage() {
    let (mut session, _) = streaming(5, 10);
    let body = records(5, 10, &[(11, RecordKind::Write)], 0);
    let header = FrameHeader::for_body(FrameKind::Records, &[&body]);
    let mut damaged = body.clone();
    damaged[100] ^= 1;
    let mut out = Vec::new();
    session.frame(SECOND, &header, FrameKind::Records, damaged, &mut out);
    assert_eq!(refusal(&out).reason, RefuseReason::Damaged);
}

proptest! {
    /// Whatever a peer sends, what is appended is a chain, and an end is an end.
    #[test]
    fn random_frames_never_break_the_chain(
        frames in proptest::collection::vec((1u8..=13, 0u64..20, 0u64..20, any::<bool>()), 0..20),
    ) {
        let (mut session, _) = streaming(5, 10);
        let (mut last, mut over) = (10, false);
        for (kind, prev, seq, gap) in frames {
            let kind = FrameKind::from_byte(kind).unwrap();
            let sort = if gap { RecordKind::Gap } else { RecordKind::Write };
            let body = records(5, prev, &[(seq.max(1), sort)], 0);
            for action in give(&mut session, SECOND, kind, &body) {
                prop_assert!(!over);
                match action {
                    Action::Append(batch) => {
                        let appended = RecordsBody::decode(&batch.body).unwrap();
                        prop_assert!(appended.header.first_seq.get() > last);
                        prop_assert!(gap || appended.header.prev_seq.get() == last);
                        last = appended.header.last_seq.get();
                    }
                    Action::Close(_) => over = true,
                    _ => {}
                }
            }
        }
    }
}

fn question(min_seq: u64, range: NodeRange) -> Vec<u8> {
    let nodes = vec![node_hash(&[LeafHash::ZERO]); range.node_count()];
    let mut body = Vec::new();
    Compare { id: [1; 16], min_seq: Seq(min_seq), exact: false, range, nodes }.encode(&mut body);
    body
}

/// The whole volume of [`hello`].
fn whole() -> NodeRange {
    NodeRange::new(0, 1 << 20).unwrap()
}

#[test]
fn a_question_is_taken_when_its_copy_has_begun_here_and_it_lies_in_the_volume() {
    let (mut session, _) = streaming(5, 10);
    let ask = |session: &mut Session, min_seq, range| {
        give(session, SECOND, FrameKind::Compare, &question(min_seq, range))
    };
    let taken = ask(&mut session, 10, whole());
    let [Action::Compare(taken)] = &taken[..] else { panic!("{taken:?}") };
    assert_eq!((taken.min_seq, taken.range), (Seq(10), whole()));

    let mut out = Vec::new();
    session.durable(Seq(14), &mut out);
    assert!(matches!(ask(&mut session, 14, whole())[..], [Action::Compare(_)]));
    let early = ask(&mut session, 15, whole());
    assert!(refusal(&early).text.contains("14 is the newest"), "{early:?}");

    for range in [NodeRange::new(0, 4096), NodeRange::new(NODE_BYTES, 4096)] {
        let (mut session, _) = streaming(5, 10);
        let actions = ask(&mut session, 10, range.unwrap());
        assert!(refusal(&actions).text.contains("of a volume of"), "{actions:?}");
    }
    let (mut session, _) = streaming(5, 10);
    let never = ask(&mut session, 0, whole());
    assert_eq!(refusal(&never).reason, RefuseReason::Protocol);
    let mut session = Session::new(Duration::ZERO);
    let before = ask(&mut session, 10, whole());
    assert_eq!(refusal(&before).reason, RefuseReason::Protocol);
}

#[test]
fn questions_without_an_answer_have_a_bound() {
    let (mut session, _) = streaming(5, 10);
    let body = question(10, whole());
    let differ = Differ { id: [1; 16], range: whole(), nodes: Vec::new() };
    for turn in 0..COMPARES_MAX * 3 {
        let actions = give(&mut session, SECOND, FrameKind::Compare, &body);
        assert!(matches!(actions[..], [Action::Compare(_)]), "{turn} {actions:?}");
        if turn + 1 >= COMPARES_MAX {
            let mut out = Vec::new();
            session.differed(&differ, &mut out);
            let [Action::Send(frame)] = &out[..] else { panic!("{out:?}") };
            assert_eq!(frame[6], FrameKind::Differ as u8);
        }
    }
    give(&mut session, SECOND, FrameKind::Compare, &body);
    let actions = give(&mut session, SECOND, FrameKind::Compare, &body);
    assert!(refusal(&actions).text.contains("questions without an answer"), "{actions:?}");
}

#[test]
fn what_a_person_wants_goes_out_and_the_standing_comes_in() {
    let (mut session, _) = streaming(5, 10);
    let mut out = Vec::new();
    let wanted = Instruct { id: [1; 16], what: InstructKind::Pause, from_bytes: 0 };
    session.instruct(&wanted, &mut out);
    let [Action::Send(frame)] = &out[..] else { panic!("{out:?}") };
    assert_eq!((frame[6], frame[40]), (FrameKind::Instruct as u8, 1));
    let standing = Standing {
        state: StandingState::Paused,
        reason: Some(GapReason::Paused),
        since: WallMicros(7),
        differing_bytes: 0,
        compare_next: false,
    };
    let mut body = Vec::new();
    standing.encode(&mut body);
    let actions = give(&mut session, SECOND, FrameKind::Standing, &body);
    assert!(
        matches!(&actions[..], [Action::Standing { epoch: Epoch(5), standing: told }] if *told == standing),
        "{actions:?}"
    );
    body[0] = 99;
    let actions = give(&mut session, SECOND, FrameKind::Standing, &body);
    assert_eq!(refusal(&actions).reason, RefuseReason::Protocol);
}
