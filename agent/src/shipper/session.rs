//! What a session decides: whether the stream fits what the collector holds, what may be sent,
//! and what its acknowledgements mean. Pure; the thread in the module above does the work.

use std::collections::VecDeque;

use tidemark_wire::body::GapReason;
use tidemark_wire::session::{Hello, Welcome};
use tidemark_wire::{JournalId, Seq, SessionToken};

use crate::capture::phase::{CopyCause, Phase};

/// What follows from the collector's welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The stream goes on behind what is durable.
    Resume,
    /// The stream goes on, and a copy has to close a span that nobody works on.
    ResumeAndCopy(CopyCause),
    /// What is in the ring does not continue what the collector holds: it is dropped up to the
    /// first record of the copy that has to be made.
    CopyAnew(CopyCause),
}

/// Judges a welcome. `copied` says that a whole copy reached the journal that `hello` names;
/// `phase` is what the capture does in this process.
#[must_use]
pub fn judge(hello: &Hello, welcome: &Welcome, copied: bool, phase: Phase) -> Verdict {
    if welcome.durable == Seq(0) && (hello.journal != welcome.journal || hello.released > Seq(0)) {
        return Verdict::CopyAnew(CopyCause::Initial);
    }
    let anew = |reason| Verdict::CopyAnew(CopyCause::Gap(reason));
    if hello.journal != welcome.journal || hello.timeline != welcome.timeline {
        let never_sent = hello.journal == JournalId::NIL;
        return anew(if never_sent { GapReason::SourceBehind } else { GapReason::CollectorBehind });
    }
    if welcome.durable < hello.released {
        return anew(GapReason::CollectorBehind);
    }
    if welcome.durable > hello.newest {
        return anew(GapReason::SourceBehind);
    }
    let copy_is_ours = !matches!(phase, Phase::Whole { copy_end: None });
    if copy_is_ours || (copied && welcome.span_open == Seq(0)) {
        Verdict::Resume
    } else if welcome.durable == Seq(0) {
        Verdict::CopyAnew(CopyCause::Initial)
    } else {
        Verdict::ResumeAndCopy(CopyCause::Gap(GapReason::CopyInterrupted))
    }
}

/// What is on its way: bounded by the window that the collector gave.
pub struct Window {
    bytes_max: u64,
    bytes: u64,
    frames: VecDeque<(Seq, u64)>,
}

impl Window {
    /// A window of `bytes_max` bytes. One frame may always be on its way.
    #[must_use]
    pub fn new(bytes_max: u32) -> Self {
        Self { bytes_max: u64::from(bytes_max), bytes: 0, frames: VecDeque::new() }
    }

    /// True while another frame may be sent.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.bytes < self.bytes_max
    }

    /// True when all that was sent is acknowledged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// A frame with records up to `last` went out.
    pub fn sent(&mut self, last: Seq, bytes: u64) {
        self.frames.push_back((last, bytes));
        self.bytes += bytes;
    }

    /// Everything up to `durable` is on stable storage. False when that was never sent: the
    /// collector breaks the protocol.
    #[must_use]
    pub fn acknowledged(&mut self, durable: Seq, last_sent: Seq) -> bool {
        while let Some(&(last, bytes)) = self.frames.front() {
            if last > durable {
                break;
            }
            self.bytes -= bytes;
            self.frames.pop_front();
        }
        durable <= last_sent
    }
}

/// The newest token of the collector that was not sent back yet.
#[derive(Default)]
pub struct PendingToken(Option<(SessionToken, u64)>);

impl PendingToken {
    /// A token came while the ring's next ticket was `tail`: every change that was acknowledged
    /// by now has a smaller one.
    pub fn arrived(&mut self, token: SessionToken, tail: u64) {
        self.0 = Some((token, tail));
    }

    /// The token, when everything before it is in the frames up to ticket `cursor` (exclusive).
    pub fn take_if_passed(&mut self, cursor: u64) -> Option<SessionToken> {
        self.0.take_if(|(_, tail)| *tail <= cursor).map(|(token, _)| token)
    }

