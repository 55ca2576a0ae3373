//! Damage in the seed and in segments that are merged: found, named, never given out, never given
//! a good checksum.
#![allow(clippy::unwrap_used, reason = "tests")]

mod journal_support;
mod merge_support;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use journal_support::{Random, VOLUME_BYTES};
use merge_support::{Model, Op, World};
use tidemark_collector::error::{JournalError, Part, ViewError};
use tidemark_collector::seed::{Seed, SeedBuilder, merge_into_seed};
use tidemark_collector::storage::{Fault, MemoryStorage, Reads, Storage};
use tidemark_wire::{Seq, WallMicros};

const DIR: &str = "/volume";

struct Ground {
    storage: Arc<MemoryStorage>,
    world: World<MemoryStorage>,
    model: Model,
    random: Random,
}

impl Ground {
    /// A volume whose first bytes are all in the seed.
    fn new() -> Self {
        let storage = Arc::new(MemoryStorage::default());
        let world = World::open(&storage, Path::new(DIR)).unwrap();
        let mut ground = Self { storage, world, model: Model::new(), random: Random::new(9) };
        for block in 0..40 {
            ground.write(block * 4096, 4096);
        }
        ground.merge();
        assert_eq!(ground.world.held.seed.at(), ground.model.last());
        ground
    }

    fn write(&mut self, at: u32, len: u32) {
        let op = Op::Data { at, len, pack: false };
        self.world.apply(&op, &mut self.model, &mut self.random).unwrap();
    }

    /// Merges all there is; says how many blocks were found damaged.
    fn merge(&mut self) -> u64 {
        self.world.journal.seal_now().unwrap();
        let steps = self.world.merge(WallMicros(u64::MAX)).unwrap();
        steps.iter().map(|step| step.merged.damaged_blocks).sum()
    }

    fn read(&self, at: u64, len: usize) -> Result<Vec<u8>, ViewError> {
        let mut bytes = vec![0; len];
        self.world.view(self.model.last())?.read_at(&mut bytes, at)?;
        Ok(bytes)
    }

    fn flip(&self, file: &str, at: usize) {
        self.storage.edit(&Path::new(DIR).join(file), |bytes| bytes[at] ^= 0x40).unwrap();
    }

    fn is_damaged(&self, at: u64) -> bool {
        match self.read(at, 100) {
            Err(ViewError::Damaged { damage, .. }) => {
                assert_eq!((damage.part, damage.at), (Part::SeedBlock, at / 4096 * 4096));
                true
            }
            read => {
                read.unwrap();
                false
            }
        }
    }

    fn reopen(&mut self) {
        self.world = World::open(&self.storage, Path::new(DIR)).unwrap();
    }
}

#[test]
fn a_damaged_block_is_found_and_the_others_are_read() {
    for (file, at) in [("seed.img", 5 * 4096 + 77), ("seed.sums", 5 * 8 + 3)] {
        let ground = Ground::new();
        ground.flip(file, at);
        for block in 0..40 {
            assert_eq!(ground.is_damaged(block * 4096), block == 5, "{file}, block {block}");
        }
    }
}

#[test]
fn lost_sums_and_holes_are_no_zeroes() {
    let ground = Ground::new();
    let dir = Path::new(DIR);
    ground.storage.edit(&dir.join("seed.sums"), |sums| sums[64..72].fill(0)).unwrap();
    assert!(ground.is_damaged(8 * 4096));
    let hole = 12 * 4096..13 * 4096;
    ground.storage.edit(&dir.join("seed.img"), |image| image[hole].fill(0)).unwrap();
    assert!(ground.is_damaged(12 * 4096));
    // A program that skips holes must not take it for one.
    let mut out = Vec::new();
    let range = tidemark_block::ByteRange::new(12 * 4096, 4096).unwrap();
    let view = ground.world.view(ground.model.last()).unwrap();
    view.status(range, 4, &mut out).unwrap();
    assert!(out.iter().all(|extent| !extent.zero));
}

