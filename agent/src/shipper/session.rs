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

/// What the agent knows of its own side when it judges a welcome.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// The journal that the hello names holds a whole copy, and what is in the ring continues it.
    pub copied: bool,
    /// What the capture does in this process.
    pub phase: Phase,
    /// The last record that this process sent to that journal; `None` before its first session.
    pub sent: Option<Seq>,
}

/// Judges a welcome.
#[must_use]
pub fn judge(hello: &Hello, welcome: &Welcome, standing: &Standing) -> Verdict {
    let durable = welcome.durable;
    if durable == Seq(0) && (hello.journal != welcome.journal || hello.released > Seq(0)) {
        return Verdict::CopyAnew(CopyCause::Initial);
    }
    let anew = |reason| Verdict::CopyAnew(CopyCause::Gap(reason));
    if hello.journal != welcome.journal || hello.timeline != welcome.timeline {
        let never_sent = hello.journal == JournalId::NIL;
        return anew(if never_sent { GapReason::SourceBehind } else { GapReason::CollectorBehind });
    }
    if durable < hello.released {
        return anew(GapReason::CollectorBehind);
    }
    // Also what another agent sent in between, a clone of this machine, under numbers of ours.
    if durable > hello.newest || standing.sent.is_some_and(|sent| durable > sent) {
        return anew(GapReason::SourceBehind);
    }
    let ended = |end: Option<Seq>| end.is_some_and(|end| end <= durable);
    if welcome.span_open != Seq(0) {
        // Whatever goes into a span is not offered before a copy has ended it.
        return match standing.phase {
            Phase::Whole { copy_end } if copy_end.is_none() || ended(copy_end) => {
                Verdict::ResumeAndCopy(CopyCause::Gap(GapReason::CopyInterrupted))
            }
            _ => Verdict::Resume,
        };
    }
    match standing.phase {
        _ if standing.copied => Verdict::Resume,
        Phase::Whole { copy_end } if ended(copy_end) => Verdict::Resume,
        _ if durable == Seq(0) => Verdict::CopyAnew(CopyCause::Initial),
        Phase::Wanted(cause @ CopyCause::Gap(_)) => Verdict::CopyAnew(cause),
        // The begin of the copy did not arrive, and outside of a span the collector would offer
        // the records before it.
        _ => anew(GapReason::CopyInterrupted),
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
        self.frames.is_empty() || self.bytes < self.bytes_max
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

/// Tokens that wait for their place in the stream, at most.
const TOKENS_MAX: usize = 64;

/// The collector's tokens that were not sent back yet, each with its place. A newer one does not
/// replace an older one: where the stream is longer behind than two tokens are apart, the newest
/// one's place would never be reached.
#[derive(Default)]
pub struct PendingTokens(VecDeque<(SessionToken, u64)>);

impl PendingTokens {
    /// A token came while the ring's next ticket was `tail`: every change that was acknowledged
    /// by now has a smaller one. When too many wait, it takes the place of the one before it.
    pub fn arrived(&mut self, token: SessionToken, tail: u64) {
        if self.0.len() == TOKENS_MAX {
            self.0.pop_back();
        }
        self.0.push_back((token, tail));
    }

    /// The newest token whose changes are all in the frames up to ticket `cursor` (exclusive).
    pub fn take_passed(&mut self, cursor: u64) -> Option<SessionToken> {
        let mut passed = None;
        while self.is_due(cursor) {
            passed = self.0.pop_front().map(|(token, _)| token);
        }
        passed
    }

    /// True when a token can go out at once.
    #[must_use]
    pub fn is_due(&self, cursor: u64) -> bool {
        self.0.front().is_some_and(|(_, tail)| *tail <= cursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemark_wire::{AgentId, Epoch, Timeline, VolumeId, WallMicros};

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
            seeded: false,
            last_time: WallMicros(0),
        }
    }

    fn standing(copied: bool, phase: Phase) -> Standing {
        Standing { copied, phase, sent: None }
    }

    #[test]
    fn a_stream_that_fits_goes_on() {
        for durable in [10, 15, 20] {
            let verdict =
                judge(&hello(OURS, 10, 20), &welcome(OURS, durable, 0), &standing(true, WHOLE));
            assert_eq!(verdict, Verdict::Resume);
        }
    }

    #[test]
    fn a_collector_without_a_copy_gets_one() {
        let initial = Verdict::CopyAnew(CopyCause::Initial);
        assert_eq!(
            judge(&hello(JournalId::NIL, 0, 3), &welcome(OURS, 0, 0), &standing(false, WHOLE)),
            initial
        );
        assert_eq!(
            judge(&hello(OURS, 0, 3), &welcome(OURS, 0, 0), &standing(false, WHOLE)),
            initial
        );
        assert_eq!(
            judge(&hello(OURS, 5, 9), &welcome(OTHER, 0, 0), &standing(true, WHOLE)),
            initial
        );
    }

    #[test]
    fn whatever_does_not_fit_is_a_gap() {
        let gap = |reason| Verdict::CopyAnew(CopyCause::Gap(reason));
        let behind = judge(&hello(OURS, 10, 20), &welcome(OURS, 9, 0), &standing(true, WHOLE));
        assert_eq!(behind, gap(GapReason::CollectorBehind));
        let ahead = judge(&hello(OURS, 10, 20), &welcome(OURS, 21, 0), &standing(true, WHOLE));
        assert_eq!(ahead, gap(GapReason::SourceBehind));
        let other = judge(&hello(OURS, 10, 20), &welcome(OTHER, 15, 0), &standing(true, WHOLE));
        assert_eq!(other, gap(GapReason::CollectorBehind));
    }

    #[test]
    fn an_open_span_is_closed_by_whoever_finds_it() {
        let verdict = judge(&hello(OURS, 10, 20), &welcome(OURS, 15, 12), &standing(true, WHOLE));
        assert!(matches!(verdict, Verdict::ResumeAndCopy(_)));
        let phase = Phase::Copying { first: Seq(12) };
        let verdict = judge(&hello(OURS, 10, 20), &welcome(OURS, 15, 12), &standing(false, phase));
        assert_eq!(verdict, Verdict::Resume);
    }

    #[test]
    fn outside_of_a_span_only_a_whole_copy_is_continued() {
        let gap = CopyCause::Gap(GapReason::SourceBehind);
        for (phase, wanted) in [
            (Phase::Wanted(gap), Verdict::CopyAnew(gap)),
            (
                Phase::Copying { first: Seq(16) },
                Verdict::CopyAnew(CopyCause::Gap(GapReason::CopyInterrupted)),
            ),
            (
                Phase::Whole { copy_end: Some(Seq(18)) },
                Verdict::CopyAnew(CopyCause::Gap(GapReason::CopyInterrupted)),
            ),
            (WHOLE, Verdict::CopyAnew(CopyCause::Gap(GapReason::CopyInterrupted))),
            (Phase::Whole { copy_end: Some(Seq(15)) }, Verdict::Resume),
        ] {
            let verdict =
                judge(&hello(OURS, 10, 20), &welcome(OURS, 15, 0), &standing(false, phase));
            assert_eq!(verdict, wanted, "{phase:?}");
        }
        let first = judge(
            &hello(OURS, 0, 20),
            &welcome(OURS, 0, 0),
            &standing(false, Phase::Copying { first: Seq(4) }),
        );
        assert_eq!(first, Verdict::CopyAnew(CopyCause::Initial));
        let lost = standing(true, Phase::Wanted(CopyCause::Gap(GapReason::RingFull)));
        assert_eq!(judge(&hello(OURS, 10, 20), &welcome(OURS, 15, 0), &lost), Verdict::Resume);
    }

    #[test]
    fn records_that_another_agent_sent_are_noticed() {
        let known = Standing { copied: true, phase: WHOLE, sent: Some(Seq(14)) };
        assert_eq!(judge(&hello(OURS, 10, 20), &welcome(OURS, 14, 0), &known), Verdict::Resume);
        assert_eq!(
            judge(&hello(OURS, 10, 20), &welcome(OURS, 15, 0), &known),
            Verdict::CopyAnew(CopyCause::Gap(GapReason::SourceBehind))
        );
    }

    #[test]
    fn a_token_waits_for_the_records_before_it() {
        let mut pending = PendingTokens::default();
        pending.arrived(SessionToken(7), 5);
        assert_eq!(pending.take_passed(4), None);
        pending.arrived(SessionToken(8), 6);
        pending.arrived(SessionToken(9), 9);
        assert_eq!(pending.take_passed(7), Some(SessionToken(8)));
        assert_eq!(pending.take_passed(8), None);
        assert_eq!(pending.take_passed(9), Some(SessionToken(9)));
    }

    #[test]
    fn a_stream_that_is_always_behind_gives_tokens_back_all_the_same() {
        let mut pending = PendingTokens::default();
        let mut back = 0;
        for second in 0..1000 {
            pending.arrived(SessionToken(second), second * 100);
            back = pending.take_passed(second.saturating_sub(10) * 100).map_or(back, |t| t.0);
        }
        assert_eq!(back, 989);
        for second in 1000..9000 {
            pending.arrived(SessionToken(second), second * 100);
        }
        assert_eq!(pending.take_passed(u64::MAX), Some(SessionToken(8999)), "bounded");
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
        assert!(Window::new(0).is_open(), "one frame may always be on its way");
    }
}
