//! A block device that this agent made: opened, tried and flushed.
//!
//! Everything here may wait for the agent's own answer, so it runs [`apart`](super::apart).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use tidemark_block::Chunk;

use super::error::{AttachError, AttachErrorKind};

/// What is read to see that a device answers; one block of any size that a disk may have.
const TRIED_BYTES: usize = 4096;
/// Unit of the sizes below `/sys/block`.
const SECTOR_BYTES: u64 = 512;

/// Reads the device's first bytes past the page cache.
pub(super) fn answers(device: &Path) -> Result<(), AttachError> {
    let failed = |source| {
        let doing = "is attached, but a read of its first block failed";
        AttachError::io(AttachErrorKind::NotAnswering, device, doing, source)
    };
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(device).map_err(failed)?;
    let mut chunk = Chunk::zeroed(TRIED_BYTES);
    match file.read_at(chunk.as_mut_slice(), 0) {
        Ok(0) => Err(failed(io::Error::other("the device is empty"))),
        Ok(_) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Opens the device so that nobody can mount it, or use it for something else, meanwhile.
pub(super) fn open_exclusively(device: &Path) -> Result<File, AttachError> {
    let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(device);
    opened.map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => AttachError::new(
            AttachErrorKind::InUse,
            device.display().to_string(),
            "somebody uses it exclusively who can't be seen from here: a mount in another \
             namespace (container) or a program that holds the disk; end that use first",
        ),
        _ => AttachError::io(AttachErrorKind::Kernel, device, "can't be opened", error),
    })
}

/// Brings what was written to the device onto the volume's backing store.
pub(super) fn flush(device: &Path, file: &File) -> Result<(), AttachError> {
    file.sync_all().map_err(|source| {
        let doing = "could not be flushed, so it stays attached; what was written to it last may \
                     not be on the volume";
        AttachError::io(AttachErrorKind::Flush, device, doing, source)
    })
}

/// Size of the device in bytes, in the kernel's units of 512; `None` when it is not there.
pub(super) fn size_bytes(device: &Path) -> Option<u64> {
    attribute(device, "size")?.parse::<u64>().ok()?.checked_mul(SECTOR_BYTES)
}

/// One attribute of a device below `/sys/block`, without the end of its line; `None` when the
/// device or the attribute is not there.
pub(super) fn attribute(device: &Path, name: &str) -> Option<String> {
    let directory = Path::new("/sys/block").join(device.file_name()?);
    let text = fs::read_to_string(directory.join(name)).ok()?;
    Some(text.trim_end_matches('\n').to_owned())
}
