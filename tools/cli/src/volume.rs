//! `tidemark volume`: protected disks.

use jiff::Timestamp;
use tidemark_collector::control::api::{CopyProgress, SpanInfo, VolumeStatus};
use tidemark_collector::control::client::Client;

use crate::args::VolumeCommand;
use crate::console::{Console, Stop};
use crate::render::{self, Column};
use crate::seed;

/// Asks and shows.
pub(crate) fn run(
    command: &VolumeCommand,
    client: &Client,
    console: &mut Console<'_>,
) -> Result<(), Stop> {
    match command {
        VolumeCommand::List => console.show(&client.volumes()?, |volumes| table(volumes)),
        VolumeCommand::Show { volume } => {
            let now = console.now;
            console.show(&client.volume(volume)?, |volume| text(volume, now))
        }
        VolumeCommand::Seed { volume, from } => seed::run(volume, from, client, console),
    }
}

/// One line for each volume.
pub(crate) fn table(volumes: &[VolumeStatus]) -> String {
    let columns = [
        Column::Text("VOLUME"),
        Column::Number("SIZE"),
        Column::Text("STATE"),
        Column::Number("RPO"),
        Column::Number("JOURNAL"),
        Column::Text("NEWEST STATE"),
    ];
    render::table(
        &columns,
        volumes.iter().map(|volume| {
            vec![
                volume.name.clone(),
                render::size(volume.size_bytes),
                state(volume),
                render::or_dash(volume.rpo_seconds, render::duration),
                render::size(volume.journal_bytes),
                render::or_dash(volume.durable_time, render::time),
            ]
        }),
    )
}

fn state(volume: &VolumeStatus) -> String {
    match &volume.copy {
        Some(copy) => format!("{} {}", volume.state.name(), percent(copy)),
        None => volume.state.name().to_owned(),
    }
}

fn percent(copy: &CopyProgress) -> String {
    let percent = u128::from(copy.done_bytes) * 100 / u128::from(copy.total_bytes.max(1));
    format!("{percent} %")
}

fn text(volume: &VolumeStatus, now: Timestamp) -> String {
    let newest = volume.durable_time.map(|time| {
        format!("seq:{}, {} ({})", volume.durable_seq, render::time(time), render::age(time, now))
    });
    let copy = volume.copy.map(|copy| {
        format!(
            "{}: {} of {} looked at, {} sent",
            percent(&copy),
            render::size(copy.done_bytes),
            render::size(copy.total_bytes),
            render::size(copy.sent_bytes)
        )
    });
    render::facts([
        ("volume", Some(volume.name.clone())),
        ("id", Some(volume.id.clone())),
        (
            "size",
            Some(format!("{} ({} bytes)", render::size(volume.size_bytes), volume.size_bytes)),
        ),
        ("block", Some(format!("{} bytes", volume.block_bytes))),
        ("state", Some(volume.state.name().to_owned())),
        ("problem", volume.problem.clone()),
        ("RPO", volume.rpo_seconds.map(render::duration)),
        ("copy", copy),
        ("newest state", newest),
        ("oldest state", volume.first_seq.map(|seq| format!("seq:{seq}"))),
        ("never offered", not_offered(&volume.spans)),
        ("journal", Some(journal(volume))),
        ("agent", volume.agent.clone()),
    ])
}

fn journal(volume: &VolumeStatus) -> String {
    format!(
        "{} in {} segments, {}, timeline {}, epoch {}",
        render::size(volume.journal_bytes),
        volume.segments,
        volume.journal,
        volume.timeline,
        volume.epoch
    )
}

fn not_offered(spans: &[SpanInfo]) -> Option<String> {
    let spans: Vec<String> = spans
        .iter()
        .map(|span| match span.end_seq {
            Some(end) => format!("seq:{} to seq:{end}", span.begin_seq),
            None => format!("seq:{} until the copy is whole", span.begin_seq),
        })
        .collect();
    (!spans.is_empty()).then(|| spans.join(", "))
}

#[cfg(test)]
mod tests {
    use tidemark_collector::control::api::ProtectionState;

    use super::*;

    fn volume() -> VolumeStatus {
        VolumeStatus {
            id: "6ba7b810-9dad-11d1-80b4-00c04fd430c8".into(),
            name: "disk".into(),
            size_bytes: 512 << 20,
            block_bytes: 512,
            state: ProtectionState::Copying,
            connected: true,
            agent: None,
            journal: "j".into(),
            timeline: 1,
            epoch: 2,
            durable_seq: 40,
            durable_time: Some(Timestamp::UNIX_EPOCH),
            first_seq: Some(3),
            rpo_seconds: Some(0.2),
            journal_bytes: 2048,
            segments: 1,
            spans: vec![SpanInfo { begin_seq: 1, end_seq: None }],
            copy: Some(CopyProgress { done_bytes: 1, total_bytes: 3, sent_bytes: 1 }),
            problem: None,
        }
    }

    #[test]
    fn the_list_shows_how_far_a_copy_is() {
        let shown = table(&[volume()]);
        let line = shown.lines().nth(1).expect("one volume");
        assert_eq!(
            line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>(),
            ["disk", "512.0 MiB", "copying 33 %", "0.2 s", "2.0 KiB", "1970-01-01T00:00:00Z"]
        );
    }

    #[test]
    fn a_volume_shows_what_is_never_offered() {
        let shown = text(&volume(), Timestamp::from_second(60).expect("a time"));
        assert!(shown.contains("never offered  seq:1 until the copy is whole\n"), "{shown}");
        assert!(shown.contains("seq:40, 1970-01-01T00:00:00Z (1 min 0 s ago)\n"), "{shown}");
        assert!(!shown.contains("problem"), "{shown}");
    }
}
