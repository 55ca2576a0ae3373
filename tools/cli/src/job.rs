//! `tidemark job`: long work.

use std::time::Duration;

use tidemark_collector::control::api::{Job, JobState};
use tidemark_collector::control::client::Client;

use crate::args::JobCommand;
use crate::console::{Console, Stop};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::render::{self, Column};

/// Asks and shows.
pub(crate) fn run(
    command: &JobCommand,
    client: &Client,
    console: &mut Console<'_>,
) -> Result<(), Stop> {
    match command {
        JobCommand::List => console.show(&client.jobs()?, |jobs| table(jobs)),
        JobCommand::Cancel { id } => {
            console.show(&cancel(client, &Interrupt::catch()?, *id)?, ended_early_text)
        }
    }
}

/// How often a job is asked about.
pub(crate) const POLL: Duration = Duration::from_millis(100);
/// How many polls a cancelled job may take to end before we stop waiting for it.
const CANCEL_POLLS_MAX: u32 = 300;

/// Tells a job to end and waits until it has, a bounded time, or until an interrupt.
pub(crate) fn cancel(client: &Client, interrupt: &Interrupt, id: u64) -> Result<Job, Failure> {
    let mut current = client.cancel_job(id)?;
    for _ in 0..CANCEL_POLLS_MAX {
        if current.state != JobState::Running || interrupt.came_within(POLL) {
            break;
        }
        current = client.job(id)?;
    }
    if current.state == JobState::Running {
        return Err(Failure::new(format!(
            "job {id} is told to stop but has not ended yet; see: tidemark job list"
        )));
    }
    Ok(current)
}

fn ended_early_text(job: &Job) -> String {
    let mut out = format!("Job {} ({} of {}) is {}.\n", job.id, job.kind, job.volume, state(job));
    if let Some(command) = &job.go_on {
        out += &format!("Go on with: {command}\n");
    }
    out
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
                note(job),
            ]
        }),
    )
}

fn note(job: &Job) -> String {
    let error = job.error.as_ref().map(|error| error.message.clone());
    let go_on = job.go_on.as_ref().map(|command| format!("go on with: {command}"));
    [error, go_on].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn state(job: &Job) -> String {
    match job.state {
        JobState::Running => format!("running {} %", percent(job)),
        JobState::Done => "done".to_owned(),
        JobState::Failed => "failed".to_owned(),
        JobState::Cancelled => format!("cancelled at {} %", percent(job)),
        JobState::Interrupted => "interrupted".to_owned(),
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
            comparison: None,
            error: None,
            go_on: None,
        }
    }

    #[test]
    fn a_running_job_shows_how_far_it_is() {
        let shown = table(&[half_done()]);
        assert!(shown.contains("restore  disk    5m  running 50 %"), "{shown}");
        let left = Job {
            state: JobState::Interrupted,
            go_on: Some("tidemark restore disk --at seq:12 --to /srv/back.img".into()),
            ..half_done()
        };
        let shown = table(&[left]);
        assert!(shown.contains("  interrupted  ") && shown.contains("--at seq:12"), "{shown}");
        assert_eq!(percent(&Job { total_bytes: 0, ..half_done() }), 100);
    }
}
