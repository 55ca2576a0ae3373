//! What people are told by the thread that merges: damage at once, and history that is shorter than
//! promised.
#![allow(clippy::unwrap_used, reason = "tests")]

mod ingest_support;
mod volumes_support;

use std::path::Path;
use std::sync::Arc;

use ingest_support::{hello, resync, write};
use tidemark_collector::error::Severity;
use tidemark_collector::ingest::volume::volume_dir;
use tidemark_collector::merge::Merger;
use tidemark_collector::seam::SystemClock;
use tidemark_collector::storage::{MemoryStorage, Storage};
use tidemark_wire::{RecordKind, Seq};
use volumes_support::Bench;

/// A volume with more than a MiB of journal in segments of 16 KiB, whose records are years old.
fn bench(config: &str) -> (MemoryStorage, Bench) {
    let storage = MemoryStorage::default();
    storage.create_dir(Path::new("/data/volumes")).unwrap();
    let bench = Bench::start(&storage, &[], config);
    let session = bench.open(&hello(1)).unwrap_or_else(|refusal| panic!("{}", refusal.text));
    let mut changes = vec![resync(RecordKind::ResyncBegin), resync(RecordKind::ResyncEnd)];
    changes.extend((0u8..200).map(|at| write(u64::from(at) * 6000, vec![at; 6000])));
    session.send(&changes, Seq(0), Seq(1), |_, _| ());
    (storage, bench)
}

/// Merges until something is told that contains `words`.
fn told(bench: &Bench, words: &str) -> (Severity, String) {
    let merger = Merger::start(
        Arc::clone(&bench.volumes),
        bench.events.clone(),
        Arc::new(SystemClock::default()),
        Arc::clone(&bench.settings),
    );
    let found = loop {
        let found =
            bench.events.0.lock().unwrap().iter().find(|(_, text)| text.contains(words)).cloned();
        if let Some(found) = found {
            break found;
        }
        std::thread::yield_now();
    };
    drop(merger.unwrap());
    found
}

#[test]
fn a_damaged_record_is_told_of_at_once_and_the_merge_goes_on_behind_it() {
    let (storage, bench) = bench("");
    let held = bench.volume().held().unwrap();
    let segments = held.reader.segments();
    let dir = volume_dir(Path::new("/data"), hello(1).volume).join("journal");
    storage.edit(&dir.join(&segments[5].name), |bytes| bytes[4096 + 700] ^= 1).unwrap();
    let (severity, text) = told(&bench, &segments[5].name);
    assert_eq!(severity, Severity::Critical, "{text}");
    let (severity, text) = told(&bench, "tidemark resync");
    assert_eq!(severity, Severity::Warning, "{text}");
    assert!(held.seed.at() >= segments[5].last_seq);
    bench.volumes.stop();
}

#[test]
fn a_size_limit_shortens_history_and_says_so_once() {
    let (_, bench) = bench("[policy]\nwindow_seconds = 315360000\njournal_mib_max = 1\n");
    let held = bench.volume().held().unwrap();
    assert!(held.reader.bytes() > 1 << 20);
    let (severity, text) = told(&bench, "of history are kept");
    assert_eq!(severity, Severity::Warning);
    assert!(text.contains("journal_mib_max"), "{text}");
    assert!(held.reader.bytes() <= 1 << 20);
    let again = bench
        .events
        .0
        .lock()
        .unwrap()
        .iter()
        .filter(|(_, text)| text.contains("of history"))
        .count();
    assert_eq!(again, 1);
    bench.volumes.stop();
}
