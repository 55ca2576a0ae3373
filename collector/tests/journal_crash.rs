//! Power cuts and failed calls at every write, sync and rename of append, commit and seal.
//!
//! After each the journal is opened again: everything that was committed is there, nothing but
//! whole records that were sent is, in order, and the journal takes the rest.
#![allow(clippy::unwrap_used, reason = "tests")]

mod journal_support;

use std::path::Path;
use std::sync::Arc;

use journal_support::{Sender, identity};
use tidemark_collector::journal::{Journal, JournalConfig, inspect_records};
use tidemark_collector::seed::Seed;
use tidemark_collector::storage::{Fault, MemoryStorage, Storage, StorageFile};
use tidemark_collector::view::View;
use tidemark_wire::Seq;

const DIR: &str = "/journal";
const CONFIG: JournalConfig = JournalConfig { segment_bytes_max: 24 * 1024 };

fn open(storage: &MemoryStorage) -> Journal<MemoryStorage> {
    let (journal, report) =
        Journal::open_or_create(Arc::new(storage.clone()), Path::new(DIR), identity(), CONFIG)
            .unwrap();
    assert!(report.damaged.is_empty(), "{:?}", report.damaged);
    journal
}

/// Sends what the journal does not hold, batch by batch, until all is there or a call fails;
/// gives the newest acknowledged record.
fn send(journal: &mut Journal<MemoryStorage>, sender: &Sender) -> Seq {
    let mut durable = journal.reader().durable();
    for batch in sender.batches_after(durable) {
        if batch.append_to(journal).is_err() {
            break;
        }
        match journal.commit() {
            Ok(committed) => durable = committed.durable,
            Err(_) => break,
        }
    }
    durable
}

/// All records in all segment files, as they stand there.
fn held(storage: &MemoryStorage) -> Vec<Seq> {
    let mut seqs = Vec::new();
    for name in storage.list(Path::new(DIR)).unwrap() {
        if name.contains("cut-at") {
            continue;
        }
        let path = Path::new(DIR).join(name);
        let (records, damage) = inspect_records(storage, &path, Seq(0), usize::MAX).unwrap();
        assert_eq!(damage, None);
        seqs.extend(records.iter().map(|record| record.seq));
    }
    seqs
}

fn check_state(storage: &MemoryStorage, journal: &Journal<MemoryStorage>, sender: &Sender) {
    let durable = journal.reader().durable();
    let expected: Vec<Seq> = sender.seqs().filter(|seq| *seq <= durable).collect();
    assert_eq!(held(storage), expected);
    let seed_dir = Path::new("/volume");
    storage.create_dir(seed_dir).unwrap();
    let storage = Arc::new(storage.clone());
    let size = identity().size_bytes;
    let seed = Seed::open_or_create(&storage, &seed_dir.join("seed.img"), size).unwrap();
    if durable > Seq(0) {
        let view = View::open(journal.reader(), Arc::new(seed), durable).unwrap();
        let mut bytes = vec![0; usize::try_from(size).unwrap()];
        view.read_at(&mut bytes, 0).unwrap();
        assert!(bytes == sender.image_at(durable), "the state at {durable} differs");
    }
}

#[test]
fn a_crash_at_every_call_keeps_what_was_committed() {
    let sender = Sender::new(7, 60);
    let whole = MemoryStorage::default();
    let mut journal = open(&whole);
    assert_eq!(send(&mut journal, &sender), sender.last());
    assert!(journal.reader().segments().len() > 3, "the run seals segments");
    let calls = whole.calls();
    assert!(calls > 40);
    for call in 0..calls {
        for dice in 0..4 {
            let storage = MemoryStorage::default();
            storage.fail_after(call, Fault::Crash);
            let opened = Journal::open_or_create(
                Arc::new(storage.clone()),
                Path::new(DIR),
                identity(),
                CONFIG,
            );
            let acknowledged =
                opened.map_or(Seq(0), |(mut journal, _)| send(&mut journal, &sender));

            let after = storage.after_crash(call * 31 + dice);
            let mut journal = open(&after);
            let durable = journal.reader().durable();
            assert!(durable >= acknowledged, "call {call}: {durable} < {acknowledged}");
            check_state(&after, &journal, &sender);
            assert_eq!(send(&mut journal, &sender), sender.last());

            let again = after.after_crash(dice);
            let journal = open(&again);
            assert_eq!(journal.reader().durable(), sender.last(), "call {call}");
            check_state(&again, &journal, &sender);
        }
    }
}

#[test]
fn a_crash_during_recovery_is_recovered_from() {
    let sender = Sender::new(11, 30);
    for first in (3..40).step_by(3) {
        let storage = MemoryStorage::default();
        storage.fail_after(first, Fault::Crash);
        let acknowledged = send(&mut open(&storage), &sender);
        for second in 0..6 {
            let after = storage.after_crash(first);
            after.fail_after(second, Fault::Crash);
            // Whether it opens or not, the next start brings it into order.
            let opened = Journal::open_or_create(
                Arc::new(after.clone()),
                Path::new(DIR),
                identity(),
                CONFIG,
            );
            drop(opened);
            let last = after.after_crash(second);
            let mut journal = open(&last);
            assert!(journal.reader().durable() >= acknowledged);
            check_state(&last, &journal, &sender);
            assert_eq!(send(&mut journal, &sender), sender.last());
        }
    }
}

