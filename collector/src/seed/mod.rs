//! The seed disk: the volume's bytes at the oldest kept state.
//!
//! What enters: whole sealed segments that leave retention ([`Seed::take_in`], called by
//! [`merge_into_seed`]), or an image that a person brings ([`SeedBuilder`]). What leaves: the
//! bytes below all segments, each block of 4 KiB checked. Who owns the state: three files.
//!
//! ```text
//! seed.img    raw and sparse, as long as the volume; ordinary tools can open it while seed.json
//!             says neither merging_to nor installing
//! seed.sums   for each block of 4 KiB of the image 8 bytes, little-endian: XXH3-64 of the block,
//!             behind the end of the volume filled with zeroes; 0 for a block of zeroes
//! seed.json   which state it is ([`state`])
//! ```
//!
//! # A merge, and what a crash leaves
//!
//! A merge takes the seed from one state to a later one, M. `seed.json` names M before the first
//! byte changes; until it says `at` M, all segments up to M stay. Cells are worked on in batches:
//! what each touched block will hold at M is computed from the newest records up to M and, where
//! those leave a part of the block, from the block as it is; then the new sums are written, then
//! **synced**, then the data is written. At the end the image is synced, and `seed.json` says M.
//!
//! Each block changes once in a merge: its old content is O, its new one N, and both are the same
//! in the bytes that no record covers. So a crash leaves one of two: the old sum, and then the
//! data is O, because it is written only when the new sum is durable; or the new sum, and O, N or
//! any mixture of their sectors. The next opening goes over the same segments to the same M (no
//! other target is taken before that one is reached). It lays the records over the block it
//! finds, X: that gives N whichever of the three X is. It believes the parts of X that no record
//! covers when X has the old sum, or when the outcome has the new one. When neither holds, these
//! bytes are damaged: the outcome is written for a person to look at, and the sum is left as it
//! is, so that the block stays damaged until a write covers it whole. A record's payload is
//! checked against its own sums before it goes into a block. Pieces of it that do not hold are
//! written as zeroes and noted in `seed.json` as ranges without bytes, which are never given out,
//! whatever sum their block has, until a record covers them; so nothing damaged reads as good.
//!
//! # Readers meanwhile
//!
//! A view is open on a state that is not older than M and has its segments. It asks the seed only
//! for bytes that no record covers, and those do not change; but they are checked with the block
//! around them. So `Shared::doubt` keeps the old sums of blocks that a merge covers in part from
//! before their new sums are written until their data is, and data and doubt change under one
//! lock, cell by cell. A reader waits for the writing of one cell, never for a sync.
//!
//! What a crash may lose: nothing. What a failed call leaves is what a crash leaves, and the
//! merge is tried again from its start, so no failed sync is believed.

mod builder;
mod files;
mod lost;
mod plan;
mod state;
mod step;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tidemark_block::ByteRange;
use tidemark_wire::limits::CHECK_BLOCK_BYTES;
use tidemark_wire::{Seq, checksum};

pub use self::builder::SeedBuilder;
use self::files::Paths;
use self::lost::DAMAGED_HERE;
use self::state::SeedState;
pub use self::step::{Merged, Pace, merge_into_seed};
use crate::error::{Damage, JournalError, Part, ViewError};
use crate::journal::Base;
use crate::journal::format::CELL_BYTES;
use crate::storage::{FileExtent, Reads, RealStorage, Storage, StorageFile};

/// Name of the image in a volume's directory.
pub const SEED_FILE: &str = "seed.img";
const BLOCK: usize = CHECK_BLOCK_BYTES as usize;
const BLOCK_BYTES: u64 = CHECK_BLOCK_BYTES as u64;

/// The seed of one volume; shared by many threads.
pub struct Seed<S: Storage = RealStorage> {
    storage: Arc<S>,
    paths: Paths,
    image: S::File,
    sums: S::File,
    shared: RwLock<Shared>,
    /// Held by the merge that works; true once no merge may begin any more.
    closed: Mutex<bool>,
}

struct Shared {
    state: SeedState,
    /// Length of the image.
    file_bytes: u64,
    /// Old sums of blocks whose new ones are written and whose data is not.
    doubt: HashMap<u64, u64>,
    /// A crash or a failed write may have left blocks between old and new.
    torn: bool,
}

/// The sum of a block as it stands in `seed.sums`; a shorter one is filled up with zeroes.
fn block_sum(bytes: &[u8]) -> u64 {
    const ZEROES: [u8; BLOCK] = [0; BLOCK];
    if bytes == &ZEROES[..bytes.len()] {
        return 0;
    }
    let sum = match bytes.len() {
        BLOCK => checksum::sum(bytes),
        len => checksum::sum_parts(&[bytes, &ZEROES[len..]]),
    };
    sum.max(1)
}

