//! Agents that were seen.
//!
//! One that a person has forgotten is not shown. Its row stays while a retired volume still names
//! it, and when it opens a session again it is back.

use sqlx::sqlite::SqliteRow;
use tidemark_wire::{AgentId, WallMicros};

use super::{Catalog, foreign, stored, text, time};
use crate::error::Result;

/// An agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentRow {
    /// Its identity.
    pub id: AgentId,
    /// When it opened its first session, or its volume was first found here.
    pub first_seen: WallMicros,
    /// When it opened its newest session.
    pub last_seen: WallMicros,
}

impl Catalog {
    /// An agent has opened a session.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn agent_seen(&self, agent: AgentId, now: WallMicros) -> Result<()> {
        sqlx::query(
            "INSERT INTO agents (id, first_seen_us, last_seen_us) VALUES (?1, ?2, ?2)
             ON CONFLICT (id) DO UPDATE SET last_seen_us = ?2, forgotten_us = NULL",
        )
        .bind(agent.to_string())
        .bind(stored(now.0))
        .execute(&self.pool)
        .await
        .map(|_| ())
        .map_err(self.failed("write an agent"))
    }

    /// The agents that were not forgotten, in the order in which they came.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn agents(&self) -> Result<Vec<AgentRow>> {
        sqlx::query("SELECT * FROM agents WHERE forgotten_us IS NULL ORDER BY first_seen_us, id")
            .try_map(|row: SqliteRow| {
                let id = text(&row, "id")?;
                Ok(AgentRow {
                    id: id.parse().map_err(|_| foreign("id", &id))?,
                    first_seen: time(&row, "first_seen_us")?,
                    last_seen: time(&row, "last_seen_us")?,
                })
            })
            .fetch_all(&self.pool)
            .await
            .map_err(self.failed("read agents"))
    }

    /// Forgets an agent.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn forget_agent(&self, agent: AgentId, now: WallMicros) -> Result<()> {
        let forgotten = async {
            let mut transaction = self.pool.begin().await?;
            sqlx::query("UPDATE agents SET forgotten_us = ? WHERE id = ?")
                .bind(stored(now.0))
                .bind(agent.to_string())
                .execute(&mut *transaction)
                .await?;
            sqlx::query(
                "DELETE FROM agents WHERE id = ?1 AND id NOT IN (SELECT agent FROM volumes)",
            )
            .bind(agent.to_string())
            .execute(&mut *transaction)
            .await?;
            transaction.commit().await
        };
        forgotten.await.map_err(self.failed("forget an agent"))
    }
}
