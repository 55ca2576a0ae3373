//! `tidemark-agent`: the daemon of a machine whose disks are protected.
//!
//! Exit status: 0 after a clean stop, 1 when something failed, 2 for wrong usage, a wrong
//! configuration included.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tidemark_agent::config::Config;
use tidemark_agent::{daemon, inspect};

/// Serves protected disks over NBD and FUSE, captures every write and ships it to a collector.
#[derive(Parser)]
#[command(version)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    /// The configuration file; without a command the agent runs until it gets SIGTERM or SIGINT.
    #[arg(long, default_value = "/etc/tidemark/agent.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Looks into a change ring.
    #[command(subcommand)]
    Ring(RingCommand),
}

#[derive(Subcommand)]
enum RingCommand {
    /// Lists the complete records of a ring file and checks their checksums; the agent may be
    /// running or not.
    Dump {
        /// The ring file, RING_DIR/VOLUME-ID.ring.
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("TIDEMARK_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    let result = match arguments.command {
        None => match Config::load(&arguments.config) {
            Ok(config) => daemon::run(&config),
            Err(error) => {
                eprintln!("tidemark-agent: {error}");
                return ExitCode::from(2);
            }
        },
        Some(Command::Ring(RingCommand::Dump { file })) => {
            match inspect::print_ring(&file, &mut std::io::stdout().lock()) {
                Ok(true) => Ok(()),
                Ok(false) => Err(anyhow::anyhow!("{}: damaged records", file.display())),
                Err(error) => Err(error),
            }
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidemark-agent: {}", explain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, each said once: many texts already hold that of their cause.
fn explain(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |said, cause| match cause.to_string() {
        text if said.contains(&text) => said,
        text if said.is_empty() => text,
        text => format!("{said}: {text}"),
    })
}
