//! One session behind its handshake, as a machine that never waits: whoever drives it gives it
//! what the collector says ([`Session::receive`]) and the turn ([`Session::step`]), and is told
//! what to wait for. It owns no state that a crash may lose: what has to last is in the ring and in
//! the volume's state file.

use std::io::Write;
use std::time::Duration;

use tidemark_block::ByteRange;
use tidemark_wire::body::GapReason;
use tidemark_wire::frame::{self, FrameKind};
use tidemark_wire::limits::VOLUME_BYTES_MAX;
use tidemark_wire::session::{Hello, Lineage, Progress, Welcome};
use tidemark_wire::{Epoch, RecordHeader, RecordKind, Seq};

use super::batch::{Batch, FrameContext};
use super::incoming::{Event, StreamError};
use super::session::{Known, PendingTokens, Verdict, Window, judge};
use super::wishes::Wishes;
use super::{Drained, Orders, ShipperParts, is_drained};
use crate::capture::Capture;
use crate::capture::desk::QUESTIONS_MAX;
use crate::capture::phase::{CopyCause, Phase};
use crate::ring::order::Ticket;
use crate::ring::{Consumer, Next};

/// How long it waits when there is nothing to do: also how late it notices a stop.
const IDLE: Duration = Duration::from_millis(50);
/// Rest after a frame that was not full, so that a trickle of small writes goes out as a thousand
/// frames a second at most: each one costs the collector a sync. It makes RPO worse by as much.
const LINGER: Duration = Duration::from_millis(1);
/// How often the collector is told how far a copy is.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// How often the log says so.
const PROGRESS_LOG_EVERY: Duration = Duration::from_secs(30);

/// What the sessions of this process have come to.
pub struct Past {
    /// The last record that may have been sent, see [`Known::sent`].
    sent: Seq,
    /// Epoch of the newest session, also where the state file could not keep it.
    epoch: Epoch,
    /// None was opened yet.
    is_first: bool,
    /// The newest record that a collector has said is durable.
    acknowledged: Seq,
}

impl Past {
    /// Before the first session.
    #[must_use]
    pub fn new(parts: &ShipperParts) -> Self {
        let sent = Seq(parts.first.0.saturating_sub(1));
        Self { sent, epoch: Epoch(0), is_first: true, acknowledged: Seq(0) }
    }
}

/// What a session is asked for with.
#[must_use]
pub fn hello(parts: &ShipperParts, past: &Past) -> Hello {
    let (capture, facts, state) = (&parts.capture, &parts.facts, parts.state.get());
    // The ring also releases records that no copy needs any more: nobody has acknowledged those.
    let released = match past.is_first {
        true => capture.ring().released_seq().max(state.released),
        false => past.acknowledged,
    };
    Hello {
        agent: parts.agent,
        volume: facts.id,
        journal: state.journal,
        timeline: state.timeline,
        epoch: state.epoch.max(past.epoch),
        released,
        newest: Seq(capture.ring().next_seq().0.saturating_sub(1)).max(released),
        size_bytes: capture.size_bytes(),
        block_bytes: facts.block_bytes,
        name: capture.name().to_owned(),
        run: parts.run,
        // What an earlier session of this process has named is marked by now.
        unsure_after: state.unsure_after.filter(|_| past.is_first),
    }
}

/// Says what a person has to know of a machine or a collector that was put back.
fn warn_of_lineage(volume: &str, hello: &Hello, welcome: &Welcome) {
    let (epoch, durable) = (hello.epoch, welcome.durable);
    match welcome.lineage {
        Lineage::Same => {}
        Lineage::SourceOlder => tracing::error!(
            volume,
            "the collector has heard later sessions than {epoch}, the last one that is remembered \
             here: this machine was put back to an older state, or is a copy of another one; the \
             states up to record {durable} stay as they are, and the disk is compared whole"
        ),
        Lineage::CollectorOlder => tracing::error!(
            volume,
            "the collector does not know of session {epoch}, or holds less than it had \
             acknowledged: its data was put back to an older copy; its states up to record \
             {durable} are good, later ones are lost, and the disk is compared whole"
        ),
    }
}

fn log_start(volume: &str, welcome: &Welcome, verdict: Verdict) {
    let Welcome { epoch, journal, durable, .. } = welcome;
    let copy = match verdict {
        Verdict::Resume => String::new(),
        Verdict::ResumeAndCopy(cause) | Verdict::CopyAnew(cause) => {
            format!("; a copy is made: {}", cause.text())
        }
    };
    tracing::info!(
        volume,
        "session {epoch} with journal {journal}: the collector holds everything up to record \
         {durable}{copy}"
    );
}

