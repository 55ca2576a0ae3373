//! One connection: a thread that reads frames, and one that drives the session with them, with
//! the volume's answers and with time.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, after, bounded, never, select};
use tidemark_wire::DecodeError;
use tidemark_wire::compare::Compare;
use tidemark_wire::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind};
use tidemark_wire::session::{Refuse, RefuseReason};

use super::compare::Comparer;
use super::owner::{Command, Opening};
use super::port::{Inbox, SessionPort};
use super::server::Shared;
use super::session::{Action, Close, Session};
use super::socket::Stream;
use super::volume::Volume;
use super::writer::WriterQueue;
use crate::storage::Storage;

/// Frames that were read and wait for the session.
const FRAMES_WAITING_MAX: usize = 2;
/// Longest wait of one write; a peer that does not read is as good as gone.
const WRITE_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long a refused peer may take to read why.
const LINGER_MAX: Duration = Duration::from_secs(1);

/// A connection that has a place among the sessions.
pub(super) struct Connection {
    pub(super) stream: Stream,
    pub(super) peer: String,
    pub(super) inbox: Arc<Inbox>,
}

enum Incoming {
    Frame { header: FrameHeader, kind: FrameKind, body: Vec<u8> },
    Broken(DecodeError),
    Lost(String),
}

/// Runs the session of a connection to its end.
pub(super) fn run<S: Storage>(connection: Connection, shared: &Shared<S>) {
    let reading = connection
        .stream
        .set_write_timeout(WRITE_WAIT_MAX)
        .and_then(|()| connection.stream.try_clone());
    let reading = match reading {
        Ok(reading) => reading,
        Err(error) => return tracing::warn!(peer = connection.peer, %error, "session not begun"),
    };
    let (sender, frames) = bounded(FRAMES_WAITING_MAX);
    std::thread::scope(|scope| {
        let reader = std::thread::Builder::new()
            .name("frames".into())
            .spawn_scoped(scope, move || read_frames(&reading, &sender));
        match reader {
            Ok(_) => Driver::new(&connection, shared, frames).run(),
            Err(error) => tracing::error!(%error, "no thread for a session"),
        }
        // The reader ends with the connection, and the scope with the reader.
        connection.stream.shutdown(Shutdown::Both);
    });
}

fn read_frames(stream: &Stream, frames: &Sender<Incoming>) {
    loop {
        let incoming = match read_frame(stream) {
            Ok(Ok((header, kind, body))) => Incoming::Frame { header, kind, body },
            Ok(Err(error)) => Incoming::Broken(error),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Incoming::Lost("the agent has closed the connection".into())
            }
            Err(error) => Incoming::Lost(error.to_string()),
        };
        let last = !matches!(incoming, Incoming::Frame { .. });
        if frames.send(incoming).is_err() || last {
            return;
        }
    }
}

type Frame = (FrameHeader, FrameKind, Vec<u8>);

fn read_frame(mut stream: &Stream) -> io::Result<Result<Frame, DecodeError>> {
    let mut bytes = [0; FRAME_HEADER_BYTES];
    stream.read_exact(&mut bytes)?;
    let (header, kind) = match FrameHeader::decode(&bytes) {
        Ok(decoded) => decoded,
        Err(error) => return Ok(Err(error)),
    };
    // Decoding has bounded the length.
    let mut body = vec![0; header.body_bytes.get() as usize];
    stream.read_exact(&mut body)?;
    Ok(Ok((header, kind, body)))
}

struct Driver<'a, S: Storage> {
    connection: &'a Connection,
    shared: &'a Shared<S>,
    frames: Receiver<Incoming>,
    session: Session,
    volume: Option<(Arc<Volume<S>>, WriterQueue)>,
    /// Begun with the first question.
    comparer: Option<Comparer>,
}

impl<'a, S: Storage> Driver<'a, S> {
    fn new(connection: &'a Connection, shared: &'a Shared<S>, frames: Receiver<Incoming>) -> Self {
        let session = Session::new(shared.clock.monotonic());
        Self { connection, shared, frames, session, volume: None, comparer: None }
    }

    fn run(mut self) {
        let (mut todo, mut out) = (VecDeque::new(), Vec::new());
        while !self.session.is_over() {
            self.wait(&mut out);
            todo.extend(out.drain(..));
            while let Some(action) = todo.pop_front() {
                self.perform(action, &mut out);
                // What an action has caused comes after what was decided before it.
                todo.extend(out.drain(..));
            }
        }
        if let Some(comparer) = self.comparer.take() {
            comparer.stop();
        }
        if let Some((_, queue)) = &self.volume {
            // A writer that has stopped needs no farewell.
            let _ = queue.send(Command::Closed(self.port()));
        }
    }

    /// Waits for the next event and gives it to the session.
    fn wait(&mut self, out: &mut Vec<Action>) {
        let timer = match self.session.due() {
            Some(due) => after(due.saturating_sub(self.shared.clock.monotonic())),
            None => never(),
        };
        select! {
            recv(self.connection.inbox.bell()) -> _ => {}
            recv(self.frames) -> incoming => self.receive(incoming.ok(), out),
            recv(timer) -> _ => {}
        }
        self.take_answers(out);
        self.session.tick(self.shared.clock.monotonic(), out);
    }

