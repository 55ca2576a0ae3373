//! Writes a state to a target, and goes on with what an earlier run has written.
//!
//! What enters: a view, an open target, a record. What leaves: the target with every byte of the
//! state, and the record, kept up with it. First the chunks of the record are read back; one whose
//! sum does not hold is written anew. Then comes what is missing. A few threads read ahead of the
//! one that writes, at most [`AHEAD_MAX`] steps; steps are written in the order of the disk.

use std::collections::VecDeque;
use std::path::PathBuf;

use crossbeam_channel::{Receiver, Sender, bounded};
use tidemark_block::ByteRange;

use super::Progress;
use super::record::{ChunkSum, Record};
use super::steps::{STEP_BYTES, Step, Steps};
use super::target::Target;
use crate::error::{Failure, Result};
use crate::storage::Storage;
use crate::view::View;

/// Threads that read ahead; decompressing is what takes the time.
const READERS: usize = 3;
/// Steps that are read ahead, so 16 MiB at the most.
const AHEAD_MAX: usize = 16;
/// After so many bytes the target is synced and the record written.
const SYNC_BYTES: u64 = 64 << 20;
/// After so many bytes of zeroes too: on some devices they are written.
const SYNC_ZERO_BYTES: u64 = 1 << 30;
/// Unit of the view's checksums.
const CHECK_BYTES: u64 = 4096;

/// What a run has done.
pub(super) struct Filled {
    pub(super) written_bytes: u64,
    pub(super) checksums_verified: u64,
    /// The target holds the whole state; otherwise the run was cancelled.
    pub(super) whole: bool,
}

/// One run.
pub(super) struct Fill<'a, S: Storage> {
    view: &'a View<S>,
    out: Out<'a>,
    progress: &'a Progress,
}

/// The end that writes.
struct Out<'a> {
    target: &'a mut dyn Target,
    record: Record,
    path: PathBuf,
    /// Sum of the chunk under way.
    sum: ChunkSum,
    written_bytes: u64,
    unsynced_bytes: u64,
    unsynced_zero_bytes: u64,
    /// The record at `path` says that something is there.
    stored: bool,
}

impl<'a, S: Storage> Fill<'a, S> {
    pub(super) fn new(
        view: &'a View<S>,
        target: &'a mut dyn Target,
        record: Record,
        path: PathBuf,
        progress: &'a Progress,
    ) -> Self {
        let stored = record.done_bytes() > 0;
        let out = Out {
            target,
            record,
            path,
            sum: ChunkSum::default(),
            written_bytes: 0,
            unsynced_bytes: 0,
            unsynced_zero_bytes: 0,
            stored,
        };
        Self { view, out, progress }
    }

    /// Whether there is something to go on with.
    pub(super) fn has_record(&self) -> bool {
        self.out.stored
    }

    /// Runs to the end of the disk, or until it is cancelled. What was written by then is in the
    /// record, also when it fails.
    pub(super) fn run(&mut self) -> Result<Filled> {
        let mut checksums_verified = 0;
        let filled = self.run_ranges(&mut checksums_verified);
        let kept = if matches!(filled, Ok(true)) { Ok(()) } else { self.out.store() };
        let whole = filled?;
        kept?;
        let written_bytes = self.out.written_bytes;
        Ok(Filled { written_bytes, checksums_verified, whole })
    }

