use super::*;
use crate::witness::pattern::Pattern;

fn op(number: u32, offset: u64, len: u32, submitted: u64, acknowledged: u64) -> Op {
    let kind = Kind::Write { fua: false };
    // The wall clock goes one second for each event.
    let us = |event: u64| if event == NEVER { i64::MAX } else { event.cast_signed() * 1_000_000 };
    let (submitted_us, answered_us) = (us(submitted), us(acknowledged));
    Op {
        number,
        connection: 0,
        kind,
        offset,
        len,
        submitted,
        acknowledged,
        submitted_us,
        answered_us,
    }
}

fn record(seq: u64, second: i64, offset: u64, len: u64) -> Record {
    let time = jiff::Timestamp::from_second(second).expect("a time");
    Record { seq, time, kind: "write".into(), offset, len }
}

fn check(ops: &[Op], records: Vec<Record>) -> Result<Vec<Interval>, String> {
    let log = Log { pattern: Pattern { seed: 1 }, size_bytes: 1 << 20, ops: ops.to_vec() };
    let history = History::new(&log);
    let checked = Journal::check(records, &log, &history).map_err(|error| format!("{error:#}"));
    checked.map(|journal| journal.windows)
}

#[test]
fn a_journal_in_order_gives_the_windows_of_its_states() {
    let ops = [op(1, 0, 8192, 1, 3), op(2, 4096, 512, 4, 5), op(3, 4096, 512, 6, NEVER)];
    let windows =
        check(&ops, vec![record(7, 2, 4096, 4096), record(8, 2, 0, 4096), record(9, 5, 4096, 512)]);
    let expected = vec![Interval::new(1, 3), Interval::new(1, 5), Interval::new(4, NEVER)];
    assert_eq!(windows, Ok(expected));
}

#[test]
fn what_is_missing_twice_unknown_or_out_of_order_is_said() {
    let ops = [op(1, 0, 512, 1, 3), op(2, 4096, 512, 4, 6)];
    let (one, two) = (record(7, 2, 0, 512), record(8, 5, 4096, 512));
    let text = |records: Vec<Record>| check(&ops, records).expect_err("a bad journal");
    assert!(text(vec![one.clone()]).starts_with("operation 2 (512 bytes at 4096)"));
    let again = record(9, 2, 0, 512);
    assert!(text(vec![one.clone(), two.clone(), again]).ends_with("is in the journal already"));
    let strange = record(9, 5, 65536, 512);
    assert!(text(vec![one.clone(), two.clone(), strange]).ends_with("nobody wrote that"));
    assert!(text(vec![two, one]).starts_with("state 8 can't be"));
}

#[test]
fn what_was_written_before_a_copy_may_be_in_it() {
    let ops = [op(1, 0, 512, 1, 3), op(2, 4096, 512, 4, 6)];
    let begin = Record { kind: "resync-begin".into(), ..record(6, 3, 0, 0) };
    check(&ops, vec![begin.clone(), record(7, 5, 4096, 512)]).expect("the first is in the copy");
    let text = check(&ops, vec![begin]).expect_err("the second is behind it");
    assert!(text.starts_with("operation 2 (512 bytes at 4096)"), "{text}");
}

#[test]
fn a_record_that_two_operations_explain_says_nothing() {
    let ops = [op(1, 0, 8192, 1, 4), op(2, 4096, 4096, 2, 3)];
    let windows = check(&ops, vec![record(7, 2, 0, 4096), record(8, 2, 4096, 4096)]);
    assert_eq!(windows, Ok(vec![Interval::new(1, NEVER), Interval::new(1, NEVER)]));
}
