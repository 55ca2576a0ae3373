//! One volume from its start to its end: what belongs to it while it runs, and the order in which
//! that is taken down.
//!
//! In: an [`OpenVolume`]. While it runs, numbers are reserved ahead and the mark of its backing
//! store is renewed ([`Running::keep`]). At its end nobody may change it any more; its backing store
//! is flushed and its ring drained for as long as [`DRAIN_PATIENCE`] ([`Running::drain`]), and when
//! everything was acknowledged the stop is noted as clean ([`Stopped::settle`]). What is left stays
//! in its ring and is shipped by the next agent.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tidemark_block::engine::socket::Address;
use tidemark_block::engine::{Executor, ExecutorConfig, WorkersHandle};
use tidemark_block::store::{Store, UringStore};
use tidemark_wire::{AgentId, AgentRun, Seq};

use super::log_files::StateDirLog;
use super::numbers::Numbers;
use super::open::OpenVolume;
use super::restart::Started;
use crate::backing_mark::{MarkKeeper, Served};
use crate::capture::Capture;
use crate::capture::phase::Phase;
use crate::clock::{Clock, EngineTimer};
use crate::config::VolumeConfig;
use crate::control::api::{IntentStatus, VolumeStanding};
use crate::copy;
use crate::intent_log::file::IntentFile;
use crate::intent_log::sweep::SWEEP_EVERY;
use crate::random::Random;
use crate::ring::{Ring, RingErrorKind};
use crate::shipper::link::SocketDial;
use crate::shipper::{Drained, Shipper, ShipperParts, VolumeFacts};
use crate::state::{BackingMark, KeptState, SEQ_RESERVATION, StateError};
use crate::volume::{Volume, upkeep};

/// How often the size of the backing store is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a write-intent log that failed is made anew.
const LOG_AGAIN: Duration = Duration::from_secs(60);
/// How long a stop waits for the collector to acknowledge what is in the rings.
pub(super) const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
/// How long the end of a volume waits for the last task that has it.
const TASKS_PATIENCE: Duration = Duration::from_secs(2);
/// Pause between two looks at them.
const TASKS_PAUSE: Duration = Duration::from_millis(2);

/// A volume over a real backing store.
pub(super) type ProtectedVolume = Volume<UringStore>;

/// What all volumes of the process have in common.
#[derive(Clone)]
pub(super) struct Surroundings {
    pub(super) agent: AgentId,
    pub(super) run: AgentRun,
    pub(super) collector: Address,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) random: Arc<dyn Random>,
    pub(super) workers: WorkersHandle,
}

/// A volume whose changes are captured and shipped.
pub(super) struct Running {
    volume: Arc<ProtectedVolume>,
    state: Arc<KeptState>,
    shipper: Shipper,
    ring_path: PathBuf,
    mark: MarkKeeper,
    started: Started,
    log: StateDirLog,
    next: Next,
    numbers: Numbers,
    /// The last try to keep the mark failed, which was said.
    cannot_mark: bool,
    size: SizeWatch,
}

/// The look at the size of the backing store.
#[derive(Default)]
struct SizeWatch {
    /// When it is next due, monotonic.
    next: Duration,
    /// The size that was found last.
    found: u64,
    /// It can't be the volume's, which was said.
    refused: Option<u64>,
    /// The last look failed, which was said.
    cannot_look: bool,
}

/// When what is done now and then is due.
struct Next {
    mark: Duration,
    log: Duration,
}

impl Next {
    fn after(now: Duration) -> Self {
        Self { mark: now, log: now + LOG_AGAIN }
    }
}