/// Keeps what a session begins with. What does not continue the collector's copy may go out only
/// when the next session, also one of the next process, is sure to know that.
fn keep_session(
    parts: &ShipperParts,
    welcome: &Welcome,
    verdict: Verdict,
) -> Result<(), StreamError> {
    let fits = matches!(verdict, Verdict::Resume);
    let kept = parts.state.update(|state| {
        state.copied &= fits && welcome.span_open == Seq(0);
        state.journal = welcome.journal;
        state.timeline = welcome.timeline;
        state.epoch = welcome.epoch;
        state.last_time = state.last_time.max(welcome.last_time);
    });
    match kept {
        Ok(()) => Ok(()),
        Err(error) if !fits => Err(StreamError::State(error)),
        Err(error) => {
            tracing::error!(volume = parts.capture.name(), "{error}");
            Ok(())
        }
    }
}

/// What the driver does before the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Nothing: there is more to do.
    No,
    /// Waits for the collector's word, this long at most.
    Event(Duration),
    /// Waits for the ring's next record or the collector's word, this long at most.
    Ring(Duration),
    /// Lets this much time pass, whatever happens.
    Rest(Duration),
    /// Ends the connection: the session was told to stop.
    Done(Drained),
}

/// See the module's documentation.
pub struct Session<'a> {
    parts: &'a ShipperParts,
    welcome: Welcome,
    window: Window,
    tokens: PendingTokens,
    batch: Batch,
    /// Last record that was sent, or that the collector held at the start.
    last_sent: Seq,
    /// The same for the sessions to come; also counts what may have been sent.
    past: &'a mut Past,
    acknowledged: Seq,
    /// First record of a span that was sent and not acknowledged.
    span_sent: Option<Seq>,
    /// Until a copy's first record at or behind this ticket, records are dropped.
    drop_until: Option<Ticket>,
    /// Questions of this session without an answer, also those of copies that were given up.
    asked: usize,
    wishes: Wishes,
    next_progress: Duration,
    next_progress_log: Duration,
}

impl<'a> Session<'a> {
    /// Decides what the collector's welcome means, and keeps it.
    ///
    /// # Errors
    /// When the volume's state can't be kept, and nothing may be sent before.
    pub fn open(
        parts: &'a ShipperParts,
        consumer: &mut Consumer,
        past: &'a mut Past,
        hello: &Hello,
        welcome: &Welcome,
    ) -> Result<Self, StreamError> {
        let capture = &parts.capture;
        let known = Known {
            copied: parts.state.get().copied,
            phase: capture.phases().phase(),
            sent: past.sent,
            is_first: past.is_first,
        };
        let verdict = sized(judge(hello, welcome, &known), capture, consumer, welcome);
        warn_of_lineage(capture.name(), hello, welcome);
        doubt_at_start(parts, known.phase, welcome);
        // Before anything new is captured or copied.
        capture.ring().raise_time(welcome.last_time);
        keep_session(parts, welcome, verdict)?;
        let mut drop_until = None;
        match verdict {
            Verdict::Resume => {}
            Verdict::ResumeAndCopy(cause) => {
                capture.want_copy(cause);
            }
            Verdict::CopyAnew(cause) => {
                // Numbers that the collector holds are never given out again.
                capture.ring().raise_seq(welcome.durable);
                drop_until = Some(capture.want_copy_anew(cause, welcome.size_bytes));
            }
        }
        consumer.rewind_to(if drop_until.is_some() { Seq(0) } else { welcome.durable });
        log_start(capture.name(), welcome, verdict);
        *past = Past {
            sent: welcome.durable,
            epoch: welcome.epoch,
            is_first: false,
            acknowledged: welcome.durable,
        };
        capture.desk().send_again();
        capture.phases().welcomed();
        let mut session = Self {
            parts,
            welcome: welcome.clone(),
            window: Window::new(welcome.window_bytes),
            tokens: PendingTokens::default(),
            batch: Batch::default(),
            last_sent: welcome.durable,
            past,
            acknowledged: welcome.durable,
            span_sent: None,
            drop_until,
            asked: 0,
            wishes: Wishes::default(),
            next_progress: parts.clock.monotonic(),
            next_progress_log: parts.clock.monotonic() + PROGRESS_LOG_EVERY,
        };
        session.release(consumer, welcome.durable);
        Ok(session)
    }

