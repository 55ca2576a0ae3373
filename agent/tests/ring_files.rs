//! The ring's file: what is refused and why, and what a kill at each step leaves behind.

#![allow(clippy::disallowed_methods, reason = "a test waits in real time")]

mod ring_support;

use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::sys::statfs::TMPFS_MAGIC;
use ring_support::*;
use tidemark_agent::ring::dump::{self, EntryState};
use tidemark_agent::ring::{Mlock, Next, Ring, RingErrorKind as Kind, format};
use tidemark_block::ByteRange;
use tidemark_wire::{RecordKind, Seq, VolumeId};

fn flip(path: &Path, at: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).expect("opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("reads");
    file.write_all_at(&[byte[0] ^ 1], at).expect("writes");
}

#[track_caller]
fn refused(path: &Path, kind: Kind, says: &str) {
    let Err(error) = open(path, &small()) else { panic!("{kind:?} was not noticed") };
    let text = error.to_string();
    assert_eq!(error.kind, kind, "{text}");
    assert!(text.contains(says) && text.contains(&*path.to_string_lossy()), "{text}");
}

#[test]
fn each_wrong_file_is_refused_for_its_own_reason() {
    let dir = tmpfs_dir();
    let path = dir.path().join("ring");
    refused(&path, Kind::Missing, "starts a new ring");
    drop(create(&path, &small()).expect("a new ring"));
    let damaged = |at: u64| {
        let copy = as_after_kill(&path);
        flip(&copy, at);
        copy
    };
    refused(&damaged(0), Kind::NotARing, "does not begin");
    refused(&damaged(8), Kind::Version, "version 0");
    for at in [12, 20, 40, 50, 100, 121] {
        refused(&damaged(at), Kind::Damaged, "header");
    }
    refused(&damaged(4096 + 7), Kind::Damaged, "slot 0");
    let copy = as_after_kill(&path);
    let file = std::fs::OpenOptions::new().write(true).open(&copy).expect("opens");
    file.set_len(100).expect("cuts");
    refused(&copy, Kind::NotARing, "header");
    let copy = as_after_kill(&path);
    let file = std::fs::OpenOptions::new().write(true).open(&copy).expect("opens");
    file.set_len(1 << 20).expect("cuts");
    refused(&copy, Kind::Damaged, "has 1048576 bytes");
}

#[test]
fn a_ring_of_another_volume_boot_or_size_is_refused() {
    let dir = tmpfs_dir();
    let path = dir.path().join("ring");
    let create_with = |spec| {
        let _ = std::fs::remove_file(&path);
        drop(create(&path, &spec).expect("a new ring"));
    };
    let mut other = small();
    other.volume = VolumeId::from_bytes([8; 16]);
    create_with(other);
    refused(&path, Kind::OtherVolume, "08080808-0808");
    other = small();
    other.boot_id = [0; 16];
    create_with(other);
    refused(&path, Kind::OtherBoot, "last started");
    create_with(spec(1 << 20, 32));
    refused(&path, Kind::OtherGeometry, "32 slots");
    create_with(spec(2 << 20, 16));
    refused(&path, Kind::OtherGeometry, "512 pages");
    assert!(Kind::OtherBoot.wants_new_ring() && !Kind::OtherVolume.wants_new_ring());
}

#[test]
fn places_sizes_and_owners_that_can_not_be_are_refused() {
    let dir = tmpfs_dir();
    let path = dir.path().join("ring");
    let kind_of = |path: &Path, spec| create(path, &spec).err().map(|e| (e.kind, e.to_string()));
    for wrong in [spec(0, 16), spec((1 << 20) + 4096, 16), spec(1 << 40, 16)] {
        let (kind, text) = kind_of(&path, wrong).expect("refused");
        assert!(kind == Kind::Size && text.contains("ring_bytes"), "{text}");
    }
    for wrong in [spec(1 << 20, 8), spec(1 << 20, 17), spec(1 << 20, 1 << 30)] {
        let (kind, text) = kind_of(&path, wrong).expect("refused");
        assert!(kind == Kind::Size && text.contains("ring_slots"), "{text}");
    }
    assert!(!path.exists());
    let ring = create(&path, &small()).expect("a new ring");
    assert_eq!(kind_of(&path, small()).expect("refused").0, Kind::Exists);
    assert_eq!(open(&path, &small()).err().expect("refused").kind, Kind::InUse);
    assert_eq!(Ring::discard(&path).expect_err("in use").kind, Kind::InUse);
    drop(ring);
    Ring::discard(&path).expect("nobody uses it");
    assert_eq!(Ring::discard(&path).expect_err("gone").kind, Kind::Missing);
}

