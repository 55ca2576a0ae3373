//! Who was seen, and what happened.

use sqlx::sqlite::SqliteRow;
use tidemark_wire::{AgentId, Epoch, JournalId, Timeline, VolumeId, WallMicros};

use super::{Catalog, foreign, maybe_text, number, stored, text, time};
use crate::error::{Result, Severity};

/// Events that are remembered.
pub const EVENTS_MAX: u32 = 10_000;

/// A volume and the agent that last opened a session of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRow {
    /// Its identity.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Smallest unit in which it is written, in bytes.
    pub block_bytes: u32,
    /// The collector's copy.
    pub journal: JournalId,
    /// The timeline that goes on.
    pub timeline: Timeline,
    /// Epoch of the newest session.
    pub epoch: Epoch,
    /// The agent.
    pub agent: AgentId,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRow {
    /// Rising number.
    pub id: u64,
    /// When.
    pub time: WallMicros,
    /// How much it matters.
    pub severity: Severity,
    /// The volume's name, when it is about one.
    pub volume: Option<String>,
    /// What happened.
    pub message: String,
}

impl Catalog {
    /// Remembers a volume and its agent, who is not seen by that.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn put_volume(&self, volume: &VolumeRow, now: WallMicros) -> Result<()> {
        let put = async {
            let mut transaction = self.pool.begin().await?;
            sqlx::query(
                "INSERT OR IGNORE INTO agents (id, first_seen_us, last_seen_us)
                 VALUES (?1, ?2, ?2)",
            )
            .bind(volume.agent.to_string())
            .bind(stored(now.0))
            .execute(&mut *transaction)
            .await?;
            sqlx::query("INSERT OR REPLACE INTO volumes VALUES (?, ?, ?, ?, ?, ?, ?, ?)")
                .bind(volume.id.to_string())
                .bind(&volume.name)
                .bind(stored(volume.size_bytes))
                .bind(i64::from(volume.block_bytes))
                .bind(volume.journal.to_string())
                .bind(i64::from(volume.timeline.0))
                .bind(stored(volume.epoch.0))
                .bind(volume.agent.to_string())
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await
        };
        put.await.map_err(self.failed("write a volume"))
    }

    /// Forgets a volume with its points, and its agent when that was forgotten before and has no
    /// other volume.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn forget_volume(&self, volume: VolumeId) -> Result<()> {
        let forgotten = async {
            let mut transaction = self.pool.begin().await?;
            for statement in [
                "DELETE FROM points WHERE volume = ?",
                "DELETE FROM volumes WHERE id = ?",
                "DELETE FROM agents WHERE forgotten_us IS NOT NULL
                 AND id NOT IN (SELECT agent FROM volumes WHERE id != ?)",
            ] {
                sqlx::query(statement).bind(volume.to_string()).execute(&mut *transaction).await?;
            }
            transaction.commit().await
        };
        forgotten.await.map_err(self.failed("forget a volume"))
    }

    /// Identity, name and when its agent was last seen, of every volume that was ever here.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn known_volumes(&self) -> Result<Vec<(VolumeId, String, WallMicros)>> {
        sqlx::query(
            "SELECT volumes.id, volumes.name, agents.last_seen_us
             FROM volumes JOIN agents ON agents.id = volumes.agent ORDER BY volumes.name",
        )
        .try_map(|row: SqliteRow| {
            let id = text(&row, "id")?;
            let id = id.parse().map_err(|_| foreign("id", &id))?;
            Ok((id, text(&row, "name")?, time(&row, "last_seen_us")?))
        })
        .fetch_all(&self.pool)
        .await
        .map_err(self.failed("read volumes"))
    }

    /// Remembers an event.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn add_event(
        &self,
        time: WallMicros,
        severity: Severity,
        volume: Option<&str>,
        message: &str,
    ) -> Result<()> {
        let added = async {
            let mut transaction = self.pool.begin().await?;
            let id = sqlx::query(
                "INSERT INTO events (time_us, severity, volume, message) VALUES (?, ?, ?, ?)",
            )
            .bind(stored(time.0))
            .bind(severity.name())
            .bind(volume)
            .bind(message)
            .execute(&mut *transaction)
            .await?
            .last_insert_rowid();
            sqlx::query("DELETE FROM events WHERE id <= ?")
                .bind(id - i64::from(EVENTS_MAX))
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await
        };
        added.await.map_err(self.failed("write an event"))
    }

    /// Events behind a number, oldest first, at most `limit`.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn events(&self, after_id: u64, limit: u32) -> Result<Vec<EventRow>> {
        sqlx::query("SELECT * FROM events WHERE id > ? ORDER BY id LIMIT ?")
            .bind(i64::try_from(after_id).unwrap_or(i64::MAX))
            .bind(i64::from(limit))
            .try_map(|row: SqliteRow| {
                let severity = text(&row, "severity")?;
                Ok(EventRow {
                    id: number(&row, "id")?,
                    time: time(&row, "time_us")?,
                    severity: Severity::from_name(&severity)
                        .ok_or_else(|| foreign("severity", &severity))?,
                    volume: maybe_text(&row, "volume")?,
                    message: text(&row, "message")?,
                })
            })
            .fetch_all(&self.pool)
            .await
            .map_err(self.failed("read events"))
    }
}