    fn run_ranges(&mut self, verified: &mut u64) -> Result<bool> {
        let Some(mut missing) = self.read_back()? else { return Ok(false) };
        let record = &self.out.record;
        let rest = ByteRange::between(record.done_bytes(), record.size_bytes());
        missing.push(rest.expect("no more was written than the disk has"));
        for range in missing {
            if !self.copy(range, verified)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads what an earlier run has written; returns the chunks that are not what they should
    /// be, or `None` when it was cancelled.
    fn read_back(&mut self) -> Result<Option<Vec<ByteRange>>> {
        let mut wrong: Vec<ByteRange> = Vec::new();
        let mut buffer = vec![0; STEP_BYTES];
        let done_bytes = self.out.record.done_bytes();
        for chunk in 0..self.out.record.sums().len() {
            let unit = self.out.record.chunk_bytes;
            let start = chunk as u64 * unit;
            let range = ByteRange::between(start, done_bytes.min(start + unit));
            let range = range.expect("a chunk that was written begins before the end");
            let Some(sum) = self.sum_of(range, &mut buffer)? else { return Ok(None) };
            if sum == self.out.record.sums()[chunk] {
                self.progress.add(range.len());
            } else {
                match wrong.last_mut().filter(|last| last.end() == range.start()) {
                    Some(last) => {
                        *last = ByteRange::between(last.start(), range.end())
                            .expect("the neighbour lies behind");
                    }
                    None => wrong.push(range),
                }
            }
        }
        if !wrong.is_empty() {
            let bytes: u64 = wrong.iter().map(|range| range.len()).sum();
            tracing::warn!(bytes, record = %self.out.path.display(), "written anew: not what was written");
        }
        Ok(Some(wrong))
    }

    fn sum_of(&mut self, range: ByteRange, buffer: &mut [u8]) -> Result<Option<ChunkSum>> {
        let mut sum = ChunkSum::default();
        if self.out.target.is_hole(range)? {
            return Ok(Some(sum));
        }
        let mut at = range.start();
        while at < range.end() {
            if self.progress.is_cancelled() {
                return Ok(None);
            }
            let left = usize::try_from(range.end() - at).unwrap_or(usize::MAX);
            let bytes = &mut buffer[..left.min(STEP_BYTES)];
            self.out.target.read(at, bytes)?;
            sum.add(at, bytes, |_, _, _| Ok(()))?;
            at += bytes.len() as u64;
        }
        Ok(Some(sum))
    }

    /// Copies a range that begins with a chunk and ends with one or with the disk. False when it
    /// was cancelled.
    fn copy(&mut self, range: ByteRange, verified: &mut u64) -> Result<bool> {
        let (view, progress, out) = (self.view, self.progress, &mut self.out);
        let mut steps = Steps::new(view, range, out.record.chunk_bytes);
        std::thread::scope(|scope| {
            let (wanted, asked) = bounded::<Ask>(AHEAD_MAX);
            for _ in 0..READERS {
                let asked = asked.clone();
                scope.spawn(move || read(view, &asked));
            }
            drop(asked);
            let mut ahead = VecDeque::with_capacity(AHEAD_MAX);
            let mut spare: Vec<Vec<u8>> = Vec::new();
            loop {
                while ahead.len() < AHEAD_MAX
                    && let Some(step) = steps.next()?
                {
                    ahead.push_back(Ahead::begin(step, &wanted, &mut spare));
                }
                let Some(Ahead { step, answer }) = ahead.pop_front() else { return Ok(true) };
                if progress.is_cancelled() {
                    return Ok(false);
                }
                match answer {
                    None => out.zero(step.range)?,
                    Some(answer) => {
                        let read = answer.recv().map_err(|_| {
                            Failure::internal("a thread that reads ahead has panicked")
                        })?;
                        let bytes = read?;
                        *verified += step.range.align_outward(CHECK_BYTES).len() / CHECK_BYTES;
                        out.data(step.range.start(), &bytes)?;
                        spare.push(bytes);
                    }
                }
                progress.add(step.range.len());
                out.passed(step.range.end())?;
            }
        })
    }
}

/// A step for a reader.
struct Ask {
    range: ByteRange,
    buffer: Vec<u8>,
    answer: Sender<Result<Vec<u8>>>,
}

/// A step that is under way.
struct Ahead {
    step: Step,
    /// Where its bytes come in; zeroes need none.
    answer: Option<Receiver<Result<Vec<u8>>>>,
}

impl Ahead {
    fn begin(step: Step, wanted: &Sender<Ask>, spare: &mut Vec<Vec<u8>>) -> Self {
        if step.zero {
            return Self { step, answer: None };
        }
        let (answer, answered) = bounded(1);
        let buffer = spare.pop().unwrap_or_default();
        // Readers end after this end does; a step that got none has no answer, which is noticed.
        let _ = wanted.send(Ask { range: step.range, buffer, answer });
        Self { step, answer: Some(answered) }
    }
}

fn read<S: Storage>(view: &View<S>, asked: &Receiver<Ask>) {
    for Ask { range, mut buffer, answer } in asked {
        buffer.resize(usize::try_from(range.len()).expect("a step is short"), 0);
        let read = view.read_at(&mut buffer, range.start());
        // Nobody waits for it any more after an error or a cancel.
        let _ = answer.send(read.map(|()| buffer).map_err(Failure::from));
    }
}

impl Out<'_> {
    fn zero(&mut self, range: ByteRange) -> Result<()> {
        self.unsynced_zero_bytes += range.len();
        self.target.zero(range)
    }

    /// Writes what is not zeroes of some bytes.
    fn data(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let (target, mut written) = (&mut *self.target, 0);
        self.sum.add(at, bytes, |at, run, zero| {
            if zero {
                let range = ByteRange::new(at, run.len() as u64).expect("a run is on the disk");
                return target.zero(range);
            }
            written += run.len() as u64;
            target.write(at, run)
        })?;
        self.written_bytes += written;
        self.unsynced_bytes += written;
        Ok(())
    }

    /// Everything up to `at` is written.
    fn passed(&mut self, at: u64) -> Result<()> {
        let unit = self.record.chunk_bytes;
        if !at.is_multiple_of(unit) && at != self.record.size_bytes() {
            return Ok(());
        }
        let chunk = usize::try_from(at.div_ceil(unit) - 1).expect("chunks are few");
        self.record.set(chunk, std::mem::take(&mut self.sum));
        if self.unsynced_bytes >= SYNC_BYTES || self.unsynced_zero_bytes >= SYNC_ZERO_BYTES {
            self.store()?;
        }
        Ok(())
    }

    /// The target first, then what speaks of it.
    fn store(&mut self) -> Result<()> {
        if self.record.done_bytes() == 0 {
            return Ok(());
        }
        self.target.sync()?;
        self.record.store(&self.path)?;
        self.stored = true;
        (self.unsynced_bytes, self.unsynced_zero_bytes) = (0, 0);
        Ok(())
    }
}
