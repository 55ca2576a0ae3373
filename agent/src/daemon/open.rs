//! Opens one volume: its state, its backing store, its ring, and what a predecessor left.
//!
//! The order matters. The lock on the backing store comes first: a killed agent's I/O may still
//! be landing until it is ours. Only then is looked whether somebody else has changed it. Numbers
//! are reserved and `clean` is taken back durably before anything may be captured. What was in
//! flight is read back before anybody may write. What is decided is in [`open_on`], which the
//! simulator runs as well; around it is what is asked of the operating system.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tidemark_block::ByteRange;
use tidemark_block::engine::{Executor, ExecutorConfig};
use tidemark_block::store::{OpenMode, Store, StoreError, UringStore};
use tidemark_wire::body::GapReason;
use tidemark_wire::planted::{self, Bug};
use tidemark_wire::{Epoch, JournalId, Seq, Timeline, VolumeId, WallMicros};

use super::holder;
use super::log_files::StateDirLog;
use super::restart::{self, Restart, Started};
use super::running::served;
use crate::backing_mark::{self, Backing, Change, Ending, MarkKeeper, STALE, STALE_IN_BOOT};
use crate::capture::Capture;
use crate::clock::Clock;
use crate::config::{Config, VolumeConfig};
use crate::intent_log::file::LogFiles;
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

/// What [`open_on`] opens a volume from, its backing store apart.
pub struct Left<'a, L> {
    /// The volume's name.
    pub name: &'a str,
    /// Its ring.
    pub ring: RingPlace<'a>,
    /// Its write-intent log.
    pub log: &'a L,
    /// Its state as it was found; `None` when it was never opened.
    pub was: Option<&'a VolumeState>,
    /// Its state by now: what [`begun`] made of it.
    pub state: &'a Arc<KeptState>,
}

/// Where a volume's ring is, and of what sort.
pub struct RingPlace<'a> {
    /// Its file.
    pub path: &'a Path,
    /// Its size, and the boot that it has to be of.
    pub spec: RingSpec,
}

/// A volume that is ready to be served.
pub(super) struct OpenVolume {
    pub(super) volume: Volume<UringStore>,
    pub(super) state: Arc<KeptState>,
    pub(super) ring_path: PathBuf,
    pub(super) mark: MarkKeeper,
    pub(super) started: Started,
    pub(super) log: StateDirLog,
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
    let new = || new_state(VolumeId::from_random(random.bytes()));
    let was = found.clone().unwrap_or_else(new);
    let state = begun(&was);
    file.store(&state)?;
    let ring_path = config.ring_dir.join(format!("{}.ring", state.volume));
    let log = StateDirLog::new(&config.state_dir, name);
    let state = Arc::new(KeptState::new(file, state));
    let left = Left {
        name,
        ring: RingPlace { path: &ring_path, spec: ring_spec(volume_config, was.volume)? },
        log: &log,
        was: found.as_ref(),
        state: &state,
    };
    match open_volume(store, &left, &volume_config.backing, clock, random) {
        Ok((volume, started, mark)) => {
            Ok(OpenVolume { volume, state, ring_path, mark, started, log })
        }
        Err(error) => {
            // Nobody has written anything; what is kept of the volume holds as before, but a log
            // that was made anew has no bits of before.
            let kept = state.update(|state| {
                let VolumeState { reserved_until, unsure_after, covered, .. } = *state;
                *state = VolumeState { reserved_until, unsure_after, covered, ..was };
            });
            if let Err(error) = kept {
                tracing::warn!(volume = name, "{error}; its next start compares the volume");
            }
            Err(error)
        }
    }
}

/// Opens a volume whose numbers up to the next reservation are its own by now.
fn open_volume(
    store: UringStore,
    left: &Left<'_, StateDirLog>,
    backing: &Path,
    clock: &Arc<dyn Clock>,
    random: &dyn Random,
) -> anyhow::Result<(Volume<UringStore>, Started, MarkKeeper)> {
    let mark_path = left.ring.path.with_extension("mark");
    let mut keeper = None;
    let look = |ring: &Ring, restart: Restart| {
        let (mark, change) = look_at_backing(backing, &mark_path, left, ring, restart, random)
            .with_context(|| format!("look at {}", backing.display()))?;
        keeper = Some(mark);
        Ok(change)
    };
    let executor = Executor::new(&ExecutorConfig::default()).context("start an executor")?;
    let (volume, started) = executor.block_on(open_on(store, left, clock, look))?;
    let mut mark = keeper.expect("a volume is opened after a look at its backing store");
    // From here on a kill is told from a mark of this start.
    mark.keep(clock.monotonic(), served(&volume))
        .with_context(|| format!("keep {}", mark_path.display()))?;
    Ok((volume, started, mark))
}

