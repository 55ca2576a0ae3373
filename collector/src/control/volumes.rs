//! Points, states and segments of one volume.

use std::sync::Arc;
use std::time::Duration;

use tidemark_wire::Seq;
use tidemark_wire::body::{Bookmark, PointKind};
use tidemark_wire::limits::NAME_BYTES_MAX;

use super::api;
use super::convert;
use super::desk::{Desk, blocking};
use crate::error::{Failure, Result, nearest};
use crate::journal::inspect_records;
use crate::points::at::{self, At};
use crate::storage::Storage;

/// How long an agent may take to place a point and send it.
const POINT_WAIT_MAX: Duration = Duration::from_secs(30);
/// Records of one page.
const RECORDS_MAX: u32 = 1_000;

impl<S: Storage> Desk<S> {
    pub(super) async fn points(self: &Arc<Self>, volume: &str) -> Result<api::PointList> {
        let volume = self.sources.volumes.find(volume)?;
        let points = self.sources.catalog.points(volume.id()).await?;
        let (held, name) = (volume.held()?, volume.name());
        blocking(move || {
            let reader = held.reader.as_ref();
            let offered = |seq| reader.offerable(seq).is_ok();
            Ok(api::PointList {
                volume: name,
                latest: at::latest(reader)?.as_ref().map(convert::state),
                oldest: at::oldest(reader)?.as_ref().map(convert::state),
                points: points.iter().map(|one| convert::point(one, offered(one.seq))).collect(),
            })
        })
        .await
    }

    pub(super) async fn create_point(
        self: &Arc<Self>,
        volume: &str,
        new: api::NewPoint,
    ) -> Result<api::PointInfo> {
        let volume = self.sources.volumes.find(volume)?;
        check_label(&new.label)?;
        let points = self.sources.catalog.points(volume.id()).await?;
        if let Some(other) = points.iter().find(|point| point.label == new.label) {
            let message = format!("volume {} has a point {:?}", volume.name(), new.label);
            return Err(Failure::conflict(message).with_hint(format!("it is {}", other.id)));
        }
        let id = self.sources.volumes.new_point_id();
        let arrived = self.sources.feed.expect(id)?;
        let (kind, label, reason) = (PointKind::Person, new.label, String::new());
        self.sources.volumes.ask_for_point(&volume, Bookmark { id, kind, label, reason })?;
        match tokio::time::timeout(POINT_WAIT_MAX, arrived).await {
            Ok(Ok(point)) => {
                let held = volume.held()?;
                let offered = held.reader.offerable(point.seq).is_ok();
                Ok(convert::point(&point, offered))
            }
            _ => Err(Failure::unavailable(format!(
                "the agent of volume {} has not placed the point within {} s",
                volume.name(),
                POINT_WAIT_MAX.as_secs()
            ))
            .with_hint("it may still appear; look at the list of points before you try again")),
        }
    }

    pub(super) async fn resolve(
        self: &Arc<Self>,
        volume: &str,
        at: &str,
    ) -> Result<api::StateInfo> {
        self.find_state(volume, at).await.map(|(_, state)| convert::state(&state))
    }

    pub(super) async fn segments(self: &Arc<Self>, volume: &str) -> Result<Vec<api::SegmentInfo>> {
        let held = self.sources.volumes.find(volume)?.held()?;
        blocking(move || Ok(held.reader.segments().iter().map(convert::segment).collect())).await
    }

    pub(super) async fn records(
        self: &Arc<Self>,
        volume: &str,
        name: String,
        after: Seq,
        limit: Option<u32>,
    ) -> Result<api::RecordPage> {
        let volume = self.sources.volumes.find(volume)?;
        let (held, storage) = (volume.held()?, Arc::clone(&self.sources.storage));
        let limit = limit.unwrap_or(RECORDS_MAX).clamp(1, RECORDS_MAX);
        blocking(move || {
            // Only names of this journal are opened, whatever path the request spells.
            let segments = held.reader.segments();
            let Some(segment) = segments.iter().find(|segment| segment.name == name) else {
                let failure = Failure::not_found(format!("there is no segment {name:?}"));
                let names = segments.iter().map(|segment| segment.name.as_str());
                return Err(match nearest(&name, names) {
                    Some(right) => failure.with_hint(format!("did you mean {right}?")),
                    None => failure,
                });
            };
            let path = Self::journal_file(&volume, &segment.name);
            let (mut records, mut damage) =
                inspect_records(storage.as_ref(), &path, after, limit as usize)?;
            // Behind what was synced when the segment was looked up, a write may be under way.
            let seen = records.last().map_or(after, |record| record.seq);
            if !segment.sealed && seen >= segment.last_seq {
                records.retain(|record| record.seq <= segment.last_seq);
                damage = None;
            }
            let full = records.len() == limit as usize;
            Ok(api::RecordPage {
                segment: convert::segment(segment),
                next_after: records.last().filter(|_| full).map(|record| record.seq.0),
                records: records.iter().map(convert::record).collect(),
                damage: damage.map(|damage| damage.to_string()),
            })
        })
        .await
    }
}

/// A label has to be found again by AT, and to be shown on one line.
fn check_label(label: &str) -> Result<()> {
    if label.len() > NAME_BYTES_MAX || label.chars().any(char::is_control) {
        return Err(Failure::invalid(format!(
            "a point's name has at most {NAME_BYTES_MAX} bytes and no control characters"
        )));
    }
    match At::parse(label) {
        Ok(At::Name(name)) if name == label => Ok(()),
        Ok(At::Name(_)) => Err(Failure::invalid("a point's name has no space at its ends")),
        _ => Err(Failure::invalid(format!("{label:?} can't be the name of a point"))
            .with_hint("it would be read as a state, a time or an age")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_mean_something_else_are_refused() {
        assert!(check_label("before upgrade 7").is_ok());
        for label in ["", " x", "latest", "seq:5", "5m", "2026-01-01T00:00:00Z", "a\nb"] {
            assert!(check_label(label).is_err(), "{label:?}");
        }
        assert!(check_label(&"x".repeat(256)).is_err());
    }
}
