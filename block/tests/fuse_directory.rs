//! The FUSE directory through the kernel: what programs see of its files.

#![allow(clippy::disallowed_methods, reason = "a test waits in real time")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod fuse_support;

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuse_support::{Fixture, MemDisk, Random};
use tidemark_block::ByteRange;
use tidemark_block::fuse::{FuseConfig, FuseError};

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.expect_err("must fail").raw_os_error().expect("an errno")
}

fn fallocate(file: &fs::File, mode: i32, offset: i64, len: i64) -> io::Result<()> {
    // SAFETY: a plain system call on a descriptor that is open.
    match unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn lseek(file: &fs::File, offset: i64, whence: i32) -> io::Result<i64> {
    // SAFETY: a plain system call on a descriptor that is open.
    match unsafe { libc::lseek(file.as_raw_fd(), offset, whence) } {
        -1 => Err(io::Error::last_os_error()),
        found => Ok(found),
    }
}

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(start, len).unwrap()
}

#[test]
fn files_look_like_the_disks() {
    let Some(fixture) = Fixture::new() else { return };
    fixture.add("b", MemDisk::new(1 << 20));
    fixture.add("a", MemDisk::new(12_345).read_only());
    let mut names: Vec<_> =
        fs::read_dir(&fixture.path).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a", "b"]);

    let a = fs::metadata(fixture.path.join("a")).unwrap();
    assert_eq!((a.size(), a.blocks(), a.mode() & 0o777), (12_345, 25, 0o400));
    let b = fs::metadata(fixture.path.join("b")).unwrap();
    assert_eq!((b.size(), b.blksize(), b.mode() & 0o777), (1 << 20, 4096, 0o600));
    assert!(b.is_file() && b.nlink() == 1);
    assert!(b.modified().unwrap().elapsed().unwrap() < Duration::from_secs(60));
    let root = fs::metadata(&fixture.path).unwrap();
    assert_eq!((root.mode() & 0o777, root.is_dir()), (0o700, true));

    let whole = nix::sys::statvfs::statvfs(&fixture.path).unwrap();
    assert_eq!((whole.blocks(), whole.blocks_free()), (256 + 4, 0));
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts.lines().find(|l| l.contains(fixture.path.to_str().unwrap())).unwrap();
    assert!(line.starts_with("tidemark ") && line.contains(" fuse.tidemark "), "{line}");
    for option in ["nosuid", "nodev", "noexec", "default_permissions"] {
        assert!(line.contains(option), "{option} in {line}");
    }
}

#[test]
fn the_directory_can_not_be_changed_through_itself() {
    let Some(fixture) = Fixture::new() else { return };
    fixture.add("disk", MemDisk::new(65_536));
    let path = |name: &str| fixture.path.join(name);
    assert_eq!(errno(fs::File::create(path("new"))), libc::EPERM);
    assert_eq!(errno(fs::create_dir(path("new"))), libc::EPERM);
    assert_eq!(errno(fs::remove_file(path("disk"))), libc::EPERM);
    assert_eq!(errno(fs::rename(path("disk"), path("other"))), libc::EPERM);
    assert_eq!(errno(fs::hard_link(path("disk"), path("other"))), libc::EPERM);
    assert_eq!(errno(std::os::unix::fs::symlink("disk", path("other"))), libc::EPERM);
    assert_eq!(errno(fs::File::open(path("missing"))), libc::ENOENT);
    let open_mode = fs::Permissions::from_mode(0o666);
    assert_eq!(errno(fs::set_permissions(path("disk"), open_mode)), libc::EPERM);

    let file = fixture.open("disk", 0);
    assert_eq!(errno(file.set_len(65_535)), libc::EPERM);
    assert_eq!(errno(file.set_len(1 << 30)), libc::EPERM);
    file.set_len(65_536).expect("the size it has");
    let truncated = OpenOptions::new().write(true).truncate(true).open(path("disk"));
    assert_eq!(errno(truncated), libc::EPERM);
    assert_eq!(fs::metadata(path("disk")).unwrap().size(), 65_536);

    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    file.set_modified(long_ago).expect("a time may be set");
    assert_eq!(fs::metadata(path("disk")).unwrap().modified().unwrap(), long_ago);
    file.write_all_at(b"x", 0).unwrap();
    assert!(fs::metadata(path("disk")).unwrap().modified().unwrap() > long_ago);
}

