//! Reads and writes the log's file through a [`Store`].

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use tidemark_block::store::Store;
use tidemark_block::{Chunk, Durability};
use tidemark_wire::VolumeId;
use zerocopy::IntoBytes;

use super::format::{
    Doubt, Header, PAGE_BYTES, Page, REGIONS_PER_PAGE, new_file, pages_in, pages_of, place_of,
};
use super::map::IntentMap;
use super::region::FlushEpoch;

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It can't be read.
    #[error("it can't be read: {0}")]
    Io(#[from] io::Error),
    /// It says nothing about the volume.
    #[error(transparent)]
    Doubt(#[from] Doubt),
}

/// Where the file of a volume's log is.
pub trait LogFiles {
    /// How it is read and written.
    type Store: Store;

    /// Opens the file that is there.
    ///
    /// # Errors
    /// `NotFound` when there is none; else the operating system's.
    fn open(&self) -> io::Result<Self::Store>;

    /// Puts a file of this content, durably, in the place of the one that may be there, and opens
    /// it. A crash leaves one of the two.
    ///
    /// # Errors
    /// The operating system's; the former is still in place.
    fn make(&self, content: &[u8]) -> io::Result<Self::Store>;
}

/// An open file of the log. One at a time writes it.
pub struct IntentFile<S> {
    store: S,
    /// Pages of bits that it has.
    pages: usize,
    /// A write began and has not ended: whoever began it may have been dropped, and the write may
    /// still land. Nothing may be written over it.
    writing: AtomicBool,
}

impl<S: Store> IntentFile<S> {
    /// Makes a new file without a bit for a volume of the size of `map`.
    ///
    /// # Errors
    /// The operating system's.
    pub fn make(
        files: &impl LogFiles<Store = S>,
        volume: VolumeId,
        map: &IntentMap,
    ) -> io::Result<Self> {
        let content = new_file(volume, map.size_bytes());
        let store = files.make(&content)?;
        let pages = pages_in(content.len() as u64).expect("just made so");
        Ok(Self { store, pages, writing: AtomicBool::new(false) })
    }

    /// Reads the file of a volume, and puts its bits on `map`. What is read is durable: an agent
    /// that was killed may have written a page and not synced it, and nobody writes a bit again
    /// that is there.
    ///
    /// # Errors
    /// [`FileError`]; the map is then as it was.
    pub async fn read(store: S, volume: VolumeId, map: &IntentMap) -> Result<Self, FileError> {
        let file_bytes = store.geometry().size_bytes;
        let in_file = pages_in(file_bytes).filter(|pages| *pages >= pages_of(map.size_bytes()));
        let in_file = in_file.ok_or(Doubt::Length(file_bytes))?;
        store.sync().await?;
        let header = read_page(&store, 0).await?;
        Header::check(header.as_slice(), volume)?;
        let mut pages = Vec::new();
        for index in 0..in_file {
            let page = read_page(&store, place_of(index)).await?;
            pages.push(Page::decode(page.as_slice(), index)?);
        }
        for (index, page) in pages.iter().enumerate() {
            for n in page.marked() {
                let region = index as u64 * REGIONS_PER_PAGE + n;
                if region < map.regions() {
                    map.region(region).found(FlushEpoch(1));
                }
            }
        }
        Ok(Self { store, pages: in_file, writing: AtomicBool::new(false) })
    }

    /// Writes the pages that are not as the map is, and syncs. Gives their number. The caller is
    /// the only one.
    pub(super) async fn write_dirty(&self, map: &IntentMap) -> io::Result<u64> {
        // Relaxed: whoever writes has the lead, which orders it behind who wrote before.
        if self.writing.load(Ordering::Relaxed) {
            return Err(io::Error::other("a write of it was given up before its end"));
        }
        if pages_of(map.size_bytes()) > self.pages {
            return Err(io::Error::other("it has no room for the size that the volume has now"));
        }
        let dirty = (0..self.pages).filter(|index| map.take_dirty(*index));
        let pages: Vec<(usize, Page)> = dirty.map(|index| (index, image(map, index))).collect();
        if pages.is_empty() {
            return Ok(0);
        }
        self.writing.store(true, Ordering::Relaxed);
        for (index, page) in &pages {
            let mut chunk = Chunk::zeroed(PAGE_BYTES);
            chunk.as_mut_slice().copy_from_slice(page.as_bytes());
            self.store.write_at(chunk, place_of(*index), Durability::Cached).await.0?;
        }
        self.store.sync().await?;
        self.writing.store(false, Ordering::Relaxed);
        for (index, page) in &pages {
            let first = *index as u64 * REGIONS_PER_PAGE;
            page.marked().for_each(|n| map.region(first + n).set());
        }
        Ok(pages.len() as u64)
    }
}

/// What a page has to hold.
fn image(map: &IntentMap, index: usize) -> Page {
    let mut page = Page::empty(index);
    let first = index as u64 * REGIONS_PER_PAGE;
    let regions = first..map.regions().min(first + REGIONS_PER_PAGE);
    for region in regions.filter(|region| map.region(*region).is_marked()) {
        page.mark(region - first);
    }
    page.seal();
    page
}

async fn read_page<S: Store>(store: &S, at: u64) -> io::Result<Chunk> {
    let (read, chunk) = store.read_at(Chunk::zeroed(PAGE_BYTES), at).await;
    read.map(|()| chunk)
}
