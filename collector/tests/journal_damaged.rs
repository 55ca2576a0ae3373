//! Golden segment files with one thing wrong: each is refused or cut with a message that says
//! which part and where, and what does not need the damaged part stays readable.
#![allow(clippy::unwrap_used, reason = "tests")]

mod journal_support;

use std::path::PathBuf;
use std::sync::Arc;

use journal_support::golden::{self, OPEN, SEALED};
use journal_support::{Batch, Random, identity};
use tidemark_collector::error::{ErrorKind, JournalError, NotOffered, ViewError};
use tidemark_collector::journal::format::{HEADER_BYTES, SegmentTrailer, TRAILER_BYTES};
use tidemark_collector::journal::{
    Journal, JournalConfig, JournalIdentity, OpenReport, inspect_records, inspect_segment,
};
use tidemark_collector::seed::Seed;
use tidemark_collector::storage::RealStorage;
use tidemark_collector::view::View;
use tidemark_wire::{JournalId, Seq, Timeline, VolumeId};
use zerocopy::FromBytes;

/// A copy of the golden journal.
struct Copy {
    dir: tempfile::TempDir,
}

impl Copy {
    fn new() -> Self {
        let copy = Self { dir: tempfile::tempdir().unwrap() };
        golden::copy_to(copy.dir.path());
        copy
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn edit(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = std::fs::read(self.path(name)).unwrap();
        change(&mut bytes);
        std::fs::write(self.path(name), bytes).unwrap();
    }

    fn flip(&self, name: &str, at: u64) {
        self.edit(name, |bytes| bytes[usize::try_from(at).unwrap()] ^= 0x10);
    }

    fn open_as(
        &self,
        identity: JournalIdentity,
    ) -> Result<(Journal<RealStorage>, OpenReport), JournalError> {
        let storage = Arc::new(RealStorage);
        Journal::open_or_create(storage, self.dir.path(), identity, JournalConfig::default())
    }

    fn open(&self) -> (Journal<RealStorage>, OpenReport) {
        self.open_as(identity()).unwrap()
    }

    fn view(&self, journal: &Journal<RealStorage>, at: u64) -> Result<View, ViewError> {
        let path = self.path("seed.img");
        let seed = Seed::open_or_create(&Arc::new(RealStorage), &path, identity().size_bytes);
        View::open(journal.reader(), Arc::new(seed.unwrap()), Seq(at))
    }

    /// Reads all of a state and compares what is given out with the model.
    fn read(&self, journal: &Journal<RealStorage>, at: u64) -> Result<(), ViewError> {
        let view = self.view(journal, at)?;
        let image = golden::image_at(Seq(at));
        let mut bytes = vec![0; image.len()];
        view.read_at(&mut bytes, 0)?;
        assert!(bytes == image, "damaged bytes were given out");
        Ok(())
    }
}

fn trailer() -> SegmentTrailer {
    let bytes = std::fs::read(golden::dir().join(SEALED)).unwrap();
    SegmentTrailer::read_from_suffix(&bytes).unwrap().1
}

fn sealed_bytes() -> u64 {
    std::fs::metadata(golden::dir().join(SEALED)).unwrap().len()
}

/// Where a record begins in its file, and where its payload does.
fn place(name: &str, seq: u64) -> (u64, u64) {
    let path = golden::dir().join(name);
    let (records, _) = inspect_records(&RealStorage, &path, Seq(seq - 1), 1).unwrap();
    let sums =
        tidemark_wire::checksum::piece_count(records[0].range.start(), records[0].payload_bytes);
    (records[0].position, records[0].position + 64 + u64::from(sums) * 8)
}

#[track_caller]
fn says(message: impl ToString, parts: &[&str]) {
    let message = message.to_string();
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

/// The journal opens, tells of one damage, reads up to it and takes no records.
#[track_caller]
fn reads_up_to(copy: &Copy, last: u64, damaged: u64, parts: &[&str]) {
    let (mut journal, report) = copy.open();
    assert_eq!(report.cut, None);
    says(&report.damaged[0], parts);
    if last > 0 {
        copy.read(&journal, last).unwrap();
    }
    let refused = copy.read(&journal, damaged).unwrap_err();
    assert!(matches!(refused, ViewError::NotOffered(NotOffered::Damaged(_))), "{refused}");
    says(refused, parts);
    let listed = journal.reader().segments();
    assert!(listed.iter().any(|segment| segment.damage.is_some()));

    let refused = Batch::of(Seq(0x26), &[]).append_to(&mut journal).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    says(refused, parts);
}

/// The journal opens with a cut behind `last`, and goes on from there.
#[track_caller]
fn is_cut_behind(copy: &Copy, last: u64, kept: bool, parts: &[&str]) {
    let (mut journal, report) = copy.open();
    assert_eq!(report.damaged, []);
    let cut = report.cut.unwrap();
    assert_eq!(cut.after_seq, Seq(last));
    says(&cut, parts);
    let on_file = cut.kept.as_ref().map(|path| std::fs::metadata(path).unwrap().len());
    assert_eq!(on_file, kept.then_some(cut.bytes));
    copy.read(&journal, last).unwrap();

    let records = golden::records();
    let rest: Vec<_> = records.iter().filter(|made| made.seq.0 > last).cloned().collect();
    Batch::of(Seq(last), &rest).append_to(&mut journal).unwrap();
    journal.commit().unwrap();
    copy.read(&journal, 0x26).unwrap();
    drop(journal);
    let (journal, report) = copy.open();
    assert_eq!(report.cut, None, "the cut is durable");
    copy.read(&journal, 0x26).unwrap();
}

#[test]
fn torn_tail() {
    let copy = Copy::new();
    let (at, _) = place(OPEN, 0x26);
    copy.edit(OPEN, |bytes| bytes.truncate(bytes.len() - 100));
    let place = format!("at byte {at}, after record 37: a torn write");
    is_cut_behind(&copy, 0x25, false, &[OPEN, &place, "bytes are there"]);
}

#[test]
fn zeroes_behind_the_last_record() {
    let copy = Copy::new();
    copy.edit(OPEN, |bytes| bytes.resize(bytes.len() + 5000, 0));
    is_cut_behind(&copy, 0x26, false, &[OPEN, "cut 5000 bytes", "after record 38: a torn write"]);
}

#[test]
fn flipped_bit_in_a_record_header_of_the_open_segment() {
    let copy = Copy::new();
    let (at, _) = place(OPEN, 0x24);
    let (next, _) = place(OPEN, 0x25);
    copy.flip(OPEN, at + 25);
    let place = format!("record header at byte {at}: change record: header checksum of record 36");
    let later = format!("whole records follow, record 37 at byte {next}");
    is_cut_behind(&copy, 0x22, true, &[OPEN, "damage", &place, &later]);
}

#[test]
fn flipped_bit_in_a_payload_of_the_open_segment() {
    let copy = Copy::new();
    let (at, payload) = place(OPEN, 0x24);
    copy.flip(OPEN, payload + 1000);
    let place = format!("record payload at byte {at}: change record: payload of record 36");
    is_cut_behind(&copy, 0x22, true, &[OPEN, "damage", &place, "whole records follow, record 37"]);
}

#[test]
fn flipped_bit_in_the_first_record_of_the_open_segment() {
    let copy = Copy::new();
    copy.flip(OPEN, HEADER_BYTES + 40);
    let (mut journal, report) = copy.open();
    let cut = report.cut.unwrap();
    says(&cut, &[OPEN, "at byte 4096, after record 19", "whole records follow, record 33"]);
    assert!(cut.kept.unwrap().exists());
    assert!(!copy.path(OPEN).exists(), "a segment without records is removed");

    let records = golden::records();
    Batch::of(Seq(19), &records[golden::SEALED_RECORDS..]).append_to(&mut journal).unwrap();
    journal.commit().unwrap();
    drop(journal);
    let (journal, report) = copy.open();
    assert_eq!(report.cut, None);
    copy.read(&journal, 0x26).unwrap();
}

#[test]
fn flipped_bit_in_the_header_of_the_open_segment() {
    for at in [0, 20, 64, 100, 2000, 4090] {
        let copy = Copy::new();
        copy.flip(OPEN, at);
        reads_up_to(&copy, 13, 0x20, &[OPEN, "segment header at byte 0"]);
    }
}

#[test]
fn open_segment_with_nothing_but_a_torn_header() {
    for len in [0, 1000, 4096] {
        let copy = Copy::new();
        copy.edit(OPEN, |bytes| {
            bytes.truncate(len);
            bytes.iter_mut().skip(512).for_each(|byte| *byte = 0);
        });
        let (journal, report) = copy.open();
        let cut = report.cut.unwrap();
        says(&cut, &[OPEN, "at byte 0, after record 19", "tore the creation"]);
        assert_eq!(journal.reader().durable(), Seq(19));
        assert!(!copy.path(OPEN).exists());
    }
}

#[test]
fn flipped_bit_in_the_header_of_a_sealed_segment() {
    for at in [0, 20, 64, 100, 2000, 4090] {
        let copy = Copy::new();
        copy.flip(SEALED, at);
        reads_up_to(&copy, 0, 6, &[SEALED, "segment header at byte 0"]);
    }
}

#[test]
fn flipped_bit_in_the_trailer() {
    let start = sealed_bytes() - TRAILER_BYTES;
    for at in [0, 16, 200, 300, 510] {
        let copy = Copy::new();
        copy.flip(SEALED, start + at);
        let place = format!("segment trailer at byte {start}");
        reads_up_to(&copy, 0, 6, &[SEALED, &place]);
    }
}

#[test]
fn flipped_bit_in_the_marks() {
    let copy = Copy::new();
    let at = trailer().marks_at.get();
    copy.flip(SEALED, at + 70);
    reads_up_to(&copy, 0, 6, &[SEALED, &format!("marks at byte {at}")]);
}

#[test]
fn flipped_bit_in_the_index() {
    for table in [trailer().records_end.get(), trailer().wide_at.get()] {
        let copy = Copy::new();
        copy.flip(SEALED, table + 10);
        let (journal, report) = copy.open();
        assert_eq!(report.damaged, [], "the index is not read before it is used");
        let place = format!("index at byte {}: its checksum", trailer().records_end);
        let refused = copy.read(&journal, 6).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt);
        says(refused, &[SEALED, &place]);
        let report = inspect_segment(&RealStorage, &copy.path(SEALED)).unwrap();
        says(&report.damage[0], &[SEALED, &place]);
    }
}

#[test]
fn flipped_bit_in_a_record_header_of_a_sealed_segment() {
    let copy = Copy::new();
    let (at, _) = place(SEALED, 6);
    copy.flip(SEALED, at + 30);
    let (journal, _) = copy.open();
    copy.read(&journal, 4).unwrap();
    let place = format!("record header at byte {at}: change record: header checksum of record 6");
    says(copy.read(&journal, 6).unwrap_err(), &["bytes 5000+1000, record 6", SEALED, &place]);
    let report = inspect_segment(&RealStorage, &copy.path(SEALED)).unwrap();
    says(&report.damage[0], &[SEALED, &place]);
    let (records, damage) = inspect_records(&RealStorage, &copy.path(SEALED), Seq(0), 100).unwrap();
    assert_eq!(records.last().unwrap().seq, Seq(4));
    says(damage.unwrap(), &[&place]);
}

#[test]
fn flipped_bit_in_a_payload_of_a_sealed_segment() {
    for (seq, last_good, range) in [(6, 4, "bytes 5000+1000"), (7, 6, "bytes 258144+4000")] {
        let copy = Copy::new();
        let (at, payload) = place(SEALED, seq);
        copy.flip(SEALED, payload + 100);
        let (journal, _) = copy.open();
        copy.read(&journal, last_good).unwrap();
        let refused = copy.read(&journal, seq).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt);
        let record = format!("{range}, record {seq}");
        let place = format!("record payload at byte {at}");
        says(refused, &[&record, SEALED, &place]);
        let report = inspect_segment(&RealStorage, &copy.path(SEALED)).unwrap();
        says(&report.damage[0], &[SEALED, &place]);
        // What does not touch the record stays readable.
        let view = copy.view(&journal, seq).unwrap();
        view.read_at(&mut [0; 4096], 0).unwrap();
    }
}

