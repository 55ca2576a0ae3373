//! The device against a model, over stores of different units.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::engine::lock;
use crate::engine::{Executor, ExecutorConfig, sleep, spawn};
use crate::store::{OpenMode, StoreGeometry, UringStore};

const DISK_BYTES: usize = 64 * 1024;

fn len_in_memory(range: ByteRange) -> usize {
    usize::try_from(range.len()).unwrap()
}

/// Memory that insists on alignment and lets other tasks run in the middle of every operation.
struct StrictStore {
    bytes: Mutex<Vec<u8>>,
    unit_bytes: u32,
    punches: bool,
}

impl StrictStore {
    fn new(unit_bytes: u32, punches: bool) -> Self {
        Self { bytes: Mutex::new(vec![0; DISK_BYTES]), unit_bytes, punches }
    }

    fn span(&self, start: u64, len: usize) -> std::ops::Range<usize> {
        let unit = self.unit_bytes as usize;
        let start = usize::try_from(start).unwrap();
        assert!(start.is_multiple_of(unit) && len.is_multiple_of(unit) && len > 0);
        start..start + len
    }

    fn fill_zero(&self, range: ByteRange) -> io::Result<()> {
        if !self.punches {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let span = self.span(range.start(), len_in_memory(range));
        lock(&self.bytes)[span].fill(0);
        Ok(())
    }
}

impl Store for StrictStore {
    fn geometry(&self) -> StoreGeometry {
        StoreGeometry {
            size_bytes: DISK_BYTES as u64,
            io_align_bytes: self.unit_bytes,
            mem_align_bytes: self.unit_bytes,
            discard: self.punches,
            read_only: false,
        }
    }

    async fn read_at(&self, mut buf: Chunk, offset: u64) -> (io::Result<()>, Chunk) {
        assert!(buf.as_ptr().addr().is_multiple_of(self.unit_bytes as usize));
        let span = self.span(offset, buf.len());
        buf.as_mut_slice().copy_from_slice(&lock(&self.bytes)[span]);
        sleep(Duration::ZERO).await;
        (Ok(()), buf)
    }

    async fn write_at(&self, buf: Chunk, offset: u64, _: Durability) -> (io::Result<()>, Chunk) {
        assert!(buf.as_ptr().addr().is_multiple_of(self.unit_bytes as usize));
        sleep(Duration::ZERO).await;
        let span = self.span(offset, buf.len());
        lock(&self.bytes)[span].copy_from_slice(buf.as_slice());
        (Ok(()), buf)
    }

    async fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    async fn punch(&self, range: ByteRange) -> io::Result<()> {
        self.fill_zero(range)
    }

    async fn zero(&self, range: ByteRange) -> io::Result<()> {
        self.fill_zero(range)
    }

