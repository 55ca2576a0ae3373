//! The write-intent log's file: one bit for each region that may differ from the collector.
//!
//! ```text
//! page 0             header: the volume
//! page 1 + 2 n       bits of regions 32,512 n and following, written by even generations
//! page 2 + 2 n       the same, written by odd generations
//! ```
//! All pages have 4 KiB. The newer good one of the two counts. A page is written over the older of
//! the two, and synced before it is written again: a write that is cut off or torn leaves the newer
//! one, which lacks only bits that nobody has relied on, and may have bits that were cleared since.
//! When neither is good, or the header is not that of this volume, nothing can be said of the
//! volume: it is compared whole.
//!
//! The header is written once, before the file gets its name. A file has room for more regions than
//! its volume has, so that one that grows keeps it; bits behind the end of the volume say nothing.

use std::mem::{offset_of, size_of};

use tidemark_wire::{VolumeId, checksum};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::map::REGION_BYTES;
use tidemark_wire::limits::VOLUME_BYTES_MAX;

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Version of the format.
pub const VERSION: u32 = 1;

const FILE_MAGIC: [u8; 8] = *b"TDMINTNT";
const PAGE_MAGIC: u32 = u32::from_le_bytes(*b"TDMi");
const BITS_BYTES: usize = PAGE_BYTES - 32;

/// Regions that one page has the bits of.
pub const REGIONS_PER_PAGE: u64 = BITS_BYTES as u64 * 8;
/// Pages of the largest volume.
pub const PAGES_MAX: usize = VOLUME_BYTES_MAX.div_ceil(REGION_BYTES * REGIONS_PER_PAGE) as usize;

/// Pages of bits in a new file, at least: 1 TiB, in 68 KiB.
const PAGES_MIN: usize = 8;

/// The page that has a region's bit.
#[must_use]
pub fn page_of(region: u64) -> usize {
    usize::try_from(region / REGIONS_PER_PAGE).expect("at most PAGES_MAX")
}

/// Pages of bits that a volume needs.
#[must_use]
pub fn pages_of(size_bytes: u64) -> usize {
    usize::try_from(size_bytes.div_ceil(REGION_BYTES).div_ceil(REGIONS_PER_PAGE))
        .expect("at most PAGES_MAX")
}

/// Pages of bits in a file of so many bytes; `None` when no file has that length.
#[must_use]
pub fn pages_in(file_bytes: u64) -> Option<usize> {
    let pages = (file_bytes / PAGE_BYTES as u64).checked_sub(1)? / 2;
    let whole = (1 + 2 * pages) * PAGE_BYTES as u64 == file_bytes;
    usize::try_from(pages).ok().filter(|pages| whole && *pages <= PAGES_MAX)
}

/// Where a generation of a page is written, in bytes.
#[must_use]
pub fn place_of(page: usize, generation: u64) -> u64 {
    (1 + 2 * page as u64 + generation % 2) * PAGE_BYTES as u64
}

/// The first page.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    magic: [u8; 8],
    version: U32,
    region_bytes: U32,
    volume: [u8; 16],
    /// XXH3-64 of the bytes before it.
    sum: U64,
    reserved: [u8; PAGE_BYTES - 40],
}

const _: () = assert!(size_of::<Header>() == PAGE_BYTES);
const _: () = assert!(offset_of!(Header, volume) == 16 && offset_of!(Header, sum) == 32);

/// Why a file says nothing about a volume.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Doubt {
    /// It has a length that no log of the volume has.
    #[error("it has {0} bytes, as no log of the volume")]
    Length(u64),
    /// The header is damaged, or it is something else.
    #[error("it does not begin as a write-intent log, or is damaged there")]
    Header,
    /// It was written by another program.
    #[error("it has version {0}, this program knows {VERSION}")]
    Version(u32),
    /// It is that of another volume.
    #[error("it is that of volume {0}")]
    Volume(VolumeId),
    /// Neither place of a page is good.
    #[error("both copies of its page {0} are damaged")]
    Page(usize),
}

impl Header {
    /// The header of a volume's log.
    #[must_use]
    pub fn new(volume: VolumeId) -> Self {
        let mut header = Self {
            magic: FILE_MAGIC,
            version: VERSION.into(),
            region_bytes: u32::try_from(REGION_BYTES).expect("4 MiB").into(),
            volume: volume.to_bytes(),
            sum: 0.into(),
            reserved: [0; PAGE_BYTES - 40],
        };
        header.sum = header.compute_sum().into();
        header
    }

