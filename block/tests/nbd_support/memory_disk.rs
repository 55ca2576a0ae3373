//! A disk in memory, with faults, delays and counters.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidemark_block::engine::sleep;
use tidemark_block::{
    ByteRange, Chunk, Device, DeviceError, Durability, Geometry, PAYLOAD_BYTES_MAX, Payload,
    StatusExtent, ZeroOptions, check_range,
};

const BLOCK: u64 = 4096;

/// How a disk is made.
#[derive(Clone, Copy)]
pub struct Shape {
    pub size_bytes: u64,
    pub block_bytes_min: u32,
    pub read_only: bool,
    pub fast_zero: bool,
    pub payload_bytes_max: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            size_bytes: 64 << 20,
            block_bytes_min: 1,
            read_only: false,
            fast_zero: true,
            payload_bytes_max: PAYLOAD_BYTES_MAX,
        }
    }
}

/// See the module's text.
pub struct MemoryDisk {
    shape: Shape,
    bytes: Mutex<Vec<u8>>,
    /// Blocks that are holes.
    holes: Mutex<HashSet<u64>>,
    /// A byte whose reading and writing fails; `u64::MAX` for none.
    pub bad_byte: AtomicU64,
    /// Reservations fail.
    pub full: AtomicBool,
    /// Every read and write takes this long.
    pub delay_ms: AtomicU64,
    pub flushes: AtomicUsize,
    pub stable_writes: AtomicUsize,
    pub reserves: AtomicUsize,
    pub status_calls: AtomicUsize,
    pub cached: Mutex<Vec<ByteRange>>,
    running: AtomicUsize,
    pub running_max: AtomicUsize,
}

/// A payload on the heap.
pub struct HeapPayload {
    start: u64,
    bytes: Vec<u8>,
}

impl Payload for HeapPayload {
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl MemoryDisk {
    pub fn new(shape: Shape) -> Arc<Self> {
        let size = usize::try_from(shape.size_bytes).expect("a disk that fits in memory");
        Arc::new(Self {
            shape,
            bytes: Mutex::new(vec![0; size]),
            holes: Mutex::new((0..shape.size_bytes.div_ceil(BLOCK)).collect()),
            bad_byte: AtomicU64::new(u64::MAX),
            full: AtomicBool::new(false),
            delay_ms: AtomicU64::new(0),
            flushes: AtomicUsize::new(0),
            stable_writes: AtomicUsize::new(0),
            reserves: AtomicUsize::new(0),
            status_calls: AtomicUsize::new(0),
            cached: Mutex::default(),
            running: AtomicUsize::new(0),
            running_max: AtomicUsize::new(0),
        })
    }

    pub fn sized(size_bytes: u64) -> Arc<Self> {
        Self::new(Shape { size_bytes, ..Shape::default() })
    }

    /// Puts bytes on the disk behind the server's back.
    pub fn put(&self, at: u64, data: &[u8]) {
        let start = usize::try_from(at).expect("inside");
        self.bytes.lock().expect("no panic")[start..start + data.len()].copy_from_slice(data);
        self.mark(ByteRange::new(at, data.len() as u64).expect("inside"), false);
    }

    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let start = usize::try_from(at).expect("inside");
        self.bytes.lock().expect("no panic")[start..start + len].to_vec()
    }

    fn mark(&self, range: ByteRange, hole: bool) {
        let mut holes = self.holes.lock().expect("no panic");
        if hole {
            if let Some(whole) = range.align_inward(BLOCK) {
                holes.extend(whole.start() / BLOCK..whole.end() / BLOCK);
            }
        } else {
            for block in range.start() / BLOCK..range.end().div_ceil(BLOCK) {
                holes.remove(&block);
            }
        }
    }

    fn zero(&self, range: ByteRange) {
        let start = usize::try_from(range.start()).expect("inside");
        let end = usize::try_from(range.end()).expect("inside");
        self.bytes.lock().expect("no panic")[start..end].fill(0);
    }

    async fn take_time(&self, range: ByteRange) -> Result<(), DeviceError> {
        let running = self.running.fetch_add(1, Ordering::Relaxed) + 1;
        self.running_max.fetch_max(running, Ordering::Relaxed);
        let delay = self.delay_ms.load(Ordering::Relaxed);
        if delay > 0 {
            sleep(Duration::from_millis(delay)).await;
        }
        self.running.fetch_sub(1, Ordering::Relaxed);
        let bad = self.bad_byte.load(Ordering::Relaxed);
        if (range.start()..range.end()).contains(&bad) {
            return Err(DeviceError::Io { range, source: std::io::Error::other("a bad byte") });
        }
        Ok(())
    }
}

impl Device for MemoryDisk {
    type Payload = HeapPayload;

    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.shape.size_bytes,
            block_bytes_min: self.shape.block_bytes_min,
            block_bytes_preferred: 4096,
            read_only: self.shape.read_only,
            fast_zero: self.shape.fast_zero,
        }
    }

    async fn reserve(&self, range: ByteRange) -> Result<HeapPayload, DeviceError> {
        check_range(&self.geometry(), range)?;
        if self.full.load(Ordering::Relaxed) {
            return Err(DeviceError::NoSpace);
        }
        self.reserves.fetch_add(1, Ordering::Relaxed);
        let len = usize::try_from(range.len()).expect("inside").min(self.shape.payload_bytes_max);
        Ok(HeapPayload { start: range.start(), bytes: vec![0; len] })
    }

    async fn write(&self, payload: HeapPayload, durability: Durability) -> Result<(), DeviceError> {
        let len = payload.bytes.len() as u64;
        self.take_time(ByteRange::new(payload.start, len).expect("reserved")).await?;
        self.put(payload.start, &payload.bytes);
        if durability == Durability::Stable {
            self.stable_writes.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn read(&self, start: u64, mut into: Chunk) -> Result<Chunk, DeviceError> {
        self.take_time(ByteRange::new(start, into.len() as u64).expect("checked")).await?;
        let data = self.get(start, into.len());
        into.as_mut_slice().copy_from_slice(&data);
        Ok(into)
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn trim(&self, range: ByteRange, durability: Durability) -> Result<(), DeviceError> {
        let options = ZeroOptions { no_hole: false, fast: false, durability };
        self.write_zeroes(range, options).await
    }

    async fn write_zeroes(
        &self,
        range: ByteRange,
        options: ZeroOptions,
    ) -> Result<(), DeviceError> {
        // Keeping the space allocated means writing, in this disk's world.
        if options.fast && options.no_hole {
            return Err(DeviceError::Unsupported("fast zeroes that keep the space"));
        }
        self.zero(range);
        self.mark(range, !options.no_hole);
        if options.durability == Durability::Stable {
            self.stable_writes.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn block_status(
        &self,
        range: ByteRange,
        extents_max: usize,
        extents: &mut Vec<StatusExtent>,
    ) -> Result<(), DeviceError> {
        self.status_calls.fetch_add(1, Ordering::Relaxed);
        let holes = self.holes.lock().expect("no panic");
        let mut at = range.start();
        while at < range.end() && extents.len() < extents_max {
            let hole = holes.contains(&(at / BLOCK));
            let mut end = at;
            while end < range.end() && holes.contains(&(end / BLOCK)) == hole {
                end = (end - end % BLOCK + BLOCK).min(range.end());
            }
            extents.push(StatusExtent { len_bytes: end - at, hole, zero: hole });
            at = end;
        }
        Ok(())
    }

    async fn cache(&self, range: ByteRange) -> Result<(), DeviceError> {
        self.cached.lock().expect("no panic").push(range);
        Ok(())
    }
}
