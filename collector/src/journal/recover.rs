//! Opens the segment files of a directory, oldest first, and brings the last one into order.
//!
//! Files enter as a crash or a person left them; a journal's state leaves, with a report of what
//! was found. Sealed segments cost their header, their trailer and their table of marks, not a
//! scan. The open one is scanned whole and every payload checked. What may be wrong, and what
//! becomes of it:
//!
//! - the open segment ends in bytes that are no whole record: they are cut off. When whole
//!   records follow behind them they are kept in a file of their own, because that is either
//!   damage or a write that a crash tore out of order, and a person may want to see which. The
//!   sender is told the number of the last good record and sends again, or resynchronizes;
//! - a segment that is named as the open one is complete with index and trailer: the crash came
//!   between sealing and renaming, or took the name back after a sync of the directory had failed,
//!   so that newer segments may follow; it is renamed now;
//! - the open segment has no whole header and no record: the crash came while it was created; it
//!   is removed;
//! - a sealed segment, or the header of an open one above records, is damaged, or a segment is
//!   missing: states before it stay readable, states from it on are not offered, and the journal
//!   takes no records;
//! - a segment whose records the seed holds: a crash came between a merge and the removal of its
//!   file, which is done now;
//! - the first segment does not go on where the seed ends: damage, as one that is missing;
//! - a file of another volume, copy, timeline or version: the directory is refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::digest::{Context, SHA256};
use tidemark_wire::limits::VOLUME_BYTES_MAX;
use tidemark_wire::{RecordKind, Seq};
use zerocopy::IntoBytes;

use super::base::Base;
use super::ends::{check_identity, read_header, read_trailer};
use super::files::Files;
use super::format::{HEADER_BYTES, MarkEntry, SegmentHeader, SegmentTrailer};
use super::index::MemoryIndex;
use super::scan::{Scan, Stop};
use super::segment::{Segment, check_tables, read_marks};
use super::span::{OpenSpan, Spans};
use super::types::{Cut, JournalIdentity, OpenReport, SegmentInfo};
use super::writer::{OpenSegment, chain_digest};
use crate::error::{Damage, JournalError, Part};
use crate::storage::{Storage, StorageFile};

/// The state of a journal after opening.
pub(crate) struct Opened<S: Storage> {
    pub(crate) segments: Vec<Arc<Segment<S>>>,
    pub(crate) open: Option<OpenSegment<S>>,
    /// `chain` of the last sealed segment.
    pub(crate) chain: [u8; 32],
    pub(crate) spans: Spans,
    /// Size of the volume from a record on, oldest first; the first entry is the base's.
    pub(crate) sizes: Vec<(Seq, u64)>,
    /// Segments from the first damaged one on.
    pub(crate) unreadable: Vec<SegmentInfo>,
    pub(crate) report: OpenReport,
}

/// A segment file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SegmentName {
    pub(crate) first_seq: Seq,
    pub(crate) sealed: bool,
}

impl SegmentName {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (digits, extension) = name.split_once('.')?;
        let sealed = match extension {
            "seg" => true,
            "open" => false,
            _ => return None,
        };
        let plain = digits.len() == 16
            && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        let first_seq = Seq(u64::from_str_radix(digits, 16).ok().filter(|_| plain)?);
        Some(Self { first_seq, sealed })
    }

    pub(crate) fn path(self, dir: &Path) -> PathBuf {
        let extension = if self.sealed { "seg" } else { "open" };
        dir.join(format!("{:016x}.{extension}", self.first_seq.0))
    }
}

struct Recovery<'a, S: Storage> {
    storage: &'a S,
    files: &'a Arc<Files<S>>,
    dir: &'a Path,
    identity: &'a JournalIdentity,
    opened: Opened<S>,
}

