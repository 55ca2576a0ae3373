//! Decides whether bytes of a state are ones that the log allows.
//!
//! # What a state is
//! A state is what the disk holds when a set P of changes has taken effect, in an order in which
//! an operation that was acknowledged before another was submitted comes before it. P must be
//! closed: with (a part of) an operation it holds all of every operation that was acknowledged
//! before that one was submitted. An operation without acknowledgement may be in P in part.
//!
//! # What is checked
//! For operation X let s(X) be the event of its submission and a(X) that of its acknowledgement.
//! P is closed exactly if no operation Y that is (partly) out of P has a(Y) < s(X) for an X that
//! is (partly) in it: the largest s of what is in is not behind the smallest a of what is out.
//! So there is a moment T with s(X) <= T for all that is in and a(Y) >= T for all that is out.
//!
//! Each byte of the state was last changed by some X that covers it and gives it its value: its
//! candidates, among them the disk of the beginning (s = a = 0). If it was X, X is in, and so
//! T >= s(X); and each Y that covers the byte and was submitted after X was acknowledged would
//! have overwritten it, so it is out, and T <= a(Y). A byte therefore allows the moments
//!
//! ```text
//! union over its candidates X of  [ s(X), min { a(Y) : Y covers the byte, s(Y) > a(X) } ]
//! ```
//! and bytes are allowed together only if the intersection over all of them is not empty. That
//! takes time linear in the bytes and the operations on them.
//!
//! It is sound: bytes of a state that could be are never refused, since the true T is in every
//! byte's set. It does not use everything: of operations that overlapped in time, it does not ask
//! whether they took effect in the same order at all bytes that they share (parts of one write
//! may be recorded apart, so they need not). A trim is a wish: a trimmed byte may be zero or may
//! have stayed, so a trim is a candidate but never certainly overwrites.
//!
//! A caller who knows more about T (from the numbers of the states, see
//! [`super::records`]) begins with a narrower set.
//!
//! # How a candidate is found
//! Words name their writer ([`super::pattern`]). Zeroes and the bytes of words that several
//! operations share are compared with what each operation on them would have left there; a chance
//! match adds a candidate and so only makes the check more lenient.

use std::fmt;
use std::ops::Range;

use super::log::{Event, Kind, Log, NEVER, Op};
use super::moment::{Interval, Moments};
use super::pattern::{Base, OpNumber, Pattern, WORD_BYTES, base_at};

/// Bytes of the disk whose operations are looked up together.
const BUCKET_BYTES: u64 = 64 * 1024;

/// The log, by place.
pub(crate) struct History<'a> {
    pattern: Pattern,
    ops: &'a [Op],
    /// For each bucket, the operations that change bytes in it, in the order of submission.
    buckets: Vec<Vec<u32>>,
}

/// Bytes that no state can have.
#[derive(Debug)]
pub(crate) struct Contradiction {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) text: String,
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {}: {}", self.len, self.offset, self.text)
    }
}

impl std::error::Error for Contradiction {}

/// Who may have written a byte.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writer {
    Named(OpNumber),
    /// Whoever writes zeroes; of a whole word.
    Zero,
    /// Whoever writes this byte at this place.
    Byte(u64, u8),
}

/// The buckets that `[start, end)` touches, of `count`.
fn buckets_of(start: u64, end: u64, count: usize) -> Range<usize> {
    let place = |bucket: u64| usize::try_from(bucket).unwrap_or(usize::MAX).min(count);
    place(start / BUCKET_BYTES)..place(end.div_ceil(BUCKET_BYTES))
}

impl<'a> History<'a> {
    pub(crate) fn new(log: &'a Log) -> Self {
        let count = usize::try_from(log.size_bytes.div_ceil(BUCKET_BYTES)).expect("address space");
        let mut buckets = vec![Vec::new(); count];
        for (index, op) in log.ops.iter().enumerate().filter(|(_, op)| op.len > 0) {
            let index = u32::try_from(index).expect("numbers of operations are 32 bits long");
            // An end behind the disk's would be an error that the server has answered.
            let places = buckets_of(op.offset, op.end(), count);
            buckets[places].iter_mut().for_each(|bucket: &mut Vec<u32>| bucket.push(index));
        }
        Self { pattern: log.pattern, ops: &log.ops, buckets }
    }

