//! Comparisons by schedule: which volume is due, and when.
//!
//! What enters: time, the volumes and their policies, and the jobs that have run. What leaves: at
//! most one comparison at a time. A volume is due when its window is open and its last comparison
//! of that sort counts to a day that lies far enough back; the jobs in the catalog say when that
//! was, so a restart forgets nothing. One that failed is not tried again before the next window.
//! What is remembered here is only where a verification stopped when its window closed: after a
//! restart it begins at the disk's first byte.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Unit};
use tidemark_wire::VolumeId;
use tidemark_wire::session::StandingState;

use super::comparisons::{Extent, WHOLE};
use super::desk::Desk;
use super::jobs::{RESYNC, VERIFY};
use crate::catalog::{JobRow, JobStatus};
use crate::error::{Result, Severity};
use crate::ingest::observer::Observer;
use crate::ingest::volume::Volume;
use crate::points::timestamp;
use crate::policy::Policy;
use crate::storage::Storage;

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// What is remembered from one look to the next.
#[derive(Default)]
pub(super) struct Schedule {
    look_at: Duration,
    /// The verification that began last, by its job, and its volume.
    began: Option<(u64, VolumeId)>,
    /// Where verifications go on that their windows have ended.
    go_on: HashMap<VolumeId, u64>,
}

/// When comparisons of a volume began last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Last {
    verify: Option<Timestamp>,
    resync: Option<Timestamp>,
}

impl Last {
    /// The same for a volume that was made at `created`: its first copy has looked at everything.
    fn since(self, created: Timestamp) -> Self {
        Self { verify: self.verify.max(Some(created)), resync: self.resync.max(Some(created)) }
    }
}

/// What is due for a volume, if anything is. `is_half` says that a verification stopped with its
/// window: it is due whenever the window is open.
fn due(
    policy: &Policy,
    last: Last,
    is_half: bool,
    now: Timestamp,
    zone: &TimeZone,
) -> Option<Extent> {
    let window = policy.compare_window;
    let today = window.opened(now, zone)?;
    let is_due = |days: Option<u32>, last: Option<Timestamp>| {
        let Some(days) = days else { return false };
        last.is_none_or(|last| days_between(window.day_of(last, zone), today) >= i64::from(days))
    };
    let newest = last.verify.max(last.resync);
    if is_due(policy.resync_days, last.resync) {
        Some(Extent::Whole)
    } else if is_half || is_due(policy.verify_days, newest) {
        Some(Extent::VerifyFrom(0))
    } else {
        None
    }
}

fn days_between(from: Date, to: Date) -> i64 {
    from.until((Unit::Day, to)).map_or(0, |span| span.get_days().into())
}

/// When each volume was compared as a whole, by its name.
fn last_of(jobs: &[JobRow]) -> HashMap<&str, Last> {
    let mut all: HashMap<&str, Last> = HashMap::new();
    for job in jobs {
        let last = all.entry(&job.volume).or_default();
        let began = Some(timestamp(job.started));
        match (job.kind.as_str(), job.at.as_str()) {
            (VERIFY, _) => last.verify = last.verify.max(began),
            (RESYNC, WHOLE) => last.resync = last.resync.max(began),
            _ => {}
        }
    }
    all
}

impl<S: Storage> Desk<S> {
    /// Begins the comparison that is due, unless one runs.
    pub(super) async fn compare_by_schedule(self: &Arc<Self>, schedule: &mut Schedule) {
        let now = self.sources.clock.monotonic();
        if now < schedule.look_at {
            return;
        }
        schedule.look_at = now + LOOK_EVERY;
        if let Err(error) = self.look_at_schedule(schedule).await {
            tracing::warn!(%error, "no comparison by schedule");
        }
    }

    async fn look_at_schedule(self: &Arc<Self>, schedule: &mut Schedule) -> Result<()> {
        let jobs = self.sources.catalog.jobs().await?;
        note_end(schedule, &jobs);
        let is_comparison = |job: &&JobRow| [RESYNC, VERIFY].contains(&job.kind.as_str());
        let mut comparisons = jobs.iter().filter(is_comparison);
        if comparisons.any(|job| job.status == JobStatus::Running) {
            return Ok(());
        }
        let (last, now) = (last_of(&jobs), timestamp(self.sources.clock.wall()));
        for volume in self.sources.volumes.all().into_iter().filter(|volume| is_able(volume)) {
            let last = last.get(volume.name().as_str()).copied().unwrap_or_default();
            let last = last.since(timestamp(volume.facts().manifest.created));
            let from = schedule.go_on.get(&volume.id()).copied();
            let zone = TimeZone::system();
            match due(&volume.policy(), last, from.is_some(), now, &zone) {
                None => {}
                Some(Extent::VerifyFrom(_)) => {
                    let extent = Extent::VerifyFrom(from.unwrap_or(0));
                    return self.begin_scheduled(volume, extent, schedule).await;
                }
                Some(extent) => return self.begin_scheduled(volume, extent, schedule).await,
            }
        }
        Ok(())
    }