#[test]
fn wrong_version() {
    for (name, at) in [(SEALED, 8), (OPEN, 8), (SEALED, sealed_bytes() - TRAILER_BYTES + 8)] {
        let copy = Copy::new();
        copy.edit(name, |bytes| bytes[usize::try_from(at).unwrap()] = 9);
        let refused = copy.open_as(identity()).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Invalid);
        says(refused, &[name, "format version 9, this program knows 1"]);
    }
}

#[test]
fn foreign_files() {
    let volume = VolumeId::from_bytes([9; 16]);
    let journal = JournalId::from_bytes([9; 16]);
    let cases = [
        (JournalIdentity { volume, ..identity() }, "it is of volume 01010101"),
        (JournalIdentity { journal, ..identity() }, "it is of the copy 02020202"),
        (JournalIdentity { timeline: Timeline(0), ..identity() }, "it is of timeline 1"),
    ];
    for (identity, text) in cases {
        let refused = Copy::new().open_as(identity).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Invalid);
        says(refused, &[SEALED, text]);
    }
}

#[test]
fn missing_and_renamed_segments() {
    let copy = Copy::new();
    std::fs::remove_file(copy.path(SEALED)).unwrap();
    reads_up_to(&copy, 0, 0x20, &[OPEN, "chain at byte 0", "it follows record 19"]);

    let copy = Copy::new();
    let other = "0000000000000021.open";
    std::fs::rename(copy.path(OPEN), copy.path(other)).unwrap();
    reads_up_to(&copy, 13, 0x20, &[other, "segment header", "first record is 32"]);

    let copy = Copy::new();
    copy.edit(SEALED, |bytes| bytes.truncate(bytes.len() - 1));
    reads_up_to(&copy, 0, 6, &[SEALED, "segment trailer at byte"]);

    let copy = Copy::new();
    copy.edit(SEALED, |bytes| bytes.truncate(usize::try_from(HEADER_BYTES).unwrap()));
    reads_up_to(&copy, 0, 6, &[SEALED, "segment trailer", "too short"]);
}

