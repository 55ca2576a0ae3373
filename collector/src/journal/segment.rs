//! One segment file: its index asked the same way whether it is open or sealed.
//!
//! A segment is shared by the writer (while it is open) and all readers; the writer changes its
//! index in [`Segment::note`] and replaces it once in [`Segment::become_sealed`]. Records are
//! read from the file by place. The file of a segment that has left the journal is removed with
//! the last reference to it, so whoever reads a state keeps reading the same bytes.

use std::io;
use std::mem::size_of;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use tidemark_block::ByteRange;
use tidemark_wire::{
    DecodeError, DecodeErrorKind, Record, RecordHeader, RecordKind, Seq, WallMicros, checksum,
};
use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

use super::base::Base;
use super::files::Files;
use super::format::{HEADER_BYTES, IndexEntry, MarkEntry, SegmentTrailer, TRAILER_BYTES, Waypoint};
use super::index::{Extremes, MemoryIndex, Tables, Visit, cut_marks};
use super::scan::{RECORD_BYTES_MAX, Scan, Stop, part_of};
use super::types::SegmentInfo;
use crate::error::{Damage, JournalError, Part, ReadError};
use crate::storage::{Reads, Storage, StorageFile};

type MapOf<S> = <<S as Storage>::File as StorageFile>::Map;

enum Index<S: Storage> {
    /// Open: the writer's file.
    Memory { index: MemoryIndex, file: Arc<S::File> },
    /// Sealed: the file is opened when it is needed.
    Sealed { trailer: Box<SegmentTrailer>, map: OnceLock<MapOf<S>> },
}

/// A segment that can be read.
pub(crate) struct Segment<S: Storage> {
    files: Arc<Files<S>>,
    first_seq: Seq,
    state: RwLock<State<S>>,
}

struct State<S: Storage> {
    path: PathBuf,
    index: Index<S>,
    /// The seed holds it: the file goes with the segment.
    left: bool,
}

impl<S: Storage> Drop for Segment<S> {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !state.left {
            return;
        }
        // One that stays is removed when the journal is opened the next time.
        if let Err(error) = self.files.remove(self.first_seq, &state.path) {
            tracing::warn!("can't remove {}, which was merged: {error}", state.path.display());
        }
    }
}

/// The fixed part of a record and its checksums.
pub(crate) struct Head {
    pub(crate) header: RecordHeader,
    pub(crate) sums: Vec<U64>,
}

impl Head {
    /// Where the stored payload begins, from the start of the record.
    pub(crate) fn stored_at(&self) -> usize {
        size_of::<RecordHeader>() + size_of_val(self.sums.as_slice())
    }
}

impl<S: Storage> Segment<S> {
    /// A segment that takes records.
    pub(crate) fn new_open(
        files: &Arc<Files<S>>,
        file: Arc<S::File>,
        path: PathBuf,
        first_seq: Seq,
        index: MemoryIndex,
    ) -> Self {
        let state = RwLock::new(State { path, index: Index::Memory { index, file }, left: false });
        Self { files: Arc::clone(files), first_seq, state }
    }

    /// A complete one.
    pub(crate) fn new_sealed(
        files: &Arc<Files<S>>,
        path: PathBuf,
        trailer: Box<SegmentTrailer>,
    ) -> Self {
        let first_seq = Seq(trailer.first_seq.get());
        let index = Index::Sealed { trailer, map: OnceLock::new() };
        let state = RwLock::new(State { path, index, left: false });
        Self { files: Arc::clone(files), first_seq, state }
    }

    fn state(&self) -> std::sync::RwLockReadGuard<'_, State<S>> {
        // No panic can leave the state half changed: each change is one insertion or one move.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> std::sync::RwLockWriteGuard<'_, State<S>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, state: &State<S>) -> Result<Arc<S::File>, ReadError> {
        match &state.index {
            Index::Memory { file, .. } => Ok(Arc::clone(file)),
            Index::Sealed { .. } => {
                let file = self.files.get(self.first_seq, &state.path);
                file.map_err(ReadError::io("open", &state.path))
            }
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.state().path.clone()
    }

    pub(crate) fn first_seq(&self) -> Seq {
        self.first_seq
    }

