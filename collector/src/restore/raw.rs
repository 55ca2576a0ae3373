//! A raw sparse file as a target.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use tidemark_block::ByteRange;

use super::place::Partial;
use super::target::Target;
use crate::error::{Failure, Result};

static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// The file, under its partial name.
pub(super) struct RawFile {
    partial: Partial,
    /// From here on the file was one hole when it was opened.
    hole_from: u64,
}

impl RawFile {
    /// Opens the file for a disk of `size_bytes`. What an earlier run wrote behind `kept_bytes`
    /// is cut off, so that from there on the file is a hole.
    pub(super) fn open(target: &Path, size_bytes: u64, kept_bytes: u64) -> Result<Self> {
        let partial =
            if kept_bytes > 0 { Partial::reopen(target)? } else { Partial::create(target)? };
        let sized =
            partial.file.set_len(kept_bytes).and_then(|()| partial.file.set_len(size_bytes));
        sized.map_err(|source| Failure::io("size", &partial.path, source))?;
        Ok(Self { partial, hole_from: kept_bytes })
    }
}

impl Target for RawFile {
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let written = self.partial.file.write_all_at(bytes, at);
        written.map_err(|source| Failure::io("write", &self.partial.path, source))
    }

    fn zero(&mut self, range: ByteRange) -> Result<()> {
        if range.start() >= self.hole_from {
            return Ok(());
        }
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match allocate(&self.partial.file, flags, range) {
            Err(Errno::EOPNOTSUPP) => write_zeroes(&self.partial.file, range),
            done => done.map_err(Into::into),
        }
        .map_err(|source| Failure::io("write", &self.partial.path, source))
    }

    fn read(&mut self, at: u64, bytes: &mut [u8]) -> Result<()> {
        let read = self.partial.file.read_exact_at(bytes, at);
        read.map_err(|source| Failure::io("read", &self.partial.path, source))
    }

    fn is_hole(&mut self, range: ByteRange) -> Result<bool> {
        let Ok(start) = i64::try_from(range.start()) else { return Ok(false) };
        Ok(match lseek(&*self.partial.file, start, Whence::SeekData) {
            Ok(data) => data.cast_unsigned() >= range.end(),
            // There is no data from here on.
            Err(Errno::ENXIO) => true,
            // A file system without holes; the file is read then.
            Err(_) => false,
        })
    }

    fn sync(&mut self) -> Result<()> {
        let synced = self.partial.file.sync_data();
        synced.map_err(|source| Failure::io("sync", &self.partial.path, source))
    }

    fn finish(self: Box<Self>, overwrite: bool) -> Result<()> {
        let synced = self.partial.file.sync_all();
        synced.map_err(|source| Failure::io("sync", &self.partial.path, source))?;
        self.partial.publish(overwrite)
    }

    fn leave(self: Box<Self>, keep: bool) {
        self.partial.leave(keep);
    }
}

pub(super) fn allocate(
    file: &File,
    flags: FallocateFlags,
    range: ByteRange,
) -> std::result::Result<(), Errno> {
    let (Ok(start), Ok(len)) = (i64::try_from(range.start()), i64::try_from(range.len())) else {
        return Err(Errno::EFBIG);
    };
    fallocate(file, flags, start, len)
}

pub(super) fn write_zeroes(file: &File, range: ByteRange) -> std::io::Result<()> {
    let mut at = range.start();
    while at < range.end() {
        let left = usize::try_from(range.end() - at).unwrap_or(usize::MAX);
        let part = &ZEROES[..left.min(ZEROES.len())];
        file.write_all_at(part, at)?;
        at += part.len() as u64;
    }
    Ok(())
}
