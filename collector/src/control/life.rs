//! The life of a volume: its policy, pause and resume, and its end in two steps.
//!
//! What enters: what a person wants. What leaves: the volume as it stands afterwards. Decisions
//! are in the volume's manifest before they are answered. A pause lives with the agent: it is
//! handed on, and answered when the agent says how it stands.

use std::sync::Arc;
use std::time::Duration;

use tidemark_wire::WallMicros;
use tidemark_wire::instruct::InstructKind;
use tidemark_wire::session::StandingState;

use super::desk::{Desk, blocking};
use super::{api, convert};
use crate::catalog::JobStatus;
use crate::error::{Failure, Result, Severity};
use crate::ingest::change::Decision;
use crate::ingest::manifest::{Manifest, Retired};
use crate::ingest::observer::Observer;
use crate::ingest::volume::Volume;
use crate::points::timestamp;
use crate::policy::{Overrides, SECONDS_MAX};
use crate::storage::Storage;

/// How long an agent may take to pause or resume, and to say so.
const STANDING_WAIT_MAX: Duration = Duration::from_secs(20);
/// How often it is looked at meanwhile.
const STANDING_POLL: Duration = Duration::from_millis(50);

impl<S: Storage> Desk<S> {
    pub(super) async fn set_policy(
        self: &Arc<Self>,
        volume: &str,
        new: api::NewPolicy,
    ) -> Result<api::PolicyInfo> {
        let volume = self.sources.volumes.find(volume)?;
        let newer = Overrides {
            window_seconds: new.window_seconds,
            journal_bytes_max: new.journal_bytes_max,
            point_interval_seconds: new.point_interval_seconds,
            compare_window: new.compare_window,
            verify_days: new.verify_days,
            resync_days: new.resync_days,
        };
        newer.check().map_err(Failure::invalid)?;
        let before = volume.facts().manifest.policy;
        let base = if new.default { Overrides::default() } else { before };
        let policy = base.with(newer);
        if policy != before {
            self.decide(&volume, Decision::Policy(policy)).await?;
        }
        Ok(convert::policy(&volume.policy(), policy != Overrides::default()))
    }

    /// Has the agent pause or take up the protection, and waits until it says that it did.
    pub(super) async fn set_paused(
        self: &Arc<Self>,
        volume: &str,
        paused: bool,
    ) -> Result<api::VolumeStatus> {
        let volume = self.sources.volumes.find(volume)?;
        let what = if paused { InstructKind::Pause } else { InstructKind::Resume };
        self.sources.volumes.instruct(&volume, what, 0)?;
        let obeyed = async {
            loop {
                let standing = volume.facts().standing;
                let is_paused = standing.map(|standing| standing.state == StandingState::Paused);
                if is_paused == Some(paused) {
                    break;
                }
                tokio::time::sleep(STANDING_POLL).await;
            }
        };
        if tokio::time::timeout(STANDING_WAIT_MAX, obeyed).await.is_err() {
            let message = format!(
                "the agent of volume {} has not said within {} s that it did so",
                volume.name(),
                STANDING_WAIT_MAX.as_secs()
            );
            return Err(Failure::unavailable(message)
                .with_hint("it may still do it; look at the volume before you try again"));
        }
        self.volume(&volume.id().to_string()).await
    }

    pub(super) async fn retire(
        self: &Arc<Self>,
        volume: &str,
        new: api::NewRetire,
    ) -> Result<api::VolumeStatus> {
        let volume = self.sources.volumes.find(volume)?;
        let grace = match new.grace_seconds {
            None => self.sources.settings.now().erase_grace,
            Some(seconds @ 1..=SECONDS_MAX) => Duration::from_secs(seconds),
            Some(seconds) => {
                return Err(Failure::invalid(format!(
                    "a grace of {seconds} s; allowed are 1 to {SECONDS_MAX} s"
                )));
            }
        };
        let since = self.sources.clock.wall();
        let grace = u64::try_from(grace.as_micros()).unwrap_or(u64::MAX);
        let erase_after = WallMicros(since.0.saturating_add(grace));
        self.decide(&volume, Decision::Retire(Retired { since, erase_after })).await?;
        self.volume(&volume.id().to_string()).await
    }

    pub(super) async fn unretire(self: &Arc<Self>, volume: &str) -> Result<api::VolumeStatus> {
        let volume = self.sources.volumes.find(volume)?;
        self.decide(&volume, Decision::Unretire).await?;
        self.volume(&volume.id().to_string()).await
    }

    async fn decide(&self, volume: &Arc<Volume<S>>, what: Decision) -> Result<Manifest> {
        let (volumes, volume) = (Arc::clone(&self.sources.volumes), Arc::clone(volume));
        blocking(move || volumes.decide(&volume, what)).await
    }

    /// Erases everything that is kept of a retired volume.
    pub(super) async fn erase(self: &Arc<Self>, volume: &str) -> Result<api::Erased> {
        let volume = self.sources.volumes.find(volume)?;
        let (id, name) = (volume.id(), volume.name());
        self.check_unused(&volume).await?;
        let volumes = Arc::clone(&self.sources.volumes);
        let doomed = blocking(move || volumes.erase(&volume)).await?;
        // From here on it is gone, whatever else fails: the next start completes the rest.
        self.sources.feed.forget(id).await?;
        let volumes = Arc::clone(&self.sources.volumes);
        let removed = blocking(move || volumes.remove_doomed(&doomed)).await;
        let left = removed.err().map(|error| error.to_string());
        let message = format!("volume {name} was erased with everything that was kept of it");
        self.sources.feed.event(Severity::Warning, Some(&name), message);
        Ok(api::Erased { id: id.to_string(), name, left })
    }

    /// Names what still uses a volume.
    async fn check_unused(self: &Arc<Self>, volume: &Volume<S>) -> Result<()> {
        let (id, name) = (volume.id().to_string(), volume.name());
        let mut users: Vec<String> = self
            .export_list()
            .await?
            .iter()
            .filter(|export| export.volume_id == id)
            .map(|export| format!("export {}", export.id))
            .collect();
        let jobs = self.sources.catalog.jobs().await?;
        let running = jobs.iter().filter(|job| job.status == JobStatus::Running);
        users.extend(running.filter(|job| job.volume == name).map(|job| format!("job {}", job.id)));
        if users.is_empty() {
            return Ok(());
        }
        let message = format!("volume {name} is used by {}", users.join(", "));
        Err(Failure::conflict(message).with_hint("end them first: tidemark export stop ID"))
    }

    /// What a reload of the configuration has done, for people.
    pub(super) async fn reload(self: &Arc<Self>) -> Result<api::Reloaded> {
        let settings = Arc::clone(&self.sources.settings);
        let done = blocking(move || settings.reload()).await?;
        let words = |keys: Vec<&'static str>| keys.into_iter().map(str::to_owned).collect();
        Ok(api::Reloaded { changed: words(done.changed), kept: words(done.kept) })
    }
}

/// A retired volume for people.
pub(super) fn retired(retired: &Retired) -> api::RetiredInfo {
    api::RetiredInfo {
        since: timestamp(retired.since),
        erase_after: timestamp(retired.erase_after),
    }
}
