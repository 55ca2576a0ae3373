//! Opens many states of the volume and holds their bytes against the log.
//!
//! The states are numbers of records spread over the whole journal outside of copies. Each is
//! exported read-only by the collector and read over NBD: places chosen at random, all places
//! that were changed shortly before and after the state, and for a few states the whole disk.
//! The bytes of the state's own record have to be exactly what its operation left, those of the
//! record behind it must not be there yet; all others have to be allowed ([`super::verdict`])
//! within the state's window ([`super::records`]).

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::log::Kind;
use super::records::{Journal, Record};
use super::verdict::{Check, History};
use crate::nbd::{Connection, Reader};
use crate::random::Random;

/// Length of a place that is read.
const PLACE_BYTES: u64 = 64 * 1024;
/// Records before and behind a state whose places are read.
const NEAR_RECORDS: usize = 8;
/// Read before and behind a place that was changed.
const MARGIN_BYTES: u64 = 4096;
/// From this length on no two operations leave the same bytes at a place.
const LEN_TELLING_BYTES: u64 = 16;
/// States that are looked at at once.
const THREADS: usize = 2;

/// What to look at.
#[derive(Clone, Debug)]
pub(crate) struct Sampling {
    pub(crate) volume: String,
    /// Folder for the sockets of the exports.
    pub(crate) sockets: PathBuf,
    pub(crate) states: usize,
    /// Of them, those that are read whole.
    pub(crate) whole: usize,
    /// Places chosen at random, for each state.
    pub(crate) places: u64,
    pub(crate) seed: u64,
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Looked {
    pub(crate) states: usize,
    pub(crate) whole: usize,
    pub(crate) bytes: u64,
    /// States whose own record's bytes were compared exactly.
    pub(crate) exact: usize,
}

#[derive(Deserialize)]
struct Export {
    id: u64,
    nbd_name: String,
    state: State,
}

#[derive(Deserialize)]
struct State {
    seq: u64,
}

/// Runs the operator's tool, which has to be in the PATH.
fn tidemark(arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
    let output = Command::new("tidemark").arg("--json").args(arguments).output();
    let output = output.context("run tidemark")?;
    ensure!(
        output.status.success(),
        "tidemark {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(output.stdout)
}

/// Opens states of the journal and checks them; the first that is not allowed is the error.
pub(crate) fn check(
    sampling: &Sampling,
    journal: &Journal<'_>,
    history: &History<'_>,
    size_bytes: u64,
) -> anyhow::Result<Looked> {
    let chosen = choose(sampling, journal)?;
    let next = AtomicUsize::new(0);
    let looked = Mutex::new(Looked::default());
    let look = |thread: usize| -> anyhow::Result<()> {
        loop {
            // Relaxed: only that each state is taken once matters.
            let turn = next.fetch_add(1, Ordering::Relaxed);
            let Some(index) = chosen.get(turn) else { return Ok(()) };
            let step = chosen.len().div_ceil(sampling.whole.max(1));
            let whole = sampling.whole > 0 && turn.is_multiple_of(step);
            let look = Look { sampling, journal, history, size_bytes, index: *index };
            let one = look.run(thread, whole).inspect_err(|_| {
                next.store(chosen.len(), Ordering::Relaxed);
            });
            let one = one.with_context(|| format!("state seq:{}", journal.records[*index].seq))?;
            let mut all = looked.lock().unwrap_or_else(PoisonError::into_inner);
            all.states += 1;
            all.whole += usize::from(whole);
            all.exact += usize::from(one.exact);
            all.bytes += one.bytes;
        }
    };
    thread::scope(|scope| {
        let look = &look;
        let threads: Vec<_> =
            (0..THREADS).map(|thread| scope.spawn(move || look(thread))).collect();
        let ended = threads.into_iter().map(|thread| thread.join().expect("a check panicked"));
        ended.collect::<anyhow::Result<Vec<()>>>()
    })?;
    Ok(looked.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Places in the journal of the states to look at: one from each of equal parts, and the last.
fn choose(sampling: &Sampling, journal: &Journal<'_>) -> anyhow::Result<Vec<usize>> {
    let offered: Vec<usize> =
        (0..journal.records.len()).filter(|index| journal.offered[*index]).collect();
    ensure!(
        offered.len() >= sampling.states && sampling.states > 0,
        "the journal offers {} states, {} were to be looked at",
        offered.len(),
        sampling.states
    );
    let mut random = Random::new(sampling.seed, 1 << 40);
    let mut chosen: Vec<usize> = (0..sampling.states)
        .map(|part| {
            let begin = offered.len() * part / sampling.states;
            let end = offered.len() * (part + 1) / sampling.states;
            offered[begin + random.place(end - begin)]
        })
        .collect();
    chosen[sampling.states - 1] = offered[offered.len() - 1];
    Ok(chosen)
}

/// One state to look at.
struct Look<'s, 'h, 'a> {
    sampling: &'s Sampling,
    journal: &'s Journal<'a>,
    history: &'h History<'a>,
    size_bytes: u64,
    index: usize,
}

struct One {
    bytes: u64,
    exact: bool,
}

impl Look<'_, '_, '_> {
    fn record(&self) -> &Record {
        &self.journal.records[self.index]
    }

    fn run(&self, thread: usize, whole: bool) -> anyhow::Result<One> {
        let socket = self.sampling.sockets.join(format!("view-{thread}.sock"));
        let at = format!("seq:{}", self.record().seq);
        let listen = format!("unix:{}", socket.display());
        let made = tidemark(&[
            "export",
            "create",
            &self.sampling.volume,
            "--at",
            &at,
            "--listen",
            &listen,
        ])?;
        let export: Export = serde_json::from_slice(&made).context("answer of tidemark export")?;
        ensure!(export.state.seq == self.record().seq, "exported is seq:{}", export.state.seq);
        let connection = Connection::open(&socket, &export.nbd_name)?;
        ensure!(connection.size_bytes() == self.size_bytes, "the size is not that of the disk");
        let one = self.read(&mut Reader::new(connection), whole)?;
        tidemark(&["export", "stop", &export.id.to_string()])?;
        Ok(one)
    }

    fn read(&self, reader: &mut Reader, whole: bool) -> anyhow::Result<One> {
        let exact = self.own_record(reader)?;
        self.next_record(reader)?;
        let ranges = self.ranges(whole);
        let mut check = Check::new(self.history, self.journal.windows[self.index]);
        reader.read(&ranges, |place, bytes| Ok(check.bytes(ranges[place].0, bytes)?))?;
        Ok(One { bytes: check.checked_bytes(), exact })
    }

    /// The newest record of a state has its whole effect; says whether it is known.
    fn own_record(&self, reader: &mut Reader) -> anyhow::Result<bool> {
        let record = self.record();
        let Some(op) = self.journal.causes[self.index] else { return Ok(false) };
        let len = u32::try_from(record.len).context("length of a client's change")?;
        let mut expected = vec![0; len as usize];
        if self.history.fill(op, record.offset, &mut expected).is_none() {
            return Ok(false);
        }
        reader.read(&[(record.offset, len)], |_, bytes| {
            let differs = bytes.iter().zip(&expected).position(|(is, should)| is != should);
            ensure!(
                differs.is_none(),
                "byte {} of the {len} at {} is not what operation {} left there",
                differs.unwrap_or(0),
                record.offset,
                op.number
            );
            Ok(())
        })?;
        Ok(true)
    }

    /// The record behind the state must not have taken effect yet.
    fn next_record(&self, reader: &mut Reader) -> anyhow::Result<()> {
        let next = self.index + 1;
        let Some(Some(op)) = self.journal.causes.get(next) else { return Ok(()) };
        let (record, is_write) =
            (&self.journal.records[next], matches!(op.kind, Kind::Write { .. }));
        // Zeroes and the end of a word say nothing: they may have been there before.
        if !is_write || record.len < LEN_TELLING_BYTES {
            return Ok(());
        }
        let len = u32::try_from(record.len).context("length of a client's change")?;
        let mut later = vec![0; len as usize];
        self.history.fill(op, record.offset, &mut later).context("a write has bytes")?;
        reader.read(&[(record.offset, len)], |_, bytes| {
            ensure!(bytes != later, "record {} behind the state is there already", record.seq);
            Ok(())
        })
    }

    fn ranges(&self, whole: bool) -> Vec<(u64, u32)> {
        let places = self.size_bytes.div_ceil(PLACE_BYTES);
        let mut starts: Vec<u64> = (0..places).collect();
        if !whole {
            let mut random = Random::new(self.sampling.seed, self.record().seq);
            starts = (0..self.sampling.places).map(|_| random.below(places)).collect();
        }
        let mut ranges: Vec<(u64, u64)> = starts
            .into_iter()
            .map(|place| (place * PLACE_BYTES, (place + 1) * PLACE_BYTES))
            .collect();
        let near = self.index.saturating_sub(NEAR_RECORDS)
            ..(self.index + 1 + NEAR_RECORDS).min(self.journal.records.len());
        let changes = self.journal.records[near].iter().filter(|r| r.changes_bytes());
        ranges.extend(changes.flat_map(|record| {
            let start = record.offset.saturating_sub(MARGIN_BYTES);
            pieces(start, record.end() + MARGIN_BYTES)
        }));
        let within = ranges.into_iter().map(|(start, end)| (start, end.min(self.size_bytes)));
        within
            .filter(|(start, end)| start < end)
            .map(|(start, end)| (start, u32::try_from(end - start).expect("a place is short")))
            .collect()
    }
}

/// A range in parts of at most `PLACE_BYTES`.
fn pieces(start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
    let count = (end - start).div_ceil(PLACE_BYTES);
    (0..count).map(move |piece| {
        let at = start + piece * PLACE_BYTES;
        (at, end.min(at + PLACE_BYTES))
    })
}
