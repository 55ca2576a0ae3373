//! Long work: what runs, what has run, and how it is ended.
//!
//! What enters: work that was admitted, with its row. What leaves: the row's end in the catalog,
//! and an event. A job is either running here or ended in the catalog; one that a killed collector
//! leaves as running is marked as interrupted by the next one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::desk::{Desk, blocking};
use super::{api, comparisons, convert};
use crate::catalog::{Comparison, JobOutcome, JobRow, JobStatus};
use crate::error::{Failure, Result, Severity};
use crate::ingest::observer::Observer;
use crate::restore::{self, Progress};
use crate::storage::Storage;

/// Jobs that may run at a time.
const RUNNING_MAX: usize = 4;
/// How long a stop waits for jobs that were cancelled; they sync what they have written.
const STOP_WAIT_MAX: Duration = Duration::from_secs(20);
/// A job that writes a state to a file or device.
pub(super) const RESTORE: &str = "restore";
/// A job that makes an image the beginning of a volume.
pub(super) const SEED: &str = "seed";
/// A job that makes the copy equal to the disk.
pub(super) const RESYNC: &str = "resync";
/// A job that compares the copy with the disk.
pub(super) const VERIFY: &str = "verify";

/// Jobs that run now, by number.
pub(super) struct RunningJobs {
    running: Mutex<Running>,
    count: watch::Sender<usize>,
}

#[derive(Default)]
struct Running {
    /// Jobs that were admitted and have no number yet.
    starting: Vec<std::path::PathBuf>,
    jobs: BTreeMap<u64, Job>,
    /// The daemon ends; whoever is cancelled now is interrupted.
    stopping: bool,
}

struct Job {
    target: std::path::PathBuf,
    progress: Arc<Progress>,
}

impl Default for RunningJobs {
    fn default() -> Self {
        Self { running: Mutex::default(), count: watch::Sender::new(0) }
    }
}

impl RunningJobs {
    pub(super) fn count(&self) -> usize {
        self.lock().jobs.len()
    }

    /// Cancels all and waits until they are gone, a bounded time.
    pub(super) async fn stop(&self) {
        {
            let mut running = self.lock();
            running.stopping = true;
            running.jobs.values().for_each(|job| job.progress.cancel());
        }
        let mut count = self.count.subscribe();
        let gone = tokio::time::timeout(STOP_WAIT_MAX, count.wait_for(|count| *count == 0)).await;
        if gone.is_err() {
            tracing::warn!("jobs did not end in time");
        }
    }

    fn admit(&self, target: &std::path::Path) -> Result<()> {
        let mut running = self.lock();
        if running.stopping {
            return Err(Failure::unavailable("the collector is stopping"));
        }
        if running.jobs.len() + running.starting.len() >= RUNNING_MAX {
            return Err(Failure::unavailable(format!("{RUNNING_MAX} jobs are running"))
                .with_hint("wait for one of them, or cancel it"));
        }
        let taken = |path: &std::path::PathBuf| path == target;
        if running.starting.iter().any(taken) || running.jobs.values().any(|j| taken(&j.target)) {
            let message = format!("another job is at work on {}", target.display());
            return Err(Failure::conflict(message));
        }
        running.starting.push(target.to_owned());
        Ok(())
    }

    fn begin(&self, target: &std::path::Path, id: Option<u64>) -> Arc<Progress> {
        let progress = Arc::<Progress>::default();
        let mut running = self.lock();
        running.starting.retain(|path| path != target);
        if let Some(id) = id {
            let job = Job { target: target.to_owned(), progress: Arc::clone(&progress) };
            running.jobs.insert(id, job);
        }
        let count = running.jobs.len();
        drop(running);
        self.count.send_replace(count);
        progress
    }

    fn end(&self, id: u64) {
        let mut running = self.lock();
        running.jobs.remove(&id);
        let count = running.jobs.len();
        drop(running);
        self.count.send_replace(count);
    }

