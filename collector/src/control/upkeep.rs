//! What is done without being asked for: recovery points by interval, and the end of volumes
//! whose grace is over.
//!
//! What enters: time, and the volumes as they stand. What leaves: requests for points, erased
//! volumes, events. One task; what it remembers ends with the daemon, so that after a restart an
//! interval begins anew and a warning may come a second time. A crash loses nothing else.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tidemark_wire::body::{Bookmark, PointKind};
use tidemark_wire::session::StandingState;
use tidemark_wire::{VolumeId, WallMicros};
use tokio::time::MissedTickBehavior;

use super::desk::{Desk, blocking};
use crate::error::{Result, Severity};
use crate::ingest::observer::Observer;
use crate::ingest::volume::Volume;
use crate::points::interval::{IntervalPoints, Sight};
use crate::points::timestamp;
use crate::storage::Storage;

/// Time between two looks at the volumes; a point is late by this at the most.
const TICK: Duration = Duration::from_millis(500);
/// How long before a volume is erased people are told, in microseconds.
const WARN_MICROS: u64 = 86_400_000_000;
/// Time until erasing is tried again where it was not possible.
const RETRY: Duration = Duration::from_secs(600);

/// What is remembered of a volume.
struct Kept {
    points: IntervalPoints,
    /// People were told of the erasing that comes at this time.
    warned: Option<WallMicros>,
    retry_at: Duration,
}

/// Looks after the volumes until `stop` ends.
pub async fn run<S: Storage>(desk: Arc<Desk<S>>, stop: impl Future<Output = ()>) {
    let mut kept = HashMap::new();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => return,
            _ = ticks.tick() => {}
        }
        let on = Arc::clone(&desk);
        let looked = blocking(move || Ok(on.look(kept))).await;
        let Ok(looked) = looked else { return };
        kept = looked;
        desk.erase_due(&mut kept).await;
    }
}

impl<S: Storage> Desk<S> {
    /// Asks for the points that are due. Reads the heads of a few records.
    fn look(&self, mut kept: HashMap<VolumeId, Kept>) -> HashMap<VolumeId, Kept> {
        let all = self.sources.volumes.all();
        kept.retain(|id, _| all.iter().any(|volume| volume.id() == *id));
        for volume in all {
            let now = self.sources.clock.monotonic();
            let new = || Kept {
                points: IntervalPoints::new(now),
                warned: None,
                retry_at: Duration::ZERO,
            };
            let kept = kept.entry(volume.id()).or_insert_with(new);
            if let Err(error) = self.look_at(&volume, &mut kept.points, now) {
                // What is wrong with its journal is shown with the volume.
                tracing::debug!(volume = volume.name(), %error, "no point by interval");
            }
        }
        kept
    }

    fn look_at(
        &self,
        volume: &Volume<S>,
        points: &mut IntervalPoints,
        now: Duration,
    ) -> Result<()> {
        let (facts, held) = (volume.facts(), volume.held()?);
        let paused = facts.standing.is_some_and(|one| one.state == StandingState::Paused);
        let durable = held.reader.durable();
        let sight = Sight {
            newest: facts.newest_point,
            durable,
            interval: volume.policy().point_interval,
            able: facts.live.is_some() && !paused && held.reader.span_open().is_none(),
        };
        let Some(behind) = points.look(now, sight) else { return Ok(()) };
        if held.reader.first_change_after(behind)?.is_none() {
            points.unchanged(durable);
            return Ok(());
        }
        let id = self.sources.volumes.new_point_id();
        let (label, reason) = (String::new(), String::new());
        let wanted = Bookmark { id, kind: PointKind::Crash, label, reason };
        self.sources.volumes.ask_for_point(volume, wanted)?;
        points.asked(now);
        Ok(())
    }

    /// Warns of volumes that are erased within a day, and erases those whose time has come.
    async fn erase_due(self: &Arc<Self>, kept: &mut HashMap<VolumeId, Kept>) {
        for volume in self.sources.volumes.all() {
            let Some(retired) = volume.facts().manifest.retired else { continue };
            let Some(kept) = kept.get_mut(&volume.id()) else { continue };
            let (wall, now) = (self.sources.clock.wall(), self.sources.clock.monotonic());
            let at = retired.erase_after;
            if wall >= at && now >= kept.retry_at {
                kept.retry_at = now + RETRY;
                self.erase_now(&volume).await;
            } else if wall < at
                && at.0 - wall.0 <= WARN_MICROS
                && at.0.saturating_sub(retired.since.0) > WARN_MICROS
                && kept.warned.replace(at) != Some(at)
            {
                let name = volume.name();
                let message = format!(
                    "volume {name} is erased at {}; `tidemark volume unretire {name}` keeps it",
                    timestamp(at)
                );
                self.sources.feed.event(Severity::Warning, Some(&name), message);
            }
        }
    }

    async fn erase_now(self: &Arc<Self>, volume: &Volume<S>) {
        if let Err(error) = self.erase(&volume.id().to_string()).await {
            let (name, minutes) = (volume.name(), RETRY.as_secs() / 60);
            let message = format!(
                "volume {name} should be erased, its grace is over: {error}; it is tried again \
                 in {minutes} minutes"
            );
            self.sources.feed.event(Severity::Warning, Some(&name), message);
        }
    }
}