#[test]
fn random_requests_agree_with_a_model() {
    let Some(fixture) = Fixture::new() else { return };
    let size = 3_000_001;
    let disk = fixture.add("disk", MemDisk::new(size));
    let file = fixture.open("disk", 0);
    let mut random = Random(7);
    let mut model = vec![0_u8; size];
    for step in 0..400 {
        let len_max = [10, 5_000, 300_000, 1_500_000][random.below(4)];
        let start = random.below(size);
        let len = random.below(len_max).min(size - start);
        let span = start..start + len;
        let (offset, len_signed) = (i64::try_from(start).unwrap(), i64::try_from(len).unwrap());
        match random.below(4) {
            0 => {
                let mut bytes = vec![0xEE; len];
                file.read_exact_at(&mut bytes, start as u64).unwrap();
                assert!(bytes == model[span.clone()], "step {step}: read of {span:?}");
            }
            1 if len > 0 => {
                let mode = [PUNCH, ZERO, ZERO | libc::FALLOC_FL_KEEP_SIZE][random.below(3)];
                fallocate(&file, mode, offset, len_signed).unwrap();
                model[span].fill(0);
            }
            _ => {
                let bytes = random.bytes(len);
                file.write_all_at(&bytes, start as u64).unwrap();
                model[span].copy_from_slice(&bytes);
            }
        }
    }
    assert!(disk.contents() == model);
    assert_eq!(disk.seen().trims, 0, "a punched hole has to read as zeroes");
}

#[test]
fn parallel_unaligned_writes_agree_with_a_model() {
    const THREADS: usize = 8;
    const STRIPE: usize = 10_007;
    const STRIPES: usize = 40;
    let Some(fixture) = Fixture::new() else { return };
    let disk = MemDisk::new(THREADS * STRIPES * STRIPE).delayed(Duration::from_micros(200));
    let disk = fixture.add("disk", disk);
    let file = fixture.open("disk", 0);
    let models: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let file = &file;
                scope.spawn(move || write_own_stripes(file, thread, THREADS, STRIPE, STRIPES))
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    let contents = disk.contents();
    for (number, stripe) in contents.chunks(STRIPE).enumerate() {
        let place = number / THREADS * STRIPE;
        assert!(stripe == &models[number % THREADS][place..place + STRIPE], "stripe {number}");
    }
}

/// Writes at random into every `threads`-th stripe; what they should hold, one behind the other.
fn write_own_stripes(
    file: &fs::File,
    thread: usize,
    threads: usize,
    stripe: usize,
    stripes: usize,
) -> Vec<u8> {
    let mut random = Random(thread as u64);
    let mut model = vec![0; stripe * stripes];
    for _ in 0..300 {
        let number = random.below(stripes);
        let start = random.below(stripe);
        let bytes = {
            let len = random.below(stripe - start) + 1;
            random.bytes(len)
        };
        let offset = (number * threads + thread) * stripe + start;
        file.write_all_at(&bytes, offset as u64).unwrap();
        model[number * stripe + start..][..bytes.len()].copy_from_slice(&bytes);
        let mut back = vec![0; bytes.len()];
        file.read_exact_at(&mut back, offset as u64).unwrap();
        assert!(back == bytes, "a write that returned is read back");
    }
    model
}

#[test]
fn long_writes_pass_through_little_memory() {
    let Some(fixture) = Fixture::new() else { return };
    // Room for one payload and a bit: every part waits for the one before.
    let disk = MemDisk::with_memory(8 << 20, 300_000);
    let disk = fixture.add("disk", disk.delayed(Duration::from_micros(100)));
    let file = fixture.open("disk", 0);
    let parts: Vec<Vec<u8>> = (0..4).map(|i| Random(i).bytes(2 << 20)).collect();
    std::thread::scope(|scope| {
        for (i, part) in parts.iter().enumerate() {
            let file = &file;
            scope.spawn(move || file.write_all_at(part, (i * (2 << 20)) as u64).unwrap());
        }
    });
    assert!(disk.contents() == parts.concat());
    assert!(disk.seen().writes >= 32, "256 KiB at a time: {:?}", disk.seen());
}

#[test]
fn more_requests_than_the_bounds_allow_wait_their_turn() {
    let config = FuseConfig { threads: 1, in_flight_max: 1, ..FuseConfig::default() };
    let Some(fixture) = Fixture::with(config) else { return };
    let disk = MemDisk::with_memory(4 << 20, 100_000).delayed(Duration::from_millis(1));
    let disk = fixture.add("disk", disk);
    let file = fixture.open("disk", 0);
    let parts: Vec<Vec<u8>> = (0..32).map(|i| Random(i).bytes(60_000)).collect();
    std::thread::scope(|scope| {
        for (i, part) in parts.iter().enumerate() {
            let file = &file;
            scope.spawn(move || {
                let offset = (i * part.len()) as u64;
                file.write_all_at(part, offset).unwrap();
                let mut back = vec![0; part.len()];
                file.read_exact_at(&mut back, offset).unwrap();
                assert!(back == *part, "part {i}");
            });
        }
    });
    assert!(disk.contents().starts_with(&parts.concat()));
}

