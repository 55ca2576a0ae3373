//! The state machine of one session: one volume over one connection.
//!
//! Events enter as method calls: a frame that arrived, the volume's answer to the opening, what
//! became durable, the passing of time. What is to be done leaves as [`Action`]s, in order.
//! There is no I/O and no clock here, so the simulator drives the same code. A crash loses the
//! session and nothing else: whatever was not acknowledged is sent again.

use std::time::Duration;

use tidemark_wire::body::{Bookmark, Cut, Resync};
use tidemark_wire::compare::{Compare, Differ};
use tidemark_wire::frame::{self, FrameHeader, FrameKind, RecordsBody};
use tidemark_wire::instruct::{Instruct, InstructId, Obeyed, Verified};
use tidemark_wire::planted::{self, Bug};
use tidemark_wire::session::{
    Ack, Hello, Progress, Refuse, RefuseReason, Standing, Token, Welcome,
};
use tidemark_wire::{
    DecodeError, DecodeErrorKind, Epoch, Record, RecordKind, Seq, SessionToken, Timeline, VolumeId,
};

/// Longest wait for the agent's opening.
pub const HELLO_WAIT_MAX: Duration = Duration::from_secs(10);
/// Longest silence of an agent, which answers a token every second.
pub const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Time between two tokens.
pub const TOKEN_INTERVAL: Duration = Duration::from_secs(1);

/// Questions of a comparison that may wait for their answer; an agent that asks more breaks the
/// protocol.
pub const COMPARES_MAX: usize = 16;

/// What the session wants done, in order.
#[derive(Debug)]
pub enum Action {
    /// Find or make the volume and open the session there; answer with [`Session::opened`].
    Open(Box<Hello>),
    /// Append to the volume's journal; answer with [`Session::durable`] or [`Session::end`].
    Append(Batch),
    /// Send these bytes to the agent.
    Send(Vec<u8>),
    /// The agent told how far its copy is.
    Progress(Progress),
    /// The agent told how its stream stands.
    Standing {
        /// The session in which it did.
        epoch: Epoch,
        /// How.
        standing: Standing,
    },
    /// The agent did what a person wanted.
    Obeyed(InstructId),
    /// The agent told how a verification stands.
    Verified(Verified),
    /// Compare these nodes with what is durable; answer with [`Session::differed`]. At most
    /// [`COMPARES_MAX`] wait for their answer.
    Compare(Box<Compare>),
    /// Close the connection; the session is over.
    Close(Close),
}

/// Why a session is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Close {
    /// The agent said goodbye.
    Goodbye,
    /// The collector refused or ended it, and has told the agent so.
    Refused(Refuse),
    /// The connection is gone.
    Lost(String),
}

/// Records of one frame that were checked whole: structure, order, place, every checksum.
#[derive(Debug)]
pub struct Batch {
    /// The session that sent them.
    pub epoch: Epoch,
    /// Body of the frame; decodes as [`RecordsBody`].
    pub body: Vec<u8>,
    /// Number of records; may be 0 when the frame only brings a token.
    pub count: u32,
    /// When the token was sent that is durable once these records are (monotonic).
    pub token_sent_at: Option<Duration>,
}

struct Stream {
    volume: VolumeId,
    /// Size of the volume behind the last record that was handed on.
    size_bytes: u64,
    timeline: Timeline,
    epoch: Epoch,
    /// Last record that was handed on.
    last: Seq,
    /// Last record that the agent was told is durable.
    durable: Seq,
    /// Questions without an answer.
    asked: usize,
    opened_at: Duration,
    token_due: Duration,
    token_last: SessionToken,
}

enum State {
    AwaitingHello { since: Duration },
    Opening { volume: VolumeId },
    Streaming(Stream),
    Over,
}

/// One session.
pub struct Session {
    state: State,
    heard_at: Duration,
    scratch: Vec<u8>,
}

impl Session {
    /// A session over a connection that was just made.
    #[must_use]
    pub fn new(now: Duration) -> Self {
        Self { state: State::AwaitingHello { since: now }, heard_at: now, scratch: Vec::new() }
    }

    /// The volume, once the agent has named it.
    #[must_use]
    pub fn volume(&self) -> Option<VolumeId> {
        match &self.state {
            State::Opening { volume } => Some(*volume),
            State::Streaming(stream) => Some(stream.volume),
            State::AwaitingHello { .. } | State::Over => None,
        }
    }

