//! `SEEK_DATA` and `SEEK_HOLE`, from what [`Device::block_status`] says.
//!
//! A range that reads as zeroes counts as a hole, allocated or not; one that is not allocated but
//! may read as something else counts as data, so that a copy by holes is always a true copy.

use fuser::Errno;

use crate::device::{Device, DeviceError, StatusExtent};
use crate::range::ByteRange;

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Data,
    Hole,
}

/// Extents asked for at a time.
const EXTENTS_MAX: usize = 64;

impl Target {
    /// Decodes the `whence` of an `lseek`; the kernel answers the other ones itself.
    pub(super) fn from_whence(whence: i32) -> Result<Self, Errno> {
        match whence {
            libc::SEEK_DATA => Ok(Self::Data),
            libc::SEEK_HOLE => Ok(Self::Hole),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Walks `extents` from `position` on: the place of the first one that is looked for, or the
    /// end of the last one.
    fn walk(self, mut position: u64, extents: &[StatusExtent]) -> Result<u64, u64> {
        for extent in extents {
            let found = match self {
                Self::Data => !extent.zero,
                Self::Hole => extent.zero,
            };
            if found {
                return Ok(position);
            }
            position = position.saturating_add(extent.len_bytes);
        }
        Err(position)
    }

    /// The answer when the end of the disk is reached: there is a hole behind every file.
    fn at_end(self, size_bytes: u64) -> Option<u64> {
        match self {
            Self::Data => None,
            Self::Hole => Some(size_bytes),
        }
    }

    /// The answer when the device can't tell: all is data.
    fn unknown(self, position: u64, size_bytes: u64) -> u64 {
        match self {
            Self::Data => position,
            Self::Hole => size_bytes,
        }
    }
}

/// The first place at or behind `offset` where `target` begins; `None` when there is none on the
/// disk (`ENXIO`).
pub(super) async fn seek<D: Device>(
    device: &D,
    offset: u64,
    target: Target,
) -> Result<Option<u64>, DeviceError> {
    let size_bytes = device.geometry().size_bytes;
    if offset >= size_bytes {
        return Ok(None);
    }
    let mut position = offset;
    let mut extents = Vec::with_capacity(EXTENTS_MAX);
    while let Some(rest) = ByteRange::between(position, size_bytes).filter(|r| !r.is_empty()) {
        extents.clear();
        match device.block_status(rest, EXTENTS_MAX, &mut extents).await {
            Ok(()) => {}
            Err(DeviceError::Unsupported(_)) => {
                return Ok(Some(target.unknown(position, size_bytes)));
            }
            Err(error) => return Err(error),
        }
        match target.walk(position, &extents) {
            Ok(found) => return Ok(Some(found)),
            // A device that does not get on is a device that can't tell.
            Err(end) if end == position => return Ok(Some(target.unknown(position, size_bytes))),
            Err(end) => position = end,
        }
    }
    Ok(target.at_end(size_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: StatusExtent = StatusExtent { len_bytes: 100, hole: false, zero: false };
    const HOLE: StatusExtent = StatusExtent { len_bytes: 100, hole: true, zero: true };
    const ALLOCATED_ZEROES: StatusExtent = StatusExtent { len_bytes: 100, hole: false, zero: true };
    const UNDEFINED: StatusExtent = StatusExtent { len_bytes: 100, hole: true, zero: false };

    #[test]
    fn the_first_match_is_found() {
        assert_eq!(Target::Data.walk(1000, &[HOLE, ALLOCATED_ZEROES, DATA]), Ok(1200));
        assert_eq!(Target::Hole.walk(1000, &[DATA, DATA, HOLE]), Ok(1200));
        assert_eq!(Target::Hole.walk(1000, &[ALLOCATED_ZEROES]), Ok(1000));
    }

    #[test]
    fn what_may_read_as_anything_is_data() {
        assert_eq!(Target::Data.walk(0, &[UNDEFINED]), Ok(0));
        assert_eq!(Target::Hole.walk(0, &[UNDEFINED]), Err(100));
    }

    #[test]
    fn the_end_counts_as_a_hole_and_not_as_data() {
        assert_eq!(Target::Data.walk(1000, &[HOLE, HOLE]), Err(1200));
        assert_eq!(Target::Data.at_end(1200), None);
        assert_eq!(Target::Hole.at_end(1200), Some(1200));
    }

    #[test]
    fn other_whences_are_refused() {
        assert_eq!(Target::from_whence(libc::SEEK_DATA), Ok(Target::Data));
        assert_eq!(Target::from_whence(libc::SEEK_HOLE), Ok(Target::Hole));
        assert_eq!(Target::from_whence(libc::SEEK_SET), Err(Errno::EINVAL));
    }
}
