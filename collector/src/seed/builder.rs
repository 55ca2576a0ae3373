//! Makes a seed from an image that a person brings, before the first record.
//!
//! What enters: blocks of the image, each at most once. What leaves: a seed in place of the one
//! that was there. Who owns the state: the builder, in files of other names, until
//! [`SeedBuilder::finish`] has put them in place; a crash before leaves the old seed as it was,
//! and files that its next opening removes.

use std::path::Path;
use std::sync::Arc;

use tidemark_wire::limits::CHECK_BLOCK_BYTES;

use super::files::{self, Paths};
use super::state::SeedState;
use super::{Seed, block_sum};
use crate::error::JournalError;
use crate::storage::{Storage, StorageFile};

const BLOCK: usize = CHECK_BLOCK_BYTES as usize;

/// A seed in the making.
pub struct SeedBuilder<S: Storage> {
    storage: Arc<S>,
    paths: Paths,
    image: S::File,
    sums: S::File,
    size_bytes: u64,
}

impl<S: Storage> SeedBuilder<S> {
    /// Begins a seed of `size_bytes`, all zeroes, in the directory of a volume.
    ///
    /// # Errors
    /// `Io`.
    pub fn create(storage: Arc<S>, dir: &Path, size_bytes: u64) -> Result<Self, JournalError> {
        let paths = Paths::of(&dir.join(super::SEED_FILE));
        let make = |path: &Path, len_bytes| files::make(&*storage, path, len_bytes);
        let made = make(&paths.image_new(), size_bytes).and_then(|image| {
            make(&paths.sums_new(), files::sums_bytes(size_bytes)).map(|sums| (image, sums))
        });
        match made {
            Ok((image, sums)) => Ok(Self { storage, paths, image, sums, size_bytes }),
            Err(error) => {
                // One that stays goes at the next opening.
                let _ = files::discard(&*storage, &paths);
                Err(error)
            }
        }
    }

    /// Takes the bytes at a place. Blocks of zeroes are left out.
    ///
    /// # Errors
    /// `Io`.
    ///
    /// # Panics
    /// When `bytes` are not whole blocks of 4 KiB on the grid of the volume (the last one ends
    /// with it) or lie beyond it: a programmer's mistake.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<(), JournalError> {
        let end = at + bytes.len() as u64;
        assert!(end <= self.size_bytes, "byte {end} is not on a volume of {}", self.size_bytes);
        assert!(at.is_multiple_of(BLOCK as u64), "byte {at} is not the first of a block");
        assert!(
            bytes.len().is_multiple_of(BLOCK) || end == self.size_bytes,
            "{} bytes are not whole blocks",
            bytes.len()
        );
        let mut sums = Vec::with_capacity(bytes.len().div_ceil(BLOCK) * 8);
        let mut start = at;
        for block in bytes.chunks(BLOCK) {
            let sum = block_sum(block);
            if sum != 0 {
                self.image
                    .write_at(block, start)
                    .map_err(JournalError::io("write", &self.paths.image_new()))?;
            }
            sums.extend_from_slice(&sum.to_le_bytes());
            start += block.len() as u64;
        }
        if sums.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        self.sums
            .write_at(&sums, at / BLOCK as u64 * 8)
            .map_err(JournalError::io("write", &self.paths.sums_new()))
    }

    /// Makes what was taken so far durable, so that [`SeedBuilder::finish`] has little to do.
    ///
    /// # Errors
    /// `Io`.
    pub fn sync(&self) -> Result<(), JournalError> {
        self.image.datasync().map_err(JournalError::io("sync", &self.paths.image_new()))?;
        self.sums.datasync().map_err(JournalError::io("sync", &self.paths.sums_new()))
    }

    /// Removes what was taken so far.
    ///
    /// # Errors
    /// `Io`: what is left goes at the next opening.
    pub fn discard(self) -> Result<(), JournalError> {
        files::discard(&*self.storage, &self.paths)
    }

    /// Puts the seed in the place of the one that is there, which nobody may have open; it is
    /// state 0 of a new history. `seeded` says that it is not all zero.
    ///
    /// # Errors
    /// `Io`: either seed is there at the next opening, as a whole.
    pub fn finish(self, seeded: bool) -> Result<Seed<S>, JournalError> {
        self.sync()?;
        let state = SeedState { seeded, ..SeedState::empty(self.size_bytes) };
        files::install(&*self.storage, &self.paths, state)?;
        Seed::open_or_create(&self.storage, &self.paths.image, self.size_bytes)
    }
}
