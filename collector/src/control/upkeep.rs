//! What is done without being asked for: recovery points by interval, comparisons by schedule, and
//! the end of volumes whose grace is over.
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
use super::schedule::Schedule;
use crate::error::{Result, Severity};
use crate::ingest::manifest::Retired;
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

/// Least time between telling people and erasing. It is time that this daemon has seen pass, so a
/// wall clock that jumps, or a long time switched off, erases nothing without notice.
const NOTICE: Duration = Duration::from_secs(3600);

/// What is remembered of a volume.
struct Kept {
    points: IntervalPoints,
    told: Option<Told>,
    retry_at: Duration,
}

/// People were told of an erasing.
#[derive(Clone, Copy, Debug)]
struct Told {
    /// When it comes, by the wall clock.
    about: WallMicros,
    /// When they were told, by the monotonic clock.
    at: Duration,
}

/// What is to be done about a retired volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Later,
    Telling,
    Erasing,
}

/// People are told of an erasing unless whoever retired the volume wanted it within a day.
fn due(retired: &Retired, told: Option<Told>, wall: WallMicros, now: Duration) -> Due {
    let at = retired.erase_after;
    let told = told.filter(|told| told.about == at);
    let tells = at.0.saturating_sub(retired.since.0) > WARN_MICROS;
    if tells && told.is_none() && wall.0.saturating_add(WARN_MICROS) >= at.0 {
        return Due::Telling;
    }
    let known = !tells || told.is_some_and(|told| now.saturating_sub(told.at) >= NOTICE);
    if wall >= at && known { Due::Erasing } else { Due::Later }
}

/// Looks after the volumes until `stop` ends.
pub async fn run<S: Storage>(desk: Arc<Desk<S>>, stop: impl Future<Output = ()>) {
    let (mut kept, mut schedule) = (HashMap::new(), Schedule::default());
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
        desk.compare_by_schedule(&mut schedule).await;
    }
}

impl<S: Storage> Desk<S> {
    /// Asks for the points that are due. Reads the heads of a few records.
    fn look(&self, mut kept: HashMap<VolumeId, Kept>) -> HashMap<VolumeId, Kept> {
        let all = self.sources.volumes.all();
        kept.retain(|id, _| all.iter().any(|volume| volume.id() == *id));
        for volume in all {
            let now = self.sources.clock.monotonic();
            let new =
                || Kept { points: IntervalPoints::new(now), told: None, retry_at: Duration::ZERO };
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
            match due(&retired, kept.told, wall, now) {
                Due::Later => {}
                Due::Telling => {
                    kept.told = Some(Told { about: retired.erase_after, at: now });
                    let (name, when) = (volume.name(), timestamp(retired.erase_after));
                    let message = format!(
                        "volume {name} is erased at {when}, but not within the next hour; \
                         `tidemark volume unretire {name}` keeps it"
                    );
                    self.sources.feed.event(Severity::Warning, Some(&name), message);
                }
                Due::Erasing if now < kept.retry_at => {}
                Due::Erasing => {
                    kept.retry_at = now + RETRY;
                    self.erase_now(&volume).await;
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400_000_000;

    fn retired(days: u64) -> Retired {
        Retired { since: WallMicros(DAY), erase_after: WallMicros(DAY + days * DAY) }
    }

    fn due_at(retired: &Retired, told: Option<Told>, day: u64, hours: u64) -> Due {
        due(retired, told, WallMicros(day * DAY), Duration::from_secs(hours * 3600))
    }

    #[test]
    fn a_clock_that_jumps_erases_nothing_without_notice() {
        let retired = retired(7);
        assert_eq!(due_at(&retired, None, 2, 0), Due::Later);
        assert_eq!(due_at(&retired, None, 400, 0), Due::Telling);
        let told = Some(Told { about: retired.erase_after, at: Duration::ZERO });
        assert_eq!(due_at(&retired, told, 400, 0), Due::Later);
        assert_eq!(due_at(&retired, told, 400, 1), Due::Erasing);
        assert_eq!(due_at(&retired, told, 2, 1), Due::Later, "the clock was set back");
    }

    #[test]
    fn people_are_told_a_day_before_and_of_each_time_anew() {
        let retired = retired(7);
        assert_eq!(due_at(&retired, None, 7, 0), Due::Telling);
        let told = Some(Told { about: retired.erase_after, at: Duration::ZERO });
        assert_eq!(due_at(&retired, told, 7, 20), Due::Later);
        assert_eq!(due_at(&retired, told, 8, 24), Due::Erasing);
        let other = Some(Told { about: WallMicros(1), at: Duration::ZERO });
        assert_eq!(due_at(&retired, other, 8, 24), Due::Telling);
    }

    #[test]
    fn a_short_grace_needs_no_notice() {
        assert_eq!(due_at(&retired(1), None, 1, 0), Due::Later);
        assert_eq!(due_at(&retired(1), None, 2, 0), Due::Erasing);
    }
}
