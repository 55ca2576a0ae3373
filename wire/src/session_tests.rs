use proptest::prelude::*;

use super::*;

fn welcome(durable: u64) -> Welcome {
    Welcome {
        journal: JournalId::NIL,
        timeline: Timeline(1),
        epoch: Epoch(1),
        durable: Seq(durable),
        span_open: Seq(0),
        window_bytes: 0,
        seeded: false,
        last_time: WallMicros(0),
        size_bytes: 1 << 20,
        lineage: Lineage::Same,
        compare: false,
        unsure: Vec::new(),
    }
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut body = Vec::new();
    encode(&mut body);
    body
}

#[test]
fn a_number_from_which_nobody_can_count_on_is_refused() {
    for number in [COUNTER_MAX, COUNTER_MAX + 1, u64::MAX] {
        let is_good = number == COUNTER_MAX;
        let body = encoded(|out| welcome(number).encode(out));
        assert_eq!(Welcome::decode(&body).is_ok(), is_good, "{number}");
        let timed = Welcome { last_time: WallMicros(number), ..welcome(0) };
        let body = encoded(|out| timed.encode(out));
        assert_eq!(Welcome::decode(&body).is_ok(), is_good, "{number}");
        let since = WallMicros(number);
        let standing = Standing {
            state: StandingState::Whole,
            reason: None,
            since,
            differing_bytes: 0,
            compare_next: false,
        };
        let body = encoded(|out| standing.encode(out));
        assert_eq!(Standing::decode(&body).is_ok(), is_good, "{number}");
    }
}

#[test]
fn a_welcome_says_what_lies_below_the_journal() {
    for seeded in [false, true] {
        let wanted = Welcome { seeded, last_time: WallMicros(12), ..welcome(0) };
        assert_eq!(Welcome::decode(&encoded(|out| wanted.encode(out))), Ok(wanted));
    }
}

#[test]
fn a_welcome_says_who_remembers_less_and_never_that_both_do() {
    for lineage in [Lineage::Same, Lineage::SourceOlder, Lineage::CollectorOlder] {
        for compare in [false, true] {
            let wanted = Welcome { lineage, compare, ..welcome(3) };
            assert_eq!(Welcome::decode(&encoded(|out| wanted.encode(out))), Ok(wanted));
        }
    }
    let mut both = encoded(|out| welcome(3).encode(out));
    both[2] = 6;
    assert!(Welcome::decode(&both).is_err());
}

#[test]
fn a_hello_asks_and_a_welcome_says_what_an_agent_may_not_remember() {
    for unsure_after in [None, Some(Seq(0)), Some(Seq(COUNTER_MAX))] {
        let wanted = Hello {
            agent: AgentId::from_bytes([1; 16]),
            volume: VolumeId::from_bytes([2; 16]),
            journal: JournalId::NIL,
            timeline: Timeline(1),
            epoch: Epoch(1),
            released: Seq(0),
            newest: Seq(0),
            size_bytes: 1 << 20,
            block_bytes: 512,
            name: "data".into(),
            run: AgentRun::default(),
            unsure_after,
        };
        assert_eq!(Hello::decode(&encoded(|out| wanted.encode(out))), Ok(wanted));
    }
    let ranges = |count: u64| (0..count).map(|n| (n << 20, 4096)).collect::<Vec<_>>();
    for count in [0, 1, UNSURE_RANGES_MAX as u64] {
        let wanted = Welcome { unsure: ranges(count), ..welcome(3) };
        let body = encoded(|out| wanted.encode(out));
        assert_eq!(Welcome::decode(&body), Ok(wanted));
        assert!(Welcome::decode(&body[..body.len() - 1]).is_err(), "cut off");
    }
    let end = VOLUME_BYTES_MAX;
    for (range, is_good) in [((end - 1, 1), true), ((end, 1), false), ((1, u64::MAX), false)] {
        let body = encoded(|out| Welcome { unsure: vec![range], ..welcome(3) }.encode(out));
        assert_eq!(Welcome::decode(&body).is_ok(), is_good, "{range:?}");
    }
    let mut many = encoded(|out| Welcome { unsure: ranges(4096), ..welcome(3) }.encode(out));
    many[52] += 1;
    many.extend([0; 16]);
    assert_eq!(Welcome::decode(&many).expect_err("too many").kind, DecodeErrorKind::Limit);
}

#[test]
fn a_standing_says_that_the_next_start_has_to_compare() {
    let since = WallMicros(3);
    for compare_next in [false, true] {
        let differing_bytes = 1 << 30;
        let state = StandingState::Whole;
        let wanted = Standing { state, reason: None, since, differing_bytes, compare_next };
        assert_eq!(Standing::decode(&encoded(|out| wanted.encode(out))), Ok(wanted));
    }
}

#[test]
fn a_size_that_no_volume_has_is_refused() {
    for (size_bytes, is_good) in [
        (0, false),
        (1, true),
        (VOLUME_BYTES_MAX, true),
        (VOLUME_BYTES_MAX + 1, false),
        (u64::MAX, false),
    ] {
        let body = encoded(|out| Welcome { size_bytes, ..welcome(0) }.encode(out));
        assert_eq!(Welcome::decode(&body).is_ok(), is_good, "{size_bytes}");
    }
}

#[test]
fn every_standing_comes_back() {
    for byte in 0..=u8::MAX {
        let mut standing = [0; 24];
        (standing[0], standing[17]) = (byte, 1);
        assert_eq!(Standing::decode(&standing).is_ok(), (1..=4).contains(&byte), "{byte}");
        (standing[0], standing[1]) = (3, byte);
        let decoded = Standing::decode(&standing);
        let reason = GapReason::from_number(byte.into());
        assert_eq!(decoded.is_ok(), byte == 0 || reason.is_some(), "{byte}");
        if let Ok(decoded) = decoded {
            assert_eq!((decoded.state, decoded.reason), (StandingState::Lost, reason));
            assert_eq!(decoded.differing_bytes, 256);
            assert_eq!(encoded(|out| decoded.encode(out)), standing);
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_break_a_decoder(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = (Hello::decode(&bytes), Welcome::decode(&bytes), Refuse::decode(&bytes));
        let _ = (Standing::decode(&bytes), Progress::decode(&bytes));
    }
}
