//! Takes sealed segments into the seed; the order of writes is that of the [module](super).
//!
//! What enters: a journal's reader, its seed, and how far to go. What leaves: the seed at that
//! state, a journal without those segments, and a report. Memory is bounded by
//! [`BATCH_CELLS`] cells, and by the records of the segments for the plan.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use tidemark_block::ByteRange;
use tidemark_wire::Seq;

use super::lost::{DAMAGED_HERE, LOST_MAX, Lost, LostRanges};
use super::plan::{Plan, Run, plan};
use super::state::SeedState;
use super::{BLOCK, BLOCK_BYTES, Seed, Shared, block_damage, block_sum, files};
use crate::error::{Damage, JournalError, Part, ReadError};
use crate::journal::format::CELL_BYTES;
use crate::journal::{Base, JournalReader, Payloads, Place, Segment, Source, resolve};
use crate::storage::{Reads, Storage, StorageFile};

/// Asked before bytes are written, with their number; waits as long as they have to, and says
/// whether to go on.
pub type Pace<'a> = dyn FnMut(u64) -> ControlFlow<()> + 'a;

/// Cells that are computed before they are written, at most: 16 MiB.
const BATCH_CELLS: usize = 64;
const CELL_BLOCKS: usize = (CELL_BYTES / BLOCK_BYTES) as usize;
/// Damaged blocks that a report names, at most.
const DAMAGED_NAMED_MAX: usize = 16;
const ZEROES_BYTES: usize = 64 * 1024;

/// What a merge did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// The state that the seed is now; none when nothing was to be merged or it was stopped.
    pub to: Option<Seq>,
    /// Bytes written to the image.
    pub written_bytes: u64,
    /// Bytes of the segments that left the journal.
    pub freed_bytes: u64,
    /// Blocks that records cover in part and whose other bytes are damaged, and pieces of records
    /// that are damaged themselves; the first of them.
    pub damaged: Vec<Damage>,
    /// How many there are.
    pub damaged_blocks: u64,
    /// Damage in a segment, because of which the merge went no further than the one before.
    pub stopped_at: Option<Damage>,
}

impl Merged {
    fn note_damage(&mut self, damage: Damage) {
        self.damaged_blocks += 1;
        if self.damaged.len() < DAMAGED_NAMED_MAX {
            self.damaged.push(damage);
        }
    }
}

/// Moves the records up to `to`, the last one of a sealed segment, from the journal into the
/// seed. Views that are open keep reading what they read; one that is older than `to` makes this
/// do nothing, as does a `pace` that breaks at the first call. One that was begun and not ended
/// has to be ended first: `to` is then [`Seed::merging_to`].
///
/// # Errors
/// `Io`: the seed is between two states, and the next try goes to the same one. `Damaged`: the
/// tables of the first segment are, or of one that an unfinished merge needs.
pub fn merge_into_seed<S: Storage>(
    reader: &JournalReader<S>,
    seed: &Seed<S>,
    to: Seq,
    pace: &mut Pace<'_>,
) -> Result<Merged, JournalError> {
    let closed = seed.working();
    let mut report = Merged::default();
    if *closed {
        return Ok(report);
    }
    let unfinished = seed.merging_to();
    if let Some(wanted) = unfinished {
        // Also when it can't be ended now: nothing older can be told from the seed any more.
        reader.raise_floor(wanted);
    }
    let list = reader.segment_list();
    let mut segments = &list[..list.partition_point(|segment| segment.first_seq() <= to)];
    if unfinished.is_none() {
        let (whole, damage) = check(segments)?;
        segments = &segments[..whole];
        report.stopped_at = damage;
    }
    let end = segments.last().and_then(|last| last.end());
    if let Some(wanted) = unfinished.filter(|to| end.as_ref().is_none_or(|end| end.at != *to)) {
        let detail = format!("it is being merged to record {wanted}, which ends no segment here");
        return Err(Damage::new(&seed.paths.state, Part::SeedState, 0, detail).into());
    }
    let (Some(last), Some(mut base)) = (segments.last(), end) else { return Ok(report) };
    base.point = match last.last_point() {
        // It has no name any more, as all that is damaged.
        Err(ReadError::Damaged(damage)) => {
            report.note_damage(damage);
            Vec::new()
        }
        point => point?,
    };
    // Times do not fall in what is offered, also where a clock has jumped back.
    let times = segments.iter().filter_map(|segment| segment.end()?.time);
    base.time = times.chain(seed.base().time).max();
    let freed_bytes = segments.iter().map(|segment| segment.info().bytes).sum();
    let step = Step::new(seed, segments, base.clone(), &mut report, pace);
    let plan = plan(segments, step.span_bytes)?;
    if (step.pace)(0).is_break() {
        return Ok(report);
    }
    let Some(floor) = reader.raise_floor(base.at) else { return Ok(report) };
    let ran = step.run(&plan);
    if !matches!(ran, Ok(ControlFlow::Continue(()))) && seed.merging_to().is_none() {
        // It had not begun, and all that it would have covered can still be opened.
        reader.lower_floor(floor);
    }
    if ran?.is_break() {
        return Ok(report);
    }
    report.to = Some(base.at);
    report.freed_bytes = freed_bytes;
    reader.leave(base);
    Ok(report)
}

