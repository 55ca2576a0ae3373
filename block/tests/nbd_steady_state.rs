//! Reads and writes of 4 KiB allocate nothing once a connection has warmed up.

#![allow(clippy::disallowed_methods, reason = "a test waits in real time")]

mod nbd_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nbd_support::{Client, flag};
use tidemark_block::engine::socket::{Address, Listener};
use tidemark_block::engine::{BufferPool, ExecutorConfig, Workers};
use tidemark_block::nbd::{Server, ServerConfig};
use tidemark_block::{
    ByteRange, Chunk, Device, DeviceError, Durability, Export, ExportList, Geometry, Payload,
    StatusExtent, ZeroOptions,
};

/// Counts the allocations of all threads but the test's own.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_CLIENT: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: every call goes to the system's allocator with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !IS_CLIENT.try_with(Cell::get).unwrap_or(true) {
            // Relaxed: read after the answers that the allocations were made for.
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A disk that keeps nothing and whose payloads come from a pool.
struct Void {
    pool: BufferPool,
}

struct PooledPayload(Chunk);

impl Payload for PooledPayload {
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_slice()
    }
}

impl Device for Void {
    type Payload = PooledPayload;

    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: 1 << 30,
            block_bytes_min: 1,
            block_bytes_preferred: 4096,
            read_only: false,
            fast_zero: true,
        }
    }
    async fn reserve(&self, range: ByteRange) -> Result<PooledPayload, DeviceError> {
        let mut chunk = self.pool.take().await;
        chunk.truncate(usize::try_from(range.len()).unwrap_or(usize::MAX));
        Ok(PooledPayload(chunk))
    }
    async fn write(&self, _: PooledPayload, _: Durability) -> Result<(), DeviceError> {
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
        range: ByteRange,
        _: usize,
        extents: &mut Vec<StatusExtent>,
    ) -> Result<(), DeviceError> {
        extents.push(StatusExtent { len_bytes: range.len(), hole: false, zero: false });
        Ok(())
    }
    async fn cache(&self, _: ByteRange) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// Sends a batch of 16 writes and 16 reads and takes all answers.
fn round(client: &mut Client, batch: &[u8], answers: &mut [u8]) {
    client.send(batch);
    std::io::Read::read_exact(&mut client.socket, answers).expect("all answers");
}

fn connect(socket: &Path, structured: bool) -> (Client, usize) {
    let client = Client::connect(socket).flags().go("void", structured);
    let read_head = if structured { 28 } else { 16 };
    (client, 16 * 16 + 16 * (read_head + 4096))
}

#[test]
fn reads_and_writes_of_4_kib_allocate_nothing() {
    IS_CLIENT.set(true);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = folder.path().join("nbd.sock");
    let listener = Listener::bind(&Address::Unix(socket.clone())).expect("a fresh folder");
    let workers = Workers::start("steady", 1, ExecutorConfig::default()).expect("io_uring");
    let exports = Arc::new(ExportList::new());
    let device = Arc::new(Void { pool: BufferPool::new(64, 4096) });
    let export = Export { name: "void".to_owned(), description: String::new(), device };
    exports.add(export).expect("a valid name");
    let config = ServerConfig::default();
    let server = Server::start(exports, vec![listener], &workers.handle(), config);
    let mut batch = Vec::new();
    for command in [1_u16, 0] {
        for cookie in 0..16_u64 {
            batch.extend_from_slice(&0x2560_9513_u32.to_be_bytes());
            batch.extend_from_slice(&flag::NONE.to_be_bytes());
            batch.extend_from_slice(&command.to_be_bytes());
            batch.extend_from_slice(&cookie.to_be_bytes());
            batch.extend_from_slice(&(cookie * 4096).to_be_bytes());
            batch.extend_from_slice(&4096_u32.to_be_bytes());
            if command == 1 {
                batch.extend_from_slice(&[7; 4096]);
            }
        }
    }
    for structured in [false, true] {
        let (mut client, answer_bytes) = connect(&socket, structured);
        let mut answers = vec![0; answer_bytes];
        for _ in 0..50 {
            round(&mut client, &batch, &mut answers);
        }
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for _ in 0..500 {
            round(&mut client, &batch, &mut answers);
        }
        let made = ALLOCATIONS.load(Ordering::Relaxed) - before;
        assert_eq!(made, 0, "allocations in 16,000 requests, structured: {structured}");
    }
    server.stop();
    workers.shutdown();
}
