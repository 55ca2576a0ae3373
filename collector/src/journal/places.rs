//! What places in the journal say: how much was journaled up to a mark, whether data was
//! journaled since a record, and which segment a time leads to.
//!
//! Sequence numbers and marks enter, sizes and records leave. Nothing is scanned but the heads of
//! the records between a record and the first one behind it that changes the disk.

use std::sync::Arc;

use tidemark_wire::{RecordKind, Seq, WallMicros};

use super::format::HEADER_BYTES;
use super::reader::{JournalReader, SegmentList};
use super::segment::Segment;
use crate::error::{JournalError, ReadError};
use crate::storage::Storage;

impl<S: Storage> JournalReader<S> {
    /// Bytes of records, as stored, from the begin of the journal up to and with each of these
    /// marks, which are in the order of the stream; 0 for one that is the state of the seed. `None`
    /// for one that is not there or whose segment's marks are damaged. The differences stay the same when segments leave.
    ///
    /// # Errors
    /// `Io`.
    pub fn bytes_until(&self, marks: &[Seq]) -> Result<Vec<Option<u64>>, JournalError> {
        let (segments, oldest) = {
            let published = self.published();
            (Arc::clone(&published.segments), published.base.at)
        };
        let mut until = vec![None; marks.len()];
        if let Ok(at) = marks.binary_search(&oldest) {
            until[at] = Some(0);
        }
        let (mut before_bytes, mut next) = (0, marks.partition_point(|mark| *mark <= oldest));
        for segment in segments.iter() {
            let last = segment.extremes().last_seq;
            let end = next + marks[next..].partition_point(|mark| *mark <= last);
            if end > next {
                match segment.marks() {
                    Ok(entries) => {
                        for (wanted, until) in marks[next..end].iter().zip(&mut until[next..end]) {
                            let found = entries.binary_search_by_key(&wanted.0, |e| e.seq.get());
                            *until = found.ok().map(|at| {
                                let (place, len) =
                                    (entries[at].position.get(), entries[at].record_bytes.get());
                                before_bytes + u64::from(place) + u64::from(len) - HEADER_BYTES
                            });
                        }
                    }
                    Err(ReadError::Damaged(_)) => {}
                    Err(error) => return Err(error.into()),
                }
                next = end;
            }
            before_bytes += segment.records_end()?.saturating_sub(HEADER_BYTES);
        }
        Ok(until)
    }

    /// The first record behind `after` that changes the disk. Flushes and marks do not. Where the
    /// records behind `after` are in the seed, nobody knows any more what they did: then it is
    /// the state of the seed, as if they had changed something.
    ///
    /// # Errors
    /// `Io` or `Damaged`.
    pub fn first_change_after(&self, after: Seq) -> Result<Option<Seq>, JournalError> {
        let (segments, durable, oldest) = {
            let published = self.published();
            (Arc::clone(&published.segments), published.durable, published.base.at)
        };
        if after < oldest {
            return Ok(Some(oldest));
        }
        for segment in segments.iter() {
            let ends = segment.extremes();
            if ends.records == 0 || ends.last_seq <= after || ends.first_seq > durable {
                continue;
            }
            if let Some(seq) = first_change(segment, after, durable)? {
                return Ok(Some(seq));
            }
        }
        Ok(None)
    }
}

fn first_change<S: Storage>(
    segment: &Arc<Segment<S>>,
    after: Seq,
    durable: Seq,
) -> Result<Option<Seq>, JournalError> {
    let last = segment.extremes().last_seq.min(durable);
    let mut position = segment.waypoint(|waypoint| waypoint.seq.get() <= after.0)?;
    loop {
        let head = segment.read_head(position)?.header;
        let kind = RecordKind::from_byte(head.kind);
        let changes = kind.is_some_and(|kind| kind.changes_bytes() || kind == RecordKind::Resize);
        if head.seq() > after && head.seq() <= last && changes {
            return Ok(Some(head.seq()));
        }
        if head.seq() >= last {
            return Ok(None);
        }
        position += head.record_bytes() as u64;
    }
}

/// How many segments, from the oldest on, a search for the last record until `time` goes through:
/// up to the one in which something later shows for the first time.
pub(crate) fn count_until<S: Storage>(segments: &SegmentList<S>, time: WallMicros) -> usize {
    for (index, segment) in segments.iter().enumerate() {
        let extremes = segment.extremes();
        if extremes.first_time > time {
            return index;
        }
        if extremes.last_time > time {
            return index + 1;
        }
    }
    segments.len()
}

/// The latest time that shows at the ends of these segments; 0 without any.
pub(crate) fn latest_time<S: Storage>(segments: &[Arc<Segment<S>>]) -> WallMicros {
    let ends = segments.iter().map(|segment| segment.extremes());
    ends.map(|ends| ends.first_time.max(ends.last_time)).max().unwrap_or(WallMicros(0))
}