    /// True when nothing will follow.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// A whole frame arrived; `header` was decoded, `body` is as long as it says.
    pub fn frame(
        &mut self,
        now: Duration,
        header: &FrameHeader,
        kind: FrameKind,
        body: Vec<u8>,
        out: &mut Vec<Action>,
    ) {
        if self.is_over() {
            return;
        }
        self.heard_at = now;
        let result = match header.check_body(&body) {
            Err(_) if planted::is(Bug::ReceiptUnchecked) => self.handle(kind, body, out),
            Ok(()) => self.handle(kind, body, out),
            Err(error) => Err(refuse(RefuseReason::Damaged, error)),
        };
        if let Err(refusal) = result {
            self.refuse(refusal, out);
        }
    }

    /// Bytes arrived that are not a frame.
    pub fn broken(&mut self, error: &DecodeError, out: &mut Vec<Action>) {
        self.refuse(refuse(RefuseReason::Protocol, error), out);
    }

    /// The connection is gone.
    pub fn lost(&mut self, why: String, out: &mut Vec<Action>) {
        self.close(Close::Lost(why), out);
    }

    /// The volume answered the opening.
    pub fn opened(
        &mut self,
        now: Duration,
        answer: Result<Welcome, Refuse>,
        out: &mut Vec<Action>,
    ) {
        let State::Opening { volume } = self.state else { return };
        let welcome = match answer {
            Ok(welcome) => welcome,
            Err(refusal) => return self.refuse(refusal, out),
        };
        out.push(Action::Send(message(FrameKind::Welcome, |body| welcome.encode(body))));
        self.state = State::Streaming(Stream {
            volume,
            size_bytes: welcome.size_bytes,
            timeline: welcome.timeline,
            epoch: welcome.epoch,
            last: welcome.durable,
            durable: welcome.durable,
            asked: 0,
            opened_at: now,
            token_due: now,
            token_last: SessionToken(0),
        });
        self.heard_at = now;
        self.tick(now, out);
    }

    /// Everything up to `seq` is on stable storage.
    pub fn durable(&mut self, seq: Seq, out: &mut Vec<Action>) {
        if let State::Streaming(stream) = &mut self.state {
            stream.durable = stream.durable.max(seq);
            let ack = Ack { durable: seq.0.into() };
            out.push(Action::Send(message(FrameKind::Ack, |body| ack.encode(body))));
        }
    }

    /// Somebody wants a recovery point in the stream.
    pub fn bookmark(&mut self, wanted: &Bookmark, out: &mut Vec<Action>) {
        if matches!(self.state, State::Streaming(_)) {
            let frame = message(FrameKind::BookmarkRequest, |body| wanted.encode(body));
            out.push(Action::Send(frame));
        }
    }

    /// A question was answered.
    pub fn differed(&mut self, differ: &Differ, out: &mut Vec<Action>) {
        if let State::Streaming(stream) = &mut self.state {
            stream.asked = stream.asked.saturating_sub(1);
            out.push(Action::Send(message(FrameKind::Differ, |body| differ.encode(body))));
        }
    }

    /// A person wants something of the agent.
    pub fn instruct(&mut self, wanted: &Instruct, out: &mut Vec<Action>) {
        if matches!(self.state, State::Streaming(_)) {
            let frame = message(FrameKind::Instruct, |body| wanted.encode(body));
            out.push(Action::Send(frame));
        }
    }

    /// The collector ends the session: fenced, stopping, can't write.
    pub fn end(&mut self, refusal: Refuse, out: &mut Vec<Action>) {
        self.refuse(refusal, out);
    }

    /// Time has passed. Call it at [`Session::due`] at the latest.
    pub fn tick(&mut self, now: Duration, out: &mut Vec<Action>) {
        match &mut self.state {
            State::AwaitingHello { since } if now >= *since + HELLO_WAIT_MAX => {
                let seconds = HELLO_WAIT_MAX.as_secs();
                let text = format!("no hello within {seconds} s");
                self.refuse(Refuse { reason: RefuseReason::Protocol, text }, out);
            }
            State::Streaming(_) if now >= self.heard_at + SILENCE_MAX => {
                let text = format!("the agent was silent for {} s", SILENCE_MAX.as_secs());
                self.close(Close::Lost(text), out);
            }
            State::Streaming(stream) if now >= stream.token_due => {
                stream.token_due = now + TOKEN_INTERVAL;
                stream.token_last = token_at(stream.epoch, now.saturating_sub(stream.opened_at));
                let token = Token { token: stream.token_last.0.into() };
                out.push(Action::Send(message(FrameKind::Token, |body| token.encode(body))));
            }
            _ => {}
        }
    }

