//! Many threads on one ring: every record arrives once, in order, with its own bytes; and who
//! stops in the middle holds up nobody else until the ring is full.

#![allow(clippy::disallowed_methods, reason = "a test waits in real time")]

mod ring_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use ring_support::*;
use tidemark_agent::ring::{InFlight, Next, Ring};
use tidemark_wire::record::check_pieces;
use tidemark_wire::{Seq, WallMicros};

fn memory(ring_bytes: u64, slots: u32) -> Ring {
    let ring = Ring::in_memory(&spec(ring_bytes, slots), Seq(1), clock()).expect("memory");
    ring.set_seq_limit(NO_LIMIT);
    ring
}

fn produce(ring: &Ring, producer: u64, records: u64, committed: &AtomicU64) {
    let mut dice = Dice(producer + 99);
    let mut open: Vec<InFlight> = Vec::new();
    let mut pushed = 0;
    while pushed < records {
        let len = 1 + usize::try_from(dice.below(40_000)).expect("small");
        if let Some(in_flight) = push(ring, dice.below(1 << 30), len, 3) {
            open.push(in_flight);
            pushed += 1;
        } else {
            thread::yield_now();
        }
        while open.len() > 4 || (!open.is_empty() && dice.below(2) == 0) {
            let index = usize::try_from(dice.below(open.len() as u64)).expect("small");
            let in_flight = open.swap_remove(index);
            if dice.below(10) == 0 {
                in_flight.void();
            } else {
                committed.fetch_add(1, Ordering::Relaxed);
                in_flight.commit();
            }
        }
    }
    for in_flight in open {
        committed.fetch_add(1, Ordering::Relaxed);
        in_flight.commit();
    }
}

#[test]
fn records_of_many_threads_arrive_whole_and_in_order() {
    const PRODUCERS: u64 = 4;
    const RECORDS: u64 = 3_000;
    let ring = memory(4 << 20, 64);
    let committed = AtomicU64::new(0);
    thread::scope(|scope| {
        let (ring, committed) = (&ring, &committed);
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|producer| scope.spawn(move || produce(ring, producer, RECORDS, committed)))
            .collect();
        let mut consumer = ring.consumer().expect("nobody has the role");
        let (mut last, mut last_time, mut read) = (Seq(0), WallMicros(0), 0);
        loop {
            match consumer.next() {
                Next::Record(record) => {
                    let (seq, time) = (record.header.seq(), record.header.time_us.get());
                    assert!(seq > last && time >= last_time.0, "{last} {seq}");
                    (last, last_time) = (seq, WallMicros(time));
                    check_pieces(&record.header, record.sums, record.payload).expect("sums hold");
                    assert!(is_pattern(record.payload));
                    read += 1;
                    consumer.release_through(seq);
                }
                Next::InFlight => consumer.wait(Duration::from_secs(5)),
                Next::Empty if producers.iter().all(|p| p.is_finished()) => {
                    if ring.tail_ticket().0 == PRODUCERS * RECORDS {
                        break;
                    }
                }
                Next::Empty => consumer.wait(Duration::from_millis(5)),
            }
        }
        consumer.release_through(last);
        assert_eq!(read, committed.load(Ordering::Relaxed));
    });
    assert_eq!((ring.used().pages_used, ring.used().slots_used), (0, 0));
}

#[test]
fn producers_that_stop_hold_up_nobody_until_the_ring_is_full() {
    let ring = memory(1 << 20, 16);
    let reserved = ring.reserve(0, 8192).expect("room");
    let stopped = push(&ring, 0, 4096, 1).expect("room");
    let others = thread::spawn({
        let ring = ring.clone();
        move || {
            let mut pushed = 0;
            while let Some(in_flight) = push(&ring, 4096, 100, 2) {
                in_flight.commit();
                pushed += 1;
            }
            pushed
        }
    });
    assert_eq!(others.join().expect("no panic"), 15, "all slots but the stopped one's");
    let mut consumer = ring.consumer().expect("nobody has the role");
    assert!(matches!(consumer.next(), Next::InFlight));
    stopped.commit();
    drop(reserved);
    for _ in 0..16 {
        assert!(matches!(consumer.next(), Next::Record(_)));
    }
    assert!(matches!(consumer.next(), Next::Empty));
    consumer.release_through(ring.next_seq());
    assert_eq!((ring.used().pages_used, ring.used().slots_used), (0, 0));
}

#[test]
fn memory_that_an_operation_still_uses_is_not_given_away() {
    let ring = memory(1 << 20, 16);
    let in_flight = push(&ring, 0, 4096, 1).expect("room");
    let seq = in_flight.seq();
    let chunk = in_flight.chunk().expect("a payload");
    in_flight.commit();
    let mut consumer = ring.consumer().expect("nobody has the role");
    consumer.release_through(seq);
    assert_eq!(ring.used().pages_used, 1, "kept for the chunk");
    drop(chunk);
    consumer.release_through(seq);
    assert_eq!(ring.used().pages_used, 0);

    let mut extent = ring.reserve(0, 4096).expect("room");
    let chunk = extent.lend();
    drop(extent);
    assert_eq!(ring.used().pages_used, 1, "lost until the ring is opened again, but not shared");
    drop(chunk);
}

#[test]
fn a_nudge_wakes_a_consumer_and_a_commit_out_of_turn_does_not() {
    let ring = memory(1 << 20, 16);
    let first = push(&ring, 0, 10, 1).expect("room");
    let second = push(&ring, 0, 10, 1).expect("room");
    let mut consumer = ring.consumer().expect("nobody has the role");
    let woken = Arc::new(AtomicU64::new(0));
    let sleeper = thread::spawn({
        let woken = Arc::clone(&woken);
        move || {
            for _ in 0..2 {
                consumer.wait(Duration::from_secs(60));
                woken.fetch_add(1, Ordering::SeqCst);
                let _ = consumer.next();
            }
        }
    });
    thread::sleep(Duration::from_millis(30));
    second.commit();
    thread::sleep(Duration::from_millis(30));
    let count = woken.load(Ordering::SeqCst);
    first.commit();
    ring.wake_consumer();
    while woken.load(Ordering::SeqCst) < 2 {
        ring.wake_consumer();
        thread::yield_now();
    }
    sleeper.join().expect("no panic");
    // A sleep may end for no reason, which is rare enough to notice if it were the rule.
    assert_eq!(count, 0);
}
