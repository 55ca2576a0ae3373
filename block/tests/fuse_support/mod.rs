//! What the tests of the FUSE directory share: a disk in memory, and a mounted directory that
//! cleans up after itself also when a test panics.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

use tidemark_block::engine::{ExecutorConfig, Workers, sleep};
use tidemark_block::fuse::{Directory, FuseConfig};
use tidemark_block::{
    ByteRange, Chunk, Device, DeviceError, Durability, Export, ExportList, Geometry,
    PAYLOAD_BYTES_MAX, Payload, StatusExtent, ZeroOptions,
};

const MAP_BLOCK_BYTES: usize = 4096;

/// Calls that a disk has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) writes: usize,
    pub(crate) stable_writes: usize,
    pub(crate) flushes: usize,
    pub(crate) zeroes: Vec<(ByteRange, bool)>,
    pub(crate) trims: usize,
}

/// A disk in memory.
pub(crate) struct MemDisk {
    read_only: bool,
    broken: Option<ByteRange>,
    delay: Duration,
    bytes: Mutex<Vec<u8>>,
    seen: Mutex<Seen>,
    memory: Arc<Memory>,
}

struct Memory {
    state: Mutex<(usize, Vec<Waker>)>,
}

pub(crate) struct MemPayload {
    start: u64,
    bytes: Vec<u8>,
    memory: Arc<Memory>,
}

impl Payload for MemPayload {
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for MemPayload {
    fn drop(&mut self) {
        let mut state = self.memory.state.lock().expect("no panic inside");
        state.0 += self.bytes.len();
        state.1.drain(..).for_each(Waker::wake);
    }
}

impl MemDisk {
    pub(crate) fn new(size_bytes: usize) -> Self {
        Self::with_memory(size_bytes, 64 << 20)
    }

    /// A disk that hands out at most `memory_bytes` of payloads at a time.
    pub(crate) fn with_memory(size_bytes: usize, memory_bytes: usize) -> Self {
        Self {
            read_only: false,
            broken: None,
            delay: Duration::ZERO,
            bytes: Mutex::new(vec![0; size_bytes]),
            seen: Mutex::new(Seen::default()),
            memory: Arc::new(Memory { state: Mutex::new((memory_bytes, Vec::new())) }),
        }
    }

    pub(crate) fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }

    /// A request that touches `range` fails.
    pub(crate) fn broken(self, range: ByteRange) -> Self {
        Self { broken: Some(range), ..self }
    }

    /// Every write takes so long.
    pub(crate) fn delayed(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().expect("no panic inside").clone()
    }

    pub(crate) fn contents(&self) -> Vec<u8> {
        self.bytes.lock().expect("no panic inside").clone()
    }

    fn check(&self, range: ByteRange) -> Result<(), DeviceError> {
        tidemark_block::check_range(&self.geometry(), range)?;
        match self.broken {
            Some(broken) if broken.overlaps(range) => Err(DeviceError::Io {
                range,
                source: std::io::Error::from_raw_os_error(libc::EBADMSG),
            }),
            _ => Ok(()),
        }
    }
}

fn span(range: ByteRange) -> std::ops::Range<usize> {
    usize::try_from(range.start()).expect("small")..usize::try_from(range.end()).expect("small")
}

