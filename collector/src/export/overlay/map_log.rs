//! The map that is believed after any crash: a log of pages, see [`super::format`].
//!
//! Pages that a flush found changed enter; they are durable on return. A crash loses the pages
//! of a flush that had not returned, no others.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::format::{BODY_AT, ENTRY_BYTES, Entry, Head, Identity, MAP_FILE, MAP_MAGIC, PAGE_BYTES};
use super::states::{States, map_bytes, page_count};
use crate::error::{Failure, Result};
use crate::storage::{Storage, StorageFile};

/// Entries beyond twice the number of pages before the log is written anew.
const SPARE_ENTRIES: u64 = 256;

/// The file, open for appending.
pub(super) struct MapLog<S: Storage> {
    file: S::File,
    entries: u64,
    flush: u64,
}

/// Why pages were not stored.
#[derive(Debug)]
pub(super) enum StoreFailure {
    /// The file says what it said before; the same can be tried again.
    Unwritten(io::Error),
    /// It is not known what is durable.
    Unknown(io::Error),
}

impl<S: Storage> MapLog<S> {
    /// Writes a map with nothing but these states; it replaces the one that is there.
    pub(super) fn write_new(
        storage: &Arc<S>,
        dir: &Path,
        identity: &Identity,
        states: &[u8],
    ) -> Result<Self, StoreFailure> {
        let (new, path) = (dir.join("overlay.map.new"), dir.join(MAP_FILE));
        let written = Self::write_file(storage, &new, identity, states);
        let log = written.map_err(StoreFailure::Unwritten)?;
        storage.rename(&new, &path).map_err(StoreFailure::Unwritten)?;
        storage.sync_dir(dir).map_err(StoreFailure::Unknown)?;
        Ok(log)
    }

    fn write_file(
        storage: &Arc<S>,
        new: &Path,
        identity: &Identity,
        states: &[u8],
    ) -> io::Result<Self> {
        match storage.remove(new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = storage.create(new)?;
        file.write_at(Head::new(MAP_MAGIC, identity, [0; 16]).as_bytes(), 0)?;
        file.set_len(BODY_AT)?;
        let mut log = Self { file, entries: 0, flush: 0 };
        let pages: Vec<_> = (0..)
            .zip(states.chunks(PAGE_BYTES))
            .filter(|(_, page)| page.iter().any(|byte| *byte != 0))
            .collect();
        log.write(&pages)?;
        log.file.datasync()?;
        Ok(log)
    }

    /// Writes the entries of one flush behind those that are there.
    fn write(&mut self, pages: &[(u32, impl AsRef<[u8]>)]) -> io::Result<()> {
        let flush = self.flush + 1;
        let mut number = self.entries;
        let mut left = u32::try_from(pages.len()).expect("no map has more than 2^32 pages");
        for (page, body) in pages {
            left -= 1;
            let entry = Entry::new(number, flush, left, *page, body.as_ref());
            self.file.write_at(entry.as_bytes(), place(number))?;
            number += 1;
        }
        (self.entries, self.flush) = (number, flush);
        Ok(())
    }

    /// Adds pages durably; those of a failed try have to be among those of the next one.
    pub(super) fn append(&mut self, pages: &[(u32, Box<[u8]>)]) -> Result<(), StoreFailure> {
        self.write(pages).map_err(StoreFailure::Unwritten)?;
        self.file.datasync().map_err(StoreFailure::Unknown)
    }

    /// Whether so many entries are outdated that the map is better written anew.
    pub(super) fn has_grown(&self, pages: u32) -> bool {
        self.entries > 2 * u64::from(pages) + SPARE_ENTRIES
    }

    /// The states as the last flush left them.
    ///
    /// # Errors
    /// `Internal` when the map is damaged, of another clone, or can't be read.
    pub(super) fn load(storage: &Arc<S>, dir: &Path, identity: &Identity) -> Result<States> {
        let path = dir.join(MAP_FILE);
        let failed = |source| Failure::io("read", &path, source);
        let file = storage.open_read_only(&path).map_err(failed)?;
        let len = file.len().map_err(failed)?;
        if len < BODY_AT {
            return Err(damaged(&path, "it is too short"));
        }
        let mut head = Head::new_zeroed();
        file.read_at(head.as_mut_bytes(), 0).map_err(failed)?;
        head.check(MAP_MAGIC, identity).map_err(|detail| damaged(&path, &detail))?;
        let entries = Entries { file, count: (len - BODY_AT) / ENTRY_BYTES, path: &path };
        let mut bytes = vec![0; map_bytes(identity.size_bytes)];
        entries.replay(page_count(identity.size_bytes), &mut bytes)?;
        States::from_bytes(identity.size_bytes, bytes)
            .ok_or_else(|| damaged(&path, "it holds states that nobody writes"))
    }
}

fn place(number: u64) -> u64 {
    BODY_AT + number * ENTRY_BYTES
}

fn damaged(path: &Path, detail: &str) -> Failure {
    Failure::internal(format!("the map {} of a clone is damaged: {detail}", path.display()))
        .with_hint("put back a copy of it, or end the clone; the clone is left alone until then")
}

struct Entries<'a, F> {
    file: F,
    count: u64,
    path: &'a PathBuf,
}

