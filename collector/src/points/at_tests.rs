//! AT against a small history: records 10, 20, … 90 captured at seconds 1,000 to 1,008, with a
//! span from 40 up to 60.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::error::FailureKind;

const SECOND: u64 = 1_000_000;

struct Fake {
    durable: u64,
    span: Option<(u64, Option<u64>)>,
}

fn time_of(seq: u64) -> WallMicros {
    WallMicros((999 + seq / 10) * SECOND)
}

impl History for Fake {
    fn durable(&self) -> Seq {
        Seq(self.durable)
    }

    fn oldest(&self) -> Option<Seq> {
        (self.durable > 0).then_some(Seq(10))
    }

    fn floor(&self, seq: Seq) -> Result<Option<(Seq, WallMicros)>> {
        let seq = seq.0.min(self.durable) / 10 * 10;
        Ok((seq > 0).then(|| (Seq(seq), time_of(seq))))
    }

    fn at_time(&self, time: WallMicros) -> Result<Option<(Seq, WallMicros)>> {
        let seqs = (1..=self.durable / 10).map(|n| n * 10);
        Ok(seqs.rev().find(|seq| time_of(*seq) <= time).map(|seq| (Seq(seq), time_of(seq))))
    }

    fn offerable(&self, seq: Seq) -> std::result::Result<(), NotOffered> {
        if seq.0 > self.durable {
            return Err(NotOffered::AfterEnd { newest: Seq(self.durable) });
        }
        if seq.0 < 10 {
            return Err(NotOffered::BeforeStart { oldest: Seq(10) });
        }
        match self.span {
            Some((begin, end)) if seq.0 >= begin && end.is_none_or(|end| seq.0 < end) => {
                let before = (begin > 10).then(|| Seq(begin - 10));
                Err(NotOffered::InSpan { before, after: end.map(Seq) })
            }
            _ => Ok(()),
        }
    }
}

const HISTORY: Fake = Fake { durable: 90, span: Some((40, Some(60))) };

fn point(id: u8, label: &str, seq: u64, kind: PointKind) -> Point {
    Point {
        id: PointId::from_bytes([id; 16]),
        kind,
        label: label.into(),
        reason: String::new(),
        seq: Seq(seq),
        time: time_of(seq),
    }
}

fn points() -> Vec<Point> {
    vec![
        point(1, "before-upgrade", 30, PointKind::Person),
        point(2, "inside", 50, PointKind::Person),
        point(3, "", 70, PointKind::App),
        point(4, "twice", 70, PointKind::Person),
        point(5, "twice", 80, PointKind::Person),
    ]
}

fn resolve(text: &str, history: &Fake) -> Result<State> {
    At::parse(text)?.resolve(history, &points(), WallMicros(1_010 * SECOND))
}

#[test]
fn every_form_finds_its_state() {
    for (text, seq) in [
        ("latest", 90),
        ("latest-app", 70),
        ("seq:30", 30),
        ("seq:35", 35),
        ("before-upgrade", 30),
        ("01010101-0101-0101-0101-010101010101", 30),
        ("1970-01-01T00:16:47Z", 80),
        ("1970-01-01T01:16:47.5+01:00", 80),
        ("2s", 90),
        ("4s", 70),
        ("0m4s", 70),
        (" latest ", 90),
    ] {
        assert_eq!(resolve(text, &HISTORY).unwrap().seq, Seq(seq), "{text}");
    }
    let state = resolve("before-upgrade", &HISTORY).unwrap();
    assert_eq!(state.point.unwrap().label, "before-upgrade");
    assert_eq!(state.time, Some(time_of(30)));
    assert_eq!(resolve("seq:35", &HISTORY).unwrap().time, Some(time_of(30)));
}

#[test]
fn what_does_not_exist_names_the_nearest() {
    for (text, kind, words) in [
        ("seq:91", FailureKind::NotFound, vec!["does not exist yet", "seq:90"]),
        ("seq:3", FailureKind::NotFound, vec!["no longer kept", "seq:10"]),
        ("seq:45", FailureKind::NotFound, vec!["seq:30 (1970-01-01T00:16:42Z)", "seq:60"]),
        ("inside", FailureKind::NotFound, vec!["\"inside\"", "seq:30", "seq:60"]),
        ("6s", FailureKind::NotFound, vec!["1970-01-01T00:16:44Z", "seq:30", "seq:60"]),
        ("1h", FailureKind::NotFound, vec!["nothing as old", "seq:10"]),
        ("1970-01-01T00:20:00Z", FailureKind::NotFound, vec!["future", "seq:90"]),
        ("befor-upgrade", FailureKind::NotFound, vec!["did you mean before-upgrade?"]),
        ("lastest", FailureKind::NotFound, vec!["did you mean latest?"]),
        ("2026-13-01", FailureKind::NotFound, vec!["a time such as"]),
        ("twice", FailureKind::Conflict, vec!["04040404-", "05050505-"]),
        ("seq:x", FailureKind::Invalid, vec!["sequence number"]),
        ("", FailureKind::Invalid, vec!["latest"]),
    ] {
        let error = resolve(text, &HISTORY).unwrap_err();
        assert_eq!(error.kind, kind, "{text}: {error}");
        for word in words {
            assert!(error.to_string().contains(word), "{text}: {error}");
        }
    }
}

#[test]
fn latest_stays_before_a_span_that_is_open() {
    let open = Fake { durable: 90, span: Some((80, None)) };
    assert_eq!(resolve("latest", &open).unwrap().seq, Seq(70));
    let first_copy = Fake { durable: 90, span: Some((10, None)) };
    let error = resolve("latest", &first_copy).unwrap_err();
    assert_eq!(error.kind, FailureKind::Unavailable);
    let empty = Fake { durable: 0, span: None };
    for text in ["latest", "5m"] {
        assert_eq!(resolve(text, &empty).unwrap_err().kind, FailureKind::Unavailable, "{text}");
    }
}

#[test]
fn ages_are_numbers_with_units() {
    assert_eq!(parse_age("5m"), Some(300 * SECOND));
    assert_eq!(parse_age("1h30m"), Some(5_400 * SECOND));
    assert_eq!(parse_age("2d"), Some(172_800 * SECOND));
    for text in ["5", "m", "5x", "m5", "5m3", "99999999999999999999s", "18446744073709551615w"] {
        assert_eq!(parse_age(text), None, "{text}");
    }
}
