//! Random records, merges and openings: every state that is kept equals the model, also in views
//! that were opened before a merge.
#![allow(clippy::unwrap_used, reason = "tests")]

mod journal_support;
mod merge_support;

use std::path::Path;
use std::sync::Arc;

use journal_support::Random;
use merge_support::{Model, Op, World, check_view, op};
use proptest::prelude::*;
use tidemark_collector::storage::{MemoryStorage, RealStorage, Storage};
use tidemark_wire::Seq;

fn run<S: Storage>(storage: &Arc<S>, dir: &Path, ops: &[Op]) {
    let mut world = World::open(storage, dir).unwrap();
    let (mut model, mut random) = (Model::new(), Random::new(ops.len() as u64));
    for op in ops {
        world.apply(op, &mut model, &mut random).unwrap();
        if matches!(op, Op::Merge { .. }) {
            world.check(&model);
        }
    }
    world.check(&model);
    drop(world);
    World::open(storage, dir).unwrap().check(&model);
}

/// A view of some state is held over everything that follows.
fn run_with_view(ops: &[Op], seed: u64) {
    let storage = Arc::new(MemoryStorage::default());
    let dir = Path::new("/volume");
    let mut world = World::open(&storage, dir).unwrap();
    let (mut model, mut random) = (Model::new(), Random::new(seed));
    let mut views = Vec::new();
    for (number, op) in ops.iter().filter(|op| !matches!(op, Op::Reopen)).enumerate() {
        world.apply(op, &mut model, &mut random).unwrap();
        if random.below(6) == 0
            && let Some(state) = model.states.last()
            && let Ok(view) = world.view(state.seq)
        {
            views.push((view, state.clone()));
        }
        if views.len() > 3 {
            views.remove(usize::try_from(random.below(4)).unwrap());
        }
        if number % 7 == 0 {
            views.iter().for_each(|(view, state)| check_view(view, state));
            let oldest = views.iter().map(|(view, _)| view.at()).min();
            let at = world.held.seed.at();
            assert!(oldest.is_none_or(|oldest| at <= oldest), "{at} is beyond {oldest:?}");
        }
    }
    views.iter().for_each(|(view, state)| check_view(view, state));
    drop(views);
    let files = storage.list(&dir.join("journal")).unwrap().len();
    assert_eq!(files, world.held.reader.segments().len(), "what left is removed");
    world.check(&model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_kept_state_equals_the_model(ops in prop::collection::vec(op(), 1..80)) {
        run(&Arc::new(MemoryStorage::default()), Path::new("/volume"), &ops);
    }

    #[test]
    fn open_views_stay_right(ops in prop::collection::vec(op(), 1..80), seed in any::<u64>()) {
        run_with_view(&ops, seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_kept_state_equals_the_model_on_the_file_system(
        ops in prop::collection::vec(op(), 1..80)
    ) {
        let dir = tempfile::tempdir().unwrap();
        run(&Arc::new(RealStorage), &dir.path().join("volume"), &ops);
    }
}

#[test]
fn a_journal_without_a_segment_offers_the_state_of_its_seed() {
    let storage = Arc::new(MemoryStorage::default());
    let dir = Path::new("/volume");
    let mut world = World::open(&storage, dir).unwrap();
    let (mut model, mut random) = (Model::new(), Random::new(3));
    for at in 0..30 {
        let op = Op::Data { at: at * 7919, len: 5000, pack: false };
        world.apply(&op, &mut model, &mut random).unwrap();
    }
    world.journal.seal_now().unwrap();
    let steps = world.merge(tidemark_wire::WallMicros(u64::MAX)).unwrap();
    assert_eq!(steps.len(), 1);
    for _ in 0..2 {
        let reader = &world.held.reader;
        assert!(reader.segments().is_empty());
        assert_eq!((reader.durable(), reader.first_seq()), (model.last(), Some(model.last())));
        assert_eq!(reader.floor(Seq(model.last().0 - 1)).unwrap(), None);
        assert_eq!(reader.last_time().unwrap().0, model.last().0 * 1000);
        world.check(&model);
        world = World::open(&storage, dir).unwrap();
    }
    world.apply(&Op::Zeroes { at: 0, len: 99 }, &mut model, &mut random).unwrap();
    world.check(&model);
}
