//! Jobs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use tidemark_wire::{Seq, WallMicros};

use super::{Catalog, foreign, maybe_number, maybe_text, number, stored, text, time};
use crate::error::{Failure, FailureKind, Result};

/// Ended jobs that are remembered.
pub const JOBS_MAX: u32 = 1_000;

/// What the version that brought comparisons added: what they have found, as JSON.
pub(super) const VERSION: &str = "ALTER TABLE jobs ADD COLUMN comparison TEXT;";

/// What a resynchronization or a verification has done or found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Bytes of the disk that were looked at.
    pub compared_bytes: u64,
    /// Bytes that differ, of a verification.
    pub differing_bytes: u64,
    /// Bytes that one of the sides could not read.
    pub unreadable_bytes: u64,
    /// Bytes that were sent, of a resynchronization.
    pub sent_bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobStatus {
    /// Working.
    Running,
    /// Ended well.
    Done,
    /// Ended with an error.
    Failed,
    /// Ended because a person wanted it to.
    Cancelled,
    /// Ended because the collector did.
    Interrupted,
}

impl JobStatus {
    const ALL: [Self; 5] =
        [Self::Running, Self::Done, Self::Failed, Self::Cancelled, Self::Interrupted];

    const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        }
    }
}

/// A job.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRow {
    /// Its number; 0 in one that was not yet added.
    pub id: u64,
    /// What it does.
    pub kind: String,
    /// The volume's name.
    pub volume: String,
    /// The state, as it was asked for.
    pub at: String,
    /// The state.
    pub seq: Seq,
    /// When the state was captured.
    pub time: Option<WallMicros>,
    /// The file that is made.
    pub target: PathBuf,
    /// How it stands.
    pub status: JobStatus,
    /// Bytes of the disk that are done.
    pub done_bytes: u64,
    /// Bytes of the disk.
    pub total_bytes: u64,
    /// When it began.
    pub started: WallMicros,
    /// When it ended.
    pub finished: Option<WallMicros>,
    /// Bytes that were written, when it is done.
    pub written_bytes: Option<u64>,
    /// Checksums that held, when it is done.
    pub checksums_verified: Option<u64>,
    /// What a comparison has found.
    pub comparison: Option<Comparison>,
    /// Why it failed.
    pub error: Option<(FailureKind, String, Option<String>)>,
}

/// How a job ended.
#[derive(Debug)]
pub enum JobOutcome {
    /// Well.
    Done {
        /// Bytes that were written.
        written_bytes: u64,
        /// Checksums that held.
        checksums_verified: u64,
    },
    /// Well, with nothing written here.
    Compared,
    /// With an error.
    Failed(Failure),
    /// Because a person wanted it to.
    Cancelled,
    /// Because the collector ends.
    Interrupted,
}

impl JobOutcome {
    /// How the job stands then.
    #[must_use]
    pub fn status(&self) -> JobStatus {
        match self {
            Self::Done { .. } | Self::Compared => JobStatus::Done,
            Self::Failed(_) => JobStatus::Failed,
            Self::Cancelled => JobStatus::Cancelled,
            Self::Interrupted => JobStatus::Interrupted,
        }
    }
}