/// How many segments stand before the first damaged one, and what is damaged there. When that is
/// the first of all it goes alone, as long as its tables tell which bytes are in which record: what
/// is damaged is then lost in the seed, too, until something covers it.
///
/// # Errors
/// `Damaged` when the tables of the first one are; `Io`.
fn check<S: Storage>(
    segments: &[Arc<Segment<S>>],
) -> Result<(usize, Option<Damage>), JournalError> {
    for (number, segment) in segments.iter().enumerate() {
        match segment.check() {
            Err(JournalError::Damaged(damage)) if number > 0 => {
                return Ok((number, Some(damage)));
            }
            Err(JournalError::Damaged(damage)) => {
                segment.marks()?;
                tracing::error!("{damage}; the segment is merged without what is damaged");
                return Ok((1, None));
            }
            checked => checked?,
        }
    }
    Ok((segments.len(), None))
}

/// What one cell becomes.
struct Change {
    cell: u32,
    /// The whole cell; only the touched blocks hold something.
    bytes: Vec<u8>,
    /// Bytes of each block that records cover.
    covered: [u16; CELL_BLOCKS],
    /// New sums of the touched blocks; none where the old one stays.
    sums: [Option<u64>; CELL_BLOCKS],
    /// Old sums of blocks that are covered in part.
    doubt: Vec<(u64, u64)>,
}

impl Change {
    fn start(&self) -> u64 {
        u64::from(self.cell) * CELL_BYTES
    }

    fn first_block(&self) -> u64 {
        self.start() / BLOCK_BYTES
    }
}

struct Step<'a, 'p, S: Storage> {
    seed: &'a Seed<S>,
    segments: &'a [Arc<Segment<S>>],
    /// The same, as a cell is resolved.
    newest_first: Vec<Arc<Segment<S>>>,
    base: Base,
    /// Length of the image meanwhile.
    span_bytes: u64,
    lost: LostRanges,
    payloads: Payloads,
    report: &'a mut Merged,
    pace: &'a mut Pace<'p>,
}

impl<'a, 'p, S: Storage> Step<'a, 'p, S> {
    fn new(
        seed: &'a Seed<S>,
        segments: &'a [Arc<Segment<S>>],
        base: Base,
        report: &'a mut Merged,
        pace: &'a mut Pace<'p>,
    ) -> Self {
        let (newest_first, payloads) =
            (segments.iter().rev().cloned().collect(), Payloads::default());
        let (span_bytes, lost) = {
            let shared = seed.shared();
            (shared.file_bytes.max(base.size_bytes), shared.state.lost.clone())
        };
        Self { seed, segments, newest_first, base, span_bytes, lost, payloads, report, pace }
    }

