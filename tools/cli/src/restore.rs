//! `tidemark restore`: a state written to a file, with its progress.
//!
//! The collector does the work as a job; this follows it. An interrupt cancels the job, waits
//! until it has ended, and says so.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tidemark_collector::control::api::{Job, JobState, NewRestore};
use tidemark_collector::control::client::Client;

use crate::args::RestoreArguments;
use crate::console::{Console, Stop};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::{job, render};

/// How often the job is asked about.
const POLL: Duration = Duration::from_millis(100);
/// How many polls a cancelled job may take to end before we stop waiting for it.
const CANCEL_POLLS_MAX: u32 = 300;

/// Starts the job and follows it to its end.
pub(crate) fn run(
    arguments: &RestoreArguments,
    client: &Client,
    console: &mut Console<'_>,
) -> Result<(), Stop> {
    let target = std::path::absolute(&arguments.to).map_err(|e| {
        Failure::new(format!("no absolute path of {}: {e}", arguments.to.display()))
    })?;
    let interrupt = Interrupt::catch()?;
    let started = client.create_restore(&NewRestore {
        volume: arguments.volume.clone(),
        at: arguments.at.clone(),
        target,
        overwrite: arguments.overwrite,
    })?;
    let ended = follow(client, &interrupt, started)?;
    match (ended.state, ended.error.clone()) {
        (JobState::Done, _) => console.show(&ended, text),
        (_, Some(error)) => Err(error.into()),
        (state, None) => Err(ended_early(&ended, state).into()),
    }
}

fn ended_early(ended: &Job, state: JobState) -> Failure {
    let how = if state == JobState::Cancelled { "cancelled" } else { "ended without a reason" };
    Failure::new(format!(
        "the restore of volume {} to {} was {how} at {} %; the file is not whole",
        ended.volume,
        ended.target.display(),
        job::percent(ended)
    ))
}

/// Waits until the job has ended, showing its progress; an interrupt cancels it.
fn follow(client: &Client, interrupt: &Interrupt, started: Job) -> Result<Job, Failure> {
    let mut progress = Progress::new(&started);
    let mut current = started;
    while current.state == JobState::Running {
        if interrupt.came_within(POLL) {
            progress.end();
            return cancel(client, interrupt, current.id);
        }
        current = client.job(current.id)?;
        progress.show(&current);
    }
    progress.end();
    Ok(current)
}

fn cancel(client: &Client, interrupt: &Interrupt, id: u64) -> Result<Job, Failure> {
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

/// Progress on standard error: a bar on a terminal, a line for each tenth elsewhere.
enum Progress {
    Bar(ProgressBar),
    Lines { next_percent: u64 },
}

impl Progress {
    fn new(started: &Job) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines { next_percent: 10 };
        }
        let bar = ProgressBar::new(started.total_bytes);
        let style =
            "{bar:30} {percent:>3} %  {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        bar.set_style(ProgressStyle::with_template(style).expect("the template is a constant"));
        Self::Bar(bar)
    }

    fn show(&mut self, current: &Job) {
        match self {
            Self::Bar(bar) => bar.set_position(current.done_bytes),
            Self::Lines { next_percent } => {
                let percent = job::percent(current);
                if percent >= *next_percent {
                    *next_percent = (percent / 10 + 1) * 10;
                    // Progress is a courtesy: a closed standard error must not end the work.
                    let _ = writeln!(std::io::stderr(), "{}", line(current));
                }
            }
        }
    }

    fn end(self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn line(current: &Job) -> String {
    format!(
        "{:>3} %  {} of {}",
        job::percent(current),
        render::size(current.done_bytes),
        render::size(current.total_bytes)
    )
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

    #[test]
    fn a_cancelled_restore_is_a_failure_that_names_the_file() {
        let failure = ended_early(&half_done(), JobState::Cancelled);
        assert_eq!(failure.exit_status(), 1);
        assert_eq!(
            failure.to_string(),
            "tidemark: the restore of volume disk to /srv/back.img was cancelled at 50 %; \
             the file is not whole"
        );
    }

    #[test]
    fn a_progress_line_is_plain() {
        assert_eq!(line(&half_done()), " 50 %  1.0 MiB of 2.0 MiB");
    }
}