    /// True when the token can go out at once.
    #[must_use]
    pub fn is_due(&self, cursor: u64) -> bool {
        self.0.is_some_and(|(_, tail)| tail <= cursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemark_wire::{AgentId, Epoch, Timeline, VolumeId};

    const OURS: JournalId = JournalId::from_bytes([1; 16]);
    const OTHER: JournalId = JournalId::from_bytes([2; 16]);
    const WHOLE: Phase = Phase::Whole { copy_end: None };

    fn hello(journal: JournalId, released: u64, newest: u64) -> Hello {
        Hello {
            agent: AgentId::NIL,
            volume: VolumeId::NIL,
            journal,
            timeline: Timeline(1),
            epoch: Epoch(1),
            released: Seq(released),
            newest: Seq(newest),
            size_bytes: 4096,
            block_bytes: 512,
            name: String::new(),
        }
    }

    fn welcome(journal: JournalId, durable: u64, span_open: u64) -> Welcome {
        Welcome {
            journal,
            timeline: Timeline(1),
            epoch: Epoch(2),
            durable: Seq(durable),
            span_open: Seq(span_open),
            window_bytes: 1 << 20,
        }
    }

    #[test]
    fn a_stream_that_fits_goes_on() {
        for durable in [10, 15, 20] {
            let verdict = judge(&hello(OURS, 10, 20), &welcome(OURS, durable, 0), true, WHOLE);
            assert_eq!(verdict, Verdict::Resume);
        }
    }

    #[test]
    fn a_collector_without_a_copy_gets_one() {
        let initial = Verdict::CopyAnew(CopyCause::Initial);
        assert_eq!(
            judge(&hello(JournalId::NIL, 0, 3), &welcome(OURS, 0, 0), false, WHOLE),
            initial
        );
        assert_eq!(judge(&hello(OURS, 0, 3), &welcome(OURS, 0, 0), false, WHOLE), initial);
        assert_eq!(judge(&hello(OURS, 5, 9), &welcome(OTHER, 0, 0), true, WHOLE), initial);
    }

    #[test]
    fn whatever_does_not_fit_is_a_gap() {
        let gap = |reason| Verdict::CopyAnew(CopyCause::Gap(reason));
        let behind = judge(&hello(OURS, 10, 20), &welcome(OURS, 9, 0), true, WHOLE);
        assert_eq!(behind, gap(GapReason::CollectorBehind));
        let ahead = judge(&hello(OURS, 10, 20), &welcome(OURS, 21, 0), true, WHOLE);
        assert_eq!(ahead, gap(GapReason::SourceBehind));
        let other = judge(&hello(OURS, 10, 20), &welcome(OTHER, 15, 0), true, WHOLE);
        assert_eq!(other, gap(GapReason::CollectorBehind));
    }

    #[test]
    fn an_open_span_is_closed_by_whoever_finds_it() {
        let verdict = judge(&hello(OURS, 10, 20), &welcome(OURS, 15, 12), true, WHOLE);
        assert!(matches!(verdict, Verdict::ResumeAndCopy(_)));
        let phase = Phase::Copying { first: Seq(12) };
        let verdict = judge(&hello(OURS, 10, 20), &welcome(OURS, 15, 12), false, phase);
        assert_eq!(verdict, Verdict::Resume);
    }

    #[test]
    fn a_token_waits_for_the_records_before_it() {
        let mut pending = PendingToken::default();
        pending.arrived(SessionToken(7), 5);
        assert_eq!(pending.take_if_passed(4), None);
        assert_eq!(pending.take_if_passed(5), Some(SessionToken(7)));
        assert_eq!(pending.take_if_passed(9), None);
    }

    #[test]
    fn a_window_opens_with_acknowledgements() {
        let mut window = Window::new(10);
        window.sent(Seq(3), 8);
        assert!(window.is_open());
        window.sent(Seq(5), 8);
        assert!(!window.is_open());
        assert!(window.acknowledged(Seq(4), Seq(5)));
        assert!(window.is_open() && !window.is_empty());
        assert!(!window.acknowledged(Seq(6), Seq(5)), "never sent");
    }
}