    fn receive(&mut self, incoming: Option<Incoming>, out: &mut Vec<Action>) {
        let now = self.shared.clock.monotonic();
        match incoming {
            Some(Incoming::Frame { header, kind, body }) => {
                self.connection.inbox.heard(now);
                self.session.frame(now, &header, kind, body, out);
            }
            Some(Incoming::Broken(error)) => self.session.broken(&error, out),
            Some(Incoming::Lost(why)) => self.session.lost(why, out),
            None => self.session.lost("the connection is gone".into(), out),
        }
    }

    fn take_answers(&mut self, out: &mut Vec<Action>) {
        let pending = self.connection.inbox.take();
        if let Some(answer) = pending.opened {
            if let Ok(welcome) = &answer {
                let name = self.volume.as_ref().map(|(volume, _)| volume.name());
                tracing::info!(
                    volume = name,
                    peer = self.connection.peer,
                    epoch = welcome.epoch.0,
                    durable = welcome.durable.0,
                    "session opened"
                );
            }
            self.session.opened(self.shared.clock.monotonic(), answer, out);
        }
        if let Some(seq) = pending.durable {
            self.session.durable(seq, out);
        }
        for wanted in &pending.bookmarks {
            self.session.bookmark(wanted, out);
        }
        for wanted in &pending.instructions {
            self.session.instruct(wanted, out);
        }
        for differ in &pending.differs {
            self.session.differed(differ, out);
        }
        if let Some(refusal) = pending.end {
            self.session.end(refusal, out);
        }
    }

    fn perform(&mut self, action: Action, out: &mut Vec<Action>) {
        match action {
            Action::Open(hello) => match self.shared.volumes.get_or_register(&hello) {
                Ok((volume, queue)) => {
                    let peer = self.connection.peer.clone();
                    let now = self.shared.clock.monotonic();
                    let opening = Opening { hello: *hello, peer, now, port: self.port() };
                    self.volume = Some((volume, queue));
                    self.command(Command::Open(Box::new(opening)), out);
                }
                Err(refusal) => {
                    self.session.opened(self.shared.clock.monotonic(), Err(refusal), out);
                }
            },
            Action::Append(batch) => self.command(Command::Append(batch), out),
            Action::Progress(progress) => {
                if let Some((volume, _)) = &self.volume {
                    volume.set_progress(progress);
                }
            }
            Action::Standing { epoch, standing } => {
                if let Some((volume, _)) = &self.volume {
                    volume.set_standing(standing);
                }
                self.command(Command::Standing { epoch, standing }, out);
            }
            Action::Obeyed(id) => {
                if let Some((volume, _)) = &self.volume {
                    volume.set_obeyed(id);
                }
            }
            Action::Verified(verified) => {
                if let Some((volume, _)) = &self.volume {
                    volume.set_verified(verified);
                }
            }
            Action::Compare(question) => self.compare(*question, out),
            Action::Send(bytes) => {
                if let Err(error) = (&self.connection.stream).write_all(&bytes) {
                    self.session.lost(error.to_string(), out);
                }
            }
            Action::Close(close) => self.closed(&close),
        }
    }

    fn compare(&mut self, question: Compare, out: &mut Vec<Action>) {
        let Some((volume, _)) = &self.volume else { return };
        let asked = match &self.comparer {
            Some(comparer) => comparer.ask(question),
            None => Comparer::start(Arc::clone(volume), Arc::clone(&self.connection.inbox))
                .is_ok_and(|comparer| self.comparer.insert(comparer).ask(question)),
        };
        if !asked {
            let text = "no thread to compare the volume with".to_owned();
            self.session.end(Refuse { reason: RefuseReason::Unavailable, text }, out);
        }
    }

    fn port(&self) -> Arc<dyn SessionPort> {
        self.connection.inbox.clone()
    }

    fn command(&mut self, command: Command, out: &mut Vec<Action>) {
        let sent = self.volume.as_ref().is_some_and(|(_, queue)| queue.send(command).is_ok());
        if !sent {
            let text = "the collector is stopping".to_owned();
            self.session.end(Refuse { reason: RefuseReason::Stopping, text }, out);
        }
    }

    fn closed(&self, close: &Close) {
        let volume = self.volume.as_ref().map(|(volume, _)| volume.name());
        let peer = &self.connection.peer;
        match close {
            Close::Goodbye => tracing::info!(volume, peer, "session ended by the agent"),
            Close::Lost(why) => tracing::info!(volume, peer, why, "session lost"),
            Close::Refused(Refuse { reason, text }) => {
                tracing::warn!(volume, peer, ?reason, why = text, "session refused");
                self.linger();
            }
        }
    }

    /// Lets the peer read why: a connection that is closed while bytes of the peer wait unread
    /// is reset, and takes the refusal with it.
    fn linger(&self) {
        self.connection.stream.shutdown(Shutdown::Write);
        let limit = self.shared.clock.monotonic() + LINGER_MAX;
        loop {
            let left = limit.saturating_sub(self.shared.clock.monotonic());
            match self.frames.recv_timeout(left) {
                Ok(Incoming::Frame { .. }) if !left.is_zero() => {}
                Ok(_) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}