impl Running {
    /// Starts the copier and what the volume does by itself on the worker `worker`, and the shipper.
    pub(super) fn start(
        opened: OpenVolume,
        worker: usize,
        around: &Surroundings,
    ) -> anyhow::Result<Self> {
        let OpenVolume { volume, state, ring_path, mark, started, log } = opened;
        let volume = Arc::new(volume);
        let parts = ShipperParts {
            facts: VolumeFacts { id: volume.id(), block_bytes: unit_bytes(&volume) },
            capture: Arc::clone(volume.capture()),
            state: Arc::clone(&state),
            agent: around.agent,
            run: around.run,
            // The reservation of this start is the last one by now.
            first: Seq(state.get().reserved_until.0 - SEQ_RESERVATION),
            clock: Arc::clone(&around.clock),
            random: Arc::clone(&around.random),
        };
        let shipper = Shipper::start(parts, Box::new(SocketDial::new(around.collector.clone())))
            .with_context(|| format!("volume {}: start the shipper", volume.name()))?;
        let (copied, source) = (Arc::clone(&volume), Arc::clone(&around.random));
        let timer = EngineTimer::new(Arc::clone(&around.clock));
        around.workers.spawn_on(worker, move || copy::run(copied, source, timer));
        let verified = Arc::clone(&volume);
        let timer = EngineTimer::new(Arc::clone(&around.clock));
        around.workers.spawn_on(worker, move || copy::verify::run(verified, timer));
        let (kept, timer) = (Arc::clone(&volume), EngineTimer::new(Arc::clone(&around.clock)));
        around.workers.spawn_on(worker, move || upkeep::run(kept, timer));
        let numbers = Numbers::new(volume.capture().ring(), around.clock.monotonic());
        Ok(Self {
            volume,
            state,
            shipper,
            ring_path,
            mark,
            started,
            log,
            next: Next::after(around.clock.monotonic()),
            numbers,
            cannot_mark: false,
            size: SizeWatch::default(),
        })
    }

    /// The volume.
    pub(super) fn volume(&self) -> &Arc<ProtectedVolume> {
        &self.volume
    }

    /// Whether the collector's copy follows it, as a person sees it.
    pub(super) fn standing(&self) -> VolumeStanding {
        let capture = self.volume.capture();
        let lost = |reason: &str| VolumeStanding::Lost { reason: reason.to_owned() };
        match capture.phases().phase() {
            Phase::Paused => VolumeStanding::Paused,
            Phase::Wanted(cause) if !capture.is_on() => lost(cause.text()),
            phase if phase.is_whole() && self.state.get().copied => VolumeStanding::Whole,
            Phase::Whole { copy_end: None } => lost("not copied yet"),
            Phase::Whole { .. } | Phase::Wanted(_) | Phase::Copying { .. } => {
                let (done_bytes, total_bytes, _) = capture.progress().get();
                VolumeStanding::Copying { done_bytes, total_bytes }
            }
        }
    }

    /// True while there is a connection to the collector.
    pub(super) fn is_connected(&self) -> bool {
        self.shipper.is_connected()
    }

    /// Why the collector refuses it, in its words.
    pub(super) fn refused(&self) -> Option<String> {
        self.shipper.refused()
    }

    /// Its write-intent log, as a person sees it.
    pub(super) fn intent_status(&self) -> IntentStatus {
        let figures = self.volume.intent().figures();
        IntentStatus {
            marked_regions: figures.marked,
            differing_bytes: figures.differing_bytes,
            syncs: figures.syncs,
            cleared: figures.cleared,
            failed: self.volume.intent().map().is_failed(),
        }
    }

    /// How it was started.
    pub(super) fn started(&self) -> Started {
        self.started
    }

    /// Does what has to be done now and then.
    pub(super) fn keep(&mut self, clock: &dyn Clock) {
        let (now, ring) = (clock.monotonic(), self.volume.capture().ring());
        self.numbers.keep(self.volume.name(), &self.state, ring, now);
        if now >= self.next.mark {
            self.next.mark = now + SWEEP_EVERY;
            self.keep_mark_for_power_cut();
        }
        if now >= self.next.log {
            self.next.log = now + LOG_AGAIN;
            self.mend_log();
        }
        let kept = self.mark.keep(clock.monotonic(), served(&self.volume));
        if let Err(error) = &kept
            && !self.cannot_mark
        {
            tracing::warn!(
                volume = self.volume.name(),
                "can't keep the mark of its backing store: {error}; after a kill of the agent the \
                 volume is compared"
            );
        }
        self.cannot_mark = kept.is_err();
    }

    /// Keeps in the state what the backing store looks like, for a start after a power cut: the
    /// mark beside the change ring goes with it.
    fn keep_mark_for_power_cut(&mut self) {
        let Ok(mark) = self.mark.now(served(&self.volume)) else { return };
        if let Err(error) = self.state.update(|state| state.backing = Some(mark)) {
            tracing::warn!(
                volume = self.volume.name(),
                "can't keep the mark of its backing store: {error}; after a power cut the volume \
                 is compared"
            );
        }
    }