impl Catalog {
    /// Remembers a job that begins; returns its number, which is never used again.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn add_job(&self, job: &JobRow) -> Result<u64> {
        sqlx::query(
            "INSERT INTO jobs (kind, volume, at, seq, time_us, target, status, done_bytes,
             total_bytes, started_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&job.kind)
        .bind(&job.volume)
        .bind(&job.at)
        .bind(stored(job.seq.0))
        .bind(job.time.map(|time| stored(time.0)))
        .bind(job.target.to_string_lossy().into_owned())
        .bind(job.status.name())
        .bind(stored(job.done_bytes))
        .bind(stored(job.total_bytes))
        .bind(stored(job.started.0))
        .execute(&self.pool)
        .await
        .map(|done| done.last_insert_rowid().cast_unsigned())
        .map_err(self.failed("write a job"))
    }

    /// Remembers how a job ended.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn end_job(
        &self,
        id: u64,
        done_bytes: u64,
        outcome: &JobOutcome,
        comparison: Option<&Comparison>,
        now: WallMicros,
    ) -> Result<()> {
        let (written, verified) = match outcome {
            JobOutcome::Done { written_bytes, checksums_verified } => {
                (Some(*written_bytes), Some(*checksums_verified))
            }
            _ => (None, None),
        };
        let failure = match outcome {
            JobOutcome::Failed(failure) => Some(failure),
            _ => None,
        };
        let ended = async {
            let mut transaction = self.pool.begin().await?;
            sqlx::query(
                "UPDATE jobs SET status = ?, done_bytes = ?, finished_us = ?, written_bytes = ?,
                 checksums_verified = ?, error_kind = ?, error_message = ?, error_hint = ?,
                 comparison = ?
                 WHERE id = ?",
            )
            .bind(outcome.status().name())
            .bind(stored(done_bytes))
            .bind(stored(now.0))
            .bind(written.map(stored))
            .bind(verified.map(stored))
            .bind(failure.map(|failure| failure.kind.name()))
            .bind(failure.map(|failure| failure.message.clone()))
            .bind(failure.and_then(|failure| failure.hint.clone()))
            .bind(comparison.and_then(|found| serde_json::to_string(found).ok()))
            .bind(stored(id))
            .execute(&mut *transaction)
            .await?;
            sqlx::query("DELETE FROM jobs WHERE id <= ? AND status <> 'running'")
                .bind(stored(id) - i64::from(JOBS_MAX))
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await
        };
        ended.await.map_err(self.failed("write a job"))
    }

    /// Marks jobs that an earlier daemon left as running; returns them. Call it once, at start.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn end_stale_jobs(&self, now: WallMicros) -> Result<Vec<JobRow>> {
        sqlx::query(
            "UPDATE jobs SET status = 'interrupted', finished_us = ? WHERE status = 'running'
             RETURNING *",
        )
        .bind(stored(now.0))
        .try_map(|row: SqliteRow| job(&row))
        .fetch_all(&self.pool)
        .await
        .map_err(self.failed("write jobs"))
    }

    /// All jobs, oldest first.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn jobs(&self) -> Result<Vec<JobRow>> {
        sqlx::query("SELECT * FROM jobs ORDER BY id")
            .try_map(|row: SqliteRow| job(&row))
            .fetch_all(&self.pool)
            .await
            .map_err(self.failed("read jobs"))
    }

    /// One job.
    ///
    /// # Errors
    /// `NotFound`, `Internal`.
    pub async fn job(&self, id: u64) -> Result<JobRow> {
        sqlx::query("SELECT * FROM jobs WHERE id = ?")
            .bind(stored(id))
            .try_map(|row: SqliteRow| job(&row))
            .fetch_optional(&self.pool)
            .await
            .map_err(self.failed("read a job"))?
            .ok_or_else(|| Failure::not_found(format!("there is no job {id}")))
    }
}

fn job(row: &SqliteRow) -> sqlx::Result<JobRow> {
    let status = text(row, "status")?;
    let error = match (maybe_text(row, "error_kind")?, maybe_text(row, "error_message")?) {
        (Some(kind), Some(message)) => {
            let kind = FailureKind::from_name(&kind).ok_or_else(|| foreign("error_kind", &kind))?;
            Some((kind, message, maybe_text(row, "error_hint")?))
        }
        _ => None,
    };
    Ok(JobRow {
        id: number(row, "id")?,
        kind: text(row, "kind")?,
        volume: text(row, "volume")?,
        at: text(row, "at")?,
        seq: Seq(number(row, "seq")?),
        time: maybe_number(row, "time_us")?.map(WallMicros),
        target: text(row, "target")?.into(),
        status: JobStatus::ALL
            .into_iter()
            .find(|one| one.name() == status)
            .ok_or_else(|| foreign("status", &status))?,
        done_bytes: number(row, "done_bytes")?,
        total_bytes: number(row, "total_bytes")?,
        started: time(row, "started_us")?,
        finished: maybe_number(row, "finished_us")?.map(WallMicros),
        written_bytes: maybe_number(row, "written_bytes")?,
        checksums_verified: maybe_number(row, "checksums_verified")?,
        comparison: maybe_text(row, "comparison")?
            .map(|text| serde_json::from_str(&text).map_err(|_| foreign("comparison", &text)))
            .transpose()?,
        error,
    })
}
