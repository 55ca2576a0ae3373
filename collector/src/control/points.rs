//! Recovery points of one volume: listed, and made for a person.

use std::sync::Arc;
use std::time::Duration;

use tidemark_wire::body::{Bookmark, PointKind};
use tidemark_wire::limits::NAME_BYTES_MAX;
use tidemark_wire::{Seq, WallMicros};

use super::api;
use super::convert;
use super::desk::{Desk, blocking};
use crate::error::{Failure, Result};
use crate::ingest::volume::{Held, Volume};
use crate::points::Point;
use crate::points::at::{self, At};
use crate::restore::quoted;
use crate::storage::Storage;

/// How long an agent may take to place a point and send it.
const POINT_WAIT_MAX: Duration = Duration::from_secs(30);

impl<S: Storage> Desk<S> {
    pub(super) async fn points(
        self: &Arc<Self>,
        volume: &str,
        filter: api::PointFilter,
    ) -> Result<api::PointList> {
        let wanted = Wanted::from_filter(&filter, self.sources.clock.wall())?;
        let volume = self.sources.volumes.find(volume)?;
        let mut points = self.sources.catalog.points(volume.id()).await?;
        let (held, name) = (volume.held()?, volume.name());
        blocking(move || {
            let reader = held.reader.as_ref();
            let latest = at::latest(reader)?.as_ref().map(convert::state);
            let oldest = at::oldest(reader)?.as_ref().map(convert::state);
            let kept = reader.first_seq().unwrap_or(Seq(0));
            points.retain(|point| point.seq >= kept);
            never_earlier(&mut points);
            let (chosen, older) = wanted.choose(&points);
            let points = describe(&held, &points, &chosen)?;
            Ok(api::PointList { volume: name, latest, oldest, points, older })
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
        refuse_in_span(&volume)?;
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
}

/// A point that is placed now would lie inside of a span, and never be offered.
fn refuse_in_span<S: Storage>(volume: &Volume<S>) -> Result<()> {
    if volume.held()?.reader.span_open().is_none() {
        return Ok(());
    }
    let name = volume.name();
    let message = format!("volume {name} is being copied: no state of it can be opened just now");
    Err(Failure::conflict(message)
        .with_hint(format!("wait for the copy first: tidemark resync {}", quoted(&name))))
}

/// Times that a clock has set back are those of the point before: the order of the stream is the
/// truth.
fn never_earlier(points: &mut [Point]) {
    let mut latest = WallMicros(0);
    for point in points {
        latest = latest.max(point.time);
        point.time = latest;
    }
}

/// The chosen ones, each with what was journaled since the point before it.
fn describe<S: Storage>(
    held: &Held<S>,
    points: &[Point],
    chosen: &[usize],
) -> Result<Vec<api::PointInfo>> {
    let Some(first) = chosen.first() else { return Ok(Vec::new()) };
    let begin = first.saturating_sub(1);
    let seqs: Vec<Seq> = points[begin..].iter().map(|point| point.seq).collect();
    let until = held.reader.bytes_until(&seqs)?;
    let changed = |index: usize| {
        let before = index.checked_sub(1)?;
        Some(until[index - begin]?.saturating_sub(until[before.checked_sub(begin)?]?))
    };
    let shown = chosen.iter().map(|&index| {
        let offered = held.reader.offerable(points[index].seq).is_ok();
        let changed_bytes = changed(index);
        api::PointInfo { changed_bytes, ..convert::point(&points[index], offered) }
    });
    Ok(shown.collect())
}

/// Which points a person wants to see.
struct Wanted {
    kind: Option<PointKind>,
    since: WallMicros,
    until: WallMicros,
    limit: usize,
}

impl Wanted {
    fn from_filter(filter: &api::PointFilter, now: WallMicros) -> Result<Self> {
        let time = |text: &Option<String>| match text.as_deref().map(At::parse).transpose()? {
            None => Ok(None),
            Some(At::Time(time)) => Ok(Some(time)),
            Some(At::Age { micros }) => Ok(Some(WallMicros(now.0.saturating_sub(micros)))),
            Some(_) => Err(Failure::invalid(format!("{:?} is no time", text.as_deref()))
                .with_hint("write a time such as 2026-01-31T12:00:00Z, or an age such as 5m")),
        };
        Ok(Self {
            kind: filter.kind.map(|kind| match kind {
                api::PointKind::CrashConsistent => PointKind::Crash,
                api::PointKind::AppConsistent => PointKind::App,
                api::PointKind::Bookmark => PointKind::Person,
            }),
            since: time(&filter.since)?.unwrap_or(WallMicros(0)),
            until: time(&filter.until)?.unwrap_or(WallMicros(u64::MAX)),
            limit: filter.limit.map_or(usize::MAX, |limit| limit as usize),
        })
    }

    /// The newest ones that match, oldest first, by their places, and how many were left out.
    fn choose(&self, points: &[Point]) -> (Vec<usize>, u64) {
        let matches = |point: &Point| {
            self.kind.is_none_or(|kind| kind == point.kind)
                && (self.since..=self.until).contains(&point.time)
        };
        let mut chosen: Vec<usize> =
            (0..points.len()).filter(|&index| matches(&points[index])).collect();
        let older = chosen.len().saturating_sub(self.limit);
        chosen.drain(..older);
        (chosen, older as u64)
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