    /// What the session's end means for the next one.
    #[must_use]
    pub fn ended(&self, error: StreamError) -> StreamError {
        let of_use = self.acknowledged > self.welcome.durable;
        if of_use { StreamError::Served(Box::new(error)) } else { error }
    }

    /// Does what can be done at once. What the collector has said is received before.
    ///
    /// # Errors
    /// When the session is over.
    pub fn step(
        &mut self,
        consumer: &mut Consumer,
        writer: &mut dyn Write,
        orders: Orders,
    ) -> Result<Wait, StreamError> {
        if orders.stop_now {
            return Ok(Wait::Done(Drained::No));
        }
        self.wishes.say(self.parts, writer)?;
        self.say_progress(writer)?;
        self.ask(writer)?;
        if !self.window.is_open() {
            return Ok(Wait::Event(IDLE));
        }
        self.gather(consumer);
        if !self.batch.is_empty() || self.tokens.is_due(consumer.cursor().0) {
            self.send(consumer, writer)?;
            return Ok(if self.batch.is_full() { Wait::No } else { Wait::Rest(LINGER) });
        }
        if orders.stop_when_drained && self.is_all_acknowledged(consumer) {
            say(writer, FrameKind::Goodbye, |_| ())?;
            let is_drained = is_drained(&self.parts.capture, consumer);
            return Ok(Wait::Done(if is_drained { Drained::Yes } else { Drained::No }));
        }
        Ok(Wait::Ring(IDLE))
    }

    fn is_all_acknowledged(&self, consumer: &mut Consumer) -> bool {
        // Memory of a record may have been in use when it was acknowledged.
        consumer.release_through(self.acknowledged);
        self.window.is_empty() && self.parts.capture.ring().is_empty()
    }

