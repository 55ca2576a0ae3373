//! The write-intent log's file: one bit for each region that may differ from the collector.
//!
//! ```text
//! page 0             header: the volume
//! page 1 + n         bits of regions 31,360 n and following
//! ```
//! A page has 4 KiB, in eight sectors that each stand for themselves: bits and a checksum. Pages are
//! written in their places, and synced before they are written again. A write that is cut off
//! leaves of each sector the old one or the new one, whichever arrived: the old one lacks only bits
//! that nobody has relied on yet, and may have bits that were cleared since. So no second place is
//! needed, where a disk writes a sector whole or not at all. Where it does not, or damages one
//! later, the checksum tells, and nothing can be said of the volume: it is compared whole, as when
//! the header is not that of this volume. A second place could not help: what is older may lack
//! bits that somebody relied on.
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
const SECTOR_MAGIC: u32 = u32::from_le_bytes(*b"TDMi");
/// What a disk writes whole or not at all, in bytes.
const SECTOR_BYTES: usize = 512;
const SECTORS: usize = PAGE_BYTES / SECTOR_BYTES;
const BITS_BYTES: usize = SECTOR_BYTES - 16;
const REGIONS_PER_SECTOR: u64 = BITS_BYTES as u64 * 8;

/// Regions that one page has the bits of.
pub const REGIONS_PER_PAGE: u64 = REGIONS_PER_SECTOR * SECTORS as u64;
/// Pages of the largest volume.
#[allow(clippy::cast_possible_truncation, reason = "some thousands")]
pub const PAGES_MAX: usize = VOLUME_BYTES_MAX.div_ceil(REGION_BYTES * REGIONS_PER_PAGE) as usize;

/// Pages of bits in a new file, at least: those of 980 GiB, in 36 KiB.
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
    let pages = (file_bytes / PAGE_BYTES as u64).checked_sub(1)?;
    let whole = file_bytes.is_multiple_of(PAGE_BYTES as u64);
    usize::try_from(pages).ok().filter(|pages| whole && *pages <= PAGES_MAX)
}

/// Where a page is, in bytes.
#[must_use]
pub fn place_of(page: usize) -> u64 {
    (1 + page as u64) * PAGE_BYTES as u64
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
    /// A sector is damaged.
    #[error("its page {0} is damaged")]
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

/// The bits of some regions, as they are on disk.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Sector {
    magic: U32,
    /// Counted through all pages.
    index: U32,
    /// XXH3-64 of the bytes before it and of those behind it.
    sum: U64,
    bits: [u8; BITS_BYTES],
}

const _: () = assert!(size_of::<Sector>() == SECTOR_BYTES);
const _: () = assert!(offset_of!(Sector, sum) == 8 && offset_of!(Sector, bits) == 16);

impl Sector {
    fn compute_sum(&self) -> u64 {
        let bytes = self.as_bytes();
        checksum::sum_parts(&[&bytes[..offset_of!(Self, sum)], &bytes[offset_of!(Self, bits)..]])
    }

    fn is_good(&self, index: usize) -> bool {
        self.magic.get() == SECTOR_MAGIC
            && self.index.get() as usize == index
            && self.sum.get() == self.compute_sum()
    }
}

/// A page of bits.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Page([Sector; SECTORS]);

const _: () = assert!(size_of::<Page>() == PAGE_BYTES);

impl Page {
    /// A page without a bit, not sealed.
    #[must_use]
    pub fn empty(index: usize) -> Self {
        let mut page = Self::new_zeroed();
        for (n, sector) in page.0.iter_mut().enumerate() {
            sector.magic = SECTOR_MAGIC.into();
            sector.index = u32::try_from(index * SECTORS + n).expect("of PAGES_MAX pages").into();
        }
        page
    }

    /// Sets the bit of the page's `n`th region.
    pub fn mark(&mut self, n: u64) {
        let (sector, bit) = (n / REGIONS_PER_SECTOR, n % REGIONS_PER_SECTOR);
        let place = |n: u64| usize::try_from(n).expect("of this page");
        self.0[place(sector)].bits[place(bit / 8)] |= 1 << (bit % 8);
    }

    /// The numbers of the regions of this page that have a bit, from its first one on.
    pub fn marked(&self) -> impl Iterator<Item = u64> {
        let bytes = self.0.iter().flat_map(|sector| sector.bits).enumerate();
        bytes.filter(|(_, byte)| *byte != 0).flat_map(|(at, byte)| {
            let set = (0..8).filter(move |bit| byte & (1 << bit) != 0);
            set.map(move |bit| at as u64 * 8 + bit)
        })
    }

    /// Makes its checksums.
    pub fn seal(&mut self) {
        self.0.iter_mut().for_each(|sector| sector.sum = sector.compute_sum().into());
    }

    /// Page `index`, as it was read from its place.
    ///
    /// # Errors
    /// [`Doubt::Page`] when anything of it is damaged.
    pub fn decode(place: &[u8], index: usize) -> Result<Self, Doubt> {
        let page = Self::read_from_bytes(place).map_err(|_| Doubt::Page(index))?;
        let is_good = |(n, sector): (usize, &Sector)| sector.is_good(index * SECTORS + n);
        if page.0.iter().enumerate().all(is_good) { Ok(page) } else { Err(Doubt::Page(index)) }
    }
}

/// The file of a volume without a bit, with room for twice its size.
#[must_use]
pub fn new_file(volume: VolumeId, size_bytes: u64) -> Vec<u8> {
    let mut file = Header::new(volume).as_bytes().to_vec();
    let pages = (2 * pages_of(size_bytes)).clamp(PAGES_MIN, PAGES_MAX);
    for index in 0..pages {
        let mut page = Page::empty(index);
        page.seal();
        file.extend(page.as_bytes());
    }
    file
}