    fn compute_sum(&self) -> u64 {
        checksum::sum(&self.as_bytes()[..offset_of!(Header, sum)])
    }

    /// Checks that the page is the header of this volume's log.
    ///
    /// # Errors
    /// [`Doubt`].
    pub fn check(page: &[u8], volume: VolumeId) -> Result<(), Doubt> {
        let header = Self::read_from_bytes(page).map_err(|_| Doubt::Header)?;
        if header.magic != FILE_MAGIC || header.sum.get() != header.compute_sum() {
            return Err(Doubt::Header);
        }
        if header.version.get() != VERSION {
            return Err(Doubt::Version(header.version.get()));
        }
        if u64::from(header.region_bytes.get()) != REGION_BYTES {
            return Err(Doubt::Header);
        }
        if header.volume != volume.to_bytes() {
            return Err(Doubt::Volume(VolumeId::from_bytes(header.volume)));
        }
        Ok(())
    }
}

/// The bits of some regions.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Page {
    magic: U32,
    index: U32,
    generation: U64,
    reserved: U64,
    /// XXH3-64 of the bytes before it and of those behind it.
    sum: U64,
    bits: [u8; BITS_BYTES],
}

const _: () = assert!(size_of::<Page>() == PAGE_BYTES);
const _: () = assert!(offset_of!(Page, sum) == 24 && offset_of!(Page, bits) == 32);

impl Page {
    /// A page without a bit, not sealed.
    #[must_use]
    pub fn empty(index: usize, generation: u64) -> Self {
        let mut page = Self::new_zeroed();
        page.magic = PAGE_MAGIC.into();
        page.index = u32::try_from(index).expect("at most PAGES_MAX").into();
        page.generation = generation.into();
        page
    }

    /// Sets the bit of the page's `n`th region.
    pub fn mark(&mut self, n: u64) {
        let n = usize::try_from(n).expect("of this page");
        self.bits[n / 8] |= 1 << (n % 8);
    }

    /// The numbers of the regions of this page that have a bit, from its first one on.
    pub fn marked(&self) -> impl Iterator<Item = u64> {
        let bytes = self.bits.iter().enumerate().filter(|(_, byte)| **byte != 0);
        bytes.flat_map(|(at, byte)| {
            (0..8).filter(move |bit| byte & (1 << bit) != 0).map(move |bit| at as u64 * 8 + bit)
        })
    }

    /// Its generation.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// Makes its checksum.
    pub fn seal(&mut self) {
        self.sum = self.compute_sum().into();
    }

    fn compute_sum(&self) -> u64 {
        let bytes = self.as_bytes();
        checksum::sum_parts(&[&bytes[..offset_of!(Page, sum)], &bytes[offset_of!(Page, bits)..]])
    }

    /// Decodes a place of page `index`; `None` when it holds no good page.
    #[must_use]
    pub fn decode(place: &[u8], index: usize) -> Option<Self> {
        let page = Self::read_from_bytes(place).ok()?;
        let good = page.magic.get() == PAGE_MAGIC
            && page.index.get() as usize == index
            && page.sum.get() == page.compute_sum();
        good.then_some(page)
    }

    /// The page that counts, of what its two places hold.
    ///
    /// # Errors
    /// [`Doubt::Page`] when neither is good.
    pub fn newer(even: &[u8], odd: &[u8], index: usize) -> Result<Self, Doubt> {
        let even = Self::decode(even, index).filter(|page| page.generation() % 2 == 0);
        let odd = Self::decode(odd, index).filter(|page| page.generation() % 2 == 1);
        even.into_iter().chain(odd).max_by_key(Self::generation).ok_or(Doubt::Page(index))
    }
}

/// The file of a volume without a bit, with room for twice its size.
#[must_use]
pub fn new_file(volume: VolumeId, size_bytes: u64) -> Vec<u8> {
    let mut file = Header::new(volume).as_bytes().to_vec();
    let pages = (2 * pages_of(size_bytes)).clamp(PAGES_MIN, PAGES_MAX);
    for index in 0..pages {
        let mut page = Page::empty(index, 1);
        page.seal();
        file.extend([0; PAGE_BYTES]);
        file.extend(page.as_bytes());
    }
    file
}