/// Opens the segments in `dir`, which exists.
///
/// # Errors
/// `Io`, `Foreign` or `Version`; damage is in the report.
pub(crate) fn open<S: Storage>(
    storage: &S,
    files: &Arc<Files<S>>,
    dir: &Path,
    identity: &JournalIdentity,
    base: &Base,
) -> Result<Opened<S>, JournalError> {
    // A name that a killed program has given or taken is as durable as what is believed of it.
    storage.sync_dir(dir).map_err(JournalError::io("sync", dir))?;
    let list = storage.list(dir).map_err(JournalError::io("list", dir))?;
    let mut names: Vec<_> = list.iter().filter_map(|name| SegmentName::parse(name)).collect();
    names.sort_unstable();
    let report = OpenReport { cut: None, damaged: Vec::new(), records: 0, durable: base.at };
    let opened = Opened {
        segments: Vec::new(),
        open: None,
        chain: base.chain,
        spans: Spans::resume(OpenSpan::from_fields(base.span_begin.0, base.span_resync)),
        sizes: vec![(base.at, base.size_bytes)],
        unreadable: Vec::new(),
        report,
    };
    let mut recovery = Recovery { storage, files, dir, identity, opened };
    let merged = names.partition_point(|name| name.first_seq <= base.at);
    recovery.remove_merged(&names[..merged], base)?;
    let names = &names[merged..];
    for (at, name) in names.iter().enumerate() {
        recovery.take(*name, at + 1 == names.len())?;
    }
    Ok(recovery.opened)
}

