//! `tidemark volume`: protected disks.

use std::time::Duration;

use jiff::Timestamp;
use tidemark_collector::control::api::{
    CopyProgress, NewPolicy, NewRetire, PolicyInfo, SpanInfo, VolumeStatus,
};
use tidemark_collector::control::client::Client;

use crate::args::{PolicyArguments, VolumeCommand};
use crate::ask;
use crate::console::{Console, Stop};
use crate::failure::Failure;
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
        VolumeCommand::Policy(arguments) => {
            let policy = client.set_policy(&arguments.volume, &new_policy(arguments))?;
            console.show(&policy, policy_facts)
        }
        VolumeCommand::Pause { volume } => console.show(&client.pause(volume)?, |volume| {
            format!(
                "volume {} is paused: no change is captured until `tidemark volume resume {}`\n",
                volume.name, volume.name
            )
        }),
        VolumeCommand::Resume { volume } => console.show(&client.resume(volume)?, |volume| {
            format!("volume {} is protected again; it is compared first\n", volume.name)
        }),
        VolumeCommand::Retire { volume, grace } => {
            let new = NewRetire { grace_seconds: *grace };
            console.show(&client.retire(volume, &new)?, retired)
        }
        VolumeCommand::Unretire { volume } => console.show(&client.unretire(volume)?, |volume| {
            let name = &volume.name;
            format!("volume {name} is taken back; its agent comes again within a minute\n")
        }),
        VolumeCommand::Erase { volume, yes } => erase(volume, *yes, client, console),
        VolumeCommand::Seed { volume, from } => seed::run(volume, from, client, console),
    }
}

fn new_policy(arguments: &PolicyArguments) -> NewPolicy {
    NewPolicy {
        default: arguments.default,
        window_seconds: arguments.window,
        journal_bytes_max: arguments.journal_max,
        point_interval_seconds: arguments.point_interval,
        compare_window: arguments.compare_window,
        verify_days: arguments.verify_days,
        resync_days: arguments.resync_days,
    }
}

fn retired(volume: &VolumeStatus) -> String {
    let name = &volume.name;
    let when = render::or_dash(volume.retired, |retired| render::time(retired.erase_after));
    format!(
        "volume {name} is retired; what is kept of it is erased at {when}, or now with \
         `tidemark volume erase {name} --yes`; `tidemark volume unretire {name}` takes it back\n"
    )
}

/// Asks before the history goes; where nobody can answer, the answer is no.
fn erase(volume: &str, yes: bool, client: &Client, console: &mut Console<'_>) -> Result<(), Stop> {
    let mut doomed = volume.to_owned();
    if !yes {
        let known = client.volume(volume)?;
        let lost = format!(
            "volume {} with its {} of journal and every state of it",
            known.name,
            render::size(known.journal_bytes)
        );
        match ask::agrees(&format!("This erases {lost} for good. Go on?"))? {
            // What the answer was about: the name may be another volume's by now.
            Some(true) => doomed = known.id,
            Some(false) => return Err(Failure::new(format!("{lost} stays")).into()),
            None => {
                let message = format!("this would erase {lost} for good");
                return Err(Failure::new(message).with_hint("allow it with --yes").into());
            }
        }
    }
    console.show(&client.erase(&doomed)?, |erased| match &erased.left {
        None => format!("volume {} is erased\n", erased.name),
        Some(why) => format!("volume {} is erased, but files are left: {why}\n", erased.name),
    })
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

fn state_facts(volume: &VolumeStatus, now: Timestamp) -> String {
    let mut text = volume.state.name().to_owned();
    if let Some(since) = volume.since {
        text += &format!(" since {} ({})", render::time(since), render::age(since, now));
    }
    if let Some(reason) = &volume.reason {
        text += &format!(": {reason}");
    }
    text
}

fn policy_text(policy: &PolicyInfo) -> String {
    format!(
        "{} of history, {}, {}, {}{}",
        render::duration(Duration::from_secs(policy.window_seconds).as_secs_f64()),
        match policy.journal_bytes_max {
            Some(bytes) => format!("journal up to {}", render::size(bytes)),
            None => "journal of any size".to_owned(),
        },
        match policy.point_interval_seconds {
            Some(seconds) => {
                let every = render::duration(Duration::from_secs(seconds).as_secs_f64());
                format!("a point every {every}")
            }
            None => "no points by interval".to_owned(),
        },
        comparisons(policy),
        if policy.own { "" } else { " (the collector's defaults)" }
    )
}

fn comparisons(policy: &PolicyInfo) -> String {
    let every = |what: &str, days: Option<u32>| match days {
        None => None,
        Some(1) => Some(format!("{what} every day")),
        Some(days) => Some(format!("{what} every {days} days")),
    };
    let whole = every("made equal", policy.resync_days);
    let both = [every("verified", policy.verify_days), whole];
    let all: Vec<String> = both.into_iter().flatten().collect();
    if all.is_empty() {
        return "no comparisons by schedule".to_owned();
    }
    format!("{} ({} local time)", all.join(" and "), policy.compare_window)
}

fn policy_facts(policy: &PolicyInfo) -> String {
    render::facts([("policy", Some(policy_text(policy)))])
}

fn percent(copy: &CopyProgress) -> String {
    let percent = u128::from(copy.done_bytes) * 100 / u128::from(copy.total_bytes.max(1));
    format!("{percent} %")
}

fn text(volume: &VolumeStatus, now: Timestamp) -> String {
    let newest = volume.durable_time.map(|time| {
        format!("seq:{}, {} ({})", volume.durable_seq, render::time(time), render::age(time, now))
    });
    let oldest = volume.first_seq.map(|seq| match volume.first_time {
        Some(time) => format!("seq:{seq}, {} ({})", render::time(time), render::age(time, now)),
        None => format!("seq:{seq}"),
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
        ("state", Some(state_facts(volume, now))),
        ("problem", volume.problem.clone()),
        ("RPO", volume.rpo_seconds.map(render::duration)),
        ("copy", copy),
        ("differs", differing(volume)),
        ("newest state", newest),
        ("oldest state", oldest),
        ("never offered", not_offered(&volume.spans)),
        ("policy", Some(policy_text(&volume.policy))),
        ("journal", Some(journal(volume))),
        ("agent", volume.agent.clone()),
    ])
}

fn differing(volume: &VolumeStatus) -> Option<String> {
    let bytes = volume.differing_bytes.filter(|bytes| *bytes > 0)?;
    Some(format!("at most {} of the disk", render::size(bytes)))
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
            since: None,
            reason: Some("protection was paused".into()),
            retired: None,
            policy: PolicyInfo {
                window_seconds: 7200,
                journal_bytes_max: Some(10 << 30),
                point_interval_seconds: None,
                compare_window: "22:00-04:00".parse().expect("a window"),
                verify_days: Some(7),
                resync_days: None,
                own: true,
            },
            connected: true,
            agent: None,
            journal: "j".into(),
            timeline: 1,
            epoch: 2,
            durable_seq: 40,
            durable_time: Some(Timestamp::UNIX_EPOCH),
            first_seq: Some(3),
            first_time: None,
            rpo_seconds: Some(0.2),
            journal_bytes: 2048,
            segments: 1,
            spans: vec![SpanInfo { begin_seq: 1, end_seq: None }],
            copy: Some(CopyProgress { done_bytes: 1, total_bytes: 3, sent_bytes: 1 }),
            differing_bytes: Some(64 << 20),
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
        assert!(shown.contains("at most 64.0 MiB of the disk"), "{shown}");
        assert!(shown.contains("verified every 7 days (22:00-04:00 local time)"), "{shown}");
    }
}
