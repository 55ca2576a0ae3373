//! In the steady state neither a read nor a write over FUSE allocates memory.
//!
//! Alone in its test binary, since the counter sees every thread of the process.

#![allow(clippy::disallowed_methods, reason = "a test waits in real time")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tidemark_block::engine::{BufferPool, ExecutorConfig, Workers};
use tidemark_block::fuse::{Directory, FuseConfig};
use tidemark_block::{
    ByteRange, Chunk, Device, DeviceError, Durability, Export, ExportList, Geometry,
    PAYLOAD_BYTES_MAX, Payload, StatusExtent, ZeroOptions,
};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Relaxed: a counter, nothing is ordered by it.
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Takes writes into pooled memory and forgets them.
struct Sink(BufferPool);

struct Pooled(Chunk);

impl Payload for Pooled {
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_slice()
    }
}

impl Device for Sink {
    type Payload = Pooled;

    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: 16 << 20,
            block_bytes_min: 1,
            block_bytes_preferred: 4096,
            read_only: false,
            fast_zero: true,
        }
    }

    async fn reserve(&self, range: ByteRange) -> Result<Pooled, DeviceError> {
        let mut chunk = self.0.take().await;
        chunk.truncate(usize::try_from(range.len()).expect("small"));
        Ok(Pooled(chunk))
    }

    async fn write(&self, _: Pooled, _: Durability) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn read(&self, _: u64, into: Chunk) -> Result<Chunk, DeviceError> {
        Ok(into)
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn trim(&self, _: ByteRange, _: Durability) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn write_zeroes(&self, _: ByteRange, _: ZeroOptions) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn block_status(
        &self,
        _: ByteRange,
        _: usize,
        _: &mut Vec<StatusExtent>,
    ) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported("a sink has no map"))
    }

    async fn cache(&self, _: ByteRange) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// Short and long writes (the long ones become several payloads), and reads of both lengths.
fn requests(file: &File, count: usize, bytes: &mut [u8]) {
    for _ in 0..count {
        file.write_all_at(&bytes[..4096], 8192).expect("written");
        file.write_all_at(bytes, 0).expect("written");
        file.read_exact_at(&mut bytes[..4096], 8192).expect("read");
        file.read_exact_at(bytes, 0).expect("read");
        file.sync_data().expect("flushed");
    }
}

#[test]
fn nothing_is_allocated_for_a_request() {
    if !nix::unistd::geteuid().is_root() || !std::path::Path::new("/dev/fuse").exists() {
        eprintln!("skipped: needs root and /dev/fuse");
        return;
    }
    let parent = tempfile::tempdir().expect("a temporary directory");
    let path = parent.path().join("disks");
    let workers = Workers::start("fuse-test", 2, ExecutorConfig::default()).expect("io_uring");
    let exports = Arc::new(ExportList::new());
    let device = Arc::new(Sink(BufferPool::new(32, PAYLOAD_BYTES_MAX)));
    let export = Export { name: "disk".to_owned(), description: String::new(), device };
    exports.add(export).expect("a fresh name");
    let directory = Directory::mount(&path, exports, &workers.handle(), FuseConfig::default())
        .expect("root can mount");
    let file = OpenOptions::new().read(true).write(true).open(path.join("disk")).expect("served");

    let mut bytes = vec![7; 1 << 20];
    requests(&file, 200, &mut bytes);
    // Relaxed: the requests before and after are ordered by the kernel's answers.
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    assert!(before > 0, "the counter counts");
    requests(&file, 1000, &mut bytes);
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;

    drop(file);
    directory.unmount();
    workers.shutdown();
    // 5,000 requests. Queues that keep their memory may still grow once or twice.
    assert!(allocations <= 20, "{allocations} allocations for 5,000 requests");
    eprintln!("{allocations} allocations for 5,000 requests");
}
