//! Requests of the transmission phase: 28 bytes in, a checked command or a refusal out.
//!
//! Parsing knows only the bytes; checking also knows the disk's geometry and what was negotiated.
//! Nothing here does I/O or keeps state.

use crate::device::{DeviceError, Durability, Geometry, ZeroOptions, check_range};
use crate::range::ByteRange;

use super::error::{Access, ErrorCode, Refusal, Violation};
use super::protocol::{REQUEST_BYTES_MAX, REQUEST_MAGIC, command, command_flag};

/// Length of a request before its payload.
pub(super) const REQUEST_BYTES: usize = 28;

/// The client's name for a request, repeated in every reply to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cookie(pub(super) [u8; 8]);

/// A request as received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    flags: u16,
    command: u16,
    pub(super) cookie: Cookie,
    offset: u64,
    len: u32,
}

/// What both sides agreed on in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Negotiated {
    /// Reads are answered by structured replies.
    pub(super) structured: bool,
    /// `base:allocation` may be asked for; implies `structured`.
    pub(super) allocation: bool,
}

/// A request that may be carried out on the disk it was checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Its payload follows on the socket.
    Write { range: ByteRange, durability: Durability },
    /// The client leaves.
    Disconnect,
    /// Anything that needs nothing more from the socket.
    Job(Job),
}

/// A command that a request task carries out by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// `whole`: one content chunk only.
    Read {
        range: ByteRange,
        whole: bool,
    },
    Flush,
    Trim {
        range: ByteRange,
        durability: Durability,
    },
    Cache {
        range: ByteRange,
    },
    WriteZeroes {
        range: ByteRange,
        options: ZeroOptions,
    },
    /// `one`: one extent only.
    BlockStatus {
        range: ByteRange,
        one: bool,
    },
}

