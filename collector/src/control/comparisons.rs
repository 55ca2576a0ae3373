//! Comparisons of a volume with its copy, as jobs: those that make the copy equal to the disk, and
//! those that only look.
//!
//! What enters: what a person or the schedule wants. What leaves: a job, whose thread hands the
//! wish on to the agent, follows what the agent tells, and says what came of it. The work is the
//! agent's: when a job ends early, by a cancel or with the collector, a resynchronization goes on
//! and a verification ends. Nothing here lasts; a crash leaves the job as interrupted.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidemark_wire::Seq;
use tidemark_wire::body::Resync;
use tidemark_wire::instruct::{InstructId, InstructKind, Verified, VerifyState};
use tidemark_wire::session::StandingState;

use super::api;
use super::desk::Desk;
use super::jobs::{Ended, RESYNC, VERIFY};
use crate::catalog::{Comparison, JobRow, JobStatus};
use crate::error::{Failure, Result};
use crate::ingest::volume::{Facts, Volume};
use crate::ingest::volumes::Volumes;
use crate::restore::{Progress, quoted};
use crate::seam::Clock;
use crate::storage::Storage;

/// How often what the agent has told is looked at.
const POLL: Duration = Duration::from_millis(100);
/// How long an agent may take to begin.
const BEGIN_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long a verification waits for the word of an agent that was disconnected.
const AWAY_MAX: Duration = Duration::from_secs(60);
/// How long a resynchronization waits for an agent that is away: it goes on when that is back.
const RESYNC_AWAY_MAX: Duration = Duration::from_secs(3600);
/// How long an agent may take to end a verification.
const STOP_WAIT_MAX: Duration = Duration::from_secs(10);
/// What stands in the row of a job that compares everything.
pub(super) const WHOLE: &str = "whole";
/// What stands in the row of a job that compares what is marked.
const MARKED: &str = "marked";

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// The copy is made equal to the disk where it may differ.
    Marked,
    /// The copy is made equal to the disk, all of which is looked at.
    Whole,
    /// It is only looked, from this place on.
    VerifyFrom(u64),
}

/// Tells whether work that may wait has to end for now.
pub(super) type Closing = Box<dyn Fn() -> bool + Send>;

impl<S: Storage> Desk<S> {
    pub(super) async fn create_resync(
        self: &Arc<Self>,
        volume: &str,
        new: api::NewResync,
    ) -> Result<api::Job> {
        let volume = self.sources.volumes.find(volume)?;
        let extent = if new.full { Extent::Whole } else { Extent::Marked };
        self.begin_comparison(volume, extent, None).await
    }

    pub(super) async fn create_verify(self: &Arc<Self>, volume: &str) -> Result<api::Job> {
        let volume = self.sources.volumes.find(volume)?;
        self.begin_comparison(volume, Extent::VerifyFrom(0), None).await
    }

    /// Begins a job. With `closing` nobody waits for it: it ends when that says so, and its failure
    /// is one that a person has to look at.
    pub(super) async fn begin_comparison(
        self: &Arc<Self>,
        volume: Arc<Volume<S>>,
        extent: Extent,
        closing: Option<Closing>,
    ) -> Result<api::Job> {
        self.sources.volumes.live(&volume)?;
        let facts = volume.facts();
        check_ready(&facts, extent)?;
        let (name, size_bytes) = (volume.name(), facts.manifest.size_bytes);
        let differing = facts.standing.map_or(0, |standing| standing.differing_bytes);
        let total_bytes = if extent == Extent::Marked { differing } else { size_bytes };
        let row = JobRow {
            id: 0,
            kind: if matches!(extent, Extent::VerifyFrom(_)) { VERIFY } else { RESYNC }.to_owned(),
            volume: name.clone(),
            at: if extent == Extent::Marked { MARKED } else { WHOLE }.to_owned(),
            seq: Seq(0),
            time: None,
            target: PathBuf::from(name),
            status: JobStatus::Running,
            done_bytes: 0,
            total_bytes,
            started: self.sources.clock.wall(),
            finished: None,
            written_bytes: None,
            checksums_verified: None,
            comparison: None,
            error: None,
        };
        let clock = Arc::clone(&self.sources.clock);
        let began = clock.monotonic();
        let volumes = Arc::clone(&self.sources.volumes);
        let follower = Follower { volume, volumes, clock, began, total_bytes, closing };
        self.begin_job(row, move |progress| follower.follow(extent, progress)).await
    }
}

