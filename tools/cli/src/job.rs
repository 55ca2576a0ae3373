//! `tidemark job`: long work.

use tidemark_collector::control::api::{Job, JobState};
use tidemark_collector::control::client::Client;

use crate::args::JobCommand;
use crate::console::{Console, Stop};
use crate::render::{self, Column};

/// Asks and shows.
pub(crate) fn run(
    command: &JobCommand,
    client: &Client,
    console: &mut Console<'_>,
) -> Result<(), Stop> {
    let JobCommand::List = command;
    console.show(&client.jobs()?, |jobs| table(jobs))
}

fn table(jobs: &[Job]) -> String {
    let columns = [
        Column::Number("ID"),
        Column::Text("KIND"),
        Column::Text("VOLUME"),
        Column::Text("AT"),
        Column::Text("STATE"),
        Column::Text("STARTED"),
        Column::Text("TARGET"),
        Column::Text("NOTE"),
    ];
    render::table(
        &columns,
        jobs.iter().map(|job| {
            vec![
                job.id.to_string(),
                job.kind.clone(),
                job.volume.clone(),
                job.at.clone(),
                state(job),
                render::time(job.started),
                job.target.display().to_string(),
                job.error.as_ref().map_or_else(String::new, |error| error.message.clone()),
            ]
        }),
    )
}

fn state(job: &Job) -> String {
    match job.state {
        JobState::Running => format!("running {} %", percent(job)),
        JobState::Done => "done".to_owned(),
        JobState::Failed => "failed".to_owned(),
        JobState::Cancelled => "cancelled".to_owned(),
    }
}

/// How much of the job is done, in whole per cent.
pub(crate) fn percent(job: &Job) -> u64 {
    let percent = u128::from(job.done_bytes) * 100 / u128::from(job.total_bytes.max(1));
    u64::try_from(percent).unwrap_or(100).min(100)
}

#[cfg(test)]
pub(crate) mod tests {
    use jiff::Timestamp;

    use super::*;

    /// A restore that is half done.
    pub(crate) fn half_done() -> Job {
        Job {
            id: 2,
            kind: "restore".into(),
            volume: "disk".into(),
            at: "5m".into(),
            state_seq: 12,
            state_time: None,
            target: "/srv/back.img".into(),
            state: JobState::Running,
            done_bytes: 1 << 20,
            total_bytes: 2 << 20,
            started: Timestamp::UNIX_EPOCH,
            finished: None,
            result: None,
            error: None,
        }
    }

    #[test]
    fn a_running_job_shows_how_far_it_is() {
        let shown = table(&[half_done()]);
        assert!(shown.contains("restore  disk    5m  running 50 %"), "{shown}");
        assert_eq!(percent(&Job { total_bytes: 0, ..half_done() }), 100);
    }
}
