//! `tidemark restore`: a state written to a file or a device, with its progress.
//!
//! The collector says first what would happen; what destroys something is asked about. Then it
//! does the work as a job, and this follows it. An interrupt cancels the job, waits until it has
//! ended, and says how to go on.

use std::io::Write;

use tidemark_collector::control::api::{Job, JobState, NewRestore, RestorePlan, TargetFormat};
use tidemark_collector::control::client::Client;

use crate::args::{Format, RestoreArguments};
use crate::console::{Console, Stop};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::{ask, follow, render};

/// Asks, starts the job and follows it to its end.
pub(crate) fn run(
    arguments: &RestoreArguments,
    client: &Client,
    console: &mut Console<'_>,
) -> Result<(), Stop> {
    let target = std::path::absolute(&arguments.to).map_err(|e| {
        Failure::new(format!("no absolute path of {}: {e}", arguments.to.display()))
    })?;
    let mut new = NewRestore {
        volume: arguments.volume.clone(),
        at: arguments.at.clone(),
        target,
        format: arguments.format.map(|format| match format {
            Format::Raw => TargetFormat::Raw,
            Format::Qcow2 => TargetFormat::Qcow2,
        }),
        overwrite: arguments.overwrite,
        restart: arguments.restart,
        erase: arguments.yes,
    };
    let plan = client.plan_restore(&new)?;
    if let Some(device) = &plan.destroys
        && !new.erase
    {
        confirm(&plan, device)?;
        new.erase = true;
        // What the answer was about: "latest" may be another state by now.
        new.at = format!("seq:{}", plan.state.seq);
    }
    tell(&plan);
    let interrupt = Interrupt::catch()?;
    let ended = follow::to_the_end(client, &interrupt, client.create_restore(&new)?)?;
    match ended.state {
        JobState::Done => console.show(&ended, text),
        _ => Err(follow::ended_early(&ended, "restore", "it is not whole").into()),
    }
}

/// Asks before a device is overwritten; where nobody can answer, the answer is no.
fn confirm(plan: &RestorePlan, device: &str) -> Result<(), Failure> {
    let (volume, seq) = (&plan.volume, plan.state.seq);
    let question = format!(
        "Volume {volume} as it was at seq:{seq} is to be written over {device}.\n\
         Everything on it will be lost. Go on?"
    );
    match ask::agrees(&question)? {
        Some(true) => Ok(()),
        Some(false) => {
            Err(Failure::new(format!("nothing was written to {}", plan.target.display())))
        }
        None => Err(Failure::new(format!("everything on {device} would be lost"))
            .with_hint("allow it with --yes")),
    }
}

/// What a person should know beforehand, on standard error.
fn tell(plan: &RestorePlan) {
    let mut told = plan.note.iter().map(|note| format!("{note}\n")).collect::<String>();
    if plan.resumes_at_bytes > 0 {
        told += &format!(
            "Going on with an unfinished restore of seq:{}: {} of {} were written; they are \
             checked first.\n",
            plan.state.seq,
            render::size(plan.resumes_at_bytes),
            render::size(plan.total_bytes)
        );
    }
    // A closed standard error must not end the work.
    let _ = write!(std::io::stderr(), "{told}");
}

fn text(ended: &Job) -> String {
    let state = match ended.state_time {
        Some(time) => format!("seq:{} ({})", ended.state_seq, render::time(time)),
        None => format!("seq:{}", ended.state_seq),
    };
    let mut out =
        format!("Volume {} as it was at {state} is in {}.\n", ended.volume, ended.target.display());
    if let Some(result) = ended.result {
        let took =
            ended.finished.map_or(0.0, |end| end.duration_since(ended.started).as_secs_f64());
        out += &format!(
            "{} written of {} ({} checksums held) in {}.\n",
            render::size(result.written_bytes),
            render::size(result.size_bytes),
            result.checksums_verified,
            render::duration(took)
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use tidemark_collector::control::api::RestoreResult;

    use super::*;
    use crate::job::tests::half_done;

    #[test]
    fn the_end_says_what_lies_where() {
        let ended = Job {
            state: JobState::Done,
            finished: Some(Timestamp::from_second(3).expect("a time")),
            result: Some(RestoreResult {
                written_bytes: 4096,
                size_bytes: 2 << 20,
                checksums_verified: 1,
            }),
            ..half_done()
        };
        assert_eq!(
            text(&ended),
            "Volume disk as it was at seq:12 is in /srv/back.img.\n\
             4.0 KiB written of 2.0 MiB (1 checksums held) in 3.0 s.\n"
        );
    }
}
