//! One session from the dial to its end.

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use tidemark_wire::body::{Bookmark, GapReason};
use tidemark_wire::frame::{self, FrameKind};
use tidemark_wire::session::{Ack, Hello, Progress, Refuse, Token, Welcome};
use tidemark_wire::{DecodeError, RecordKind, Seq, SessionToken};

use super::batch::{Batch, FrameContext};
use super::link::{Link, ReceiveError, receive_frame};
use super::session::{PendingToken, Verdict, Window, judge};
use super::{Drained, ShipperParts, StopSignal};
use crate::capture::phase::{CopyCause, Phase};
use crate::ring::order::Ticket;
use crate::ring::{Consumer, Next};

/// Messages of the collector that wait to be looked at, at most; then its reader waits.
const EVENTS_MAX: usize = 256;
/// How long the thread sleeps when there is nothing to do: also how late it notices a stop.
const IDLE: Duration = Duration::from_millis(50);
/// How often the collector is told how far a copy is.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("can't connect: {0}")]
    Dial(io::Error),
    #[error("connection lost: {0}")]
    Lost(io::Error),
    #[error("refused: {}", .0.text)]
    Refused(Refuse),
    #[error("the collector broke the protocol: {0}")]
    Protocol(String),
    #[error("{0}")]
    Ended(Box<StreamError>),
}

impl StreamError {
    /// True when the collector had accepted the session before.
    pub(super) fn had_session(&self) -> bool {
        matches!(self, Self::Ended(_))
    }
}

impl From<ReceiveError> for StreamError {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Lost(error) => Self::Lost(error),
            ReceiveError::Protocol(error) => error.into(),
        }
    }
}

impl From<DecodeError> for StreamError {
    fn from(error: DecodeError) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// What the collector says during a session.
enum Event {
    Durable(Seq),
    Token(SessionToken),
    Bookmark(Bookmark),
    End(StreamError),
}

/// Dials, opens a session and serves it until it ends or the shipper is stopped.
pub(super) fn serve(
    parts: &ShipperParts,
    consumer: &mut Consumer,
    stop: &StopSignal,
) -> Result<Drained, StreamError> {
    let Link { mut reader, mut writer, closer } = parts.dial.dial().map_err(StreamError::Dial)?;
    let hello = hello(parts);
    let welcome = handshake(&hello, reader.as_mut(), writer.as_mut())?;
    let mut session = Session::open(parts, consumer, &hello, &welcome);
    let (events, inbox) = bounded(EVENTS_MAX);
    thread::scope(|scope| {
        let ring = parts.capture.ring();
        scope.spawn(move || {
            read_events(reader.as_mut(), &events);
            ring.wake_consumer();
        });
        let ended = session.run(consumer, writer.as_mut(), &inbox, stop);
        // Ends the reader: it either waits in a read or for room in the inbox.
        closer();
        drop(inbox);
        ended.map_err(|error| StreamError::Ended(Box::new(error)))
    })
}

fn hello(parts: &ShipperParts) -> Hello {
    let (capture, facts, state) = (&parts.capture, &parts.facts, parts.state.get());
    let released = capture.ring().released_seq().max(state.released);
    Hello {
        agent: parts.agent,
        volume: facts.id,
        journal: state.journal,
        timeline: state.timeline,
        epoch: state.epoch,
        released,
        newest: Seq(capture.ring().next_seq().0.saturating_sub(1)).max(released),
        size_bytes: facts.size_bytes,
        block_bytes: facts.block_bytes,
        name: capture.name().to_owned(),
    }
}

fn handshake(
    hello: &Hello,
    reader: &mut dyn io::Read,
    writer: &mut dyn Write,
) -> Result<Welcome, StreamError> {
    let (mut body, mut out) = (Vec::new(), Vec::new());
    hello.encode(&mut body);
    frame::encode(FrameKind::Hello, &body, &mut out);
    writer.write_all(&out).map_err(StreamError::Lost)?;
    match receive_frame(reader, &mut body)? {
        FrameKind::Welcome => Ok(Welcome::decode(&body)?),
        FrameKind::Refuse => Err(StreamError::Refused(Refuse::decode(&body)?)),
        other => Err(StreamError::Protocol(format!("{other:?} instead of a welcome"))),
    }
}

fn read_events(reader: &mut dyn io::Read, events: &Sender<Event>) {
    let mut body = Vec::new();
    loop {
        let event = next_event(reader, &mut body).unwrap_or_else(Event::End);
        let is_end = matches!(event, Event::End(_));
        if events.send(event).is_err() || is_end {
            return;
        }
    }
}

fn next_event(reader: &mut dyn io::Read, body: &mut Vec<u8>) -> Result<Event, StreamError> {
    Ok(match receive_frame(reader, body)? {
        FrameKind::Ack => Event::Durable(Seq(Ack::decode(body)?.durable.get())),
        FrameKind::Token => Event::Token(SessionToken(Token::decode(body)?.token.get())),
        FrameKind::BookmarkRequest => Event::Bookmark(Bookmark::decode(body)?),
        FrameKind::Refuse => return Err(StreamError::Refused(Refuse::decode(body)?)),
        FrameKind::Goodbye => return Err(StreamError::Lost(io::ErrorKind::ConnectionReset.into())),
        other => return Err(StreamError::Protocol(format!("unexpected {other:?}"))),
    })
}

struct Session<'a> {
    parts: &'a ShipperParts,
    welcome: Welcome,
    window: Window,
    token: PendingToken,
    batch: Batch,
    /// Last record that was sent, or that the collector held at the start.
    last_sent: Seq,
    /// Until a copy's first record at or behind this ticket, records are dropped.
    drop_until: Option<Ticket>,
    next_progress: Duration,
}

