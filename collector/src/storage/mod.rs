//! The storage seam: every byte that the collector keeps goes through these two traits.
//!
//! What enters: paths and bytes. What leaves: files that hold them. Who owns the state: the file
//! system behind [`RealStorage`], or [`MemoryStorage`], which keeps a live and a durable image
//! apart. What a crash may lose: every write since the last [`StorageFile::datasync`] of that
//! file, in pieces and in any order; and every creation, rename and removal since the last
//! [`Storage::sync_dir`] of that directory.
//!
//! Calls block. They are made from threads of the collector's own, not from executors.

pub(crate) mod document;
mod memory;
pub mod pages;
mod real;

use std::io;
use std::ops::Deref;
use std::path::Path;

use tidemark_block::ByteRange;

pub use memory::{Fault, MemoryFile, MemoryStorage};
pub use real::{MappedBytes, RealFile, RealStorage};

/// A place with directories and files.
pub trait Storage: Send + Sync + 'static {
    /// An open file.
    type File: StorageFile;

    /// Creates a file for reading and writing.
    ///
    /// # Errors
    /// `AlreadyExists` when there is one.
    fn create(&self, path: &Path) -> io::Result<Self::File>;

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// The operating system's.
    fn open(&self, path: &Path) -> io::Result<Self::File>;

    /// Opens a file for reading.
    ///
    /// # Errors
    /// The operating system's.
    fn open_read_only(&self, path: &Path) -> io::Result<Self::File>;

    /// Renames a file, or a directory with all that is below it; open handles stay valid.
    ///
    /// # Errors
    /// The operating system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file; open handles stay valid.
    ///
    /// # Errors
    /// The operating system's.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory with all that is below it, bit by bit; one that is gone is fine.
    ///
    /// # Errors
    /// The operating system's; a part may be gone then.
    fn remove_tree(&self, dir: &Path) -> io::Result<()>;

    /// Names of the files in a directory, sorted.
    ///
    /// # Errors
    /// The operating system's.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Creates a directory with the missing ones above it, durably; one that exists is fine.
    ///
    /// # Errors
    /// The operating system's.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes creations, renames and removals in a directory durable.
    ///
    /// # Errors
    /// The operating system's.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Bytes that can still be written below a directory.
    ///
    /// # Errors
    /// The operating system's.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
}

/// A run of bytes of a file that is all data or all hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileExtent {
    /// Length in bytes; 0 at the end of the file.
    pub len_bytes: u64,
    /// No storage is allocated; reads as zeroes.
    pub hole: bool,
}

/// What becomes of bytes once they are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reads {
    /// They may soon be asked for again.
    #[default]
    Again,
    /// They are not: they shall not push others out of memory.
    Once,
}

impl Reads {
    /// Fills `bytes` from a place of a file.
    ///
    /// # Errors
    /// As [`StorageFile::read_at`].
    pub(crate) fn fill(self, file: &impl StorageFile, bytes: &mut [u8], at: u64) -> io::Result<()> {
        match self {
            Self::Again => file.read_at(bytes, at),
            Self::Once => file.read_once_at(bytes, at),
        }
    }
}

/// An open file. Calls from several threads have no order among each other.
#[allow(clippy::len_without_is_empty, reason = "a length that can fail is asked for its number")]
pub trait StorageFile: Send + Sync + 'static {
    /// A mapped range.
    type Map: Deref<Target = [u8]> + Send + Sync + 'static;

    /// Writes all bytes at a place, growing the file where needed.
    ///
    /// # Errors
    /// The operating system's.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Fills `bytes` from a place.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before, else the operating system's.
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()>;

    /// As [`StorageFile::read_at`], for [`Reads::Once`].
    ///
    /// # Errors
    /// As [`StorageFile::read_at`].
    fn read_once_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.read_at(bytes, at)
    }

    /// Length in bytes.
    ///
    /// # Errors
    /// The operating system's.
    fn len(&self) -> io::Result<u64>;

    /// Cuts or grows (with a hole) the file.
    ///
    /// # Errors
    /// The operating system's.
    fn set_len(&self, len_bytes: u64) -> io::Result<()>;

    /// Makes all writes that returned before durable, with the length.
    ///
    /// # Errors
    /// The operating system's. After an error it is unknown what is durable of the writes since
    /// the last success, and a later success says nothing about them.
    fn datasync(&self) -> io::Result<()>;

    /// Frees the storage of a range; it reads as zeroes.
    ///
    /// # Errors
    /// `Unsupported` where that is not possible, else the operating system's.
    fn punch(&self, range: ByteRange) -> io::Result<()>;

    /// The data or hole that begins at a place.
    ///
    /// # Errors
    /// The operating system's.
    fn extent_at(&self, at: u64) -> io::Result<FileExtent>;

    /// Maps a range for reading. Only ranges that are never written, cut or punched again are
    /// mapped.
    ///
    /// # Errors
    /// `UnexpectedEof` when the range is not in the file, else the operating system's.
    fn map(&self, range: ByteRange) -> io::Result<Self::Map>;
}