#[test]
fn requests_end_with_the_disk() {
    let Some(fixture) = Fixture::new() else { return };
    let disk = fixture.add("disk", MemDisk::new(10_000));
    let file = fixture.open("disk", 0);
    assert_eq!(file.write_at(&[1; 200], 9_900).unwrap(), 100);
    assert_eq!(errno(file.write_at(&[1; 200], 10_000)), libc::ENOSPC);
    assert_eq!(errno(file.write_at(&[1; 200], 1 << 40)), libc::ENOSPC);
    assert_eq!(file.read_at(&mut [0; 200], 9_900).unwrap(), 100);
    assert_eq!(file.read_at(&mut [0; 200], 10_000).unwrap(), 0);
    fallocate(&file, 0, 0, 10_000).expect("all blocks are there");
    fallocate(&file, libc::FALLOC_FL_KEEP_SIZE, 0, 10_000).expect("all blocks are there");
    assert_eq!(errno(fallocate(&file, 0, 0, 10_001)), libc::ENOSPC);
    assert_eq!(errno(fallocate(&file, ZERO, 9_999, 2)), libc::ENOSPC);
    assert_eq!(errno(fallocate(&file, libc::FALLOC_FL_COLLAPSE_RANGE, 0, 4096)), libc::EOPNOTSUPP);
    fallocate(&file, PUNCH, 9_000, 5_000).expect("cut at the end");
    fallocate(&file, ZERO, 0, 5).expect("inside");
    assert_eq!(disk.seen().zeroes, [(range(9_000, 1_000), false), (range(0, 5), true)]);
    assert_eq!(fs::metadata(fixture.path.join("disk")).unwrap().size(), 10_000);
}

#[test]
fn durability_reaches_the_disk() {
    let Some(fixture) = Fixture::new() else { return };
    let disk = fixture.add("disk", MemDisk::new(65_536));
    let file = fixture.open("disk", 0);
    file.write_all_at(&[1; 100], 0).unwrap();
    assert_eq!((disk.seen().stable_writes, disk.seen().flushes), (0, 0));
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    assert_eq!(disk.seen().flushes, 2);
    drop(file);
    assert_eq!(disk.seen().flushes, 3, "closing what could write");
    for flags in [libc::O_DSYNC, libc::O_SYNC, libc::O_DIRECT | libc::O_DSYNC] {
        let before = disk.seen().stable_writes;
        fixture.open("disk", flags).write_all_at(&[1; 512], 512).unwrap();
        assert_eq!(disk.seen().stable_writes, before + 1, "flags {flags:#o}");
    }
    let flushes = disk.seen().flushes;
    drop(fs::File::open(fixture.path.join("disk")).unwrap());
    assert_eq!(disk.seen().flushes, flushes, "nothing to flush after reading");
}

#[test]
fn holes_are_found() {
    let Some(fixture) = Fixture::new() else { return };
    // More extents than one question to the device brings.
    let size = 4096 * 1000;
    fixture.add("disk", MemDisk::new(size));
    let end = i64::try_from(size).unwrap();
    let file = fixture.open("disk", 0);
    assert_eq!(errno(lseek(&file, 0, libc::SEEK_DATA)), libc::ENXIO);
    assert_eq!(lseek(&file, 5, libc::SEEK_HOLE).unwrap(), 5);
    file.write_all_at(&[7; 4096], 4096 * 900).unwrap();
    assert_eq!(lseek(&file, 5, libc::SEEK_DATA).unwrap(), 4096 * 900);
    assert_eq!(lseek(&file, 4096 * 900 + 7, libc::SEEK_DATA).unwrap(), 4096 * 900 + 7);
    assert_eq!(lseek(&file, 4096 * 900 + 7, libc::SEEK_HOLE).unwrap(), 4096 * 901);
    file.write_all_at(&[7; 4096], 4096 * 999).unwrap();
    assert_eq!(lseek(&file, 4096 * 999, libc::SEEK_HOLE).unwrap(), end);
    assert_eq!(errno(lseek(&file, end, libc::SEEK_DATA)), libc::ENXIO);
    assert_eq!(errno(lseek(&file, end, libc::SEEK_HOLE)), libc::ENXIO);
    assert_eq!(lseek(&file, 0, libc::SEEK_END).unwrap(), end);
}

