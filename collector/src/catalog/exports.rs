//! Exports, which a daemon serves again after its start.
//!
//! A row is written before anything of the export is made and says `ready` once it is served;
//! it is ended before anything that was made is removed. So what lies around of an export is
//! either named here, or known to be waste.

use sqlx::sqlite::SqliteRow;
use tidemark_wire::{PointId, Seq, VolumeId, WallMicros};

use super::{Catalog, foreign, maybe_number, maybe_text, number, stored, text, time};
use crate::error::Result;

/// What exports need beyond the first version of the catalog; those of that version ended with
/// their daemon.
pub(super) const VERSION: &str = "
ALTER TABLE exports ADD COLUMN name TEXT NOT NULL DEFAULT '';
ALTER TABLE exports ADD COLUMN front TEXT NOT NULL DEFAULT 'nbd';
ALTER TABLE exports ADD COLUMN size_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE exports ADD COLUMN time_us INTEGER;
ALTER TABLE exports ADD COLUMN point TEXT;
ALTER TABLE exports ADD COLUMN space_bytes INTEGER;
ALTER TABLE exports ADD COLUMN ready INTEGER NOT NULL DEFAULT 1;
UPDATE exports SET ended_us = created_us WHERE ended_us IS NULL;
";

/// How an export is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    /// Over NBD, at `listen`.
    Nbd,
    /// As a file of the FUSE directory.
    File,
}

impl Front {
    const fn name(self) -> &'static str {
        match self {
            Self::Nbd => "nbd",
            Self::File => "file",
        }
    }
}

/// An export that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportRow {
    /// Its number; 0 in one that was not yet added.
    pub id: u64,
    /// The volume.
    pub volume: VolumeId,
    /// The volume's name when it was made, which its clients use.
    pub name: String,
    /// The state, as it was asked for.
    pub at: String,
    /// The state.
    pub seq: Seq,
    /// Size of the disk at that state.
    pub size_bytes: u64,
    /// When the state was captured.
    pub time: Option<WallMicros>,
    /// The point by which the state was found.
    pub point: Option<PointId>,
    /// How it is served.
    pub front: Front,
    /// Where it is served over NBD; empty for a file.
    pub listen: String,
    /// What a writable clone may hold of its own; `None` for a state that is only read.
    pub space_bytes: Option<u64>,
    /// When it was made.
    pub created: WallMicros,
    /// It was served once; nobody knows of one that never was.
    pub ready: bool,
}

impl Catalog {
    /// Remembers an export that is about to be made; returns its number, which is never used
    /// again.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn add_export(&self, export: &ExportRow) -> Result<u64> {
        sqlx::query(
            "INSERT INTO exports (volume, name, at, seq, size_bytes, time_us, point, front,
             listen, space_bytes, created_us, ready)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
        )
        .bind(export.volume.to_string())
        .bind(&export.name)
        .bind(&export.at)
        .bind(stored(export.seq.0))
        .bind(stored(export.size_bytes))
        .bind(export.time.map(|time| stored(time.0)))
        .bind(export.point.map(|point| point.to_string()))
        .bind(export.front.name())
        .bind(&export.listen)
        .bind(export.space_bytes.map(stored))
        .bind(stored(export.created.0))
        .execute(&self.pool)
        .await
        .map(|done| done.last_insert_rowid().cast_unsigned())
        .map_err(self.failed("write an export"))
    }

    /// Gives no new export a number up to this one: files of exports that the catalog does not
    /// know have them.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn skip_exports(&self, last: u64) -> Result<()> {
        // Where AUTOINCREMENT keeps the largest number that it gave; no row before the first one.
        for statement in [
            "INSERT INTO sqlite_sequence (name, seq) SELECT 'exports', ?
             WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'exports')",
            "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = 'exports'",
        ] {
            let done = sqlx::query(statement).bind(stored(last)).execute(&self.pool).await;
            done.map_err(self.failed("skip numbers of exports"))?;
        }
        Ok(())
    }

    /// Remembers that an export is served, and where.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn export_is_ready(&self, id: u64, listen: &str) -> Result<()> {
        sqlx::query("UPDATE exports SET ready = 1, listen = ? WHERE id = ?")
            .bind(listen)
            .bind(stored(id))
            .execute(&self.pool)
            .await
            .map(|_| ())
            .map_err(self.failed("write an export"))
    }

    /// Remembers that an export has ended.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn end_export(&self, id: u64, now: WallMicros) -> Result<()> {
        sqlx::query("UPDATE exports SET ended_us = ? WHERE id = ?")
            .bind(stored(now.0))
            .bind(stored(id))
            .execute(&self.pool)
            .await
            .map(|_| ())
            .map_err(self.failed("write an export"))
    }

    /// Exports that have not ended, oldest first.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn exports(&self) -> Result<Vec<ExportRow>> {
        sqlx::query("SELECT * FROM exports WHERE ended_us IS NULL ORDER BY id")
            .try_map(|row: SqliteRow| export(&row))
            .fetch_all(&self.pool)
            .await
            .map_err(self.failed("read exports"))
    }
}

fn export(row: &SqliteRow) -> sqlx::Result<ExportRow> {
    let (volume, front) = (text(row, "volume")?, text(row, "front")?);
    let point = maybe_text(row, "point")?;
    let point = point.map(|point| point.parse().map_err(|_| foreign("point", &point)));
    Ok(ExportRow {
        id: number(row, "id")?,
        volume: volume.parse().map_err(|_| foreign("volume", &volume))?,
        name: text(row, "name")?,
        at: text(row, "at")?,
        seq: Seq(number(row, "seq")?),
        size_bytes: number(row, "size_bytes")?,
        time: maybe_number(row, "time_us")?.map(WallMicros),
        point: point.transpose()?,
        front: [Front::Nbd, Front::File]
            .into_iter()
            .find(|one| one.name() == front)
            .ok_or_else(|| foreign("front", &front))?,
        listen: text(row, "listen")?,
        space_bytes: maybe_number(row, "space_bytes")?,
        created: time(row, "created_us")?,
        ready: number(row, "ready")? == 1,
    })
}
