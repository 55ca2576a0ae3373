//! What comes in on a session: the collector's welcome, then what it says until the session ends.

use std::io::{self, Write};
use std::time::Duration;

use crossbeam_channel::Sender;
use tidemark_wire::body::Bookmark;
use tidemark_wire::compare::Differ;
use tidemark_wire::frame::{self, FrameKind};
use tidemark_wire::instruct::Instruct;
use tidemark_wire::session::{Ack, Hello, Refuse, RefuseReason, Token, Welcome};
use tidemark_wire::{DecodeError, Seq, SessionToken};

use super::link::{ReceiveError, receive_frame};
use crate::state::StateError;

/// Pause before the next try for a volume that a person has retired at the collector.
const RETIRED_PAUSE: Duration = Duration::from_secs(60);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// There is no connection.
    #[error("can't connect: {0}")]
    Dial(io::Error),
    /// The connection ended or failed.
    #[error("connection lost: {0}")]
    Lost(io::Error),
    /// The collector serves no session, or no longer.
    #[error("refused: {}", .0.text)]
    Refused(Refuse),
    /// It said what it may not say.
    #[error("the collector broke the protocol: {0}")]
    Protocol(String),
    /// The state file can't be written, and what follows has to be in it first.
    #[error("nothing is sent before the volume's state can be kept: {0}")]
    State(StateError),
    /// As in the field, after the collector acknowledged something new.
    #[error("{0}")]
    Served(Box<StreamError>),
}

impl StreamError {
    /// True when the session was of use: one that is opened and ended at once, again and again,
    /// is not, nor are those of two agents that take a volume from each other.
    pub(super) fn was_of_use(&self) -> bool {
        let Self::Served(end) = self else { return false };
        !matches!(&**end, Self::Refused(refuse) if refuse.reason == RefuseReason::Fenced)
    }

    /// What the collector said, when it refused the session.
    pub(super) fn refusal(&self) -> Option<&Refuse> {
        match self {
            Self::Refused(refuse) => Some(refuse),
            Self::Served(end) => end.refusal(),
            Self::Dial(_) | Self::Lost(_) | Self::Protocol(_) | Self::State(_) => None,
        }
    }

    /// How long the next try waits at least.
    pub(super) fn pause_min(&self) -> Option<Duration> {
        let is_retired = |refuse: &&Refuse| refuse.reason == RefuseReason::Retired;
        self.refusal().filter(is_retired).map(|_| RETIRED_PAUSE)
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
pub enum Event {
    /// Everything up to this record is on stable storage there.
    Durable(Seq),
    /// A token, to be sent back behind every change that is acknowledged by now.
    Token(SessionToken),
    /// A bookmark for this place in the stream.
    Bookmark(Bookmark),
    /// An answer to a comparison's question.
    Differ(Differ),
    /// A person wants something.
    Instruct(Instruct),
    /// The session is over.
    End(StreamError),
}

/// Asks for a session.
///
/// # Errors
/// When the connection fails.
pub fn greet(hello: &Hello, writer: &mut dyn Write) -> Result<(), StreamError> {
    let (mut body, mut out) = (Vec::new(), Vec::new());
    hello.encode(&mut body);
    frame::encode(FrameKind::Hello, &body, &mut out);
    writer.write_all(&out).map_err(StreamError::Lost)
}

/// Reads the answer to [`greet`].
///
/// # Errors
/// When there is no session.
pub fn receive_welcome(reader: &mut dyn io::Read) -> Result<Welcome, StreamError> {
    let mut body = Vec::new();
    match receive_frame(reader, &mut body)? {
        FrameKind::Welcome => Ok(Welcome::decode(&body)?),
        FrameKind::Refuse => Err(StreamError::Refused(Refuse::decode(&body)?)),
        other => Err(StreamError::Protocol(format!("{other:?} instead of a welcome"))),
    }
}

/// Hands over what the collector says; `wake` gets the session to look at it.
pub(super) fn read_events(reader: &mut dyn io::Read, events: &Sender<Event>, wake: impl Fn()) {
    let mut body = Vec::new();
    loop {
        let event = receive_event(reader, &mut body);
        let is_end = matches!(event, Event::End(_));
        let is_over = events.send(event).is_err() || is_end;
        wake();
        if is_over {
            return;
        }
    }
}

/// Reads what the collector says next; `body` is memory for it.
pub fn receive_event(reader: &mut dyn io::Read, body: &mut Vec<u8>) -> Event {
    decode_event(reader, body).unwrap_or_else(Event::End)
}

fn decode_event(reader: &mut dyn io::Read, body: &mut Vec<u8>) -> Result<Event, StreamError> {
    Ok(match receive_frame(reader, body)? {
        FrameKind::Ack => Event::Durable(Seq(Ack::decode(body)?.durable.get())),
        FrameKind::Token => Event::Token(SessionToken(Token::decode(body)?.token.get())),
        FrameKind::BookmarkRequest => Event::Bookmark(Bookmark::decode(body)?),
        FrameKind::Differ => Event::Differ(Differ::decode(body)?),
        FrameKind::Instruct => Event::Instruct(Instruct::decode(body)?),
        FrameKind::Refuse => return Err(StreamError::Refused(Refuse::decode(body)?)),
        FrameKind::Goodbye => return Err(StreamError::Lost(io::ErrorKind::ConnectionReset.into())),
        other => return Err(StreamError::Protocol(format!("unexpected {other:?}"))),
    })
}
