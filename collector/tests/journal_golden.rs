//! Golden segment files: this version decodes them and makes them again, byte by byte. What
//! happens to damaged ones is in `journal_damaged.rs`.
//!
//! `TIDEMARK_BLESS=1` writes the files anew, after a deliberate change of the format only.
#![allow(clippy::unwrap_used, reason = "tests")]

mod journal_support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use journal_support::golden::{self, SEALED_RECORDS};
use journal_support::{Batch, Made, identity};
use tidemark_collector::journal::format::SegmentTrailer;
use tidemark_collector::journal::{Journal, JournalConfig, inspect_records, inspect_segment};
use tidemark_collector::seed::Seed;
use tidemark_collector::storage::{RealStorage, Storage};
use tidemark_collector::view::View;
use tidemark_wire::{Record, Seq};
use zerocopy::FromBytes;

/// Writes the golden records the way a session would.
fn write_journal(dir: &Path, records: &[Made]) {
    let (mut journal, _) =
        Journal::open_or_create(Arc::new(RealStorage), dir, identity(), JournalConfig::default())
            .unwrap();
    let (sealed, open) = records.split_at(SEALED_RECORDS);
    Batch::of(Seq(0), sealed).append_to(&mut journal).unwrap();
    journal.commit().unwrap();
    journal.seal_now().unwrap();
    Batch::of(sealed.last().unwrap().seq, open).append_to(&mut journal).unwrap();
    journal.commit().unwrap();
}

fn read(dir: &Path, name: &str) -> Vec<u8> {
    std::fs::read(dir.join(name)).unwrap()
}

/// The records of the golden files, as they stand there.
fn golden_records() -> Vec<Made> {
    let sealed = read(&golden::dir(), golden::SEALED);
    let trailer = SegmentTrailer::read_from_suffix(&sealed).unwrap().1;
    let end = usize::try_from(trailer.records_end.get()).unwrap();
    let open = read(&golden::dir(), golden::OPEN);
    let mut made = Vec::new();
    for bytes in [&sealed[4096..end], &open[4096..]] {
        for record in tidemark_wire::frame::records(bytes) {
            let record = record.unwrap();
            made.push(Made { seq: record.header.seq(), bytes: record.bytes.to_vec() });
        }
    }
    made
}

#[test]
fn golden_segments_are_made_again_byte_by_byte() {
    if golden::blessing() {
        let dir = golden::dir();
        let _ = std::fs::remove_dir_all(&dir);
        write_journal(&dir, &golden::records());
    }
    let again = tempfile::tempdir().unwrap();
    write_journal(again.path(), &golden_records());
    for name in [golden::SEALED, golden::OPEN] {
        let bytes = read(&golden::dir(), name);
        assert!(bytes.len() < 64 * 1024, "{name} is small");
        assert!(bytes == read(again.path(), name), "{name} is made differently now");
    }
}

#[test]
fn golden_records_say_what_was_put_in() {
    let (decoded, wanted) = (golden_records(), golden::records());
    assert_eq!(decoded.len(), wanted.len());
    for (decoded, wanted) in decoded.iter().zip(&wanted) {
        let (decoded, wanted) =
            (Record::decode(&decoded.bytes).unwrap(), Record::decode(&wanted.bytes).unwrap());
        // How small a payload gets may change with the compressor; all else may not.
        let fields = |record: &Record<'_>| {
            let mut header = *record.header;
            (header.stored_bytes, header.header_sum) = (0.into(), 0.into());
            header
        };
        assert_eq!(fields(&decoded), fields(&wanted));
        assert_eq!(decoded.sums, wanted.sums);
        let (mut one, mut other) = (Vec::new(), Vec::new());
        assert_eq!(decoded.payload(&mut one).unwrap(), wanted.payload(&mut other).unwrap());
    }
}

#[test]
fn golden_segments_are_whole_for_the_inspector() {
    let mut records = 0;
    for (name, sealed) in [(golden::SEALED, true), (golden::OPEN, false)] {
        let path = golden::dir().join(name);
        let report = inspect_segment(&RealStorage, &path).unwrap();
        assert_eq!(report.damage, []);
        assert_eq!(report.sealed, sealed);
        assert_eq!(report.volume, identity().volume);
        records += report.records;
        let (listed, damage) = inspect_records(&RealStorage, &path, Seq(0), 1000).unwrap();
        assert_eq!((listed.len() as u64, damage), (report.records, None));
        let (some, _) = inspect_records(&RealStorage, &path, listed[1].seq, 2).unwrap();
        assert_eq!(some.iter().map(|r| r.seq).collect::<Vec<_>>(), [listed[2].seq, listed[3].seq]);
    }
    assert_eq!(records, golden::records().len() as u64);
}

#[test]
fn golden_states_read_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    golden::copy_to(dir.path());
    let storage = Arc::new(RealStorage);
    let (journal, report) = Journal::open_or_create(
        Arc::clone(&storage),
        dir.path(),
        identity(),
        JournalConfig::default(),
    )
    .unwrap();
    assert_eq!((report.cut, report.damaged), (None, Vec::new()));
    let seed_path: PathBuf = dir.path().join("seed.img");
    let size = identity().size_bytes;
    let seed = Arc::new(Seed::open_or_create(&storage, &seed_path, size).unwrap());
    storage.sync_dir(dir.path()).unwrap();
    let mut offered = 0;
    for made in golden_records() {
        let Ok(view) = View::open(journal.reader(), Arc::clone(&seed), made.seq) else { continue };
        offered += 1;
        let image = golden::image_at(made.seq);
        let mut bytes = vec![0; image.len()];
        match view.read_at(&mut bytes, 0) {
            Ok(()) => assert!(bytes == image, "the state at {} differs", made.seq),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("could not be read on the protected machine"), "{text}");
                assert!((15..0x21).contains(&made.seq.0), "{}: {text}", made.seq);
            }
        }
    }
    assert!(offered > 12);
    let (marks, damaged) = journal.reader().marks().unwrap();
    assert_eq!(damaged, []);
    assert_eq!(marks.len(), 10);
    assert_eq!(journal.reader().spans().len(), 2);
}
