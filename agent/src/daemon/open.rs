//! Opens one volume: its state, its backing store, its ring, and what a predecessor left.
//!
//! The order matters. The lock on the backing store comes first: a killed agent's I/O may still
//! be landing until it is ours. Only then is looked whether somebody else has changed it. Numbers
//! are reserved and `clean` is taken back durably before anything may be captured. What was in
//! flight is read back before anybody may write.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tidemark_block::engine::{Executor, ExecutorConfig};
use tidemark_block::store::{OpenMode, Store, StoreError, UringStore};
use tidemark_wire::body::GapReason;
use tidemark_wire::{Epoch, JournalId, Seq, Timeline, VolumeId, WallMicros};

use super::holder;
use crate::backing_mark::{self, Backing, Change, Ending, MarkKeeper};
use crate::capture::Capture;
use crate::clock::Clock;
use crate::config::{Config, VolumeConfig};
use crate::intent_log::IntentLog;
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
    pub(super) mark: MarkKeeper,
}

/// Opens the volume of `volume_config`.
pub(super) fn open(
    config: &Config,
    volume_config: &VolumeConfig,
    clock: &Arc<dyn Clock>,
    random: &dyn Random,
) -> anyhow::Result<OpenVolume> {
    let name = &volume_config.name;
    open_locked(config, volume_config, clock, random).with_context(|| format!("volume {name:?}"))
}

fn open_locked(
    config: &Config,
    volume_config: &VolumeConfig,
    clock: &Arc<dyn Clock>,
    random: &dyn Random,
) -> anyhow::Result<OpenVolume> {
    let name = &volume_config.name;
    let store = open_store(&volume_config.backing, clock.as_ref())?;
    if !store.direct() {
        tracing::warn!(volume = name, "no direct I/O on its backing store: the page cache is used");
    }
    let file = StateFile::new(&config.state_dir, name);
    let found = file.load()?;
    let was = found.unwrap_or_else(|| new_state(VolumeId::from_random(random.bytes())));
    let state = VolumeState {
        reserved_until: Seq(was.reserved_until.0 + SEQ_RESERVATION),
        clean: false,
        ..was.clone()
    };
    file.store(&state)?;
    let ring_path = config.ring_dir.join(format!("{}.ring", state.volume));
    match open_volume(store, &ring_path, volume_config, &was, clock, random) {
        Ok((volume, mark)) => {
            Ok(OpenVolume { volume, state: KeptState::new(file, state), ring_path, mark })
        }
        Err(error) => {
            // Nobody has written anything; what is kept of the volume holds as before.
            let unused = VolumeState { reserved_until: state.reserved_until, ..was };
            if let Err(error) = file.store(&unused) {
                tracing::warn!(volume = name, "{error}; its next start compares the volume");
            }
            Err(error)
        }
    }
}

/// Opens a volume whose numbers up to the next reservation are its own by now.
fn open_volume(
    store: UringStore,
    ring_path: &Path,
    volume_config: &VolumeConfig,
    was: &VolumeState,
    clock: &Arc<dyn Clock>,
    random: &dyn Random,
) -> anyhow::Result<(Volume<UringStore>, MarkKeeper)> {
    let VolumeConfig { name, backing, .. } = volume_config;
    let (ring, recovery) = open_ring(ring_path, volume_config, was, clock)?;
    let mark_path = ring_path.with_extension("mark");
    let (mut mark, change) = look_at_backing(backing, &mark_path, was, &ring, random)
        .with_context(|| format!("look at {}", backing.display()))?;
    ring.set_seq_limit(Seq(was.reserved_until.0 + SEQ_RESERVATION));
    ring.raise_time(was.last_time);
    let intent = IntentLog::volatile(store.geometry().size_bytes);
    let capture = Arc::new(Capture::new(name.clone(), ring, Arc::clone(intent.map())));
    let volume = Volume::new(was.volume, store, capture, intent);
    recover(&volume, recovery, was, change)?;
    if was.paused {
        volume.capture().pause();
    }
    // From here on a kill is told from a mark of this start.
    mark.keep(clock.monotonic()).with_context(|| format!("keep {}", mark_path.display()))?;
    Ok((volume, mark))
}

/// Whether the backing store was changed while no agent served it, where that matters, and who
/// keeps its mark from now on.
fn look_at_backing(
    path: &Path,
    mark_path: &Path,
    was: &VolumeState,
    ring: &Ring,
    random: &dyn Random,
) -> anyhow::Result<(MarkKeeper, Option<Change>)> {
    let backing = Backing::open(path, boot_id()?)?;
    let settled = backing.settle();
    let now = backing.mark()?;
    // A volume without a copy is going to be compared anyway.
    let change = match (was.copied, was.clean) {
        (false, _) => None,
        // The kernel could not keep what somebody wrote, and says so only once.
        _ if settled.is_err() => Some(Change::Doubt("it could not be flushed")),
        (true, true) => backing_mark::judge(was.backing.as_ref(), &now, Ending::Clean),
        (true, false) => {
            let ending = Ending::Killed { last_record: ring.last_time() };
            backing_mark::judge(MarkKeeper::found(mark_path).as_ref(), &now, ending)
        }
    };
    if let Err(error) = backing.name_generation(random.bytes()) {
        // Its other marks tell nearly as much, and a full file system must not stop a disk.
        tracing::warn!("{}: its generation can't be named: {error}", path.display());
    }
    Ok((MarkKeeper::new(backing, mark_path.to_owned()), change))
}

/// A killed predecessor keeps its lock until the last of its I/O has landed, which may be a moment
/// after its process has ended.
fn open_store(path: &Path, clock: &dyn Clock) -> anyhow::Result<UringStore> {
    let deadline = clock.monotonic() + LOCK_PATIENCE;
    loop {
        match UringStore::open(path, OpenMode::ReadWrite) {
            Err(StoreError::InUse { .. }) if clock.monotonic() < deadline => {
                clock.sleep(LOCK_EVERY);
            }
            Err(error @ StoreError::InUse { .. }) => {
                return Err(match holder::of(path) {
                    Some(holder) => anyhow!("{error}: {holder} has locked it"),
                    None => error.into(),
                });
            }
            opened => return Ok(opened?),
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
    change: Option<Change>,
) -> anyhow::Result<()> {
    let capture = volume.capture();
    if let Some(recovery) = &recovery {
        tracing::info!(
            volume = volume.name(),
            "the change ring kept {} records up to {}; {} ranges were in flight",
            recovery.kept,
            recovery.last_seq,
            recovery.in_flight.len()
        );
    }
    let capture_was_off = recovery.as_ref().is_some_and(|recovery| recovery.capture_was_off);
    if !was.clean && recovery.is_none() {
        // Also before a whole copy has reached the collector: nothing is captured before its
        // welcome has told the newest time that it holds.
        capture.lose(GapReason::RingLost);
    } else if capture_was_off {
        capture.lose(GapReason::RingFull);
    } else if let Some(change) = change {
        tracing::warn!(volume = volume.name(), "its backing store: {change}");
        if matches!(change, Change::Resized { .. }) {
            tracing::error!(
                volume = volume.name(),
                "a volume can't change its size yet: the collector will refuse it until the \
                 backing store has its former size again"
            );
        }
        capture.lose(GapReason::OutsideChange);
    } else if let Some(recovery) = &recovery {
        let executor = Executor::new(&ExecutorConfig::default()).context("start an executor")?;
        executor.block_on(volume.recover(&recovery.in_flight));
    } else {
        capture.ring().turn_capture_on();
    }
    if let Some(recovery) = recovery {
        capture.ring().settle(recovery);
    }
    Ok(())
}