impl<S: Storage> Seed<S> {
    /// Opens the seed whose image is at `path`; makes one of `size_bytes` that reads as zeroes
    /// when there is none. A merge that a crash cut off is left to [`Seed::merging_to`].
    ///
    /// # Errors
    /// `Io`; `Damaged` when one of its files is missing, short or damaged.
    pub fn open_or_create(
        storage: &Arc<S>,
        path: &Path,
        size_bytes: u64,
    ) -> Result<Self, JournalError> {
        let paths = Paths::of(path);
        let opened = files::open_or_create(&**storage, &paths, size_bytes)?;
        let shared = Shared {
            torn: opened.state.merging_to.is_some(),
            state: opened.state,
            file_bytes: opened.file_bytes,
            doubt: HashMap::new(),
        };
        Ok(Self {
            storage: Arc::clone(storage),
            paths,
            image: opened.image,
            sums: opened.sums,
            shared: RwLock::new(shared),
            closed: Mutex::new(false),
        })
    }

    /// What the journal above it stands on.
    #[must_use]
    pub fn base(&self) -> Base {
        self.shared().state.base.clone()
    }

    /// The state of the volume that the seed is; 0 is the one before the first record.
    #[must_use]
    pub fn at(&self) -> Seq {
        self.shared().state.base.at
    }

    /// The state that it is becoming, from the first change until the last one is durable.
    #[must_use]
    pub fn merging_to(&self) -> Option<Seq> {
        self.shared().state.merging_to
    }