impl Request {
    /// Parses a request.
    ///
    /// # Errors
    /// A [`Violation`] when the bytes are not a request, or announce a payload that is too long
    /// to be skipped in good faith.
    pub(super) fn parse(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, Violation> {
        let (magic, bytes) = first::<4, _>(bytes);
        let magic = u32::from_be_bytes(magic);
        if magic != REQUEST_MAGIC {
            return Err(Violation::RequestMagic(magic));
        }
        let (flags, bytes) = first::<2, _>(bytes);
        let (command, bytes) = first::<2, _>(bytes);
        let (cookie, bytes) = first::<8, _>(bytes);
        let (offset, bytes) = first::<8, _>(bytes);
        let (len, _) = first::<4, _>(bytes);
        let request = Self {
            flags: u16::from_be_bytes(flags),
            command: u16::from_be_bytes(command),
            cookie: Cookie(cookie),
            offset: u64::from_be_bytes(offset),
            len: u32::from_be_bytes(len),
        };
        if request.payload_bytes() > REQUEST_BYTES_MAX {
            return Err(Violation::WriteTooLong(request.len));
        }
        Ok(request)
    }

    /// Bytes that follow the request, whether or not it is carried out.
    pub(super) fn payload_bytes(&self) -> u32 {
        if self.command == command::WRITE { self.len } else { 0 }
    }

    /// Checks the request against the disk and the handshake.
    ///
    /// # Errors
    /// The refusal to send; a payload has to be drained first.
    pub(super) fn check(
        &self,
        geometry: &Geometry,
        negotiated: Negotiated,
    ) -> Result<Command, Refusal> {
        self.check_flags(geometry, negotiated)?;
        match self.command {
            command::DISCONNECT => Ok(Command::Disconnect),
            command::WRITE => {
                let range = self.writable_range(geometry, Access::Write)?;
                Ok(Command::Write { range, durability: self.durability() })
            }
            _ => self.check_job(geometry, negotiated).map(Command::Job),
        }
    }

    /// Zeroing may be longer than the largest block size: the kernel's client does not know that
    /// size, and nothing is sent for the zeroes.
    fn check_job(&self, geometry: &Geometry, negotiated: Negotiated) -> Result<Job, Refusal> {
        match self.command {
            command::READ => {
                let whole = !negotiated.structured || self.has(command_flag::DF);
                self.check_read_length(whole && negotiated.structured)?;
                Ok(Job::Read { range: self.range(geometry, Access::Read)?, whole })
            }
            command::FLUSH if self.offset != 0 || self.len != 0 => {
                Err(Refusal::new(ErrorCode::Invalid, "a flush has neither offset nor length"))
            }
            command::FLUSH => Ok(Job::Flush),
            command::TRIM => {
                // It needs no space, so a place beyond the end is a mistake, as it is for a read.
                let range = self.writable_range(geometry, Access::Read)?;
                Ok(Job::Trim { range, durability: self.durability() })
            }
            command::CACHE => Ok(Job::Cache { range: self.range(geometry, Access::Read)? }),
            command::WRITE_ZEROES => {
                let options = ZeroOptions {
                    no_hole: self.has(command_flag::NO_HOLE),
                    fast: self.has(command_flag::FAST_ZERO),
                    durability: self.durability(),
                };
                let range = self.writable_range(geometry, Access::Write)?;
                Ok(Job::WriteZeroes { range, options })
            }
            command::BLOCK_STATUS if !negotiated.allocation => Err(Refusal::new(
                ErrorCode::Invalid,
                "block status needs the context base:allocation, which was not negotiated",
            )),
            // The reply must hold an extent of at least one byte inside the range.
            command::BLOCK_STATUS if self.len == 0 => {
                Err(Refusal::new(ErrorCode::Invalid, "block status of no bytes"))
            }
            command::BLOCK_STATUS => Ok(Job::BlockStatus {
                range: self.range(geometry, Access::Read)?,
                one: self.has(command_flag::REQ_ONE),
            }),
            _ => Err(Refusal::new(ErrorCode::Invalid, "unknown command")),
        }
    }

    /// FUA is taken on every command, as clients are known to send it on reads too.
    fn check_flags(&self, geometry: &Geometry, negotiated: Negotiated) -> Result<(), Refusal> {
        let allowed = match self.command {
            command::READ if negotiated.structured => command_flag::DF,
            command::WRITE_ZEROES if geometry.fast_zero => {
                command_flag::NO_HOLE | command_flag::FAST_ZERO
            }
            command::WRITE_ZEROES => command_flag::NO_HOLE,
            command::BLOCK_STATUS => command_flag::REQ_ONE,
            _ => 0,
        };
        // A disconnect is obeyed whatever its flags are.
        if self.flags & !(allowed | command_flag::FUA) == 0 || self.command == command::DISCONNECT {
            Ok(())
        } else {
            Err(Refusal::new(ErrorCode::Invalid, "a flag that this command does not have"))
        }
    }

    fn check_read_length(&self, unfragmented: bool) -> Result<(), Refusal> {
        if self.len <= REQUEST_BYTES_MAX {
            return Ok(());
        }
        let code = if unfragmented { ErrorCode::Overflow } else { ErrorCode::Invalid };
        Err(Refusal::new(code, "a read has at most 32 MiB"))
    }

    fn writable_range(&self, geometry: &Geometry, access: Access) -> Result<ByteRange, Refusal> {
        if geometry.read_only {
            return Err(Refusal::from_device(&DeviceError::ReadOnly, Access::Write));
        }
        self.range(geometry, access)
    }

    fn range(&self, geometry: &Geometry, access: Access) -> Result<ByteRange, Refusal> {
        let Some(range) = ByteRange::new(self.offset, u64::from(self.len)) else {
            let code = match access {
                Access::Read => ErrorCode::Invalid,
                Access::Write | Access::FastZero => ErrorCode::NoSpace,
            };
            return Err(Refusal::new(code, "the range ends beyond 64 bits"));
        };
        match check_range(geometry, range) {
            Ok(()) => Ok(range),
            Err(error) => Err(Refusal::from_device(&error, access)),
        }
    }

    fn durability(&self) -> Durability {
        if self.has(command_flag::FUA) { Durability::Stable } else { Durability::Cached }
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// Splits a fixed number of bytes off the front of a slice that is known to hold them.
fn first<const N: usize, B: AsRef<[u8]> + ?Sized>(bytes: &B) -> ([u8; N], &[u8]) {
    let (front, rest) = bytes.as_ref().split_first_chunk::<N>().expect("28 bytes hold all fields");
    (*front, rest)
}
