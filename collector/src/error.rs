//! Why the journal, the seed or a view could not do what was asked, and what the caller does.

mod failure;
mod nearest;
mod severity;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use tidemark_block::ByteRange;
use tidemark_wire::Seq;

pub use failure::{Failure, FailureKind, Result};
pub use nearest::nearest;
pub use severity::Severity;

/// What the caller does about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The operating system failed; try again later (after [`crate::journal::Journal::reopen`]
    /// where the journal is latched).
    Retry,
    /// The sender's stream does not follow what is held: the session starts anew.
    Resynchronize,
    /// The bytes are not the ones that were written; a person or a repair has to act.
    Corrupt,
    /// What was asked for does not exist or is not allowed; asking again does not help.
    Invalid,
}

/// The part of a segment file, or of the seed, that is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Fixed header at the start.
    Header,
    /// Header or checksums of a record.
    Record,
    /// Payload of a record.
    Payload,
    /// The tables of cells and wide records.
    Index,
    /// The tables of marks and waypoints.
    Marks,
    /// Fixed trailer at the end.
    Trailer,
    /// The link to the segment before.
    Chain,
    /// The file as a whole.
    File,
    /// A block of the seed.
    SeedBlock,
    /// What the seed says of itself.
    SeedState,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "segment header",
            Self::Record => "record header",
            Self::Payload => "record payload",
            Self::Index => "index",
            Self::Marks => "marks",
            Self::Trailer => "segment trailer",
            Self::Chain => "chain",
            Self::File => "file",
            Self::SeedBlock => "block of the seed",
            Self::SeedState => "state of the seed",
        })
    }
}

/// Damage in a file: which part, where, and what was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {part} at byte {at}: {detail}", file.display())]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// The part of it.
    pub part: Part,
    /// Byte of the file at which the part begins.
    pub at: u64,
    /// What was found.
    pub detail: String,
}

impl Damage {
    pub(crate) fn new(file: &Path, part: Part, at: u64, detail: impl Into<String>) -> Self {
        Self { file: file.to_owned(), part, at, detail: detail.into() }
    }
}

/// Why a part of a segment could not be read.
#[derive(Debug)]
pub(crate) enum ReadError {
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    Damaged(Damage),
}

impl ReadError {
    pub(crate) fn io(
        operation: &'static str,
        path: &Path,
    ) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }

    /// What it means to the reader of a view, who wants `range` of the volume from record `seq`.
    pub(crate) fn for_view(self, range: ByteRange, seq: Seq) -> ViewError {
        match self {
            Self::Io { path, source, .. } => ViewError::Io { path, source },
            Self::Damaged(damage) => ViewError::Damaged { range, seq, damage },
        }
    }
}

impl From<Damage> for ReadError {
    fn from(damage: Damage) -> Self {
        Self::Damaged(damage)
    }
}

impl From<ReadError> for JournalError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io { operation, path, source } => Self::Io { operation, path, source },
            ReadError::Damaged(damage) => Self::Damaged(damage),
        }
    }
}

/// Why the journal or the seed failed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The operating system failed an operation on a file.
    #[error("can't {operation} {}: {source}", path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// A file belongs to another volume, journal or timeline.
    #[error("{} belongs elsewhere: {detail}; move it out of this directory", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Whose it is and whose it should be.
        detail: String,
    },
    /// A file is of a version that this program does not know.
    #[error("{} has format version {found}, this program knows {known}; use the program that wrote it or a newer one", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The version known here.
        known: u32,
    },
    /// Bytes are damaged.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// Records do not follow the newest one held.
    #[error("record {first} announces {prev} before it, the journal's newest is {last}")]
    OutOfOrder {
        /// What the sender says comes before its first record.
        prev: Seq,
        /// The sender's first record.
        first: Seq,
        /// The newest record appended here.
        last: Seq,
    },
    /// A write or sync failed before; nothing is taken until the journal was reopened.
    #[error("the journal in {} is closed after a failed write", dir.display())]
    Latched {
        /// The journal's directory.
        dir: PathBuf,
    },
    /// A segment is damaged, so that no new state could be read back; nothing is appended.
    #[error("the journal takes no records because it is damaged: {0}")]
    ReadOnly(Damage),
    /// More bytes than [`crate::journal::PENDING_BYTES_MAX`] were appended without a commit.
    #[error("{pending_bytes} bytes wait for a commit")]
    PendingFull {
        /// What waits.
        pending_bytes: usize,
    },
}

impl JournalError {
    pub(crate) fn io(
        operation: &'static str,
        path: &Path,
    ) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }

    /// What the caller does.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } | Self::Latched { .. } | Self::PendingFull { .. } => ErrorKind::Retry,
            Self::OutOfOrder { .. } => ErrorKind::Resynchronize,
            Self::Damaged(_) | Self::ReadOnly(_) => ErrorKind::Corrupt,
            Self::Foreign { .. } | Self::Version { .. } => ErrorKind::Invalid,
        }
    }
}

/// Why a state is not offered, with the nearest ones that are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOffered {
    /// The state lies inside a span.
    #[error("the state lies inside a gap or resynchronization; nearest before: {}, after: {}", or_none(*before), or_none(*after))]
    InSpan {
        /// The newest state before the span.
        before: Option<Seq>,
        /// The state with which it ends.
        after: Option<Seq>,
    },
    /// The state is newer than everything durable.
    #[error("the newest state is {newest}")]
    AfterEnd {
        /// The newest state, offered or not.
        newest: Seq,
    },
    /// The state is older than everything kept.
    #[error("the oldest state is {oldest}")]
    BeforeStart {
        /// The oldest state kept, offered or not.
        oldest: Seq,
    },
    /// The state needs a damaged segment.
    #[error("the state needs a damaged segment: {0}")]
    Damaged(Damage),
}

fn or_none(seq: Option<Seq>) -> String {
    seq.map_or_else(|| "none".to_owned(), |seq| seq.to_string())
}

/// Why a view could not be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The state is not one that is offered.
    #[error(transparent)]
    NotOffered(#[from] NotOffered),
    /// The range lies outside the volume as it was.
    #[error("{range} is not on the volume of {size_bytes} bytes")]
    OutOfRange {
        /// What was asked for.
        range: ByteRange,
        /// Size of the volume at that state.
        size_bytes: u64,
    },
    /// Bytes are not the ones that were captured.
    #[error("volume {range}, record {seq}: {damage}")]
    Damaged {
        /// The range of the volume that can't be given out.
        range: ByteRange,
        /// The record that holds it; 0 when no record could be named.
        seq: Seq,
        /// File, part and place.
        damage: Damage,
    },
    /// The protected machine could not read this range from its own disk.
    #[error("{range} could not be read on the protected machine (errno {errno}, record {seq})")]
    Unreadable {
        /// The range of the volume.
        range: ByteRange,
        /// The record that says so.
        seq: Seq,
        /// The error there.
        errno: u64,
    },
    /// The operating system failed to read a file.
    #[error("can't read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
}

impl ViewError {
    /// What the caller does.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotOffered(NotOffered::Damaged(_)) | Self::Damaged { .. } => ErrorKind::Corrupt,
            Self::NotOffered(_) | Self::OutOfRange { .. } | Self::Unreadable { .. } => {
                ErrorKind::Invalid
            }
            Self::Io { .. } => ErrorKind::Retry,
        }
    }
}