impl<'a> Session<'a> {
    fn open(
        parts: &'a ShipperParts,
        consumer: &mut Consumer,
        hello: &Hello,
        welcome: &Welcome,
    ) -> Self {
        let capture = &parts.capture;
        let verdict = judge(hello, welcome, parts.state.get().copied, capture.phases().phase());
        let mut drop_until = None;
        match verdict {
            Verdict::Resume => {}
            Verdict::ResumeAndCopy(cause) => capture.want_copy(cause),
            Verdict::CopyAnew(cause) => {
                // Numbers that the collector holds are never given out again.
                capture.ring().raise_seq(welcome.durable);
                // Before the wish: the copy may begin at once, and its first record is the one
                // that the stream goes on with.
                drop_until = Some(capture.ring().tail_ticket());
                capture.want_copy(cause);
            }
        }
        let kept = parts.state.update(|state| {
            let fits = matches!(verdict, Verdict::Resume);
            state.copied &= fits;
            state.journal = welcome.journal;
            state.timeline = welcome.timeline;
            state.epoch = welcome.epoch;
        });
        if let Err(error) = kept {
            // The collector's span says the same at the next start.
            tracing::error!(volume = capture.name(), "{error}");
        }
        consumer.rewind_to(if drop_until.is_some() { Seq(0) } else { welcome.durable });
        tracing::info!(
            volume = capture.name(),
            "session {} with journal {}: the collector holds everything up to record {}{}",
            welcome.epoch,
            welcome.journal,
            welcome.durable,
            if verdict == Verdict::Resume { "" } else { "; a copy is made" }
        );
        Self {
            parts,
            welcome: *welcome,
            window: Window::new(welcome.window_bytes),
            token: PendingToken::default(),
            batch: Batch::default(),
            last_sent: welcome.durable,
            drop_until,
            next_progress: parts.clock.monotonic(),
        }
    }

    fn run(
        &mut self,
        consumer: &mut Consumer,
        writer: &mut dyn Write,
        inbox: &Receiver<Event>,
        stop: &StopSignal,
    ) -> Result<Drained, StreamError> {
        self.release(consumer, self.welcome.durable);
        loop {
            self.take_events(consumer, inbox)?;
            if stop.now() {
                return Ok(Drained::No);
            }
            self.say_progress(writer)?;
            if !self.window.is_open() {
                match inbox.recv_timeout(IDLE) {
                    Ok(event) => self.handle(consumer, event)?,
                    Err(_) => continue,
                }
                continue;
            }
            self.gather(consumer);
            if !self.batch.is_empty() || self.token.is_due(consumer.cursor().0) {
                self.send(consumer, writer)?;
            } else if stop.when_drained() && self.all_acknowledged(consumer) {
                let mut out = Vec::new();
                frame::encode(FrameKind::Goodbye, &[], &mut out);
                writer.write_all(&out).map_err(StreamError::Lost)?;
                return Ok(if self.is_whole() { Drained::Yes } else { Drained::No });
            } else {
                consumer.wait(IDLE);
            }
        }
    }

    fn all_acknowledged(&self, consumer: &Consumer) -> bool {
        let all_sent = consumer.cursor() >= self.parts.capture.ring().tail_ticket();
        all_sent && self.window.is_empty()
    }

    /// True when no change is missing from the stream. A copy that the stop of the volume has
    /// ended in the middle is not waited for.
    fn is_whole(&self) -> bool {
        let capture = &self.parts.capture;
        capture.is_on() && matches!(capture.phases().phase(), Phase::Whole { .. })
    }

    fn take_events(
        &mut self,
        consumer: &mut Consumer,
        inbox: &Receiver<Event>,
    ) -> Result<(), StreamError> {
        loop {
            match inbox.try_recv() {
                Ok(event) => self.handle(consumer, event)?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => {
                    return Err(StreamError::Lost(io::ErrorKind::ConnectionAborted.into()));
                }
            }
        }
    }

