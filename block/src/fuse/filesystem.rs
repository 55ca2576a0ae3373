//! The file system as the kernel sees it: decode, hand over, no I/O.
//!
//! Runs on the fuser threads. What can be answered from memory (names, attributes, opens) is
//! answered here; all that needs a device goes to the workers. The one copy of a write's payload
//! is made here, see [`super::reserve`].

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request as Caller, TimeOrNow, WriteFlags,
};

use super::attributes::{self, Owner};
use super::decode::{self, Allocation};
use super::files::{File, Files, OpenFile};
use super::request::{Action, Outbox, READ_BYTES_MAX, Request, WriteReply, failed};
use super::reserve::wait_for;
use super::seek::Target;
use super::split::SplitWrites;
use crate::device::{Device, Durability, Geometry, Payload};
use crate::range::ByteRange;

/// Longest write, in bytes: what the kernel's default limit of 256 pages allows.
const WRITE_BYTES_MAX: u32 = 1 << 20;

/// The kernel keeps no attributes and no names: a disk may be resized or removed at any time.
const TTL: Duration = Duration::ZERO;

/// Numbers are never used again, so one generation is enough.
const GENERATION: Generation = Generation(0);

/// Unit of `statfs`, in bytes.
const STATFS_BLOCK_BYTES: u32 = 4096;

/// Split writes kept for use; the loop driver alone keeps some ten in flight.
const SPLIT_WRITES_KEPT: usize = 64;

/// See the module.
pub(super) struct Disks<D: Device> {
    files: Files<D>,
    outbox: Arc<Outbox<D>>,
    split_writes: Arc<SplitWrites<(ReplyWrite, u32)>>,
    owner: Owner,
    mounted_at: SystemTime,
    background_max: u16,
}

impl<D: Device> Disks<D> {
    pub(super) fn new(
        files: Files<D>,
        outbox: Arc<Outbox<D>>,
        owner: Owner,
        background_max: u16,
    ) -> Self {
        Self {
            files,
            outbox,
            split_writes: Arc::new(SplitWrites::new(SPLIT_WRITES_KEPT)),
            owner,
            mounted_at: SystemTime::now(),
            background_max,
        }
    }

    fn attr(&self, file: &File<D>, geometry: &Geometry) -> fuser::FileAttr {
        attributes::of_file(file.ino, geometry, file.modified(), self.owner)
    }

    fn send(&self, open: Arc<OpenFile<D>>, action: Action<D>) {
        self.outbox.send(Request { open, action });
    }

    /// Copies `data` into the device's memory, piece by piece, and hands over each piece as soon
    /// as it is copied. `data` is not empty and as long as `range`.
    fn write_out(
        &self,
        open: &Arc<OpenFile<D>>,
        range: ByteRange,
        data: &[u8],
        durability: Durability,
        reply: ReplyWrite,
    ) {
        // Not longer than the request, whose length the kernel gives in 32 bits.
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let (payload, copied) = match copy_in(&*open.device, range, data) {
            Ok(first) => first,
            Err(error) => return reply.error(failed(open, "write", &error)),
        };
        if copied == data.len() {
            let reply = WriteReply::Whole(reply, len);
            return self.send(Arc::clone(open), Action::Write(payload, durability, reply));
        }
        let write = self.split_writes.begin((reply, len));
        let part = || WriteReply::Part(Arc::clone(&write), Arc::clone(&self.split_writes));
        let hand_over = |payload| {
            write.begin_part();
            self.send(Arc::clone(open), Action::Write(payload, durability, part()));
        };
        hand_over(payload);
        part().end(self.write_rest(open, range, data, copied, hand_over));
    }

    /// Hands over what is behind the first `copied` bytes.
    fn write_rest(
        &self,
        open: &OpenFile<D>,
        range: ByteRange,
        data: &[u8],
        mut copied: usize,
        hand_over: impl Fn(D::Payload),
    ) -> Result<(), Errno> {
        while copied < data.len() {
            let start = range.start() + copied as u64;
            let rest = ByteRange::between(start, range.end()).ok_or(Errno::EIO)?;
            let (payload, more) = copy_in(&*open.device, rest, &data[copied..])
                .map_err(|error| failed(open, "write", &error))?;
            hand_over(payload);
            copied += more;
        }
        Ok(())
    }
}