/// Any flipped bits and any cut: never a panic, and never bytes that were not captured.
#[test]
fn random_damage_gives_errors_or_the_right_bytes() {
    let mut random = Random::new(4242);
    for round in 0..300 {
        let copy = Copy::new();
        for _ in 0..1 + random.below(3) {
            let name = if random.below(2) == 0 { SEALED } else { OPEN };
            copy.edit(name, |bytes| {
                if bytes.is_empty() {
                    return;
                }
                // Half of the damage goes to the ends, where the structure is.
                let len = bytes.len() as u64;
                let at = match random.below(4) {
                    0 => random.below(len.min(200)),
                    1 => len - 1 - random.below(len.min(3000)),
                    _ => random.below(len),
                };
                let at = usize::try_from(at).unwrap();
                if random.below(8) == 0 {
                    bytes.truncate(at);
                } else {
                    bytes[at] ^= 1 << random.below(8);
                }
            });
        }
        for name in [SEALED, OPEN] {
            let path = copy.path(name);
            let _ = inspect_segment(&RealStorage, &path);
            let _ = inspect_records(&RealStorage, &path, Seq(0), 10);
        }
        let Ok((journal, report)) = copy.open_as(identity()) else { continue };
        let reader = journal.reader();
        let mut told = report.cut.is_some() || !report.damaged.is_empty();
        for made in golden::records() {
            told |= copy.read(&journal, made.seq.0).is_err();
            let _ = reader.floor(made.seq);
        }
        told |= reader.marks().is_ok_and(|(_, damaged)| !damaged.is_empty());
        assert!(told, "round {round}");
    }
}

#[test]
fn every_bit_of_the_structure_is_guarded() {
    let start = sealed_bytes() - TRAILER_BYTES;
    for at in (0..HEADER_BYTES).step_by(97).chain((start..start + TRAILER_BYTES).step_by(13)) {
        let copy = Copy::new();
        copy.flip(SEALED, at);
        let opened = copy.open_as(identity());
        assert!(opened.is_err() || !opened.unwrap().1.damaged.is_empty(), "byte {at}");
    }
}
