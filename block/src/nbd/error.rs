//! Why a connection ends, and how a device's failure is told to a client.
//!
//! A [`Violation`] costs the peer its connection and nothing else. A [`Refusal`] answers one
//! request; the connection goes on.

use std::borrow::Cow;
use std::io;

use crate::device::DeviceError;

use super::protocol::{OPTION_BYTES_MAX, REQUEST_BYTES_MAX};

/// A breach of the protocol by the peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("client flags {0:#010x} contain unknown ones")]
    ClientFlags(u32),
    #[error("an option began with {0:#018x} and not with its magic number")]
    OptionMagic(u64),
    #[error("option {option} carries {data_bytes} bytes, {OPTION_BYTES_MAX} are allowed")]
    OptionTooLong { option: u32, data_bytes: u32 },
    #[error("more than {0} options without choosing an export")]
    TooManyOptions(u32),
    #[error("a request began with {0:#010x} and not with its magic number")]
    RequestMagic(u32),
    #[error("a write of {0} bytes, {REQUEST_BYTES_MAX} are allowed")]
    WriteTooLong(u32),
    #[error("the rest of a payload did not come within {0} seconds")]
    PayloadStalled(u64),
    #[error("no export was chosen within {0} seconds")]
    HandshakeTooSlow(u64),
}

/// Why a connection ended other than by the client's own wish.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    /// The peer broke the protocol.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// `NBD_OPT_EXPORT_NAME` named an export that is not there; it has no error reply.
    #[error("there is no export named {0:?}")]
    NoSuchExport(String),
    /// The socket failed, or the peer left in the middle of a message.
    #[error("{doing}: {source}")]
    Socket {
        doing: &'static str,
        #[source]
        source: io::Error,
    },
    /// The worker's task table is full.
    #[error("its worker has no room for the tasks of another connection; raise `tasks_max`")]
    WorkerFull,
    /// A read failed after the head of its reply had been sent without an error; simple replies
    /// have no other way to say so than to hang up.
    #[error("the disk failed in the middle of a reply that had begun: {0}")]
    ReplyBroken(DeviceError),
}

/// The protocol's error values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum ErrorCode {
    NotPermitted = 1,
    Io = 5,
    Invalid = 22,
    NoSpace = 28,
    Overflow = 75,
    NotSupported = 95,
    ShuttingDown = 108,
}

/// Longest message sent with an error; longer ones are cut.
pub(super) const MESSAGE_BYTES_MAX: usize = 256;

/// The answer to a request that is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: ErrorCode,
    pub(super) message: Cow<'static, str>,
}

impl Refusal {
    pub(super) fn new(code: ErrorCode, message: &'static str) -> Self {
        Self { code, message: Cow::Borrowed(message) }
    }

    /// Turns a device's failure into the protocol's terms. `access` decides between the two
    /// values that a range beyond the end has.
    pub(super) fn from_device(error: &DeviceError, access: Access) -> Self {
        let code = match error {
            DeviceError::OutOfRange { range, size_bytes }
                if access == Access::Write && range.end() > *size_bytes =>
            {
                ErrorCode::NoSpace
            }
            DeviceError::OutOfRange { .. } => ErrorCode::Invalid,
            DeviceError::ReadOnly => ErrorCode::NotPermitted,
            DeviceError::Unsupported(_) if access == Access::FastZero => ErrorCode::NotSupported,
            DeviceError::Unsupported(_) => ErrorCode::Invalid,
            DeviceError::NoSpace => ErrorCode::NoSpace,
            DeviceError::ShuttingDown => ErrorCode::ShuttingDown,
            DeviceError::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull
                | io::ErrorKind::QuotaExceeded
                | io::ErrorKind::FileTooLarge => ErrorCode::NoSpace,
                _ => ErrorCode::Io,
            },
            DeviceError::Damaged { .. } => ErrorCode::Io,
        };
        Self { code, message: Cow::Owned(error.to_string()) }
    }

    /// The message, cut to what is sent, at the boundary of a character.
    pub(super) fn message_sent(&self) -> &str {
        &self.message[..self.message.floor_char_boundary(MESSAGE_BYTES_MAX)]
    }
}

/// What a request does to the disk, as far as the choice of an error value depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    /// A zeroing that must be fast or fail; the one place for [`ErrorCode::NotSupported`].
    FastZero,
}