impl<S: Storage> Recovery<'_, S> {
    fn take(&mut self, name: SegmentName, newest: bool) -> Result<(), JournalError> {
        let path = name.path(self.dir);
        let taken = if self.opened.unreadable.is_empty() {
            match name.sealed {
                true => self.take_sealed(name, &path),
                false => self.take_open(name, &path, newest),
            }
        } else {
            self.look_at(name, &path)
        };
        self.note_damage(name, &path, taken)
    }

    fn note_damage(
        &mut self,
        name: SegmentName,
        path: &Path,
        taken: Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        let damage = match taken {
            Ok(()) => return Ok(()),
            Err(JournalError::Damaged(damage)) => damage,
            Err(error) => return Err(error),
        };
        self.opened.unreadable.push(unreadable_info(self.storage, name, path, &damage));
        self.opened.report.damaged.push(damage);
        Ok(())
    }

    /// Removes segments that begin at or before the seed's state; a merge takes whole ones.
    fn remove_merged(&mut self, names: &[SegmentName], base: &Base) -> Result<(), JournalError> {
        for name in names {
            let path = name.path(self.dir);
            let checked = self.check_merged(*name, &path, base);
            if checked.is_ok() {
                tracing::info!("{} is in the seed and goes", path.display());
                self.storage.remove(&path).map_err(JournalError::io("remove", &path))?;
            }
            self.note_damage(*name, &path, checked)?;
        }
        if names.is_empty() {
            return Ok(());
        }
        self.storage.sync_dir(self.dir).map_err(JournalError::io("sync", self.dir))
    }

    /// One that goes beyond the seed's state, or that ends with it and is another than the one
    /// that went into it, does not belong to this seed.
    fn check_merged(
        &self,
        name: SegmentName,
        path: &Path,
        base: &Base,
    ) -> Result<(), JournalError> {
        let other = |detail: String| Err(Damage::new(path, Part::Chain, 0, detail).into());
        let file = self.open_file(path)?;
        // Damage is left to the trailer; what belongs to somebody else is not removed.
        match read_header(&file, path) {
            Ok(header) => check_identity(path, &header, self.identity, name.first_seq)?,
            Err(JournalError::Damaged(_)) => {}
            Err(error) => return Err(error),
        }
        let trailer = match read_trailer(&file, path) {
            Ok(trailer) => trailer,
            Err(JournalError::Damaged(_)) if !name.sealed => {
                return other(format!("it is open, and the seed is at record {} already", base.at));
            }
            // Nothing of it is needed any more.
            Err(JournalError::Damaged(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        let last = Seq(trailer.last_seq.get());
        if last > base.at || (last == base.at && trailer.chain != base.chain) {
            return other(format!("it ends with record {last} and is not what the seed holds"));
        }
        Ok(())
    }

    /// Checks a segment behind a damaged one, for the report.
    fn look_at(&mut self, name: SegmentName, path: &Path) -> Result<(), JournalError> {
        let file = self.open_file(path)?;
        let header = read_header(&file, path)?;
        check_identity(path, &header, self.identity, name.first_seq)?;
        if name.sealed {
            read_trailer(&file, path)?;
        }
        let first = self.opened.report.damaged.first();
        let damage = first.expect("a segment is unreadable because of damage").clone();
        self.opened.unreadable.push(unreadable_info(self.storage, name, path, &damage));
        Ok(())
    }

    fn open_file(&self, path: &Path) -> Result<S::File, JournalError> {
        self.storage.open_read_only(path).map_err(JournalError::io("open", path))
    }

    fn take_sealed(&mut self, name: SegmentName, path: &Path) -> Result<(), JournalError> {
        let file = self.open_file(path)?;
        let header = read_header(&file, path)?;
        check_identity(path, &header, self.identity, name.first_seq)?;
        let trailer = read_trailer(&file, path)?;
        if trailer.first_seq != header.first_seq
            || trailer.chain != chain_digest(&header.prev_chain, &trailer.digest)
        {
            let at = file.len().map_err(JournalError::io("look at", path))?;
            let detail = "it does not belong to the header of the file";
            return Err(Damage::new(path, Part::Trailer, at, detail).into());
        }
        self.check_link(path, &header)?;
        let marks = read_marks(&file, path, &trailer)?;
        if !marks_hold(&marks, &trailer) {
            let detail = "their numbers or sizes are none that a volume has";
            return Err(Damage::new(path, Part::Marks, trailer.marks_at.get(), detail).into());
        }
        marks.iter().for_each(|mark| self.opened.apply_mark(mark));
        let span = OpenSpan::from_fields(trailer.span_begin.get(), trailer.span_resync);
        if span != self.opened.spans.open() || trailer.size_bytes.get() != self.opened.size_bytes()
        {
            let at = trailer.marks_at.get();
            let detail = "they do not lead to the span and size that the trailer has";
            return Err(Damage::new(path, Part::Marks, at, detail).into());
        }
        self.opened.chain = trailer.chain;
        self.opened.report.records += trailer.record_count.get();
        self.opened.report.durable = Seq(trailer.last_seq.get());
        let segment = Segment::new_sealed(self.files, path.to_owned(), trailer);
        self.opened.segments.push(Arc::new(segment));
        Ok(())
    }

    /// The segment has to follow the one before, the first one the seed.
    fn check_link(&self, path: &Path, header: &SegmentHeader) -> Result<(), JournalError> {
        let last = self.opened.report.durable;
        let bad = |detail| Err(Damage::new(path, Part::Chain, 0, detail).into());
        if header.prev_seq.get() != last.0 {
            let want = header.prev_seq;
            let before = if self.opened.segments.is_empty() {
                "the seed (seed.json) is at"
            } else {
                "the one before ends with"
            };
            return bad(format!("it follows record {want}, but {before} {last}"));
        }
        if header.prev_chain != self.opened.chain {
            return bad("its digest of the segment before is not that segment's".into());
        }
        let goes_on = header_span(header) == self.opened.spans.open()
            && header.size_bytes.get() == self.opened.size_bytes();
        if !goes_on {
            return bad("its span and size are not those after what comes before it".into());
        }
        Ok(())
    }

    /// Only the newest one may be without index and trailer.
    fn take_open(
        &mut self,
        name: SegmentName,
        path: &Path,
        newest: bool,
    ) -> Result<(), JournalError> {
        let file = self.storage.open(path).map_err(JournalError::io("open", path))?;
        let len = file.len().map_err(JournalError::io("look at", path))?;
        let header = match read_header(&file, path) {
            Ok(header) => header,
            Err(JournalError::Damaged(_)) if !newest => return Err(unfinished(path)),
            Err(JournalError::Damaged(damage)) => {
                return self.take_headless(&file, path, len, damage);
            }
            Err(error) => return Err(error),
        };
        check_identity(path, &header, self.identity, name.first_seq)?;
        self.check_link(path, &header)?;

        let mut index = MemoryIndex::default();
        let mut digest = Context::new(&SHA256);
        digest.update(header.as_bytes());
        let mut scan = Scan::new(&file, path, len);
        let stop = scan.run(|record, position| {
            index.note(record, position);
            digest.update(record.bytes);
            true
        })?;
        let end = scan.position();
        let extremes = index.extremes();
        if extremes.records > 0 && extremes.first_seq != name.first_seq {
            let detail = format!("the first record is {}", extremes.first_seq);
            return Err(Damage::new(path, Part::Record, HEADER_BYTES, detail).into());
        }
        if let Some(Stop::Bad(error)) = stop {
            if let Some(trailer) = complete_trailer(&file, path, &header, &digest, end)?
                && trailer.last_seq.get() == extremes.last_seq.0
            {
                return self.finish_seal(&file, name, path, len);
            }
            if !newest {
                return Err(unfinished(path));
            }
            let damage = scan.damage(&error);
            let later = scan.find_later()?;
            let after_seq = extremes.last_seq.max(self.opened.report.durable);
            self.cut(&file, &damage, later, len, after_seq)?;
        }
        if !newest {
            return Err(unfinished(path));
        }
        if extremes.records == 0 {
            return self.remove(path);
        }
        self.make_durable(&file, path, end)?;
        index.marks().iter().for_each(|mark| self.opened.apply_mark(mark));
        self.opened.report.records += extremes.records;
        self.opened.report.durable = extremes.last_seq;
        let (file, first_seq) = (Arc::new(file), name.first_seq);
        let segment =
            Segment::new_open(self.files, Arc::clone(&file), path.to_owned(), first_seq, index);
        let segment = Arc::new(segment);
        self.opened.segments.push(Arc::clone(&segment));
        let prev_chain = header.prev_chain;
        self.opened.open =
            Some(OpenSegment { segment, file, digest, end, prev_chain, finished: None });
        Ok(())
    }

    /// What is kept of the open segment counts as durable from here.
    fn make_durable(&self, file: &S::File, path: &Path, end: u64) -> Result<(), JournalError> {
        write_again(file, path, end)?;
        file.datasync().map_err(JournalError::io("sync", path))?;
        self.storage.sync_dir(self.dir).map_err(JournalError::io("sync", self.dir))
    }

    /// An open segment with a bad header: what a crash left of its creation, or damage when it
    /// holds records, because those are written only after the header is durable.
    fn take_headless(
        &mut self,
        file: &S::File,
        path: &Path,
        len: u64,
        damage: Damage,
    ) -> Result<(), JournalError> {
        let mut scan = Scan::new(file, path, len);
        let mut found = false;
        scan.run(|_, _| {
            found = true;
            false
        })?;
        if found || scan.find_later()?.is_some() {
            return Err(damage.into());
        }
        self.opened.report.cut = Some(Cut {
            file: path.to_owned(),
            at: 0,
            bytes: len,
            after_seq: self.opened.report.durable,
            why: format!("a crash tore the creation of the segment: {}", damage.detail),
            kept: None,
        });
        self.remove(path)
    }

    fn remove(&self, path: &Path) -> Result<(), JournalError> {
        self.storage.remove(path).map_err(JournalError::io("remove", path))?;
        self.storage.sync_dir(self.dir).map_err(JournalError::io("sync", self.dir))
    }

    fn finish_seal(
        &mut self,
        file: &S::File,
        name: SegmentName,
        path: &Path,
        len: u64,
    ) -> Result<(), JournalError> {
        write_again(file, path, len)?;
        file.datasync().map_err(JournalError::io("sync", path))?;
        let sealed = SegmentName { sealed: true, ..name };
        let sealed_path = sealed.path(self.dir);
        self.storage.rename(path, &sealed_path).map_err(JournalError::io("rename", path))?;
        self.storage.sync_dir(self.dir).map_err(JournalError::io("sync", self.dir))?;
        self.take_sealed(sealed, &sealed_path)
    }

    /// Cuts the file where the damage begins.
    fn cut(
        &mut self,
        file: &S::File,
        damage: &Damage,
        later: Option<(u64, Seq)>,
        len: u64,
        after_seq: Seq,
    ) -> Result<(), JournalError> {
        let path = &damage.file;
        let (why, kept) = match later {
            None => (format!("a torn write: {damage}"), None),
            Some((at, seq)) => {
                let kept = self.keep_tail(file, path, damage.at, len)?;
                let why = format!(
                    "damage, or a write torn out of order: {damage}; whole records follow, \
                     record {seq} at byte {at}; the bytes are kept in {}",
                    kept.display()
                );
                (why, Some(kept))
            }
        };
        file.set_len(damage.at).map_err(JournalError::io("cut", path))?;
        file.datasync().map_err(JournalError::io("sync", path))?;
        let (at, bytes) = (damage.at, len - damage.at);
        self.opened.report.cut = Some(Cut { file: path.clone(), at, bytes, after_seq, why, kept });
        Ok(())
    }

    /// Copies the bytes from `at` on to a file of their own; one of the same name is what an
    /// earlier try left.
    fn keep_tail(
        &self,
        file: &S::File,
        path: &Path,
        at: u64,
        len: u64,
    ) -> Result<PathBuf, JournalError> {
        let kept = path.with_extension(format!("open.cut-at-{at}"));
        let failed = |operation| JournalError::io(operation, &kept);
        match self.storage.remove(&kept) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed("remove")(error));
            }
            _ => {}
        }
        let copy = self.storage.create(&kept).map_err(failed("create"))?;
        let mut buffer = vec![0; COPY_BYTES];
        let mut done = at;
        while done < len {
            let step = usize::try_from(len - done).unwrap_or(COPY_BYTES).min(COPY_BYTES);
            file.read_at(&mut buffer[..step], done).map_err(JournalError::io("read", path))?;
            copy.write_at(&buffer[..step], done - at).map_err(failed("write"))?;
            done += step as u64;
        }
        copy.datasync().map_err(failed("sync"))?;
        self.storage.sync_dir(self.dir).map_err(JournalError::io("sync", self.dir))?;
        Ok(kept)
    }
}

