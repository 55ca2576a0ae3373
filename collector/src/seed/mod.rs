//! The seed disk: the volume's bytes at the oldest kept state.
//!
//! What enters: nothing yet; the merge of segments that leave retention will write here. What
//! leaves: the bytes below all segments. Who owns the state: `seed.img`, a raw sparse file of
//! the volume's size that ordinary tools can open; a fresh one is one hole, which is the volume
//! before its first record. What a crash may lose: nothing, the file is synced when it is made.
//!
//! Reads go through [`Seed::read_at`] and nothing else, so that the checksums beside the seed
//! and the state of a merge, once they exist, are looked at in this one place.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidemark_wire::Seq;

use crate::error::JournalError;
use crate::storage::{FileExtent, RealStorage, Storage, StorageFile};

/// The seed of one volume.
pub struct Seed<S: Storage = RealStorage> {
    path: PathBuf,
    file: S::File,
    at: Seq,
    size_bytes: u64,
}

impl<S: Storage> Seed<S> {
    /// Opens the seed at `path`; makes one of `size_bytes` that reads as zeroes when there is
    /// none.
    ///
    /// # Errors
    /// `Io`.
    pub fn open_or_create(
        storage: &Arc<S>,
        path: &Path,
        size_bytes: u64,
    ) -> Result<Self, JournalError> {
        let file = match storage.open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Self::create(storage, path, size_bytes)?
            }
            Err(error) => return Err(JournalError::io("open", path)(error)),
        };
        let size_bytes = file.len().map_err(JournalError::io("look at", path))?;
        Ok(Self { path: path.to_owned(), file, at: Seq(0), size_bytes })
    }

    /// The file becomes visible under its name only when its length is durable, so a seed that
    /// is there is whole.
    fn create(storage: &Arc<S>, path: &Path, size_bytes: u64) -> Result<S::File, JournalError> {
        let new = path.with_extension("new");
        match storage.remove(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(JournalError::io("remove", &new)(error));
            }
            _ => {}
        }
        let file = storage.create(&new).map_err(JournalError::io("create", &new))?;
        file.set_len(size_bytes).map_err(JournalError::io("size", &new))?;
        file.datasync().map_err(JournalError::io("sync", &new))?;
        storage.rename(&new, path).map_err(JournalError::io("rename", &new))?;
        let dir = path.parent().unwrap_or(Path::new("."));
        storage.sync_dir(dir).map_err(JournalError::io("sync", dir))?;
        Ok(file)
    }

    /// The state of the volume that the seed is; 0 is the one before the first record.
    #[must_use]
    pub fn at(&self) -> Seq {
        self.at
    }

    /// Size of the volume at that state, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills `bytes` from a place on the volume; zeroes behind the seed's end, where a later
    /// state of the volume is larger.
    ///
    /// # Errors
    /// The operating system's.
    pub fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let there = self.size_bytes.saturating_sub(at);
        let held = usize::try_from(there).map_or(bytes.len(), |there| there.min(bytes.len()));
        let (inside, behind) = bytes.split_at_mut(held);
        behind.fill(0);
        // Holes are not read: the page cache would be filled with zeroes for them.
        let mut done = 0;
        while done < inside.len() {
            let from = at + done as u64;
            let extent = self.file.extent_at(from)?;
            let left = inside.len() - done;
            let len = usize::try_from(extent.len_bytes).map_or(left, |len| len.min(left));
            if len == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let part = &mut inside[done..done + len];
            if extent.hole {
                part.fill(0);
            } else {
                self.file.read_at(part, from)?;
            }
            done += len;
        }
        Ok(())
    }

    /// The data or hole that begins at a place on the volume; everything behind the seed's end
    /// is one hole.
    ///
    /// # Errors
    /// The operating system's.
    pub fn extent_at(&self, at: u64) -> io::Result<FileExtent> {
        if at >= self.size_bytes {
            return Ok(FileExtent { len_bytes: u64::MAX - at, hole: true });
        }
        self.file.extent_at(at)
    }
}
