//! What places in the journal say: sizes between marks, whether anything changed, and times where
//! a clock has jumped back.
#![allow(clippy::unwrap_used, reason = "tests")]

mod journal_support;

use std::path::Path;
use std::sync::Arc;

use journal_support::{Batch, Made, identity, spec};
use tidemark_collector::journal::{Journal, JournalConfig};
use tidemark_collector::storage::MemoryStorage;
use tidemark_wire::body::{Bookmark, PointKind};
use tidemark_wire::{PointId, RecordKind, Seq, WallMicros, record};

struct Bench {
    journal: Journal<MemoryStorage>,
    last: Seq,
    bytes: u64,
}

impl Bench {
    /// Segments of a few records.
    fn new() -> Self {
        let config = JournalConfig { segment_bytes_max: 16 << 10 };
        let storage = Arc::new(MemoryStorage::default());
        let dir = Path::new("/journal");
        let journal = Journal::open_or_create(storage, dir, identity(), config).unwrap().0;
        Self { journal, last: Seq(0), bytes: 0 }
    }

    fn put(&mut self, kind: RecordKind, time: u64, payload: &[u8]) -> Seq {
        let len = if kind.has_data() { payload.len() as u64 } else { 0 };
        let seq = Seq(self.last.0 + 2);
        let mut bytes = Vec::new();
        let spec = spec(kind, 0, len, payload.len());
        record::encode(&spec, seq, WallMicros(time), payload, &mut bytes);
        self.bytes += bytes.len() as u64;
        Batch::of(self.last, &[Made { seq, bytes }]).append_to(&mut self.journal).unwrap();
        self.journal.commit().unwrap();
        self.last = seq;
        seq
    }

    fn write(&mut self, time: u64) -> Seq {
        self.put(RecordKind::Write, time, &[7; 3000])
    }

    fn point(&mut self, time: u64) -> Seq {
        let id = PointId::from_bytes([1; 16]);
        let (label, reason) = (String::new(), String::new());
        let mut body = Vec::new();
        Bookmark { id, kind: PointKind::Crash, label, reason }.encode(&mut body);
        self.put(RecordKind::Bookmark, time, &body)
    }
}

#[test]
fn bytes_until_a_mark_are_those_of_the_records_up_to_it() {
    let mut bench = Bench::new();
    let mut wanted = Vec::new();
    for round in 0..9 {
        for _ in 0..=round {
            bench.write(1);
        }
        let seq = bench.point(1);
        wanted.push((seq, Some(bench.bytes)));
    }
    let reader = bench.journal.reader();
    assert!(reader.segments().len() > 5, "several segments");
    wanted.insert(1, (Seq(wanted[0].0.0 + 1), None));
    let seqs: Vec<Seq> = wanted.iter().map(|(seq, _)| *seq).collect();
    let bytes: Vec<Option<u64>> = wanted.iter().map(|(_, bytes)| *bytes).collect();
    assert_eq!(reader.bytes_until(&seqs).unwrap(), bytes);
    assert_eq!(reader.bytes_until(&seqs[4..6]).unwrap(), bytes[4..6]);
    assert_eq!(reader.bytes_until(&[]).unwrap(), []);
}

#[test]
fn only_records_that_change_the_disk_are_changes() {
    let mut bench = Bench::new();
    let reader = bench.journal.reader();
    assert_eq!(reader.first_change_after(Seq(0)).unwrap(), None);
    let first = bench.write(1);
    let point = bench.point(1);
    for _ in 0..200 {
        bench.put(RecordKind::Flush, 1, &[]);
    }
    assert_eq!(reader.first_change_after(Seq(0)).unwrap(), Some(first));
    assert_eq!(reader.first_change_after(first).unwrap(), None);
    for _ in 0..200 {
        bench.point(1);
    }
    assert_eq!(reader.first_change_after(point).unwrap(), None, "over several segments");
    let next = bench.write(1);
    bench.write(1);
    assert_eq!(reader.first_change_after(point).unwrap(), Some(next));
    assert_eq!(reader.first_change_after(Seq(next.0 - 1)).unwrap(), Some(next));
}

#[test]
fn a_time_is_found_before_the_first_later_one_and_shown_never_earlier() {
    let mut bench = Bench::new();
    let before: Vec<Seq> = (1..=20).map(|step| bench.write(100 * step)).collect();
    // The clock is set back by a day, and a few segments later it is right again.
    let behind: Vec<Seq> = (0..20).map(|step| bench.write(10 + step)).collect();
    let right = [bench.write(2100), bench.write(2200)];
    let reader = bench.journal.reader();
    let at = |time| reader.seq_at_time(WallMicros(time)).unwrap().map(|(seq, _)| seq);
    assert_eq!(at(99), None);
    assert_eq!(at(450), Some(before[3]), "what was before the jump is not hidden");
    assert_eq!(at(2050), behind.last().copied(), "just before the first later one");
    assert_eq!(at(2150), Some(right[0]));
    assert_eq!(at(9999), Some(right[1]));
    let (seq, shown) = reader.floor(behind[19]).unwrap().unwrap();
    assert_eq!(seq, behind[19]);
    assert!(shown >= WallMicros(1900), "{shown:?}");
}