fn unfinished(path: &Path) -> JournalError {
    Damage::new(path, Part::File, 0, "it is open although newer segments follow").into()
}

const COPY_BYTES: usize = 1024 * 1024;

/// Writes what stands behind the header once more, so that the next sync covers it. A program
/// that was killed after its sync had failed leaves bytes that only the page cache holds and
/// counts as written; no later sync would say so.
fn write_again<F: StorageFile>(file: &F, path: &Path, len: u64) -> Result<(), JournalError> {
    let mut buffer = vec![0; COPY_BYTES];
    let mut done = HEADER_BYTES;
    while done < len {
        let step = usize::try_from(len - done).unwrap_or(COPY_BYTES).min(COPY_BYTES);
        file.read_at(&mut buffer[..step], done).map_err(JournalError::io("read", path))?;
        file.write_at(&buffer[..step], done).map_err(JournalError::io("write", path))?;
        done += step as u64;
    }
    Ok(())
}

impl<S: Storage> Opened<S> {
    fn size_bytes(&self) -> u64 {
        self.sizes.last().map_or(0, |(_, size)| *size)
    }

    fn apply_mark(&mut self, mark: &MarkEntry) {
        self.spans.apply(mark);
        self.sizes.extend(size_after(mark));
    }
}

/// The marks rise within the segment, and no size is beyond what the index of a view can address.
fn marks_hold(marks: &[MarkEntry], trailer: &SegmentTrailer) -> bool {
    let (first, last) = (trailer.first_seq.get(), trailer.last_seq.get());
    let within = |mark: &MarkEntry| {
        let size_bytes = size_after(mark).map_or(0, |(_, size_bytes)| size_bytes);
        (first..=last).contains(&mark.seq.get()) && size_bytes <= VOLUME_BYTES_MAX
    };
    marks.iter().all(within) && marks.is_sorted_by(|a, b| a.seq.get() < b.seq.get())
}