    fn handle(&mut self, consumer: &mut Consumer, event: Event) -> Result<(), StreamError> {
        let capture = &self.parts.capture;
        match event {
            Event::Durable(durable) => {
                if !self.window.acknowledged(durable, self.last_sent) {
                    let detail = format!("record {durable} acknowledged, {} sent", self.last_sent);
                    return Err(StreamError::Protocol(detail));
                }
                self.release(consumer, durable);
            }
            Event::Token(token) => {
                // While changes are missing from the stream no state of it is the newest.
                if self.is_whole() {
                    self.token.arrived(token, capture.ring().tail_ticket().0);
                }
            }
            Event::Bookmark(bookmark) => {
                if capture.bookmark(&bookmark).is_none() {
                    tracing::warn!(
                        volume = capture.name(),
                        "no bookmark {:?}: changes are not captured just now",
                        bookmark.label
                    );
                }
            }
            Event::End(error) => return Err(error),
        }
        Ok(())
    }

    fn release(&mut self, consumer: &mut Consumer, durable: Seq) {
        let capture = &self.parts.capture;
        consumer.release_through(durable);
        capture.released().notify_all();
        let copied = match capture.phases().phase() {
            Phase::Whole { copy_end } => copy_end.is_some_and(|end| end <= durable),
            _ => false,
        };
        if copied && !self.parts.state.get().copied {
            match self.parts.state.update(|state| state.copied = true) {
                Ok(()) => tracing::info!(volume = capture.name(), "the collector has a whole copy"),
                Err(error) => tracing::error!(volume = capture.name(), "{error}"),
            }
        }
    }

    /// Takes committed records into the batch until it is full or there are no more.
    fn gather(&mut self, consumer: &mut Consumer) {
        self.batch.clear();
        while !self.batch.is_full() {
            let Next::Record(record) = consumer.next() else {
                return;
            };
            let (kind, seq) = (record.header.kind(), record.header.seq());
            let begins_span = matches!(kind, Some(RecordKind::Gap | RecordKind::ResyncBegin));
            if let Some(until) = self.drop_until {
                if record.ticket < until || !begins_span {
                    self.drop_record(consumer, seq);
                    continue;
                }
                self.drop_until = None;
            }
            self.batch.push(&record);
            if begins_span {
                self.note_span(seq);
            }
        }
    }

    /// A record that continues nothing: the copy that follows brings what it says.
    fn drop_record(&self, consumer: &mut Consumer, seq: Seq) {
        consumer.release_through(seq);
        self.parts.capture.released().notify_all();
    }

    /// A span begins at the collector with this frame: until its end the copy there is not whole.
    /// A span that a predecessor began is closed by a copy of ours.
    fn note_span(&self, seq: Seq) {
        let capture = &self.parts.capture;
        if let Err(error) = self.parts.state.update(|state| state.copied = false) {
            tracing::error!(volume = capture.name(), "{error}");
        }
        if capture.phases().phase() == (Phase::Whole { copy_end: None }) {
            tracing::info!(volume = capture.name(), "record {seq} began a copy that nobody ended");
            capture.want_copy(CopyCause::Gap(GapReason::CopyInterrupted));
        }
    }

    fn send(&mut self, consumer: &Consumer, writer: &mut dyn Write) -> Result<(), StreamError> {
        let context = FrameContext {
            timeline: self.welcome.timeline,
            epoch: self.welcome.epoch,
            prev: self.last_sent,
            token: self.token.take_if_passed(consumer.cursor().0),
        };
        let bytes = self.batch.send(&context, consumer, writer).map_err(StreamError::Lost)?;
        if let Some(last) = self.batch.last() {
            self.window.sent(last, bytes);
            self.last_sent = last;
        }
        Ok(())
    }

    fn say_progress(&mut self, writer: &mut dyn Write) -> Result<(), StreamError> {
        let now = self.parts.clock.monotonic();
        let capture = &self.parts.capture;
        if now < self.next_progress || !matches!(capture.phases().phase(), Phase::Copying { .. }) {
            return Ok(());
        }
        self.next_progress = now + PROGRESS_EVERY;
        let (done, total, sent) = capture.progress().get();
        tracing::info!(volume = capture.name(), "copy: {done} of {total} bytes, {sent} to send");
        let progress = Progress {
            done_bytes: done.into(),
            total_bytes: total.into(),
            sent_bytes: sent.into(),
        };
        let (mut body, mut out) = (Vec::new(), Vec::new());
        progress.encode(&mut body);
        frame::encode(FrameKind::Progress, &body, &mut out);
        writer.write_all(&out).map_err(StreamError::Lost)
    }
}
