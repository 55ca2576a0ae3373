//! Decodes a segment file for a person; also a damaged one, and one that belongs to nobody here.

use std::path::Path;

use ring::digest::{Context, SHA256};
use tidemark_block::ByteRange;
use tidemark_wire::{JournalId, KeyId, Record, Seq, Timeline, VolumeId, WallMicros};
use zerocopy::IntoBytes;

use super::ends::{read_header, read_trailer};
use super::format::{SegmentHeader, SegmentTrailer};
use super::index::MemoryIndex;
use super::scan::{Scan, Stop};
use super::segment::check_tables;
use super::span::Spans;
use super::types::{InspectedRecord, Mark, SegmentReport};
use super::writer::chain_digest;
use crate::error::{Damage, JournalError, Part};
use crate::storage::{Storage, StorageFile};

/// Decodes and checks all of a segment file: header, each record with its payload, tables
/// against the records, digest, chain, trailer.
///
/// # Errors
/// `Io`, or `Damaged` or `Version` when the header can't be read; other damage is in the report.
pub fn inspect_segment<S: Storage>(
    storage: &S,
    path: &Path,
) -> Result<SegmentReport, JournalError> {
    let file = storage.open_read_only(path).map_err(JournalError::io("open", path))?;
    let len = file.len().map_err(JournalError::io("look at", path))?;
    let header = read_header(&file, path)?;
    let mut damage = Vec::new();
    let sealed = path.extension().is_some_and(|extension| extension == "seg");
    let trailer = match read_trailer(&file, path) {
        Ok(trailer) => Some(trailer),
        Err(JournalError::Damaged(found)) => {
            damage.extend(sealed.then_some(found));
            None
        }
        Err(error) => return Err(error),
    };
    let records_end = trailer.as_ref().map_or(len, |trailer| trailer.records_end.get());

    let mut index = MemoryIndex::default();
    let mut digest = Context::new(&SHA256);
    digest.update(header.as_bytes());
    let mut kinds = std::collections::BTreeMap::new();
    let mut scan = Scan::new(&file, path, records_end);
    let stop = scan.run(|record, position| {
        index.note(record, position);
        digest.update(record.bytes);
        kinds.entry(record.kind as u8).or_insert((record.kind, 0)).1 += 1;
        true
    })?;
    // Without a trailer nobody knows where the records of a sealed segment end.
    let torn = match stop {
        Some(Stop::Bad(error)) if trailer.is_some() || !sealed => Some(scan.damage(&error)),
        _ => None,
    };
    if let (Some(trailer), None) = (&trailer, &torn) {
        check_sealed(&file, path, &header, trailer, &index, digest, &mut damage)?;
    }
    damage.extend(torn);
    damage.sort_by_key(|found| found.at);
    let kinds = kinds.into_values().collect();
    Ok(report(path, len, &header, trailer.as_deref(), &index, kinds, damage))
}

/// Compares tables, digest and chain of a sealed segment with its records.
fn check_sealed<F: StorageFile>(
    file: &F,
    path: &Path,
    header: &SegmentHeader,
    trailer: &SegmentTrailer,
    index: &MemoryIndex,
    mut digest: Context,
    damage: &mut Vec<Damage>,
) -> Result<(), JournalError> {
    let start = trailer.records_end.get();
    let end = trailer.expected_places().expect("read_trailer() compared them")[3];
    let mut tables = vec![0; usize::try_from(end - start).expect("checked with the file's length")];
    file.read_at(&mut tables, start).map_err(JournalError::io("read", path))?;
    digest.update(&tables);
    if let Err(found) = check_tables(path, trailer, &tables) {
        damage.push(found);
    } else if index.encode(start, &Spans::default()).0 != tables {
        damage.push(Damage::new(path, Part::Index, start, "it is not that of the records"));
    } else if digest.finish().as_ref() != trailer.digest {
        damage.push(Damage::new(path, Part::Chain, end, "the digest is not that of the file"));
    } else if chain_digest(&header.prev_chain, &trailer.digest) != trailer.chain {
        damage.push(Damage::new(path, Part::Chain, end, "the chain is not that of the digests"));
    }
    Ok(())
}

fn report(
    path: &Path,
    bytes: u64,
    header: &SegmentHeader,
    trailer: Option<&SegmentTrailer>,
    index: &MemoryIndex,
    kinds: Vec<(tidemark_wire::RecordKind, u64)>,
    damage: Vec<Damage>,
) -> SegmentReport {
    let extremes = index.extremes();
    SegmentReport {
        file: path.to_owned(),
        bytes,
        version: header.version.get(),
        volume: VolumeId::from_bytes(header.volume),
        journal: JournalId::from_bytes(header.journal),
        timeline: Timeline(header.timeline.get()),
        epoch: tidemark_wire::Epoch(header.epoch.get()),
        cipher: header.cipher,
        key_id: KeyId(header.key_id.get()),
        created: WallMicros(header.created_us.get()),
        prev_seq: Seq(header.prev_seq.get()),
        first_seq: Seq(header.first_seq.get()),
        last_seq: extremes.last_seq,
        first_time: extremes.first_time,
        last_time: extremes.last_time,
        records: extremes.records,
        kinds,
        sealed: trailer.is_some(),
        chain: trailer.map(|trailer| trailer.chain),
        damage,
    }
}

/// The records behind `after` in a segment file, at most `limit`, decoded for a person, and the
/// damage at which reading stopped, if it did.
///
/// # Errors
/// `Io`, or `Damaged` or `Version` when the header can't be read.
pub fn inspect_records<S: Storage>(
    storage: &S,
    path: &Path,
    after: Seq,
    limit: usize,
) -> Result<(Vec<InspectedRecord>, Option<Damage>), JournalError> {
    let file = storage.open_read_only(path).map_err(JournalError::io("open", path))?;
    let len = file.len().map_err(JournalError::io("look at", path))?;
    read_header(&file, path)?;
    let (end, known_end) = match read_trailer(&file, path) {
        Ok(trailer) => (trailer.records_end.get(), true),
        Err(_) => (len, path.extension().is_some_and(|extension| extension == "open")),
    };
    let mut records = Vec::new();
    let mut scan = Scan::new(&file, path, end);
    let stop = scan.run(|record, position| {
        if record.header.seq() > after && records.len() < limit {
            records.push(inspected(record, u64::from(position)));
        }
        records.len() < limit
    })?;
    let damage = match stop {
        Some(Stop::Bad(error)) if known_end => Some(scan.damage(&error)),
        _ => None,
    };
    Ok((records, damage))
}

fn inspected(record: &Record<'_>, position: u64) -> InspectedRecord {
    let header = record.header;
    InspectedRecord {
        seq: header.seq(),
        time: WallMicros(header.time_us.get()),
        kind: record.kind,
        range: ByteRange::new(header.offset_bytes.get(), header.len_bytes.get())
            .expect("a checked header's range ends within the largest volume"),
        payload_bytes: header.payload_bytes.get(),
        stored_bytes: header.stored_bytes.get(),
        flags: header.flags,
        position,
        mark: Mark::from_record(record).ok().flatten().map(|mark| mark.body),
    }
}