fn header_span(header: &SegmentHeader) -> Option<OpenSpan> {
    OpenSpan::from_fields(header.span_begin.get(), header.span_resync)
}

/// The size of the volume that a mark sets.
pub(crate) fn size_after(mark: &MarkEntry) -> Option<(Seq, u64)> {
    (mark.kind == RecordKind::Resize as u8).then(|| (Seq(mark.seq.get()), mark.len_bytes.get()))
}

/// The trailer of a file that is complete although it is named as an open one.
fn complete_trailer<F: StorageFile>(
    file: &F,
    path: &Path,
    header: &SegmentHeader,
    records_digest: &Context,
    records_end: u64,
) -> Result<Option<Box<SegmentTrailer>>, JournalError> {
    let trailer = match read_trailer(file, path) {
        Ok(trailer) => trailer,
        Err(JournalError::Damaged(_) | JournalError::Version { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let end = trailer.expected_places().expect("read_trailer() compared them")[3];
    if trailer.records_end.get() != records_end {
        return Ok(None);
    }
    let len = usize::try_from(end - records_end).expect("a table's length was checked");
    let mut tables = vec![0; len];
    file.read_at(&mut tables, records_end).map_err(JournalError::io("read", path))?;
    let mut digest = records_digest.clone();
    digest.update(&tables);
    let whole = check_tables(path, &trailer, &tables).is_ok()
        && digest.finish().as_ref() == trailer.digest
        && trailer.chain == chain_digest(&header.prev_chain, &trailer.digest);
    Ok(whole.then_some(trailer))
}

fn unreadable_info<S: Storage>(
    storage: &S,
    name: SegmentName,
    path: &Path,
    damage: &Damage,
) -> SegmentInfo {
    let bytes = storage.open_read_only(path).and_then(|file| file.len()).unwrap_or(0);
    SegmentInfo {
        name: path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        sealed: name.sealed,
        first_seq: name.first_seq,
        last_seq: name.first_seq,
        first_time: tidemark_wire::WallMicros(0),
        last_time: tidemark_wire::WallMicros(0),
        records: 0,
        bytes,
        chain: None,
        damage: Some(damage.clone()),
    }
}
