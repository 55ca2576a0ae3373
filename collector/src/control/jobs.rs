//! Long work: restores.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::desk::{Desk, blocking};
use super::{api, convert};
use crate::catalog::{JobOutcome, JobRow, JobStatus};
use crate::error::{Failure, Result, Severity};
use crate::ingest::observer::Observer;
use crate::restore::{Progress, Restored, check_outside, check_target, restore};
use crate::storage::Storage;

/// Jobs that may run at a time.
const RUNNING_MAX: usize = 4;
/// How long a stop waits for jobs that were cancelled.
const STOP_WAIT_MAX: Duration = Duration::from_secs(5);

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
        for job in self.lock().jobs.values() {
            job.progress.cancel();
        }
        let mut count = self.count.subscribe();
        let gone = tokio::time::timeout(STOP_WAIT_MAX, count.wait_for(|count| *count == 0)).await;
        if gone.is_err() {
            tracing::warn!("jobs did not end in time");
        }
    }

    fn admit(&self, target: &std::path::Path) -> Result<()> {
        let mut running = self.lock();
        if running.jobs.len() + running.starting.len() >= RUNNING_MAX {
            return Err(Failure::unavailable(format!("{RUNNING_MAX} jobs are running"))
                .with_hint("wait for one of them, or cancel it"));
        }
        let taken = |path: &std::path::PathBuf| path == target;
        if running.starting.iter().any(taken) || running.jobs.values().any(|j| taken(&j.target)) {
            let message = format!("{} is being restored already", target.display());
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

impl<S: Storage> Desk<S> {
    pub(super) async fn create_restore(self: &Arc<Self>, new: api::NewRestore) -> Result<api::Job> {
        let (target, overwrite) = (new.target.clone(), new.overwrite);
        let data_dir = self.sources.settings.now().data_dir.clone();
        blocking(move || {
            check_target(&target, overwrite)?;
            check_outside(&target, &data_dir)
        })
        .await?;
        let (volume, state) = self.find_state(&new.volume, &new.at).await?;
        let view = self.open_view(&volume, &state).await?;
        self.jobs.admit(&new.target)?;
        let mut row = JobRow {
            id: 0,
            kind: "restore".to_owned(),
            volume: volume.name(),
            at: new.at,
            seq: state.seq,
            time: state.time,
            target: new.target,
            status: JobStatus::Running,
            done_bytes: 0,
            total_bytes: view.size_bytes(),
            started: self.sources.clock.wall(),
            finished: None,
            written_bytes: None,
            checksums_verified: None,
            error: None,
        };
        let added = self.sources.catalog.add_job(&row).await;
        let progress = self.jobs.begin(&row.target, added.as_ref().ok().copied());
        row.id = added?;
        let (desk, job) = (Arc::clone(self), row.clone());
        tokio::spawn(async move {
            let (path, watched) = (job.target.clone(), Arc::clone(&progress));
            let restored = blocking(move || restore(&view, &path, overwrite, &watched)).await;
            desk.ended(&job, &progress, restored).await;
        });
        Ok(convert::job(row, Some(0)))
    }

    async fn ended(&self, job: &JobRow, progress: &Progress, restored: Result<Restored>) {
        let (severity, message, outcome) = match restored {
            Ok(Restored::Done { written_bytes, checksums_verified }) => (
                Severity::Info,
                format!("state seq:{} was restored to {}", job.seq, job.target.display()),
                JobOutcome::Done { written_bytes, checksums_verified },
            ),
            Ok(Restored::Cancelled) => (
                Severity::Info,
                format!("the restore to {} was cancelled", job.target.display()),
                JobOutcome::Cancelled,
            ),
            Err(failure) => (
                Severity::Warning,
                format!("the restore to {} has failed: {failure}", job.target.display()),
                JobOutcome::Failed(failure),
            ),
        };
        self.sources.feed.event(severity, Some(&job.volume), message);
        let now = self.sources.clock.wall();
        let ended =
            self.sources.catalog.end_job(job.id, progress.done_bytes(), &outcome, now).await;
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