    /// The operations that touch `[start, end)`, in the order of submission.
    pub(crate) fn touching(&self, start: u64, end: u64) -> Vec<&'a Op> {
        let places = buckets_of(start, end, self.buckets.len());
        let mut indexes: Vec<u32> = self.buckets[places].iter().flatten().copied().collect();
        indexes.sort_unstable();
        indexes.dedup();
        let ops = indexes.into_iter().map(|index| &self.ops[index as usize]);
        ops.filter(|op| op.offset < end && start < op.end()).collect()
    }

    /// What bytes operation `op` leaves in `out`, which begins at `offset`; `None` when it leaves
    /// no certain ones.
    pub(crate) fn fill(&self, op: &Op, offset: u64, out: &mut [u8]) -> Option<()> {
        match op.kind {
            Kind::Write { .. } => self.pattern.fill(op.number, offset, out),
            Kind::Zeroes { .. } | Kind::Trim => out.fill(0),
            Kind::Flush => return None,
        }
        Some(())
    }
}

/// The check of one state, bytes after bytes.
pub(crate) struct Check<'h, 'a> {
    history: &'h History<'a>,
    /// Outside of it no moment is possible from the start.
    window: Interval,
    moments: Moments,
    checked_bytes: u64,
}

/// The operations on bytes between two neighbouring ends of operations.
struct Stretch<'s, 'a> {
    covering: &'s [&'a Op],
    base: Base,
    /// What was found for the writers of this stretch.
    known: Vec<(Writer, Moments)>,
}

impl<'h, 'a> Check<'h, 'a> {
    pub(crate) fn new(history: &'h History<'a>, window: Interval) -> Self {
        let moments = Moments::union(vec![window]);
        Self { history, window, moments, checked_bytes: 0 }
    }

    pub(crate) fn checked_bytes(&self) -> u64 {
        self.checked_bytes
    }