/// Reserves memory for the beginning of `range` and fills it; how much it was.
fn copy_in<D: Device>(
    device: &D,
    range: ByteRange,
    data: &[u8],
) -> Result<(D::Payload, usize), crate::device::DeviceError> {
    let mut payload = wait_for(device.reserve(range))?;
    let bytes = payload.bytes_mut();
    let len = bytes.len();
    assert!(len > 0 && len <= data.len(), "reserved {len} bytes for a write of {}", data.len());
    bytes.copy_from_slice(&data[..len]);
    Ok((payload, len))
}

impl<D: Device> Filesystem for Disks<D> {
    fn init(&mut self, _caller: &Caller, config: &mut KernelConfig) -> io::Result<()> {
        // Several requests for one direct read or write at a time, where the kernel can. Neither
        // the write-back cache nor passthrough is ever asked for: the one merges and delays
        // writes, the other bypasses the device.
        let wanted = InitFlags::FUSE_ASYNC_DIO | InitFlags::FUSE_PARALLEL_DIROPS;
        let offered = wanted & config.capabilities();
        let refused = |what: &str| io::Error::other(format!("fuser refuses {what}"));
        config.add_capabilities(offered).map_err(|_| refused("an offered capability"))?;
        config.set_max_write(WRITE_BYTES_MAX).map_err(|_| refused("writes of 1 MiB"))?;
        config.set_max_background(self.background_max).map_err(|_| refused("the queue"))?;
        config.set_congestion_threshold(self.background_max).map_err(|_| refused("the queue"))?;
        Ok(())
    }