    /// When [`Session::tick`] has something to do at the latest.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        match &self.state {
            State::AwaitingHello { since } => Some(*since + HELLO_WAIT_MAX),
            State::Streaming(stream) => Some(stream.token_due.min(self.heard_at + SILENCE_MAX)),
            State::Opening { .. } | State::Over => None,
        }
    }

    fn handle(
        &mut self,
        kind: FrameKind,
        body: Vec<u8>,
        out: &mut Vec<Action>,
    ) -> Result<(), Refuse> {
        match (&mut self.state, kind) {
            (_, FrameKind::Goodbye) => self.close(Close::Goodbye, out),
            (State::AwaitingHello { .. }, FrameKind::Hello) => {
                let hello = Hello::decode(&body).map_err(protocol)?;
                check_name(&hello.name)?;
                self.state = State::Opening { volume: hello.volume };
                out.push(Action::Open(Box::new(hello)));
            }
            (State::Streaming(stream), FrameKind::Records) => {
                let batch = stream.check(body, &mut self.scratch)?;
                out.push(Action::Append(batch));
            }
            (State::Streaming(_), FrameKind::Progress) => {
                out.push(Action::Progress(Progress::decode(&body).map_err(protocol)?));
            }
            (State::Streaming(stream), FrameKind::Standing) => {
                let standing = Standing::decode(&body).map_err(protocol)?;
                out.push(Action::Standing { epoch: stream.epoch, standing });
            }
            (State::Streaming(_), FrameKind::Obeyed) => {
                out.push(Action::Obeyed(Obeyed::decode(&body).map_err(protocol)?.id));
            }
            (State::Streaming(_), FrameKind::Verified) => {
                out.push(Action::Verified(Verified::decode(&body).map_err(protocol)?));
            }
            (State::Streaming(stream), FrameKind::Compare) => {
                out.push(Action::Compare(Box::new(stream.check_compare(&body)?)));
            }
            (_, kind) => return Err(protocol(format!("a frame of kind {kind:?} at this point"))),
        }
        Ok(())
    }

    fn refuse(&mut self, refusal: Refuse, out: &mut Vec<Action>) {
        if !self.is_over() {
            out.push(Action::Send(message(FrameKind::Refuse, |body| refusal.encode(body))));
            self.close(Close::Refused(refusal), out);
        }
    }

    fn close(&mut self, why: Close, out: &mut Vec<Action>) {
        if !self.is_over() {
            self.state = State::Over;
            out.push(Action::Close(why));
        }
    }
}

impl Stream {
    /// Checks a frame of records whole and moves the end of the chain.
    fn check(&mut self, body: Vec<u8>, scratch: &mut Vec<u8>) -> Result<Batch, Refuse> {
        let records = RecordsBody::decode(&body).map_err(by_kind)?;
        let header = records.header;
        if header.epoch() != self.epoch || header.timeline() != self.timeline {
            return Err(protocol(format!(
                "records of epoch {} and timeline {} in a session of {} and {}",
                header.epoch(),
                header.timeline(),
                self.epoch,
                self.timeline
            )));
        }
        self.check_chain(&records)?;
        for record in records.records() {
            let record = record.map_err(by_kind)?;
            self.size_bytes = check_place(&record, self.size_bytes)?;
            if planted::is(Bug::ReceiptUnchecked) {
                continue;
            }
            check_body(&record, record.payload(scratch).map_err(by_kind)?)?;
        }
        self.last = Seq(header.last_seq.get()).max(self.last);
        let token_sent_at = header.token().and_then(|token| self.token_time(token));
        Ok(Batch { epoch: self.epoch, count: header.count.get(), token_sent_at, body })
    }

    /// A question can be answered when it lies in the volume and its copy has begun here.
    fn check_compare(&mut self, body: &[u8]) -> Result<Compare, Refuse> {
        let question = Compare::decode(body).map_err(protocol)?;
        let (range, size_bytes) = (question.range, self.size_bytes);
        if !range.fits(size_bytes) {
            let (start, end) = (range.offset_bytes(), range.end_bytes());
            return Err(protocol(format!(
                "nodes from byte {start} to {end} of a volume of {size_bytes} bytes"
            )));
        }
        if question.id == [0; 16] || question.min_seq == Seq(0) || question.min_seq > self.durable {
            return Err(protocol(format!(
                "a comparison from record {} on, but {} is the newest durable one",
                question.min_seq, self.durable
            )));
        }
        if self.asked == COMPARES_MAX {
            return Err(protocol(format!("more than {COMPARES_MAX} questions without an answer")));
        }
        self.asked += 1;
        Ok(question)
    }

    /// Numbers have gaps, so only the announced predecessor shows that nothing is missing. A gap
    /// or the begin of a copy may follow anything that is older.
    fn check_chain(&self, records: &RecordsBody<'_>) -> Result<(), Refuse> {
        let prev = records.header.prev_seq();
        if prev == self.last {
            return Ok(());
        }
        let first = records.records().next().transpose().map_err(by_kind)?;
        match first {
            Some(first)
                if matches!(first.kind, RecordKind::Gap | RecordKind::ResyncBegin)
                    && first.header.seq() > self.last =>
            {
                Ok(())
            }
            _ => Err(protocol(format!(
                "records that follow {prev}, but the last one was {}",
                self.last
            ))),
        }
    }