impl Device for MemDisk {
    type Payload = MemPayload;

    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.bytes.lock().expect("no panic inside").len() as u64,
            block_bytes_min: 1,
            block_bytes_preferred: 4096,
            read_only: self.read_only,
            fast_zero: true,
        }
    }

    async fn reserve(&self, range: ByteRange) -> Result<MemPayload, DeviceError> {
        let len = span(range).len().min(PAYLOAD_BYTES_MAX);
        std::future::poll_fn(|context| {
            let mut state = self.memory.state.lock().expect("no panic inside");
            if state.0 < len {
                state.1.push(context.waker().clone());
                return Poll::Pending;
            }
            state.0 -= len;
            Poll::Ready(())
        })
        .await;
        let memory = Arc::clone(&self.memory);
        Ok(MemPayload { start: range.start(), bytes: vec![0; len], memory })
    }

    async fn write(&self, payload: MemPayload, durability: Durability) -> Result<(), DeviceError> {
        let range = ByteRange::new(payload.start, payload.bytes.len() as u64).expect("fits");
        self.check(range)?;
        if !self.delay.is_zero() {
            sleep(self.delay).await;
        }
        self.bytes.lock().expect("no panic inside")[span(range)].copy_from_slice(&payload.bytes);
        let mut seen = self.seen.lock().expect("no panic inside");
        seen.writes += 1;
        seen.stable_writes += usize::from(durability == Durability::Stable);
        Ok(())
    }

    async fn read(&self, start: u64, mut into: Chunk) -> Result<Chunk, DeviceError> {
        let range = ByteRange::new(start, into.len() as u64).expect("fits");
        self.check(range)?;
        into.as_mut_slice()
            .copy_from_slice(&self.bytes.lock().expect("no panic inside")[span(range)]);
        Ok(into)
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.seen.lock().expect("no panic inside").flushes += 1;
        Ok(())
    }

    async fn trim(&self, range: ByteRange, _: Durability) -> Result<(), DeviceError> {
        self.check(range)?;
        self.seen.lock().expect("no panic inside").trims += 1;
        Ok(())
    }

    async fn write_zeroes(
        &self,
        range: ByteRange,
        options: ZeroOptions,
    ) -> Result<(), DeviceError> {
        self.check(range)?;
        self.bytes.lock().expect("no panic inside")[span(range)].fill(0);
        self.seen.lock().expect("no panic inside").zeroes.push((range, options.no_hole));
        Ok(())
    }

    async fn block_status(
        &self,
        range: ByteRange,
        extents_max: usize,
        extents: &mut Vec<StatusExtent>,
    ) -> Result<(), DeviceError> {
        let bytes = self.bytes.lock().expect("no panic inside");
        let mut at = span(range).start;
        while at < span(range).end && extents.len() < extents_max {
            let end = ((at / MAP_BLOCK_BYTES + 1) * MAP_BLOCK_BYTES).min(span(range).end);
            let zero = bytes[at..end].iter().all(|byte| *byte == 0);
            extents.push(StatusExtent { len_bytes: (end - at) as u64, hole: zero, zero });
            at = end;
        }
        Ok(())
    }

    async fn cache(&self, _: ByteRange) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// A mounted directory. Fields drop from first to last: the mount goes before the workers, and
/// both before the temporary directory.
pub(crate) struct Fixture {
    directory: Option<Directory<MemDisk>>,
    workers: Option<Workers>,
    pub(crate) exports: Arc<ExportList<MemDisk>>,
    pub(crate) path: PathBuf,
    pub(crate) parent: tempfile::TempDir,
}

impl Fixture {
    /// Mounts an empty directory; `None`, with a word about it, where the host can't.
    pub(crate) fn new() -> Option<Self> {
        Self::with(FuseConfig::default())
    }

    /// The same with another configuration.
    pub(crate) fn with(config: FuseConfig) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() || !std::path::Path::new("/dev/fuse").exists() {
            eprintln!("skipped: needs root and /dev/fuse");
            return None;
        }
        let parent = tempfile::tempdir().expect("a temporary directory");
        let path = parent.path().join("disks");
        let workers = Workers::start("fuse-test", 2, ExecutorConfig::default()).expect("io_uring");
        let exports = Arc::new(ExportList::new());
        let config = FuseConfig { unmount_wait: Duration::from_millis(500), ..config };
        let directory = Directory::mount(&path, Arc::clone(&exports), &workers.handle(), config)
            .expect("root can mount");
        Some(Self { directory: Some(directory), workers: Some(workers), exports, path, parent })
    }

    /// Serves a disk.
    pub(crate) fn add(&self, name: &str, disk: MemDisk) -> Arc<MemDisk> {
        let device = Arc::new(disk);
        let export = Export {
            name: name.to_owned(),
            description: String::new(),
            device: Arc::clone(&device),
        };
        self.exports.add(export).expect("a fresh name");
        device
    }

    /// Opens a file for reading and writing.
    pub(crate) fn open(&self, name: &str, flags: i32) -> File {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(self.path.join(name))
            .expect("the file is served")
    }

    /// Unmounts now.
    pub(crate) fn unmount(&mut self) {
        self.directory.take().expect("mounted").unmount();
    }

    /// A second directory on the same workers.
    pub(crate) fn mount_again(
        &self,
    ) -> Result<Directory<MemDisk>, tidemark_block::fuse::FuseError> {
        let workers = self.workers.as_ref().expect("running").handle();
        Directory::mount(&self.path, Arc::clone(&self.exports), &workers, FuseConfig::default())
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        drop(self.directory.take());
        if let Some(workers) = self.workers.take() {
            workers.shutdown();
        }
    }
}

/// Pseudo-random numbers, the same in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(self.0 >> 33).expect("31 bits fit") % bound
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| u8::try_from(self.below(256)).expect("below 256")).collect()
    }
}
