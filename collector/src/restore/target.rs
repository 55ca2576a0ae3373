//! What a restore writes to.

use tidemark_block::ByteRange;

use crate::error::Result;

/// Unit of zeroes: whatever begins and ends on it and reads as zeroes is zeroed, not written.
pub(super) const BLOCK_BYTES: usize = 64 << 10;

/// A target that is open. Errors name the file or device.
pub(super) trait Target {
    /// Writes bytes at a place on the disk.
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()>;

    /// Makes a range read as zeroes, without taking space where that is possible.
    fn zero(&mut self, range: ByteRange) -> Result<()>;

    /// Reads back what was written.
    fn read(&mut self, at: u64, bytes: &mut [u8]) -> Result<()>;

    /// Whether a range is known to read as zeroes without reading it.
    fn is_hole(&mut self, range: ByteRange) -> Result<bool>;

    /// Makes everything so far survive a power cut.
    fn sync(&mut self) -> Result<()>;

    /// Everything is written: makes it durable and gives it its name.
    fn finish(self: Box<Self>, overwrite: bool) -> Result<()>;

    /// The restore ends early. `keep` when there is something to go on with; otherwise what was
    /// made is removed.
    fn leave(self: Box<Self>, keep: bool);
}