    fn lookup(&self, _caller: &Caller, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.files.lookup(name).filter(|_| parent == INodeNo::ROOT) {
            Some((file, device)) => {
                reply.entry(&TTL, &self.attr(&file, &device.geometry()), GENERATION);
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(
        &self,
        _caller: &Caller,
        ino: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        if ino == INodeNo::ROOT {
            return reply.attr(&TTL, &attributes::of_directory(self.mounted_at, self.owner));
        }
        match self.files.by_ino(ino) {
            Some((file, device)) => reply.attr(&TTL, &self.attr(&file, &device.geometry())),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn setattr(
        &self,
        _caller: &Caller,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let Some((file, device)) = self.files.by_ino(ino) else {
            return reply.error(Errno::EPERM);
        };
        let geometry = device.geometry();
        let other_size = size.is_some_and(|size| size != geometry.size_bytes);
        if mode.is_some() || uid.is_some() || gid.is_some() || other_size {
            return reply.error(Errno::EPERM);
        }
        match mtime {
            Some(TimeOrNow::SpecificTime(time)) => file.set_modified(time),
            Some(TimeOrNow::Now) => file.set_modified(SystemTime::now()),
            None => {}
        }
        reply.attr(&TTL, &self.attr(&file, &geometry));
    }

    fn open(&self, _caller: &Caller, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let Some((file, device)) = self.files.by_ino(ino) else {
            return reply.error(Errno::ESTALE);
        };
        let opened = decode::opened_for_writing(&device.geometry(), flags)
            .and_then(|writable| self.files.open(OpenFile { file, device, writable }));
        match opened {
            Ok(handle) => reply.opened(
                handle,
                FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES,
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn release(
        &self,
        _caller: &Caller,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.files.close(handle);
        reply.ok();
    }

    fn read(
        &self,
        _caller: &Caller,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(open) = self.files.opened(handle) else { return reply.error(Errno::EBADF) };
        match decode::readable(&open.device.geometry(), offset, size.min(READ_BYTES_MAX)) {
            Some(range) => self.send(open, Action::Read(range, reply)),
            None => reply.data(&[]),
        }
    }

    fn write(
        &self,
        _caller: &Caller,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(open) = self.files.opened(handle) else { return reply.error(Errno::EBADF) };
        match decode::writable(&open.device.geometry(), offset, data.len() as u64) {
            Ok(range) if range.is_empty() => reply.written(0),
            Ok(range) => {
                // The range is not longer than the data, whose length is a usize.
                let len = usize::try_from(range.len()).unwrap_or(data.len());
                let durability = decode::durability(flags);
                self.write_out(&open, range, &data[..len], durability, reply);
            }
            Err(errno) => reply.error(errno),
        }
    }

    /// Closing a file that was open for writing makes the disk durable, so that an error of an
    /// earlier write is not lost on a program that never calls `fsync`.
    fn flush(
        &self,
        _caller: &Caller,
        _ino: INodeNo,
        handle: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        match self.files.opened(handle) {
            Some(open) if open.writable => self.send(open, Action::Flush(reply)),
            Some(_) => reply.ok(),
            None => reply.error(Errno::EBADF),
        }
    }

    fn fsync(
        &self,
        _caller: &Caller,
        _ino: INodeNo,
        handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        match self.files.opened(handle) {
            Some(open) => self.send(open, Action::Flush(reply)),
            None => reply.error(Errno::EBADF),
        }
    }

    fn fallocate(
        &self,
        _caller: &Caller,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(open) = self.files.opened(handle) else { return reply.error(Errno::EBADF) };
        match decode::allocation(&open.device.geometry(), mode, offset, length) {
            Ok(Allocation::Zero(range, options)) => {
                self.send(open, Action::Zero(range, options, reply));
            }
            Ok(Allocation::Nothing) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn lseek(
        &self,
        _caller: &Caller,
        _ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Some(open) = self.files.opened(handle) else { return reply.error(Errno::EBADF) };
        match (Target::from_whence(whence), u64::try_from(offset)) {
            (Ok(target), Ok(offset)) => self.send(open, Action::Seek(offset, target, reply)),
            (Err(errno), _) => reply.error(errno),
            (_, Err(_)) => reply.error(Errno::ENXIO),
        }
    }

    /// The place of an entry is its number, which never changes, so a listing neither repeats nor
    /// skips a file when others come and go meanwhile.
    fn readdir(
        &self,
        _caller: &Caller,
        _ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        for (place, name) in [(1, "."), (2, "..")] {
            if place > offset && reply.add(INodeNo::ROOT, place, FileType::Directory, name) {
                return reply.ok();
            }
        }
        for file in self.files.list().iter().filter(|file| file.ino.0 > offset) {
            if reply.add(file.ino, file.ino.0, FileType::RegularFile, &file.name) {
                break;
            }
        }
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _caller: &Caller,
        _ino: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    /// There are none; the kernel stops asking at this answer.
    fn getxattr(
        &self,
        _caller: &Caller,
        _ino: INodeNo,
        _name: &OsStr,
        _size: u32,
        reply: ReplyXattr,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _caller: &Caller, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn statfs(&self, _caller: &Caller, _ino: INodeNo, reply: ReplyStatfs) {
        let files = self.files.list();
        let blocks = (files.iter())
            .filter_map(|file| self.files.by_ino(file.ino))
            .map(|(_, device)| device.geometry().size_bytes.div_ceil(STATFS_BLOCK_BYTES.into()))
            .fold(0, u64::saturating_add);
        let names_max = u32::from(u8::MAX);
        let count = files.len() as u64;
        reply.statfs(blocks, 0, 0, count, 0, STATFS_BLOCK_BYTES, names_max, STATFS_BLOCK_BYTES);
    }

    // What the list of exports holds is decided elsewhere: no entry is made, moved or removed
    // through the directory.

    fn create(
        &self,
        _caller: &Caller,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EPERM);
    }

    fn mknod(
        &self,
        _caller: &Caller,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(
        &self,
        _caller: &Caller,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn symlink(
        &self,
        _caller: &Caller,
        _parent: INodeNo,
        _name: &OsStr,
        _target: &Path,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn link(
        &self,
        _caller: &Caller,
        _ino: INodeNo,
        _parent: INodeNo,
        _name: &OsStr,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _caller: &Caller, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rmdir(&self, _caller: &Caller, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        _caller: &Caller,
        _parent: INodeNo,
        _name: &OsStr,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EPERM);
    }
}
