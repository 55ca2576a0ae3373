//! The writer of a journal: appends, makes durable, seals.
//!
//! Records enter with [`Journal::append`] and wait in memory; [`Journal::commit`] writes all
//! that wait with one write, syncs once, and only then shows them to readers and counts them as
//! durable. A crash loses what waits and may leave a part of the last write, which the next
//! opening cuts off.
//!
//! After the first failed write or sync nothing more is believed of the segment: the writer is
//! latched and takes nothing until [`Journal::reopen`] has cut the segment where the last
//! successful sync left it, sealed it there and made room for a new one. What waited is dropped;
//! the sender still holds it, because it was not acknowledged.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::digest::{Context, SHA256};
use tidemark_wire::frame::{RecordsBody, records};
use tidemark_wire::planted::{self, Bug};
use tidemark_wire::{Epoch, Record, RecordKind, Seq, WallMicros};
use zerocopy::IntoBytes;

use super::base::Base;
use super::files::Files;
use super::format::{HEADER_BYTES, SegmentHeader, SegmentTrailer};
use super::index::{MemoryIndex, mark_entry};
use super::reader::{JournalReader, Published};
use super::recover::{self, SegmentName};
use super::segment::Segment;
use super::span::OpenSpan;
use super::types::{Committed, JournalConfig, JournalIdentity, Mark, OpenReport};
use crate::error::{Damage, JournalError};
use crate::storage::{RealStorage, Storage, StorageFile};

/// Bytes of records that may wait for a commit.
pub const PENDING_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bytes up to which a segment may be configured: places in it have 32 bits, and one commit may
/// go beyond the configured size.
const SEGMENT_BYTES_LIMIT: u64 = 1 << 31;

/// The segment that takes records.
pub(crate) struct OpenSegment<S: Storage> {
    pub(crate) segment: Arc<Segment<S>>,
    pub(crate) file: Arc<S::File>,
    /// Over the header and the durable records.
    pub(crate) digest: Context,
    /// Where the durable records end.
    pub(crate) end: u64,
    pub(crate) prev_chain: [u8; 32],
    /// Once tables and trailer are durable: from here on only the name is missing, and the file
    /// may have it already, so it must not be cut any more.
    pub(crate) finished: Option<Box<SegmentTrailer>>,
}

/// SHA-256 of a segment's place in the chain: what came before, and the segment's own digest.
pub(crate) fn chain_digest(prev_chain: &[u8; 32], digest: &[u8; 32]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(prev_chain);
    context.update(digest);
    finish(context)
}

