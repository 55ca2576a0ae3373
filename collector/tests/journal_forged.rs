//! Sealed segments whose tables were forged, with checksums that hold: what they say is checked
//! against the records, nothing wrong is given out and nothing panics.
#![allow(clippy::unwrap_used, reason = "tests")]

mod journal_support;

use std::sync::Arc;

use journal_support::golden::{self, SEALED};
use journal_support::identity;
use tidemark_collector::error::ViewError;
use tidemark_collector::journal::format::{
    IndexEntry, MarkEntry, SegmentTrailer, TRAILER_BYTES, Waypoint,
};
use tidemark_collector::journal::{Journal, JournalConfig, OpenReport};
use tidemark_collector::seed::Seed;
use tidemark_collector::storage::RealStorage;
use tidemark_collector::view::View;
use tidemark_wire::{RecordKind, Seq, checksum};
use zerocopy::{FromBytes, IntoBytes};

/// The tables of the golden sealed segment.
struct Tables {
    cells: Vec<IndexEntry>,
    marks: Vec<MarkEntry>,
    waypoints: Vec<Waypoint>,
}

fn usize_of(at: impl Into<u64>) -> usize {
    usize::try_from(at.into()).unwrap()
}

/// A copy of the golden journal, forged.
fn forge(change: impl FnOnce(&mut Tables, &mut SegmentTrailer)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    golden::copy_to(dir.path());
    let path = dir.path().join(SEALED);
    let mut bytes = std::fs::read(&path).unwrap();
    let mut trailer = SegmentTrailer::read_from_suffix(&bytes).unwrap().1;
    let (cells_at, wide_at) = (usize_of(trailer.records_end), usize_of(trailer.wide_at));
    let (marks_at, waypoints_at) = (usize_of(trailer.marks_at), usize_of(trailer.waypoints_at));
    let end = bytes.len() - usize_of(TRAILER_BYTES);
    let mut tables = Tables {
        cells: <[IndexEntry]>::ref_from_bytes(&bytes[cells_at..wide_at]).unwrap().to_vec(),
        marks: <[MarkEntry]>::ref_from_bytes(&bytes[marks_at..waypoints_at]).unwrap().to_vec(),
        waypoints: <[Waypoint]>::ref_from_bytes(&bytes[waypoints_at..end]).unwrap().to_vec(),
    };
    change(&mut tables, &mut trailer);
    bytes[cells_at..wide_at].copy_from_slice(tables.cells.as_bytes());
    bytes[marks_at..waypoints_at].copy_from_slice(tables.marks.as_bytes());
    bytes[waypoints_at..end].copy_from_slice(tables.waypoints.as_bytes());
    trailer.index_sum = checksum::sum(&bytes[cells_at..marks_at]).into();
    trailer.marks_sum = checksum::sum(&bytes[marks_at..end]).into();
    trailer.trailer_sum = trailer.compute_sum();
    bytes[end..].copy_from_slice(trailer.as_bytes());
    std::fs::write(&path, bytes).unwrap();
    dir
}

fn open(dir: &tempfile::TempDir) -> (Journal, OpenReport) {
    let storage = Arc::new(RealStorage);
    Journal::open_or_create(storage, dir.path(), identity(), JournalConfig::default()).unwrap()
}

fn read(dir: &tempfile::TempDir, journal: &Journal, at: u64) -> Result<Vec<u8>, ViewError> {
    let path = dir.path().join("seed.img");
    let seed = Seed::open_or_create(&Arc::new(RealStorage), &path, identity().size_bytes).unwrap();
    let view = View::open(journal.reader(), Arc::new(seed), Seq(at))?;
    let mut bytes = vec![0; usize_of(view.size_bytes())];
    view.read_at(&mut bytes, 0).map(|()| bytes)
}

#[test]
fn an_entry_that_names_another_records_bytes_is_found() {
    let count = usize_of({
        let dir = tempfile::tempdir().unwrap();
        golden::copy_to(dir.path());
        let bytes = std::fs::read(dir.path().join(SEALED)).unwrap();
        SegmentTrailer::read_from_suffix(&bytes).unwrap().1.cells_count
    });
    let mut found = 0;
    for from in 0..count {
        for to in (0..count).filter(|to| *to != from) {
            let dir = forge(|tables, _| {
                let (position, bytes) =
                    (tables.cells[from].position, tables.cells[from].record_bytes);
                (tables.cells[to].position, tables.cells[to].record_bytes) = (position, bytes);
            });
            let (journal, report) = open(&dir);
            assert_eq!(report.damaged, []);
            match read(&dir, &journal, 13) {
                Ok(bytes) => assert!(bytes == golden::image_at(Seq(13)), "{from} for {to}"),
                Err(error) => {
                    assert!(matches!(error, ViewError::Damaged { .. }), "{error}");
                    found += 1;
                }
            }
        }
    }
    assert!(found > 0);
}

#[test]
fn tables_in_disorder_and_places_that_lie_are_survived() {
    let mut random = journal_support::Random::new(5);
    for _ in 0..200 {
        let dir = forge(|tables, _| {
            for entry in &mut tables.cells {
                if random.below(2) == 0 {
                    entry.cell = u32::try_from(random.below(4)).unwrap().into();
                    entry.seq = random.below(20).into();
                    entry.position = u32::try_from(random.below(90_000)).unwrap().into();
                    entry.offset_bytes = (random.below(1 << 20) << random.below(40)).into();
                    entry.len_bytes = (random.below(1 << 20) << random.below(40)).into();
                    entry.record_bytes = u32::try_from(random.below(1 << 32)).unwrap().into();
                }
            }
            for waypoint in &mut tables.waypoints {
                waypoint.position = u32::try_from(random.below(1 << 32)).unwrap().into();
            }
        });
        let (journal, _) = open(&dir);
        let _ = read(&dir, &journal, 13);
        for seq in 0..20 {
            let _ = journal.reader().floor(Seq(seq));
        }
    }
}

#[test]
fn marks_that_no_volume_has_are_damage() {
    let resize = |tables: &Tables| {
        tables.marks.iter().position(|mark| mark.kind == RecordKind::Resize as u8).unwrap()
    };
    let forged = [
        forge(|tables, trailer| {
            let at = resize(tables);
            (tables.marks[at].len_bytes, trailer.size_bytes) = (u64::MAX.into(), u64::MAX.into());
        }),
        forge(|tables, _| tables.marks.swap(0, 1)),
        forge(|tables, _| tables.marks[0].seq = 0.into()),
    ];
    for dir in forged {
        let (journal, report) = open(&dir);
        assert!(!report.damaged.is_empty());
        assert!(read(&dir, &journal, 19).is_err());
    }
}

#[test]
fn an_index_that_is_cut_behind_the_journals_back_is_an_error() {
    let dir = forge(|_, _| ());
    let (journal, _) = open(&dir);
    let file = std::fs::OpenOptions::new().write(true).open(dir.path().join(SEALED)).unwrap();
    file.set_len(5000).unwrap();
    let error = read(&dir, &journal, 13).unwrap_err();
    assert!(matches!(error, ViewError::Damaged { .. }), "{error}");
}
