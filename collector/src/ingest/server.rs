//! Sockets and threads around the sessions.
//!
//! What enters: connections of agents, at most `sessions_max` at a time. What leaves: commands
//! to the volumes' writers. Each connection has a thread that reads frames and one that drives
//! the state machine; between them wait at most [`FRAMES_WAITING_MAX`] frames, so a session
//! holds a few frames of memory whatever its peer does.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tidemark_wire::frame::{self, FrameKind};
use tidemark_wire::session::{Refuse, RefuseReason};

use super::connection::{self, Connection};
use super::port::{Inbox, SessionPort};
use super::socket::{Listener, Stream};
use super::volumes::Volumes;
use crate::error::{Failure, Result};
use crate::seam::Clock;
use crate::storage::Storage;

/// How long a stop waits for sessions to end.
const STOP_WAIT_MAX: Duration = Duration::from_secs(5);
/// Wait after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What all sessions share.
pub(super) struct Shared<S: Storage> {
    pub(super) volumes: Arc<Volumes<S>>,
    pub(super) clock: Arc<dyn Clock>,
    sessions_max: usize,
    stopping: AtomicBool,
    sessions: Mutex<Sessions>,
    changed: Condvar,
}

#[derive(Default)]
struct Sessions {
    next: u64,
    open: HashMap<u64, Arc<Inbox>>,
}

/// Takes sessions until it is stopped.
pub struct IngestServer<S: Storage> {
    shared: Arc<Shared<S>>,
    listeners: Vec<(Arc<Listener>, JoinHandle<()>)>,
}

impl<S: Storage> IngestServer<S> {
    /// Starts to take sessions.
    ///
    /// # Errors
    /// When a thread can't be made.
    pub fn start(
        listeners: Vec<Listener>,
        volumes: Arc<Volumes<S>>,
        clock: Arc<dyn Clock>,
        sessions_max: usize,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            volumes,
            clock,
            sessions_max,
            stopping: AtomicBool::new(false),
            sessions: Mutex::default(),
            changed: Condvar::new(),
        });
        let mut server = Self { shared, listeners: Vec::new() };
        for listener in listeners {
            let (listener, shared) = (Arc::new(listener), Arc::clone(&server.shared));
            let own = Arc::clone(&listener);
            let thread = std::thread::Builder::new()
                .name("accept".into())
                .spawn(move || accept(&own, &shared))
                .map_err(|source| Failure::unavailable(format!("no thread: {source}")))?;
            server.listeners.push((listener, thread));
        }
        Ok(server)
    }

    /// Sessions that are open.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.shared.lock().open.len()
    }

    /// Tells every session that the collector stops, and waits for them, a bounded time.
    pub fn stop(self) {
        // Pairs with the load in `accept`; the wake-up below comes after it in any case.
        self.shared.stopping.store(true, Ordering::Release);
        for (listener, thread) in self.listeners {
            if listener.wake().is_ok() && thread.join().is_err() {
                tracing::error!("a thread that accepts sessions has panicked");
            }
        }
        let sessions = self.shared.lock();
        for inbox in sessions.open.values() {
            let text = "the collector is stopping".to_owned();
            inbox.end(Refuse { reason: RefuseReason::Stopping, text });
        }
        let waited = self
            .shared
            .changed
            .wait_timeout_while(sessions, STOP_WAIT_MAX, |sessions| !sessions.open.is_empty());
        let (sessions, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if !sessions.open.is_empty() {
            tracing::warn!(sessions = sessions.open.len(), "sessions did not end in time");
        }
    }
}

fn accept<S: Storage>(listener: &Listener, shared: &Arc<Shared<S>>) {
    loop {
        let accepted = listener.accept();
        // Pairs with the store in `stop`.
        if shared.stopping.load(Ordering::Acquire) {
            return;
        }
        match accepted {
            Ok((stream, peer)) => shared.take(stream, peer),
            Err(error) if is_of_the_peer(&error) => {}
            Err(error) => {
                tracing::error!(address = %listener.address(), %error, "can't accept a session");
                // Other sessions may end meanwhile and give back what is missing.
                let pause = crossbeam_channel::after(ACCEPT_PAUSE);
                let _ = pause.recv();
            }
        }
    }
}

/// True for an error of one connection, which is gone already.
fn is_of_the_peer(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted)
}

impl<S: Storage> Shared<S> {
    fn take(self: &Arc<Self>, stream: Stream, peer: String) {
        let Some((id, inbox)) = self.register() else {
            let max = self.sessions_max;
            tracing::warn!(peer, max, "session refused: too many are open");
            let text = format!("the collector has {max} sessions open (sessions_max)");
            return turn_away(&stream, RefuseReason::Unavailable, text);
        };
        let shared = Arc::clone(self);
        let run = move || {
            connection::run(Connection { stream, peer, inbox }, &shared);
            shared.forget(id);
        };
        if let Err(error) = std::thread::Builder::new().name("session".into()).spawn(run) {
            tracing::error!(%error, "no thread for a session");
            self.forget(id);
        }
    }

    fn register(&self) -> Option<(u64, Arc<Inbox>)> {
        let mut sessions = self.lock();
        if sessions.open.len() >= self.sessions_max {
            return None;
        }
        let (id, inbox) = (sessions.next, Arc::<Inbox>::default());
        sessions.next += 1;
        sessions.open.insert(id, Arc::clone(&inbox));
        Some((id, inbox))
    }

    fn forget(&self, id: u64) {
        self.lock().open.remove(&id);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses a connection that gets no session. The frame fits into the socket's buffer, so this
/// does not wait.
fn turn_away(stream: &Stream, reason: RefuseReason, text: String) {
    let (mut body, mut bytes) = (Vec::new(), Vec::new());
    Refuse { reason, text }.encode(&mut body);
    frame::encode(FrameKind::Refuse, &body, &mut bytes);
    let mut stream = stream;
    let _ = io::Write::write_all(&mut stream, &bytes);
}
