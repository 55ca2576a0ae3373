//! The journal's records, held against the log.
//!
//! What enters are the answers of `tidemark --json journal inspect VOLUME SEGMENT`, one file for
//! each segment. Each record of a change is matched to the operation that caused it: one of its
//! kind that covers its range and had no answer yet at the time of the record (the capture's
//! clock is the machine's, as the witness's is). A write may have been recorded in parts. A
//! record that fits several operations in flight is left unmatched; it says nothing then.
//!
//! The states' numbers then say where each state lies in the witness's order: at least behind the
//! submission of everything recorded up to it, at most at the first acknowledgement of anything
//! recorded behind it. That these two never cross is the order that the journal promises, checked
//! here for every number; [`super::views`] checks that the views are those states.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use super::log::{Event, Kind, Log, NEVER, Op};
use super::moment::Interval;
use super::verdict::History;

/// How far the two readings of the wall clock may be apart, in microseconds.
const CLOCK_SLACK_US: i64 = 10_000;

/// One record, as far as it matters here.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Record {
    pub(crate) seq: u64,
    time: jiff::Timestamp,
    kind: String,
    #[serde(rename = "offset_bytes")]
    pub(crate) offset: u64,
    #[serde(rename = "len_bytes")]
    pub(crate) len: u64,
}

#[derive(Deserialize)]
struct Page {
    segment: Segment,
    records: Vec<Record>,
    next_after: Option<u64>,
    damage: Option<String>,
}

#[derive(Deserialize)]
struct Segment {
    name: String,
    first_seq: u64,
}

impl Record {
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// True when the record gives bytes of the disk a value.
    pub(crate) fn changes_bytes(&self) -> bool {
        matches!(self.kind.as_str(), "write" | "write-zeroes" | "trim" | "read-back")
    }

    fn is_of(&self, kind: Kind) -> bool {
        match kind {
            Kind::Write { .. } => self.kind == "write",
            Kind::Zeroes { .. } => self.kind == "write-zeroes",
            Kind::Trim => self.kind == "trim",
            Kind::Flush => false,
        }
    }

    fn is_caused_by(&self, op: &Op) -> bool {
        let us = self.time.as_microsecond();
        self.is_of(op.kind)
            && op.covers(self.offset, self.end())
            && op.submitted_us - CLOCK_SLACK_US <= us
            && us <= op.answered_us.saturating_add(CLOCK_SLACK_US)
    }
}

/// Figures of a journal that fits its log.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) records: usize,
    /// Records of a client's changes that one operation explains.
    pub(crate) matched: usize,
    /// Those that several operations in flight explain.
    pub(crate) ambiguous: usize,
    /// Zeroes that no client wrote: read back from the backing store.
    pub(crate) zeroes_read_back: usize,
    /// Copies of the volume that began.
    pub(crate) copies: usize,
    /// Gaps in the stream.
    pub(crate) gaps: usize,
}

/// The journal of a volume.
pub(crate) struct Journal<'a> {
    pub(crate) records: Vec<Record>,
    /// For each record the operation that caused it, when that is certain.
    pub(crate) causes: Vec<Option<&'a Op>>,
    /// For each record, whether the state of its number may be opened: outside every copy.
    pub(crate) offered: Vec<bool>,
    /// For each record, where in the witness's order the state of its number lies.
    pub(crate) windows: Vec<Interval>,
    pub(crate) figures: Figures,
}

/// Reads the records of all segments and checks that their numbers rise.
pub(crate) fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Record>> {
    let mut pages = Vec::new();
    for path in paths {
        let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let page: Page =
            serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))?;
        let name = &page.segment.name;
        if let Some(damage) = page.damage {
            bail!("segment {name} is damaged: {damage}");
        }
        ensure!(page.next_after.is_none(), "{} has not all of {name}", path.display());
        pages.push(page);
    }
    pages.sort_by_key(|page| page.segment.first_seq);
    let records: Vec<Record> = pages.into_iter().flat_map(|page| page.records).collect();
    for pair in records.windows(2) {
        let (one, next) = (pair[0].seq, pair[1].seq);
        ensure!(one < next, "number {next} stands behind {one} in the journal");
    }
    Ok(records)
}

impl<'a> Journal<'a> {
    /// Matches the records with the log, and checks that each change is there once and in an
    /// allowed order.
    pub(crate) fn check(
        records: Vec<Record>,
        log: &'a Log,
        history: &History<'a>,
    ) -> anyhow::Result<Self> {
        let mut figures = Figures { records: records.len(), ..Figures::default() };
        let mut tally = Tally::new(log);
        let mut causes = Vec::with_capacity(records.len());
        let mut offered = Vec::with_capacity(records.len());
        let (mut is_offered, mut whole_once) = (false, false);
        for record in &records {
            match record.kind.as_str() {
                "gap" => (figures.gaps, is_offered) = (figures.gaps + 1, false),
                "resync-begin" => {
                    (figures.copies, is_offered) = (figures.copies + 1, false);
                    tally.copied_us = record.time.as_microsecond() + CLOCK_SLACK_US;
                    // The first copy is into an empty image, and sends no zeroes.
                    tally.copies_zeroes = figures.gaps > 0;
                }
                "resync-end" => {
                    (is_offered, whole_once) = (true, true);
                    tally.copies_zeroes = false;
                }
                _ => {}
            }
            offered.push(is_offered && whole_once);
            causes.push(tally.cause(record, history, &mut figures)?);
        }
        tally.settle()?;
        let windows = windows(&records, &causes)?;
        Ok(Self { records, causes, offered, windows, figures })
    }
}

