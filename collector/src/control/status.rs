//! The daemon and its volumes, as they stand now.

use std::sync::Arc;
use std::time::Duration;

use tidemark_wire::session::StandingState;

use super::desk::{Desk, blocking};
use super::{api, convert, life};
use crate::error::Result;
use crate::ingest::volume::{Facts, Held, Volume};
use crate::points::{at, timestamp};
use crate::policy::Overrides;
use crate::storage::Storage;

impl<S: Storage> Desk<S> {
    pub(super) async fn status(self: &Arc<Self>) -> Result<api::Status> {
        let volumes = self.volume_list().await?;
        let exports = self.exports.count();
        let jobs_running = self.jobs.count();
        let desk = Arc::clone(self);
        blocking(move || {
            let config = desk.sources.settings.now();
            let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
            Ok(api::Status {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                started: desk.started,
                data_dir: config.data_dir.clone(),
                listen: desk.sources.listen.iter().map(ToString::to_string).collect(),
                free_bytes: desk.sources.storage.free_bytes(&config.data_dir).unwrap_or(0),
                sessions: count(volumes.iter().filter(|volume| volume.connected).count()),
                volumes,
                exports: count(exports),
                jobs_running: count(jobs_running),
            })
        })
        .await
    }

    pub(super) async fn volume_list(self: &Arc<Self>) -> Result<Vec<api::VolumeStatus>> {
        let desk = Arc::clone(self);
        let describe = move || {
            let all = desk.sources.volumes.all();
            Ok(all.iter().map(|volume| desk.describe(volume)).collect())
        };
        blocking(describe).await
    }

    pub(super) async fn volume(self: &Arc<Self>, volume: &str) -> Result<api::VolumeStatus> {
        let (desk, volume) = (Arc::clone(self), self.sources.volumes.find(volume)?);
        blocking(move || Ok(desk.describe(&volume))).await
    }

    fn describe(&self, volume: &Volume<S>) -> api::VolumeStatus {
        let facts = volume.facts();
        // A volume whose journal is not open is shown with its problem and nothing of its journal.
        let held = volume.held().ok();
        let span_open = held.as_ref().and_then(|held| held.reader.span_open()).is_some();
        let now = self.sources.clock.monotonic();
        let age = facts.recoverable_at.map(|then| now.saturating_sub(then));
        let mut status = api::VolumeStatus {
            id: volume.id().to_string(),
            name: facts.manifest.name.clone(),
            size_bytes: facts.manifest.size_bytes,
            block_bytes: facts.manifest.block_bytes,
            state: self.state(&facts, span_open, age),
            since: since(&facts),
            reason: reason(&facts),
            retired: facts.manifest.retired.as_ref().map(life::retired),
            policy: convert::policy(
                &volume.policy(),
                facts.manifest.policy != Overrides::default(),
            ),
            connected: facts.live.is_some(),
            agent: Some(facts.manifest.agent.to_string()),
            journal: facts.manifest.journal.to_string(),
            timeline: facts.manifest.timeline.0,
            epoch: facts.manifest.epoch.0,
            durable_seq: 0,
            durable_time: None,
            first_seq: None,
            first_time: None,
            rpo_seconds: age.map(|age| age.as_secs_f64()),
            journal_bytes: 0,
            segments: 0,
            spans: Vec::new(),
            copy: facts.copy.filter(|_| span_open).map(|copy| api::CopyProgress {
                done_bytes: copy.done_bytes.get(),
                total_bytes: copy.total_bytes.get(),
                sent_bytes: copy.sent_bytes.get(),
            }),
            differing_bytes: facts.standing.map(|standing| standing.differing_bytes),
            problem: facts.problem,
        };
        // What is wrong with one journal must not hide the other volumes.
        if let Some(held) = held
            && let Err(error) = describe_journal(&held, &mut status)
        {
            status.problem.get_or_insert(error.to_string());
        }
        status
    }

    fn state(&self, facts: &Facts, span_open: bool, age: Option<Duration>) -> api::ProtectionState {
        let limit = Duration::from_secs(self.sources.settings.now().behind_after_seconds);
        if facts.manifest.retired.is_some() {
            return api::ProtectionState::Retired;
        }
        match facts.live {
            Some(_) if stands(facts, StandingState::Paused) => api::ProtectionState::Paused,
            Some(_) if stands(facts, StandingState::Lost) => api::ProtectionState::Lost,
            None => api::ProtectionState::Disconnected,
            Some(_) if span_open => api::ProtectionState::Copying,
            Some(_) if age.is_some_and(|age| age <= limit) => api::ProtectionState::Protected,
            Some(_) => api::ProtectionState::Behind,
        }
    }
}

fn stands(facts: &Facts, state: StandingState) -> bool {
    facts.standing.is_some_and(|standing| standing.state == state)
}

fn since(facts: &Facts) -> Option<jiff::Timestamp> {
    let standing = facts.standing.filter(|standing| standing.state != StandingState::Whole);
    let since = facts.manifest.retired.map(|retired| retired.since);
    since.or(standing.map(|standing| standing.since)).map(timestamp)
}

fn reason(facts: &Facts) -> Option<String> {
    if let Some(retired) = facts.manifest.retired {
        return Some(format!("a person wants it so; erased at {}", timestamp(retired.erase_after)));
    }
    let standing = facts.standing.filter(|standing| standing.state != StandingState::Whole)?;
    Some(standing.reason?.text().to_owned())
}

fn describe_journal<S: Storage>(held: &Held<S>, status: &mut api::VolumeStatus) -> Result<()> {
    let reader = &held.reader;
    let durable = reader.durable();
    status.size_bytes = reader.size_at(durable);
    status.durable_seq = durable.0;
    status.durable_time = reader.last_time().map(timestamp);
    let oldest = at::oldest(reader.as_ref())?;
    status.first_time = oldest.as_ref().and_then(|oldest| oldest.time).map(timestamp);
    status.first_seq = oldest.map(|oldest| oldest.seq.0);
    let segments = reader.segments();
    status.journal_bytes = segments.iter().map(|segment| segment.bytes).sum();
    status.segments = u32::try_from(segments.len()).unwrap_or(u32::MAX);
    status.spans = reader
        .spans()
        .iter()
        .map(|span| api::SpanInfo { begin_seq: span.begin.0, end_seq: span.end.map(|end| end.0) })
        .collect();
    Ok(())
}
