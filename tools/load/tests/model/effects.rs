//! What the client's log allows the disk to hold.
//!
//! Every change becomes effects: one for each of its records, and one for each part of it that
//! has no record because it was done while changes were not captured. An effect has its place in
//! the stream: the record's own, or somewhere between two records. A change without a record is
//! allowed only where a span of the stream explains it. Of two effects on the same bytes one is
//! known to be the later one when the numbers say so, or when the one was answered before the
//! other was sent.

use tidemark_block::ByteRange;
use tidemark_wire::RecordKind;

use super::journal::Entry;
use super::log::Logged;
use super::owners::{Numbers, Owners, part_of, window};
use super::plan::{Plan, Sort, cleared};

/// What a range holds after a change.
#[derive(Clone, Copy, Debug)]
enum Contents<'a> {
    Bytes(&'a [u8]),
    Zero,
}

/// A place in the stream: at a record, or between two of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place(u64);

impl Place {
    fn at(seq: u64) -> Self {
        Self(seq * 2)
    }

    fn behind(seq: u64) -> Self {
        Self(seq * 2 + 1)
    }

    fn before(seq: u64) -> Self {
        Self(seq * 2 - 1)
    }
}

/// A change of a range, and when it took effect: at the earliest and at the latest.
#[derive(Debug)]
struct Effect<'a> {
    range: ByteRange,
    contents: Contents<'a>,
    from: Place,
    until: Place,
    sent: u64,
    answered: u64,
}

impl Effect<'_> {
    fn is_before(&self, other: &Self) -> bool {
        self.until < other.from || self.answered < other.sent
    }

    /// The bytes of a part of the range.
    fn part(&self, range: ByteRange) -> Contents<'_> {
        match self.contents {
            Contents::Zero => Contents::Zero,
            Contents::Bytes(bytes) => {
                let start = index(range.start() - self.range.start());
                Contents::Bytes(&bytes[start..start + index(range.len())])
            }
        }
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("a small disk")
}

/// The moment at which bytes were looked at.
#[derive(Clone, Copy)]
pub(crate) enum Moment {
    /// Where the stream has come to this number.
    Seq(u64),
    /// Somewhere between these two stamps of the log.
    Stamps { sent: u64, answered: u64 },
}

impl Moment {
    fn is_surely_behind(self, effect: &Effect<'_>) -> bool {
        match self {
            Self::Seq(seq) => effect.until <= Place::at(seq),
            Self::Stamps { sent, .. } => effect.answered < sent,
        }
    }

    fn is_surely_before(self, effect: &Effect<'_>) -> bool {
        match self {
            Self::Seq(seq) => effect.from > Place::at(seq),
            Self::Stamps { answered, .. } => answered < effect.sent,
        }
    }
}

/// A time in which changes were not captured: from before `gap` to `begin`.
#[derive(Clone, Copy, Debug)]
struct Loss {
    gap: u64,
    begin: u64,
}

fn losses(records: &[Entry]) -> Vec<Loss> {
    let (mut losses, mut gap) = (Vec::new(), None);
    for record in records {
        match record.kind {
            RecordKind::Gap => gap = gap.or(Some(record.seq)),
            RecordKind::ResyncBegin => {
                let gap = gap.take().unwrap_or(record.seq);
                losses.push(Loss { gap, begin: record.seq });
            }
            _ => {}
        }
    }
    losses
}

/// All effects of a case, by the ranges between their edges.
pub(crate) struct Effects<'a> {
    all: Vec<Effect<'a>>,
    /// Ranges that no effect covers only in part, in order, with the effects that cover each.
    pieces: Vec<(ByteRange, Vec<usize>)>,
    /// Changes, or parts of them, that the stream does not have.
    pub(crate) uncaptured: u64,
}

impl<'a> Effects<'a> {
    /// See the module's documentation.
    pub(crate) fn new(
        plan: &'a Plan,
        log: &[Logged],
        records: &[Entry],
        owners: &Owners,
        unit_bytes: u64,
    ) -> Result<Self, String> {
        let whole = ByteRange::new(0, plan.size_bytes).expect("a small disk");
        let base = Contents::Bytes(&plan.base);
        let first = Place::at(0);
        let base = Effect {
            range: whole,
            contents: base,
            from: first,
            until: first,
            sent: 0,
            answered: 0,
        };
        let mut all = vec![base];
        let losses = losses(records);
        let mut uncaptured = 0;
        for (number, op) in plan.ops.iter().enumerate() {
            let range = match op.sort {
                Sort::Write => Some(op.range),
                Sort::Zero if log[number].answer.error != 0 => None,
                Sort::Zero | Sort::Trim => cleared(op.sort, op.range, unit_bytes),
                Sort::Read | Sort::Flush => None,
            };
            let Some(range) = range else { continue };
            let logged = &log[number];
            let contents = |range| match op.sort {
                Sort::Write => Contents::Bytes(part_of(op, range)),
                _ => Contents::Zero,
            };
            let mut effect = |range, from, until| {
                let (sent, answered) = (logged.sent, logged.answered);
                all.push(Effect { range, contents: contents(range), from, until, sent, answered });
            };
            let numbers = &owners.of_ops[number];
            for (seq, part) in &numbers.parts {
                effect(*part, Place::at(*seq), Place::at(*seq));
            }
            for part in missing(range, numbers) {
                uncaptured += 1;
                let (from, until) = explain(logged, log, &owners.of_ops, &losses)
                    .ok_or_else(|| not_there(number, part, logged))?;
                effect(part, from, until);
            }
        }
        let pieces = pieces(&all);
        Ok(Self { all, pieces, uncaptured })
    }