    /// When a token of this session was sent. One of another session says nothing, since its
    /// clock may have been another one.
    fn token_time(&self, token: SessionToken) -> Option<Duration> {
        let of_this_session = token.0 >> TOKEN_TIME_BITS == self.epoch.0 & TOKEN_EPOCH_MASK;
        (of_this_session && token <= self.token_last).then(|| {
            let since = token.0 & ((1 << TOKEN_TIME_BITS) - 1);
            self.opened_at + Duration::from_millis(since.saturating_sub(1))
        })
    }
}

/// A token holds the low bits of its session's epoch and, below them, the milliseconds since the
/// session's opening plus one (so that it is never 0). No table of sent tokens is needed, however
/// long the agent keeps one.
const TOKEN_TIME_BITS: u32 = 40;
const TOKEN_EPOCH_MASK: u64 = (1 << (u64::BITS - TOKEN_TIME_BITS)) - 1;

fn token_at(epoch: Epoch, since_opening: Duration) -> SessionToken {
    let limit = (1 << TOKEN_TIME_BITS) - 2;
    let millis = u64::try_from(since_opening.as_millis()).unwrap_or(limit).min(limit);
    SessionToken(((epoch.0 & TOKEN_EPOCH_MASK) << TOKEN_TIME_BITS) | (millis + 1))
}

/// A volume's name is a line of a table, a name of an export and of a file.
fn check_name(name: &str) -> Result<(), Refuse> {
    if name.is_empty() || name.contains(|c: char| c == '/' || c.is_control()) {
        let rule = "is empty, or holds a slash or a control character";
        return Err(protocol(format!("the volume's name {name:?} {rule}")));
    }
    Ok(())
}

/// The volume's size behind a record that fits one of `size_bytes`. A resize names the size before
/// it: what a smaller volume loses is cut off by that record, and none of it may be left out.
fn check_place(record: &Record<'_>, size_bytes: u64) -> Result<u64, Refuse> {
    let header = record.header;
    if record.kind == RecordKind::Resize {
        let (old, new) = (header.aux.get(), header.len_bytes.get());
        if old == size_bytes {
            return Ok(new);
        }
        return Err(protocol(format!(
            "record {} resizes a volume of {old} bytes to {new}, but it has {size_bytes}",
            header.seq()
        )));
    }
    // The sum does not wrap: decoding has compared it with the largest volume.
    let end = header.offset_bytes.get() + header.len_bytes.get();
    if end <= size_bytes {
        return Ok(size_bytes);
    }
    Err(protocol(format!(
        "record {} ends at byte {end} of a volume of {size_bytes} bytes",
        header.seq()
    )))
}

fn check_body(record: &Record<'_>, payload: &[u8]) -> Result<(), Refuse> {
    let decoded = match record.kind {
        RecordKind::Bookmark => Bookmark::decode(payload).map(|_| ()),
        RecordKind::ResyncBegin | RecordKind::ResyncEnd => match Resync::decode(payload) {
            // Stands for no copy in the files of the journal.
            Ok(resync) if resync.id == [0; 16] => {
                let seq = record.header.seq();
                return Err(protocol(format!("record {seq} is of a copy without a name")));
            }
            decoded => decoded.map(|_| ()),
        },
        RecordKind::Cut if payload.len() != size_of::<Cut>() => {
            return Err(protocol(format!("record {} has no whole cut", record.header.seq())));
        }
        _ => Ok(()),
    };
    decoded.map_err(|error| protocol(format!("record {}: {error}", record.header.seq())))
}

/// A whole frame around a body.
fn message(kind: FrameKind, encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let (mut body, mut out) = (Vec::new(), Vec::new());
    encode(&mut body);
    frame::encode(kind, &body, &mut out);
    out
}

/// Bytes that do not match their checksum were damaged on the way and can be sent again;
/// everything else is a peer that does not keep to the protocol.
fn by_kind(error: DecodeError) -> Refuse {
    let reason = match error.kind {
        DecodeErrorKind::Checksum => RefuseReason::Damaged,
        _ => RefuseReason::Protocol,
    };
    refuse(reason, error)
}

fn protocol(text: impl ToString) -> Refuse {
    refuse(RefuseReason::Protocol, text)
}

fn refuse(reason: RefuseReason, text: impl ToString) -> Refuse {
    Refuse { reason, text: text.to_string() }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