    /// Makes durable records visible.
    ///
    /// # Panics
    /// When the segment is sealed: a programmer's mistake.
    pub(crate) fn note<'r>(&self, records: impl Iterator<Item = (Record<'r>, u32)>) {
        let mut state = self.state_mut();
        let Index::Memory { index, .. } = &mut state.index else {
            panic!("records for the sealed segment {}", state.path.display());
        };
        for (record, position) in records {
            index.note(&record, position);
        }
    }

    /// Gives the index of an open segment to `read`; `None` when it is sealed.
    pub(crate) fn with_memory<T>(&self, read: impl FnOnce(&MemoryIndex) -> T) -> Option<T> {
        match &self.state().index {
            Index::Memory { index, .. } => Some(read(index)),
            Index::Sealed { .. } => None,
        }
    }

    /// The index is on disk and the file has its final name.
    pub(crate) fn become_sealed(&self, path: PathBuf, trailer: Box<SegmentTrailer>) {
        let index = Index::Sealed { trailer, map: OnceLock::new() };
        *self.state_mut() = State { path, index, left: false };
    }

    /// The journal does not need the segment any more.
    pub(crate) fn leave(&self) {
        self.state_mut().left = true;
    }

    /// What the volume is after the last record; `None` while the segment is open.
    pub(crate) fn end(&self) -> Option<Base> {
        match &self.state().index {
            Index::Memory { .. } => None,
            Index::Sealed { trailer, .. } => Some(Base {
                at: Seq(trailer.last_seq.get()),
                time: Some(WallMicros(trailer.last_time_us.get())),
                chain: trailer.chain,
                span_begin: Seq(trailer.span_begin.get()),
                span_resync: trailer.span_resync,
                size_bytes: trailer.size_bytes.get(),
                point: Vec::new(),
            }),
        }
    }

    /// The last record when it is a recovery point; else nothing.
    pub(crate) fn last_point(&self) -> Result<Vec<u8>, ReadError> {
        let (marks, last) = (self.marks()?, self.extremes().last_seq);
        let is_point =
            |mark: &&MarkEntry| mark.seq.get() == last.0 && mark.kind == RecordKind::Bookmark as u8;
        marks.last().filter(is_point).map_or(Ok(Vec::new()), |mark| {
            self.read_record(Reads::Again, mark.position.get().into(), mark.record_bytes.get())
        })
    }

    /// Reads all records and checks them with their payloads.
    pub(crate) fn check(&self) -> Result<(), JournalError> {
        let (file, path) = {
            let state = self.state();
            (self.file(&state)?, state.path.clone())
        };
        let mut scan = Scan::new(file.as_ref(), &path, self.records_end()?);
        match scan.run(|_, _| true)? {
            Some(Stop::Bad(error)) => Err(scan.damage(&error).into()),
            Some(Stop::End) | None => Ok(()),
        }
    }

    pub(crate) fn extremes(&self) -> Extremes {
        match &self.state().index {
            Index::Memory { index, .. } => index.extremes(),
            Index::Sealed { trailer, .. } => trailer_extremes(trailer),
        }
    }

    pub(crate) fn info(&self) -> SegmentInfo {
        let state = self.state();
        let (extremes, chain, bytes) = match &state.index {
            Index::Memory { index, file } => (index.extremes(), None, file.len().unwrap_or(0)),
            Index::Sealed { trailer, .. } => {
                let bytes = tables_range(trailer).end() + TRAILER_BYTES;
                (trailer_extremes(trailer), Some(trailer.chain), bytes)
            }
        };
        SegmentInfo {
            name: file_name(&state.path),
            sealed: chain.is_some(),
            first_seq: self.first_seq,
            last_seq: extremes.last_seq,
            first_time: extremes.first_time,
            last_time: extremes.last_time,
            records: extremes.records,
            bytes,
            chain,
            damage: None,
        }
    }

    /// Shows the records that changed a cell up to a state, newest first.
    pub(crate) fn visit_cell(
        &self,
        cell: u32,
        at: Seq,
        mut visit: impl FnMut(&IndexEntry) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let visit: &mut Visit<'_> = &mut visit;
        self.with_index(
            |index, visit| index.visit_cell(cell, at, visit),
            |tables, visit| tables.visit_cell(cell, at, visit),
            visit,
        )
    }

    /// Shows everything that the records change: the entries by cell, then the wide ones.
    pub(crate) fn visit_changes(
        &self,
        mut visit: impl FnMut(&IndexEntry),
    ) -> Result<(), ReadError> {
        let visit: &mut dyn FnMut(&IndexEntry) = &mut visit;
        self.with_index(
            |index, visit| index.changes().for_each(visit),
            |tables, visit| tables.changes().for_each(visit),
            visit,
        )
    }

    pub(crate) fn marks(&self) -> Result<Vec<MarkEntry>, ReadError> {
        self.with_index(|index, ()| index.marks().to_vec(), |tables, ()| tables.marks.to_vec(), ())
    }

    /// Where the last waypoint for which `before` holds leads; the first record where it holds
    /// for none.
    pub(crate) fn waypoint(&self, before: impl Fn(&Waypoint) -> bool) -> Result<u64, ReadError> {
        self.last_waypoint(|waypoints| waypoints.partition_point(&before))
    }

    /// Where the waypoint before the first one that is later than `time` leads. One after the
    /// other is looked at: times may fall where a clock has jumped back.
    pub(crate) fn waypoint_until(&self, time: WallMicros) -> Result<u64, ReadError> {
        let is_later = |waypoint: &Waypoint| waypoint.time_us.get() > time.0;
        self.last_waypoint(|all| all.iter().position(is_later).unwrap_or(all.len()))
    }

    /// Where the last of so many waypoints leads; the first record for none.
    fn last_waypoint(&self, count: impl Fn(&[Waypoint]) -> usize) -> Result<u64, ReadError> {
        let find = |waypoints: &[Waypoint]| {
            let waypoint = waypoints.get(count(waypoints).saturating_sub(1));
            waypoint.map_or(HEADER_BYTES, |waypoint| u64::from(waypoint.position.get()))
        };
        self.with_index(
            |index, ()| find(index.waypoints()),
            |tables, ()| find(tables.waypoints),
            (),
        )
    }

    /// Asks the index in whichever form it is; a mapped one is checked at its first use.
    fn with_index<A, T>(
        &self,
        memory: impl FnOnce(&MemoryIndex, A) -> T,
        tables: impl FnOnce(Tables<'_>, A) -> T,
        argument: A,
    ) -> Result<T, ReadError> {
        let state = self.state();
        match &state.index {
            Index::Memory { index, .. } => Ok(memory(index, argument)),
            Index::Sealed { trailer, map } => {
                let bytes = match map.get() {
                    Some(bytes) => bytes,
                    None => {
                        let bytes = self.map_tables(&state, trailer)?;
                        map.get_or_init(|| bytes)
                    }
                };
                let cut = Tables::cut(bytes, trailer)
                    .expect("read_trailer() compared the counts with the places");
                Ok(tables(cut, argument))
            }
        }
    }

    fn map_tables(
        &self,
        state: &State<S>,
        trailer: &SegmentTrailer,
    ) -> Result<MapOf<S>, ReadError> {
        let path = &state.path;
        let (file, range) = (self.file(state)?, tables_range(trailer));
        // A sector that the disk can't deliver, or a file that was cut, is an error of this call;
        // met first through the mapping it would kill the process.
        touch(file.as_ref(), range).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                Damage::new(path, Part::File, range.start(), "the file ends within its index")
                    .into()
            }
            _ => ReadError::io("read the index of", path)(error),
        })?;
        let bytes = file.map(range).map_err(ReadError::io("map the index of", path))?;
        check_tables(path, trailer, &bytes)?;
        Ok(bytes)
    }

    /// Where the records end, for a reader that goes from one to the next.
    pub(crate) fn records_end(&self) -> Result<u64, ReadError> {
        let state = self.state();
        match &state.index {
            Index::Memory { file, .. } => file.len().map_err(ReadError::io("look at", &state.path)),
            Index::Sealed { trailer, .. } => Ok(trailer.records_end.get()),
        }
    }

    /// Reads and checks the fixed part of the record at a place, without its payload.
    pub(crate) fn read_head(&self, position: u64) -> Result<Head, ReadError> {
        let room = RECORD_BYTES_MAX - tidemark_wire::limits::RECORD_PAYLOAD_BYTES_MAX as usize;
        let end = self.records_end()?;
        let len = usize::try_from(end.saturating_sub(position)).unwrap_or(room).min(room);
        let mut bytes = vec![0; len];
        self.read_at(Reads::Again, &mut bytes, position)?;
        decode_head(&bytes).map_err(|error| self.damage(position, &error).into())
    }

    /// Reads the bytes of a whole record.
    pub(crate) fn read_record(
        &self,
        reads: Reads,
        position: u64,
        record_bytes: u32,
    ) -> Result<Vec<u8>, ReadError> {
        if record_bytes as usize > RECORD_BYTES_MAX {
            let detail = format!("the index names a record of {record_bytes} bytes");
            return Err(Damage::new(&self.path(), Part::Index, position, detail).into());
        }
        let mut bytes = vec![0; record_bytes as usize];
        self.read_at(reads, &mut bytes, position)?;
        Ok(bytes)
    }

    /// Reads bytes that the index says are there; a file that ends before is damaged.
    pub(crate) fn read_at(
        &self,
        reads: Reads,
        bytes: &mut [u8],
        position: u64,
    ) -> Result<(), ReadError> {
        let (file, path) = {
            let state = self.state();
            (self.file(&state)?, state.path.clone())
        };
        reads.fill(&*file, bytes, position).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                let detail = format!("the file ends before {} bytes from here", bytes.len());
                Damage::new(&path, Part::File, position, detail).into()
            } else {
                ReadError::io("read", &path)(error)
            }
        })
    }

    /// The damage that an error of decoding at a place is.
    pub(crate) fn damage(&self, position: u64, error: &DecodeError) -> Damage {
        Damage::new(&self.path(), part_of(error), position, error.to_string())
    }
}

