//! Storage on the machine's file systems.
//!
//! A mapped page that the disk can't deliver kills the process with SIGBUS. Only indexes are
//! mapped; records, where most bytes are, are read with calls that return the error.
//!
//! What is read once goes through the page cache and leaves it at once, where kernel (from 6.14 on)
//! and file system can do that; else it stays, as all that is read does. Several threads do that
//! at several places of a file, which the kernel's read-ahead takes for the begin of long reads: it
//! would read a quarter more than is wanted, or the same again. So it is done on a descriptor of
//! its own, without read-ahead.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::OnceLock;

use memmap2::{Mmap, MmapOptions};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::unistd::{Whence, lseek};
use tidemark_block::ByteRange;

use super::{FileExtent, Storage, StorageFile};

/// Files of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealStorage;

/// A file of the operating system.
#[derive(Debug)]
pub struct RealFile {
    file: File,
    /// For what is read once, opened when it is first needed; `None` where that can't be had.
    once: OnceLock<Option<File>>,
}

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
        OpenOptions::new().read(true).write(true).create_new(true).open(path).map(RealFile::new)
    }

    fn open(&self, path: &Path) -> io::Result<RealFile> {
        OpenOptions::new().read(true).write(true).open(path).map(RealFile::new)
    }

    fn open_read_only(&self, path: &Path) -> io::Result<RealFile> {
        OpenOptions::new().read(true).open(path).map(RealFile::new)
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

impl RealFile {
    fn new(file: File) -> Self {
        Self { file, once: OnceLock::new() }
    }

    /// The descriptor without read-ahead.
    fn once(&self) -> &File {
        let open = || {
            let again = File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd())).ok()?;
            posix_fadvise(&again, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).ok()?;
            Some(again)
        };
        self.once.get_or_init(open).as_ref().unwrap_or(&self.file)
    }
}

/// One read that leaves nothing in the page cache; gives the number of bytes.
fn read_uncached(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    let part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let (fd, at) = (file.as_raw_fd(), signed(at)?);
    // SAFETY: the one part is `bytes`, which nobody else has while the call runs.
    let read = unsafe { libc::preadv2(fd, &raw const part, 1, at, libc::RWF_DONTCACHE) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

impl StorageFile for RealFile {
    type Map = MappedBytes;

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, at)
    }

    fn read_once_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let file = self.once();
        let mut done = 0;
        while done < bytes.len() {
            match read_uncached(file, &mut bytes[done..], at + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    return file.read_exact_at(&mut bytes[done..], at + done as u64);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.file.metadata().map(|metadata| metadata.len())
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.file.set_len(len_bytes)
    }

    fn datasync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn punch(&self, range: ByteRange) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(self.file.as_fd(), flags, signed(range.start())?, signed(range.len())?)?;
        Ok(())
    }

    fn extent_at(&self, at: u64) -> io::Result<FileExtent> {
        let len = self.len()?;
        if at >= len {
            return Ok(FileExtent { len_bytes: 0, hole: true });
        }
        let seek = |whence| match lseek(self.file.as_fd(), signed(at)?, whence) {
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
        unsafe { MmapOptions::new().offset(range.start()).len(len).map(&self.file) }
            .map(MappedBytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn what_is_read_once_is_what_was_written_also_when_the_name_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = RealStorage.create(&path).unwrap();
        let bytes: Vec<u8> = (0..300_000_u32).map(|at| (at % 251) as u8).collect();
        file.write_at(&bytes, 0).unwrap();
        RealStorage.remove(&path).unwrap();
        let mut read = vec![0; 299_000];
        file.read_once_at(&mut read, 777).unwrap();
        assert_eq!(read, bytes[777..299_777]);
        file.write_at(b"later", 1000).unwrap();
        file.read_once_at(&mut read[..5], 1000).unwrap();
        assert_eq!(&read[..5], b"later");
        let error = file.read_once_at(&mut read, 2000).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