/// The command that does it again.
pub(super) fn command(row: &JobRow) -> String {
    let volume = quoted(&row.volume);
    match (row.kind.as_str(), row.at.as_str()) {
        (VERIFY, _) => format!("tidemark verify {volume}"),
        (_, WHOLE) => format!("tidemark resync {volume} --full"),
        _ => format!("tidemark resync {volume}"),
    }
}

fn check_ready(facts: &Facts, extent: Extent) -> Result<()> {
    let (name, state) = (&facts.manifest.name, facts.standing.map(|standing| standing.state));
    if state == Some(StandingState::Paused) {
        let message = format!("the protection of volume {name} is paused");
        let hint = format!("take it up first: tidemark volume resume {}", quoted(name));
        return Err(Failure::conflict(message).with_hint(hint));
    }
    let is_copied = matches!(state, Some(StandingState::Copying | StandingState::Lost));
    if is_copied && matches!(extent, Extent::VerifyFrom(_)) {
        let message = format!("volume {name} is being copied, so it is known to differ");
        let hint = format!("wait for it: tidemark resync {}", quoted(name));
        return Err(Failure::conflict(message).with_hint(hint));
    }
    Ok(())
}

/// Follows one comparison on the agent.
struct Follower<S: Storage> {
    volume: Arc<Volume<S>>,
    volumes: Arc<Volumes<S>>,
    clock: Arc<dyn Clock>,
    began: Duration,
    total_bytes: u64,
    closing: Option<Closing>,
}

impl<S: Storage> Follower<S> {
    fn follow(self, extent: Extent, progress: &Progress) -> Result<Ended> {
        let ended = match extent {
            Extent::Marked => self.resync(InstructKind::CompareMarked, progress),
            Extent::Whole => self.resync(InstructKind::Compare, progress),
            Extent::VerifyFrom(from_bytes) => self.verify(from_bytes, progress),
        };
        match ended {
            Err(mut failure) if self.closing.is_some() => {
                failure.message = format!("a scheduled comparison, {PERSON}: {}", failure.message);
                Ok(Ended::NeedsPerson { failure, found: None })
            }
            ended => ended,
        }
    }

    fn is_closing(&self) -> bool {
        self.closing.as_ref().is_some_and(|is_closing| is_closing())
    }

    fn elapsed(&self, since: Duration) -> Duration {
        self.clock.monotonic().saturating_sub(since)
    }

    fn seconds(&self) -> f64 {
        self.elapsed(self.began).as_secs_f64()
    }

    /// Hands the wish on, again after a lost session, until the agent has obeyed. `None` when it
    /// is not wanted any more before.
    fn instruct(
        &self,
        what: InstructKind,
        from_bytes: u64,
        progress: &Progress,
    ) -> Result<Option<InstructId>> {
        let mut asked = None;
        loop {
            let facts = self.volume.facts();
            let epoch = facts.live.as_ref().map(|live| live.epoch);
            match asked {
                Some((_, id)) if facts.obeyed.contains(&id) => return Ok(Some(id)),
                Some((at, _)) if epoch.is_none() || epoch == Some(at) => {}
                _ => {
                    let id = self.volumes.instruct(&self.volume, what, from_bytes)?;
                    asked = epoch.map(|epoch| (epoch, id));
                }
            }
            if progress.is_cancelled() {
                return Ok(None);
            }
            if self.elapsed(self.began) > BEGIN_WAIT_MAX {
                let name = self.volume.name();
                let message = format!("the agent of volume {name} has not begun a comparison");
                return Err(Failure::unavailable(message)
                    .with_hint("look whether it is connected, and what its log says"));
            }
            self.volume.wait_told(POLL);
        }
    }