#[test]
fn a_folder_that_is_not_on_tmpfs_is_refused() {
    let on_disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    if nix::sys::statfs::statfs(on_disk.path()).expect("exists").filesystem_type() == TMPFS_MAGIC {
        println!("skipped: the target folder is on tmpfs itself");
        return;
    }
    let path = on_disk.path().join("ring");
    let error = create(&path, &small()).err().expect("refused");
    let text = error.to_string();
    assert!(error.kind == Kind::NotTmpfs && text.contains("/dev/shm"), "{text}");
    assert!(text.contains(&*path.to_string_lossy()));
    assert!(!path.exists(), "nothing is left behind");
    std::fs::write(&path, []).expect("a file");
    refused(&path, Kind::NotTmpfs, "/dev/shm");
}

#[test]
fn a_kill_at_each_step_of_a_write_leaves_what_the_documentation_says() {
    let dir = tmpfs_dir();
    let path = dir.path().join("ring");
    let ring = create(&path, &small()).expect("a new ring");
    push(&ring, 4096, 5000, 1).expect("room").commit();
    let mut extent = ring.reserve(100, 9000).expect("room");
    fill(&mut extent, 2);

    let (other, recovery) = open(&as_after_kill(&path), &small()).expect("reserved only");
    assert_eq!((recovery.kept, recovery.in_flight.len()), (1, 0));
    assert_eq!(other.used().pages_used, 2, "the reserved pages are free again");
    assert_eq!(other.used().slots_used, 1);

    let Ok(in_flight) = ring.claim(&write_spec(100, 9000), Some(extent)) else {
        panic!("there is room")
    };
    let copy = as_after_kill(&path);
    for _ in 0..2 {
        let (other, recovery) = open(&copy, &small()).expect("in flight");
        let range = ByteRange::new(100, 9000).expect("fits");
        assert_eq!((recovery.kept, recovery.in_flight.as_slice()), (1, &[range][..]));
        assert_eq!(recovery.last_seq, Seq(2));
        assert_eq!(other.next_seq(), Seq(3), "no number is used again");
        let mut consumer = other.consumer().expect("nobody has the role");
        assert!(matches!(consumer.next(), Next::Record(_)));
        assert!(matches!(consumer.next(), Next::InFlight), "not before it is settled");
    }
    let (other, recovery) = open(&copy, &small()).expect("a kill in recovery forgets nothing");
    let range = recovery.in_flight[0];
    push(&other, range.start(), 9000, 3).expect("room for the read-back").commit();
    other.settle(recovery);
    let mut consumer = other.consumer().expect("nobody has the role");
    assert!(matches!(consumer.next(), Next::Record(r) if r.header.seq() == Seq(1)));
    assert!(matches!(consumer.next(), Next::Record(r) if r.header.seq() == Seq(3)));
    consumer.release_through(Seq(3));
    assert_eq!((other.used().pages_used, other.used().slots_used), (0, 0));
    drop((consumer, other));
    let (_, recovery) = open(&copy, &small()).expect("after a clean stop");
    assert_eq!((recovery.kept, recovery.in_flight.len(), recovery.last_seq), (0, 0, Seq(3)));
    in_flight.commit();
}

