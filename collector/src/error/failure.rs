//! The error of everything in the collector that a person asks for: control API, catalog,
//! exports, restores, the daemon itself.
//!
//! The kind says what the caller can do, the message says what happened to which volume or
//! file, the hint says what to do about it. Journal and view have errors of their own, since a
//! program decides on them; they are the source of these.

use std::fmt;
use std::io;
use std::path::Path;

/// What the caller can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The thing that was named does not exist.
    NotFound,
    /// The request or the configuration makes no sense.
    Invalid,
    /// It does not fit the state of things.
    Conflict,
    /// Not possible now; later it may be.
    Unavailable,
    /// The collector has a problem of its own.
    Internal,
}

impl FailureKind {
    const ALL: [Self; 5] =
        [Self::NotFound, Self::Invalid, Self::Conflict, Self::Unavailable, Self::Internal];

    /// The word in the API and in the catalog.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotFound => "not-found",
            Self::Invalid => "invalid",
            Self::Conflict => "conflict",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }

    /// From its word.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Something that was asked for and could not be done.
#[derive(Debug)]
pub struct Failure {
    /// What the caller can do.
    pub kind: FailureKind,
    /// What happened, to which volume or file.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What operations of this crate return.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// An error with neither hint nor source.
    #[must_use]
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, source: None }
    }

    /// The named thing does not exist.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(FailureKind::NotFound, message)
    }

    /// The request makes no sense.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Invalid, message)
    }

    /// It does not fit the state of things.
    #[must_use]
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Conflict, message)
    }

    /// Not possible now.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Unavailable, message)
    }

    /// A problem of the collector's own.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Internal, message)
    }

    /// A failed operation on a file, with a hint where the system's error suggests one.
    #[must_use]
    pub fn io(doing: &str, path: &Path, source: io::Error) -> Self {
        let (kind, hint) = match source.kind() {
            io::ErrorKind::NotFound => (FailureKind::NotFound, Some("make the directory first")),
            io::ErrorKind::AlreadyExists => (FailureKind::Conflict, None),
            io::ErrorKind::AddrInUse => {
                (FailureKind::Conflict, Some("stop the program that listens there"))
            }
            io::ErrorKind::PermissionDenied => {
                (FailureKind::Invalid, Some("check owner and mode of the path, and run it as root"))
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                (FailureKind::Unavailable, Some("make room on that file system"))
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                (FailureKind::Invalid, Some("choose a path on a file system that can be written"))
            }
            _ => (FailureKind::Internal, None),
        };
        let message = format!("can't {doing} {}: {source}", path.display());
        let error = Self::new(kind, message).because(source);
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }

    /// Says what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Names the error below.
    #[must_use]
    pub fn because(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<super::JournalError> for Failure {
    fn from(error: super::JournalError) -> Self {
        let kind = match error.kind() {
            super::ErrorKind::Retry => FailureKind::Unavailable,
            _ => FailureKind::Internal,
        };
        Self::new(kind, error.to_string()).because(error)
    }
}

impl From<super::ViewError> for Failure {
    fn from(error: super::ViewError) -> Self {
        let kind = match error.kind() {
            super::ErrorKind::Retry => FailureKind::Unavailable,
            super::ErrorKind::Invalid => FailureKind::Invalid,
            _ => FailureKind::Internal,
        };
        Self::new(kind, error.to_string()).because(error)
    }
}
