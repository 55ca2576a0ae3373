//! The records of a journal, decoded from its files with `wire`, without the journal's readers.

use std::path::Path;

use tidemark_block::ByteRange;
use tidemark_collector::journal::inspect_records;
use tidemark_collector::storage::RealStorage;
use tidemark_wire::body::Resync;
use tidemark_wire::{Record, RecordKind, Seq};

/// One record.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) seq: u64,
    pub(crate) kind: RecordKind,
    pub(crate) flags: u8,
    pub(crate) range: ByteRange,
    /// Uncompressed, its checksums checked.
    pub(crate) payload: Vec<u8>,
    pub(crate) is_packed: bool,
}

impl Entry {
    /// Begins a span, or goes on with one.
    pub(crate) fn begins_span(&self) -> bool {
        matches!(self.kind, RecordKind::Gap | RecordKind::ResyncBegin)
    }

    /// Identity of the copy that the record begins or ends.
    pub(crate) fn copy_id(&self) -> Result<[u8; 16], String> {
        Resync::decode(&self.payload).map(|body| body.id).map_err(|error| error.to_string())
    }
}

/// All records of the segments in a directory, in their order, and how many segments are sealed.
pub(crate) fn read(dir: &Path) -> Result<(Vec<Entry>, u64), String> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .and_then(|list| list.map(|file| file.map(|file| file.path())).collect())
        .map_err(|error| format!("{}: {error}", dir.display()))?;
    // Named by their first record, in hexadecimal digits of one length.
    files.sort();
    let (mut entries, mut sealed, mut last_time) = (Vec::<Entry>::new(), 0, 0);
    for path in files {
        sealed += u64::from(path.extension().is_some_and(|extension| extension == "seg"));
        let bytes = std::fs::read(&path).map_err(|error| error.to_string())?;
        let (list, damage) = inspect_records(&RealStorage, &path, Seq(0), usize::MAX)
            .map_err(|error| error.to_string())?;
        if let Some(damage) = damage {
            return Err(format!("the journal is damaged: {damage}"));
        }
        for listed in list {
            let start = usize::try_from(listed.position).expect("a small file");
            let record = Record::decode(&bytes[start..]).map_err(|error| error.to_string())?;
            let time = record.header.time_us.get();
            let entry = decode(&record)?;
            if entries.last().is_some_and(|last| last.seq >= entry.seq) || time < last_time {
                return Err(format!("record {} is not behind the one before it", entry.seq));
            }
            last_time = time;
            entries.push(entry);
        }
    }
    Ok((entries, sealed))
}

fn decode(record: &Record<'_>) -> Result<Entry, String> {
    let header = record.header;
    let mut scratch = Vec::new();
    let payload = record.payload(&mut scratch).map_err(|error| error.to_string())?.to_vec();
    let range = ByteRange::new(header.offset_bytes.get(), header.len_bytes.get());
    Ok(Entry {
        seq: header.seq().0,
        kind: record.kind,
        flags: header.flags,
        range: range.expect("a checked header's range does not wrap"),
        is_packed: header.stored_bytes != header.payload_bytes,
        payload,
    })
}
