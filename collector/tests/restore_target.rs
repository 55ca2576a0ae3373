//! Where a restore may write, and that two of them never write into one file.
#![allow(clippy::unwrap_used, reason = "tests")]

mod journal_support;

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use journal_support::golden;
use journal_support::identity;
use nix::fcntl::{Flock, FlockArg};
use tidemark_collector::error::FailureKind;
use tidemark_collector::journal::{Journal, JournalConfig};
use tidemark_collector::restore::{Progress, Restored, check_outside, check_target, restore};
use tidemark_collector::seed::Seed;
use tidemark_collector::storage::RealStorage;
use tidemark_collector::view::View;
use tidemark_wire::Seq;

fn view(dir: &Path) -> View {
    golden::copy_to(dir);
    let storage = Arc::new(RealStorage);
    let opened =
        Journal::open_or_create(Arc::clone(&storage), dir, identity(), JournalConfig::default());
    let seed = Seed::open_or_create(&storage, &dir.join("seed.img"), identity().size_bytes);
    View::open(opened.unwrap().0.reader(), Arc::new(seed.unwrap()), Seq(13)).unwrap()
}

#[test]
fn a_partial_file_that_another_restore_writes_is_not_touched() {
    let (journal, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let view = view(journal.path());
    let (target, partial) = (out.path().join("disk.img"), out.path().join("disk.img.partial"));
    fs::write(&partial, b"half a disk").unwrap();
    let running = File::open(&partial).unwrap();
    let running = Flock::lock(running, FlockArg::LockExclusiveNonblock).unwrap();
    let error = restore(&view, &target, true, &Progress::default()).unwrap_err();
    assert_eq!(error.kind, FailureKind::Conflict, "{error}");
    assert_eq!(fs::read(&partial).unwrap(), b"half a disk");
    assert!(!target.exists());

    drop(running);
    let restored = restore(&view, &target, true, &Progress::default()).unwrap();
    assert!(matches!(restored, Restored::Done { .. }));
    assert!(fs::read(&target).unwrap() == golden::image_at(Seq(13)));
    assert!(!partial.exists());
}

#[test]
fn names_of_unfinished_restores_and_the_collectors_own_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir_all(data.join("volumes")).unwrap();
    let error = check_target(&dir.path().join("disk.partial"), true).unwrap_err();
    assert_eq!(error.kind, FailureKind::Invalid, "{error}");
    for inside in ["data/catalog.sqlite", "data/volumes/seed.img", "data/../data/x"] {
        let error = check_outside(&dir.path().join(inside), &data).unwrap_err();
        assert_eq!(error.kind, FailureKind::Invalid, "{error}");
    }
    check_outside(&dir.path().join("database.img"), &data).unwrap();
}
