//! The attributes that `stat` and `statfs` show.

use std::time::SystemTime;

use fuser::{FileAttr, FileType, INodeNo};

use crate::device::Geometry;

/// Whom the directory and its files belong to: the user that serves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Unit of `st_blocks`, fixed by POSIX practice, in bytes.
const STAT_BLOCK_BYTES: u64 = 512;

/// Smallest and largest `st_blksize` shown, in bytes.
const IO_BYTES_MIN: u32 = 512;
const IO_BYTES_MAX: u32 = 1 << 20;

/// Attributes of one disk's file.
///
/// `blocks` shows a disk that is allocated in full. What is really allocated would take a walk
/// over the device for every `stat`; who wants to know asks with `SEEK_DATA` and `SEEK_HOLE`.
pub(super) fn of_file(
    ino: INodeNo,
    geometry: &Geometry,
    modified: SystemTime,
    owner: Owner,
) -> FileAttr {
    let blksize = geometry.block_bytes_preferred.clamp(IO_BYTES_MIN, IO_BYTES_MAX);
    FileAttr {
        ino,
        size: geometry.size_bytes,
        blocks: geometry.size_bytes.div_ceil(STAT_BLOCK_BYTES),
        atime: modified,
        mtime: modified,
        ctime: modified,
        crtime: modified,
        kind: FileType::RegularFile,
        perm: if geometry.read_only { 0o400 } else { 0o600 },
        nlink: 1,
        uid: owner.uid,
        gid: owner.gid,
        rdev: 0,
        blksize,
        flags: 0,
    }
}

/// Attributes of the directory.
pub(super) fn of_directory(modified: SystemTime, owner: Owner) -> FileAttr {
    FileAttr {
        ino: INodeNo::ROOT,
        size: 0,
        blocks: 0,
        atime: modified,
        mtime: modified,
        ctime: modified,
        crtime: modified,
        kind: FileType::Directory,
        perm: 0o700,
        nlink: 2,
        uid: owner.uid,
        gid: owner.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    const OWNER: Owner = Owner { uid: 7, gid: 8 };

    fn geometry(size_bytes: u64, block_bytes_preferred: u32, read_only: bool) -> Geometry {
        Geometry {
            size_bytes,
            block_bytes_min: 1,
            block_bytes_preferred,
            read_only,
            fast_zero: true,
        }
    }

    #[test]
    fn a_file_shows_the_disk() {
        let attr = of_file(INodeNo(20), &geometry(1025, 4096, false), UNIX_EPOCH, OWNER);
        assert_eq!((attr.ino, attr.size, attr.blocks), (INodeNo(20), 1025, 3));
        assert_eq!((attr.perm, attr.kind, attr.nlink), (0o600, FileType::RegularFile, 1));
        assert_eq!((attr.uid, attr.gid, attr.blksize), (7, 8, 4096));
        assert_eq!(attr.mtime, UNIX_EPOCH);
        assert_eq!(of_file(INodeNo(20), &geometry(1, 1, true), UNIX_EPOCH, OWNER).perm, 0o400);
    }

    #[test]
    fn the_preferred_block_stays_within_what_programs_expect() {
        for (preferred, shown) in [(1, 512), (4096, 4096), (1 << 26, 1 << 20)] {
            let attr =
                of_file(INodeNo(20), &geometry(1 << 30, preferred, false), UNIX_EPOCH, OWNER);
            assert_eq!(attr.blksize, shown);
        }
    }

    #[test]
    fn the_directory_is_closed_to_others() {
        let attr = of_directory(UNIX_EPOCH, OWNER);
        assert_eq!((attr.perm, attr.kind), (0o700, FileType::Directory));
    }
}