#[test]
fn a_read_only_disk_is_only_read() {
    let Some(fixture) = Fixture::new() else { return };
    fixture.add("disk", MemDisk::new(65_536).read_only());
    let path = fixture.path.join("disk");
    assert_eq!(errno(OpenOptions::new().write(true).open(&path)), libc::EROFS);
    assert_eq!(errno(OpenOptions::new().read(true).write(true).open(&path)), libc::EROFS);
    assert_eq!(fs::read(&path).unwrap(), vec![0; 65_536]);
}

#[test]
fn a_failed_request_is_an_io_error() {
    let Some(fixture) = Fixture::new() else { return };
    let disk = MemDisk::new(1 << 20).broken(range(600_000, 1));
    fixture.add("disk", disk);
    let file = fixture.open("disk", 0);
    assert_eq!(errno(file.write_at(&[1; 100], 599_950)), libc::EIO);
    assert_eq!(errno(file.write_at(&vec![1; 1 << 20], 0)), libc::EIO, "one part of several");
    assert_eq!(errno(file.read_at(&mut [0; 100], 599_950)), libc::EIO);
    assert_eq!(errno(fallocate(&file, PUNCH, 599_950, 100)), libc::EIO);
    file.write_all_at(&[1; 100], 0).expect("the rest of the disk works");
}

#[test]
fn files_follow_the_exports() {
    let Some(fixture) = Fixture::new() else { return };
    let path = fixture.path.join("disk");
    let first = Arc::downgrade(&fixture.add("disk", MemDisk::new(65_536)));
    let file = fixture.open("disk", 0);
    let first_ino = fs::metadata(&path).unwrap().ino();
    fixture.exports.remove("disk");
    assert_eq!(errno(fs::metadata(&path)), libc::ENOENT);
    file.write_all_at(&[1; 100], 0).expect("an open file keeps its disk");

    let second = fixture.add("disk", MemDisk::new(4096));
    let seen = fs::metadata(&path).unwrap();
    assert_eq!(seen.size(), 4096);
    assert_ne!(seen.ino(), first_ino);
    file.write_all_at(&[1; 100], 50_000).expect("still the first disk");
    assert!(second.contents().iter().all(|byte| *byte == 0));
    drop(file);
    // The kernel tells of the last close a moment later.
    for _ in 0..100 {
        if first.upgrade().is_none() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("the removed disk is still held");
}

#[test]
fn unmounting_leaves_nothing() {
    let Some(mut fixture) = Fixture::new() else { return };
    fixture.add("disk", MemDisk::new(65_536));
    fixture.open("disk", 0).write_all_at(&[1; 100], 0).unwrap();
    let refused = fixture.mount_again().err().expect("a live mount is not covered");
    assert!(matches!(refused, FuseError::InUse { .. }), "{refused}");
    fixture.unmount();
    assert_eq!(fs::metadata(&fixture.path).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(fs::read_dir(fixture.parent.path()).unwrap().count(), 0);
}

#[test]
fn a_mount_in_use_is_detached_and_refuses_requests() {
    let Some(mut fixture) = Fixture::new() else { return };
    fixture.add("disk", MemDisk::new(65_536));
    let file = fixture.open("disk", 0);
    file.write_all_at(&[1; 100], 0).unwrap();
    fixture.unmount();
    assert!(!is_mounted(&fixture.path));
    assert_eq!(errno(file.write_at(&[1; 100], 0)), libc::ESHUTDOWN);
    assert_eq!(errno(file.read_at(&mut [0; 100], 0)), libc::ESHUTDOWN);
}

#[test]
fn a_mount_taken_away_by_hand_ends_the_session() {
    let Some(mut fixture) = Fixture::new() else { return };
    let path = CString::new(fixture.path.as_os_str().as_bytes()).unwrap();
    // SAFETY: a plain system call with a path that ends with a NUL.
    assert_eq!(unsafe { libc::umount2(path.as_ptr(), 0) }, 0);
    fixture.unmount();
    assert!(!is_mounted(&fixture.path));
}

fn is_mounted(path: &Path) -> bool {
    fs::read_to_string("/proc/self/mounts").unwrap().contains(path.to_str().unwrap())
}

#[test]
fn direct_io_of_all_sizes() {
    let Some(fixture) = Fixture::new() else { return };
    let disk = fixture.add("disk", MemDisk::new(4 << 20));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(fixture.path.join("disk"))
        .unwrap();
    let bytes = Random(3).bytes(4 << 20);
    assert_eq!(file.write_at(&bytes[..1 << 20], 0).unwrap(), 1 << 20);
    assert!(disk.seen().writes <= 5, "at most 1 MiB a request: {:?}", disk.seen());
    file.write_all_at(&bytes[1 << 20..], 1 << 20).unwrap();
    let mut back = vec![0; 4 << 20];
    file.read_exact_at(&mut back, 0).unwrap();
    assert!(back == bytes && disk.contents() == bytes);
}