    fn advance(&self, progress: &Progress, done_bytes: u64) {
        progress.add(done_bytes.min(self.total_bytes).saturating_sub(progress.done_bytes()));
    }

    fn resync(&self, what: InstructKind, progress: &Progress) -> Result<Ended> {
        let copy_before = self.volume.facts().last_copy.map(|(end, _)| end);
        if self.instruct(what, 0, progress)?.is_none() {
            return Ok(Ended::Cancelled);
        }
        let mut seen_at = self.clock.monotonic();
        loop {
            if progress.is_cancelled() {
                return Ok(Ended::Cancelled);
            }
            let facts = self.volume.facts();
            if let Some(copy) = facts.copy {
                let share = u128::from(copy.done_bytes.get()) * u128::from(self.total_bytes)
                    / u128::from(copy.total_bytes.get().max(1));
                self.advance(progress, u64::try_from(share).unwrap_or(u64::MAX));
            }
            if facts.live.is_some() {
                seen_at = self.clock.monotonic();
            }
            if facts.standing.is_some_and(|standing| standing.state == StandingState::Paused) {
                return Ok(self.is_paused());
            }
            if self.is_level(&facts)? {
                let copy = facts.last_copy.filter(|(end, _)| Some(*end) != copy_before);
                self.advance(progress, self.total_bytes);
                return Ok(self.equal(copy.map(|(_, copy)| copy)));
            }
            if self.elapsed(seen_at) > RESYNC_AWAY_MAX {
                return Ok(self.left_alone());
            }
            self.volume.wait_told(POLL);
        }
    }

    /// True when nothing differs, as far as the agent knows, and the newest state is offered.
    fn is_level(&self, facts: &Facts) -> Result<bool> {
        let says_so = facts.standing.is_some_and(|standing| {
            standing.state == StandingState::Whole && standing.differing_bytes == 0
        });
        let is_told = facts.live.is_some() && says_so;
        Ok(is_told && self.volume.held()?.reader.span_open().is_none())
    }

    fn equal(&self, copy: Option<Resync>) -> Ended {
        let name = self.volume.name();
        let figures = copy.map(|copy| (copy.total_bytes.get(), copy.sent_bytes.get()));
        let (compared_bytes, sent_bytes) = figures.unwrap_or((0, 0));
        let seconds = self.seconds();
        let message = format!(
            "the copy of volume {name} is equal to the disk: {compared_bytes} bytes were looked \
             at, {sent_bytes} of them sent, in {seconds:.1} s"
        );
        let found = Comparison {
            compared_bytes,
            differing_bytes: 0,
            unreadable_bytes: 0,
            sent_bytes,
            seconds,
        };
        Ended::Compared { found, message }
    }

    fn is_paused(&self) -> Ended {
        let name = self.volume.name();
        let message = format!(
            "protection of volume {name} was paused in the middle of a comparison; {PERSON}: \
             `tidemark volume resume {name}`, the comparison then goes on by itself"
        );
        Ended::NeedsPerson { failure: Failure::unavailable(message), found: None }
    }

    fn left_alone(&self) -> Ended {
        let name = self.volume.name();
        let message = format!(
            "the agent of volume {name} is away since an hour, in the middle of a comparison; \
             {PERSON}: start the agent, the comparison then goes on by itself"
        );
        Ended::NeedsPerson { failure: Failure::unavailable(message), found: None }
    }