    /// Puts another file in the place of a write-intent log that could not be written.
    fn mend_log(&self) {
        let (name, intent) = (self.volume.name(), self.volume.intent());
        if !intent.map().is_failed() {
            return;
        }
        let mend = || {
            let file = IntentFile::make(&self.log, self.volume.id(), intent.map())?;
            let executor = Executor::new(&ExecutorConfig::default())?;
            std::io::Result::Ok(executor.block_on(intent.adopt(file)))
        };
        match mend() {
            Ok(true) => tracing::info!(
                volume = name,
                "the write-intent log is written again, in a new file; it covers what differs"
            ),
            Ok(false) => {}
            Err(error) => tracing::error!(
                volume = name,
                "no write-intent log can be made: {error}; it is tried again in a minute"
            ),
        }
    }

    /// Looks, about every second, whether the backing store has another size than the volume. One
    /// that the volume can't have is told once.
    pub(super) fn has_other_size(&mut self, now: Duration) -> bool {
        let size = &mut self.size;
        if now < size.next {
            return false;
        }
        size.next = now + LOOK_EVERY;
        let found = self.volume.has_other_size();
        if let Err(error) = &found
            && !size.cannot_look
        {
            tracing::error!(
                volume = self.volume.name(),
                "the size of its backing store can't be found out: {error}"
            );
        }
        size.cannot_look = found.is_err();
        let Ok(found) = found else { return false };
        size.refused = size.refused.filter(|refused| found == Some(*refused));
        size.found = found.unwrap_or(size.found);
        found.is_some() && size.refused.is_none()
    }

    /// The volume has taken the size that was found, or can't.
    pub(super) fn note_resize(&mut self, is_done: bool) {
        self.size.refused = (!is_done).then_some(self.size.found);
    }

    /// Sets the most that a copy reads in a second.
    pub(super) fn set_copy_rate(&self, volume: &VolumeConfig) {
        self.volume.capture().set_copy_rate(volume.copy_bytes_per_second());
    }

    /// Lets the shipper end once it has drained the ring, and ends copies; does not wait. Nobody
    /// changes the volume any more.
    pub(super) fn begin_drain(&self) {
        self.volume.capture().close();
        self.shipper.begin_stop();
    }

    /// Flushes the backing store and waits until the collector has everything, or until the
    /// monotonic time `deadline`.
    pub(super) fn drain(self, deadline: Duration, clock: &dyn Clock) -> Stopped {
        self.begin_drain();
        let Self { volume, state, shipper, ring_path, mark, .. } = self;
        let flushed = flush(&volume);
        if let Err(error) = &flushed {
            tracing::error!(volume = volume.name(), "flush of the backing store: {error:#}");
        }
        let drained = shipper.stop(deadline.saturating_sub(clock.monotonic()), clock);
        let is_clean = flushed.is_ok() && drained == Drained::Yes && state.get().copied;
        Stopped { volume, state, ring_path, mark, is_clean }
    }
}

/// Smallest unit in which the backing store is written.
pub(super) fn unit_bytes(volume: &ProtectedVolume) -> u32 {
    u32::try_from(volume.unit_bytes()).expect("a store's unit is at most 4096 bytes")
}

/// The size that a mark of its backing store has.
pub(super) fn served<S: Store>(volume: &Volume<S>) -> Served {
    Served { size_bytes: volume.size_bytes(), unit_bytes: volume.unit_bytes() }
}

/// A volume that takes no more changes.
pub(super) struct Stopped {
    volume: Arc<ProtectedVolume>,
    state: Arc<KeptState>,
    ring_path: PathBuf,
    mark: MarkKeeper,
    is_clean: bool,
}

impl Stopped {
    /// Waits a moment for the copier and for the last request, which still have the volume.
    pub(super) fn wait_for_tasks(&self, clock: &dyn Clock) {
        let deadline = clock.monotonic() + TASKS_PATIENCE;
        while Arc::strong_count(&self.volume) > 1 && clock.monotonic() < deadline {
            clock.sleep(TASKS_PAUSE);
        }
    }