    /// Looks at bytes of the state. After an error the check is of no further use.
    pub(crate) fn bytes(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Contradiction> {
        let end = offset + bytes.len() as u64;
        let mut ops = self.history.touching(offset, end);
        // What was submitted later than any possible moment is neither in nor bounds it.
        ops.retain(|op| op.submitted <= self.window.last);
        let mut edges: Vec<u64> = ops.iter().flat_map(|op| [op.offset, op.end()]).collect();
        edges.push(end);
        edges.sort_unstable();
        edges.dedup();
        let mut edges = edges.into_iter().peekable();
        let mut covering = Vec::new();
        let mut at = offset;
        while at < end {
            let (base, base_end) = base_at(at);
            while edges.next_if(|edge| *edge <= at).is_some() {}
            let next = edges.peek().map_or(end, |edge| *edge).min(base_end).min(end);
            covering.clear();
            covering.extend(ops.iter().filter(|op| op.covers(at, next)));
            let mut stretch = Stretch { covering: &covering, base, known: Vec::new() };
            let from = usize::try_from(at - offset).expect("within the bytes");
            let to = usize::try_from(next - offset).expect("within the bytes");
            self.stretch(&mut stretch, at, &bytes[from..to])?;
            at = next;
        }
        self.checked_bytes += bytes.len() as u64;
        Ok(())
    }

    fn stretch(
        &mut self,
        stretch: &mut Stretch<'_, 'a>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), Contradiction> {
        let pattern = self.history.pattern;
        let mut at = offset;
        let mut rest = bytes;
        let mut last = None;
        while !rest.is_empty() {
            let room = WORD_BYTES - at % WORD_BYTES;
            let len = usize::try_from(room).expect("at most 8").min(rest.len());
            let (now, later) = rest.split_at(len);
            let whole: Option<[u8; 8]> = now.try_into().ok();
            let word = whole.map(u64::from_le_bytes);
            let named = word.and_then(|word| pattern.writer(word, at / WORD_BYTES));
            match named {
                Some(op) => self.piece(stretch, Writer::Named(op), at, len, &mut last)?,
                None if word == Some(0) => {
                    self.piece(stretch, Writer::Zero, at, len, &mut last)?;
                }
                None => {
                    for (place, byte) in (at..).zip(now) {
                        let writer = Writer::Byte(place, *byte);
                        self.piece(stretch, writer, place, 1, &mut last)?;
                    }
                }
            }
            at += len as u64;
            rest = later;
        }
        Ok(())
    }

    /// Looks at a piece whose bytes are all by the same writer.
    fn piece(
        &mut self,
        stretch: &mut Stretch<'_, 'a>,
        writer: Writer,
        offset: u64,
        len: usize,
        last: &mut Option<Writer>,
    ) -> Result<(), Contradiction> {
        if *last == Some(writer) {
            return Ok(());
        }
        *last = Some(writer);
        let found = stretch.moments(self.history.pattern, writer);
        let before = if found.is_empty() { None } else { Some(self.moments.clone()) };
        self.moments.keep(found);
        if !self.moments.is_empty() {
            return Ok(());
        }
        let who = match writer {
            Writer::Named(op) => format!("bytes of operation {op}"),
            Writer::Zero => "zeroes".to_owned(),
            Writer::Byte(_, byte) => format!("the byte {byte:#04x}"),
        };
        let text = match before {
            None => format!("{who}, which no operation left there"),
            Some(before) => {
                format!("{who}: possible {found}; everything before: possible {before}")
            }
        };
        Err(Contradiction { offset, len: len as u64, text })
    }
}

impl<'a> Stretch<'_, 'a> {
    /// The moments that `writer` allows.
    fn moments(&mut self, pattern: Pattern, writer: Writer) -> &Moments {
        let place = match self.known.iter().position(|(known, _)| *known == writer) {
            Some(place) => place,
            None => {
                let moments = self.find(pattern, writer);
                self.known.push((writer, moments));
                self.known.len() - 1
            }
        };
        &self.known[place].1
    }

    fn find(&self, pattern: Pattern, writer: Writer) -> Moments {
        let candidates = self.covering.iter().filter(|op| match (writer, op.kind) {
            (Writer::Named(number), Kind::Write { .. }) => op.number == number,
            (Writer::Byte(at, byte), Kind::Write { .. }) => pattern.byte(op.number, at) == byte,
            (Writer::Zero, Kind::Zeroes { .. } | Kind::Trim) => true,
            (Writer::Byte(_, byte), Kind::Zeroes { .. } | Kind::Trim) => byte == 0,
            _ => false,
        });
        let mut intervals: Vec<Interval> = candidates
            .map(|op| Interval::new(op.submitted, self.overwritten_after(op.acknowledged)))
            .collect();
        let from_base = match (writer, self.base) {
            (Writer::Named(number), Base::Pattern) => number == 0,
            (Writer::Byte(at, byte), Base::Pattern) => pattern.byte(0, at) == byte,
            (Writer::Byte(_, byte), Base::Hole | Base::Zeroes) => byte == 0,
            (Writer::Zero, Base::Hole | Base::Zeroes) => true,
            _ => false,
        };
        if from_base {
            intervals.push(Interval::new(0, self.overwritten_after(0)));
        }
        Moments::union(intervals)
    }

    /// The last moment at which the bytes of somebody acknowledged at `acknowledged` may still be
    /// there.
    fn overwritten_after(&self, acknowledged: Event) -> Event {
        let later = self.covering.iter().filter(|op| {
            op.kind != Kind::Trim && op.kind != Kind::Flush && op.submitted > acknowledged
        });
        later.map(|op| op.acknowledged).min().unwrap_or(NEVER)
    }
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
