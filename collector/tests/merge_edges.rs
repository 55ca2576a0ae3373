//! The edges of a merge: one that can't be ended, a volume that only grew, the name of the oldest
//! state, and files that are nobody's or somebody else's.
#![allow(clippy::unwrap_used, reason = "tests")]

mod journal_support;
mod merge_support;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use journal_support::{Batch, Made, Random, VOLUME_BYTES, identity, make, spec};
use merge_support::{Model, Op, World};
use tidemark_collector::error::{JournalError, NotOffered, Part, ViewError};
use tidemark_collector::ingest::volume::Held;
use tidemark_collector::journal::{Journal, JournalConfig, MarkBody};
use tidemark_collector::merge::{MergeLimits, merge_once};
use tidemark_collector::seed::{Merged, Seed, SeedBuilder, merge_into_seed};
use tidemark_collector::storage::{Fault, MemoryStorage, Storage};
use tidemark_collector::view::View;
use tidemark_wire::body::{Bookmark, PointKind};
use tidemark_wire::{PointId, RecordKind, Seq, WallMicros};

const DIR: &str = "/volume";
const ALL: MergeLimits = MergeLimits { older_than: WallMicros(u64::MAX), journal_bytes_max: None };

fn open(storage: &MemoryStorage) -> World<MemoryStorage> {
    World::open(&Arc::new(storage.clone()), Path::new(DIR)).unwrap()
}

/// A volume with several segments, all sealed.
fn filled() -> (MemoryStorage, World<MemoryStorage>, Model) {
    let storage = MemoryStorage::default();
    let mut world = open(&storage);
    let (mut model, mut random) = (Model::new(), Random::new(11));
    for round in 0..3 {
        for at in 0..12 {
            let op = Op::Data { at: at * 40_960 + round * 100, len: 3000, pack: false };
            world.apply(&op, &mut model, &mut random).unwrap();
        }
    }
    world.journal.seal_now().unwrap();
    (storage, world, model)
}

