//! Follows a job to its end, with its progress on standard error: a bar on a terminal, a line for
//! each tenth elsewhere. An interrupt cancels the job and waits until it has ended.

use std::io::{IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};
use tidemark_collector::control::api::{Job, JobState};
use tidemark_collector::control::client::Client;

use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::job::{self, POLL};
use crate::render;

/// Waits until the job has ended; an interrupt cancels it.
pub(crate) fn to_the_end(
    client: &Client,
    interrupt: &Interrupt,
    started: Job,
) -> Result<Job, Failure> {
    let mut progress = Progress::new(&started);
    let mut current = started;
    while current.state == JobState::Running {
        if interrupt.came_within(POLL) {
            progress.end();
            return job::cancel(client, interrupt, current.id);
        }
        current = client.job(current.id)?;
        progress.show(&current);
    }
    progress.end();
    Ok(current)
}

/// Why a job has not done what it should, and how to go on.
pub(crate) fn ended_early(ended: &Job, what: &str, consequence: &str) -> Failure {
    let failure = match (&ended.error, ended.state) {
        (Some(error), _) => Failure::from(error.clone()),
        (None, state) => {
            let how = match state {
                JobState::Cancelled => "cancelled",
                JobState::Interrupted => "interrupted by the collector's stop",
                _ => "ended without a reason",
            };
            Failure::new(format!(
                "the {what} of volume {} ({}) was {how} at {} %; {consequence}",
                ended.volume,
                ended.target.display(),
                job::percent(ended)
            ))
        }
    };
    match &ended.go_on {
        Some(command) => failure.with_hint(format!("go on with: {command}")),
        None => failure,
    }
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
    use super::*;
    use crate::job::tests::half_done;

    #[test]
    fn a_cancelled_restore_is_a_failure_that_says_how_to_go_on() {
        let ended = Job {
            state: JobState::Cancelled,
            go_on: Some("tidemark restore disk --at seq:12 --to /srv/back.img".into()),
            ..half_done()
        };
        let failure = ended_early(&ended, "restore", "it is not whole");
        assert_eq!(failure.exit_status(), 1);
        assert_eq!(
            failure.to_string(),
            "tidemark: the restore of volume disk (/srv/back.img) was cancelled at 50 %; it is \
             not whole\n  go on with: tidemark restore disk --at seq:12 --to /srv/back.img"
        );
    }

    #[test]
    fn a_progress_line_is_plain() {
        assert_eq!(line(&half_done()), " 50 %  1.0 MiB of 2.0 MiB");
    }
}