    /// Checks bytes that were seen at a moment, from `start` on.
    pub(crate) fn check(&self, seen: &[u8], start: u64, moment: Moment) -> Result<(), String> {
        let range = ByteRange::new(start, seen.len() as u64).expect("inside of the disk");
        let first = self.pieces.partition_point(|(piece, _)| piece.end() <= start);
        for (piece, covering) in &self.pieces[first..] {
            let Some(part) = piece.intersect(range) else { break };
            let at = index(part.start() - start);
            let part_seen = &seen[at..at + index(part.len())];
            let allowed = self.allowed(covering, moment);
            if let Some(wrong) = first_wrong(part_seen, part, &allowed) {
                let byte = part.start() + wrong as u64;
                return Err(format!(
                    "byte {byte} (of {part}) is none of the {} that the client's \
                     log allows",
                    allowed.len()
                ));
            }
        }
        Ok(())
    }

    /// The effects that may be the last one at a moment.
    fn allowed(&self, covering: &[usize], moment: Moment) -> Vec<&Effect<'a>> {
        let effects = || covering.iter().map(|number| &self.all[*number]);
        effects()
            .filter(|effect| !moment.is_surely_before(effect))
            .filter(|effect| {
                !effects().any(|later| moment.is_surely_behind(later) && effect.is_before(later))
            })
            .collect()
    }
}

/// Number of the first byte that no effect has.
fn first_wrong(seen: &[u8], range: ByteRange, allowed: &[&Effect<'_>]) -> Option<usize> {
    let contents: Vec<_> = allowed.iter().map(|effect| effect.part(range)).collect();
    let has_all = |contents: &Contents<'_>| match contents {
        Contents::Zero => seen.iter().all(|byte| *byte == 0),
        Contents::Bytes(bytes) => *bytes == seen,
    };
    if contents.iter().any(has_all) {
        return None;
    }
    // While several are in flight each byte may be of another.
    (0..seen.len()).find(|at| {
        !contents.iter().any(|contents| match contents {
            Contents::Zero => seen[*at] == 0,
            Contents::Bytes(bytes) => bytes[*at] == seen[*at],
        })
    })
}

/// The parts of a range that have no record.
fn missing(range: ByteRange, numbers: &Numbers) -> Vec<ByteRange> {
    let mut parts: Vec<_> = numbers.parts.iter().map(|(_, part)| *part).collect();
    parts.sort_unstable();
    let (mut missing, mut at) = (Vec::new(), range.start());
    for part in parts {
        missing.extend(ByteRange::between(at, part.start()).filter(|gap| !gap.is_empty()));
        at = part.end();
    }
    missing.extend(ByteRange::between(at, range.end()).filter(|gap| !gap.is_empty()));
    missing
}

/// Between which places a change without a record took effect; `None` when changes were captured
/// all the time that it took.
fn explain(
    op: &Logged,
    log: &[Logged],
    of_ops: &[Numbers],
    losses: &[Loss],
) -> Option<(Place, Place)> {
    let window = window(op, log, of_ops);
    // What is not captured is done before the copy that closes the gap comes to it.
    let possible =
        losses.iter().filter(|loss| loss.begin > window.after && loss.gap < window.before);
    let last = possible.map(|loss| loss.begin).max()?;
    Some((Place::behind(window.after), Place::before(last.min(window.before))))
}

fn not_there(number: usize, part: ByteRange, logged: &Logged) -> String {
    let (sent, answered) = (logged.sent, logged.answered);
    format!(
        "operation {number} (stamps {sent} to {answered}) was answered, its bytes {part} are in no \
         record, and no span explains that"
    )
}

fn pieces(all: &[Effect<'_>]) -> Vec<(ByteRange, Vec<usize>)> {
    let mut edges: Vec<u64> =
        all.iter().flat_map(|effect| [effect.range.start(), effect.range.end()]).collect();
    edges.sort_unstable();
    edges.dedup();
    let between = edges.windows(2).filter_map(|edge| ByteRange::between(edge[0], edge[1]));
    between
        .map(|piece| {
            let covers = |number: &usize| all[*number].range.contains(piece);
            (piece, (0..all.len()).filter(covers).collect())
        })
        .collect()
}
