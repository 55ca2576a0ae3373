//! The thread that merges, for all volumes.
//!
//! What enters: the volumes with their policies, looked at every second, and the rate. What
//! leaves: merged seeds, and events. Volumes take turns, one step each. A volume whose disk fails
//! is told of once and tried again later, ever more seldom; the others go on. Nothing waits for
//! this thread but the one that stops it.

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use tidemark_wire::instruct::InstructKind;
use tidemark_wire::{VolumeId, WallMicros};

use super::{MergeLimits, Step, merge_once};
use crate::config::settings::Settings;
use crate::error::{ErrorKind, JournalError, Severity};
use crate::ingest::observer::Observer;
use crate::ingest::volume::Volume;
use crate::ingest::volumes::Volumes;
use crate::seam::Clock;
use crate::storage::Storage;

/// How often volumes are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Longest wait before a volume whose merge failed is tried again.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Wait before one is tried again whose oldest segment is damaged; only a person changes that.
const RETRY_DAMAGED: Duration = Duration::from_secs(600);

/// Merges in the background. Dropping it stops at the next cell and waits for that; what was
/// begun is completed at the next start.
pub struct Merger {
    /// Gone once the thread shall end.
    running: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Merger {
    /// Starts the thread. It writes to the seeds at the rate that `settings` has at the time.
    ///
    /// # Errors
    /// What the system says when it can't make a thread.
    pub fn start<S: Storage>(
        volumes: Arc<Volumes<S>>,
        observer: Arc<dyn Observer>,
        clock: Arc<dyn Clock>,
        settings: Arc<Settings>,
    ) -> io::Result<Self> {
        let (running, stopped) = bounded(0);
        let throttle = Throttle { stopped, settings, ready_at: Duration::ZERO };
        let mut worker = Worker { volumes, observer, clock, throttle, known: HashMap::new() };
        let thread =
            std::thread::Builder::new().name("merge".into()).spawn(move || worker.run())?;
        Ok(Self { running: Some(running), thread: Some(thread) })
    }
}

impl Drop for Merger {
    fn drop(&mut self) {
        drop(self.running.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the merger has panicked");
        }
    }
}

/// Spreads writes over time, and notices the stop.
struct Throttle {
    stopped: Receiver<()>,
    settings: Arc<Settings>,
    /// When the bytes that were let through so far are paid for.
    ready_at: Duration,
}

impl Throttle {
    /// Waits for a while; says whether to go on.
    fn rest(&self, time: Duration) -> ControlFlow<()> {
        match self.stopped.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => ControlFlow::Continue(()),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => ControlFlow::Break(()),
        }
    }

    fn pass(&mut self, bytes: u64, clock: &dyn Clock) -> ControlFlow<()> {
        let now = clock.monotonic();
        let Some(rate) = self.settings.now().merge_bytes_per_second else {
            return self.rest(Duration::ZERO);
        };
        self.rest(self.ready_at.saturating_sub(now))?;
        let cost = Duration::from_micros(bytes.saturating_mul(1_000_000) / rate.max(1));
        self.ready_at = self.ready_at.max(now) + cost;
        ControlFlow::Continue(())
    }
}

/// What was told of a volume, and when it is looked at again.
#[derive(Default)]
struct Known {
    failure: Option<String>,
    not_before: Duration,
    waits: Duration,
    shortened: bool,
}

struct Worker<S: Storage> {
    volumes: Arc<Volumes<S>>,
    observer: Arc<dyn Observer>,
    clock: Arc<dyn Clock>,
    throttle: Throttle,
    known: HashMap<VolumeId, Known>,
}

impl<S: Storage> Worker<S> {
    fn run(&mut self) {
        let mut wait = TICK;
        while self.throttle.rest(wait).is_continue() {
            let all = self.volumes.all();
            self.known.retain(|id, _| all.iter().any(|volume| volume.id() == *id));
            let mut more = false;
            for volume in all {
                more |= self.visit(&volume);
            }
            wait = if more { Duration::ZERO } else { TICK };
        }
    }