    /// Takes what the collector said.
    ///
    /// # Errors
    /// When the session is over.
    pub fn receive(&mut self, consumer: &mut Consumer, event: Event) -> Result<(), StreamError> {
        let capture = &self.parts.capture;
        match event {
            Event::Durable(durable) => {
                if !self.window.acknowledged(durable, self.last_sent) {
                    let detail = format!("record {durable} acknowledged, {} sent", self.last_sent);
                    return Err(StreamError::Protocol(detail));
                }
                self.acknowledged = self.acknowledged.max(durable);
                self.past.acknowledged = self.acknowledged;
                self.release(consumer, durable);
            }
            Event::Token(token) => {
                // While changes are missing from the stream no state of it is the newest.
                if capture.phases().phase().is_whole() && capture.is_on() {
                    self.tokens.arrived(token, capture.ring().tail_ticket().0);
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
            Event::Differ(differ) => {
                self.asked = self.asked.saturating_sub(1);
                if !capture.desk().answered(differ) {
                    return Err(StreamError::Protocol("an answer to no question".into()));
                }
            }
            Event::Instruct(wanted) => self.wishes.obey(self.parts, wanted),
            Event::End(error) => return Err(error),
        }
        Ok(())
    }

    fn release(&mut self, consumer: &mut Consumer, durable: Seq) {
        let capture = &self.parts.capture;
        consumer.release_through(durable);
        capture.released().notify_all();
        let ended = match capture.phases().phase() {
            Phase::Whole { copy_end } => copy_end.is_some_and(|end| end <= durable),
            _ => false,
        };
        let begun = self.span_sent.take_if(|begin| *begin <= durable).is_some();
        let was = self.parts.state.get().copied;
        let copied = ended || (was && !begun);
        // Before that copy began, the collector had said what it knows.
        let was_unsure = self.parts.state.get().unsure_after.is_some();
        if copied == was && !(ended && was_unsure) {
            return;
        }
        let kept = self.parts.state.update(|state| {
            state.copied = copied;
            state.unsure_after = state.unsure_after.filter(|_| !ended);
        });
        match kept {
            Ok(()) if copied => {
                tracing::info!(volume = capture.name(), "the collector has a whole copy");
            }
            Ok(()) => {}
            // The collector's span says the same at the next start.
            Err(error) => tracing::error!(volume = capture.name(), "{error}"),
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
                if record.ticket < until || !begins_span || seq <= self.last_sent {
                    self.note_missing(&record.header);
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

    /// What the collector lacks when it does not get a record; marked before that is released.
    fn note_missing(&self, header: &RecordHeader) {
        let map = self.parts.capture.intent();
        let (offset, len) = (header.offset_bytes.get(), header.len_bytes.get());
        match header.kind() {
            Some(
                RecordKind::Write
                | RecordKind::WriteZeroes
                | RecordKind::Trim
                | RecordKind::ReadBack
                | RecordKind::Unreadable,
            ) => {
                if let Some(range) = ByteRange::new(offset, len) {
                    map.miss(range);
                }
            }
            Some(RecordKind::Resize) => {
                let kept = len.min(header.aux.get());
                if let Some(behind) = ByteRange::between(kept, VOLUME_BYTES_MAX) {
                    map.doubt(behind);
                }
            }
            _ => {}
        }
    }

    /// A record that continues nothing: the copy that follows brings what it says, since that is
    /// marked before the record is released.
    fn drop_record(&self, consumer: &mut Consumer, seq: Seq) {
        consumer.release_through(seq);
        self.parts.capture.released().notify_all();
    }

    /// A span begins at the collector with this frame: once that is durable the copy there is not
    /// whole. A span that a predecessor began is closed by a copy of ours.
    fn note_span(&mut self, seq: Seq) {
        let capture = &self.parts.capture;
        self.span_sent.get_or_insert(seq);
        doubt_left(self.parts, seq);
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
            token: self.tokens.take_passed(consumer.cursor().0),
        };
        if let Some(last) = self.batch.last() {
            self.past.sent = last;
        }
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
        if now >= self.next_progress_log {
            self.next_progress_log = now + PROGRESS_LOG_EVERY;
            tracing::info!(
                volume = capture.name(),
                "copy: {done} of {total} bytes, {sent} to send"
            );
        }
        let progress = Progress {
            done_bytes: done.into(),
            total_bytes: total.into(),
            sent_bytes: sent.into(),
        };
        say(writer, FrameKind::Progress, |body| progress.encode(body))
    }

    /// Sends the copier's questions. They do not wait for the window: they are few and small.
    fn ask(&mut self, writer: &mut dyn Write) -> Result<(), StreamError> {
        while self.asked < QUESTIONS_MAX {
            let capture = &self.parts.capture;
            let is_drained = self.window.is_empty() && capture.ring().is_empty();
            let Some(question) = capture.desk().take(self.acknowledged, is_drained) else { break };
            self.asked += 1;
            say(writer, FrameKind::Compare, |body| question.encode(body))?;
        }
        Ok(())
    }
}

/// The verdict, unless the sizes that are in the ring do not follow that of the collector's volume.
fn sized(verdict: Verdict, capture: &Capture, consumer: &Consumer, welcome: &Welcome) -> Verdict {
    let behind = || consumer.size_behind(welcome.durable, welcome.size_bytes);
    let drops_all = matches!(verdict, Verdict::CopyAnew(_));
    if drops_all || capture.continues(behind) {
        return verdict;
    }
    capture.intent().doubt_all();
    Verdict::CopyAnew(CopyCause::Gap(GapReason::Resized))
}

/// A span that begins with the record `begin` (0 when there is none) and that a predecessor left:
/// what its copy had not brought is known by the bits alone, whatever else is wanted by now. Found
/// by the simulator (seed 3738): a full ring had wanted a copy of its own before the span was seen.
fn doubt_left(parts: &ShipperParts, begin: Seq) {
    if Seq(0) < begin && begin < parts.first {
        parts.capture.intent().doubt_marked();
    }
}

/// What the welcome alone tells of what may differ.
fn doubt_at_start(parts: &ShipperParts, phase: Phase, welcome: &Welcome) {
    // Behind a copy of ours that has ended nothing is left.
    if !matches!(phase, Phase::Whole { copy_end: Some(_) }) {
        doubt_left(parts, welcome.span_open);
    }
    doubt_unsure(&parts.capture, welcome);
}

/// What this machine may not remember, because it was put back to an older state, is compared.
fn doubt_unsure(capture: &Capture, welcome: &Welcome) {
    let map = capture.intent();
    let before = map.differing_bytes();
    for (start, len) in &welcome.unsure {
        if let Some(range) = ByteRange::new(*start, *len) {
            map.doubt(range);
        }
    }
    let more = map.differing_bytes().saturating_sub(before);
    if more > 0 {
        tracing::info!(
            volume = capture.name(),
            "{more} bytes more are compared: the collector holds changes of them that may have \
             come after what this machine remembers"
        );
    }
}

/// Sends one message.
pub(super) fn say(
    writer: &mut dyn Write,
    kind: FrameKind,
    encode: impl FnOnce(&mut Vec<u8>),
) -> Result<(), StreamError> {
    let (mut body, mut out) = (Vec::new(), Vec::new());
    encode(&mut body);
    frame::encode(kind, &body, &mut out);
    writer.write_all(&out).map_err(StreamError::Lost)
}