    fn verify(&self, from_bytes: u64, progress: &Progress) -> Result<Ended> {
        let Some(id) = self.instruct(InstructKind::Verify, from_bytes, progress)? else {
            return Ok(Ended::Cancelled);
        };
        let (mut told_at, mut told) = (self.clock.monotonic(), None);
        let mut stopping = None;
        loop {
            let facts = self.volume.facts();
            let report = facts.verified.filter(|report| report.id == id);
            if facts.live.is_some() && report.is_some() {
                told_at = self.clock.monotonic();
            }
            if let Some(report) = report {
                self.advance(progress, report.reached_bytes);
                if report.is_over() {
                    return self.verified(&report, stopping.is_some());
                }
                told = Some(report);
            }
            if stopping.is_none() && (progress.is_cancelled() || self.is_closing()) {
                stopping = Some(self.clock.monotonic());
                // An agent that is away ends it with its process.
                let _ = self.volumes.instruct(&self.volume, InstructKind::StopVerify, 0);
            }
            if stopping.is_some_and(|at| self.elapsed(at) > STOP_WAIT_MAX) {
                return Ok(Ended::Cancelled);
            }
            if self.elapsed(told_at) > AWAY_MAX {
                return Err(self.gone(told.as_ref()));
            }
            self.volume.wait_told(POLL);
        }
    }

    fn gone(&self, told: Option<&Verified>) -> Failure {
        let name = self.volume.name();
        let compared = told.map_or(0, |report| report.compared_bytes);
        let message = format!(
            "the agent of volume {name} tells nothing of the verification any more; {compared} \
             bytes had been compared"
        );
        Failure::unavailable(message)
            .with_hint(format!("begin again: tidemark verify {}", quoted(&name)))
    }

    fn verified(&self, report: &Verified, is_stopped: bool) -> Result<Ended> {
        let name = self.volume.name();
        let found = Comparison {
            compared_bytes: report.compared_bytes,
            differing_bytes: report.differing_bytes,
            unreadable_bytes: report.unreadable_bytes,
            sent_bytes: 0,
            seconds: self.seconds(),
        };
        if report.differing_bytes > 0 || report.unreadable_bytes > 0 {
            let failure = Failure::conflict(differs(&name, report)).with_hint(format!(
                "find out what damaged the one or the other; then `tidemark resync {} --full` \
                 makes the copy equal to the disk",
                quoted(&name)
            ));
            return Ok(Ended::NeedsPerson { failure, found: Some(found) });
        }
        match report.state {
            VerifyState::Done => {
                let message = format!(
                    "volume {name} and its copy are equal: {} bytes were compared in {:.1} s",
                    report.compared_bytes, found.seconds
                );
                Ok(Ended::Compared { found, message })
            }
            VerifyState::Stopped | VerifyState::Running if is_stopped => Ok(Ended::Cancelled),
            VerifyState::Stopped | VerifyState::Running => {
                let message = format!("another verification of volume {name} took its place");
                Err(Failure::conflict(message))
            }
            VerifyState::NotWhole if self.closing.is_some() => Ok(Ended::Cancelled),
            VerifyState::NotWhole => {
                let message = format!(
                    "volume {name} is being copied or paused meanwhile, so it can't be verified"
                );
                let hint = format!("wait for the copy: tidemark resync {}", quoted(&name));
                Err(Failure::conflict(message).with_hint(hint))
            }
        }
    }
}

const PERSON: &str = "it needs a person";

/// What a verification has found, for people.
fn differs(name: &str, report: &Verified) -> String {
    let mut text = format!("volume {name} and its copy are not equal, {PERSON}: ");
    if report.differing_bytes > 0 {
        // Into a text nothing fails.
        let _ = write!(text, "{} bytes differ", report.differing_bytes);
    }
    if report.unreadable_bytes > 0 {
        let and = if report.differing_bytes > 0 { ", " } else { "" };
        let _ = write!(text, "{and}{} bytes can't be read", report.unreadable_bytes);
    }
    let ranges = report.ranges.iter().take(RANGES_SHOWN);
    let ranges: Vec<String> =
        ranges.map(|(start, len)| format!("{start} to {}", start + len)).collect();
    let more = if report.ranges.len() > RANGES_SHOWN { " and others" } else { "" };
    let _ = write!(text, ", at bytes {}{more}", ranges.join(", "));
    text
}

/// Ranges that a message names.
const RANGES_SHOWN: usize = 4;
