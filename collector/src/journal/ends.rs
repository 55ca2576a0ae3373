//! The fixed ends of a segment file: header and trailer, read and checked.

use std::mem::size_of;
use std::path::Path;

use tidemark_wire::RecordHeader;
use tidemark_wire::Seq;
use tidemark_wire::limits::VOLUME_BYTES_MAX;
use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

use super::format::{
    HEADER_BYTES, HEADER_MAGIC, NARROW_CELLS_MAX, SEGMENT_VERSION, SegmentHeader, SegmentTrailer,
    TRAILER_BYTES, TRAILER_MAGIC,
};
use super::types::JournalIdentity;
use crate::error::{Damage, JournalError, Part};
use crate::storage::StorageFile;

/// Reads and checks the header of a segment file.
///
/// # Errors
/// `Io`, `Damaged` or `Version`.
pub(crate) fn read_header<F: StorageFile>(
    file: &F,
    path: &Path,
) -> Result<Box<SegmentHeader>, JournalError> {
    let bad = |detail: String| Err(Damage::new(path, Part::Header, 0, detail).into());
    let len = file.len().map_err(JournalError::io("look at", path))?;
    if len < HEADER_BYTES {
        return bad(format!("the file has {len} bytes, a header has {HEADER_BYTES}"));
    }
    let mut bytes = vec![0; size_of::<SegmentHeader>()];
    file.read_at(&mut bytes, 0).map_err(JournalError::io("read", path))?;
    let header = SegmentHeader::read_from_bytes(&bytes).expect("as long as the struct");
    let header = Box::new(header);
    if header.magic != HEADER_MAGIC {
        return bad("it does not begin with the magic of a segment".into());
    }
    let found = header.version.get();
    if found != SEGMENT_VERSION {
        let known = SEGMENT_VERSION;
        return Err(JournalError::Version { path: path.to_owned(), found, known });
    }
    if header.compute_sum() != header.header_sum {
        return bad("its checksum does not match".into());
    }
    if u64::from(header.header_bytes.get()) != HEADER_BYTES
        || header.flags.get() != 0
        || header.cipher != 0
    {
        let (flags, cipher) = (header.flags, header.cipher);
        return bad(format!("length, flags {flags} or cipher {cipher} are not known here"));
    }
    if header.size_bytes.get() > VOLUME_BYTES_MAX {
        return bad(format!("a volume of {} bytes", header.size_bytes));
    }
    Ok(header)
}

/// Checks whose segment it is and that it has the name of its first record.
///
/// # Errors
/// `Foreign` or `Damaged`.
pub(crate) fn check_identity(
    path: &Path,
    header: &SegmentHeader,
    identity: &JournalIdentity,
    first_seq: Seq,
) -> Result<(), JournalError> {
    let foreign = |detail| Err(JournalError::Foreign { path: path.to_owned(), detail });
    let volume = tidemark_wire::VolumeId::from_bytes(header.volume);
    if volume != identity.volume {
        let here = identity.volume;
        return foreign(format!("it is of volume {volume}, this is the journal of {here}"));
    }
    let journal = tidemark_wire::JournalId::from_bytes(header.journal);
    if journal != identity.journal {
        let here = identity.journal;
        return foreign(format!("it is of the copy {journal} of the volume, this is {here}"));
    }
    if header.timeline.get() > identity.timeline.0 {
        let (there, here) = (header.timeline, identity.timeline);
        return foreign(format!("it is of timeline {there}, this journal is on {here}"));
    }
    if header.first_seq.get() != first_seq.0 {
        let detail = format!("its first record is {}, not that of its name", header.first_seq);
        return Err(Damage::new(path, Part::Header, 0, detail).into());
    }
    Ok(())
}

/// Reads and checks the trailer of a segment file: its checksum, and that the tables fill the
/// space between records and trailer.
///
/// # Errors
/// `Io`, `Damaged` or `Version`.
pub(crate) fn read_trailer<F: StorageFile>(
    file: &F,
    path: &Path,
) -> Result<Box<SegmentTrailer>, JournalError> {
    let len = file.len().map_err(JournalError::io("look at", path))?;
    let at = len.saturating_sub(TRAILER_BYTES);
    let bad = |detail: &str| Err(Damage::new(path, Part::Trailer, at, detail).into());
    if len < HEADER_BYTES + TRAILER_BYTES {
        return bad("the file is too short to have one");
    }
    let mut bytes = vec![0; size_of::<SegmentTrailer>()];
    file.read_at(&mut bytes, at).map_err(JournalError::io("read", path))?;
    let trailer = SegmentTrailer::read_from_bytes(&bytes).expect("as long as the struct");
    let trailer = Box::new(trailer);
    if trailer.magic != TRAILER_MAGIC {
        return bad("it does not begin with the magic of a trailer");
    }
    let found = trailer.version.get();
    if found != SEGMENT_VERSION {
        let known = SEGMENT_VERSION;
        return Err(JournalError::Version { path: path.to_owned(), found, known });
    }
    if trailer.compute_sum() != trailer.trailer_sum {
        return bad("its checksum does not match");
    }
    let places = [trailer.wide_at, trailer.marks_at, trailer.waypoints_at].map(U64::get);
    let fits = trailer.expected_places().is_some_and(|expected| {
        expected[..3] == places && expected[3] == at && counts_hold(&trailer)
    });
    if !fits {
        return bad("its tables do not fill the file");
    }
    Ok(trailer)
}

/// The counts are ones that records of that many bytes can have; this bounds what a reader of
/// the tables allocates.
fn counts_hold(trailer: &SegmentTrailer) -> bool {
    let (end, records) = (trailer.records_end.get(), trailer.record_count.get());
    let most = end.saturating_sub(HEADER_BYTES) / size_of::<RecordHeader>() as u64;
    end <= u64::from(u32::MAX)
        && (1..=most).contains(&records)
        && trailer.cells_count.get() <= records * NARROW_CELLS_MAX
        && [trailer.wide_count, trailer.marks_count, trailer.waypoints_count]
            .iter()
            .all(|count| count.get() <= records)
}
