//! Takes requests from the control socket.
//!
//! In: one line of JSON for each connection. Out: the line that the asked one gives back. Each
//! connection has a thread, [`CONNECTIONS_MAX`] at one time; who comes beyond them is told so. A
//! client gets [`LINE_PATIENCE`] to say what it wants, and no limit to wait for the answer.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{Shutdown, shutdown};
use nix::sys::stat::{Mode, umask};
use tidemark_block::engine::socket::{Address, Listener};

use super::api::{Answer, REQUEST_BYTES_MAX, Request};
use crate::clock::Clock;

/// Connections at one time.
const CONNECTIONS_MAX: usize = 16;
/// How long a client may take to send its line, or to take the answer.
const LINE_PATIENCE: Duration = Duration::from_secs(10);
/// Rest after a failed accept: out of descriptors, most of the time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Answers a request; may block.
pub type Ask = dyn Fn(Request) -> Answer + Send + Sync;

/// A control socket on which nobody is answered yet.
pub struct ControlSocket {
    listener: Listener,
}

impl ControlSocket {
    /// Listens at `path`, which only the owner of the process can open. To be called while the
    /// process has one thread, since the mask of new files is the whole process's.
    ///
    /// # Errors
    /// As [`Listener::bind`]: also when a living process listens there.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let before = umask(Mode::from_bits_truncate(0o177));
        let listener = Listener::bind(&Address::Unix(path.to_owned()));
        umask(before);
        Ok(Self { listener: listener? })
    }

    /// Answers who connects, with what `ask` gives.
    ///
    /// # Errors
    /// The operating system's.
    pub fn serve(self, ask: Arc<Ask>, clock: Arc<dyn Clock>) -> io::Result<Server> {
        let socket = UnixListener::from(self.listener.as_fd().try_clone_to_owned()?);
        let stopping = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stopping);
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || accept_all(&socket, &ask, clock.as_ref(), &told))?;
        Ok(Server { listener: self.listener, stopping, thread })
    }
}

/// A served control socket.
pub struct Server {
    listener: Listener,
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Takes no more connections, and takes the socket's file away. Those that are open end with
    /// their answer, or with the process.
    pub fn stop(self) {
        // Release pairs with the acquire in `accept_all`.
        self.stopping.store(true, Ordering::Release);
        if let Err(error) = shutdown(self.listener.as_fd().as_raw_fd(), Shutdown::Both) {
            // The thread then ends with the process.
            tracing::warn!("control socket: can't be shut down: {error}");
            return;
        }
        if self.thread.join().is_err() {
            tracing::error!("control socket: its thread panicked");
        }
    }
}

fn accept_all(socket: &UnixListener, ask: &Arc<Ask>, clock: &dyn Clock, stopping: &AtomicBool) {
    // Each connection holds a clone.
    let places = Arc::new(());
    loop {
        let accepted = socket.accept();
        // Acquire pairs with the release in `Server::stop`.
        if stopping.load(Ordering::Acquire) {
            return;
        }
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("control socket: can't take a connection: {error}");
                clock.sleep(ACCEPT_PAUSE);
                continue;
            }
        };
        if Arc::strong_count(&places) > CONNECTIONS_MAX {
            let message = format!("{CONNECTIONS_MAX} others are asking already; try again");
            said(respond(&stream, &Answer::Refused { message }));
            continue;
        }
        let (place, ask) = (Arc::clone(&places), Arc::clone(ask));
        let started = std::thread::Builder::new().name("control-client".into()).spawn(move || {
            said(converse(&stream, ask.as_ref()));
            drop(place);
        });
        if let Err(error) = started {
            tracing::warn!("control socket: no thread for a connection: {error}");
        }
    }
}

/// A client that went away is no failure of the agent.
fn said(result: io::Result<()>) {
    if let Err(error) = result {
        tracing::debug!("control socket: a client was not answered: {error}");
    }
}

fn converse(stream: &UnixStream, ask: &Ask) -> io::Result<()> {
    stream.set_read_timeout(Some(LINE_PATIENCE))?;
    let mut line = String::new();
    let read = BufReader::new(stream.take(REQUEST_BYTES_MAX)).read_line(&mut line)?;
    if read == 0 {
        return Ok(());
    }
    let answer = match serde_json::from_str(&line) {
        Ok(request) => ask(request),
        Err(error) => Answer::Refused {
            message: format!(
                "the agent does not understand the request ({error}); is the program of the same \
                 version as the running agent?"
            ),
        },
    };
    respond(stream, &answer)
}

fn respond(mut stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    stream.set_write_timeout(Some(LINE_PATIENCE))?;
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    stream.write_all(&line)
}