    async fn begin_scheduled(
        self: &Arc<Self>,
        volume: Arc<Volume<S>>,
        extent: Extent,
        schedule: &mut Schedule,
    ) -> Result<()> {
        let (id, name) = (volume.id(), volume.name());
        let (clock, theirs) = (Arc::clone(&self.sources.clock), Arc::clone(&volume));
        let is_closing = move || {
            let now = timestamp(clock.wall());
            theirs.policy().compare_window.opened(now, &TimeZone::system()).is_none()
        };
        let job = self.begin_comparison(volume, extent, Some(Box::new(is_closing))).await?;
        schedule.go_on.remove(&id);
        if matches!(extent, Extent::VerifyFrom(_)) {
            schedule.began = Some((job.id, id));
        }
        let message = format!("job {} ({} of volume {name}) begins by schedule", job.id, job.kind);
        self.sources.feed.event(Severity::Info, Some(&name), message);
        Ok(())
    }
}

/// A volume whose stream is whole, and whose agent is there.
fn is_able<S: Storage>(volume: &Volume<S>) -> bool {
    let facts = volume.facts();
    let is_whole = facts.standing.is_some_and(|one| one.state == StandingState::Whole);
    let is_level = volume.held().is_ok_and(|held| held.reader.span_open().is_none());
    facts.live.is_some() && facts.manifest.retired.is_none() && is_whole && is_level
}

/// A verification that ended with its window goes on in the next one.
fn note_end(schedule: &mut Schedule, jobs: &[JobRow]) {
    let Some((id, volume)) = schedule.began else { return };
    let Some(job) = jobs.iter().find(|job| job.id == id && job.status != JobStatus::Running) else {
        return;
    };
    schedule.began = None;
    if job.status == JobStatus::Cancelled && job.done_bytes > 0 {
        schedule.go_on.insert(volume, job.done_bytes);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn policy(verify_days: Option<u32>, resync_days: Option<u32>) -> Policy {
        Policy { verify_days, resync_days, ..Policy::default() }
    }

    #[test]
    fn a_comparison_is_due_once_in_so_many_windows() {
        let (utc, weekly) = (TimeZone::UTC, policy(Some(7), None));
        let due_at = |last: Last, now| due(&weekly, last, false, at(now), &utc);
        let verify = Some(Extent::VerifyFrom(0));
        assert_eq!(due_at(Last::default(), "2026-03-01T06:00:00Z"), None, "outside of the window");
        assert_eq!(due_at(Last::default(), "2026-03-01T05:00:00Z"), verify);
        let last = Last { verify: Some(at("2026-03-01T05:00:00Z")), resync: None };
        assert_eq!(due_at(last, "2026-03-01T05:30:00Z"), None);
        assert_eq!(due_at(last, "2026-03-07T05:00:00Z"), None);
        assert_eq!(due_at(last, "2026-03-08T00:00:00Z"), verify, "the seventh window");
        let noon = Last { verify: Some(at("2026-03-01T12:00:00Z")), resync: None };
        assert_eq!(due_at(noon, "2026-03-08T00:00:00Z"), verify, "a person's counts as well");
        let whole = Last { verify: None, resync: Some(at("2026-03-01T05:00:00Z")) };
        assert_eq!(due_at(whole, "2026-03-05T01:00:00Z"), None, "it has looked at everything too");
        assert_eq!(due(&weekly, last, true, at("2026-03-02T01:00:00Z"), &utc), verify, "half done");
        let new = Last::default().since(at("2026-03-01T04:00:00Z"));
        assert_eq!(due_at(new, "2026-03-01T05:00:00Z"), None, "it was copied just now");
    }

    #[test]
    fn over_midnight_a_night_is_one_day() {
        let window = "22:00-04:00".parse().unwrap();
        let daily = Policy { compare_window: window, ..policy(None, Some(1)) };
        let last = Last { verify: None, resync: Some(at("2026-03-01T22:05:00Z")) };
        let due_at = |now| due(&daily, last, false, at(now), &TimeZone::UTC);
        assert_eq!(due_at("2026-03-02T01:00:00Z"), None, "the same night");
        assert_eq!(due_at("2026-03-02T22:00:00Z"), Some(Extent::Whole));
    }

    #[test]
    fn who_wants_none_gets_none() {
        let now = at("2026-03-01T05:00:00Z");
        assert_eq!(due(&policy(None, None), Last::default(), false, now, &TimeZone::UTC), None);
    }
}
