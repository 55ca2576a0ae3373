//! The ring's file: made, opened, locked and mapped, and the addresses of its parts.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::offset_of;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use zerocopy::FromBytes;

use super::error::{RingError, RingErrorKind as Kind};
use super::format::{
    FixedHeader, Layout, MAGIC, PAGE_BYTES, RING_BYTES_MAX, RING_BYTES_MIN, RING_UNIT_BYTES,
    SLOTS_MAX, SLOTS_MIN, Slot, VERSION, Words,
};
use super::order::Cells;
use super::{Mlock, RingSpec};

/// The mapped bytes of one ring.
///
/// Who may touch what: the words are atomics; a slot but its stamp belongs to who owns its
/// ticket ([`super::order`]); a page and its checksum belong to who owns its bit
/// ([`super::pages`]).
pub(super) struct Mapping {
    map: MmapRaw,
    layout: Layout,
    /// Holds the lock on the file for as long as the bytes are mapped.
    _lock: Option<Flock<File>>,
}

impl Mapping {
    /// Memory without a file, for a ring that need not outlive its process.
    pub(super) fn anonymous(spec: &RingSpec) -> Result<Self, RingError> {
        let path = Path::new("(memory)");
        let layout = checked_layout(spec, path)?;
        let map = MmapOptions::new()
            .len(layout.file_bytes())
            .map_anon()
            .map_err(|e| RingError::io(Kind::Io, path, "map memory", e))?;
        Ok(Self { map: MmapRaw::from(map), layout, _lock: None })
    }