impl<F: StorageFile> Entries<'_, F> {
    fn get(&self, number: u64, pages: u32) -> Result<Option<Entry>> {
        let mut bytes = [0; size_of::<Entry>()];
        let read = self.file.read_at(&mut bytes, place(number));
        read.map_err(|source| Failure::io("read", self.path, source))?;
        let entry = Entry::read_from_bytes(&bytes).expect("the length is that of an entry");
        Ok(Some(entry).filter(|entry| entry.holds(number, pages)))
    }

    /// Puts the pages of all entries in their places, up to where a crash cut the log off.
    fn replay(&self, pages: u32, bytes: &mut [u8]) -> Result<()> {
        let (mut flush, mut left) = (0, 0);
        for number in 0..self.count {
            let Some(entry) = self.get(number, pages)? else {
                let torn = if left > 0 { flush } else { flush + 1 };
                return self.check_torn(number, torn, pages);
            };
            (flush, left) = (entry.flush.get(), entry.left.get());
            let start = entry.page.get() as usize * PAGE_BYTES;
            let end = bytes.len().min(start + PAGE_BYTES);
            bytes[start..end].copy_from_slice(&entry.body[..end - start]);
        }
        Ok(())
    }

    /// The entry at `number` does not hold. That is a torn write only when its flush was the
    /// last one, since an earlier one was synced before the next began.
    fn check_torn(&self, number: u64, flush: u64, pages: u32) -> Result<()> {
        for later in number + 1..self.count {
            if self.get(later, pages)?.is_some_and(|entry| entry.flush.get() > flush) {
                return Err(damaged(self.path, &format!("entry {number} does not hold")));
            }
        }
        tracing::info!(
            path = %self.path.display(), number,
            "the last flush of a clone was cut off by a crash; what it had not acknowledged is gone"
        );
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use tidemark_wire::{Seq, VolumeId};

    use super::*;
    use crate::storage::MemoryStorage;

    const DIR: &str = "/clones/1";

    fn identity() -> Identity {
        // Four pages, the last one short.
        let size_bytes = (3 * PAGE_BYTES as u64 * 4 + 5) * 4096;
        Identity { clone: 1, volume: VolumeId::from_bytes([1; 16]), seq: Seq(9), size_bytes }
    }

    fn page(byte: u8) -> Box<[u8]> {
        vec![byte; PAGE_BYTES].into()
    }

    /// A map that was made anew with page 0, then flushed with pages 0 to 2, then with page 1.
    fn made() -> Arc<MemoryStorage> {
        let storage = Arc::new(MemoryStorage::default());
        storage.create_dir(Path::new(DIR)).unwrap();
        let mut states = vec![0; map_bytes(identity().size_bytes)];
        states[..10].fill(1);
        let mut log = MapLog::write_new(&storage, Path::new(DIR), &identity(), &states).unwrap();
        log.append(&[(0, page(2)), (1, page(2)), (2, page(2))]).unwrap();
        log.append(&[(1, page(0x55))]).unwrap();
        storage
    }

    fn load(storage: &Arc<MemoryStorage>) -> Result<States> {
        MapLog::load(storage, Path::new(DIR), &identity())
    }

    fn spoil(storage: &MemoryStorage, entry: usize) {
        let path = Path::new(DIR).join(MAP_FILE);
        storage.edit(&path, |bytes| bytes[4096 * (entry + 1) + 200] ^= 1).unwrap();
    }

    #[test]
    fn the_newest_entry_of_a_page_holds() {
        let states = load(&made()).unwrap();
        assert_eq!((states.page(0)[0], states.page(1)[0], states.page(2)[0]), (2, 0x55, 2));
        assert_eq!(states.page(3), [0, 0]);
    }

    #[test]
    fn only_the_last_flush_may_be_torn() {
        let torn = made();
        spoil(&torn, 4);
        assert_eq!(load(&torn).unwrap().page(1)[0], 2, "as before the last flush");
        for entry in 0..4 {
            let damaged = made();
            spoil(&damaged, entry);
            let text = load(&damaged).err().unwrap().to_string();
            assert!(text.contains(&format!("entry {entry} does not hold")), "{text}");
        }
        // Of a flush of three that was the last one, any may be missing.
        for entry in 1..4 {
            let torn = made();
            torn.edit(&Path::new(DIR).join(MAP_FILE), |bytes| bytes.truncate(4096 * 5)).unwrap();
            spoil(&torn, entry);
            let states = load(&torn).unwrap();
            let pages: Vec<u8> = (0..3).map(|page| states.page(page)[0]).collect();
            assert_eq!(pages, [[1, 0, 0], [2, 0, 0], [2, 2, 0]][entry - 1], "{entry}");
        }
    }
}
