//! The catalog: what is looked up across volumes, in one SQLite file.
//!
//! What enters: volumes and agents as they connect, points as their marks become durable, jobs,
//! exports, events. What leaves: the same, by query. The journals and manifests are the truth
//! for volumes and points, so those are written anew when a journal is opened; jobs, exports and
//! events live only here. A crash may lose the newest of them. Events beyond [`EVENTS_MAX`] and ended
//! jobs beyond [`JOBS_MAX`] are dropped, oldest first.

mod agents;
mod exports;
mod history;
mod points;
mod work;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow};
use tidemark_wire::WallMicros;

pub use agents::AgentRow;
pub use exports::{ExportRow, Front};
pub use history::{EVENTS_MAX, EventRow, VolumeRow};
pub use work::{Comparison, JOBS_MAX, JobOutcome, JobRow, JobStatus};

use crate::error::{Failure, Result};

/// Name of the file in the data directory.
pub const CATALOG_FILE: &str = "catalog.sqlite";

/// What each version added to the one before; the first made everything. The number of those that
/// a file has is in its `user_version`. A released one is never changed.
const VERSIONS: [&str; 4] = [
    SCHEMA,
    exports::VERSION,
    "ALTER TABLE agents ADD COLUMN forgotten_us INTEGER;
      CREATE INDEX points_by_seq ON points (volume, seq);",
    work::VERSION,
];

/// Identities are their text, times microseconds since the Unix epoch, sequence numbers and
/// sizes the 64 bits of the unsigned number.
const SCHEMA: &str = "
CREATE TABLE agents (
    id TEXT PRIMARY KEY, first_seen_us INTEGER NOT NULL, last_seen_us INTEGER NOT NULL
) STRICT;
CREATE TABLE volumes (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    block_bytes INTEGER NOT NULL, journal TEXT NOT NULL, timeline INTEGER NOT NULL,
    epoch INTEGER NOT NULL, agent TEXT NOT NULL REFERENCES agents(id)
) STRICT;
CREATE TABLE points (
    volume TEXT NOT NULL, id TEXT NOT NULL, kind INTEGER NOT NULL, label TEXT NOT NULL,
    reason TEXT NOT NULL, seq INTEGER NOT NULL, time_us INTEGER NOT NULL,
    PRIMARY KEY (volume, id)
) STRICT;
CREATE TABLE exports (
    id INTEGER PRIMARY KEY AUTOINCREMENT, volume TEXT NOT NULL, at TEXT NOT NULL,
    seq INTEGER NOT NULL, listen TEXT NOT NULL, created_us INTEGER NOT NULL, ended_us INTEGER
) STRICT;
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, volume TEXT NOT NULL,
    at TEXT NOT NULL, seq INTEGER NOT NULL, time_us INTEGER, target TEXT NOT NULL,
    status TEXT NOT NULL, done_bytes INTEGER NOT NULL, total_bytes INTEGER NOT NULL,
    started_us INTEGER NOT NULL, finished_us INTEGER, written_bytes INTEGER,
    checksums_verified INTEGER, error_kind TEXT, error_message TEXT, error_hint TEXT
) STRICT;
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time_us INTEGER NOT NULL, severity TEXT NOT NULL,
    volume TEXT, message TEXT NOT NULL
) STRICT;
";

/// The catalog.
#[derive(Clone)]
pub struct Catalog {
    pool: SqlitePool,
    path: PathBuf,
}

impl Catalog {
    /// Opens the catalog at `path`, makes it when it is missing.
    ///
    /// # Errors
    /// `Internal` when it can't be opened or is damaged, `Invalid` when a newer program made it.
    pub async fn open(path: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(5));
        // One connection: everything here is short, and writers never wait for each other.
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await;
        let damaged = |error: sqlx::Error| {
            // 13 is SQLITE_FULL.
            let is_full = error.as_database_error().and_then(|e| e.code()).as_deref() == Some("13");
            Failure::internal(format!("can't open the catalog {}: {error}", path.display()))
                .with_hint(if is_full {
                    "make room on that file system"
                } else {
                    "move it away and start again: volumes and points are read back from the \
                     journals, jobs and events are lost"
                })
                .because(error)
        };
        let catalog = Self { pool: pool.map_err(damaged)?, path: path.to_owned() };
        let version: i64 = sqlx::query_scalar("PRAGMA user_version")
            .fetch_one(&catalog.pool)
            .await
            .map_err(damaged)?;
        let known = usize::try_from(version).ok().filter(|version| *version <= VERSIONS.len());
        let Some(known) = known else {
            return Err(Failure::invalid(format!(
                "the catalog {} has version {version}, this program knows {}",
                path.display(),
                VERSIONS.len()
            ))
            .with_hint("run the program that wrote it, or a newer one"));
        };
        catalog.upgrade(known).await.map_err(damaged)?;
        Ok(catalog)
    }

    /// Brings the file from a version to the newest one, whole or not at all.
    async fn upgrade(&self, from: usize) -> sqlx::Result<()> {
        let mut transaction = self.pool.begin().await?;
        for step in &VERSIONS[from..] {
            sqlx::raw_sql(*step).execute(&mut *transaction).await?;
        }
        if from < VERSIONS.len() {
            // PRAGMA takes no bound values.
            let version = format!("PRAGMA user_version = {}", VERSIONS.len());
            sqlx::raw_sql(sqlx::AssertSqlSafe(version)).execute(&mut *transaction).await?;
        }
        transaction.commit().await
    }

    /// Writes everything out and closes the file.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    fn failed(&self, doing: &str) -> impl FnOnce(sqlx::Error) -> Failure + use<> {
        let message = format!("can't {doing} in the catalog {}", self.path.display());
        move |error| Failure::internal(format!("{message}: {error}")).because(error)
    }
}

/// A number as SQLite keeps it: the same 64 bits.
fn stored(number: u64) -> i64 {
    number.cast_signed()
}

fn number(row: &SqliteRow, column: &str) -> sqlx::Result<u64> {
    sqlx::Row::try_get::<i64, _>(row, column).map(i64::cast_unsigned)
}

fn maybe_number(row: &SqliteRow, column: &str) -> sqlx::Result<Option<u64>> {
    sqlx::Row::try_get::<Option<i64>, _>(row, column).map(|value| value.map(i64::cast_unsigned))
}

fn text(row: &SqliteRow, column: &str) -> sqlx::Result<String> {
    sqlx::Row::try_get(row, column)
}

fn maybe_text(row: &SqliteRow, column: &str) -> sqlx::Result<Option<String>> {
    sqlx::Row::try_get(row, column)
}

fn time(row: &SqliteRow, column: &str) -> sqlx::Result<WallMicros> {
    number(row, column).map(WallMicros)
}

/// A value in a row that no version of this program has written.
fn foreign(column: &str, value: impl ToString) -> sqlx::Error {
    sqlx::Error::Decode(format!("{column} is {:?}", value.to_string()).into())
}

#[cfg(test)]
#[path = "catalog_tests.rs"]
mod tests;
