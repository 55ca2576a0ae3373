//! A file or block device, read and written at offsets through the ring.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use io_uring::{opcode, squeue, types};

use super::op::{Op, Operation};
use crate::chunk::Chunk;
use crate::device::Durability;
use crate::range::ByteRange;

/// An open file. Executors of several threads may use it at the same time.
#[derive(Debug)]
pub struct File {
    fd: OwnedFd,
}

impl From<OwnedFd> for File {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl From<std::fs::File> for File {
    fn from(file: std::fs::File) -> Self {
        Self { fd: file.into() }
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl File {
    /// Reads at most `buf.len()` bytes at `offset` (in bytes; 0 for what has no positions).
    /// Gives the number of bytes and the buffer back.
    pub async fn read_at(&self, buf: Chunk, offset: u64) -> (io::Result<usize>, Chunk) {
        let operation = Read { fd: self.as_fd(), buf, done: 0, offset };
        let (result, operation) = Op::new(operation).await;
        (result.map(|bytes| bytes as usize), operation.buf)
    }

    /// Fills the buffer from `offset` (in bytes) on.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before; otherwise the operating system's.
    pub async fn read_exact_at(&self, buf: Chunk, offset: u64) -> (io::Result<()>, Chunk) {
        let mut operation = Read { fd: self.as_fd(), buf, done: 0, offset };
        while operation.done < operation.buf.len() {
            let (result, back) = Op::new(operation).await;
            operation = back;
            match result {
                Ok(0) => return (Err(ended(operation.done)), operation.buf),
                Ok(bytes) => operation.done += bytes as usize,
                Err(error) => return (Err(error), operation.buf),
            }
        }
        (Ok(()), operation.buf)
    }

    /// Writes at most `buf.len()` bytes at `offset` (in bytes) and gives the number of bytes and
    /// the buffer back. [`Durability::Stable`]: the bytes, and what is needed to read them, are on
    /// stable storage on return.
    pub async fn write_at(
        &self,
        buf: Chunk,
        offset: u64,
        durability: Durability,
    ) -> (io::Result<usize>, Chunk) {
        let operation = Write { fd: self.as_fd(), buf, done: 0, offset, durability };
        let (result, operation) = Op::new(operation).await;
        (result.map(|bytes| bytes as usize), operation.buf)
    }

    /// Writes the whole buffer, as [`File::write_at`] does with as much as fits.
    ///
    /// # Errors
    /// The operating system's; how much was written is then unknown.
    pub async fn write_all_at(
        &self,
        buf: Chunk,
        offset: u64,
        durability: Durability,
    ) -> (io::Result<()>, Chunk) {
        let mut operation = Write { fd: self.as_fd(), buf, done: 0, offset, durability };
        while operation.done < operation.buf.len() {
            let (result, back) = Op::new(operation).await;
            operation = back;
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), operation.buf),
                Ok(bytes) => operation.done += bytes as usize,
                Err(error) => return (Err(error), operation.buf),
            }
        }
        (Ok(()), operation.buf)
    }

    /// Puts everything written before this call on stable storage, with the metadata needed to
    /// read it.
    ///
    /// # Errors
    /// The operating system's; what was written since the last success is then unknown.
    pub async fn datasync(&self) -> io::Result<()> {
        Op::new(Sync { fd: self.as_fd() }).await.0.map(|_| ())
    }

    /// `fallocate` with the given `FALLOC_FL_*` flags.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn fallocate(&self, mode: i32, range: ByteRange) -> io::Result<()> {
        Op::new(Fallocate { fd: self.as_fd(), mode, range }).await.0.map(|_| ())
    }
}

fn ended(done: usize) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("the file ends {done} bytes further on"))
}

/// Address and length of what is behind the first `done` bytes. The kernel moves at most 2 GiB
/// minus a page at a time, so a longer rest is cut.
fn rest_of(buf: &Chunk, done: usize) -> (*mut u8, u32) {
    assert!(done <= buf.len(), "more bytes were moved than there are");
    (buf.as_ptr().wrapping_add(done), u32::try_from(buf.len() - done).unwrap_or(u32::MAX))
}

struct Read<'a> {
    fd: BorrowedFd<'a>,
    buf: Chunk,
    done: usize,
    offset: u64,
}

// SAFETY: the entry points to the memory of `buf`, which the operation holds.
unsafe impl Operation for Read<'_> {
    fn entry(&mut self) -> squeue::Entry {
        let (start, len) = rest_of(&self.buf, self.done);
        opcode::Read::new(types::Fd(self.fd.as_raw_fd()), start, len)
            .offset(self.offset + self.done as u64)
            .build()
    }
}

struct Write<'a> {
    fd: BorrowedFd<'a>,
    buf: Chunk,
    done: usize,
    offset: u64,
    durability: Durability,
}

// SAFETY: the entry points to the memory of `buf`, which the operation holds; the kernel reads it.
unsafe impl Operation for Write<'_> {
    fn entry(&mut self) -> squeue::Entry {
        let flags = match self.durability {
            Durability::Cached => 0,
            Durability::Stable => libc::RWF_DSYNC,
        };
        let (start, len) = rest_of(&self.buf, self.done);
        opcode::Write::new(types::Fd(self.fd.as_raw_fd()), start, len)
            .offset(self.offset + self.done as u64)
            .rw_flags(flags)
            .build()
    }
}

struct Sync<'a> {
    fd: BorrowedFd<'a>,
}

// SAFETY: the entry points to no memory.
unsafe impl Operation for Sync<'_> {
    fn entry(&mut self) -> squeue::Entry {
        opcode::Fsync::new(types::Fd(self.fd.as_raw_fd()))
            .flags(types::FsyncFlags::DATASYNC)
            .build()
    }
}

struct Fallocate<'a> {
    fd: BorrowedFd<'a>,
    mode: i32,
    range: ByteRange,
}

// SAFETY: the entry points to no memory.
unsafe impl Operation for Fallocate<'_> {
    fn entry(&mut self) -> squeue::Entry {
        opcode::Fallocate::new(types::Fd(self.fd.as_raw_fd()), self.range.len())
            .offset(self.range.start())
            .mode(self.mode)
            .build()
    }
}
