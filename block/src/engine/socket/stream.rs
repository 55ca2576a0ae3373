//! A connected stream socket.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use io_uring::{opcode, squeue, types};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::chunk::Chunk;
use crate::device::Payload;
use crate::engine::op::{Op, Operation};

/// Most chunks in a [`Parts`].
pub const PARTS_MAX: usize = 64;

const NOTHING: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// Chunks to be sent one behind the other, in memory that is allocated once.
pub struct Parts {
    chunks: Vec<Chunk>,
    vectors: Box<[libc::iovec; PARTS_MAX]>,
}

// SAFETY: the vectors are only a place to write addresses of `chunks` to, right before each use.
unsafe impl Send for Parts {}

impl Parts {
    /// An empty list with room for [`PARTS_MAX`] chunks.
    #[must_use]
    pub fn new() -> Self {
        Self { chunks: Vec::with_capacity(PARTS_MAX), vectors: Box::new([NOTHING; PARTS_MAX]) }
    }

    /// Appends a chunk.
    ///
    /// # Errors
    /// The chunk, when there are [`PARTS_MAX`] of them.
    pub fn push(&mut self, chunk: Chunk) -> Result<(), Chunk> {
        if self.chunks.len() == PARTS_MAX {
            return Err(chunk);
        }
        self.chunks.push(chunk);
        Ok(())
    }

    /// Number of chunks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    /// True when there is no chunk.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Number of bytes in all chunks.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.chunks.iter().map(Chunk::len).sum()
    }

    /// Drops every chunk and keeps the memory of the list.
    pub fn clear(&mut self) {
        self.chunks.clear();
    }

    /// Takes the chunks out, first one first, and keeps the memory of the list.
    pub fn drain(&mut self) -> impl Iterator<Item = Chunk> + '_ {
        self.chunks.drain(..)
    }

    /// The addresses of everything behind the first `skipped` bytes.
    pub(super) fn listed_from(&mut self, skipped: usize) -> &mut [libc::iovec] {
        let mut skip = skipped;
        let mut used = 0;
        for chunk in &self.chunks {
            let from = skip.min(chunk.len());
            skip -= from;
            if from == chunk.len() {
                continue;
            }
            self.vectors[used] = libc::iovec {
                iov_base: chunk.as_ptr().wrapping_add(from).cast(),
                iov_len: chunk.len() - from,
            };
            used += 1;
        }
        &mut self.vectors[..used]
    }
}

impl Default for Parts {
    fn default() -> Self {
        Self::new()
    }
}

/// A connected socket.
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
}

impl From<UnixStream> for Stream {
    fn from(socket: UnixStream) -> Self {
        Self::from_fd(socket.into())
    }
}

impl From<TcpStream> for Stream {
    fn from(socket: TcpStream) -> Self {
        Self::from_fd(socket.into())
    }
}

impl Stream {
    pub(super) fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Receives at least one and at most `buf.len()` bytes; 0 means that the peer has closed.
    pub async fn recv(&self, buf: Chunk) -> (io::Result<usize>, Chunk) {
        let operation = Recv { fd: self.fd.as_fd(), buf, filled: 0, flags: 0 };
        let (result, operation) = Op::new(operation).await;
        (result.map(|bytes| bytes as usize), operation.buf)
    }

    /// Fills the buffer.
    ///
    /// # Errors
    /// `UnexpectedEof` when the peer closed before; otherwise the operating system's.
    pub async fn recv_exact(&self, buf: Chunk) -> (io::Result<()>, Chunk) {
        let mut operation = Recv { fd: self.fd.as_fd(), buf, filled: 0, flags: libc::MSG_WAITALL };
        while operation.filled < operation.buf.len() {
            let (result, back) = Op::new(operation).await;
            operation = back;
            match result {
                Ok(0) => return (Err(closed()), operation.buf),
                Ok(bytes) => operation.filled += bytes as usize,
                Err(error) => return (Err(error), operation.buf),
            }
        }
        (Ok(()), operation.buf)
    }

    /// Fills `payload`, and takes with the same call as much of `next` as has arrived behind it:
    /// the next request's header, most of the time. Returns the number of bytes in `next`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the peer closed before the payload was complete; otherwise the
    /// operating system's.
    pub async fn recv_payload<P: Payload>(
        &self,
        payload: P,
        next: Chunk,
    ) -> (io::Result<usize>, P, Chunk) {
        let mut operation = RecvPair::new(self.fd.as_fd(), payload, next);
        let payload_len = operation.payload.bytes_mut().len();
        while operation.filled < payload_len {
            let (result, back) = Op::new(operation).await;
            operation = back;
            match result {
                Ok(0) => return (Err(closed()), operation.payload, operation.next),
                Ok(bytes) => operation.filled += bytes as usize,
                Err(error) => return (Err(error), operation.payload, operation.next),
            }
        }
        (Ok(operation.filled - payload_len), operation.payload, operation.next)
    }