/// How much of each operation was found in the journal.
struct Tally<'a> {
    ops: &'a [Op],
    recorded_bytes: Vec<u64>,
    /// May have caused a record that is not certainly its own.
    uncertain: Vec<bool>,
    /// What was submitted before that time may be in a copy of the disk instead of a record.
    copied_us: i64,
    /// A copy runs that says with zeroes what it finds.
    copies_zeroes: bool,
}

impl<'a> Tally<'a> {
    fn new(log: &'a Log) -> Self {
        let ops = &log.ops;
        let (recorded_bytes, uncertain) = (vec![0; ops.len()], vec![false; ops.len()]);
        Self { ops, recorded_bytes, uncertain, copied_us: i64::MIN, copies_zeroes: false }
    }

    fn place(&self, op: &Op) -> usize {
        let place = self.ops.binary_search_by_key(&op.submitted, |op| op.submitted);
        place.expect("the operation is one of the log, which is in this order")
    }

    fn cause(
        &mut self,
        record: &Record,
        history: &History<'a>,
        figures: &mut Figures,
    ) -> anyhow::Result<Option<&'a Op>> {
        let Record { seq, kind, offset, len, .. } = record;
        if record.len == 0 || !record.changes_bytes() || kind == "read-back" {
            return Ok(None);
        }
        let mut ops = history.touching(record.offset, record.end());
        ops.retain(|op| record.is_caused_by(op));
        // A copy may find the zeroes that an operation left which nobody was told of.
        let fits = !ops.is_empty() && ops.iter().all(|op| op.acknowledged != NEVER);
        // What has been recorded wholly is not recorded again.
        ops.retain(|op| self.recorded_bytes[self.place(op)] + record.len <= u64::from(op.len));
        let may_be_copied = self.copies_zeroes && kind == "write-zeroes";
        match ops[..] {
            [op] if !may_be_copied => {
                figures.matched += 1;
                let place = self.place(op);
                self.recorded_bytes[place] += record.len;
                Ok(Some(op))
            }
            [] if fits && !may_be_copied => bail!(
                "record {seq} ({kind}, {len} bytes at {offset}): whatever fits is in the journal \
                 already"
            ),
            [] if kind == "write-zeroes" => {
                figures.zeroes_read_back += 1;
                Ok(None)
            }
            [] => bail!("record {seq} ({kind}, {len} bytes at {offset}): nobody wrote that"),
            _ => {
                figures.ambiguous += 1;
                for op in ops {
                    let place = self.place(op);
                    self.uncertain[place] = true;
                }
                Ok(None)
            }
        }
    }

    /// Every acknowledged operation has to be there wholly, in records or in the copy.
    fn settle(&self) -> anyhow::Result<()> {
        let places = self.ops.iter().zip(self.recorded_bytes.iter().zip(&self.uncertain));
        for (op, (recorded, uncertain)) in places {
            let must = op.acknowledged != NEVER
                && op.submitted_us > self.copied_us
                && matches!(op.kind, Kind::Write { .. } | Kind::Zeroes { .. });
            ensure!(
                !must || *uncertain || *recorded == u64::from(op.len),
                "operation {} ({} bytes at {}) was acknowledged; {recorded} bytes of it are in \
                 the journal",
                op.number,
                op.len,
                op.offset
            );
        }
        Ok(())
    }
}

/// Where each state lies in the order of events; an error when one can't be.
fn windows(records: &[Record], causes: &[Option<&Op>]) -> anyhow::Result<Vec<Interval>> {
    let mut first = 0;
    let begins: Vec<Event> = causes
        .iter()
        .map(|cause| {
            first = cause.map_or(first, |op| op.submitted.max(first));
            first
        })
        .collect();
    let mut windows = Vec::with_capacity(records.len());
    let mut last = NEVER;
    for ((record, cause), first) in records.iter().zip(causes).zip(&begins).rev() {
        ensure!(
            *first <= last,
            "state {} can't be: it has an operation submitted at {first}, and lacks one that was \
             acknowledged at {last}",
            record.seq
        );
        windows.push(Interval::new(*first, last));
        last = cause.map_or(last, |op| op.acknowledged.min(last));
    }
    windows.reverse();
    Ok(windows)
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