    /// One step; says whether there may be another one at once.
    fn visit(&mut self, volume: &Volume<S>) -> bool {
        let now = self.clock.monotonic();
        let known = self.known.entry(volume.id()).or_default();
        if now < known.not_before {
            return false;
        }
        // A volume that can't be read says so itself.
        let Ok(held) = volume.held() else { return false };
        let policy = volume.policy();
        let window_us = u64::try_from(policy.window.as_micros()).unwrap_or(u64::MAX);
        let limits = MergeLimits {
            older_than: WallMicros(self.clock.wall().0.saturating_sub(window_us)),
            journal_bytes_max: policy.journal_bytes_max,
        };
        let (throttle, clock) = (&mut self.throttle, &*self.clock);
        let mut pace = |bytes| throttle.pass(bytes, clock);
        match merge_once(&held, &limits, &mut pace) {
            Ok(step) => self.note(volume, &step),
            Err(error) => {
                self.note_failure(volume, &error);
                false
            }
        }
    }

    fn note(&mut self, volume: &Volume<S>, step: &Step) -> bool {
        let name = volume.name();
        let merged = &step.merged;
        for damage in &merged.damaged {
            self.observer.event(Severity::Critical, Some(&name), damage.to_string());
        }
        if merged.damaged_blocks > merged.damaged.len() as u64 {
            let text = format!("{} blocks of the seed are damaged", merged.damaged_blocks);
            self.observer.event(Severity::Critical, Some(&name), text);
        }
        if merged.damaged_blocks > 0 {
            self.ask_comparison(volume);
        }
        let known = self.known.entry(volume.id()).or_default();
        let Some(to) = merged.to else { return false };
        tracing::info!(
            volume = %name,
            to = to.0,
            written_bytes = merged.written_bytes,
            freed_bytes = merged.freed_bytes,
            "merged"
        );
        self.observer.trimmed(volume.id(), to);
        if known.failure.take().is_some() {
            let text = format!("the merge goes on, the seed is at record {to}");
            self.observer.event(Severity::Info, Some(&name), text);
        }
        known.waits = Duration::ZERO;
        if let Some(since) = step.shortened
            && !known.shortened
        {
            let kept = self.clock.wall().0.saturating_sub(since.0) / 1_000_000;
            let text = format!(
                "only the last {kept} s of history are kept, because the journal has reached its \
                 size; raise journal_mib_max or shorten window_seconds"
            );
            self.observer.event(Severity::Warning, Some(&name), text);
        }
        known.shortened = step.shortened.is_some();
        true
    }

    /// Where the protected machine still holds what was damaged here, a comparison brings it again.
    fn ask_comparison(&self, volume: &Volume<S>) {
        let name = volume.name();
        let text = match self.volumes.instruct(volume, InstructKind::Compare, 0) {
            Ok(_) => {
                "a whole comparison is asked of the agent, which makes the newest state right; older \
                 states stay damaged in these places"
                    .to_owned()
            }
            Err(error) => format!(
                "no comparison can be asked of the agent now ({error}); once it is there: tidemark \
                 resync {name} --full"
            ),
        };
        self.observer.event(Severity::Warning, Some(&name), text);
    }

    fn note_failure(&mut self, volume: &Volume<S>, error: &JournalError) {
        if volume.held().is_err() {
            // It is being erased.
            return;
        }
        let known = self.known.entry(volume.id()).or_default();
        known.waits = match error.kind() {
            ErrorKind::Retry => (known.waits * 2).clamp(TICK, RETRY_MAX),
            _ => RETRY_DAMAGED,
        };
        known.not_before = self.clock.monotonic() + known.waits;
        let text = format!("segments can't be merged into the seed, the journal grows: {error}");
        if known.failure.as_ref() != Some(&text) {
            self.observer.event(Severity::Critical, Some(&volume.name()), text.clone());
            known.failure = Some(text);
        }
    }
}
