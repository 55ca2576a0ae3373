//! Asks the running agent.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, bail};

use super::api::{ANSWER_BYTES_MAX, Answer, Request};

/// Sends `request` to the agent that listens on `socket`, and waits for its answer as long as
/// that takes.
///
/// # Errors
/// When no agent is reached, and what the agent refuses.
pub fn ask(socket: &Path, request: &Request) -> anyhow::Result<Answer> {
    let place = socket.display();
    let mut stream = UnixStream::connect(socket).with_context(|| {
        format!(
            "no agent is reached on {place}; is it running? --socket names another control socket"
        )
    })?;
    let mut line = serde_json::to_vec(request).context("encode the request")?;
    line.push(b'\n');
    stream.write_all(&line).with_context(|| format!("ask the agent on {place}"))?;
    let mut answer = String::new();
    let read = BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut answer);
    if read.with_context(|| format!("answer of the agent on {place}"))? == 0 {
        bail!("the agent on {place} went away without an answer; see its log");
    }
    let answer = serde_json::from_str(&answer).with_context(|| {
        format!("answer of the agent on {place}; is this program of the same version?")
    })?;
    match answer {
        Answer::Refused { message } => bail!("{message}"),
        answer => Ok(answer),
    }
}
