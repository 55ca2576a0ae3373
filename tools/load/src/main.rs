//! Load generators and witnesses for the tests.

mod clock;
mod nbd;
mod random;
mod witness;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "tidemark-load", version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    load: Load,
}

#[derive(Debug, Subcommand)]
enum Load {
    /// Writes to a protected disk, keeps a log outside, and checks what comes back against it.
    #[command(subcommand)]
    Witness(witness::command::Command),
}

fn main() -> ExitCode {
    let Load::Witness(command) = Arguments::parse().load;
    match witness::command::run(&command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidemark-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}