    fn data_extents(
        &self,
        range: ByteRange,
        _: usize,
        out: &mut Vec<StatusExtent>,
    ) -> io::Result<()> {
        out.push(StatusExtent { len_bytes: range.len(), hole: false, zero: false });
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write { start: usize, len: usize, byte: u8 },
    Zero { start: usize, len: usize, no_hole: bool },
    Trim { start: usize, len: usize },
    Read { start: usize, len: usize, shift: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = (0..DISK_BYTES, prop_oneof![1..700_usize, 1..20_000_usize])
        .prop_map(|(start, len)| (start, len.min(DISK_BYTES - start)));
    let step = prop_oneof![
        4 => (place.clone(), any::<u8>())
            .prop_map(|((start, len), byte)| Step::Write { start, len, byte }),
        1 => (place.clone(), any::<bool>())
            .prop_map(|((start, len), no_hole)| Step::Zero { start, len, no_hole }),
        1 => place.clone().prop_map(|(start, len)| Step::Trim { start, len }),
        2 => (place, 0..600_usize)
            .prop_map(|((start, len), shift)| Step::Read { start, len, shift }),
    ];
    proptest::collection::vec(step, 1..40)
}

fn range(start: usize, len: usize) -> ByteRange {
    ByteRange::new(start as u64, len as u64).unwrap()
}

async fn write<S: Store>(device: &FileDevice<S>, mut rest: ByteRange, byte: u8) {
    while !rest.is_empty() {
        let mut payload = device.reserve(rest).await.unwrap();
        payload.bytes_mut().fill(byte);
        let end = rest.start() + payload.bytes_mut().len() as u64;
        device.write(payload, Durability::Cached).await.unwrap();
        rest = ByteRange::between(end, rest.end()).unwrap();
    }
}

/// Reads into memory that begins `shift` bytes behind an aligned address.
async fn read<S: Store>(device: &FileDevice<S>, at: ByteRange, shift: usize) -> Vec<u8> {
    let into = Chunk::zeroed(len_in_memory(at) + shift).split_off(shift);
    device.read(at.start(), into).await.unwrap().as_slice().to_vec()
}

async fn compare<S: Store>(device: &FileDevice<S>, steps: Vec<Step>) {
    let unit = u64::from(device.store().geometry().io_align_bytes);
    let mut model = vec![0_u8; DISK_BYTES];
    for step in steps {
        match step {
            Step::Write { start, len, byte } => {
                write(device, range(start, len), byte).await;
                model[start..start + len].fill(byte);
            }
            Step::Zero { start, len, no_hole } => {
                let options = ZeroOptions { no_hole, fast: false, durability: Durability::Stable };
                device.write_zeroes(range(start, len), options).await.unwrap();
                model[start..start + len].fill(0);
            }
            Step::Trim { start, len } => {
                device.trim(range(start, len), Durability::Cached).await.unwrap();
                if let Some(inner) = range(start, len).align_inward(unit)
                    && device.store().geometry().discard
                {
                    let from = usize::try_from(inner.start()).unwrap();
                    model[from..from + len_in_memory(inner)].fill(0);
                }
            }
            Step::Read { start, len, shift } => {
                let found = read(device, range(start, len), shift).await;
                assert!(found == model[start..start + len], "read of {len} at {start}");
            }
        }
    }
    assert!(read(device, range(0, DISK_BYTES), 0).await == model);
}

fn on_executor<F: Future>(future: F) -> F::Output {
    Executor::new(&ExecutorConfig::default()).unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn equals_the_model_on_every_unit(
        steps in steps(),
        unit in prop_oneof![Just(1_u32), Just(512), Just(4096)],
        punches in any::<bool>(),
    ) {
        let device = FileDevice::new(StrictStore::new(unit, punches));
        on_executor(compare(&device, steps));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn equals_the_model_on_a_file(steps in steps()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, vec![0; DISK_BYTES]).unwrap();
        let store = UringStore::open(&path, OpenMode::ReadWrite).unwrap();
        on_executor(compare(&FileDevice::new(store), steps));
    }
}

#[test]
fn neighbours_in_one_unit_do_not_lose_each_others_bytes() {
    const PIECE: usize = 100;
    let device = Arc::new(FileDevice::new(StrictStore::new(4096, true)));
    let running = Rc::new(Cell::new(0));
    on_executor(async {
        for piece in 0..DISK_BYTES / PIECE {
            let device = Arc::clone(&device);
            running.set(running.get() + 1);
            let running = Rc::clone(&running);
            spawn(async move {
                for round in 0..3_u8 {
                    let byte = u8::try_from(piece % 50).unwrap() + round;
                    write(&device, range(piece * PIECE, PIECE), byte).await;
                }
                running.set(running.get() - 1);
            });
        }
        while running.get() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
        for piece in 0..DISK_BYTES / PIECE {
            let byte = u8::try_from(piece % 50).unwrap() + 2;
            let found = read(&device, range(piece * PIECE, PIECE), 0).await;
            assert_eq!(found, vec![byte; PIECE], "piece {piece}");
        }
    });
}

#[test]
fn what_can_not_be_done_is_said() {
    let device = FileDevice::new(StrictStore::new(512, false));
    on_executor(async {
        let fast = ZeroOptions { no_hole: false, fast: true, durability: Durability::Cached };
        let refused = device.write_zeroes(range(0, 4096), fast).await;
        assert!(matches!(refused, Err(DeviceError::Unsupported(_))));
        let behind = device.reserve(range(DISK_BYTES - 1, 2)).await;
        assert!(matches!(behind, Err(DeviceError::OutOfRange { .. })));
        let wrapped = device.read(u64::MAX, Chunk::zeroed(2)).await;
        assert!(matches!(wrapped, Err(DeviceError::OutOfRange { .. })));
    });
}

#[test]
fn zeroes_written_out_do_not_wait_for_the_buffers_of_waiting_writers() {
    let device = Arc::new(FileDevice::new(StrictStore::new(512, false)));
    on_executor(async {
        let done = Rc::new(Cell::new(0));
        let mut payloads = Vec::new();
        for _ in 0..LARGE_BUFFERS {
            payloads.push(device.reserve(range(0, DISK_BYTES)).await.unwrap());
        }
        let zeroing = Arc::clone(&device);
        spawn(async move {
            let options =
                ZeroOptions { no_hole: true, fast: false, durability: Durability::Cached };
            zeroing.write_zeroes(range(0, DISK_BYTES), options).await.unwrap();
        });
        for payload in payloads {
            let (device, done) = (Arc::clone(&device), Rc::clone(&done));
            spawn(async move {
                device.write(payload, Durability::Cached).await.unwrap();
                done.set(done.get() + 1);
            });
        }
        while done.get() < LARGE_BUFFERS {
            sleep(Duration::from_millis(1)).await;
        }
    });
}
