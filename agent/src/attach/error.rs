//! Why a block device could not be made, taken over or taken down.

use std::fmt;
use std::io;
use std::path::Path;

/// What is wrong, and with it what the caller does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachErrorKind {
    /// This machine or this configuration has not got the way asked for: choose another one, or
    /// supply what the text names.
    Unavailable,
    /// Somebody uses the device: let go of it and ask again.
    InUse,
    /// The agent's own NBD server or FUSE file did not answer as it should.
    Server,
    /// The kernel refused a call.
    Kernel,
    /// The device is there and does not answer, or not in time.
    NotAnswering,
    /// The device could not be flushed; it stays attached.
    Flush,
    /// There is no such device any more, or it is somebody else's by now.
    Gone,
}

/// A device that could not be attached, taken over or detached.
#[derive(Debug, thiserror::Error)]
pub struct AttachError {
    /// What is wrong.
    pub kind: AttachErrorKind,
    /// The volume's name or the device's path.
    pub subject: String,
    /// What happened and what to do, for a person.
    pub detail: String,
    /// The operating system's error, where there is one.
    #[source]
    pub source: Option<io::Error>,
}

impl AttachError {
    pub(super) fn new(
        kind: AttachErrorKind,
        subject: impl Into<String>,
        detail: impl Into<String>,
    ) -> Self {
        Self { kind, subject: subject.into(), detail: detail.into(), source: None }
    }

    /// A system call on `device` that failed while `doing`.
    pub(super) fn io(
        kind: AttachErrorKind,
        device: &Path,
        doing: impl Into<String>,
        source: io::Error,
    ) -> Self {
        Self {
            kind,
            subject: device.display().to_string(),
            detail: doing.into(),
            source: Some(source),
        }
    }
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.detail)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}