#[test]
fn a_part_of_a_damaged_block_does_not_heal_it_and_the_whole_does() {
    let mut ground = Ground::new();
    ground.flip("seed.img", 5 * 4096 + 77);
    ground.write(5 * 4096 + 1000, 500);
    ground.write(7 * 4096 + 1000, 500);
    assert_eq!(ground.read(5 * 4096 + 1000, 500).unwrap().len(), 500, "the record has them");
    assert_eq!(ground.merge(), 1);
    for _ in 0..2 {
        assert!(ground.is_damaged(5 * 4096));
        assert!(!ground.is_damaged(7 * 4096));
        ground.reopen();
    }
    // In two parts that together are the whole.
    ground.write(5 * 4096, 3000);
    ground.write(5 * 4096 + 3000, 1096);
    assert_eq!(ground.merge(), 0);
    ground.world.check(&ground.model);
}

#[test]
fn a_damaged_record_is_lost_and_the_merge_goes_on_behind_it() {
    let mut ground = Ground::new();
    for at in 0..30 {
        ground.write(at * 4096 + 10, 3000);
    }
    ground.world.journal.seal_now().unwrap();
    let segments = ground.world.held.reader.segments();
    assert!(segments.len() > 3);
    let name = |number: usize| format!("journal/{}", segments[number].name);
    let (last_good, at) = (segments[1].last_seq, 4096 + 700);
    ground.flip(&name(2), at);
    let to = segments.last().unwrap().last_seq;
    let mut pace = |_| ControlFlow::Continue(());
    let (reader, seed) = (&ground.world.held.reader, &ground.world.held.seed);
    let merged = merge_into_seed(reader, seed, to, &mut pace).unwrap();
    assert_eq!(merged.to, Some(last_good));
    let damage = merged.stopped_at.unwrap();
    assert!(damage.file.ends_with(name(2)), "{damage}");
    let merged = merge_into_seed(reader, seed, to, &mut pace).unwrap();
    assert_eq!((merged.to, merged.damaged_blocks), (Some(segments[2].last_seq), 1));
    assert!(merged.damaged[0].file.ends_with(name(2)), "{:?}", merged.damaged);
    assert_eq!(ground.merge(), 0, "the others");
    for _ in 0..2 {
        let lost: Vec<u64> = (0..40).filter(|block| ground.is_damaged(block * 4096)).collect();
        assert_eq!(lost.len(), 1, "{lost:?}");
        ground.reopen();
    }
    let lost = (0..40).find(|block| ground.is_damaged(u64::from(*block) * 4096)).unwrap();
    let (before, behind) = (u64::from(lost) * 4096, u64::from(lost) * 4096 + 3010);
    assert!(ground.read(before, 10).is_ok() && ground.read(behind, 1086).is_ok(), "only its bytes");
    // A part brings back itself, and the whole all of it.
    ground.write(lost * 4096 + 10, 1000);
    assert_eq!(ground.merge(), 0);
    assert!(ground.read(before, 1010).is_ok() && ground.is_damaged(before + 1010));
    ground.write(lost * 4096 + 10, 3000);
    assert_eq!(ground.merge(), 0);
    ground.world.check(&ground.model);
}

#[test]
fn a_segment_with_damaged_tables_stops_the_merge() {
    let mut ground = Ground::new();
    for at in 0..30 {
        ground.write(at * 4096 + 10, 3000);
    }
    ground.world.journal.seal_now().unwrap();
    let segments = ground.world.held.reader.segments();
    let tables = usize::try_from(segments[0].bytes).unwrap() - 520;
    ground.flip(&format!("journal/{}", segments[0].name), tables);
    ground.flip(&format!("journal/{}", segments[0].name), 4096 + 700);
    let mut pace = |_| ControlFlow::Continue(());
    let (reader, seed) = (&ground.world.held.reader, &ground.world.held.seed);
    let (at, to) = (seed.at(), segments[0].last_seq);
    let error = merge_into_seed(reader, seed, to, &mut pace).unwrap_err();
    assert!(matches!(error, JournalError::Damaged(_)), "{error}");
    assert_eq!((seed.at(), seed.merging_to()), (at, None));
}

