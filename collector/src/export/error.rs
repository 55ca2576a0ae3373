//! Why a request on an exported disk failed.

use std::io;
use std::path::PathBuf;

use crate::error::ViewError;

/// Why a request failed; the device turns it into what its clients understand.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The state below could not be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The clone may hold no more, or its file system can't.
    #[error("{message}")]
    NoSpace {
        /// Which limit, and what to do.
        message: String,
        /// It is the first refusal since there was room.
        first: bool,
    },
    /// The operating system failed an operation on a file of the clone.
    #[error("can't {operation} {}: {source}", path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// An earlier sync failed, so nothing is written any more.
    #[error(
        "a sync of {} has failed, so it takes no more writes; restart the collector, what was \
         flushed before is kept",
        path.display()
    )]
    Failed {
        /// The file.
        path: PathBuf,
    },
    /// The disk can only be read.
    #[error("the export is read-only")]
    ReadOnly,
    /// More requests wait than are allowed.
    #[error("too many requests wait")]
    Busy,
    /// The export is ending.
    #[error("the export has ended")]
    Ended,
}

impl DiskError {
    pub(super) fn io(
        operation: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }
}