    /// Size of the volume at [`Seed::at`], in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.shared().state.base.size_bytes
    }

    /// State 0 was imported and is not all zero.
    #[must_use]
    pub fn is_seeded(&self) -> bool {
        let shared = self.shared();
        shared.state.seeded && shared.state.base.at == Seq(0)
    }

    /// The image.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.paths.image
    }

    /// Waits for the merge that works and lets none begin any more; before the files are
    /// replaced or removed.
    pub fn close(&self) {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    fn working(&self) -> MutexGuard<'_, bool> {
        // A merge that panicked left what a crash leaves.
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shared(&self) -> RwLockReadGuard<'_, Shared> {
        self.shared.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn shared_mut(&self) -> RwLockWriteGuard<'_, Shared> {
        self.shared.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills `out` from a place on the volume; zeroes behind the seed's end, where a later state
    /// of the volume is larger. After an error `out` holds nothing to be used.
    ///
    /// # Errors
    /// `Damaged` or `Unreadable` with the range; `Io`, also for a block whose bytes are known
    /// only when an interrupted merge has been completed.
    pub fn read_at(&self, reads: Reads, out: &mut [u8], at: u64) -> Result<(), ViewError> {
        let shared = self.shared();
        let there = shared.file_bytes.saturating_sub(at);
        let held = usize::try_from(there).map_or(out.len(), |there| there.min(out.len()));
        let (mut rest, behind) = out.split_at_mut(held);
        behind.fill(0);
        let range = ByteRange::new(at, held as u64).expect("it ends within the image");
        if let Some(lost) = shared.state.lost.first_in(range) {
            let (range, seq, errno) = (lost.range, lost.seq, lost.errno);
            if errno == DAMAGED_HERE {
                let detail = "the record that brought these bytes was damaged when it was merged";
                let damage = block_damage(&self.paths.image, range.start() / BLOCK_BYTES, detail);
                return Err(ViewError::Damaged { range, seq, damage });
            }
            return Err(ViewError::Unreadable { range, seq, errno });
        }
        let mut from = at;
        while !rest.is_empty() {
            let left = usize::try_from(CELL_BYTES - from % CELL_BYTES).unwrap_or(rest.len());
            let (part, behind) = rest.split_at_mut(left.min(rest.len()));
            self.read_in_cell(&shared, reads, part, from)?;
            from += part.len() as u64;
            rest = behind;
        }
        Ok(())
    }

    fn read_in_cell(
        &self,
        shared: &Shared,
        reads: Reads,
        out: &mut [u8],
        from: u64,
    ) -> Result<(), ViewError> {
        let lead = usize::try_from(from % BLOCK_BYTES).expect("a remainder of 4096");
        if lead == 0 && out.len().is_multiple_of(BLOCK) {
            return self.read_blocks(shared, reads, out, from / BLOCK_BYTES);
        }
        let mut blocks = vec![0; (lead + out.len()).next_multiple_of(BLOCK)];
        self.read_blocks(shared, reads, &mut blocks, from / BLOCK_BYTES)?;
        out.copy_from_slice(&blocks[lead..lead + out.len()]);
        Ok(())
    }

    /// Reads whole blocks of one cell and checks them.
    fn read_blocks(
        &self,
        shared: &Shared,
        reads: Reads,
        out: &mut [u8],
        first: u64,
    ) -> Result<(), ViewError> {
        let sums = self.load_sums(first, out.len() / BLOCK).map_err(|error| self.io(error))?;
        self.load_blocks(shared.file_bytes, reads, out, first).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                return damaged(&self.paths.image, first, "the file ends before it");
            }
            self.io(error)
        })?;
        for ((block, bytes), sum) in (first..).zip(out.chunks_exact(BLOCK)).zip(sums) {
            let found = block_sum(bytes);
            if found == sum || shared.doubt.get(&block) == Some(&found) {
                continue;
            }
            if shared.torn {
                let text = "a merge was interrupted here and has to be completed first";
                return Err(self.io(io::Error::other(text)));
            }
            return Err(damaged(&self.paths.image, block, "its checksum does not match"));
        }
        Ok(())
    }

    fn io(&self, source: io::Error) -> ViewError {
        ViewError::Io { path: self.paths.image.clone(), source }
    }

    /// Reads blocks as they stand, filled with zeroes behind the end of the image. Holes are not
    /// read: the page cache would be filled with zeroes for them.
    fn load_blocks(
        &self,
        file_bytes: u64,
        reads: Reads,
        out: &mut [u8],
        first: u64,
    ) -> io::Result<()> {
        let start = first * BLOCK_BYTES;
        let there = file_bytes.saturating_sub(start);
        let held = usize::try_from(there).map_or(out.len(), |there| there.min(out.len()));
        let (inside, behind) = out.split_at_mut(held);
        behind.fill(0);
        let mut done = 0;
        while done < inside.len() {
            let from = start + done as u64;
            let extent = self.image.extent_at(from)?;
            let left = inside.len() - done;
            let len = usize::try_from(extent.len_bytes).map_or(left, |len| len.min(left));
            if len == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let part = &mut inside[done..done + len];
            if extent.hole {
                part.fill(0);
            } else {
                reads.fill(&self.image, part, from)?;
            }
            done += len;
        }
        Ok(())
    }

    fn load_sums(&self, first: u64, count: usize) -> io::Result<Vec<u64>> {
        let mut bytes = vec![0; count * 8];
        self.sums.read_at(&mut bytes, first * 8)?;
        let (sums, _) = bytes.as_chunks::<8>();
        Ok(sums.iter().map(|sum| u64::from_le_bytes(*sum)).collect())
    }

    /// As [`Seed::load_sums`]; zeroes behind the end of the file.
    fn load_sums_padded(&self, first: u64, count: usize) -> io::Result<Vec<u64>> {
        let there = (self.sums.len()? / 8).saturating_sub(first);
        let held = usize::try_from(there).map_or(count, |there| there.min(count));
        let mut sums = self.load_sums(first, held)?;
        sums.resize(count, 0);
        Ok(sums)
    }

    /// The data or hole that begins at the start of `range`, at most as long as it and within one
    /// cell, never empty; everything behind the seed's end is hole. A range that can't be given
    /// out is data, and so is a hole that has a checksum: reading it fails.
    ///
    /// # Errors
    /// `Io`.
    pub fn extent_at(&self, range: ByteRange) -> Result<FileExtent, ViewError> {
        let shared = self.shared();
        let at = range.start();
        let end = range.end().min((at / CELL_BYTES + 1) * CELL_BYTES);
        let hole = |to: u64| Ok(FileExtent { len_bytes: to.min(end) - at, hole: true });
        let data = |to: u64| Ok(FileExtent { len_bytes: to.min(end) - at, hole: false });
        if at >= shared.file_bytes {
            return hole(end);
        }
        let end = end.min(shared.file_bytes);
        let lost = ByteRange::between(at, end).and_then(|range| shared.state.lost.first_in(range));
        let end = match lost {
            Some(lost) if lost.range.start() == at => return data(lost.range.end()),
            Some(lost) => lost.range.start(),
            None => end,
        };
        let extent = self.image.extent_at(at).map_err(|error| self.io(error))?;
        let run = if extent.len_bytes == 0 { end } else { end.min(at + extent.len_bytes) };
        if !extent.hole {
            return data(run);
        }
        let (first, blocks) = (at / BLOCK_BYTES, run.div_ceil(BLOCK_BYTES) - at / BLOCK_BYTES);
        let count = usize::try_from(blocks).expect("a part of a cell");
        let sums = self.load_sums(first, count).map_err(|error| self.io(error))?;
        match (first..).zip(sums).find(|(_, sum)| *sum != 0) {
            Some((block, _)) if block == first => data(run.min((first + 1) * BLOCK_BYTES)),
            Some((block, _)) => hole(block * BLOCK_BYTES),
            None => hole(run),
        }
    }
}

fn block_damage(path: &Path, block: u64, detail: &str) -> Damage {
    Damage::new(path, Part::SeedBlock, block * BLOCK_BYTES, detail)
}

fn damaged(path: &Path, block: u64, detail: &str) -> ViewError {
    let range = ByteRange::new(block * BLOCK_BYTES, BLOCK_BYTES)
        .expect("a block lies within the largest volume");
    ViewError::Damaged { range, seq: Seq(0), damage: block_damage(path, block, detail) }
}
