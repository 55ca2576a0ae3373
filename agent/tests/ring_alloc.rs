//! A push and its consumption allocate nothing.

#![allow(clippy::disallowed_methods, reason = "a test waits in real time")]

mod ring_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use ring_support::*;
use tidemark_agent::ring::{Next, Ring};
use tidemark_block::Payload;
use tidemark_wire::{RecordKind, Seq};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn push_and_consume_allocate_nothing() {
    let ring = Ring::in_memory(&spec(1 << 20, 16), Seq(1), clock()).expect("memory");
    ring.set_seq_limit(NO_LIMIT);
    let mut consumer = ring.consumer().expect("nobody has the role");
    let before = ALLOCATIONS.get();
    for round in 0..1_000u64 {
        let offset = round * 777;
        let mut extent = ring.reserve(offset, 10_000).expect("room");
        extent.bytes_mut().fill(1);
        drop(extent.lend());
        let record = write_spec(offset, extent.len());
        let Ok(in_flight) = ring.claim(&record, Some(extent)) else { panic!("there is room") };
        drop(in_flight.chunk());
        in_flight.commit();
        let flush = ring.claim(&plain_spec(RecordKind::Flush, 0, 0), None);
        flush.ok().expect("there is room").void();
        consumer.wait(Duration::ZERO);
        while let Next::Record(record) = consumer.next() {
            let seq = record.header.seq();
            consumer.release_through(seq);
        }
        consumer.wait(Duration::from_micros(1));
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
}
