use super::*;

const MIB: u64 = 1 << 20;
/// Begins with the pattern of operation 0.
const AT: u64 = 2 * MIB;

fn op(number: u32, kind: Kind, offset: u64, len: u32, events: (u64, u64)) -> Op {
    let (submitted, acknowledged) = events;
    let (submitted_us, answered_us) = (0, 0);
    let connection = 0;
    Op { number, connection, kind, offset, len, submitted, acknowledged, submitted_us, answered_us }
}

fn write(number: u32, offset: u64, len: u32, events: (u64, u64)) -> Op {
    op(number, Kind::Write { fua: false }, offset, len, events)
}

fn log(ops: Vec<Op>) -> Log {
    Log { pattern: Pattern { seed: 3 }, size_bytes: 4 * MIB, ops }
}

/// The disk from `AT` on with some operations done.
fn disk(log: &Log, done: &[usize]) -> Vec<u8> {
    let mut bytes = vec![0; 64 * 1024];
    log.pattern.fill_base(AT, &mut bytes);
    for index in done {
        let op = &log.ops[*index];
        let from = usize::try_from(op.offset - AT).expect("small");
        let out = &mut bytes[from..from + op.len as usize];
        match op.kind {
            Kind::Write { .. } => log.pattern.fill(op.number, op.offset, out),
            _ => out.fill(0),
        }
    }
    bytes
}

fn check(log: &Log, bytes: &[u8], window: Interval) -> Result<(), Contradiction> {
    let history = History::new(log);
    Check::new(&history, window).bytes(AT, bytes)
}

fn all(log: &Log, bytes: &[u8]) -> Result<(), Contradiction> {
    check(log, bytes, Interval::new(0, NEVER))
}

#[test]
fn every_prefix_of_writes_one_after_the_other_is_allowed_and_nothing_else() {
    let log = log(vec![
        write(1, AT, 8192, (1, 2)),
        write(2, AT + 4096, 8192, (3, 4)),
        op(3, Kind::Zeroes { no_hole: false }, AT + 16384, 4096, (5, 6)),
    ]);
    for done in [&[][..], &[0], &[0, 1], &[0, 1, 2]] {
        all(&log, &disk(&log, done)).expect("a prefix");
    }
    for done in [&[1][..], &[2], &[1, 2], &[0, 2], &[2, 1, 0]] {
        all(&log, &disk(&log, done)).expect_err("a hole in the order");
    }
}

#[test]
fn operations_in_flight_together_may_be_there_or_not_and_in_either_order() {
    let log = log(vec![
        write(1, AT, 8192, (1, 4)),
        write(2, AT + 4096, 8192, (2, 3)),
        write(3, AT + 32768, 512, (5, 6)),
    ]);
    for done in [&[][..], &[0], &[1], &[0, 1], &[1, 0], &[0, 1, 2], &[1, 0, 2]] {
        all(&log, &disk(&log, done)).expect("possible");
    }
    for done in [&[2][..], &[0, 2], &[1, 2]] {
        all(&log, &disk(&log, done)).expect_err("the third write waited for both");
    }
}

#[test]
fn what_was_never_acknowledged_may_be_there_in_part() {
    let log = log(vec![write(1, AT, 8192, (1, NEVER)), write(2, AT + 8192, 512, (2, 3))]);
    let mut torn = disk(&log, &[0, 1]);
    torn[..4096].copy_from_slice(&disk(&log, &[1])[..4096]);
    all(&log, &torn).expect("torn");
    let end = Interval::new(NEVER - 1, NEVER - 1);
    check(&log, &torn, end).expect("also at the end");
    check(&log, &disk(&log, &[0]), end).expect_err("the second was acknowledged");
}

#[test]
fn a_trim_may_zero_or_leave_and_odd_bytes_count() {
    let log = log(vec![write(1, AT + 3, 1001, (1, 2)), op(2, Kind::Trim, AT + 5, 500, (3, 4))]);
    all(&log, &disk(&log, &[0])).expect("left");
    all(&log, &disk(&log, &[0, 1])).expect("zeroed");
    all(&log, &disk(&log, &[1])).expect_err("zeroed, and the write is not there");
    for place in [0, 2, 3, 4, 700, 1003, 1004, 40_000] {
        let mut flipped = disk(&log, &[0]);
        flipped[place] ^= 4;
        all(&log, &flipped).expect_err(&format!("flipped at {place}"));
    }
}

#[test]
fn what_is_known_of_the_moment_refuses_other_states() {
    let log = log(vec![write(1, AT, 512, (1, 2)), write(2, AT + 512, 512, (3, 4))]);
    let after_first = Interval::new(1, 2);
    check(&log, &disk(&log, &[0]), after_first).expect("that one");
    check(&log, &disk(&log, &[0, 1]), after_first).expect_err("a later one");
    check(&log, &disk(&log, &[]), Interval::new(3, 4)).expect_err("an earlier one");
}
