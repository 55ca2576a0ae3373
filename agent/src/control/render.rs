//! The list of volumes as a table for people.

use super::api::{VolumeStanding, VolumeStatus};

const HEAD: [&str; 6] = ["VOLUME", "SIZE", "STATE", "USERS", "DEVICE", "UNSENT"];

/// The lines of the table, and below it what there is to know of single volumes.
#[must_use]
pub fn table(volumes: &[VolumeStatus]) -> Vec<String> {
    if volumes.is_empty() {
        return vec!["no volumes; add a [[volume]] to the configuration, then reload".into()];
    }
    let head = HEAD.map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(volumes.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..HEAD.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let cells = row.iter().zip(&widths);
            let line: Vec<String> =
                cells.map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
            line.join("  ").trim_end().to_owned()
        })
        .collect();
    for volume in volumes {
        let device_notes = volume.attached.iter().flat_map(|attached| &attached.notes);
        for note in volume.notes.iter().chain(device_notes) {
            lines.push(format!("{}: {note}", volume.name));
        }
    }
    lines
}

/// What became of a volume's size.
#[must_use]
pub fn resized(old_bytes: u64, new_bytes: u64) -> String {
    if old_bytes == new_bytes {
        return format!("{new_bytes} bytes as before");
    }
    format!("{old_bytes} bytes before, {new_bytes} now")
}

fn row(volume: &VolumeStatus) -> [String; 6] {
    let mut state = standing(&volume.standing);
    if volume.refused {
        state.push_str(", refused by the collector");
    } else if !volume.connected {
        state.push_str(", collector not reached");
    }
    if volume.leaving {
        state.push_str(", removed");
    }
    let device = volume.attached.as_ref().map(|attached| attached.device.display().to_string());
    [
        volume.name.clone(),
        size(volume.size_bytes),
        state,
        volume.users.to_string(),
        device.unwrap_or_else(|| "-".into()),
        size(volume.ring_used_bytes),
    ]
}

fn standing(standing: &VolumeStanding) -> String {
    match standing {
        VolumeStanding::Whole => "whole".into(),
        VolumeStanding::Copying { done_bytes, total_bytes } => {
            let percent = u128::from(*done_bytes) * 100 / u128::from((*total_bytes).max(1));
            format!("copying {percent} %")
        }
        VolumeStanding::Lost { reason } => format!("lost ({reason})"),
        VolumeStanding::Paused => "paused".into(),
    }
}

/// A size in the largest unit of which there is at least one.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = None;
    let mut scale = 1_u64;
    for name in UNITS {
        if bytes / scale < 1024 {
            break;
        }
        scale *= 1024;
        unit = Some(name);
    }
    match unit {
        None => format!("{bytes} B"),
        Some(unit) => {
            let tenths = u128::from(bytes) * 10 / u128::from(scale);
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::IntentStatus;

    #[test]
    fn columns_stand_below_each_other_and_notes_below_the_table() {
        let volume = |name: &str, standing, notes: &[&str]| VolumeStatus {
            name: name.into(),
            id: String::new(),
            backing: "/b".into(),
            size_bytes: 3 << 29,
            standing,
            connected: notes.is_empty(),
            refused: notes.len() > 1,
            leaving: !notes.is_empty(),
            users: 2,
            ring_used_bytes: 17,
            intent: IntentStatus::default(),
            attached: None,
            notes: notes.iter().map(|&note| note.into()).collect(),
        };
        let copying = VolumeStanding::Copying { done_bytes: 1, total_bytes: 3 };
        let volumes =
            [volume("a", copying, &[]), volume("long-name", VolumeStanding::Whole, &["mind it"])];
        assert_eq!(
            table(&volumes),
            [
                "VOLUME     SIZE     STATE                                  USERS  DEVICE  UNSENT",
                "a          1.5 GiB  copying 33 %                           2      -       17 B",
                "long-name  1.5 GiB  whole, collector not reached, removed  2      -       17 B",
                "long-name: mind it",
            ]
        );
        assert_eq!(size(u64::MAX), "16383.9 PiB");
        assert_eq!(size(1024), "1.0 KiB");
    }
}
