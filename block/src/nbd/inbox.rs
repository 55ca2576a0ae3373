//! Bytes that have come from a client and wait to be understood.
//!
//! A request's payload is received straight into the memory the device gave for it, and the same
//! call takes in the next request. While no payloads come, one call takes in many requests; if it
//! catches the front of a payload, that part is copied. Bounded by one receive beyond a request.

use std::io;

use crate::chunk::Chunk;
use crate::device::Payload;
use crate::engine::socket::Stream;

use super::error::ConnectionError;
use super::request::{REQUEST_BYTES, Request};

/// Bytes taken in at once while no payloads come.
const BATCH_BYTES: usize = 1024;
/// Bytes of a payload that nobody wants, taken in at once.
const DISCARD_BYTES: usize = 64 * 1024;

/// See the module's text.
pub(super) struct Inbox {
    bytes: Box<[u8; BATCH_BYTES + REQUEST_BYTES]>,
    start: usize,
    end: usize,
    /// Where the kernel puts requests; absent only while a receive runs.
    batch: Option<Chunk>,
    /// The same for one request, behind a payload.
    single: Option<Chunk>,
    after_payload: bool,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            bytes: Box::new([0; BATCH_BYTES + REQUEST_BYTES]),
            start: 0,
            end: 0,
            batch: Some(Chunk::zeroed(BATCH_BYTES)),
            single: Some(Chunk::zeroed(REQUEST_BYTES)),
            after_payload: false,
        }
    }

    /// The next request, or `None` when the client hung up between two.
    pub(super) async fn request(
        &mut self,
        stream: &Stream,
    ) -> Result<Option<Request>, ConnectionError> {
        loop {
            if let Some(bytes) = self.bytes[self.start..self.end].first_chunk::<REQUEST_BYTES>() {
                let request = Request::parse(bytes)?;
                self.start += REQUEST_BYTES;
                return Ok(Some(request));
            }
            if self.receive(stream).await? == 0 {
                if self.start == self.end {
                    return Ok(None);
                }
                return Err(socket_error("receiving a request")(
                    io::ErrorKind::UnexpectedEof.into(),
                ));
            }
        }
    }

    /// Fills a payload.
    pub(super) async fn payload<P: Payload>(
        &mut self,
        stream: &Stream,
        mut payload: P,
    ) -> Result<P, ConnectionError> {
        let wanted = payload.bytes_mut();
        let wanted_bytes = wanted.len();
        let filled = wanted_bytes.min(self.end - self.start);
        wanted[..filled].copy_from_slice(&self.bytes[self.start..self.start + filled]);
        self.start += filled;
        self.after_payload = true;
        if filled == wanted_bytes {
            return Ok(payload);
        }
        let next = self.single.take().expect("one receive at a time");
        let rest = Rest { payload, filled };
        let (result, rest, next) = stream.recv_payload(rest, next).await;
        let took = result.map(|next_bytes| self.append(&next, next_bytes));
        self.single = Some(next);
        took.map_err(socket_error("receiving a payload"))?;
        Ok(rest.payload)
    }

    /// Takes in bytes of a payload and drops them.
    pub(super) async fn discard(
        &mut self,
        stream: &Stream,
        payload_bytes: u64,
    ) -> Result<(), ConnectionError> {
        let mut left = usize::try_from(payload_bytes).expect("payloads have at most 32 MiB");
        while left > 0 {
            let piece = left.min(DISCARD_BYTES);
            self.payload(stream, Unwanted(vec![0; piece].into_boxed_slice())).await?;
            left -= piece;
        }
        Ok(())
    }

    async fn receive(&mut self, stream: &Stream) -> Result<usize, ConnectionError> {
        // Behind a payload another one is likely, and of that nothing should be caught here.
        let place = if self.after_payload { &mut self.single } else { &mut self.batch };
        let chunk = place.take().expect("one receive at a time");
        let (result, chunk) = stream.recv(chunk).await;
        let received = result.inspect(|bytes| self.append(&chunk, *bytes));
        if self.after_payload {
            self.single = Some(chunk);
        } else {
            self.batch = Some(chunk);
        }
        self.after_payload = false;
        received.map_err(socket_error("receiving a request"))
    }

    /// Called with less than a request waiting, so a batch fits behind it.
    fn append(&mut self, chunk: &Chunk, bytes: usize) {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        self.bytes[self.end..self.end + bytes].copy_from_slice(&chunk.as_slice()[..bytes]);
        self.end += bytes;
    }
}

/// Puts a socket's failure into words.
pub(super) fn socket_error(doing: &'static str) -> impl FnOnce(io::Error) -> ConnectionError {
    move |source| ConnectionError::Socket { doing, source }
}

/// A payload whose front is filled.
struct Rest<P> {
    payload: P,
    filled: usize,
}

impl<P: Payload> Payload for Rest<P> {
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.payload.bytes_mut()[self.filled..]
    }
}

/// A payload that is received to be dropped.
struct Unwanted(Box<[u8]>);

impl Payload for Unwanted {
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