    /// Makes the file, with no header yet.
    pub(super) fn create(path: &Path, spec: &RingSpec, mlock: Mlock) -> Result<Self, RingError> {
        let layout = checked_layout(spec, path)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|e| open_error(path, e))?;
        let made = Self::fill(path, file, layout, mlock);
        if made.is_err() {
            // The first error is the one to report; a file that stays is refused as no ring.
            let _ = std::fs::remove_file(path);
        }
        made
    }

    fn fill(path: &Path, file: File, layout: Layout, mlock: Mlock) -> Result<Self, RingError> {
        check_tmpfs(path, &file)?;
        let lock = lock(path, file)?;
        let len = libc::off_t::try_from(layout.file_bytes()).expect("bounded by RING_BYTES_MAX");
        // tmpfs gives up, and takes everything back, when a signal comes.
        let allocated = loop {
            match nix::fcntl::fallocate(&*lock, nix::fcntl::FallocateFlags::empty(), 0, len) {
                Err(nix::Error::EINTR) => {}
                allocated => break allocated,
            }
        };
        allocated.map_err(|errno| {
            let kind = if errno == nix::Error::ENOSPC { Kind::NoSpace } else { Kind::Io };
            RingError::io(kind, path, &format!("allocate {len} bytes"), errno.into())
        })?;
        Self::map(path, lock, layout, mlock)
    }

    /// Opens a file that a ring was made in, and checks that it is the one asked for.
    pub(super) fn open(path: &Path, spec: &RingSpec, mlock: Mlock) -> Result<Self, RingError> {
        let layout = checked_layout(spec, path)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|e| open_error(path, e))?;
        check_tmpfs(path, &file)?;
        let lock = lock(path, file)?;
        let mut bytes = [0; size_of::<FixedHeader>()];
        std::os::unix::fs::FileExt::read_exact_at(&*lock, &mut bytes, 0).map_err(|e| {
            let kind = match e.kind() {
                io::ErrorKind::UnexpectedEof => Kind::NotARing,
                _ => Kind::Io,
            };
            RingError::io(kind, path, "read the header", e)
        })?;
        let header = FixedHeader::read_from_bytes(&bytes).expect("as long as the header");
        check_header(path, &header, spec, layout)?;
        let len = lock.metadata().map_err(|e| RingError::io(Kind::Io, path, "get the size", e))?;
        if len.len() != layout.file_bytes() as u64 {
            let detail = format!("has {} bytes, not {}", len.len(), layout.file_bytes());
            return Err(RingError::new(Kind::Damaged, path, detail));
        }
        Self::map(path, lock, layout, mlock)
    }

    fn map(
        path: &Path,
        lock: Flock<File>,
        layout: Layout,
        mlock: Mlock,
    ) -> Result<Self, RingError> {
        let map = MmapOptions::new()
            .len(layout.file_bytes())
            .map_raw(&*lock)
            .map_err(|e| RingError::io(Kind::Io, path, "map the file", e))?;
        match (mlock, map.lock()) {
            (Mlock::Required, Err(e)) => {
                return Err(RingError::io(Kind::NotLocked, path, "lock the memory", e));
            }
            (Mlock::WherePermitted, Err(e)) => {
                tracing::warn!("change ring {}: its memory is not locked: {e}", path.display());
            }
            (_, Ok(())) => {}
        }
        Ok(Self { map, layout, _lock: Some(lock) })
    }

    /// Writes the fixed header, after which the file is a ring.
    pub(super) fn publish(&self, spec: &RingSpec) {
        let header = FixedHeader::new(spec.volume, spec.boot_id, self.layout);
        // Release, for whoever finds the file after a kill: all other bytes came before. No
        // thread of this process reads the fixed header.
        fence(Ordering::Release);
        // SAFETY: the fixed header's bytes are at the start of the mapping, and nobody else
        // has the mapping yet.
        unsafe { self.map.as_mut_ptr().cast::<FixedHeader>().write(header) };
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.map.len(), "offset {offset} in the ring's mapping");
        // SAFETY: the offset lies in the mapping, as was just checked.
        unsafe { self.map.as_mut_ptr().add(offset) }
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: the address is in the mapping, which lives as long as `self`; all offsets
        // given here are multiples of 8 by the assertions in `format`; words are only ever
        // accessed as atomics while the mapping is shared.
        unsafe { AtomicU64::from_ptr(self.at(offset).cast()) }
    }

    pub(super) fn released_seq(&self) -> &AtomicU64 {
        self.word(offset_of!(Words, released_seq))
    }

    pub(super) fn wanted(&self) -> &AtomicU64 {
        self.word(offset_of!(Words, wanted))
    }

    pub(super) fn capture_off(&self) -> &AtomicU64 {
        self.word(offset_of!(Words, capture_off))
    }

    pub(super) fn sleeping(&self) -> &AtomicU32 {
        // SAFETY: as for `word`; the offset is a multiple of 4.
        unsafe { AtomicU32::from_ptr(self.at(offset_of!(Words, sleeping)).cast()) }
    }

    /// The bytes of a slot. Its stamp is only to be touched through [`Cells::stamp`].
    pub(super) fn slot(&self, slot: usize) -> *mut Slot {
        assert!(slot < self.layout.slot_count as usize, "slot {slot}");
        self.at(self.layout.slot_at(slot)).cast()
    }

    /// The checksum of a page; those of an extent follow each other.
    pub(super) fn sum(&self, page: u32) -> *mut u8 {
        assert!(page < self.layout.page_count, "page {page}");
        self.at(self.layout.sum_at(page))
    }

    /// The first byte of a page.
    pub(super) fn page(&self, page: u32) -> *mut u8 {
        assert!(page < self.layout.page_count, "page {page}");
        self.at(self.layout.page_at(page))
    }
}

impl Cells for Mapping {
    type Word = AtomicU64;

    fn tail(&self) -> &AtomicU64 {
        self.word(offset_of!(Words, tail))
    }

    fn head(&self) -> &AtomicU64 {
        self.word(offset_of!(Words, head))
    }

    fn seq_base(&self) -> &AtomicU64 {
        self.word(offset_of!(Words, seq_base))
    }