    fn run(mut self, plan: &Plan) -> Result<ControlFlow<()>, JournalError> {
        self.begin()?;
        if self.clear_runs(&plan.runs)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        for cells in plan.cells.chunks(BATCH_CELLS) {
            let changes: Vec<Change> =
                cells.iter().map(|cell| self.compute(*cell)).collect::<Result<_, _>>()?;
            self.write_sums(&changes)?;
            for change in &changes {
                if self.write_data(change)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        self.end()?;
        Ok(ControlFlow::Continue(()))
    }

    fn image_error(
        &self,
        operation: &'static str,
    ) -> impl FnOnce(io::Error) -> JournalError + use<S> {
        JournalError::io(operation, &self.seed.paths.image)
    }

    fn sums_error(
        &self,
        operation: &'static str,
    ) -> impl FnOnce(io::Error) -> JournalError + use<S> {
        JournalError::io(operation, &self.seed.paths.sums)
    }

    /// Says durably what is going on, and makes room where the volume grows.
    fn begin(&self) -> Result<(), JournalError> {
        let seed = self.seed;
        let mut state = seed.shared().state.clone();
        let again = state.merging_to.is_some();
        if !again {
            state.merging_to = Some(self.base.at);
            let stored = state.store(&*seed.storage, &seed.paths.state);
            // It may have its name, and only the sync behind that has failed: a start would go on.
            let is_there = || {
                let found = SeedState::load(&*seed.storage, &seed.paths.state);
                !matches!(found, Ok(Some(found)) if found.merging_to.is_none())
            };
            if stored.is_ok() || is_there() {
                seed.shared_mut().state = state;
            }
            stored?;
        }
        let mut shared = seed.shared_mut();
        // Of a try that failed nothing is believed.
        if again || shared.file_bytes < self.span_bytes {
            files::cut(&seed.image, &seed.sums, &seed.paths, self.span_bytes)?;
            shared.file_bytes = self.span_bytes;
        }
        Ok(())
    }

    /// Makes the runs of the plan zero: all of their sums, then all of their data. No reader asks
    /// for them, because a record covers them whole.
    fn clear_runs(&mut self, runs: &[Run]) -> Result<ControlFlow<()>, JournalError> {
        if runs.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let sums_end = files::sums_bytes(self.span_bytes);
        for run in runs {
            let range = self.run_range(run);
            let sums = ByteRange::between(
                range.start() / BLOCK_BYTES * 8,
                files::sums_bytes(range.end()).min(sums_end),
            );
            let sums = sums.expect("a run ends behind its start");
            clear(&self.seed.sums, sums).map_err(self.sums_error("clear"))?;
            if run.wide.unreadable {
                let errno = self.errno(run.wide.segment, run.wide.position)?;
                self.lose(Lost { range, seq: run.wide.seq, errno })?;
            } else {
                self.lost.remove(range);
            }
        }
        self.seed.sums.datasync().map_err(self.sums_error("sync"))?;
        for run in runs {
            if (self.pace)(0).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            clear(&self.seed.image, self.run_range(run)).map_err(self.image_error("clear"))?;
        }
        Ok(ControlFlow::Continue(()))
    }

    fn run_range(&self, run: &Run) -> ByteRange {
        let end = (run.cells.end * CELL_BYTES).min(self.span_bytes);
        ByteRange::between(run.cells.start * CELL_BYTES, end).expect("it is planned on the volume")
    }

    fn errno(&self, segment: usize, position: u32) -> Result<u64, JournalError> {
        match self.segments[segment].read_head(position.into()) {
            Ok(head) => Ok(head.header.aux.get()),
            Err(ReadError::Damaged(_)) => Ok(DAMAGED_HERE),
            Err(error) => Err(error.into()),
        }
    }

    fn lose(&mut self, lost: Lost) -> Result<(), JournalError> {
        self.lost.add(lost);
        if self.lost.list().len() <= LOST_MAX {
            return Ok(());
        }
        let text = format!("it would have more than {LOST_MAX} unreadable ranges");
        Err(JournalError::io("merge into", &self.seed.paths.image)(io::Error::other(text)))
    }

    /// What the touched blocks of a cell hold at the end of the merge.
    fn compute(&mut self, cell: u32) -> Result<Change, JournalError> {
        let mut change = Change {
            cell,
            bytes: vec![0; usize::try_from(CELL_BYTES).expect("256 KiB")],
            covered: [0; CELL_BLOCKS],
            sums: [None; CELL_BLOCKS],
            doubt: Vec::new(),
        };
        let volume = ByteRange::new(0, self.span_bytes).expect("a volume has a largest size");
        let mut below = Vec::new();
        for extent in resolve(&self.newest_first, cell, self.base.at)? {
            let Some(part) = extent.range.intersect(volume) else { continue };
            let at = usize::try_from(part.start() - change.start()).expect("within the cell");
            let len = usize::try_from(part.len()).expect("within the cell");
            match extent.source {
                Source::Seed => {
                    below.push(part);
                    continue;
                }
                Source::Record(place) => {
                    self.take_record(&place, part, &mut change.bytes[at..at + len])?;
                }
                Source::Zero => self.lost.remove(part),
                Source::Unreadable(place) => {
                    let segment = self.segments.len() - 1 - place.segment as usize;
                    let errno = self.errno(segment, place.position)?;
                    self.lose(Lost { range: part, seq: place.seq, errno })?;
                }
            }
            cover(&mut change.covered, at, len);
        }
        let old = self.seed.load_sums_padded(change.first_block(), CELL_BLOCKS);
        let old = old.map_err(self.sums_error("read"))?;
        for (block, old_sum) in old.into_iter().enumerate() {
            self.settle(&mut change, block, old_sum, &below)?;
        }
        Ok(change)
    }

    /// Takes the bytes of `part` from a record. Pieces that are damaged have none from here on: they
    /// are lost, so that whatever sum their block gets, they are never given out.
    fn take_record(
        &mut self,
        place: &Place,
        part: ByteRange,
        out: &mut [u8],
    ) -> Result<(), JournalError> {
        let segment = Arc::clone(&self.newest_first[place.segment as usize]);
        match self.payloads.read(&segment, place, part, out) {
            Err(ReadError::Damaged(_)) => {}
            read => {
                read?;
                self.lost.remove(part);
                return Ok(());
            }
        }
        let mut from = part.start();
        while from < part.end() {
            let to = ((from / BLOCK_BYTES + 1) * BLOCK_BYTES).min(part.end());
            let piece = ByteRange::between(from, to).expect("a block ends behind its start");
            let at = usize::try_from(from - part.start()).expect("within the cell");
            let len = usize::try_from(piece.len()).expect("within a block");
            let bytes = &mut out[at..at + len];
            match self.payloads.read(&segment, place, piece, bytes) {
                Err(ReadError::Damaged(damage)) => {
                    bytes.fill(0);
                    self.report.note_damage(damage);
                    self.lose(Lost { range: piece, seq: place.seq, errno: DAMAGED_HERE })?;
                }
                read => {
                    read?;
                    self.lost.remove(piece);
                }
            }
            from = to;
        }
        Ok(())
    }

    /// Fills up a touched block with the bytes that no record covers, and gives it its sum.
    fn settle(
        &mut self,
        change: &mut Change,
        number: usize,
        old_sum: u64,
        below: &[ByteRange],
    ) -> Result<(), JournalError> {
        let block = change.first_block() + number as u64;
        let start = block * BLOCK_BYTES;
        let len = self.span_bytes.saturating_sub(start).min(BLOCK_BYTES);
        let covered = u64::from(change.covered[number]);
        let within = number * BLOCK..(number + 1) * BLOCK;
        if covered == 0 {
            return Ok(());
        }
        if covered == len {
            change.sums[number] = Some(block_sum(&change.bytes[within]));
            return Ok(());
        }
        let mut found = [0; BLOCK];
        let shared = self.seed.shared();
        let loaded = self.seed.load_blocks(shared.file_bytes, Reads::Again, &mut found, block);
        loaded.map_err(self.image_error("read"))?;
        let whole = ByteRange::new(start, len).expect("a block of the volume");
        for part in below.iter().filter_map(|part| part.intersect(whole)) {
            let at = usize::try_from(part.start() - start).expect("within the block");
            let to = at + usize::try_from(part.len()).expect("within the block");
            change.bytes[within.clone()][at..to].copy_from_slice(&found[at..to]);
        }
        let (found_sum, new_sum) = (block_sum(&found), block_sum(&change.bytes[within]));
        let doubted = shared.doubt.get(&block).copied();
        drop(shared);
        if found_sum == old_sum {
            change.doubt.push((block, old_sum));
        } else if new_sum != old_sum && doubted != Some(found_sum) {
            let detail = "its checksum does not match, and a merge covers it only in part";
            self.report.note_damage(block_damage(&self.seed.paths.image, block, detail));
            return Ok(());
        }
        change.sums[number] = Some(new_sum);
        Ok(())
    }

    /// Makes the new sums of a batch durable, before any of its data is written.
    fn write_sums(&self, changes: &[Change]) -> Result<(), JournalError> {
        for change in changes {
            let mut shared = self.seed.shared_mut();
            for (block, old) in &change.doubt {
                shared.doubt.entry(*block).or_insert(*old);
            }
            let sums = self.seed.load_sums_padded(change.first_block(), CELL_BLOCKS);
            let sums = sums.map_err(self.sums_error("read"))?;
            let mut bytes = Vec::with_capacity(CELL_BLOCKS * 8);
            for (old, new) in sums.into_iter().zip(change.sums) {
                bytes.extend_from_slice(&new.unwrap_or(old).to_le_bytes());
            }
            let at = change.first_block() * 8;
            let room = files::sums_bytes(self.span_bytes).saturating_sub(at);
            let room = usize::try_from(room).map_or(bytes.len(), |room| room.min(bytes.len()));
            let written = self.seed.sums.write_at(&bytes[..room], at);
            shared.torn |= written.is_err();
            written.map_err(self.sums_error("write"))?;
        }
        let synced = self.seed.sums.datasync();
        synced.map_err(self.sums_error("sync"))
    }

    fn write_data(&mut self, change: &Change) -> Result<ControlFlow<()>, JournalError> {
        let touched = change.covered.iter().filter(|covered| **covered > 0).count();
        if (self.pace)(touched as u64 * BLOCK_BYTES).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let mut shared = self.seed.shared_mut();
        if let Err(error) = self.write_blocks(change) {
            shared.torn = true;
            return Err(self.image_error("write")(error));
        }
        forget_doubt(&mut shared, change);
        drop(shared);
        self.report.written_bytes += touched as u64 * BLOCK_BYTES;
        Ok(ControlFlow::Continue(()))
    }

    /// Writes each run of touched blocks, or punches it where it is zeroes.
    fn write_blocks(&self, change: &Change) -> io::Result<()> {
        let is_zero = |block: usize| {
            change.bytes[block * BLOCK..(block + 1) * BLOCK].iter().all(|byte| *byte == 0)
        };
        let kind = |block: usize| (change.covered[block] > 0).then(|| is_zero(block));
        let mut block = 0;
        while block < CELL_BLOCKS {
            let sort = kind(block);
            let first = block;
            while block < CELL_BLOCKS && kind(block) == sort {
                block += 1;
            }
            let Some(zero) = sort else { continue };
            let start = change.start() + (first * BLOCK) as u64;
            let end = (change.start() + (block * BLOCK) as u64).min(self.span_bytes);
            let range = ByteRange::between(start, end).expect("touched blocks are on the volume");
            let len = usize::try_from(range.len()).expect("within the cell");
            if zero {
                clear(&self.seed.image, range)?;
            } else {
                self.seed
                    .image
                    .write_at(&change.bytes[first * BLOCK..first * BLOCK + len], start)?;
            }
        }
        Ok(())
    }

    /// All data is durable, then the state says so; only then may segments go.
    fn end(self) -> Result<(), JournalError> {
        let seed = self.seed;
        seed.image.datasync().map_err(self.image_error("sync"))?;
        // Their length, where the volume has grown and no block has changed.
        seed.sums.datasync().map_err(self.sums_error("sync"))?;
        let size_bytes = self.base.size_bytes;
        let mut state = seed.shared().state.clone();
        state.base = self.base;
        state.merging_to = None;
        state.lost = self.lost;
        if let Some(behind) = ByteRange::between(size_bytes, self.span_bytes) {
            state.lost.remove(behind);
        }
        state.store(&*seed.storage, &seed.paths.state)?;
        let mut shared = seed.shared_mut();
        shared.state = state;
        shared.doubt.clear();
        shared.torn = false;
        if shared.file_bytes > size_bytes {
            shared.file_bytes = size_bytes;
            // Where that fails, what is behind the end is zero; the next opening cuts it.
            if let Err(error) = files::cut(&seed.image, &seed.sums, &seed.paths, size_bytes) {
                tracing::warn!("{error}");
            }
        }
        Ok(())
    }
}

fn forget_doubt(shared: &mut Shared, change: &Change) {
    let first = change.first_block();
    for (block, covered) in (first..).zip(change.covered) {
        if covered > 0 {
            shared.doubt.remove(&block);
        }
    }
}

/// Adds the bytes from `at` on to the blocks in which they lie.
fn cover(covered: &mut [u16; CELL_BLOCKS], at: usize, len: usize) {
    let end = at + len;
    for (block, bytes) in covered.iter_mut().enumerate().take(end.div_ceil(BLOCK)).skip(at / BLOCK)
    {
        let part = end.min((block + 1) * BLOCK) - at.max(block * BLOCK);
        *bytes += u16::try_from(part).expect("a block has 4096 bytes");
    }
}

/// Makes a range of a file zero, and frees its storage where the file system can.
fn clear<F: StorageFile>(file: &F, range: ByteRange) -> io::Result<()> {
    match file.punch(range) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
        punched => return punched,
    }
    let mut at = range.start();
    while at < range.end() {
        let extent = file.extent_at(at)?;
        let left = range.end() - at;
        let mut len = if extent.len_bytes == 0 { left } else { extent.len_bytes.min(left) };
        if !extent.hole {
            len = len.min(ZEROES_BYTES as u64);
            let zeroes = [0; ZEROES_BYTES];
            file.write_at(&zeroes[..usize::try_from(len).expect("bounded above")], at)?;
        }
        at += len;
    }
    Ok(())
}
