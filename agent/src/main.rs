//! `tidemark-agent`: the daemon of a machine whose disks are protected, and how a person asks the
//! running one.
//!
//! Exit status: 0 after a clean stop or when the request was granted, 1 when something failed, 2
//! for wrong usage, a wrong configuration included.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tidemark_agent::attach::Via;
use tidemark_agent::config::{CONTROL_SOCKET_DEFAULT, Config};
use tidemark_agent::control::api::{Answer, Request};
use tidemark_agent::control::{client, render};
use tidemark_agent::{daemon, inspect};

const CONFIG_PATH_DEFAULT: &str = "/etc/tidemark/agent.toml";

/// Serves protected disks over NBD and FUSE, captures every write and ships it to a collector.
#[derive(Parser)]
#[command(version)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    /// The configuration file; without a command the agent runs until it gets SIGTERM or SIGINT,
    /// and reads the file anew at SIGHUP.
    #[arg(long, default_value = CONFIG_PATH_DEFAULT)]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Makes a volume a block device of this machine and prints the device's path.
    Attach {
        /// The volume's name.
        volume: String,
        /// How: nbd (the kernel's NBD client), ublk (the kernel's ublk driver), or loop (a loop
        /// device over the FUSE directory); without it the first of them that this machine has.
        /// When the agent stops or dies, a device of ublk waits for the next agent without limit,
        /// one of nbd as long as the configuration says; a loop device fails.
        #[arg(long)]
        via: Option<Via>,
        #[command(flatten)]
        running: Running,
    },
    /// Takes the block device of a volume away; refused while somebody uses it.
    Detach {
        /// The volume's name.
        volume: String,
        #[command(flatten)]
        running: Running,
    },
    /// Lists the volumes: state, size, users, device.
    List {
        /// For programs: JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        running: Running,
    },
    /// Lets the running agent look at once whether the backing store of a volume was grown or
    /// shrunk, and take its size; it looks by itself every second.
    Resize {
        /// The volume's name.
        volume: String,
        #[command(flatten)]
        running: Running,
    },
    /// Lets the running agent read its configuration anew, and says what changed.
    Reload {
        /// For programs: JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        running: Running,
    },
    /// Checks a configuration without running it.
    Check {
        /// The configuration file.
        #[arg(long, default_value = CONFIG_PATH_DEFAULT)]
        config: PathBuf,
    },
    /// Looks into a change ring.
    #[command(subcommand)]
    Ring(RingCommand),
}

/// Which agent is asked.
#[derive(Args)]
struct Running {
    /// The control socket of the running agent.
    #[arg(long, env = "TIDEMARK_AGENT_SOCKET", default_value = CONTROL_SOCKET_DEFAULT)]
    socket: PathBuf,
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
    let (result, wrong) = match arguments.command {
        None => match Config::load(&arguments.config) {
            Ok(config) => (daemon::run(config, &arguments.config), ExitCode::FAILURE),
            Err(error) => (Err(error.into()), ExitCode::from(2)),
        },
        Some(Command::Check { config }) => (check(&config), ExitCode::from(2)),
        Some(command) => (run(command), ExitCode::FAILURE),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidemark-agent: {}", explain(&error));
            wrong
        }
    }
}

fn check(path: &Path) -> anyhow::Result<()> {
    daemon::check(&Config::load(path)?, path)?;
    print(&[format!("{} is good", path.display())])
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Attach { volume, via, running } => {
            let answer = client::ask(&running.socket, &Request::Attach { volume, via })?;
            let Answer::Attached { attached } = answer else { return Err(unexpected(&answer)) };
            for note in &attached.notes {
                eprintln!("note: {note}");
            }
            print(&[attached.device.display().to_string()])
        }
        Command::Detach { volume, running } => {
            let answer = client::ask(&running.socket, &Request::Detach { volume })?;
            let Answer::Detached { .. } = answer else { return Err(unexpected(&answer)) };
            Ok(())
        }
        Command::Resize { volume, running } => {
            let answer = client::ask(&running.socket, &Request::Resize { volume })?;
            let Answer::Resized { old_bytes, new_bytes, notes } = answer else {
                return Err(unexpected(&answer));
            };
            for note in &notes {
                eprintln!("note: {note}");
            }
            print(&[render::resized(old_bytes, new_bytes)])
        }
        Command::List { json, running } => {
            let answer = client::ask(&running.socket, &Request::List)?;
            let Answer::Volumes { volumes } = answer else { return Err(unexpected(&answer)) };
            if json {
                print(&[serde_json::to_string(&volumes)?])
            } else {
                print(&render::table(&volumes))
            }
        }
        Command::Reload { json, running } => {
            let answer = client::ask(&running.socket, &Request::Reload)?;
            let Answer::Reloaded { report } = answer else { return Err(unexpected(&answer)) };
            if json {
                print(&[serde_json::to_string(&report)?])?;
            } else {
                print(&report.lines())?;
            }
            anyhow::ensure!(report.problems.is_empty(), "not everything could be done, see above");
            Ok(())
        }
        Command::Check { config } => check(&config),
        Command::Ring(RingCommand::Dump { file }) => {
            let all_hold = inspect::print_ring(&file, &mut std::io::stdout().lock())?;
            anyhow::ensure!(all_hold, "{}: damaged records", file.display());
            Ok(())
        }
    }
}

fn unexpected(answer: &Answer) -> anyhow::Error {
    anyhow::anyhow!("the agent answers something else than was asked: {answer:?}")
}

/// Prints lines; a reader that has seen enough is no failure.
fn print(lines: &[String]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in lines {
        match writeln!(out, "{line}") {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
    }
    Ok(())
}

/// The error and its causes, each said once: many texts already hold that of their cause.
fn explain(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |said, cause| match cause.to_string() {
        text if said.contains(&text) => said,
        text if said.is_empty() => text,
        text => format!("{said}: {text}"),
    })
}
