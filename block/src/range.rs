//! A range of bytes on a disk.

use std::fmt;

/// Bytes `[start, end)` of a disk. Never wraps: `start <= end` always holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// The range of `len` bytes from `start`, or `None` when its end does not fit in 64 bits.
    #[must_use]
    pub fn new(start: u64, len: u64) -> Option<Self> {
        start.checked_add(len).map(|end| Self { start, end })
    }

    /// The range `[start, end)`, or `None` when `end` lies before `start`.
    #[must_use]
    pub fn between(start: u64, end: u64) -> Option<Self> {
        (start <= end).then_some(Self { start, end })
    }

    /// First byte.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// First byte behind the range.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Length in bytes.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// True when the range holds no byte.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// True when both ranges share at least one byte.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// True when every byte of `other` lies in this range.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The shared bytes, or `None` when there are none.
    #[must_use]
    pub fn intersect(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(Self { start, end })
    }

    /// The smallest range with both ends on multiples of `unit` that contains this one.
    /// The end saturates at the last multiple that fits in 64 bits.
    #[must_use]
    pub fn align_outward(self, unit: u64) -> Self {
        let start = self.start - self.start % unit;
        let end = self.end.checked_next_multiple_of(unit).unwrap_or(u64::MAX - u64::MAX % unit);
        Self { start, end: end.max(start) }
    }

    /// The largest range with both ends on multiples of `unit` inside this one, or `None` when
    /// there is none.
    #[must_use]
    pub fn align_inward(self, unit: u64) -> Option<Self> {
        let start = self.start.checked_next_multiple_of(unit)?;
        let end = self.end - self.end % unit;
        (start < end).then_some(Self { start, end })
    }

    /// True when both ends are multiples of `unit`.
    #[must_use]
    pub const fn is_aligned(self, unit: u64) -> bool {
        self.start.is_multiple_of(unit) && self.end.is_multiple_of(unit)
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {}+{}", self.start, self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange::new(start, len).expect("test ranges fit")
    }

    #[test]
    fn alignment_moves_ends_the_right_way() {
        let r = range(1000, 5000);
        assert_eq!(r.align_outward(512), range(512, 5632));
        assert_eq!(r.align_inward(512), Some(range(1024, 4608)));
        assert_eq!(range(1000, 20).align_inward(512), None);
        assert_eq!(range(512, 0).align_inward(512), None);
    }

    #[test]
    fn ends_near_the_top_do_not_wrap() {
        assert_eq!(ByteRange::new(u64::MAX, 1), None);
        assert_eq!(range(u64::MAX - 3, 3).align_outward(4096).end(), u64::MAX - 4095);
        assert_eq!(range(u64::MAX - 3, 3).align_inward(4096), None);
    }
}
