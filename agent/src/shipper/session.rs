//! What a session decides: whether the stream fits what the collector holds, what may be sent,
//! and what its acknowledgements mean. Pure; the thread in the module above does the work.

use std::collections::VecDeque;

use tidemark_wire::body::GapReason;
use tidemark_wire::session::{Hello, Lineage, Welcome};
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
pub struct Known {
    /// The journal that the hello names holds a whole copy, and what is in the ring continues it.
    pub copied: bool,
    /// What the capture does in this process.
    pub phase: Phase,
    /// The last record that may have been sent: by this process, and before its first session by
    /// those before it, which used no number beyond their reservation.
    pub sent: Seq,
    /// No session of this process was opened yet: what it knows of the differences is what its
    /// predecessor kept.
    pub is_first: bool,
}

/// Judges a welcome.
///
/// Only a copy into an image that is all zero may leave zeroes out: the collector has no record
/// and was not seeded. Every other copy compares, whatever the collector holds.
#[must_use]
pub fn judge(hello: &Hello, welcome: &Welcome, known: &Known) -> Verdict {
    match judge_stream(hello, welcome, known) {
        // The stream goes on, but what it did not bring is not known.
        Verdict::Resume | Verdict::ResumeAndCopy(_) if welcome.compare && known.is_first => {
            Verdict::ResumeAndCopy(CopyCause::Gap(GapReason::MapInDoubt))
        }
        verdict => verdict,
    }
}

fn judge_stream(hello: &Hello, welcome: &Welcome, known: &Known) -> Verdict {
    let durable = welcome.durable;
    let first = if welcome.seeded { CopyCause::Seeded } else { CopyCause::Initial };
    if durable == Seq(0) && (hello.journal != welcome.journal || hello.released > Seq(0)) {
        return Verdict::CopyAnew(first);
    }
    let anew = |reason| Verdict::CopyAnew(CopyCause::Gap(reason));
    if hello.journal != welcome.journal || hello.timeline != welcome.timeline {
        let never_sent = hello.journal == JournalId::NIL;
        return anew(if never_sent { GapReason::SourceBehind } else { GapReason::CollectorBehind });
    }
    match welcome.lineage {
        Lineage::Same => {}
        _ if durable == Seq(0) => return Verdict::CopyAnew(first),
        Lineage::SourceOlder => return anew(GapReason::SourceBehind),
        Lineage::CollectorOlder => return anew(GapReason::CollectorBehind),
    }
    if durable < hello.released {
        return anew(GapReason::CollectorBehind);
    }
    // What another agent sent in between, a clone of this machine, or this one before it was put
    // back to an older state: numbers of ours, but not our records.
    if durable > hello.newest || durable > known.sent {
        return anew(GapReason::SourceBehind);
    }
    let ended = |end: Option<Seq>| end.is_some_and(|end| end <= durable);
    if welcome.span_open != Seq(0) {
        // Whatever goes into a span is not offered before a copy has ended it. One that runs in
        // this process goes on, and one that is wanted or follows a pause will end it.
        return match known.phase {
            Phase::Whole { copy_end } if copy_end.is_none() || ended(copy_end) => {
                Verdict::ResumeAndCopy(CopyCause::Gap(GapReason::CopyInterrupted))
            }
            _ => Verdict::Resume,
        };
    }
    match known.phase {
        _ if known.copied => Verdict::Resume,
        Phase::Whole { copy_end } if ended(copy_end) => Verdict::Resume,
        // Nothing of a copy that ran has arrived, so nothing is sent again by a new one.
        _ if durable == Seq(0) => Verdict::CopyAnew(first),
        Phase::Wanted(cause @ CopyCause::Gap(_)) => Verdict::CopyAnew(cause),
        Phase::Paused => anew(GapReason::Paused),
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
#[path = "session_tests.rs"]
mod tests;
