//! A view: the volume as it was at one state.
//!
//! Reads enter; bytes that were checked leave. Opening takes a list of segments and a pin, no
//! scan and no copy. The bytes of a cell (256 KiB) are looked up when they are first asked for:
//! the newest record up to the state wins, segments are walked from the newest back until the
//! cell is covered, and what no record covers is the seed's, which checks it as well. A merge may
//! move records of the view's segments into the seed meanwhile: what they cover is never asked of
//! the seed, and the rest does not change. A state does not change any more,
//! so what was found stays true and is kept in a bounded cache. A view owns nothing that a crash
//! could lose; it keeps its segments open and its state pinned until it is dropped.

use std::sync::{Arc, Mutex, PoisonError};

use tidemark_block::{ByteRange, StatusExtent};
use tidemark_wire::Seq;

use crate::error::{NotOffered, ViewError};
use crate::journal::format::CELL_BYTES;
use crate::journal::{
    Cache, Extent, JournalReader, Payloads, Pin, Place, Segment, Source, resolve,
};
use crate::seed::Seed;
use crate::storage::{Reads, RealStorage, Storage};

/// Extents that one view keeps looked up, at most (72 bytes each).
const EXTENTS_MAX: usize = 256 * 1024;

/// Cells that one call of [`View::status`] looks at, at most: 256 MiB of the volume.
const STATUS_CELLS_MAX: u32 = 1024;

type Extents = Arc<[Extent]>;

/// The volume as it was at one state; shared by many threads.
pub struct View<S: Storage = RealStorage> {
    at: Seq,
    size_bytes: u64,
    /// Newest first; those with records up to the state.
    segments: Vec<Arc<Segment<S>>>,
    seed: Arc<Seed<S>>,
    cells: Mutex<Cache<u32, Extents>>,
    payloads: Payloads,
    /// Held for its drop.
    _pin: Pin<S>,
}

impl<S: Storage> View<S> {
    /// Opens the state at `at`.
    ///
    /// # Errors
    /// `NotOffered`.
    pub fn open(
        reader: Arc<JournalReader<S>>,
        seed: Arc<Seed<S>>,
        at: Seq,
    ) -> Result<Self, ViewError> {
        // Pinned first, so that nothing goes between the check and the list.
        let pin = reader.pin(at);
        reader.offerable(at)?;
        Ok(Self::over(&reader, seed, at, pin))
    }

    /// Opens what is held at the newest durable record, also when it is no state of the volume:
    /// within a span, where a comparison has to know what is held and nobody else may look. With
    /// no record at all this is the seed.
    ///
    /// # Errors
    /// `NotOffered` when a merge has gone past that record meanwhile; try again.
    pub fn open_inside_span(
        reader: &Arc<JournalReader<S>>,
        seed: Arc<Seed<S>>,
    ) -> Result<Self, ViewError> {
        let at = reader.durable();
        let pin = reader.pin(at);
        match reader.first_seq() {
            Some(oldest) if at < oldest => Err(NotOffered::BeforeStart { oldest }.into()),
            _ => Ok(Self::over(reader, seed, at, pin)),
        }
    }

    fn over(reader: &Arc<JournalReader<S>>, seed: Arc<Seed<S>>, at: Seq, pin: Pin<S>) -> Self {
        let list = reader.segment_list();
        let segments: Vec<_> =
            list.iter().rev().filter(|segment| segment.first_seq() <= at).cloned().collect();
        let weigh = |extents: &Extents| extents.len();
        Self {
            at,
            size_bytes: reader.size_at(at),
            segments,
            seed,
            cells: Mutex::new(Cache::new(EXTENTS_MAX, weigh)),
            payloads: Payloads::default(),
            _pin: pin,
        }
    }

    /// The same for somebody who reads all of it once.
    #[must_use]
    pub fn read_once(mut self) -> Self {
        self.payloads.set_reads(Reads::Once);
        self
    }

    /// The state.
    pub fn at(&self) -> Seq {
        self.at
    }

