//! A block device as a target.
//!
//! It is opened exclusively, so the kernel refuses it while it is mounted or held by anything
//! else, and refuses others as long as the restore runs. Ranges of zeroes are given back to the
//! device where it promises zeroes for that (PUNCH_HOLE of the kernel's block layer), and are
//! written otherwise. What lies behind the volume's size on a larger device stays as it is.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag};
use tidemark_block::ByteRange;

use super::device_facts::DeviceFacts;
use super::raw::{allocate, write_zeroes};
use super::target::Target;
use crate::error::{Failure, Result};

/// No device has larger blocks than this; zeroes are asked for in whole blocks.
const ALIGNMENT: u64 = 64 << 10;

/// The device.
pub(super) struct Device {
    file: File,
    path: PathBuf,
    /// The device gives zeroes for what is discarded.
    punches: bool,
    /// The kernel zeroes ranges.
    zeroes: bool,
}

impl Device {
    pub(super) fn open(path: &Path, size_bytes: u64) -> Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_EXCL.bits())
            .open(path)
            .map_err(|source| refusal(path, source))?;
        let found =
            file.seek(SeekFrom::End(0)).map_err(|source| Failure::io("look at", path, source))?;
        if found < size_bytes {
            return Err(too_small(path, found, size_bytes));
        }
        Ok(Self { file, path: path.to_owned(), punches: true, zeroes: true })
    }

    fn try_zero(&self, flags: FallocateFlags, inner: ByteRange) -> Result<bool> {
        match allocate(&self.file, flags | FallocateFlags::FALLOC_FL_KEEP_SIZE, inner) {
            Ok(()) => Ok(true),
            Err(Errno::EOPNOTSUPP | Errno::EINVAL) => Ok(false),
            Err(errno) => Err(Failure::io("write", &self.path, errno.into())),
        }
    }

    fn write_zeroes(&self, range: ByteRange) -> Result<()> {
        let written = write_zeroes(&self.file, range);
        written.map_err(|source| Failure::io("write", &self.path, source))
    }
}

pub(super) fn too_small(path: &Path, found: u64, size_bytes: u64) -> Failure {
    Failure::conflict(format!(
        "{} has {found} bytes, the volume has {size_bytes} at that state",
        path.display()
    ))
    .with_hint("choose a device that is at least as large")
}

/// Why the kernel did not let us have the device.
fn refusal(path: &Path, source: std::io::Error) -> Failure {
    if source.raw_os_error() != Some(Errno::EBUSY as i32) {
        return Failure::io("open", path, source);
    }
    let users = DeviceFacts::of(path).map(|facts| facts.users()).unwrap_or_default();
    let users = match users.as_slice() {
        [] => "by another program or in another mount namespace".to_owned(),
        users => users.join(", "),
    };
    Failure::conflict(format!("{} is in use: {users}", path.display()))
        .with_hint("unmount it or stop what uses it, or choose another device")
        .because(source)
}

impl Target for Device {
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all_at(bytes, at);
        written.map_err(|source| Failure::io("write", &self.path, source))
    }

    fn zero(&mut self, range: ByteRange) -> Result<()> {
        let Some(inner) = range.align_inward(ALIGNMENT) else { return self.write_zeroes(range) };
        if self.punches {
            self.punches = self.try_zero(FallocateFlags::FALLOC_FL_PUNCH_HOLE, inner)?;
        }
        if !self.punches && self.zeroes {
            self.zeroes = self.try_zero(FallocateFlags::FALLOC_FL_ZERO_RANGE, inner)?;
        }
        if !self.punches && !self.zeroes {
            return self.write_zeroes(range);
        }
        for edge in [(range.start(), inner.start()), (inner.end(), range.end())] {
            let edge = ByteRange::between(edge.0, edge.1).expect("the inner range is inside");
            self.write_zeroes(edge)?;
        }
        Ok(())
    }

    fn read(&mut self, at: u64, bytes: &mut [u8]) -> Result<()> {
        let read = self.file.read_exact_at(bytes, at);
        read.map_err(|source| Failure::io("read", &self.path, source))
    }

    fn is_hole(&mut self, _: ByteRange) -> Result<bool> {
        Ok(false)
    }

    fn sync(&mut self) -> Result<()> {
        self.file.sync_all().map_err(|source| Failure::io("sync", &self.path, source))
    }

    fn finish(mut self: Box<Self>, _: bool) -> Result<()> {
        self.sync()
    }

    fn leave(self: Box<Self>, _: bool) {}
}