/// Stops a merge after it has written the data of one cell.
fn interrupt(world: &World<MemoryStorage>) -> Seq {
    let mut calls = 0;
    let mut pace = |bytes| {
        calls += u32::from(bytes > 0);
        if calls > 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    assert_eq!(merge_once(&world.held, &ALL, &mut pace).unwrap().merged.to, None);
    world.held.seed.merging_to().expect("it was begun")
}

/// Opens as the collector does, also where the merge can't be ended.
fn open_anyway(storage: &MemoryStorage) -> (Held<MemoryStorage>, Result<Merged, JournalError>) {
    let storage = Arc::new(storage.clone());
    let seed = Seed::open_or_create(&storage, &Path::new(DIR).join("seed.img"), VOLUME_BYTES);
    let seed = Arc::new(seed.unwrap());
    let config = JournalConfig { segment_bytes_max: 24 * 1024 };
    let dir = Path::new(DIR).join("journal");
    let (journal, _) = Journal::open_above(storage, &dir, identity(), config, seed.base()).unwrap();
    let held = Held { reader: journal.reader(), seed };
    let to = held.seed.merging_to().unwrap();
    let mut pace = |_| ControlFlow::Continue(());
    let merged = merge_into_seed(&held.reader, &held.seed, to, &mut pace);
    (held, merged)
}

#[test]
fn a_merge_that_cannot_be_ended_offers_nothing_older() {
    let (storage, world, model) = filled();
    let names: Vec<_> = world.held.reader.segments().iter().map(|s| s.name.clone()).collect();
    let to = interrupt(&world);
    drop(world);
    let path = Path::new(DIR).join("journal").join(&names[names.len() - 2]);
    // Its table: what its records say of which bytes can't be told any more.
    let spoil = |bytes: &mut Vec<u8>| {
        let at = bytes.len() - 400;
        bytes[at] ^= 1;
    };
    storage.edit(&path, spoil).unwrap();
    let (held, merged) = open_anyway(&storage);
    assert!(matches!(merged, Err(JournalError::Damaged(_))), "{merged:?}");
    assert_eq!(held.seed.merging_to(), Some(to));
    for state in model.states.iter().filter(|state| state.seq < to) {
        let view = View::open(Arc::clone(&held.reader), Arc::clone(&held.seed), state.seq);
        let error = view.err();
        assert!(
            match &error {
                Some(ViewError::NotOffered(NotOffered::BeforeStart { oldest })) => *oldest == to,
                Some(ViewError::NotOffered(NotOffered::Damaged(_))) => true,
                _ => false,
            },
            "{}: {error:?}",
            state.seq
        );
    }
    drop(held);
    storage.edit(&path, spoil).unwrap();
    open(&storage).check(&model);
}

/// Found by the simulator: the next merge went less far, and found its end behind the former's.
#[test]
fn a_merge_that_found_no_room_to_begin_takes_nothing_away() {
    let (storage, world, model) = filled();
    let (reader, seed) = (&world.held.reader, &world.held.seed);
    let (segments, oldest) = (reader.segments(), reader.first_seq());
    let mut pace = |_| ControlFlow::Continue(());
    storage.set_full(true);
    merge_into_seed(reader, seed, segments[1].last_seq, &mut pace).unwrap_err();
    assert_eq!(seed.merging_to(), None, "it had not begun");
    assert_eq!(reader.first_seq(), oldest, "what could be opened still can");
    storage.set_full(false);
    world.check(&model);
    let merged = merge_into_seed(reader, seed, segments[0].last_seq, &mut pace).unwrap();
    assert_eq!(merged.to, Some(segments[0].last_seq));
    world.check(&model);
}

#[test]
fn a_merge_whose_segments_are_gone_says_so() {
    let (storage, world, _) = filled();
    interrupt(&world);
    drop(world);
    for name in storage.list(&Path::new(DIR).join("journal")).unwrap() {
        storage.remove(&Path::new(DIR).join("journal").join(name)).unwrap();
    }
    let (_, merged) = open_anyway(&storage);
    let Err(JournalError::Damaged(damage)) = merged else { panic!("{merged:?}") };
    assert_eq!(damage.part, Part::SeedState);
}

#[test]
fn a_volume_that_only_grew_survives_a_power_cut_at_every_call() {
    let storage = MemoryStorage::default();
    let mut world = open(&storage);
    let (mut model, mut random) = (Model::new(), Random::new(2));
    let data = Op::Data { at: 5000, len: 9000, pack: false };
    world.apply(&data, &mut model, &mut random).unwrap();
    world.journal.seal_now().unwrap();
    world.merge(ALL.older_than).unwrap();
    let grown = Op::Resize { size: u32::try_from(2 * VOLUME_BYTES).unwrap() };
    world.apply(&grown, &mut model, &mut random).unwrap();
    world.journal.seal_now().unwrap();
    drop(world);
    let past = storage.after_crash(0);
    let merged = past.after_kill();
    let world = open(&merged);
    let before = merged.calls();
    assert_eq!(world.merge(ALL.older_than).unwrap().len(), 1);
    let calls = merged.calls() - before;
    for call in 0..=calls {
        for dice in 0..3 {
            for fault in [Fault::Crash, Fault::Once] {
                let storage = past.after_kill();
                let world = open(&storage);
                storage.fail_after(call, fault);
                if world.merge(ALL.older_than).is_err() && fault == Fault::Once {
                    world.merge(ALL.older_than).unwrap();
                }
                drop(world);
                let world = open(&storage.after_crash(call * 99 + dice));
                world.check(&model);
                world.merge(ALL.older_than).unwrap();
                world.check(&model);
            }
        }
    }
}

#[test]
fn a_point_that_is_the_oldest_state_keeps_its_name() {
    let (storage, mut world, model) = filled();
    let put = |world: &mut World<MemoryStorage>, seq: u64, label: &str| {
        let mut body = Vec::new();
        let (id, kind, label, reason) =
            (PointId::from_bytes([3; 16]), PointKind::Person, label.to_owned(), String::new());
        Bookmark { id, kind, label, reason }.encode(&mut body);
        let prev = world.held.reader.durable();
        let made = make(&spec(RecordKind::Bookmark, 0, 0, body.len()), seq, &body, false);
        world.send(prev, &made).unwrap();
        made.bytes.len() as u64
    };
    let labels = |world: &World<MemoryStorage>| -> Vec<(Seq, String)> {
        let (marks, damaged) = world.held.reader.marks().unwrap();
        assert_eq!(damaged, Vec::new());
        let label = |body| match body {
            MarkBody::Bookmark(bookmark) => bookmark.label,
            other => panic!("{other:?}"),
        };
        marks.into_iter().map(|mark| (mark.seq, label(mark.body))).collect()
    };
    let at = model.last().0 + 1;
    put(&mut world, at, "keep");
    world.journal.seal_now().unwrap();
    world.merge(ALL.older_than).unwrap();
    let bytes = put(&mut world, at + 1, "next");
    for _ in 0..2 {
        assert_eq!(world.held.seed.at(), Seq(at));
        assert_eq!(
            labels(&world),
            [(Seq(at), "keep".to_owned()), (Seq(at + 1), "next".to_owned())]
        );
        let until = world.held.reader.bytes_until(&[Seq(at), Seq(at + 1)]).unwrap();
        assert_eq!(until, [Some(0), Some(bytes)]);
        drop(world);
        world = open(&storage);
    }
    let made: Made = make(&spec(RecordKind::Flush, 0, 0, 0), at + 2, &[], false);
    Batch::of(Seq(at + 1), &[made]).append_to(&mut world.journal).unwrap();
    world.journal.commit().unwrap();
    world.journal.seal_now().unwrap();
    world.merge(ALL.older_than).unwrap();
    assert_eq!((world.held.seed.at(), labels(&world)), (Seq(at + 2), Vec::new()));
    // What was merged behind a point may have changed the disk; what follows has not.
    for (after, found) in [(at, Some(Seq(at + 2))), (at + 2, None)] {
        assert_eq!(world.held.reader.first_change_after(Seq(after)).unwrap(), found);
    }
}

#[test]
fn a_file_of_another_copy_is_not_taken_for_one_that_was_merged() {
    let (storage, world, _) = filled();
    let path = PathBuf::from(DIR).join("journal").join(&world.held.reader.segments()[0].name);
    let file = storage.open(&path).unwrap();
    let mut bytes =
        vec![
            0;
            usize::try_from(tidemark_collector::storage::StorageFile::len(&file).unwrap()).unwrap()
        ];
    tidemark_collector::storage::StorageFile::read_at(&file, &mut bytes, 0).unwrap();
    world.merge(ALL.older_than).unwrap();
    let at = world.held.seed.base();
    drop(world);
    let put = storage.create(&path).unwrap();
    tidemark_collector::storage::StorageFile::write_at(&put, &bytes, 0).unwrap();
    let mut other = identity();
    other.journal = tidemark_wire::JournalId::from_bytes([8; 16]);
    let config = JournalConfig { segment_bytes_max: 24 * 1024 };
    let dir = Path::new(DIR).join("journal");
    let arc = Arc::new(storage.clone());
    let refused = Journal::open_above(Arc::clone(&arc), &dir, other, config, at.clone());
    assert!(matches!(refused.err(), Some(JournalError::Foreign { .. })));
    assert!(storage.open(&path).is_ok(), "it is still there");
    Journal::open_above(arc, &dir, identity(), config, at).unwrap();
    assert!(storage.open(&path).is_err(), "ours goes");
}

#[test]
fn what_an_import_left_that_was_cut_off_goes() {
    let (storage, world, model) = filled();
    drop(world);
    let names = ["seed.img.new", "seed.sums.new"].map(|name| Path::new(DIR).join(name));
    let begin = || {
        let arc = Arc::new(storage.clone());
        let builder = SeedBuilder::create(arc, Path::new(DIR), VOLUME_BYTES).unwrap();
        builder.write(0, &[7; 4096]).unwrap();
        assert!(names.iter().all(|name| storage.open(name).is_ok()));
        builder
    };
    begin().discard().unwrap();
    assert!(names.iter().all(|name| storage.open(name).is_err()));
    drop(begin());
    open(&storage).check(&model);
    assert!(names.iter().all(|name| storage.open(name).is_err()));
}
