//! Reads the records of a segment file one after the other, without an index.
//!
//! Bytes of the file enter in order, whole records with their place leave; header, checksums and
//! payload of each are checked. It holds two longest records at the most.

use std::io;
use std::path::Path;

use tidemark_wire::limits::{RECORD_PAYLOAD_BYTES_MAX, RECORD_SUMS_MAX};
use tidemark_wire::record::RECORD_HEADER_BYTES;
use tidemark_wire::{DecodeError, DecodeErrorKind, Record, Seq};

use super::format::HEADER_BYTES;
use crate::error::{Damage, JournalError, Part};
use crate::storage::StorageFile;

/// Length of the longest record.
pub(crate) const RECORD_BYTES_MAX: usize =
    RECORD_HEADER_BYTES + RECORD_SUMS_MAX as usize * 8 + RECORD_PAYLOAD_BYTES_MAX as usize;

/// Why no further record was read.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The file ends with the last record.
    End,
    /// What stands here is no whole record.
    Bad(DecodeError),
}

/// A place in the records of a file.
pub(crate) struct Scan<'f, F: StorageFile> {
    file: &'f F,
    path: &'f Path,
    end: u64,
    /// Place in the file of `buffer[start..]`.
    position: u64,
    buffer: Vec<u8>,
    start: usize,
    last_seq: Seq,
    scratch: Vec<u8>,
}

impl<'f, F: StorageFile> Scan<'f, F> {
    /// From the first record on, up to `end`.
    pub(crate) fn new(file: &'f F, path: &'f Path, end: u64) -> Self {
        Self {
            file,
            path,
            end,
            position: HEADER_BYTES,
            buffer: Vec::new(),
            start: 0,
            last_seq: Seq(0),
            scratch: Vec::new(),
        }
    }

    /// Where the next record begins.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Calls `take` with each record and its place until it says no, or none follows.
    pub(crate) fn run(
        &mut self,
        mut take: impl FnMut(&Record<'_>, u32) -> bool,
    ) -> Result<Option<Stop>, JournalError> {
        loop {
            self.fill().map_err(JournalError::io("read", self.path))?;
            let rest = &self.buffer[self.start..];
            if rest.is_empty() {
                return Ok(Some(Stop::End));
            }
            let record = match Self::check(rest, self.last_seq, &mut self.scratch) {
                Ok(record) => record,
                Err(error) => return Ok(Some(Stop::Bad(error))),
            };
            let Ok(position) = u32::try_from(self.position) else {
                let detail = "the record lies beyond 4 GiB of the file";
                let error = DecodeError::new(DecodeErrorKind::Limit, "segment", detail);
                return Ok(Some(Stop::Bad(error)));
            };
            let go_on = take(&record, position);
            self.last_seq = record.header.seq();
            let len = record.bytes.len();
            self.start += len;
            self.position += len as u64;
            if !go_on {
                return Ok(None);
            }
        }
    }

    fn check<'r>(
        bytes: &'r [u8],
        last_seq: Seq,
        scratch: &mut Vec<u8>,
    ) -> Result<Record<'r>, DecodeError> {
        let record = Record::decode(bytes)?;
        record.payload(scratch)?;
        let seq = record.header.seq();
        if seq <= last_seq {
            let detail = format!("record {seq} stands behind record {last_seq}");
            return Err(DecodeError::new(DecodeErrorKind::Field, "change record", detail));
        }
        Ok(record)
    }

    /// Makes the buffer hold a longest record, or all that is left.
    fn fill(&mut self) -> io::Result<()> {
        let held = self.buffer.len() - self.start;
        if held >= RECORD_BYTES_MAX {
            return Ok(());
        }
        let behind = self.position + held as u64;
        let left = self.end.saturating_sub(behind);
        if left == 0 {
            return Ok(());
        }
        self.buffer.drain(..self.start);
        self.start = 0;
        let more = usize::try_from(left).unwrap_or(usize::MAX).min(2 * RECORD_BYTES_MAX - held);
        self.buffer.resize(held + more, 0);
        let read = self.file.read_at(&mut self.buffer[held..], behind);
        if read.is_err() {
            self.buffer.truncate(held);
        }
        read
    }

    /// Looks for a whole record behind the place where [`Scan::run`] stopped: where it begins
    /// and its number.
    pub(crate) fn find_later(&mut self) -> Result<Option<(u64, Seq)>, JournalError> {
        loop {
            // Records begin at multiples of eight bytes of the file.
            self.start += 8;
            self.position += 8;
            if self.position >= self.end || self.start > self.buffer.len() {
                return Ok(None);
            }
            self.fill().map_err(JournalError::io("read", self.path))?;
            let found = Self::check(&self.buffer[self.start..], self.last_seq, &mut self.scratch);
            if let Ok(record) = found {
                return Ok(Some((self.position, record.header.seq())));
            }
        }
    }

    /// The damage that `error` at the present place is.
    pub(crate) fn damage(&self, error: &DecodeError) -> Damage {
        Damage::new(self.path, part_of(error), self.position, error.to_string())
    }
}

/// The part of a record that an error of its decoding is about.
pub(crate) fn part_of(error: &DecodeError) -> Part {
    if error.detail.starts_with("payload of") || error.what.ends_with("payload") {
        Part::Payload
    } else {
        Part::Record
    }
}
