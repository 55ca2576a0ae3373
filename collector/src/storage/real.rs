//! Storage on the machine's file systems.
//!
//! A mapped page that the disk can't deliver kills the process with SIGBUS. Only indexes are
//! mapped; records, where most bytes are, are read with calls that return the error.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use memmap2::{Mmap, MmapOptions};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use tidemark_block::ByteRange;

use super::{FileExtent, Storage, StorageFile};

/// Files of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealStorage;

/// A file of the operating system.
#[derive(Debug)]
pub struct RealFile(File);

/// A mapped part of a file.
#[derive(Debug)]
pub struct MappedBytes(Mmap);

impl Deref for MappedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Storage for RealStorage {
    type File = RealFile;

    fn create(&self, path: &Path) -> io::Result<RealFile> {
        OpenOptions::new().read(true).write(true).create_new(true).open(path).map(RealFile)
    }

    fn open(&self, path: &Path) -> io::Result<RealFile> {
        OpenOptions::new().read(true).write(true).open(path).map(RealFile)
    }

    fn open_read_only(&self, path: &Path) -> io::Result<RealFile> {
        OpenOptions::new().read(true).open(path).map(RealFile)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_tree(&self, dir: &Path) -> io::Result<()> {
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut missing = Vec::new();
        let mut at = Some(dir);
        while let Some(path) = at.filter(|path| !path.as_os_str().is_empty() && !path.exists()) {
            missing.push(path);
            at = path.parent();
        }
        for path in missing.into_iter().rev() {
            match std::fs::create_dir(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            let above = path.parent().filter(|above| !above.as_os_str().is_empty());
            self.sync_dir(above.unwrap_or(Path::new(".")))?;
        }
        if dir.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = nix::sys::statvfs::statvfs(dir)?;
        Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
    }
}

fn signed(at: u64) -> io::Result<i64> {
    i64::try_from(at).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl StorageFile for RealFile {
    type Map = MappedBytes;

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, at)
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.0.read_exact_at(bytes, at)
    }

    fn len(&self) -> io::Result<u64> {
        self.0.metadata().map(|metadata| metadata.len())
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.0.set_len(len_bytes)
    }

    fn datasync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn punch(&self, range: ByteRange) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(self.0.as_fd(), flags, signed(range.start())?, signed(range.len())?)?;
        Ok(())
    }

    fn extent_at(&self, at: u64) -> io::Result<FileExtent> {
        let len = self.len()?;
        if at >= len {
            return Ok(FileExtent { len_bytes: 0, hole: true });
        }
        let seek = |whence| match lseek(self.0.as_fd(), signed(at)?, whence) {
            Ok(found) => Ok(u64::try_from(found).map_or(len, |found| found.min(len))),
            Err(Errno::ENXIO) => Ok(len),
            Err(errno) => Err(io::Error::from(errno)),
        };
        let data = seek(Whence::SeekData)?;
        if data > at {
            return Ok(FileExtent { len_bytes: data - at, hole: true });
        }
        Ok(FileExtent { len_bytes: seek(Whence::SeekHole)? - at, hole: false })
    }

    fn map(&self, range: ByteRange) -> io::Result<MappedBytes> {
        if range.end() > self.len()? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let len = usize::try_from(range.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the range lies inside the file, and only parts of sealed segments are mapped,
        // which the collector never writes, cuts or punches again; the data directory belongs to
        // the collector alone, so no other process changes them under the mapping.
        unsafe { MmapOptions::new().offset(range.start()).len(len).map(&self.0) }.map(MappedBytes)
    }
}
