//! Views are opened and read by several threads while the journal grows and seals; and a view
//! of a long journal keeps few files open.
#![allow(clippy::unwrap_used, reason = "tests")]

mod journal_support;

use std::path::Path;
use std::sync::Arc;
use std::thread;

use journal_support::{Random, Sender, VOLUME_BYTES, identity};
use tidemark_collector::journal::{Journal, JournalConfig, JournalReader};
use tidemark_collector::seed::Seed;
use tidemark_collector::storage::RealStorage;
use tidemark_collector::view::View;
use tidemark_wire::Seq;

fn open(dir: &Path, segment_bytes_max: u64) -> (Journal<RealStorage>, Arc<Seed<RealStorage>>) {
    let storage = Arc::new(RealStorage);
    let seed = Seed::open_or_create(&storage, &dir.join("seed.img"), VOLUME_BYTES).unwrap();
    let (journal, _) = Journal::open_or_create(
        storage,
        &dir.join("journal"),
        identity(),
        JournalConfig { segment_bytes_max },
    )
    .unwrap();
    (journal, Arc::new(seed))
}

/// Reads parts of the newest states until the last one was read.
fn read_along(
    reader: &Arc<JournalReader<RealStorage>>,
    seed: &Arc<Seed<RealStorage>>,
    sender: &Sender,
    dice: u64,
) {
    let mut random = Random::new(dice);
    loop {
        let at = reader.durable();
        if at == Seq(0) {
            thread::yield_now();
            continue;
        }
        let view = View::open(Arc::clone(reader), Arc::clone(seed), at).unwrap();
        assert!(reader.pinned().iter().any(|(seq, _)| *seq == at));
        let image = sender.image_at(at);
        let offset = random.below(VOLUME_BYTES - 50_000);
        let mut bytes = vec![0; 50_000];
        view.read_at(&mut bytes, offset).unwrap();
        let start = usize::try_from(offset).unwrap();
        assert!(bytes == image[start..start + 50_000], "the state at {at} differs");
        assert_eq!(reader.floor(at).unwrap().unwrap().0, at);
        if at == sender.last() {
            return;
        }
    }
}

#[test]
fn readers_see_whole_states_while_the_journal_grows() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, seed) = open(dir.path(), 40_000);
    let sender = Sender::new(99, 400);
    thread::scope(|scope| {
        for dice in 0..3 {
            let (reader, seed, sender) = (journal.reader(), Arc::clone(&seed), &sender);
            scope.spawn(move || read_along(&reader, &seed, sender, dice));
        }
        for batch in sender.batches_after(Seq(0)) {
            batch.append_to(&mut journal).unwrap();
            journal.commit().unwrap();
        }
    });
    assert!(journal.reader().segments().len() > 10);
    assert!(journal.reader().pinned().is_empty());
}

#[test]
fn a_view_of_many_segments_keeps_few_files_open() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, seed) = open(dir.path(), 1);
    let sender = Sender::new(5, 600);
    for batch in sender.batches_after(Seq(0)) {
        batch.append_to(&mut journal).unwrap();
        journal.commit().unwrap();
    }
    assert_eq!(journal.reader().segments().len(), 200);
    drop(journal);
    let (journal, _) = open(dir.path(), 1);
    for at in sender.seqs() {
        let view = View::open(journal.reader(), Arc::clone(&seed), at).unwrap();
        let mut bytes = vec![0; usize::try_from(VOLUME_BYTES).unwrap()];
        view.read_at(&mut bytes, 0).unwrap();
        assert!(bytes == sender.image_at(at), "the state at {at} differs");
    }
    let below = dir.path().join("journal").canonicalize().unwrap();
    let open = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter(|target| target.starts_with(&below))
        .count();
    assert!(open <= 64, "{open} files are open");
}
