//! Power cuts, kills and failed calls at every write, sync, rename and removal of a merge and of
//! its completion. After each the volume is opened again: every state that is kept equals the
//! model, and the merge comes to its end.
#![allow(clippy::unwrap_used, reason = "tests")]

mod journal_support;
mod merge_support;

use std::path::Path;
use std::sync::Arc;

use journal_support::Random;
use merge_support::{Model, Op, World, check_view};
use tidemark_collector::storage::{Fault, MemoryStorage, Storage};
use tidemark_wire::WallMicros;

const DIR: &str = "/volume";

/// A volume with a merged past and a journal above it; what a merge meets is in it: parts of
/// blocks, zeroes over many cells, a new size, unreadable ranges, a resynchronization.
fn past() -> (MemoryStorage, Model) {
    let storage = Arc::new(MemoryStorage::default());
    let mut world = World::open(&storage, Path::new(DIR)).unwrap();
    let (mut model, mut random) = (Model::new(), Random::new(5));
    for round in 0..4u32 {
        for at in 0..9 {
            let (at, pack) = (at * 68_111 + round * 1999, at % 3 == 0);
            let op = Op::Data { at, len: 2000 + at % 9000, pack };
            world.apply(&op, &mut model, &mut random).unwrap();
        }
        let ops = match round {
            0 => vec![Op::Unreadable { at: 30_000, len: 7000 }, Op::Resync { records: 3 }],
            1 => vec![Op::Zeroes { at: 300_000, len: 900_000 }, Op::Merge { percent: 80 }],
            2 => vec![Op::Resize { size: 1_200_000 }, Op::Unreadable { at: 400_000, len: 800_000 }],
            _ => vec![Op::Resize { size: 350_000 }, Op::Zeroes { at: 1000, len: 9000 }],
        };
        for op in ops {
            world.apply(&op, &mut model, &mut random).unwrap();
        }
    }
    for at in 0..12 {
        let op = Op::Data { at: at * 26_000 + 500, len: 5000, pack: false };
        world.apply(&op, &mut model, &mut random).unwrap();
    }
    world.check(&model);
    assert!(world.held.seed.at().0 > 0);
    drop(world);
    (storage.after_crash(0), model)
}

fn open(storage: &MemoryStorage) -> World<MemoryStorage> {
    World::open(&Arc::new(storage.clone()), Path::new(DIR)).unwrap()
}

fn until(model: &Model) -> WallMicros {
    WallMicros(model.last().0 * 1000 - 3000)
}

/// Calls of an opening and of a whole merge.
fn calls(past: &MemoryStorage, model: &Model) -> u64 {
    let storage = past.after_crash(0);
    let world = open(&storage);
    let before = world.held.seed.at();
    let steps = world.merge(until(model)).unwrap();
    assert!(steps.len() == 1 && world.held.seed.at() > before, "the run merges");
    assert!(steps[0].merged.written_bytes > 200_000);
    storage.calls()
}

/// Opens after a crash, ends the merge, and looks at all states; then once more.
fn check_after(storage: &MemoryStorage, model: &Model) {
    let world = open(storage);
    world.check(model);
    world.merge(until(model)).unwrap();
    world.check(model);
    assert_eq!(world.held.seed.merging_to(), None);
    let files = storage.list(&Path::new(DIR).join("journal")).unwrap();
    assert_eq!(files.len(), world.held.reader.segments().len(), "{files:?}");
    drop(world);
    open(&storage.after_crash(1)).check(model);
}

#[test]
fn a_power_cut_at_every_call_leaves_a_merge_that_comes_to_its_end() {
    let (past, model) = past();
    let calls = calls(&past, &model);
    assert!(calls > 30, "{calls}");
    for call in 0..calls {
        for dice in 0..3 {
            let storage = past.after_crash(0);
            storage.fail_after(call, Fault::Crash);
            if let Ok(world) = World::open(&Arc::new(storage.clone()), Path::new(DIR)) {
                let _ = world.merge(until(&model));
            }
            check_after(&storage.after_crash(call * 31 + dice), &model);
        }
    }
}

#[test]
fn a_power_cut_while_an_interrupted_merge_is_completed_is_recovered_from() {
    let (past, model) = past();
    let calls = calls(&past, &model);
    for first in (0..calls).step_by(5) {
        let storage = past.after_crash(0);
        storage.fail_after(first, Fault::Crash);
        if let Ok(world) = World::open(&Arc::new(storage.clone()), Path::new(DIR)) {
            let _ = world.merge(until(&model));
        }
        for second in (0..calls).step_by(4) {
            let after = storage.after_crash(first);
            after.fail_after(second, Fault::Crash);
            // Whether it opens or not, the next start brings it into order.
            drop(World::open(&Arc::new(after.clone()), Path::new(DIR)));
            check_after(&after.after_crash(second), &model);
        }
    }
}

#[test]
fn a_failed_call_is_made_up_for_and_open_views_stay_right() {
    let (past, model) = past();
    let calls = calls(&past, &model);
    for call in 0..calls {
        let storage = past.after_crash(0);
        let Ok(world) = World::open(&Arc::new(storage.clone()), Path::new(DIR)) else { continue };
        let state = model.states.last().unwrap();
        let view = world.view(state.seq).unwrap();
        storage.fail_after(call, Fault::Once);
        let failed = world.merge(until(&model));
        // What a failed write left in doubt is an error until the merge has been completed.
        if failed.is_ok() {
            check_view(&view, state);
        }
        world.merge(until(&model)).unwrap();
        check_view(&view, state);
        world.check(&model);
        drop((view, world));
        check_after(&storage.after_crash(call), &model);
    }
}

#[test]
fn a_kill_after_a_failed_call_loses_nothing() {
    let (past, model) = past();
    let calls = calls(&past, &model);
    for call in 0..calls {
        let storage = past.after_crash(0);
        let world = open(&storage);
        storage.fail_after(call, Fault::Once);
        let _ = world.merge(until(&model));
        drop(world);
        // The program was killed; the page cache is as the failed sync left it.
        match World::open(&Arc::new(storage.clone()), Path::new(DIR)) {
            Ok(world) => world.check(&model),
            // The call that fails was the opening's.
            Err(_) => open(&storage).check(&model),
        }
        check_after(&storage.after_crash(call), &model);
    }
}