fn finish(context: Context) -> [u8; 32] {
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Makes tables and trailer of a segment durable behind its records.
fn write_tables<S: Storage>(
    open: &OpenSegment<S>,
    reader: &JournalReader<S>,
) -> Result<Box<SegmentTrailer>, JournalError> {
    let path = open.segment.path();
    let (tables, mut trailer) = {
        let published = reader.published();
        let encode = |index: &MemoryIndex| index.encode(open.end, &published.spans);
        let (tables, mut trailer) =
            open.segment.with_memory(encode).expect("the open segment is not sealed");
        trailer.size_bytes = published.size_bytes().into();
        (tables, trailer)
    };
    let mut digest = open.digest.clone();
    digest.update(&tables);
    trailer.digest = finish(digest);
    trailer.chain = chain_digest(&open.prev_chain, &trailer.digest);
    trailer.trailer_sum = trailer.compute_sum();

    let mut bytes = tables;
    bytes.extend_from_slice(trailer.as_bytes());
    open.file.write_at(&bytes, open.end).map_err(JournalError::io("write", &path))?;
    open.file.datasync().map_err(JournalError::io("sync", &path))?;
    Ok(Box::new(trailer))
}

/// Whether the writer takes records.
enum Gate {
    Open,
    /// A write or sync failed.
    Latched,
    /// A segment is damaged.
    Damaged(Damage),
}

/// The writer of one volume's journal. One thread owns it.
pub struct Journal<S: Storage = RealStorage> {
    storage: Arc<S>,
    files: Arc<Files<S>>,
    dir: PathBuf,
    identity: JournalIdentity,
    config: JournalConfig,
    reader: Arc<JournalReader<S>>,
    open: Option<OpenSegment<S>>,
    /// `chain` of the last sealed segment.
    chain: [u8; 32],
    pending: Vec<u8>,
    last_appended: Seq,
    gate: Gate,
}

impl<S: Storage> Journal<S> {
    /// [`Journal::open_above`] an empty disk.
    ///
    /// # Errors
    /// As there.
    pub fn open_or_create(
        storage: Arc<S>,
        dir: &Path,
        identity: JournalIdentity,
        config: JournalConfig,
    ) -> Result<(Self, OpenReport), JournalError> {
        let base = Base::empty(identity.size_bytes);
        Self::open_above(storage, dir, identity, config, base)
    }

    /// Opens the journal in `dir` above the state `base`, which the seed holds. The directory is
    /// created where needed and brought into order after a crash. What was found there is in the report; with damage in it the journal can be read
    /// up to the damage and takes no records.
    ///
    /// The caller sees to it that only one process opens a directory.
    ///
    /// # Errors
    /// `Io`; `Foreign` or `Version` when a file there is not this journal's.
    pub fn open_above(
        storage: Arc<S>,
        dir: &Path,
        identity: JournalIdentity,
        mut config: JournalConfig,
        base: Base,
    ) -> Result<(Self, OpenReport), JournalError> {
        config.segment_bytes_max = config.segment_bytes_max.min(SEGMENT_BYTES_LIMIT);
        storage.create_dir(dir).map_err(JournalError::io("create", dir))?;
        let files = Arc::new(Files::new(Arc::clone(&storage)));
        let opened = recover::open(&*storage, &files, dir, &identity, &base)?;
        let report = opened.report;
        let damage = report.damaged.first().cloned();
        let last = opened.segments.last().map(|segment| segment.extremes().last_time);
        let last_time = last.or(base.time);
        let reader = JournalReader::new(Published {
            segments: Arc::new(opened.segments),
            durable: report.durable,
            last_time,
            base,
            spans: opened.spans,
            sizes: opened.sizes,
            unreadable: opened.unreadable,
            damage: damage.clone(),
        });
        let journal = Self {
            storage,
            files,
            dir: dir.to_owned(),
            identity,
            config,
            reader: Arc::new(reader),
            open: opened.open,
            chain: opened.chain,
            pending: Vec::new(),
            last_appended: report.durable,
            gate: damage.map_or(Gate::Open, Gate::Damaged),
        };
        Ok((journal, report))
    }

    /// For readers.
    pub fn reader(&self) -> Arc<JournalReader<S>> {
        Arc::clone(&self.reader)
    }

    /// The epoch that new segments name.
    pub fn set_epoch(&mut self, epoch: Epoch) {
        self.identity.epoch = epoch;
    }

    /// Bytes that wait for a commit.
    pub fn pending_bytes(&self) -> usize {
        self.pending.len()
    }

    /// The newest record appended; durable or not.
    pub fn last_appended(&self) -> Seq {
        self.last_appended
    }

    /// True after a failed write until [`Journal::reopen`].
    pub fn is_latched(&self) -> bool {
        matches!(self.gate, Gate::Latched)
    }

    fn check_gate(&self) -> Result<(), JournalError> {
        match &self.gate {
            Gate::Open => Ok(()),
            Gate::Latched => Err(JournalError::Latched { dir: self.dir.clone() }),
            Gate::Damaged(damage) => Err(JournalError::ReadOnly(damage.clone())),
        }
    }

    /// Takes the records of a frame; they wait for [`Journal::commit`]. The caller has checked
    /// their payloads, their timeline and that they fit the volume.
    ///
    /// # Errors
    /// `OutOfOrder` when they do not follow the newest record here, by number and by the record
    /// that the sender says comes before (a gap or resync-begin may follow anything older);
    /// `PendingFull`, `Latched` or `ReadOnly`. After an error nothing of the frame was taken.
    pub fn append(&mut self, body: &RecordsBody<'_>) -> Result<(), JournalError> {
        self.check_gate()?;
        let Some(Ok(first)) = body.records().next() else {
            return Ok(());
        };
        let (prev, seq, last) = (body.header.prev_seq(), first.header.seq(), self.last_appended);
        let restarts = matches!(first.kind, RecordKind::Gap | RecordKind::ResyncBegin);
        if seq <= last || (prev != last && !restarts) {
            return Err(JournalError::OutOfOrder { prev, first: seq, last });
        }
        let bytes = body.record_bytes();
        if self.pending.len() + bytes.len() > PENDING_BYTES_MAX {
            return Err(JournalError::PendingFull { pending_bytes: self.pending.len() });
        }
        self.pending.extend_from_slice(bytes);
        self.last_appended = Seq(body.header.last_seq.get());
        Ok(())
    }

    /// Makes durable what was appended, shows it to readers, and seals the segment when it is
    /// full. When sealing fails, the records are durable all the same; the writer is latched.
    ///
    /// # Errors
    /// `Io`: nothing of what waited is durable, it is dropped and the writer is latched; or
    /// `Latched` or `ReadOnly`.
    pub fn commit(&mut self) -> Result<Committed, JournalError> {
        self.check_gate()?;
        if self.pending.is_empty() {
            return Ok(Committed { durable: self.last_appended, new_marks: Vec::new() });
        }
        if let Err(error) = self.write_pending() {
            self.latch();
            return Err(error);
        }
        let new_marks = self.publish();
        let full = self
            .open
            .as_ref()
            .is_some_and(|open| open.end - HEADER_BYTES >= self.config.segment_bytes_max);
        if full && let Err(error) = self.seal() {
            tracing::error!("{error}; the journal takes records again after a new session");
            self.latch();
        }
        Ok(Committed { durable: self.last_appended, new_marks })
    }

    fn latch(&mut self) {
        self.gate = Gate::Latched;
        self.pending.clear();
        self.last_appended = self.reader.durable();
    }

    fn write_pending(&mut self) -> Result<(), JournalError> {
        if self.open.is_none() {
            self.open = Some(self.create_segment()?);
        }
        let open = self.open.as_mut().expect("made above");
        let file = &open.file;
        let failed = |operation| JournalError::io(operation, &open.segment.path());
        file.write_at(&self.pending, open.end).map_err(failed("write"))?;
        if planted::is(Bug::SyncSkipped) {
            return Ok(());
        }
        file.datasync().map_err(failed("sync"))
    }

    /// Makes the file of a new segment, durable with its header before it takes a record.
    fn create_segment(&self) -> Result<OpenSegment<S>, JournalError> {
        let first = Record::decode(&self.pending).expect("append() took whole records");
        let first_seq = first.header.seq();
        let header = {
            let published = self.reader.published();
            let (span_begin, span_resync) = OpenSpan::to_fields(published.spans.open());
            let mut header = SegmentHeader::blank();
            header.volume = self.identity.volume.to_bytes();
            header.journal = self.identity.journal.to_bytes();
            header.timeline = self.identity.timeline.0.into();
            header.epoch = self.identity.epoch.0.into();
            header.first_seq = first_seq.0.into();
            header.prev_seq = published.durable.0.into();
            header.created_us = first.header.time_us;
            header.size_bytes = published.size_bytes().into();
            header.prev_chain = self.chain;
            header.span_begin = span_begin.0.into();
            header.span_resync = span_resync;
            header.header_sum = header.compute_sum();
            header
        };
        let path = SegmentName { first_seq, sealed: false }.path(&self.dir);
        let file = self.storage.create(&path).map_err(JournalError::io("create", &path))?;
        file.write_at(header.as_bytes(), 0).map_err(JournalError::io("write", &path))?;
        file.datasync().map_err(JournalError::io("sync", &path))?;
        self.storage.sync_dir(&self.dir).map_err(JournalError::io("sync", &self.dir))?;
        let mut digest = Context::new(&SHA256);
        digest.update(header.as_bytes());
        let (file, index) = (Arc::new(file), MemoryIndex::default());
        let segment = Segment::new_open(&self.files, Arc::clone(&file), path, first_seq, index);
        let (segment, prev_chain) = (Arc::new(segment), self.chain);
        let end = HEADER_BYTES;
        Ok(OpenSegment { segment, file, digest, end, prev_chain, finished: None })
    }

    /// Shows the records that were just synced to readers.
    fn publish(&mut self) -> Vec<Mark> {
        let open = self.open.as_mut().expect("records were written to it");
        let first = open.end == HEADER_BYTES;
        let start = open.end;
        let mut placed = Vec::new();
        let mut end = start;
        for record in records(&self.pending) {
            let record = record.expect("append() took whole records");
            let position = u32::try_from(end).expect("SEGMENT_BYTES_LIMIT keeps places in 32 bits");
            end += record.bytes.len() as u64;
            placed.push((record, position));
        }
        let mut new_marks = Vec::new();
        for (record, _) in &placed {
            match Mark::from_record(record) {
                Ok(mark) => new_marks.extend(mark),
                Err(error) => tracing::warn!("record {}: {error}", record.header.seq()),
            }
        }
        open.digest.update(&self.pending);
        open.end = end;
        open.segment.note(placed.iter().copied());

        let mut published = self.reader.publish();
        if first {
            let mut segments = published.segments.to_vec();
            segments.push(Arc::clone(&open.segment));
            published.segments = Arc::new(segments);
        }
        for (record, position) in &placed {
            if let Some(mark) = mark_entry(record, *position) {
                published.apply_mark(&mark);
            }
        }
        published.durable = self.last_appended;
        let last_time = placed.last().map(|(record, _)| WallMicros(record.header.time_us.get()));
        published.last_time = last_time;
        drop(published);
        self.pending.clear();
        new_marks
    }

    /// Seals the open segment: tables and trailer, sync, rename, sync of the directory. A crash
    /// between any two of them leaves a file that opening brings into order.
    fn seal(&mut self) -> Result<(), JournalError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let path = open.segment.path();
        let first_seq = open.segment.first_seq();
        if open.finished.is_none() {
            open.finished = Some(write_tables(open, &self.reader)?);
        }
        let sealed_path = SegmentName { first_seq, sealed: true }.path(&self.dir);
        match self.storage.rename(&path, &sealed_path) {
            // An earlier try may have renamed it and failed behind that.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.storage
                    .open_read_only(&sealed_path)
                    .map_err(JournalError::io("find again", &sealed_path))?;
            }
            renamed => renamed.map_err(JournalError::io("rename", &path))?,
        }
        self.storage.sync_dir(&self.dir).map_err(JournalError::io("sync", &self.dir))?;
        if let Some(OpenSegment { segment, finished: Some(trailer), .. }) = self.open.take() {
            self.chain = trailer.chain;
            segment.become_sealed(sealed_path, trailer);
        }
        Ok(())
    }

    /// Takes records again after a failed write: what is durable of the segment is sealed, and
    /// the next record goes to a new one. Readers, and views that are open, go on meanwhile.
    ///
    /// # Errors
    /// `Io`: the writer stays latched; try again later. `ReadOnly`.
    pub fn reopen(&mut self) -> Result<(), JournalError> {
        match &self.gate {
            Gate::Open => return Ok(()),
            Gate::Damaged(damage) => return Err(JournalError::ReadOnly(damage.clone())),
            Gate::Latched => {}
        }
        if self.open.as_ref().is_some_and(|open| open.end == HEADER_BYTES) {
            self.open = None;
        }
        self.remove_unborn()?;
        if let Some(open) = self.open.as_ref().filter(|open| open.finished.is_none()) {
            let path = open.segment.path();
            open.file.set_len(open.end).map_err(JournalError::io("cut", &path))?;
        }
        self.seal()?;
        self.gate = Gate::Open;
        Ok(())
    }

    /// Removes what a failed creation left: an open segment behind everything durable.
    fn remove_unborn(&self) -> Result<(), JournalError> {
        let durable = self.reader.durable();
        let names = self.storage.list(&self.dir).map_err(JournalError::io("list", &self.dir))?;
        for name in names.iter().filter_map(|name| SegmentName::parse(name)) {
            if !name.sealed && name.first_seq > durable {
                let path = name.path(&self.dir);
                self.storage.remove(&path).map_err(JournalError::io("remove", &path))?;
            }
        }
        self.storage.sync_dir(&self.dir).map_err(JournalError::io("sync", &self.dir))
    }

    /// Seals the open segment now, so that all that is durable stands in sealed segments.
    ///
    /// # Errors
    /// `Io`: the writer is latched; or `Latched` or `ReadOnly`. Records that wait stay waiting.
    pub fn seal_now(&mut self) -> Result<(), JournalError> {
        self.check_gate()?;
        self.seal().inspect_err(|_| self.gate = Gate::Latched)
    }
}

const _: () = assert!(SEGMENT_BYTES_LIMIT + 2 * (PENDING_BYTES_MAX as u64) < u32::MAX as u64);
