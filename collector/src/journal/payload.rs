//! Reads parts of record payloads, each piece checked before it is given out.
//!
//! Of a payload that is stored raw only the pieces that are asked for are read. A compressed one
//! is expanded and checked whole, and kept in a bounded cache.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use tidemark_block::ByteRange;
use tidemark_wire::codec::Codec;
use tidemark_wire::limits::CHECK_BLOCK_BYTES;
use tidemark_wire::planted::{self, Bug};
use tidemark_wire::{DecodeError, DecodeErrorKind, Record, checksum};

use super::cache::Cache;
use super::resolve::Place;
use super::segment::{Head, Segment, decode_head};
use crate::error::{Damage, Part, ReadError};
use crate::storage::{Reads, Storage};

/// Bytes of expanded payloads that one view or merge keeps, at most.
const EXPANDED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Records up to this length are read with one call.
const ONE_READ_BYTES_MAX: u32 = 16 * 1024;

type Expanded = Arc<Vec<u8>>;

pub(crate) struct Payloads {
    /// By all that the index says of the record: a forged one that names the same bytes as another
    /// record is not found here, and so is checked.
    expanded: Mutex<Cache<Place, Expanded>>,
    reads: Reads,
}

impl Default for Payloads {
    fn default() -> Self {
        let cache = Cache::new(EXPANDED_BYTES_MAX, |payload: &Expanded| payload.len());
        Self { expanded: Mutex::new(cache), reads: Reads::default() }
    }
}

impl Payloads {
    /// What becomes of the bytes of the files.
    pub(crate) fn reads(&self) -> Reads {
        self.reads
    }

    /// Sets that.
    pub(crate) fn set_reads(&mut self, reads: Reads) {
        self.reads = reads;
    }

    /// Fills `out` with the bytes of `part` of the volume from the record at `place`, which holds
    /// them. After an error `out` holds nothing of the record.
    pub(crate) fn read<S: Storage>(
        &self,
        segment: &Segment<S>,
        place: &Place,
        part: ByteRange,
        out: &mut [u8],
    ) -> Result<(), ReadError> {
        let within = within(place, part);
        if let Some(payload) = self.cache().get(place) {
            out.copy_from_slice(&payload[within]);
            return Ok(());
        }
        let position = u64::from(place.position);
        let (head, bytes) = if place.record_bytes <= ONE_READ_BYTES_MAX {
            let bytes = segment.read_record(self.reads, position, place.record_bytes)?;
            let head = decode_head(&bytes).map_err(|error| segment.damage(position, &error))?;
            (head, Some(bytes))
        } else {
            (segment.read_head(position)?, None)
        };
        check_head(segment, place, &head)?;
        match Codec::from_byte(head.header.codec) {
            Ok(Codec::Raw) => {
                let read = match bytes {
                    Some(bytes) => copy_raw(segment, place, &head, &bytes, within, out),
                    None => read_raw(segment, self.reads, place, &head, within, out),
                };
                read.inspect_err(|_| out.fill(0))
            }
            Ok(Codec::Snappy) => {
                let bytes = match bytes {
                    Some(bytes) => bytes,
                    None => segment.read_record(self.reads, position, place.record_bytes)?,
                };
                let payload =
                    Arc::new(expand(&bytes).map_err(|error| segment.damage(position, &error))?);
                out.copy_from_slice(&payload[within]);
                self.cache().insert(*place, payload);
                Ok(())
            }
            Err(error) => Err(segment.damage(position, &error).into()),
        }
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache<Place, Expanded>> {
        self.expanded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `part` of the volume as a range within the payload.
fn within(place: &Place, part: ByteRange) -> Range<usize> {
    debug_assert!(place.range.contains(part), "{part} is not in the record's {}", place.range);
    let at = |byte: u64| {
        usize::try_from(byte - place.range.start()).expect("payloads are at most 256 KiB long")
    };
    at(part.start())..at(part.end())
}

fn expand(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let record = Record::decode(bytes)?;
    let mut payload = Vec::new();
    record.payload(&mut payload)?;
    Ok(payload)
}

/// The record at a place has to be the one that the index names.
fn check_head<S: Storage>(
    segment: &Segment<S>,
    place: &Place,
    head: &Head,
) -> Result<(), ReadError> {
    let header = &head.header;
    let range = ByteRange::new(header.offset_bytes.get(), header.len_bytes.get());
    let fits = header.seq() == place.seq
        && range == Some(place.range)
        && header.kind().is_some_and(tidemark_wire::RecordKind::has_data)
        && header.record_bytes() == place.record_bytes as usize;
    if fits {
        return Ok(());
    }
    let detail = format!("record {} stands where the index has {}", header.seq(), place.seq);
    Err(Damage::new(&segment.path(), Part::Record, place.position.into(), detail).into())
}

/// Takes the pieces that `within` touches from `bytes`, the whole record.
fn copy_raw<S: Storage>(
    segment: &Segment<S>,
    place: &Place,
    head: &Head,
    bytes: &[u8],
    within: Range<usize>,
    out: &mut [u8],
) -> Result<(), ReadError> {
    let (first, run) = touched(place, head, &within);
    let stored_at = head.stored_at() + run.start;
    let pieces = &bytes[stored_at..stored_at + run.len()];
    check(segment, place, head, first, &run, pieces)?;
    out.copy_from_slice(&pieces[within.start - run.start..within.end - run.start]);
    Ok(())
}

/// Reads the pieces that `within` touches.
fn read_raw<S: Storage>(
    segment: &Segment<S>,
    reads: Reads,
    place: &Place,
    head: &Head,
    within: Range<usize>,
    out: &mut [u8],
) -> Result<(), ReadError> {
    let (first, run) = touched(place, head, &within);
    let file_at = u64::from(place.position) + (head.stored_at() + run.start) as u64;
    if run == within {
        segment.read_at(reads, out, file_at)?;
        return check(segment, place, head, first, &run, out);
    }
    let mut pieces = vec![0; run.len()];
    segment.read_at(reads, &mut pieces, file_at)?;
    check(segment, place, head, first, &run, &pieces)?;
    out.copy_from_slice(&pieces[within.start - run.start..within.end - run.start]);
    Ok(())
}

/// The pieces of a record's payload that `within` touches: number of the first, and all of them as
/// a range within the payload.
fn touched(place: &Place, head: &Head, within: &Range<usize>) -> (usize, Range<usize>) {
    let len = head.header.payload_bytes.get() as usize;
    let block = CHECK_BLOCK_BYTES as usize;
    let lead = checksum::lead_bytes(place.range.start()) as usize;
    let first = (lead + within.start) / block;
    let end = ((lead + within.end).next_multiple_of(block) - lead).min(len);
    (first, (first * block).saturating_sub(lead)..end)
}

/// Checks whole pieces: `bytes` are those of `run`, `first` is the number of the first.
fn check<S: Storage>(
    segment: &Segment<S>,
    place: &Place,
    head: &Head,
    first: usize,
    run: &Range<usize>,
    bytes: &[u8],
) -> Result<(), ReadError> {
    let at = place.range.start() + run.start as u64;
    for (piece, sum) in checksum::pieces(at, bytes.len()).zip(&head.sums[first..]) {
        let volume_at = at + piece.start as u64;
        if checksum::sum(&bytes[piece]) != sum.get() && !planted::is(Bug::ReadUnchecked) {
            let seq = place.seq;
            let detail = format!("payload of record {seq} is damaged at byte {volume_at}");
            let error = DecodeError::new(DecodeErrorKind::Checksum, "change record", detail);
            return Err(segment.damage(place.position.into(), &error).into());
        }
    }
    Ok(())
}