#[test]
fn a_failed_call_latches_and_reopening_goes_on_after_the_last_good_sync() {
    let sender = Sender::new(13, 60);
    let whole = MemoryStorage::default();
    send(&mut open(&whole), &sender);
    for call in 0..whole.calls() {
        let storage = MemoryStorage::default();
        let mut journal = open(&storage);
        storage.fail_after(call, Fault::Once);
        let acknowledged = send(&mut journal, &sender);
        storage.clear_fault();
        assert_eq!(journal.reader().durable(), acknowledged);
        if journal.is_latched() {
            let refused = sender.batches_after(acknowledged).next();
            assert!(refused.is_none_or(|batch| batch.append_to(&mut journal).is_err()));
            journal.reopen().unwrap();
        }
        check_state(&storage, &journal, &sender);
        assert_eq!(send(&mut journal, &sender), sender.last(), "call {call}");

        // What the failed sync did not write must not be counted on anywhere.
        let after = storage.after_crash(call);
        let journal = open(&after);
        assert_eq!(journal.reader().durable(), sender.last(), "call {call}");
        check_state(&after, &journal, &sender);
    }
}

#[test]
fn a_kill_after_a_failed_call_counts_only_what_is_on_stable_storage() {
    let sender = Sender::new(17, 60);
    let whole = MemoryStorage::default();
    send(&mut open(&whole), &sender);
    for call in 0..whole.calls() {
        let storage = MemoryStorage::default();
        storage.fail_after(call, Fault::Once);
        let opened =
            Journal::open_or_create(Arc::new(storage.clone()), Path::new(DIR), identity(), CONFIG);
        let acknowledged = opened.map_or(Seq(0), |(mut journal, _)| send(&mut journal, &sender));

        // The program was killed; the page cache is as the failed sync left it.
        let journal = open(&storage);
        let told = journal.reader().durable();
        assert!(told >= acknowledged, "call {call}");
        let after = storage.after_crash(call);
        let journal = open(&after);
        assert!(journal.reader().durable() >= told, "call {call}: {told} was only in memory");
        check_state(&after, &journal, &sender);
    }
}

#[test]
fn a_crash_while_a_latched_journal_reopens_loses_nothing() {
    let sender = Sender::new(19, 40);
    let whole = MemoryStorage::default();
    send(&mut open(&whole), &sender);
    for call in 0..whole.calls() {
        for later in 0..8 {
            let storage = MemoryStorage::default();
            let mut journal = open(&storage);
            storage.fail_after(call, Fault::Once);
            let acknowledged = send(&mut journal, &sender);
            storage.fail_after(later, Fault::Crash);
            let _ = journal.reopen();

            let after = storage.after_crash(call * 13 + later);
            let journal = open(&after);
            assert!(journal.reader().durable() >= acknowledged, "calls {call} and {later}");
            check_state(&after, &journal, &sender);
        }
    }
}

/// A sync of the directory that fails behind the rename, and a power cut later, leave a whole
/// segment under the name of an open one, with newer ones behind it.
#[test]
fn a_sealed_segment_that_lost_its_name_gets_it_again() {
    let sender = Sender::new(17, 60);
    let whole = MemoryStorage::default();
    send(&mut open(&whole), &sender);
    let names = whole.list(Path::new(DIR)).unwrap();
    let sealed: Vec<_> = names.iter().filter_map(|name| name.strip_suffix(".seg")).collect();
    assert!(sealed.len() > 1);
    for first in sealed {
        let path = |ending: &str| Path::new(DIR).join(format!("{first}.{ending}"));
        let storage = whole.after_kill();
        storage.rename(&path("seg"), &path("open")).unwrap();
        let journal = open(&storage);
        assert_eq!(journal.reader().durable(), sender.last());
        check_state(&storage, &journal, &sender);
        assert!(storage.open(&path("seg")).is_ok());

        // One that is not whole is damage, and nothing of it is cut off, unless it is the newest.
        let storage = whole.after_kill();
        storage.rename(&path("seg"), &path("open")).unwrap();
        storage.edit(&path("open"), |bytes| bytes.truncate(bytes.len() - 1)).unwrap();
        let held = storage.open(&path("open")).unwrap().len().unwrap();
        let opened =
            Journal::open_or_create(Arc::new(storage.clone()), Path::new(DIR), identity(), CONFIG);
        let is_newest = whole.paths().iter().next_back() == Some(&path("seg"));
        assert_eq!(opened.unwrap().1.damaged.is_empty(), is_newest);
        let left = storage.open(&path("open")).unwrap().len().unwrap();
        assert!(left == held || is_newest);
    }
}