/// Opens a volume on a store that nobody else uses, and brings its stream in line with what is
/// there. The caller has stored what [`begun`] gives. `look` says whether the store was changed
/// while no agent served it.
///
/// # Errors
/// What `look` says, and when there can be no ring.
pub async fn open_on<S: Store, L: LogFiles<Store = S>>(
    store: S,
    left: &Left<'_, L>,
    clock: &Arc<dyn Clock>,
    look: impl FnOnce(&Ring, Restart) -> anyhow::Result<Option<Change>>,
) -> anyhow::Result<(Volume<S>, Started)> {
    let Left { name, state, .. } = left;
    let now = state.get();
    let first = Seq(now.reserved_until.0 - SEQ_RESERVATION);
    let first = if planted::is(Bug::NumberReused) { Seq(1) } else { first };
    let (ring, recovery) = open_ring(&left.ring, name, first, clock)?;
    let restart = Restart::of(left.was, recovery.is_some());
    if restart == Restart::PowerCut {
        state.update(|state| {
            state.unsure_after = Some(state.unsure_after.unwrap_or(state.known).min(state.known));
        })?;
    }
    let change = look(&ring, restart)?;
    ring.set_seq_limit(now.reserved_until);
    ring.raise_time(now.last_time);
    let size_bytes = store.geometry().size_bytes;
    let log = restart::open_log(left.log, name, restart, state, size_bytes).await;
    let marked = log.map().marked();
    let capture = Arc::new(Capture::new((*name).to_owned(), ring, Arc::clone(log.map())));
    let volume = Volume::new(now.volume, store, capture, log);
    recover(&volume, recovery, restart, now.copied, change).await;
    if now.paused {
        volume.capture().pause();
    }
    // Also what is in doubt since, before anybody changes the volume.
    volume.intent().write().await;
    let differing_bytes = volume.intent().map().differing_bytes();
    let started = Started { restart, marked, differing_bytes };
    tracing::info!(volume = name, "{started}");
    Ok((volume, started))
}

/// What has to be durable before a volume of the state `was` may be opened: numbers of its own,
/// and that it is in use.
#[must_use]
pub fn begun(was: &VolumeState) -> VolumeState {
    VolumeState {
        reserved_until: Seq(was.reserved_until.0 + SEQ_RESERVATION),
        // After a clean stop the log is made anew.
        covered: was.covered && !was.clean,
        clean: false,
        ..was.clone()
    }
}

