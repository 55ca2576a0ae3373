//! `tidemark resync` and `tidemark verify`: the copy of a volume is made equal to the disk, or only
//! compared with it. The collector has both done as jobs; this follows them as a restore is
//! followed.

use tidemark_collector::control::api::{ComparisonResult, Job, JobState, NewResync};
use tidemark_collector::control::client::Client;

use crate::args::{ResyncArguments, VerifyArguments};
use crate::console::{Console, Stop};
use crate::interrupt::Interrupt;
use crate::{follow, render};

/// Starts the job, and follows it to its end unless nobody wants to wait.
pub(crate) fn resync(
    arguments: &ResyncArguments,
    client: &Client,
    console: &mut Console<'_>,
) -> Result<(), Stop> {
    let begin = || client.create_resync(&arguments.volume, &NewResync { full: arguments.full });
    if arguments.no_wait {
        return console.show(&begin()?, begun);
    }
    let interrupt = Interrupt::catch()?;
    let ended = follow::to_the_end(client, &interrupt, begin()?)?;
    match ended.state {
        JobState::Done => console.show(&ended, resynced),
        _ => Err(follow::ended_early(&ended, "resync", "the agent goes on with it").into()),
    }
}

/// The same for a verification; what differs is a failure.
pub(crate) fn verify(
    arguments: &VerifyArguments,
    client: &Client,
    console: &mut Console<'_>,
) -> Result<(), Stop> {
    if arguments.no_wait {
        return console.show(&client.create_verify(&arguments.volume)?, begun);
    }
    let interrupt = Interrupt::catch()?;
    let started = client.create_verify(&arguments.volume)?;
    let ended = follow::to_the_end(client, &interrupt, started)?;
    match ended.state {
        JobState::Done => console.show(&ended, verified),
        _ => {
            if ended.comparison.is_some() && console.is_json() {
                console.show(&ended, begun)?;
            }
            Err(follow::ended_early(&ended, "verification", "nothing was changed").into())
        }
    }
}

fn begun(job: &Job) -> String {
    format!("Job {} ({} of volume {}) runs; see: tidemark job list\n", job.id, job.kind, job.volume)
}

fn resynced(job: &Job) -> String {
    let volume = &job.volume;
    match job.comparison {
        Some(found) if found.compared_bytes > 0 => format!(
            "The copy of volume {volume} is equal to the disk: {} looked at, {} sent, in {}.\n",
            render::size(found.compared_bytes),
            render::size(found.sent_bytes),
            render::duration(found.seconds)
        ),
        _ => format!("The copy of volume {volume} is equal to the disk; nothing was to be done.\n"),
    }
}

fn verified(job: &Job) -> String {
    let found = |found: ComparisonResult| {
        let (size, time) = (render::size(found.compared_bytes), render::duration(found.seconds));
        format!(": {size} compared in {time}")
    };
    let figures = job.comparison.map(found).unwrap_or_default();
    format!("Volume {} and its copy are equal{figures}.\n", job.volume)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::tests::half_done;

    #[test]
    fn the_end_says_what_was_looked_at_and_what_was_sent() {
        let found = ComparisonResult {
            compared_bytes: 1 << 30,
            differing_bytes: 0,
            unreadable_bytes: 0,
            sent_bytes: 1 << 20,
            seconds: 2.0,
        };
        let job = Job { comparison: Some(found), ..half_done() };
        let shown = resynced(&job);
        assert!(shown.contains("1.0 GiB looked at, 1.0 MiB sent, in 2.0 s"), "{shown}");
        assert!(verified(&job).contains("are equal: 1.0 GiB compared in 2.0 s"));
        let idle = Job { comparison: None, ..half_done() };
        assert!(resynced(&idle).contains("nothing was to be done"));
    }
}
