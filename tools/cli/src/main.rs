//! `tidemark`, the operator's tool: a thin frontend of the collector's control API.
//!
//! The command line comes in, an answer on standard output goes out. [`args`] gives names to what
//! was typed, one module for each group of commands calls the collector, [`render`] and
//! [`console`] write the answer. There is no state here and nothing to lose. Exit status: 0, 1
//! when the command failed, 2 when it made no sense.

mod agent;
mod args;
mod ask;
mod comparison;
mod console;
mod event;
mod export;
mod failure;
mod follow;
mod interrupt;
mod job;
mod journal;
mod point;
mod reload;
mod render;
mod restore;
mod seed;
mod status;
mod units;
mod volume;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use tidemark_collector::control::client::Client;

use args::{Arguments, Command};
use console::{Console, Stop};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) | Err(Stop::ReaderGone) => ExitCode::SUCCESS,
        Err(Stop::Failed(failure)) => {
            // With standard error closed too, the exit status is all that is left to say.
            let _ = writeln!(std::io::stderr(), "{failure}");
            ExitCode::from(failure.exit_status())
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the one place of this program that asks for the time; it is handed on from here"
)]
fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

fn run(arguments: &Arguments) -> Result<(), Stop> {
    let client = Client::new(&arguments.socket)?;
    let console = &mut Console::new(std::io::stdout().lock(), arguments.json, now());
    match &arguments.command {
        Command::Status => status::show(&client, console),
        Command::Volume(command) => volume::run(command, &client, console),
        Command::Point(command) => point::run(command, &client, console),
        Command::Agent(command) => agent::run(command, &client, console),
        Command::Reload => reload::run(&client, console),
        Command::Export(export) => export::run(export, &client, console),
        Command::Restore(restore) => restore::run(restore, &client, console),
        Command::Resync(arguments) => comparison::resync(arguments, &client, console),
        Command::Verify(arguments) => comparison::verify(arguments, &client, console),
        Command::Journal(command) => journal::run(command, &client, console),
        Command::Event(command) => event::run(command, &client, console),
        Command::Job(command) => job::run(command, &client, console),
    }
}
