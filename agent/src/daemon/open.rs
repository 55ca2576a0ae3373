//! Opens one volume: its state, its backing store, its ring, and what a predecessor left.
//!
//! The order matters. The lock on the backing store comes first: a killed agent's I/O may still
//! be landing until it is ours. Numbers are reserved and `clean` is taken back durably before
//! anything may be captured. What was in flight is read back before anybody may write.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tidemark_block::engine::{Executor, ExecutorConfig};
use tidemark_block::store::{OpenMode, StoreError, UringStore};
use tidemark_wire::body::GapReason;
use tidemark_wire::{Epoch, JournalId, Seq, Timeline, VolumeId, WallMicros};

use crate::capture::Capture;
use crate::clock::Clock;
use crate::config::{Config, VolumeConfig};
use crate::random::Random;
use crate::ring::format::{SLOTS_MAX, SLOTS_MIN};
use crate::ring::{Mlock, Recovery, Ring, RingErrorKind, RingSpec, boot_id};
use crate::state::{KeptState, SEQ_RESERVATION, StateFile, VolumeState};
use crate::volume::Volume;

/// Bytes of a page of the ring: as many slots as pages, so that small writes use both up evenly.
const SLOT_PER_BYTES: u64 = 4096;

/// How long the lock on the backing store is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// How often it is tried.
const LOCK_EVERY: Duration = Duration::from_millis(20);

/// A volume that is ready to be served.
pub(super) struct OpenVolume {
    pub(super) volume: Volume<UringStore>,
    pub(super) state: KeptState,
    pub(super) ring_path: PathBuf,
}

/// Opens the volume of `volume_config`.
pub(super) fn open(
    config: &Config,
    volume_config: &VolumeConfig,
    clock: &Arc<dyn Clock>,
    random: &dyn Random,
) -> anyhow::Result<OpenVolume> {
    let name = &volume_config.name;
    let store = open_store(&volume_config.backing, clock.as_ref())
        .with_context(|| format!("volume {name:?}"))?;
    if !store.direct() {
        tracing::warn!(volume = name, "no direct I/O on its backing store: the page cache is used");
    }
    let file = StateFile::new(&config.state_dir, name);
    let found = file.load().with_context(|| format!("volume {name:?}"))?;
    let was = found.unwrap_or_else(|| new_state(VolumeId::from_random(random.bytes())));
    let state = VolumeState {
        reserved_until: Seq(was.reserved_until.0 + SEQ_RESERVATION),
        clean: false,
        ..was.clone()
    };
    file.store(&state).with_context(|| format!("volume {name:?}"))?;

    let ring_path = config.ring_dir.join(format!("{}.ring", state.volume));
    let (ring, recovery) = open_ring(&ring_path, volume_config, &was, clock)
        .with_context(|| format!("volume {name:?}"))?;
    ring.set_seq_limit(state.reserved_until);
    ring.raise_time(state.last_time);
    let volume = Volume::new(state.volume, store, Arc::new(Capture::new(name.clone(), ring)));
    recover(&volume, recovery, &was)?;
    if was.paused {
        volume.capture().pause();
    }
    Ok(OpenVolume { volume, state: KeptState::new(file, state), ring_path })
}

/// A killed predecessor keeps its lock until the last of its I/O has landed, which may be a moment
/// after its process has ended.
fn open_store(path: &Path, clock: &dyn Clock) -> Result<UringStore, StoreError> {
    let deadline = clock.monotonic() + LOCK_PATIENCE;
    loop {
        match UringStore::open(path, OpenMode::ReadWrite) {
            Err(StoreError::InUse { .. }) if clock.monotonic() < deadline => {
                clock.sleep(LOCK_EVERY);
            }
            opened => return opened,
        }
    }
}

fn new_state(volume: VolumeId) -> VolumeState {
    VolumeState {
        volume,
        reserved_until: Seq(1),
        journal: JournalId::NIL,
        timeline: Timeline(1),
        epoch: Epoch(0),
        copied: false,
        clean: true,
        released: Seq(0),
        paused: false,
        last_time: WallMicros(0),
        backing: None,
    }
}

/// The ring that a predecessor left, or a new one.
fn open_ring(
    path: &Path,
    volume_config: &VolumeConfig,
    was: &VolumeState,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<(Ring, Option<Recovery>)> {
    let ring_bytes = volume_config.ring_mib * 1024 * 1024;
    let slots = (ring_bytes / SLOT_PER_BYTES).next_power_of_two();
    let slots = slots.clamp(u64::from(SLOTS_MIN), u64::from(SLOTS_MAX));
    let spec = RingSpec {
        volume: was.volume,
        ring_bytes,
        slots: u32::try_from(slots).context("slots of the ring")?,
        boot_id: boot_id().context("read the boot id")?,
    };
    let first = was.reserved_until;
    match Ring::open(path, &spec, first, Mlock::WherePermitted, Arc::clone(clock)) {
        Ok((ring, recovery)) => return Ok((ring, Some(recovery))),
        Err(error) if error.kind == RingErrorKind::Missing => {}
        Err(error) if error.kind.wants_new_ring() => {
            tracing::warn!(volume = volume_config.name, "{error}");
            Ring::discard(path)?;
        }
        Err(error) => return Err(error.into()),
    }
    let ring = Ring::create(path, &spec, first, Mlock::WherePermitted, Arc::clone(clock))?;
    Ok((ring, None))
}

/// Brings the stream in line with what the backing store holds.
fn recover(
    volume: &Volume<UringStore>,
    recovery: Option<Recovery>,
    was: &VolumeState,
) -> anyhow::Result<()> {
    let Some(recovery) = recovery else {
        // Also before a whole copy has reached the collector: nothing is captured before its
        // welcome has told the newest time that it holds.
        if was.clean {
            volume.capture().ring().turn_capture_on();
        } else {
            volume.capture().lose(GapReason::RingLost);
        }
        return Ok(());
    };
    tracing::info!(
        volume = volume.name(),
        "the change ring kept {} records up to {}; {} ranges were in flight and are read back",
        recovery.kept,
        recovery.last_seq,
        recovery.in_flight.len()
    );
    if recovery.capture_was_off {
        volume.capture().lose(GapReason::RingFull);
    } else {
        let executor = Executor::new(&ExecutorConfig::default()).context("start an executor")?;
        executor.block_on(volume.recover(&recovery.in_flight));
    }
    volume.capture().ring().settle(recovery);
    Ok(())
}