/// Decodes header and checksums of a record whose payload is not there.
pub(crate) fn decode_head(bytes: &[u8]) -> Result<Head, DecodeError> {
    let short = || DecodeError::new(DecodeErrorKind::Truncated, "change record", "cut off");
    let (header, rest) = RecordHeader::read_from_prefix(bytes).map_err(|_| short())?;
    header.check_fields()?;
    let count = header.sum_count.get() as usize;
    let (sums, _) = <[U64]>::ref_from_prefix_with_elems(rest, count).map_err(|_| short())?;
    let mut sealed = header;
    sealed.seal(sums);
    if sealed.header_sum != header.header_sum {
        let detail = format!("header checksum of record {} does not match", header.seq());
        return Err(DecodeError::new(DecodeErrorKind::Checksum, "change record", detail));
    }
    Ok(Head { header, sums: sums.to_vec() })
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn trailer_extremes(trailer: &SegmentTrailer) -> Extremes {
    Extremes {
        records: trailer.record_count.get(),
        first_seq: Seq(trailer.first_seq.get()),
        last_seq: Seq(trailer.last_seq.get()),
        first_time: WallMicros(trailer.first_time_us.get()),
        last_time: WallMicros(trailer.last_time_us.get()),
    }
}

fn tables_range(trailer: &SegmentTrailer) -> ByteRange {
    let [_, _, _, end] = trailer.expected_places().expect("read_trailer() computed them before");
    ByteRange::between(trailer.records_end.get(), end).expect("tables follow the records")
}

/// Reads a range for nothing but the error that reading it may be.
fn touch<F: StorageFile>(file: &F, range: ByteRange) -> io::Result<()> {
    let mut buffer = [0; TOUCH_BYTES];
    let mut at = range.start();
    while at < range.end() {
        let step = usize::try_from(range.end() - at).unwrap_or(TOUCH_BYTES).min(TOUCH_BYTES);
        file.read_at(&mut buffer[..step], at)?;
        at += step as u64;
    }
    Ok(())
}

const TOUCH_BYTES: usize = 64 * 1024;

/// Checks both sums over the tables; `bytes` lie between the records and the trailer.
pub(crate) fn check_tables(
    path: &Path,
    trailer: &SegmentTrailer,
    bytes: &[u8],
) -> Result<(), Damage> {
    let start = trailer.records_end.get();
    let index_bytes = usize::try_from(trailer.marks_at.get() - start)
        .expect("tables that are in memory have a length");
    let (index, marks) = bytes.split_at(index_bytes);
    if checksum::sum(index) != trailer.index_sum.get() {
        return Err(Damage::new(path, Part::Index, start, "its checksum does not match"));
    }
    check_marks(path, trailer, marks)
}

fn check_marks(path: &Path, trailer: &SegmentTrailer, marks: &[u8]) -> Result<(), Damage> {
    if checksum::sum(marks) != trailer.marks_sum.get() {
        let at = trailer.marks_at.get();
        return Err(Damage::new(path, Part::Marks, at, "their checksum does not match"));
    }
    Ok(())
}

/// Reads and checks the marks of a sealed segment without mapping it.
pub(crate) fn read_marks<F: StorageFile>(
    file: &F,
    path: &Path,
    trailer: &SegmentTrailer,
) -> Result<Vec<MarkEntry>, JournalError> {
    let at = trailer.marks_at.get();
    let len = usize::try_from(tables_range(trailer).end() - at)
        .expect("tables that are in a file have a length");
    let mut bytes = vec![0; len];
    file.read_at(&mut bytes, at).map_err(JournalError::io("read", path))?;
    check_marks(path, trailer, &bytes)?;
    let (marks, _) = cut_marks(&bytes, trailer).expect("the length was made from the counts");
    Ok(marks.to_vec())
}
