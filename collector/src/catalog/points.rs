//! Points of all volumes.

use sqlx::sqlite::{SqliteConnection, SqliteRow};
use tidemark_wire::body::PointKind;
use tidemark_wire::{Seq, VolumeId};

use super::{Catalog, foreign, number, stored, text, time};
use crate::error::Result;
use crate::points::Point;

impl Catalog {
    /// Makes these the points of a volume.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn replace_points(&self, volume: VolumeId, points: &[Point]) -> Result<()> {
        let replaced = async {
            let mut transaction = self.pool.begin().await?;
            sqlx::query("DELETE FROM points WHERE volume = ?")
                .bind(volume.to_string())
                .execute(&mut *transaction)
                .await?;
            insert(&mut transaction, volume, points).await?;
            transaction.commit().await
        };
        replaced.await.map_err(self.failed("write points"))
    }

    /// Adds points of a volume; those that are there already stay as they are.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn add_points(&self, volume: VolumeId, points: &[Point]) -> Result<()> {
        let added = async {
            let mut transaction = self.pool.begin().await?;
            insert(&mut transaction, volume, points).await?;
            transaction.commit().await
        };
        added.await.map_err(self.failed("write points"))
    }

    /// Forgets the points of a volume below a state: they can't be opened any more.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn trim_points(&self, volume: VolumeId, oldest: Seq) -> Result<()> {
        // The stored numbers are ordered as long as they have 63 bits, which no stream outgrows.
        sqlx::query("DELETE FROM points WHERE volume = ? AND seq < ?")
            .bind(volume.to_string())
            .bind(stored(oldest.0))
            .execute(&self.pool)
            .await
            .map(|_| ())
            .map_err(self.failed("forget points"))
    }

    /// The points of a volume, in the order of its stream: that is oldest first, also where a
    /// clock has jumped back.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn points(&self, volume: VolumeId) -> Result<Vec<Point>> {
        sqlx::query("SELECT * FROM points WHERE volume = ? ORDER BY seq")
            .bind(volume.to_string())
            .try_map(|row: SqliteRow| {
                let id = text(&row, "id")?;
                let kind = number(&row, "kind")?;
                let known = u8::try_from(kind).ok().and_then(PointKind::from_byte);
                Ok(Point {
                    id: id.parse().map_err(|_| foreign("id", &id))?,
                    kind: known.ok_or_else(|| foreign("kind", kind))?,
                    label: text(&row, "label")?,
                    reason: text(&row, "reason")?,
                    seq: Seq(number(&row, "seq")?),
                    time: time(&row, "time_us")?,
                })
            })
            .fetch_all(&self.pool)
            .await
            .map_err(self.failed("read points"))
    }
}

async fn insert(
    connection: &mut SqliteConnection,
    volume: VolumeId,
    points: &[Point],
) -> sqlx::Result<()> {
    for point in points {
        sqlx::query("INSERT OR IGNORE INTO points VALUES (?, ?, ?, ?, ?, ?, ?)")
            .bind(volume.to_string())
            .bind(point.id.to_string())
            .bind(i64::from(point.kind as u8))
            .bind(&point.label)
            .bind(&point.reason)
            .bind(stored(point.seq.0))
            .bind(stored(point.time.0))
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}