    /// Sends every byte of every part, in order.
    ///
    /// # Errors
    /// `BrokenPipe` or `ConnectionReset` when the peer is gone; otherwise the operating system's.
    /// How much was sent is then unknown.
    pub async fn send_all(&self, parts: Parts) -> (io::Result<()>, Parts) {
        let total = parts.len_bytes();
        let mut operation =
            SendParts { fd: self.fd.as_fd(), parts, sent: 0, message: no_message() };
        while operation.sent < total {
            let (result, back) = Op::new(operation).await;
            operation = back;
            match result {
                Ok(bytes) => operation.sent += bytes as usize,
                Err(error) => return (Err(error), operation.parts),
            }
        }
        (Ok(()), operation.parts)
    }

    /// True when neither direction is open any more, also while some of what the peer sent has not
    /// been received. Of a TCP connection that shows only when something was sent to a peer that
    /// has closed it.
    #[must_use]
    pub fn is_hung_up(&self) -> bool {
        // Hanging up is told unasked.
        let mut polled = [PollFd::new(self.fd.as_fd(), PollFlags::empty())];
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Closes both directions; a pending receive ends with 0 bytes, a pending send with an error.
    pub fn shutdown(&self) {
        // SAFETY: the descriptor is open. The result is ignored: it fails only when the peer has
        // closed the connection already.
        unsafe { libc::shutdown(self.fd.as_raw_fd(), libc::SHUT_RDWR) };
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed the connection")
}

fn no_message() -> libc::msghdr {
    // SAFETY: null pointers and zero lengths are a valid message header.
    unsafe { std::mem::zeroed() }
}

struct Recv<'a> {
    fd: BorrowedFd<'a>,
    buf: Chunk,
    filled: usize,
    flags: i32,
}

// SAFETY: the entry points to the memory of `buf`, which the operation holds.
unsafe impl Operation for Recv<'_> {
    fn entry(&mut self) -> squeue::Entry {
        let rest = self.buf.len() - self.filled;
        let start = self.buf.as_ptr().wrapping_add(self.filled);
        let len = u32::try_from(rest).unwrap_or(u32::MAX);
        opcode::Recv::new(types::Fd(self.fd.as_raw_fd()), start, len).flags(self.flags).build()
    }
}

struct RecvPair<'a, P> {
    fd: BorrowedFd<'a>,
    payload: P,
    next: Chunk,
    filled: usize,
    vectors: [libc::iovec; 2],
    message: libc::msghdr,
}

impl<'a, P: Payload> RecvPair<'a, P> {
    fn new(fd: BorrowedFd<'a>, payload: P, next: Chunk) -> Self {
        Self { fd, payload, next, filled: 0, vectors: [NOTHING; 2], message: no_message() }
    }
}

// SAFETY: the entry points to `message`, which points to `vectors`, both inside the operation;
// those point to the memory of `next` and to what `bytes_mut` lent. That may be inside the
// payload, which does not move and runs no code of its own until the completion, or owned by it.
unsafe impl<P: Payload> Operation for RecvPair<'_, P> {
    fn entry(&mut self) -> squeue::Entry {
        let bytes = self.payload.bytes_mut();
        let filled = self.filled.min(bytes.len());
        let rest = &mut bytes[filled..];
        self.vectors = [
            libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() },
            libc::iovec { iov_base: self.next.as_ptr().cast(), iov_len: self.next.len() },
        ];
        self.message.msg_iov = self.vectors.as_mut_ptr();
        self.message.msg_iovlen = self.vectors.len();
        opcode::RecvMsg::new(types::Fd(self.fd.as_raw_fd()), &raw mut self.message).build()
    }
}

struct SendParts<'a> {
    fd: BorrowedFd<'a>,
    parts: Parts,
    sent: usize,
    message: libc::msghdr,
}

// SAFETY: the entry points to `message` inside the operation, which points to the vectors of
// `parts`, which point to its chunks; all live as long as the operation.
unsafe impl Operation for SendParts<'_> {
    fn entry(&mut self) -> squeue::Entry {
        let vectors = self.parts.listed_from(self.sent);
        self.message.msg_iov = vectors.as_mut_ptr();
        self.message.msg_iovlen = vectors.len();
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL).unsigned_abs();
        opcode::SendMsg::new(types::Fd(self.fd.as_raw_fd()), &raw const self.message)
            .flags(flags)
            .build()
    }
}
