//! One frame of records on its way out: headers of its own, payloads where they lie.
//!
//! Payloads that shrink are compressed into the batch's memory; the rest is sent straight from
//! the ring, whose records stay put until they are acknowledged. The memory is reused from frame
//! to frame; only the list of slices for the system call is made anew.

use std::io::{self, IoSlice, Write};
use std::ops::Range;

use tidemark_wire::checksum::sum_parts;
use tidemark_wire::codec::{Codec, Compressor};
use tidemark_wire::frame::{
    FRAME_HEADER_BYTES, FrameHeader, FrameKind, RECORDS_HEADER_BYTES, RecordsHeader,
};
use tidemark_wire::limits::{FRAME_BODY_BYTES_MAX, FRAME_RECORDS_MAX, RECORD_PAYLOAD_BYTES_MAX};
use tidemark_wire::record::RECORD_HEADER_BYTES;
use tidemark_wire::{Epoch, Seq, SessionToken, Timeline};
use zerocopy::IntoBytes;

use crate::ring::order::Ticket;
use crate::ring::{Consumer, RecordRef};

/// A frame is sent when it has this many bytes, also when more is there.
const BODY_BYTES_WANTED: usize = 1024 * 1024;
/// Slices that one system call takes.
const SLICES_MAX: usize = 1024;
/// After a payload that did not shrink, up to this many are not tried.
const SKIP_MAX: u32 = 64;

enum Part {
    Head(Range<usize>),
    Packed(Range<usize>),
    InRing(Ticket),
}

/// See the module's documentation.
pub struct Batch {
    heads: Vec<u8>,
    packed: Vec<u8>,
    parts: Vec<Part>,
    body_bytes: usize,
    count: u32,
    first: Seq,
    last: Seq,
    compressor: Compressor,
    skip: u32,
    skip_next: u32,
}

/// What all records of a frame share.
#[derive(Clone, Copy)]
pub struct FrameContext {
    /// Timeline of the session.
    pub timeline: Timeline,
    /// Epoch of the session.
    pub epoch: Epoch,
    /// The record before the first one.
    pub prev: Seq,
    /// A token behind the last record.
    pub token: Option<SessionToken>,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            heads: Vec::new(),
            packed: Vec::new(),
            parts: Vec::new(),
            body_bytes: RECORDS_HEADER_BYTES,
            count: 0,
            first: Seq(0),
            last: Seq(0),
            compressor: Compressor::default(),
            skip: 0,
            skip_next: 0,
        }
    }
}

impl Batch {
    /// Empties the batch.
    pub fn clear(&mut self) {
        self.heads.clear();
        self.packed.clear();
        self.parts.clear();
        self.body_bytes = RECORDS_HEADER_BYTES;
        self.count = 0;
    }

    /// True when the frame should go out before it gets another record.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let longest = RECORD_HEADER_BYTES + RECORD_PAYLOAD_BYTES_MAX as usize + 1024;
        self.body_bytes >= BODY_BYTES_WANTED
            || self.body_bytes + longest > FRAME_BODY_BYTES_MAX as usize
            || self.count >= FRAME_RECORDS_MAX
    }

    /// True when it holds no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The last record, when there is one.
    #[must_use]
    pub fn last(&self) -> Option<Seq> {
        (self.count > 0).then_some(self.last)
    }

    /// Adds a record from the ring.
    pub fn push(&mut self, record: &RecordRef<'_>) {
        let (mut header, sums, payload) = (record.header, record.sums, record.payload);
        let packed_at = self.packed.len();
        if self.pack(payload) {
            header.codec = Codec::Snappy as u8;
            let stored = self.packed.len() - packed_at;
            header.stored_bytes = u32::try_from(stored).expect("shorter than the payload").into();
            header.seal(sums);
        }
        let heads_at = self.heads.len();
        self.heads.extend_from_slice(header.as_bytes());
        self.heads.extend_from_slice(sums.as_bytes());
        self.parts.push(Part::Head(heads_at..self.heads.len()));
        if self.packed.len() > packed_at {
            self.packed.resize(self.packed.len() + header.padding_bytes(), 0);
            self.parts.push(Part::Packed(packed_at..self.packed.len()));
        } else if !payload.is_empty() {
            let pad_at = self.heads.len();
            self.heads.resize(pad_at + header.padding_bytes(), 0);
            self.parts.push(Part::InRing(record.ticket));
            self.parts.push(Part::Head(pad_at..self.heads.len()));
        }
        if self.count == 0 {
            self.first = header.seq();
        }
        self.last = header.seq();
        self.count += 1;
        self.body_bytes += header.record_bytes();
    }

    /// Appends the compressed payload to `packed` where that pays. Data that does not shrink
    /// comes in runs: each failure doubles the number of payloads that are not tried.
    fn pack(&mut self, payload: &[u8]) -> bool {
        if payload.is_empty() {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        match self.compressor.compress(payload) {
            Some(packed) => {
                self.packed.extend_from_slice(packed);
                self.skip_next = 0;
                true
            }
            None => {
                self.skip_next = (self.skip_next * 2 + 1).min(SKIP_MAX);
                self.skip = self.skip_next;
                false
            }
        }
    }

    /// Sends the frame and gives its length in bytes. `ring` is where the records came from, none
    /// of them released since.
    ///
    /// # Errors
    /// As the connection fails; it is of no further use then.
    pub fn send(
        &self,
        context: &FrameContext,
        ring: &Consumer,
        writer: &mut dyn Write,
    ) -> io::Result<u64> {
        let (first, last) =
            if self.count == 0 { (context.prev, context.prev) } else { (self.first, self.last) };
        let fixed = RecordsHeader {
            timeline: context.timeline.0.into(),
            count: self.count.into(),
            epoch: context.epoch.0.into(),
            prev_seq: context.prev.0.into(),
            first_seq: first.0.into(),
            last_seq: last.0.into(),
            token: context.token.map_or(0, |token| token.0).into(),
        };
        let mut slices: Vec<&[u8]> = Vec::with_capacity(self.parts.len() + 2);
        slices.push(fixed.as_bytes());
        slices.extend(self.parts.iter().map(|part| match part {
            Part::Head(range) => &self.heads[range.clone()],
            Part::Packed(range) => &self.packed[range.clone()],
            Part::InRing(ticket) => ring.record(*ticket).payload,
        }));
        let body_sum = sum_parts(&slices);
        let body_bytes = u32::try_from(self.body_bytes).expect("bounded by is_full");
        let header = FrameHeader::for_summed(FrameKind::Records, body_bytes, body_sum);
        slices.insert(0, header.as_bytes());
        write_all(writer, &slices)?;
        Ok((FRAME_HEADER_BYTES + self.body_bytes) as u64)
    }
}

fn write_all(writer: &mut dyn Write, slices: &[&[u8]]) -> io::Result<()> {
    let mut io: Vec<IoSlice<'_>> =
        slices.iter().filter(|slice| !slice.is_empty()).map(|slice| IoSlice::new(slice)).collect();
    let mut rest = io.as_mut_slice();
    while !rest.is_empty() {
        let most = rest.len().min(SLICES_MAX);
        match writer.write_vectored(&rest[..most]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(sent) => IoSlice::advance_slices(&mut rest, sent),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