    fn done_bytes(&self, id: u64) -> Option<u64> {
        self.lock().jobs.get(&id).map(|job| job.progress.done_bytes())
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a piece of work ended when it did not fail.
pub(super) enum Ended {
    Done {
        written_bytes: u64,
        checksums_verified: u64,
        /// For the event.
        message: String,
    },
    /// A comparison has come to its end, and there is nothing to do.
    Compared {
        found: Comparison,
        /// For the event.
        message: String,
    },
    /// It has failed, or found what should not be, and a person has to do something.
    NeedsPerson {
        failure: Failure,
        found: Option<Comparison>,
    },
    Cancelled,
}

/// The command that goes on with a job that has ended early.
pub(crate) fn go_on(row: &JobRow) -> Option<String> {
    match row.status {
        JobStatus::Running | JobStatus::Done => None,
        JobStatus::Failed | JobStatus::Cancelled | JobStatus::Interrupted => Some(command(row)),
    }
}

fn command(row: &JobRow) -> String {
    if row.kind == SEED {
        let image = restore::quoted(&row.target.to_string_lossy());
        return format!("tidemark volume seed {} --from {image}", restore::quoted(&row.volume));
    }
    if [RESYNC, VERIFY].contains(&row.kind.as_str()) {
        return comparisons::command(row);
    }
    restore::command(&row.volume, row.seq, &row.target)
}

/// What people are told of a job that an earlier daemon left.
pub(crate) fn interruption(row: &JobRow) -> String {
    let (id, kind, target) = (row.id, &row.kind, row.target.display());
    let command = command(row);
    format!("job {id} ({kind}, {target}) ended with the collector; go on with: {command}")
}

impl<S: Storage> Desk<S> {
    /// Begins a job: admits it, remembers it, runs `work` away from the event loop. The row comes
    /// without number, status and times.
    pub(super) async fn begin_job(
        self: &Arc<Self>,
        mut row: JobRow,
        work: impl FnOnce(&Progress) -> Result<Ended> + Send + 'static,
    ) -> Result<api::Job> {
        self.jobs.admit(&row.target)?;
        let added = self.sources.catalog.add_job(&row).await;
        let progress = self.jobs.begin(&row.target, added.as_ref().ok().copied());
        row.id = added?;
        let (desk, job) = (Arc::clone(self), row.clone());
        tokio::spawn(async move {
            let watched = Arc::clone(&progress);
            let ended = blocking(move || work(&watched)).await;
            desk.ended(job, &progress, ended).await;
        });
        Ok(convert::job(row, Some(0)))
    }

    async fn ended(&self, mut job: JobRow, progress: &Progress, ended: Result<Ended>) {
        let (kind, target) = (job.kind.clone(), job.target.display().to_string());
        let stopping = self.jobs.lock().stopping;
        let mut comparison = None;
        let (severity, said, outcome) = match ended {
            Ok(Ended::Compared { found, message }) => {
                comparison = Some(found);
                (Severity::Info, message, JobOutcome::Compared)
            }
            Ok(Ended::NeedsPerson { failure, found }) => {
                comparison = found;
                let said = failure.message.clone();
                (Severity::Critical, said, JobOutcome::Failed(failure))
            }
            Ok(Ended::Done { written_bytes, checksums_verified, message }) => {
                (Severity::Info, message, JobOutcome::Done { written_bytes, checksums_verified })
            }
            Ok(Ended::Cancelled) if stopping => (
                Severity::Warning,
                format!("the {kind} of {target} was interrupted by the collector's stop"),
                JobOutcome::Interrupted,
            ),
            Ok(Ended::Cancelled) => (
                Severity::Info,
                format!("the {kind} of {target} was cancelled"),
                JobOutcome::Cancelled,
            ),
            Err(failure) => (
                Severity::Warning,
                format!("the {kind} of {target} has failed: {failure}"),
                JobOutcome::Failed(failure),
            ),
        };
        job.status = outcome.status();
        let go_on = go_on(&job).filter(|_| comparison.is_none());
        let message = match go_on {
            Some(command) => format!("{said}; go on with: {command}"),
            None => said,
        };
        self.sources.feed.event(severity, Some(&job.volume), message);
        let now = self.sources.clock.wall();
        let ended = self
            .sources
            .catalog
            .end_job(job.id, progress.done_bytes(), &outcome, comparison.as_ref(), now)
            .await;
        if let Err(error) = ended {
            tracing::error!(job = job.id, %error, "the end of a job is not in the catalog");
        }
        // Last, so that a job is either running here or ended in the catalog.
        self.jobs.end(job.id);
    }

    pub(super) async fn job_list(&self) -> Result<Vec<api::Job>> {
        let rows = self.sources.catalog.jobs().await?;
        Ok(rows.into_iter().map(|row| self.show(row)).collect())
    }

    pub(super) async fn job(&self, id: u64) -> Result<api::Job> {
        Ok(self.show(self.sources.catalog.job(id).await?))
    }

    pub(super) async fn cancel_job(&self, id: u64) -> Result<api::Job> {
        let row = self.sources.catalog.job(id).await?;
        if let Some(job) = self.jobs.lock().jobs.get(&id) {
            job.progress.cancel();
        } else {
            return Err(Failure::conflict(format!("job {id} has ended")));
        }
        Ok(self.show(row))
    }

    fn show(&self, row: JobRow) -> api::Job {
        let running = row.status == JobStatus::Running;
        let done_bytes = if running { self.jobs.done_bytes(row.id) } else { None };
        convert::job(row, done_bytes)
    }
}
