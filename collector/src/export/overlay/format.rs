//! The files of a clone, version 1, byte by byte. This is the format's only home.
//!
//! ```text
//! overlay.data    the disk's bytes at their own places, sparse, no header; only what the map
//!                 calls data means anything
//! overlay.map     Head (MAP_MAGIC), zeroes up to BODY_AT, then Entry[]: a log of pages
//! overlay.live    Head (LIVE_MAGIC), zeroes up to BODY_AT, then all pages one after the other
//! ```
//! The map has two bits for each block of BLOCK_BYTES, the first block in the lowest bits: 0 the
//! state below shows through, 1 data, 2 zeroes. A page is PAGE_BYTES of it.
//!
//! Order of writes. A block's bytes are in overlay.data before overlay.live says so, and that
//! before the client is answered; nothing is synced, so the two hold after a kill of the process,
//! and overlay.live is believed only in the boot that its head names. A flush takes a copy of the
//! pages that changed, syncs overlay.data, appends the pages to overlay.map and syncs it: that
//! file never says "data" of a block whose bytes could be lost, and is believed after any crash.
//! Within one page any mixture of two flushes is right, since each block by itself is either as
//! before or as after. overlay.map is written anew, synced and renamed at each start and when it
//! has grown; an entry of a flush that was not the last one and does not hold is damage, in the
//! last flush it is a torn write and everything from it on is passed over.

use std::mem::{offset_of, size_of};

use tidemark_wire::checksum;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Name of the file with the bytes.
pub(super) const DATA_FILE: &str = "overlay.data";
/// Name of the map that is believed after a crash of the machine.
pub(super) const MAP_FILE: &str = "overlay.map";
/// Name of the map that is believed within one boot.
pub(super) const LIVE_FILE: &str = "overlay.live";

/// Version of the format.
pub(super) const VERSION: u32 = 1;
/// First bytes of [`MAP_FILE`].
pub(super) const MAP_MAGIC: [u8; 8] = *b"TMKCMAP\0";
/// First bytes of [`LIVE_FILE`].
pub(super) const LIVE_MAGIC: [u8; 8] = *b"TMKCLIV\0";
/// First bytes of an [`Entry`].
const ENTRY_MAGIC: [u8; 4] = *b"TMKE";

/// Unit in which bytes are the clone's own or the state's below.
pub(super) const BLOCK_BYTES: u64 = 4096;
/// Bytes of the map in one page: states of 16,128 blocks, 63 MiB of the disk.
pub(super) const PAGE_BYTES: usize = 4032;
/// Where the pages or entries begin.
pub(super) const BODY_AT: u64 = 4096;
/// Length of an entry.
pub(super) const ENTRY_BYTES: u64 = size_of::<Entry>() as u64;

/// Which clone a file belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Number of the export.
    pub clone: u64,
    /// The volume.
    pub volume: tidemark_wire::VolumeId,
    /// The state below.
    pub seq: tidemark_wire::Seq,
    /// Size of the disk.
    pub size_bytes: u64,
}

/// A boot of the machine, as the kernel names it.
pub type BootId = [u8; 16];

/// Start of both maps.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Head {
    magic: [u8; 8],
    version: U32,
    block_bytes: U32,
    clone: U64,
    seq: U64,
    size_bytes: U64,
    volume: [u8; 16],
    /// Zero in [`MAP_FILE`].
    pub(super) boot: BootId,
    reserved: [u8; 48],
    /// XXH3-64 of the bytes before it.
    sum: U64,
}

/// A page of the map as one flush left it.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Entry {
    /// XXH3-64 of the bytes behind it.
    sum: U64,
    magic: [u8; 4],
    /// Number of the page.
    pub(super) page: U32,
    /// Number of the entry in its file, from 0 on.
    number: U64,
    /// Number of the flush that wrote it, from 1 on.
    pub(super) flush: U64,
    /// Entries of the same flush behind this one.
    pub(super) left: U32,
    reserved: [u8; 28],
    pub(super) body: [u8; PAGE_BYTES],
}

const _: () = {
    assert!(size_of::<Head>() == 128);
    assert!(offset_of!(Head, clone) == 16);
    assert!(offset_of!(Head, volume) == 40);
    assert!(offset_of!(Head, boot) == 56);
    assert!(offset_of!(Head, sum) == 120);
    assert!(size_of::<Entry>() == 4096);
    assert!(offset_of!(Entry, page) == 12);
    assert!(offset_of!(Entry, number) == 16);
    assert!(offset_of!(Entry, flush) == 24);
    assert!(offset_of!(Entry, left) == 32);
    assert!(offset_of!(Entry, body) == 64);
};

impl Head {
    pub(super) fn new(magic: [u8; 8], identity: &Identity, boot: BootId) -> Self {
        let mut head = Self {
            magic,
            version: VERSION.into(),
            block_bytes: u32::try_from(BLOCK_BYTES).expect("a small constant").into(),
            clone: identity.clone.into(),
            seq: identity.seq.0.into(),
            size_bytes: identity.size_bytes.into(),
            volume: identity.volume.to_bytes(),
            boot,
            reserved: [0; 48],
            sum: 0.into(),
        };
        head.sum = head.right_sum().into();
        head
    }

    fn right_sum(&self) -> u64 {
        checksum::sum(&self.as_bytes()[..offset_of!(Self, sum)])
    }

    /// Says what is wrong with a head that was read from a file of `identity`.
    pub(super) fn check(&self, magic: [u8; 8], identity: &Identity) -> Result<(), String> {
        if self.magic != magic {
            return Err("it is not a file of this kind".into());
        }
        if self.version.get() != VERSION {
            return Err(format!("version {}, this program knows {VERSION}", self.version));
        }
        if self.sum.get() != self.right_sum() {
            return Err("the checksum of its head does not hold".into());
        }
        let wanted = Self::new(magic, identity, self.boot);
        if self.as_bytes() != wanted.as_bytes() {
            return Err(format!(
                "it belongs to clone {} of state seq:{}, {} bytes",
                self.clone, self.seq, self.size_bytes
            ));
        }
        Ok(())
    }
}

impl Entry {
    pub(super) fn new(number: u64, flush: u64, left: u32, page: u32, body: &[u8]) -> Self {
        let mut entry = Self {
            sum: 0.into(),
            magic: ENTRY_MAGIC,
            page: page.into(),
            number: number.into(),
            flush: flush.into(),
            left: left.into(),
            reserved: [0; 28],
            body: [0; PAGE_BYTES],
        };
        entry.body[..body.len()].copy_from_slice(body);
        entry.sum = entry.right_sum().into();
        entry
    }

    fn right_sum(&self) -> u64 {
        checksum::sum(&self.as_bytes()[offset_of!(Self, magic)..])
    }

    /// Whether it is whole and the one that stands at `number` of a map of `pages` pages.
    pub(super) fn holds(&self, number: u64, pages: u32) -> bool {
        self.magic == ENTRY_MAGIC
            && self.number.get() == number
            && self.page.get() < pages
            && self.sum.get() == self.right_sum()
    }
}
