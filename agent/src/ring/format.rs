//! The bytes of a ring's file, version 1.
//!
//! ```text
//! header page   FixedHeader at 0, the words of Words from 128 on, zeroes up to 4096
//! slots         slot_count times Slot
//! sums          page_count times u64: XXH3-64 of the piece of payload in the page
//! pages         page_count times 4096 bytes
//! ```
//! Each part begins on a page. A payload at byte `offset` of the volume begins at
//! `offset % 4096` of its first page, so piece `i` of [`tidemark_wire::checksum::pieces`] lies in
//! page `i` of the extent and its checksum in `sums[first_page + i]`.
//!
//! The fixed header is written last at creation and never again; a file whose creation was cut
//! off has no magic. The words belong to the ring's core and are only ever whole 64-bit stores.

use std::mem::{offset_of, size_of};

use tidemark_wire::record::RecordHeader;
use tidemark_wire::{VolumeId, checksum};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first bytes of a ring's file.
pub const MAGIC: [u8; 8] = *b"TDMKRING";
/// Version of the layout.
pub const VERSION: u32 = 1;
/// Unit of payload memory, in bytes; the wire's unit of checksums.
pub const PAGE_BYTES: usize = tidemark_wire::limits::CHECK_BLOCK_BYTES as usize;
/// Payload memory comes in multiples of this, in bytes: what one word of the allocator holds.
pub const RING_UNIT_BYTES: u64 = 64 * PAGE_BYTES as u64;
/// Least payload memory, in bytes.
pub const RING_BYTES_MIN: u64 = 4 * RING_UNIT_BYTES;
/// Most payload memory, in bytes.
pub const RING_BYTES_MAX: u64 = 16 << 30;
/// Least number of slots.
pub const SLOTS_MIN: u32 = 16;
/// Most slots.
pub const SLOTS_MAX: u32 = 1 << 22;

/// What the file is, fixed at creation.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct FixedHeader {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: U32,
    /// Length of the header page.
    pub header_bytes: U32,
    /// The volume.
    pub volume: [u8; 16],
    /// The boot of the machine in which the ring was made.
    pub boot_id: [u8; 16],
    /// Number of payload pages.
    pub page_count: U32,
    /// Number of slots.
    pub slot_count: U32,
    /// Length of the whole file.
    pub file_bytes: U64,
    /// Zero.
    pub reserved: [u8; 56],
    /// XXH3-64 of the bytes before it.
    pub header_sum: U64,
}

/// The words that change; their offsets are from the start of the file. Words that different
/// threads write lie in cache lines (pairs of them) of their own.
#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Words {
    /// The fixed header's place.
    pub fixed: [u8; 128],
    /// Next ticket to be claimed.
    pub tail: u64,
    /// Sequence number = this + ticket.
    pub seq_base: u64,
    /// Largest time that a claim asked for, in microseconds since the epoch.
    pub last_time: u64,
    /// Spacing.
    pub pad_producers: [u64; 13],
    /// Oldest ticket that is not released.
    pub head: u64,
    /// Largest sequence number that was released.
    pub released_seq: u64,
    /// Spacing.
    pub pad_consumer: [u64; 14],
    /// Ticket that the consumer waits for.
    pub wanted: u64,
    /// 1 while the consumer sleeps.
    pub sleeping: u32,
    /// Spacing.
    pub pad_bell: [u32; 29],
    /// 1 while writes are not captured.
    pub capture_off: u64,
}

/// One slot.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Slot {
    /// 8 * ticket + state (0 free, 2 in flight, 3 committed, 4 void).
    pub stamp: U64,
    /// First page of the payload.
    pub first_page: U32,
    /// Pages of the payload; 0 where there is none.
    pub pages: U32,
    /// Zero.
    pub reserved: [u8; 48],
    /// The record's header, sealed; valid in the states in flight and committed.
    pub header: RecordHeader,
}

const _: () = {
    assert!(cfg!(target_endian = "little"), "the words of the file are little-endian");
    assert!(size_of::<FixedHeader>() == 128);
    assert!(offset_of!(FixedHeader, version) == 8);
    assert!(offset_of!(FixedHeader, header_bytes) == 12);
    assert!(offset_of!(FixedHeader, volume) == 16);
    assert!(offset_of!(FixedHeader, boot_id) == 32);
    assert!(offset_of!(FixedHeader, page_count) == 48);
    assert!(offset_of!(FixedHeader, slot_count) == 52);
    assert!(offset_of!(FixedHeader, file_bytes) == 56);
    assert!(offset_of!(FixedHeader, header_sum) == 120);
    assert!(offset_of!(Words, tail) == 128);
    assert!(offset_of!(Words, seq_base) == 136);
    assert!(offset_of!(Words, last_time) == 144);
    assert!(offset_of!(Words, head) == 256);
    assert!(offset_of!(Words, released_seq) == 264);
    assert!(offset_of!(Words, wanted) == 384);
    assert!(offset_of!(Words, sleeping) == 392);
    assert!(offset_of!(Words, capture_off) == 512);
    assert!(size_of::<Words>() <= PAGE_BYTES);
    assert!(size_of::<Slot>() == 128);
    assert!(offset_of!(Slot, stamp) == 0);
    assert!(offset_of!(Slot, first_page) == 8);
    assert!(offset_of!(Slot, pages) == 12);
    assert!(offset_of!(Slot, header) == 64);
};

/// Length of a [`Slot`] in bytes.
pub const SLOT_BYTES: usize = size_of::<Slot>();
const SUMMED_BYTES: usize = offset_of!(FixedHeader, header_sum);

/// Where the parts of a file with so many pages and slots lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Number of payload pages.
    pub page_count: u32,
    /// Number of slots.
    pub slot_count: u32,
}

impl Layout {
    /// First byte of a slot.
    #[must_use]
    pub const fn slot_at(self, slot: usize) -> usize {
        PAGE_BYTES + slot * SLOT_BYTES
    }

    /// First byte of the checksum of a page.
    #[must_use]
    pub const fn sum_at(self, page: u32) -> usize {
        self.slot_at(self.slot_count as usize).next_multiple_of(PAGE_BYTES)
            + page as usize * size_of::<U64>()
    }

    /// First byte of a page.
    #[must_use]
    pub const fn page_at(self, page: u32) -> usize {
        self.sum_at(self.page_count).next_multiple_of(PAGE_BYTES) + page as usize * PAGE_BYTES
    }

    /// Length of the file.
    #[must_use]
    pub const fn file_bytes(self) -> usize {
        self.page_at(self.page_count)
    }
}

impl FixedHeader {
    /// The header of a new file.
    #[must_use]
    pub fn new(volume: VolumeId, boot_id: [u8; 16], layout: Layout) -> Self {
        let mut header = Self {
            magic: MAGIC,
            version: VERSION.into(),
            header_bytes: 4096.into(),
            volume: volume.to_bytes(),
            boot_id,
            page_count: layout.page_count.into(),
            slot_count: layout.slot_count.into(),
            file_bytes: (layout.file_bytes() as u64).into(),
            reserved: [0; 56],
            header_sum: 0.into(),
        };
        header.header_sum = header.compute_sum().into();
        header
    }

    /// The checksum that `header_sum` should be.
    #[must_use]
    pub fn compute_sum(&self) -> u64 {
        checksum::sum(&self.as_bytes()[..SUMMED_BYTES])
    }

    /// The layout, once the checksum is known to hold.
    #[must_use]
    pub fn layout(&self) -> Layout {
        Layout { page_count: self.page_count.get(), slot_count: self.slot_count.get() }
    }
}