    /// Notes a clean stop and removes the ring that it needs no more.
    pub(super) fn settle(mut self, clock: &dyn Clock) {
        let name = self.volume.name().to_owned();
        let capture = self.volume.capture();
        let mark = self.mark.finish(clock, served(&self.volume));
        if let Err(error) = &mark {
            tracing::warn!(
                volume = name,
                "can't mark its backing store: {error}; the next start compares the volume"
            );
        }
        if !self.is_clean || is_late(capture) {
            tracing::warn!(
                volume = name,
                "stopped before everything was acknowledged, or in a copy; the next start goes on \
                 from the change ring, as long as the machine is not restarted before"
            );
            return;
        }
        let released = capture.ring().released_seq().max(self.state.get().released);
        let kept = keep_clean(capture, &self.state, mark.ok());
        drop(self.volume);
        // An empty ring that stays is as good; a state that was not kept needs the ring.
        let discarded = kept.map(|()| {
            self.mark.discard();
            Ring::discard(&self.ring_path)
        });
        match discarded {
            Ok(Ok(())) => tracing::info!(volume = name, "clean: all acknowledged up to {released}"),
            Ok(Err(error)) if error.kind == RingErrorKind::InUse => tracing::info!(
                volume = name,
                "clean: all acknowledged up to {released}; a client still holds the disk, so the \
                 empty change ring stays"
            ),
            Ok(Err(error)) => tracing::warn!(volume = name, "{error}"),
            Err(error) => tracing::warn!(volume = name, "{error}"),
        }
    }
}

/// True when something came after the last acknowledgement: a request that took too long for the
/// stop of its frontend may have come when everything else was acknowledged. The backing store's
/// mark was taken, and with it the store flushed, behind it.
#[must_use]
pub fn is_late(capture: &Capture) -> bool {
    !capture.ring().is_empty() || !capture.is_on()
}

/// Notes that a volume was stopped in order: the next start believes that nothing is missing.
/// Every change is acknowledged, and the backing store flushed.
///
/// # Errors
/// When that can't be kept; the ring is needed then.
pub fn keep_clean(
    capture: &Capture,
    state: &KeptState,
    backing: Option<BackingMark>,
) -> Result<(), StateError> {
    let released = capture.ring().released_seq().max(state.get().released);
    let last_time = capture.ring().last_time();
    state.update(|state| {
        state.clean = true;
        state.known = Seq(capture.ring().next_seq().0 - 1);
        state.released = released;
        state.last_time = state.last_time.max(last_time);
        state.backing = backing;
    })
}

fn flush(volume: &ProtectedVolume) -> anyhow::Result<()> {
    let executor = Executor::new(&ExecutorConfig::default()).context("start an executor")?;
    executor.block_on(volume.sync()).context("sync")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::config::Config;
    use crate::daemon::open;
    use crate::random::SystemSource;
    use crate::state::StateFile;
    use tidemark_wire::RecordKind;

    #[test]
    fn a_change_that_came_after_the_last_acknowledgement_makes_no_clean_stop() {
        let (dir, rings) = (tempfile::tempdir(), tempfile::tempdir_in("/dev/shm"));
        let (dir, rings) = (dir.expect("a directory"), rings.expect("a directory on tmpfs"));
        let place = dir.path().display();
        let backing = std::fs::File::create(dir.path().join("disk")).expect("a file");
        backing.set_len(1 << 20).expect("its size");
        let text = format!(
            "state_dir = '{place}'\nring_dir = '{}'\ncollector = 'unix:/c'\n[nbd]\n\
             listen = ['unix:/n']\n[[volume]]\nname = 'a'\nbacking = '{place}/disk'\n\
             ring_mib = 1\n",
            rings.path().display()
        );
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, text).expect("written");
        let config = Config::load(&path).expect("a good configuration");
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        for is_late in [true, false] {
            let random = SystemSource::default();
            let opened = open::open(&config, &config.volumes[0], &clock, &random).expect("opened");
            let OpenVolume { volume, state, ring_path, mark, .. } = opened;
            if is_late {
                volume.capture().stamp(RecordKind::Flush, 0, &[]).expect("there is room");
            } else {
                volume
                    .capture()
                    .ring()
                    .consumer()
                    .expect("nobody else")
                    .release_through(Seq(1 << 40));
            }
            let volume = Arc::new(volume);
            let stopped = Stopped { volume, state, ring_path, mark, is_clean: true };
            stopped.settle(clock.as_ref());
            let kept = StateFile::new(dir.path(), "a").load().expect("read").expect("kept");
            assert_eq!(kept.clean, !is_late);
        }
    }
}