#[test]
fn a_record_dropped_in_flight_is_read_back_by_the_next_agent() {
    let dir = tmpfs_dir();
    let path = dir.path().join("ring");
    let ring = create(&path, &small()).expect("a new ring");
    drop(push(&ring, 512, 4096, 1).expect("room"));
    push(&ring, 8192, 100, 1).expect("room").commit();
    let mut consumer = ring.consumer().expect("nobody has the role");
    assert!(matches!(consumer.next(), Next::InFlight), "nobody knows whether it took effect");
    drop((consumer, ring));
    let (_, recovery) = open(&path, &small()).expect("opens");
    assert_eq!(recovery.in_flight, [ByteRange::new(512, 4096).expect("fits")]);
    assert_eq!(recovery.kept, 1);
}

#[test]
fn a_new_ring_of_which_nothing_was_said_is_not_all_that_happened() {
    let dir = tmpfs_dir();
    let path = dir.path().join("ring");
    let ring = Ring::create(&path, &small(), Seq(1), Mlock::WherePermitted, clock());
    drop(ring.expect("a new ring"));
    let (_, recovery) = open(&path, &small()).expect("opens");
    assert!(recovery.capture_was_off);
}

#[test]
fn flags_and_bounds_outlive_the_agent() {
    let dir = tmpfs_dir();
    let path = dir.path().join("ring");
    let ring = create(&path, &small()).expect("a new ring");
    ring.turn_capture_off();
    assert!(!ring.capture_is_on());
    drop(ring);
    let args = (Mlock::WherePermitted, clock());
    let (ring, recovery) = Ring::open(&path, &small(), Seq(1000), args.0, args.1).expect("opens");
    assert!(recovery.capture_was_off);
    ring.turn_capture_on();
    assert!(push(&ring, 0, 10, 1).is_none(), "no number was reserved yet");
    ring.set_seq_limit(Seq(1001));
    let only = push(&ring, 0, 10, 1).expect("one number");
    assert_eq!(only.seq(), Seq(1000));
    assert!(push(&ring, 0, 10, 1).is_none(), "out of numbers");
    only.void();
    assert_eq!(ring.used().slots_used, 1);
}

#[test]
fn damage_to_a_record_is_found_by_recovery_and_by_the_dump() {
    let dir = tmpfs_dir();
    let path = dir.path().join("ring");
    let ring = create(&path, &small()).expect("a new ring");
    push(&ring, 5, 9000, 1).expect("room").commit();
    let trim = plain_spec(RecordKind::Trim, 0, 1 << 40);
    ring.claim(&trim, None).ok().expect("room").commit();
    push(&ring, 5, 9000, 1).expect("room").void();
    let whole = dump::read(&path).expect("a ring");
    let states: Vec<_> = whole.entries.iter().map(|entry| entry.state).collect();
    assert_eq!(states, [EntryState::Committed, EntryState::Committed, EntryState::Void]);
    assert!(whole.entries.iter().all(|entry| entry.damage.is_none()));
    assert_eq!((whole.head, whole.tail, whole.released_seq), (0, 3, 0));

    let layout = format::Layout { page_count: 256, slot_count: 16 };
    let first_page = whole.entries[0].first_page;
    let slot = layout.slot_at(0);
    let places = [
        (slot + 8 + 2, "own"),
        (slot + 12, "pages"),
        (slot + 64 + 8, "checksum"),
        (slot + 64 + 40, "kind"),
        (slot + 64 + 57, "checksum"),
        (layout.sum_at(first_page), "checksum"),
        (layout.page_at(first_page) + 5, "damaged at byte 5"),
        (layout.page_at(first_page + 2) + 100, "damaged at byte 8192"),
    ];
    for (at, says) in places {
        let copy = as_after_kill(&path);
        flip(&copy, at as u64);
        refused(&copy, Kind::Damaged, "is damaged: record 0");
        let dump = dump::read(&copy).expect("the header is whole");
        let damage = dump.entries[0].damage.as_deref();
        assert!(damage.is_some(), "flipped at {at} ({says}): {dump:?}");
        assert!(dump.entries[1].damage.is_none());
    }
}
