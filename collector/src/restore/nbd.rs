//! The client's side of NBD, as far as one disk that a helper serves on a unix socket needs it.
//!
//! One request at a time, simple replies. What the helper answers is checked like any input from
//! outside; it has [`ANSWER_WAIT_MAX`] for each answer.
//!
//! Source: `doc/proto.md` of the NetworkBlockDevice/nbd repository.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tidemark_block::nbd::client::negotiate;

/// Longest wait for one answer; a flush of everything that was written may take long.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(300);
/// Zeroes of one request at most.
pub(super) const ZERO_BYTES_MAX: u64 = 512 << 20;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

#[derive(Clone, Copy)]
enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
    WriteZeroes = 6,
}

/// A disk that is served on a socket.
pub(super) struct NbdDisk {
    stream: UnixStream,
    cookie: u64,
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

impl NbdDisk {
    /// Opens the unnamed export, which has to be of `size_bytes` and to take writes, zeroes and
    /// flushes.
    ///
    /// # Errors
    /// The system's; `InvalidData` when the peer does not speak the protocol.
    pub(super) fn open(stream: UnixStream, size_bytes: u64) -> io::Result<Self> {
        stream.set_read_timeout(Some(ANSWER_WAIT_MAX))?;
        stream.set_write_timeout(Some(ANSWER_WAIT_MAX))?;
        let served = negotiate(&stream, "")?;
        if served.size_bytes != size_bytes {
            let found = served.size_bytes;
            return Err(invalid(format!("a disk of {found} bytes instead of {size_bytes}")));
        }
        if !served.takes_changes() {
            return Err(invalid(format!("flags {:#x} do not do", served.flags)));
        }
        Ok(Self { stream, cookie: 0 })
    }

    pub(super) fn read(&mut self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.request(Command::Read, at, len_of(bytes))?;
        self.reply()?;
        self.stream.read_exact(bytes)
    }

    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.request(Command::Write, at, len_of(bytes))?;
        self.stream.write_all(bytes)?;
        self.reply()
    }

    /// Zeroes at most [`ZERO_BYTES_MAX`].
    pub(super) fn write_zeroes(&mut self, at: u64, len_bytes: u64) -> io::Result<()> {
        let len = u32::try_from(len_bytes).expect("a request has a bound");
        self.request(Command::WriteZeroes, at, len)?;
        self.reply()
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.request(Command::Flush, 0, 0)?;
        self.reply()
    }

    /// Says good-bye; the helper closes the image and ends.
    pub(super) fn disconnect(mut self) -> io::Result<()> {
        self.request(Command::Disconnect, 0, 0)
    }

    fn request(&mut self, command: Command, at: u64, len: u32) -> io::Result<()> {
        self.cookie += 1;
        let mut bytes = [0; 28];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[6..8].copy_from_slice(&(command as u16).to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&at.to_be_bytes());
        bytes[24..].copy_from_slice(&len.to_be_bytes());
        self.stream.write_all(&bytes)
    }

    fn reply(&mut self) -> io::Result<()> {
        let (magic, error, cookie) = (self.u32()?, self.u32()?, self.u64()?);
        if magic != REPLY_MAGIC || cookie != self.cookie {
            return Err(invalid("an answer to another request"));
        }
        match i32::try_from(error) {
            Ok(0) => Ok(()),
            // The protocol's error numbers are those of Linux.
            Ok(errno) => Err(io::Error::from_raw_os_error(errno)),
            Err(_) => Err(invalid(format!("error number {error}"))),
        }
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.bytes().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> io::Result<u64> {
        self.bytes().map(u64::from_be_bytes)
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn len_of(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("a step is short")
}