#[test]
fn files_that_are_missing_or_damaged_are_named() {
    let named = |ground: &Ground, part: Part, file: &str| {
        let Err(error) = World::open(&ground.storage, Path::new(DIR)) else { panic!("{file}") };
        let JournalError::Damaged(damage) = error else { panic!("{error}") };
        assert_eq!((damage.part, damage.file), (part, PathBuf::from(DIR).join(file)));
    };
    let ground = Ground::new();
    ground.flip("seed.json", 100);
    named(&ground, Part::SeedState, "seed.json");
    for file in ["seed.json", "seed.sums", "seed.img"] {
        let ground = Ground::new();
        ground.storage.remove(&Path::new(DIR).join(file)).unwrap();
        let wanted = if file == "seed.img" { "seed.img" } else { file };
        named(&ground, Part::File, wanted);
    }
}

#[test]
fn a_pin_keeps_its_state_and_a_size_limit_shortens_history() {
    let mut ground = Ground::new();
    for at in 0..30 {
        ground.write(at * 4096 + 10, 3000);
    }
    ground.world.journal.seal_now().unwrap();
    let segments = ground.world.held.reader.segments();
    let bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let limits = tidemark_collector::merge::MergeLimits {
        older_than: WallMicros(0),
        journal_bytes_max: Some(bytes - 1),
    };
    let mut pace = |_| ControlFlow::Continue(());
    let pin = ground.world.held.reader.pin(Seq(segments[0].last_seq.0 - 1));
    let held = &ground.world.held;
    let step = tidemark_collector::merge::merge_once(held, &limits, &mut pace).unwrap();
    assert_eq!(step.merged.to, None, "something reads an older state");
    drop(pin);
    let step = tidemark_collector::merge::merge_once(held, &limits, &mut pace).unwrap();
    assert_eq!(step.merged.to, Some(segments[0].last_seq));
    assert_eq!(step.shortened, Some(segments[0].last_time));
    assert!(held.reader.bytes() < bytes);
    ground.world.check(&ground.model);
}

#[test]
fn an_import_is_there_as_a_whole_or_not_at_all() {
    let (dir, size) = (Path::new(DIR), VOLUME_BYTES - 1000);
    let image: Vec<u8> = (0..size)
        .map(|at| if at / 8192 % 2 == 0 { 0 } else { u8::try_from(at % 251).unwrap() })
        .collect();
    let import = |storage: &MemoryStorage| {
        let builder = SeedBuilder::create(Arc::new(storage.clone()), dir, size)?;
        for (number, part) in (0..).zip(image.chunks(3 * 4096)) {
            builder.write(number * 3 * 4096, part)?;
        }
        builder.finish(true)
    };
    let fresh = || {
        let storage = MemoryStorage::default();
        storage.create_dir(dir).unwrap();
        let old = Seed::open_or_create(&Arc::new(storage.clone()), &dir.join("seed.img"), size);
        assert!(!old.unwrap().is_seeded());
        storage
    };
    let read = |seed: &Seed<MemoryStorage>| {
        let mut bytes = vec![1; usize::try_from(size).unwrap()];
        seed.read_at(Reads::Again, &mut bytes, 0).unwrap();
        bytes
    };
    let storage = fresh();
    let before = storage.calls();
    let seed = import(&storage).unwrap();
    assert!(seed.is_seeded() && read(&seed) == image);
    for call in 0..storage.calls() - before {
        let storage = fresh();
        storage.fail_after(call, Fault::Crash);
        assert!(import(&storage).is_err());
        let after = Arc::new(storage.after_crash(call));
        let seed = Seed::open_or_create(&after, &dir.join("seed.img"), size).unwrap();
        let zero = read(&seed).iter().all(|byte| *byte == 0);
        assert!(if seed.is_seeded() { read(&seed) == image } else { zero }, "call {call}");
        assert!(import(&after).unwrap().is_seeded());
    }
}
