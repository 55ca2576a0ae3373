//! `tidemark point`: recovery points.

use tidemark_collector::control::api::{
    NewPoint, PointFilter, PointInfo, PointKind, PointList, StateInfo,
};
use tidemark_collector::control::client::Client;

use crate::args::{Kind, PointCommand};
use crate::console::{Console, Stop};
use crate::render::{self, Column};

/// Asks or creates, and shows.
pub(crate) fn run(
    command: &PointCommand,
    client: &Client,
    console: &mut Console<'_>,
) -> Result<(), Stop> {
    match command {
        PointCommand::List { volume, kind, since, until, limit } => {
            let filter = PointFilter {
                kind: kind.map(|kind| match kind {
                    Kind::Crash => PointKind::CrashConsistent,
                    Kind::App => PointKind::AppConsistent,
                    Kind::Bookmark => PointKind::Bookmark,
                }),
                since: since.clone(),
                until: until.clone(),
                limit: Some(*limit),
            };
            console.show(&client.points(volume, &filter)?, text)
        }
        PointCommand::Create { volume, label } => {
            let point = client.create_point(volume, &NewPoint { label: label.clone() })?;
            console.show(&point, |point| created(volume, point))
        }
    }
}

fn created(volume: &str, point: &PointInfo) -> String {
    let name = if point.label.is_empty() { point.id.as_str() } else { point.label.as_str() };
    format!("point {name} of volume {volume}: seq:{}, {}\n", point.seq, render::time(point.time))
}

fn text(list: &PointList) -> String {
    let mut out = match (&list.oldest, &list.latest) {
        (Some(oldest), Some(latest)) => format!(
            "Any state of volume {} can be opened, from {} to {}.\n",
            list.volume,
            state(oldest),
            state(latest)
        ),
        _ => format!("No state of volume {} can be opened yet.\n", list.volume),
    };
    if !list.points.is_empty() {
        out += "\n";
        out += &table(&list.points);
    }
    if list.older > 0 {
        out += &format!("\n{} older points are not shown (--limit, --until).\n", list.older);
    }
    out
}

/// A state in words that can be given back as AT.
pub(crate) fn state(state: &StateInfo) -> String {
    match state.time {
        Some(time) => format!("seq:{} ({})", state.seq, render::time(time)),
        None => format!("seq:{}", state.seq),
    }
}

fn table(points: &[PointInfo]) -> String {
    let columns = [
        Column::Text("TIME"),
        Column::Text("KIND"),
        Column::Text("LABEL"),
        Column::Number("SEQ"),
        Column::Number("CHANGED"),
        Column::Text("OFFERED"),
        Column::Text("ID"),
    ];
    render::table(
        &columns,
        points.iter().map(|point| {
            let label = if point.label.is_empty() { render::NOTHING } else { &point.label };
            vec![
                render::time(point.time),
                point.kind.name().to_owned(),
                label.to_owned(),
                point.seq.to_string(),
                render::or_dash(point.changed_bytes, render::size),
                offered(point),
                point.id.clone(),
            ]
        }),
    )
}

fn offered(point: &PointInfo) -> String {
    let mut note = if point.offered { "yes" } else { "no: changes were missing" }.to_owned();
    if !point.reason.is_empty() {
        note += "; ";
        note += &point.reason;
    }
    note
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn point(label: &str, offered: bool) -> PointInfo {
        PointInfo {
            id: "p1".into(),
            kind: PointKind::Bookmark,
            label: label.into(),
            reason: String::new(),
            seq: 9,
            time: Timestamp::UNIX_EPOCH,
            changed_bytes: Some(2048),
            offered,
        }
    }

    #[test]
    fn a_list_says_from_where_to_where() {
        let state = |seq| Some(StateInfo { seq, time: None, point: None });
        let list = PointList {
            volume: "disk".into(),
            oldest: state(3),
            latest: state(40),
            points: vec![point("before upgrade", true), point("", false)],
            older: 7,
        };
        let shown = text(&list);
        assert!(shown.starts_with("Any state of volume disk can be opened, from seq:3 to seq:40."));
        assert!(shown.contains("bookmark  before upgrade    9  2.0 KiB  yes"), "{shown}");
        assert!(shown.contains("no: changes were missing"), "{shown}");
        assert!(shown.ends_with("7 older points are not shown (--limit, --until).\n"), "{shown}");
    }

    #[test]
    fn an_empty_volume_says_so() {
        let list = PointList {
            volume: "disk".into(),
            oldest: None,
            latest: None,
            points: vec![],
            older: 0,
        };
        assert_eq!(text(&list), "No state of volume disk can be opened yet.\n");
    }

    #[test]
    fn a_created_point_is_told_by_its_name() {
        let shown = created("disk", &point("x", true));
        assert_eq!(shown, "point x of volume disk: seq:9, 1970-01-01T00:00:00Z\n");
    }
}
