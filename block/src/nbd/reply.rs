//! Replies of the transmission phase: a typed reply in, the bytes before its payload out.
//!
//! The payload of a read is never copied: it follows as a chunk of its own.

use crate::chunk::Chunk;
use crate::device::StatusExtent;
use crate::range::ByteRange;

use super::error::{MESSAGE_BYTES_MAX, Refusal};
use super::protocol::{
    ALLOCATION_CONTEXT_ID, SIMPLE_REPLY_MAGIC, STATE_HOLE, STATE_ZERO, STRUCTURED_REPLY_MAGIC,
    reply,
};
use super::request::Cookie;

/// One message to the client, to be sent in one piece.
pub(super) enum Reply {
    /// Success without payload, in the short form that is always allowed except for reads.
    Done { cookie: Cookie },
    /// Failure without payload, in the short form.
    Failed { cookie: Cookie, refusal: Refusal },
    /// The whole answer to a read without structured replies.
    SimpleData { cookie: Cookie, data: Chunk },
    /// Success of a structured reply that ends without content.
    Finished { cookie: Cookie },
    /// Content of a structured reply.
    Data { cookie: Cookie, offset: u64, data: Chunk, last: bool },
    /// Zeroes of a structured reply; at most 32 bits long, as requests are.
    Hole { cookie: Cookie, range: ByteRange, last: bool },
    /// Failure as the end of a structured reply, at an offset when a part had been read.
    Error { cookie: Cookie, refusal: Refusal, at: Option<u64> },
    /// Answer to a block status.
    Status { cookie: Cookie, extents: Box<[Descriptor]> },
    /// Head of a reply whose payload follows in pieces; `structured_at` gives the offset and so
    /// the form of the reply. Never the last one of a structured reply.
    StreamHead { cookie: Cookie, payload_bytes: u32, structured_at: Option<u64> },
    /// The next piece of such a payload.
    StreamPiece { data: Chunk },
}

/// Most extents in one answer to a block status.
pub(super) const EXTENTS_MAX: usize = 128;

/// Most bytes that one reply puts before its payload.
pub(super) const HEAD_BYTES_MAX: usize = {
    let status = 20 + 4 + 8 * EXTENTS_MAX;
    let error = 20 + 4 + 2 + MESSAGE_BYTES_MAX + 8;
    if status > error { status } else { error }
};

/// An extent as it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    len_bytes: u32,
    state: u32,
}

/// Brings a device's extents into the protocol's form: neighbours that are alike joined, nothing
/// beyond `range`, nothing empty, at most `max` of them. What the device left out at the end is
/// left out here too; of a device that said nothing at all nothing special is claimed.
pub(super) fn descriptors(
    range: ByteRange,
    extents: &[StatusExtent],
    max: usize,
) -> Box<[Descriptor]> {
    let mut left = u32::try_from(range.len()).unwrap_or(u32::MAX);
    let mut joined: Vec<Descriptor> = Vec::with_capacity(extents.len().clamp(1, max));
    for extent in extents {
        let len_bytes = u32::try_from(extent.len_bytes).map_or(left, |len| len.min(left));
        let hole = if extent.hole { STATE_HOLE } else { 0 };
        let zero = if extent.zero { STATE_ZERO } else { 0 };
        let state = hole | zero;
        let full = joined.len() == max;
        match joined.last_mut() {
            _ if len_bytes == 0 => continue,
            Some(last) if last.state == state => last.len_bytes += len_bytes,
            _ if full => break,
            _ => joined.push(Descriptor { len_bytes, state }),
        }
        left -= len_bytes;
    }
    if joined.is_empty() {
        joined.push(Descriptor { len_bytes: left, state: 0 });
    }
    joined.into_boxed_slice()
}

impl Reply {
    /// Writes what comes before the payload to the front of `out`, which holds at least
    /// [`HEAD_BYTES_MAX`], and gives its length and the payload.
    pub(super) fn encode(self, out: &mut [u8]) -> (usize, Option<Chunk>) {
        let mut head = Head { out, len: 0 };
        let payload = match self {
            Self::Done { cookie } => {
                head.simple(0, cookie);
                None
            }
            Self::Failed { cookie, refusal } => {
                head.simple(refusal.code as u32, cookie);
                None
            }
            Self::SimpleData { cookie, data } => {
                head.simple(0, cookie);
                Some(data)
            }
            Self::Finished { cookie } => {
                head.structured(true, reply::NONE, cookie, 0);
                None
            }
            Self::Data { cookie, offset, data, last } => {
                let len = u32::try_from(data.len()).expect("content comes in pieces of 256 KiB");
                head.structured(last, reply::OFFSET_DATA, cookie, len + 8);
                head.put(&offset.to_be_bytes());
                Some(data)
            }
            Self::Hole { cookie, range, last } => {
                let len = u32::try_from(range.len()).expect("requests have 32 bits of length");
                head.structured(last, reply::OFFSET_HOLE, cookie, 12);
                head.put(&range.start().to_be_bytes());
                head.put(&len.to_be_bytes());
                None
            }
            Self::Error { cookie, refusal, at } => {
                head.error(cookie, &refusal, at);
                None
            }
            Self::Status { cookie, extents } => {
                head.status(cookie, &extents);
                None
            }
            Self::StreamHead { cookie, payload_bytes, structured_at: None } => {
                debug_assert!(payload_bytes > 0, "an empty payload needs no pieces");
                head.simple(0, cookie);
                None
            }
            Self::StreamHead { cookie, payload_bytes, structured_at: Some(offset) } => {
                head.structured(false, reply::OFFSET_DATA, cookie, payload_bytes + 8);
                head.put(&offset.to_be_bytes());
                None
            }
            Self::StreamPiece { data } => Some(data),
        };
        (head.len, payload)
    }
}

/// Bytes being written to the front of a buffer.
struct Head<'a> {
    out: &'a mut [u8],
    len: usize,
}

impl Head<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.out[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn simple(&mut self, error: u32, cookie: Cookie) {
        self.put(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        self.put(&error.to_be_bytes());
        self.put(&cookie.0);
    }

    fn structured(&mut self, last: bool, kind: u16, cookie: Cookie, payload_bytes: u32) {
        let flags = if last { reply::FLAG_DONE } else { 0 };
        self.put(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
        self.put(&flags.to_be_bytes());
        self.put(&kind.to_be_bytes());
        self.put(&cookie.0);
        self.put(&payload_bytes.to_be_bytes());
    }

    fn error(&mut self, cookie: Cookie, refusal: &Refusal, at: Option<u64>) {
        let message = refusal.message_sent().as_bytes();
        let message_bytes = u16::try_from(message.len()).expect("messages are cut to 256 bytes");
        let (kind, tail_bytes) =
            if at.is_some() { (reply::ERROR_OFFSET, 8) } else { (reply::ERROR, 0) };
        self.structured(true, kind, cookie, 6 + u32::from(message_bytes) + tail_bytes);
        self.put(&(refusal.code as u32).to_be_bytes());
        self.put(&message_bytes.to_be_bytes());
        self.put(message);
        if let Some(offset) = at {
            self.put(&offset.to_be_bytes());
        }
    }

    fn status(&mut self, cookie: Cookie, extents: &[Descriptor]) {
        let count = u32::try_from(extents.len()).expect("at most EXTENTS_MAX extents");
        self.structured(true, reply::BLOCK_STATUS, cookie, 4 + 8 * count);
        self.put(&ALLOCATION_CONTEXT_ID.to_be_bytes());
        for extent in extents {
            self.put(&extent.len_bytes.to_be_bytes());
            self.put(&extent.state.to_be_bytes());
        }
    }
}
