//! What a request asks of the device: pure decisions, no I/O.
//!
//! Enters: offset, length and flags as the kernel sent them, and the disk's geometry. Leaves: a
//! range on the disk and how to treat it, or an errno.

use fuser::{Errno, OpenAccMode, OpenFlags};

use crate::device::{Durability, Geometry, ZeroOptions};
use crate::range::ByteRange;

/// What to do for a `fallocate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Allocation {
    /// The range has to read as zeroes.
    Zero(ByteRange, ZeroOptions),
    /// Nothing to do: a disk has all its blocks.
    Nothing,
}

/// Decodes `fallocate(mode, offset, length)`.
///
/// Punching a hole is more than a trim: the loop driver punches for a discard, and also for
/// write-zeroes that may unmap, after which its client counts on zeroes.
pub(super) fn allocation(
    geometry: &Geometry,
    mode: i32,
    offset: u64,
    len: u64,
) -> Result<Allocation, Errno> {
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_KEEP_SIZE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

    if geometry.read_only {
        return Err(Errno::EROFS);
    }
    let range = ByteRange::new(offset, len).ok_or(Errno::EFBIG)?;
    let options = |no_hole| ZeroOptions { no_hole, fast: false, durability: Durability::Cached };
    match mode {
        // There is nothing behind the end to punch, so that part is done already.
        PUNCH => Ok(cut(geometry, range)
            .map_or(Allocation::Nothing, |inside| Allocation::Zero(inside, options(false)))),
        ZERO | ZERO_KEEP_SIZE | 0 | libc::FALLOC_FL_KEEP_SIZE
            if range.end() > geometry.size_bytes =>
        {
            Err(Errno::ENOSPC)
        }
        ZERO | ZERO_KEEP_SIZE => Ok(Allocation::Zero(range, options(true))),
        0 | libc::FALLOC_FL_KEEP_SIZE => Ok(Allocation::Nothing),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// The part of a read that lies on the disk; `None` at or behind its end.
pub(super) fn readable(geometry: &Geometry, offset: u64, len: u32) -> Option<ByteRange> {
    cut(geometry, ByteRange::new(offset, u64::from(len))?)
}

/// The part of a write that lies on the disk. As on a block device, a write over the end is
/// shortened, and one behind the end fails with `ENOSPC`.
pub(super) fn writable(geometry: &Geometry, offset: u64, len: u64) -> Result<ByteRange, Errno> {
    if geometry.read_only {
        return Err(Errno::EROFS);
    }
    let range = ByteRange::new(offset, len).ok_or(Errno::EFBIG)?;
    if range.is_empty() { Ok(range) } else { cut(geometry, range).ok_or(Errno::ENOSPC) }
}

/// When a write to a file that was opened with these flags counts as done.
pub(super) fn durability(flags: OpenFlags) -> Durability {
    // O_SYNC contains the bit of O_DSYNC.
    if flags.0 & libc::O_DSYNC == 0 { Durability::Cached } else { Durability::Stable }
}

/// True when a file opened with these flags may be written to; refused for a read-only disk.
pub(super) fn opened_for_writing(geometry: &Geometry, flags: OpenFlags) -> Result<bool, Errno> {
    let for_writing = flags.acc_mode() != OpenAccMode::O_RDONLY;
    if for_writing && geometry.read_only { Err(Errno::EROFS) } else { Ok(for_writing) }
}

fn cut(geometry: &Geometry, range: ByteRange) -> Option<ByteRange> {
    range.intersect(ByteRange::new(0, geometry.size_bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Geometry = Geometry {
        size_bytes: 10_000,
        block_bytes_min: 1,
        block_bytes_preferred: 4096,
        read_only: false,
        fast_zero: true,
    };
    const READ_ONLY: Geometry = Geometry { read_only: true, ..DISK };
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange::new(start, len).expect("test ranges fit")
    }

    fn zero(start: u64, len: u64, no_hole: bool) -> Result<Allocation, Errno> {
        let options = ZeroOptions { no_hole, fast: false, durability: Durability::Cached };
        Ok(Allocation::Zero(range(start, len), options))
    }

    #[test]
    fn punching_zeroes_and_may_leave_a_hole() {
        assert_eq!(allocation(&DISK, PUNCH, 100, 200), zero(100, 200, false));
        assert_eq!(allocation(&DISK, PUNCH, 9_000, 5_000), zero(9_000, 1_000, false));
        assert_eq!(allocation(&DISK, PUNCH, 10_000, 1), Ok(Allocation::Nothing));
    }

    #[test]
    fn zeroing_keeps_the_space() {
        assert_eq!(allocation(&DISK, ZERO, 0, 10_000), zero(0, 10_000, true));
        assert_eq!(allocation(&DISK, ZERO | KEEP, 5, 7), zero(5, 7, true));
    }

    #[test]
    fn a_disk_can_not_grow() {
        for mode in [0, KEEP, ZERO, ZERO | KEEP] {
            assert_eq!(allocation(&DISK, mode, 9_999, 2), Err(Errno::ENOSPC), "mode {mode:#x}");
            assert_eq!(allocation(&DISK, mode, u64::MAX, 2), Err(Errno::EFBIG), "mode {mode:#x}");
        }
        assert_eq!(allocation(&DISK, 0, 0, 10_000), Ok(Allocation::Nothing));
        assert_eq!(allocation(&DISK, KEEP, 10, 20), Ok(Allocation::Nothing));
    }

    #[test]
    fn other_modes_are_refused() {
        for mode in [
            libc::FALLOC_FL_COLLAPSE_RANGE,
            libc::FALLOC_FL_INSERT_RANGE,
            libc::FALLOC_FL_UNSHARE_RANGE,
            libc::FALLOC_FL_PUNCH_HOLE,
            PUNCH | ZERO,
            -1,
        ] {
            assert_eq!(allocation(&DISK, mode, 0, 1), Err(Errno::EOPNOTSUPP), "mode {mode:#x}");
        }
    }

    #[test]
    fn a_read_only_disk_refuses_every_change() {
        assert_eq!(allocation(&READ_ONLY, PUNCH, 0, 1), Err(Errno::EROFS));
        assert_eq!(allocation(&READ_ONLY, 0, 0, 1), Err(Errno::EROFS));
        assert_eq!(writable(&READ_ONLY, 0, 1), Err(Errno::EROFS));
        assert_eq!(opened_for_writing(&READ_ONLY, OpenFlags(libc::O_RDWR)), Err(Errno::EROFS));
        assert_eq!(opened_for_writing(&READ_ONLY, OpenFlags(libc::O_RDONLY)), Ok(false));
        assert_eq!(opened_for_writing(&DISK, OpenFlags(libc::O_WRONLY)), Ok(true));
    }

    #[test]
    fn reads_and_writes_end_with_the_disk() {
        assert_eq!(readable(&DISK, 9_000, 4096), Some(range(9_000, 1_000)));
        assert_eq!(readable(&DISK, 10_000, 1), None);
        assert_eq!(readable(&DISK, u64::MAX, 1), None);
        assert_eq!(writable(&DISK, 9_000, 4096), Ok(range(9_000, 1_000)));
        assert_eq!(writable(&DISK, 10_000, 1), Err(Errno::ENOSPC));
        assert_eq!(writable(&DISK, 10_000, 0), Ok(range(10_000, 0)));
        assert_eq!(writable(&DISK, u64::MAX, 2), Err(Errno::EFBIG));
    }

    #[test]
    fn both_sync_flags_make_a_write_stable() {
        assert_eq!(durability(OpenFlags(libc::O_RDWR)), Durability::Cached);
        assert_eq!(durability(OpenFlags(libc::O_RDWR | libc::O_DSYNC)), Durability::Stable);
        assert_eq!(durability(OpenFlags(libc::O_RDWR | libc::O_SYNC)), Durability::Stable);
    }
}
