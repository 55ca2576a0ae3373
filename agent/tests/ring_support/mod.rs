//! What the ring's tests share: a folder on tmpfs, specs, payloads that tell their own contents.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tidemark_agent::clock::{Clock, SystemClock};
use tidemark_agent::ring::{Extent, InFlight, Mlock, Recovery, Ring, RingError, RingSpec};
use tidemark_wire::record::RecordSpec;
use tidemark_wire::{RecordKind, Seq, VolumeId, WallMicros};

pub const NO_LIMIT: Seq = Seq(1 << 50);

/// A folder on tmpfs that is gone after the test.
pub fn tmpfs_dir() -> TempDir {
    tempfile::tempdir_in("/dev/shm").expect("/dev/shm is a tmpfs that can be written to")
}

pub fn spec(ring_bytes: u64, slots: u32) -> RingSpec {
    RingSpec { volume: VolumeId::from_bytes([7; 16]), ring_bytes, slots, boot_id: [9; 16] }
}

pub fn small() -> RingSpec {
    spec(1 << 20, 16)
}

pub fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::default())
}

/// A clock that stands still.
pub struct StillClock(pub u64);

impl Clock for StillClock {
    fn wall(&self) -> WallMicros {
        WallMicros(self.0)
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }

    fn sleep(&self, _: Duration) {}
}

pub fn create(path: &Path, spec: &RingSpec) -> Result<Ring, RingError> {
    let ring = Ring::create(path, spec, Seq(1), Mlock::WherePermitted, clock())?;
    ring.set_seq_limit(NO_LIMIT);
    ring.turn_capture_on();
    Ok(ring)
}

pub fn open(path: &Path, spec: &RingSpec) -> Result<(Ring, Recovery), RingError> {
    let (ring, recovery) = Ring::open(path, spec, Seq(1), Mlock::WherePermitted, clock())?;
    ring.set_seq_limit(NO_LIMIT);
    Ok((ring, recovery))
}

pub fn write_spec(offset_bytes: u64, len: usize) -> RecordSpec {
    RecordSpec {
        kind: RecordKind::Write,
        offset_bytes,
        len_bytes: len as u64,
        payload_bytes: u32::try_from(len).expect("small"),
        flags: 0,
        aux: 0,
    }
}

pub fn plain_spec(kind: RecordKind, offset_bytes: u64, len_bytes: u64) -> RecordSpec {
    RecordSpec { kind, offset_bytes, len_bytes, payload_bytes: 0, flags: 0, aux: 0 }
}

/// Fills a payload with bytes that follow from the first of them and the offset.
pub fn fill(extent: &mut Extent, seed: u8) {
    for (i, byte) in extent.as_mut_slice().iter_mut().enumerate() {
        *byte = pattern(seed, i);
    }
}

#[allow(clippy::cast_possible_truncation, reason = "a pattern of bytes")]
pub fn pattern(seed: u8, i: usize) -> u8 {
    seed.wrapping_add((i * 31 + i / 256) as u8)
}

pub fn is_pattern(payload: &[u8]) -> bool {
    payload.iter().enumerate().all(|(i, byte)| *byte == pattern(payload[0], i))
}

/// A write in flight.
pub fn push(ring: &Ring, offset: u64, len: usize, seed: u8) -> Option<InFlight> {
    let mut extent = ring.reserve(offset, len)?;
    fill(&mut extent, seed);
    ring.claim(&write_spec(offset, extent.len()), Some(extent)).ok()
}

/// The ring's file as a kill would leave it now: a copy, since a process can't kill itself and
/// go on.
pub fn as_after_kill(path: &Path) -> PathBuf {
    static COPIES: AtomicU32 = AtomicU32::new(0);
    let copy = path.with_extension(COPIES.fetch_add(1, Ordering::Relaxed).to_string());
    std::fs::copy(path, &copy).expect("the ring's file can be copied");
    copy
}

/// Pseudo-random numbers that follow from a seed (xorshift64*).
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        (self.roll() >> 16) % end
    }
}
