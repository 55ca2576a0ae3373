//! Replays the client's own data in the order of the numbers, and compares every view with it.
//!
//! What enters: the plan, the log, the owners of the records, the collector's journal and seed.
//! What leaves: figures, or the first difference. The contents of a view are compared with what
//! the clients wrote, never with what the journal holds. What a copy read back is the exception:
//! within a span nothing is compared, and at its end the whole disk is held against the log.

use std::collections::HashMap;
use std::sync::Arc;

use tidemark_collector::error::{NotOffered, ViewError};
use tidemark_collector::ingest::volume::Held;
use tidemark_collector::storage::RealStorage;
use tidemark_collector::view::View;
use tidemark_wire::{RecordKind, Seq};
use xxhash_rust::xxh3::xxh3_64;

use super::effects::{Effects, Moment};
use super::figures::Figures;
use super::journal::Entry;
use super::owners::{Owner, Owners, part_of};
use super::plan::{Op, Sort};

/// Of a longer jump in the numbers only the ends are looked at.
const JUMP_MAX: u64 = 64;

/// What the replay works on.
pub(crate) struct Replay<'a> {
    pub(crate) held: &'a Held<RealStorage>,
    pub(crate) ops: &'a [Op],
    pub(crate) records: &'a [Entry],
    pub(crate) owners: &'a Owners,
    pub(crate) effects: &'a Effects<'a>,
    /// Hashes of the states that were read while the case ran.
    pub(crate) live: &'a HashMap<Seq, u64>,
    /// The model is made wrong at the last record, to see that the comparison finds it.
    pub(crate) spoil: bool,
}

/// A copy that the stream is in the middle of: its identity, once it is known.
type Span = Option<[u8; 16]>;

impl Replay<'_> {
    /// Compares everything, and gives the disk as it is at the last record.
    pub(crate) fn run(&self, size_bytes: u64, figures: &mut Figures) -> Result<Vec<u8>, String> {
        let mut image = vec![0; usize::try_from(size_bytes).expect("a small disk")];
        let mut buffer = vec![0; image.len()];
        let mut span: Option<Span> = None;
        let (mut ends, mut live_seen) = (0, 0);
        for (number, record) in self.records.iter().enumerate() {
            self.apply(number, &mut image);
            span = next_span(record, span)?;
            if record.kind == RecordKind::ResyncEnd {
                ends += 1;
                let at = Moment::Seq(record.seq);
                let what =
                    |error| format!("after the copy that record {} ends: {error}", record.seq);
                self.effects.check(&image, 0, at).map_err(what)?;
            }
            let next = self.records.get(number + 1).map_or(record.seq + 1, |next| next.seq);
            if self.spoil && number + 1 == self.records.len() {
                image[0] ^= 1;
            }
            for seq in states(record.seq, next) {
                if span.is_some() {
                    self.refused(seq)?;
                    figures.refused += 1;
                } else {
                    self.compare(seq, &image, &mut buffer)?;
                    figures.views += 1;
                    figures.view_bytes += size_bytes;
                }
            }
            if let Some(hash) = self.live.get(&Seq(record.seq)) {
                live_seen += 1;
                if span.is_some() || *hash != xxh3_64(&image) {
                    let seq = record.seq;
                    return Err(format!("state {seq}, read during the run, is not the model's"));
                }
            }
        }
        if live_seen != self.live.len() {
            return Err("a state that was read during the run is not in the journal".into());
        }
        if span.is_some() {
            return Err("the last span has no end".into());
        }
        figures.spans += ends;
        figures.live_views += live_seen as u64;
        self.outside()?;
        Ok(image)
    }

    fn apply(&self, number: usize, image: &mut [u8]) {
        let record = &self.records[number];
        let start = usize::try_from(record.range.start()).expect("a small disk");
        let len = usize::try_from(record.range.len()).expect("a small disk");
        match self.owners.of_records[number] {
            Owner::Mark => {}
            Owner::Op(op) => match self.ops[op].sort {
                Sort::Write => {
                    let data = part_of(&self.ops[op], record.range);
                    image[start..start + len].copy_from_slice(data);
                }
                Sort::Zero | Sort::Trim => image[start..start + len].fill(0),
                Sort::Read | Sort::Flush => {}
            },
            Owner::Copy if record.payload.is_empty() => image[start..start + len].fill(0),
            Owner::Copy => image[start..start + len].copy_from_slice(&record.payload),
        }
    }

    fn open(&self, seq: u64) -> Result<View, ViewError> {
        View::open(Arc::clone(&self.held.reader), Arc::clone(&self.held.seed), Seq(seq))
    }

    fn compare(&self, seq: u64, image: &[u8], buffer: &mut [u8]) -> Result<(), String> {
        let failed = |error| format!("state {seq}: {error}");
        let view = self.open(seq).map_err(failed)?;
        if view.size_bytes() != image.len() as u64 {
            return Err(format!("state {seq} has {} bytes", view.size_bytes()));
        }
        // In two parts of no alignment, which move with the number.
        let middle = usize::try_from(seq * 7919 % image.len() as u64).expect("a small disk");
        buffer.fill(0xA5);
        let (low, high) = buffer.split_at_mut(middle);
        view.read_at(high, middle as u64).map_err(failed)?;
        view.read_at(low, 0).map_err(failed)?;
        match image.iter().zip(buffer.iter()).position(|(model, seen)| model != seen) {
            None => Ok(()),
            Some(at) => Err(format!(
                "state {seq} differs from the model at byte {at}: {} instead of {}",
                buffer[at], image[at]
            )),
        }
    }

    fn refused(&self, seq: u64) -> Result<(), String> {
        match self.open(seq) {
            Err(ViewError::NotOffered(NotOffered::InSpan { .. })) => Ok(()),
            Err(error) => Err(format!("state {seq} in a span is refused with {error}")),
            Ok(_) => Err(format!("state {seq} in a span is offered")),
        }
    }

    /// States before the first record and behind the last are refused.
    fn outside(&self) -> Result<(), String> {
        let (Some(first), Some(last)) = (self.records.first(), self.records.last()) else {
            return Err("the journal is empty".into());
        };
        if self.held.reader.durable() != Seq(last.seq) {
            let durable = self.held.reader.durable();
            return Err(format!(
                "record {durable} is the last durable one, {} is the last",
                last.seq
            ));
        }
        let behind = self.open(last.seq + 1);
        let before = self.open(first.seq - 1);
        match (before, behind) {
            (
                Err(ViewError::NotOffered(NotOffered::BeforeStart { .. })),
                Err(ViewError::NotOffered(NotOffered::AfterEnd { .. })),
            ) => Ok(()),
            _ => Err("a state outside of the journal is offered".into()),
        }
    }
}

/// The numbers of one state: from its record up to the next one.
fn states(seq: u64, next: u64) -> impl Iterator<Item = u64> {
    (seq..next).filter(move |state| *state < seq + JUMP_MAX || *state + 1 == next)
}

fn next_span(record: &Entry, span: Option<Span>) -> Result<Option<Span>, String> {
    match (record.kind, span) {
        (RecordKind::Gap, _) => Ok(Some(None)),
        (RecordKind::ResyncBegin, _) => Ok(Some(Some(record.copy_id()?))),
        (RecordKind::ResyncEnd, Some(Some(id))) if record.copy_id()? == id => Ok(None),
        (RecordKind::ResyncEnd, _) => Err(format!("record {} ends no copy", record.seq)),
        (_, span) => Ok(span),
    }
}
