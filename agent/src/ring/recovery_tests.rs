//! Kills between two stores that no public call lets one stop at.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use tidemark_wire::record::RecordSpec;
use tidemark_wire::{RecordKind, WallMicros};

use super::order::{State, stamp};
use super::*;
use crate::clock::SystemClock;

const NO_LIMIT: Seq = Seq(1 << 50);
const SLOTS: u64 = 16;

struct Bed {
    dir: TempDir,
    ring: Ring,
    kills: u32,
}

fn spec() -> RingSpec {
    let slots = u32::try_from(SLOTS).expect("small");
    RingSpec { volume: VolumeId::NIL, ring_bytes: 1 << 20, slots, boot_id: [1; 16] }
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
        let clock = Arc::new(SystemClock::default());
        let path = dir.path().join("ring");
        let ring = Ring::create(&path, &spec(), Seq(1), Mlock::WherePermitted, clock);
        let ring = ring.expect("a new ring");
        ring.set_seq_limit(NO_LIMIT);
        Self { dir, ring, kills: 0 }
    }

    fn killed(&mut self) -> PathBuf {
        self.kills += 1;
        let copy = self.dir.path().join(self.kills.to_string());
        std::fs::copy(self.dir.path().join("ring"), &copy).expect("copied");
        copy
    }

    fn push(&self) -> InFlight {
        let mut extent = self.ring.reserve(0, 5000).expect("room");
        extent.as_mut_slice().fill(7);
        let Ok(in_flight) = self.ring.claim(&write(), Some(extent)) else { panic!("room") };
        in_flight
    }

    fn shared(&self) -> &Shared {
        &self.ring.shared
    }

    fn claim_only(&self) -> Ticket {
        self.shared().order().claim(WallMicros(1), NO_LIMIT).expect("room").ticket
    }
}

fn write() -> RecordSpec {
    RecordSpec {
        kind: RecordKind::Write,
        offset_bytes: 0,
        len_bytes: 5000,
        payload_bytes: 5000,
        flags: 0,
        aux: 0,
    }
}

fn open(path: &Path) -> (Ring, Recovery) {
    let clock = Arc::new(SystemClock::default());
    let opened = Ring::open(path, &spec(), Seq(1), Mlock::WherePermitted, clock);
    let (ring, recovery) = opened.expect("a kill damages nothing");
    ring.set_seq_limit(NO_LIMIT);
    (ring, recovery)
}

/// Numbers of the records that a consumer gets.
fn shipped(ring: &Ring) -> Vec<u64> {
    let mut consumer = ring.consumer().expect("nobody has the role");
    let mut numbers = Vec::new();
    while let Next::Record(record) = consumer.next() {
        numbers.push(record.header.seq().0);
    }
    numbers
}

#[test]
fn a_ticket_without_a_filled_slot_is_void_and_its_number_is_not_used_again() {
    let mut bed = Bed::new();
    bed.push().commit();
    let ticket = bed.claim_only();
    bed.push().commit();
    let claimed = bed.killed();
    // The header of a record long gone stands in the slot, with pages that are not its own.
    let stale = bed.shared().header(Ticket(0));
    let run = bed.shared().run(Ticket(0));
    bed.shared().fill_slot(ticket, &stale, run);
    let filled = bed.killed();
    for path in [claimed, filled] {
        let (ring, recovery) = open(&path);
        assert!(recovery.in_flight.is_empty() && recovery.kept == 2);
        ring.settle(recovery);
        assert_eq!(shipped(&ring), [1, 3]);
        assert_eq!(ring.next_seq(), Seq(4));
        let mut consumer = ring.consumer().expect("nobody has the role");
        consumer.release_through(Seq(3));
        assert_eq!((ring.used().pages_used, ring.used().slots_used), (0, 0));
    }
}

#[test]
fn a_release_that_was_cut_off_is_either_not_begun_or_completed() {
    let mut bed = Bed::new();
    for _ in 0..SLOTS {
        bed.push().commit();
    }
    let mapping = Arc::clone(&bed.shared().mapping);
    mapping.released_seq().store(1, Ordering::Relaxed);
    let (ring, recovery) = open(&bed.killed());
    assert_eq!((recovery.kept, ring.released_seq()), (SLOTS, Seq(1)));
    assert_eq!(shipped(&ring)[0], 1, "sent again, and refused as known");

    mapping.stamp(0).store(stamp(Ticket(SLOTS), State::Free), Ordering::Relaxed);
    let (ring, recovery) = open(&bed.killed());
    assert_eq!((recovery.kept, ring.used().slots_used), (SLOTS - 1, 15));
    assert_eq!(ring.used().pages_used, 30);

    bed.claim_only();
    let (ring, recovery) = open(&bed.killed());
    assert_eq!((recovery.kept, ring.used().slots_used), (SLOTS - 1, 16));
    assert_eq!(ring.next_seq(), Seq(SLOTS + 2), "the slot was claimed before the head moved");
    assert_eq!(shipped(&ring)[0], 2);
}

#[test]
fn a_tail_or_head_that_can_not_be_is_damage() {
    let mut bed = Bed::new();
    bed.push().commit();
    let mapping = Arc::clone(&bed.shared().mapping);
    let wrong = [(mapping.tail(), 18), (mapping.tail(), u64::MAX), (mapping.head(), 2)];
    let more = [(mapping.head(), u64::MAX), (mapping.seq_base(), u64::MAX), (mapping.tail(), 0)];
    for (word, value) in wrong.into_iter().chain(more) {
        let before = word.swap(value, Ordering::Relaxed);
        let path = bed.killed();
        word.store(before, Ordering::Relaxed);
        let clock = Arc::new(SystemClock::default());
        let opened = Ring::open(&path, &spec(), Seq(1), Mlock::WherePermitted, clock);
        let error = opened.err().expect("damage");
        assert_eq!(error.kind, RingErrorKind::Damaged, "{error}");
    }
}
