//! A process that pushes without end is killed at random instants, again and again, on one ring.
//! After each kill the independent reader and the recovery have to agree with a witness file in
//! which the process noted what it had committed.

#![allow(clippy::disallowed_methods, reason = "a test waits in real time")]

mod ring_support;

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use ring_support::*;
use tidemark_agent::ring::dump::{self, EntryState};
use tidemark_agent::ring::{Consumer, Next, Ring, RingSpec};
use tidemark_wire::record::check_pieces;
use tidemark_wire::{RecordKind, Seq};

const CHILD_DIR: &str = "TIDEMARK_RING_KILL_DIR";
const PRODUCERS: u64 = 3;
const ROUNDS: u64 = 60;

fn kill_spec() -> RingSpec {
    spec(2 << 20, 64)
}

fn witness(dir: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(dir.join("witness")).expect("a file on tmpfs")
}

/// Pushes without end, with a few records in flight at any time, ended in any order.
fn produce(ring: &Ring, witness: &File, producer: u64, mut dice: Dice) {
    let mut open = Vec::new();
    loop {
        let offset = producer * (1 << 30) + dice.below(1 << 20);
        let len = 1 + usize::try_from(dice.below(30_000)).expect("small");
        let in_flight = if dice.below(8) == 0 {
            let trim = plain_spec(RecordKind::Trim, offset, 1 << 16);
            ring.claim(&trim, None).ok()
        } else {
            push(ring, offset, len, dice.roll().to_le_bytes()[0])
        };
        let is_full = in_flight.is_none();
        open.extend(in_flight);
        if open.is_empty() || (open.len() < 4 && !is_full) {
            thread::yield_now();
            continue;
        }
        let index = usize::try_from(dice.below(open.len() as u64)).expect("small");
        let ended = open.swap_remove(index);
        let seq = ended.seq().0;
        if dice.below(8) == 0 {
            ended.void();
        } else {
            ended.commit();
            witness.write_all_at(&seq.to_le_bytes(), producer * 8).expect("noted");
        }
    }
}

fn consume(consumer: &mut Consumer, mut dice: Dice) -> ! {
    loop {
        match consumer.next() {
            Next::Record(record) => {
                assert!(record.payload.is_empty() || is_pattern(record.payload));
                let seq = record.header.seq();
                if dice.below(4) == 0 {
                    consumer.release_through(seq);
                }
            }
            Next::InFlight | Next::Empty => consumer.wait(Duration::from_millis(20)),
        }
    }
}

/// The process that is killed; it does nothing unless the test below has started it.
#[test]
fn child_that_pushes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let dir = Path::new(&dir);
    let seed = std::process::id().into();
    let (ring, recovery) = open(&dir.join("ring"), &kill_spec()).expect("what the last one left");
    for range in &recovery.in_flight {
        let read_back = push(&ring, range.start(), 100, 0);
        if let Some(read_back) = read_back {
            read_back.commit();
        }
    }
    ring.settle(recovery);
    let witness = witness(dir);
    println!("ready");
    thread::scope(|scope| {
        for producer in 0..PRODUCERS {
            let (ring, witness) = (&ring, &witness);
            let dice = Dice(seed * 10 + producer + 1);
            scope.spawn(move || produce(ring, witness, producer, dice));
        }
        consume(&mut ring.consumer().expect("nobody has the role"), Dice(seed));
    });
}

fn kill_after(dir: &Path, pause: Duration) {
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "child_that_pushes_until_it_is_killed", "--nocapture"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test runs");
    let mut said = Vec::new();
    let mut byte = [0];
    let mut out = child.stdout.take().expect("piped");
    while !said.ends_with(b"ready\n") && out.read(&mut byte).expect("readable") == 1 {
        said.push(byte[0]);
    }
    thread::sleep(pause);
    let live = dump::read(&dir.join("ring")).expect("a ring");
    assert!(live.entries.iter().all(|entry| entry.damage.is_none()), "in use: {live:?}");
    let status = child.try_wait().expect("a child");
    assert!(status.is_none(), "it ended by itself: {}", String::from_utf8_lossy(&said));
    child.kill().expect("it runs");
    child.wait().expect("a child");
}

/// Checks what the kill left; returns the number of complete records and of those in flight.
fn check_after_kill(dir: &Path, last_seq: &mut Seq) -> (u64, usize) {
    let path = dir.join("ring");
    let dump = dump::read(&path).expect("a ring");
    let released = dump.released_seq;
    let mut committed = Vec::new();
    for entry in &dump.entries {
        assert!(entry.damage.is_none(), "{entry:?}");
        if entry.state == EntryState::Committed {
            committed.push(entry.header.seq().0);
        }
    }
    assert!(committed.is_sorted_by(|a, b| a < b), "numbers rise with tickets");
    for producer in 0..PRODUCERS {
        let mut bytes = [0; 8];
        witness(dir).read_exact_at(&mut bytes, producer * 8).unwrap_or_default();
        let seq = u64::from_le_bytes(bytes);
        assert!(seq <= released || committed.contains(&seq), "record {seq} is lost");
    }
    let in_flight: Vec<_> =
        dump.entries.iter().filter(|e| e.state == EntryState::InFlight).collect();

    let (ring, recovery) = open(&path, &kill_spec()).expect("what is left is whole");
    assert_eq!(recovery.kept, committed.len() as u64);
    let starts: Vec<_> = recovery.in_flight.iter().map(|range| range.start()).collect();
    let expected: Vec<_> = in_flight.iter().map(|e| e.header.offset_bytes.get()).collect();
    assert_eq!(starts, expected);
    // What the ring held may be less than before: a record in flight at one kill is void and
    // gone by the next. The numbers that are given out from here on may not.
    assert!(ring.next_seq() > *last_seq, "numbers never go back");
    assert!(ring.next_seq() > recovery.last_seq);
    *last_seq = recovery.last_seq.max(*last_seq);
    (recovery.kept, starts.len())
}

#[test]
fn nothing_that_was_committed_is_lost_by_a_kill() {
    let dir = tmpfs_dir();
    drop(create(&dir.path().join("ring"), &kill_spec()).expect("a new ring"));
    let mut dice = Dice(0x7469_6465);
    let mut last_seq = Seq(0);
    let (mut kept, mut in_flight) = (0, 0);
    for _ in 0..ROUNDS {
        kill_after(dir.path(), Duration::from_micros(dice.below(30_000)));
        let found = check_after_kill(dir.path(), &mut last_seq);
        kept += found.0;
        in_flight += found.1;
    }
    println!("{ROUNDS} kills: {kept} records kept, {in_flight} in flight, numbers to {last_seq}");
    assert!(kept > ROUNDS && in_flight > 0, "the process was killed at work");
}

#[test]
fn a_full_read_of_the_kept_records_holds_their_checksums() {
    let dir = tmpfs_dir();
    let path = dir.path().join("ring");
    drop(create(&path, &kill_spec()).expect("a new ring"));
    kill_after(dir.path(), Duration::from_millis(20));
    let (ring, recovery) = open(&path, &kill_spec()).expect("what is left is whole");
    let kept = recovery.kept;
    ring.settle(recovery);
    let mut read = 0;
    let mut consumer = ring.consumer().expect("nobody has the role");
    while let Next::Record(record) = consumer.next() {
        check_pieces(&record.header, record.sums, record.payload).expect("sums hold");
        assert!(record.payload.is_empty() || is_pattern(record.payload));
        read += 1;
    }
    assert_eq!(read, kept);
    consumer.release_through(ring.next_seq());
    assert_eq!((ring.used().pages_used, ring.used().slots_used), (0, 0));
}
