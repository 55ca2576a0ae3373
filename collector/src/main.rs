//! The collector's daemon. Exit status 0, 1 (failed), 2 (wrong usage or configuration).

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nix::sys::stat::{Mode, umask};
use tidemark_collector::config::{CONFIG_PATH_DEFAULT, Config};
use tidemark_collector::daemon;
use tidemark_collector::error::Result;
use tokio::signal::unix::{SignalKind, signal};

/// Journals the changes of protected disks and gives back any state of them.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// The configuration; without it /etc/tidemark/collector.toml, where every key has a default
    /// and the file may be missing. Without a command the daemon runs in the foreground until
    /// SIGTERM or SIGINT.
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Says whether a configuration is right, and if not, where and what to do. Nothing is started.
    Check {
        /// The configuration; without it the one that the daemon would use.
        #[arg(long, value_name = "PATH")]
        config: Option<PathBuf>,
    },
    /// Says what is in a segment file of a journal, and whether it is whole.
    Inspect {
        /// The segment file.
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        None => run(arguments.config.as_deref()),
        Some(Command::Check { config }) => check(config.as_deref()),
        Some(Command::Inspect { file }) => inspect(&file),
    }
}

fn run(config: Option<&Path>) -> ExitCode {
    let config = match Config::load(config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("tidemark-collector: {error}");
            return ExitCode::from(2);
        }
    };
    daemon::log::start();
    // Whatever is made from here on is for this user only.
    umask(Mode::from_bits_truncate(0o077));
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn check(config: Option<&Path>) -> ExitCode {
    match Config::load(config) {
        Ok(config) => {
            let file = config.file.as_deref().unwrap_or(Path::new(CONFIG_PATH_DEFAULT));
            print(&format!("{} is good\n", file.display()), ExitCode::SUCCESS)
        }
        Err(error) => {
            eprintln!("tidemark-collector: {error}");
            ExitCode::from(2)
        }
    }
}

/// Prints an answer and ends with `status`, unless that does not work.
fn print(text: &str, status: ExitCode) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // A reader that has seen enough is no failure.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!("tidemark-collector: can't write the answer: {error}");
            ExitCode::FAILURE
        }
        _ => status,
    }
}

fn serve(config: Config) -> Result<()> {
    use tidemark_collector::error::Failure;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime
        .map_err(|error| Failure::internal(format!("no event loop: {error}")).because(error))?;
    runtime.block_on(async {
        let failed = |error| Failure::internal(format!("no signals: {error}"));
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        daemon::run(config, stop, |_| ()).await
    })
}

fn inspect(file: &Path) -> ExitCode {
    match daemon::inspect::describe(file) {
        Ok((text, whole)) => {
            print(&text, if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Err(error) => {
            eprintln!("tidemark-collector: {error}");
            ExitCode::FAILURE
        }
    }
}