    /// Size of the volume at that state, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Fills `buf` from a place on the volume. Every piece of 4 KiB is checked against the
    /// checksum that was made at capture before it is given out; after an error `buf` holds
    /// nothing to be used.
    ///
    /// # Errors
    /// `OutOfRange`; `Damaged` or `Unreadable` with the range; `Io`.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ViewError> {
        let range = ByteRange::new(offset, buf.len() as u64);
        let range = self.check_range(range, offset)?;
        let mut rest = buf;
        for cell in cells_of(range) {
            let extents = self.cell(cell)?;
            for extent in extents.iter() {
                let Some(part) = extent.range.intersect(range) else { continue };
                let len = usize::try_from(part.len()).expect("a part is within a cell");
                let (out, behind) = rest.split_at_mut(len);
                self.read_extent(extent, part, out)?;
                rest = behind;
            }
        }
        debug_assert!(rest.is_empty(), "the extents of a cell have no gaps");
        Ok(())
    }

    fn check_range(&self, range: Option<ByteRange>, start: u64) -> Result<ByteRange, ViewError> {
        let size_bytes = self.size_bytes;
        let range = range.unwrap_or_else(|| {
            ByteRange::between(start, u64::MAX).expect("no number is larger than the end")
        });
        if range.end() > size_bytes {
            return Err(ViewError::OutOfRange { range, size_bytes });
        }
        Ok(range)
    }

    fn cell(&self, cell: u32) -> Result<Extents, ViewError> {
        let cached = self.cells.lock().unwrap_or_else(PoisonError::into_inner).get(&cell);
        if let Some(extents) = cached {
            return Ok(extents);
        }
        let resolved = resolve(&self.segments, cell, self.at).map_err(|error| {
            let range = ByteRange::new(u64::from(cell) * CELL_BYTES, CELL_BYTES)
                .expect("2^32 cells of 2^18 bytes do not wrap");
            error.for_view(range, Seq(0))
        })?;
        let extents = Extents::from(resolved);
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        cells.insert(cell, Arc::clone(&extents));
        Ok(extents)
    }

    fn read_extent(
        &self,
        extent: &Extent,
        part: ByteRange,
        out: &mut [u8],
    ) -> Result<(), ViewError> {
        match &extent.source {
            Source::Record(place) => self
                .payloads
                .read(self.segment_of(place), place, part, out)
                .map_err(|error| error.for_view(part, place.seq)),
            Source::Zero => {
                out.fill(0);
                Ok(())
            }
            Source::Unreadable(place) => {
                let head = self.segment_of(place).read_head(place.position.into());
                let errno = head.map(|head| head.header.aux.get());
                let errno = errno.map_err(|error| error.for_view(part, place.seq))?;
                Err(ViewError::Unreadable { range: part, seq: place.seq, errno })
            }
            Source::Seed => self.seed.read_at(self.payloads.reads(), out, part.start()),
        }
    }

    fn segment_of(&self, place: &Place) -> &Segment<S> {
        &self.segments[place.segment as usize]
    }

    /// Appends what is hole and what is data from the start of `range` on, at most `extents_max`
    /// extents; they may end before the range does, but cover at least one byte of it. A range
    /// that could not be read on the protected machine is data here; reading it fails.
    ///
    /// # Errors
    /// `OutOfRange`, `Damaged` or `Io`.
    pub fn status(
        &self,
        range: ByteRange,
        extents_max: usize,
        out: &mut Vec<StatusExtent>,
    ) -> Result<(), ViewError> {
        let range = self.check_range(Some(range), range.start())?;
        let room = out.len() + extents_max;
        let start = out.len();
        for cell in cells_of(range).take(STATUS_CELLS_MAX as usize) {
            let extents = self.cell(cell)?;
            for extent in extents.iter() {
                let Some(part) = extent.range.intersect(range) else { continue };
                let more = match extent.source {
                    Source::Zero => push(out, start, room, part.len(), true),
                    Source::Record(_) | Source::Unreadable(_) => {
                        push(out, start, room, part.len(), false)
                    }
                    Source::Seed => self.seed_status(part, start, room, out)?,
                };
                if !more {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn seed_status(
        &self,
        part: ByteRange,
        start: usize,
        room: usize,
        out: &mut Vec<StatusExtent>,
    ) -> Result<bool, ViewError> {
        let mut at = part.start();
        while at < part.end() {
            let left = ByteRange::between(at, part.end()).expect("the place is before the end");
            let extent = self.seed.extent_at(left)?;
            if !push(out, start, room, extent.len_bytes, extent.hole) {
                return Ok(false);
            }
            at += extent.len_bytes;
        }
        Ok(true)
    }
}

fn cells_of(range: ByteRange) -> impl Iterator<Item = u32> {
    crate::journal::format::cells_of(range.start(), range.len())
        .map(|cell| u32::try_from(cell).expect("no volume is larger than 2^32 cells"))
}

/// Adds to the last extent when it is of the same sort; says whether there was room.
fn push(
    out: &mut Vec<StatusExtent>,
    start: usize,
    room: usize,
    len_bytes: u64,
    hole: bool,
) -> bool {
    if let Some(last) = out[start..].last_mut().filter(|last| last.hole == hole) {
        last.len_bytes += len_bytes;
        return true;
    }
    if out.len() < room {
        out.push(StatusExtent { len_bytes, hole, zero: hole });
        return true;
    }
    false
}