/// Whether the backing store was changed while no agent served it, where that matters, and who
/// keeps its mark from now on.
fn look_at_backing(
    path: &Path,
    mark_path: &Path,
    left: &Left<'_, StateDirLog>,
    ring: &Ring,
    restart: Restart,
    random: &dyn Random,
) -> anyhow::Result<(MarkKeeper, Option<Change>)> {
    let backing = Backing::open(path, boot_id()?)?;
    let settled = backing.settle();
    let now = backing.mark()?;
    let kept = left.was.and_then(|was| was.backing.as_ref());
    let change = match restart {
        Restart::First => None,
        // The kernel could not keep what somebody wrote, and says so only once.
        _ if settled.is_err() => Some(Change::Doubt("it could not be flushed")),
        Restart::Clean => backing_mark::judge(kept, &now, Ending::Clean),
        Restart::Killed => {
            let ending = Ending::Killed { last_record: ring.last_time() };
            backing_mark::judge(MarkKeeper::found(mark_path).as_ref(), &now, ending)
        }
        Restart::PowerCut => {
            let recent = MarkKeeper::found(mark_path).filter(|mark| mark.boot_id == now.boot_id);
            let stale = if recent.is_some() { STALE_IN_BOOT } else { STALE };
            backing_mark::judge(recent.as_ref().or(kept), &now, Ending::PowerCut { stale })
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

/// The state of a volume that was never opened.
#[must_use]
pub fn new_state(volume: VolumeId) -> VolumeState {
    VolumeState {
        volume,
        reserved_until: Seq(1),
        known: Seq(0),
        unsure_after: None,
        journal: JournalId::NIL,
        timeline: Timeline(1),
        epoch: Epoch(0),
        copied: false,
        covered: false,
        clean: true,
        released: Seq(0),
        paused: false,
        last_time: WallMicros(0),
        backing: None,
    }
}

fn ring_spec(volume_config: &VolumeConfig, volume: VolumeId) -> anyhow::Result<RingSpec> {
    let ring_bytes = volume_config.ring_mib * 1024 * 1024;
    let slots = (ring_bytes / SLOT_PER_BYTES).next_power_of_two();
    let slots = slots.clamp(u64::from(SLOTS_MIN), u64::from(SLOTS_MAX));
    Ok(RingSpec {
        volume,
        ring_bytes,
        slots: u32::try_from(slots).context("slots of the ring")?,
        boot_id: boot_id().context("read the boot id")?,
    })
}

/// The ring that a predecessor left, or a new one.
fn open_ring(
    place: &RingPlace<'_>,
    name: &str,
    first: Seq,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<(Ring, Option<Recovery>)> {
    let RingPlace { path, spec } = place;
    match Ring::open(path, spec, first, Mlock::WherePermitted, Arc::clone(clock)) {
        Ok((ring, recovery)) => return Ok((ring, Some(recovery))),
        Err(error) if error.kind == RingErrorKind::Missing => {}
        Err(error) if error.kind.wants_new_ring() => {
            tracing::warn!(volume = name, "{error}");
            Ring::discard(path)?;
        }
        Err(error) => return Err(error.into()),
    }
    let ring = Ring::create(path, spec, first, Mlock::WherePermitted, Arc::clone(clock))?;
    Ok((ring, None))
}

/// Brings the stream, and the map of what is missing, in line with what the backing store holds.
async fn recover<S: Store>(
    volume: &Volume<S>,
    recovery: Option<Recovery>,
    restart: Restart,
    copied: bool,
    change: Option<Change>,
) {
    let (capture, map) = (volume.capture(), volume.intent().map());
    if let Some(recovery) = &recovery {
        tracing::info!(
            volume = volume.name(),
            "the change ring kept {} records up to {}; {} ranges were in flight",
            recovery.kept,
            recovery.last_seq,
            recovery.in_flight.len()
        );
    }
    if let Some(change) = &change {
        tracing::warn!(volume = volume.name(), "its backing store: {change}");
        doubt(volume.capture(), change, recovery.as_ref());
    }
    let capture_was_off = recovery.as_ref().is_some_and(|recovery| recovery.capture_was_off);
    if restart == Restart::PowerCut || capture_was_off || !copied {
        map.doubt_marked();
    }
    if restart == Restart::PowerCut && !planted::is(Bug::LostRingTrusted) {
        // Also before a whole copy has reached the collector: nothing is captured before its
        // welcome has told the newest time that it holds.
        capture.lose(GapReason::RingLost);
    } else if capture_was_off {
        capture.lose(GapReason::RingFull);
    } else if let Some(change) = change {
        capture.lose(match change {
            Change::Resized { .. } => GapReason::Resized,
            _ => GapReason::OutsideChange,
        });
    } else if let Some(recovery) = &recovery {
        if !planted::is(Bug::InFlightForgotten) {
            volume.recover(&recovery.in_flight).await;
        }
    } else {
        capture.ring().turn_capture_on();
    }
    if let Some(recovery) = recovery {
        capture.ring().settle(recovery);
    }
}

/// Marks what a change of the backing store leaves in doubt.
fn doubt(capture: &Capture, change: &Change, recovery: Option<&Recovery>) {
    let map = capture.intent();
    let Change::Resized { was, is, only_size: true } = change else {
        return map.doubt_all();
    };
    if let Some(tail) = ByteRange::between(*was, *is) {
        map.doubt(tail);
    }
    for range in recovery.iter().flat_map(|recovery| &recovery.in_flight) {
        map.doubt(*range);
    }
}