    fn last_time(&self) -> &AtomicU64 {
        self.word(offset_of!(Words, last_time))
    }

    fn stamp(&self, slot: usize) -> &AtomicU64 {
        self.word(self.layout.slot_at(slot) + offset_of!(Slot, stamp))
    }

    fn slot_count(&self) -> u64 {
        u64::from(self.layout.slot_count)
    }
}

fn checked_layout(spec: &RingSpec, path: &Path) -> Result<Layout, RingError> {
    let (bytes, slots) = (spec.ring_bytes, spec.slots);
    if !(RING_BYTES_MIN..=RING_BYTES_MAX).contains(&bytes) || bytes % RING_UNIT_BYTES != 0 {
        let detail = format!(
            "ring_bytes is {bytes}, but has to be a multiple of {RING_UNIT_BYTES} from \
             {RING_BYTES_MIN} to {RING_BYTES_MAX}"
        );
        return Err(RingError::new(Kind::Size, path, detail));
    }
    if !(SLOTS_MIN..=SLOTS_MAX).contains(&slots) || !slots.is_power_of_two() {
        let detail = format!(
            "ring_slots is {slots}, but has to be a power of two from {SLOTS_MIN} to {SLOTS_MAX}"
        );
        return Err(RingError::new(Kind::Size, path, detail));
    }
    let pages = bytes / PAGE_BYTES as u64;
    let page_count = u32::try_from(pages).expect("bounded by RING_BYTES_MAX");
    Ok(Layout { page_count, slot_count: slots })
}

fn open_error(path: &Path, source: io::Error) -> RingError {
    let kind = match source.kind() {
        io::ErrorKind::AlreadyExists => Kind::Exists,
        io::ErrorKind::NotFound => Kind::Missing,
        _ => Kind::Io,
    };
    RingError::io(kind, path, "open the file", source)
}

fn check_tmpfs(path: &Path, file: &File) -> Result<(), RingError> {
    let fs = fstatfs(file)
        .map_err(|errno| RingError::io(Kind::Io, path, "get the file system", errno.into()))?;
    if fs.filesystem_type() == TMPFS_MAGIC {
        return Ok(());
    }
    let detail = format!("is on a file system of type {:#x}, not tmpfs", fs.filesystem_type().0);
    Err(RingError::new(Kind::NotTmpfs, path, detail))
}

pub(super) fn lock(path: &Path, file: File) -> Result<Flock<File>, RingError> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::Error::EWOULDBLOCK => RingError::new(Kind::InUse, path, "another process uses it"),
        other => RingError::io(Kind::Io, path, "lock the file", other.into()),
    })
}

fn check_header(
    path: &Path,
    header: &FixedHeader,
    spec: &RingSpec,
    layout: Layout,
) -> Result<(), RingError> {
    let refuse = |kind, detail: String| Err(RingError::new(kind, path, detail));
    if header.magic != MAGIC {
        return refuse(Kind::NotARing, "does not begin as a change ring does".into());
    }
    if header.version.get() != VERSION {
        let detail = format!("has version {}, this agent knows {VERSION}", header.version);
        return refuse(Kind::Version, detail);
    }
    if header.header_sum.get() != header.compute_sum() {
        return refuse(Kind::Damaged, "the header does not match its checksum".into());
    }
    if header.volume != spec.volume.to_bytes() {
        let other = tidemark_wire::VolumeId::from_bytes(header.volume);
        return refuse(Kind::OtherVolume, format!("is of volume {other}, not {}", spec.volume));
    }
    if header.boot_id != spec.boot_id {
        return refuse(Kind::OtherBoot, "is from before the machine was last started".into());
    }
    if header.layout() != layout {
        let detail = format!(
            "has {} pages and {} slots, the configuration says {} and {}",
            header.page_count, header.slot_count, layout.page_count, layout.slot_count
        );
        return refuse(Kind::OtherGeometry, detail);
    }
    Ok(())
}
