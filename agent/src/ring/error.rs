//! Why a ring's file could not be made or used.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What is wrong, and with it what the caller does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingErrorKind {
    /// The size or the number of slots asked for can't be.
    Size,
    /// The folder is not on tmpfs.
    NotTmpfs,
    /// A file of this name exists already.
    Exists,
    /// There is no such file.
    Missing,
    /// Another process uses the file.
    InUse,
    /// There is not enough memory on the tmpfs.
    NoSpace,
    /// The memory can't be locked.
    NotLocked,
    /// The file is not a ring, or its creation was cut off.
    NotARing,
    /// A version of the layout that this program does not know.
    Version,
    /// The file contradicts itself.
    Damaged,
    /// The ring of another volume.
    OtherVolume,
    /// A ring from before the machine was last started.
    OtherBoot,
    /// The ring has another size or number of slots than is asked for.
    OtherGeometry,
    /// The operating system refused.
    Io,
}

impl RingErrorKind {
    /// True when the file is of no use to its volume any more: the caller discards it, starts a
    /// new ring, and copies what the old one may have held.
    #[must_use]
    pub const fn wants_new_ring(self) -> bool {
        matches!(
            self,
            Self::Missing
                | Self::NotARing
                | Self::Version
                | Self::Damaged
                | Self::OtherBoot
                | Self::OtherGeometry
        )
    }

    const fn advice(self) -> &'static str {
        match self {
            Self::Size => "set the volume's ring_mib so that it is within these bounds",
            Self::NotTmpfs => "place the ring in a folder on tmpfs, such as /dev/shm",
            Self::Exists => "open it, or remove it if its volume is copied anew",
            Self::InUse => "stop the other agent that protects this volume",
            Self::NoSpace => "make the tmpfs larger or the volume's ring_mib smaller",
            Self::NotLocked => {
                "raise RLIMIT_MEMLOCK (LimitMEMLOCK=infinity), or make ring_mib smaller"
            }
            Self::OtherVolume => "give each volume a ring file of its own",
            Self::Missing
            | Self::NotARing
            | Self::Version
            | Self::Damaged
            | Self::OtherBoot
            | Self::OtherGeometry => "the volume starts a new ring and is compared or copied again",
            Self::Io => "see the operating system's message",
        }
    }
}

/// A ring's file that could not be made or used.
#[derive(Debug, thiserror::Error)]
pub struct RingError {
    /// What is wrong.
    pub kind: RingErrorKind,
    /// The file.
    pub path: PathBuf,
    /// What was found, for a person.
    pub detail: String,
    /// The operating system's error, where there is one.
    #[source]
    pub source: Option<io::Error>,
}

impl RingError {
    pub(super) fn new(kind: RingErrorKind, path: &Path, detail: impl Into<String>) -> Self {
        Self { kind, path: path.to_owned(), detail: detail.into(), source: None }
    }

    pub(super) fn io(kind: RingErrorKind, path: &Path, doing: &str, source: io::Error) -> Self {
        let detail = format!("could not {doing}: {source}");
        Self { kind, path: path.to_owned(), detail, source: Some(source) }
    }
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        write!(f, "change ring {path}: {}; {}", self.detail, self.kind.advice())
    }
}
