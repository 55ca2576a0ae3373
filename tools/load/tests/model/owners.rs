//! Finds for each record of the journal the operation of the client's log that it belongs to.
//!
//! What enters: the plan, the log, the records. What leaves: an owner for each record, and the
//! proof that the numbers respect real time: an operation that was answered before another was
//! sent has the smaller ones.

use tidemark_block::ByteRange;
use tidemark_wire::RecordKind;
use tidemark_wire::record::{FLAG_FUA, FLAG_NO_HOLE};

use super::journal::Entry;
use super::log::Logged;
use super::plan::{Op, Sort, cleared};

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// All or a part of an operation.
    Op(usize),
    /// A copy of the volume put it there.
    Copy,
    /// It says something about the stream and changes no byte.
    Mark,
}

/// The records of one operation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Numbers {
    /// Number and range of each, in the order of the numbers.
    pub(crate) parts: Vec<(u64, ByteRange)>,
}

impl Numbers {
    /// Number of the first record.
    pub(crate) fn first(&self) -> Option<u64> {
        self.parts.first().map(|(seq, _)| *seq)
    }

    /// Number of the last record.
    pub(crate) fn last(&self) -> Option<u64> {
        self.parts.last().map(|(seq, _)| *seq)
    }

    fn covers_any_of(&self, range: ByteRange) -> bool {
        self.parts.iter().any(|(_, part)| part.overlaps(range))
    }
}

/// Who owns what.
pub(crate) struct Owners {
    /// By record.
    pub(crate) of_records: Vec<Owner>,
    /// By operation; flushes have none, as nobody knows which of several records is whose.
    pub(crate) of_ops: Vec<Numbers>,
    /// Flushes that have no record.
    pub(crate) flushes_missing: usize,
}

/// See the module's documentation.
pub(crate) fn find(
    ops: &[Op],
    log: &[Logged],
    records: &[Entry],
    unit_bytes: u64,
) -> Result<Owners, String> {
    let mut finder = Finder { ops, log, unit_bytes, of_ops: vec![Numbers::default(); ops.len()] };
    let mut of_records = Vec::with_capacity(records.len());
    let mut in_span = false;
    for record in records {
        in_span |= record.begins_span();
        of_records.push(finder.owner(record, in_span)?);
        in_span &= record.kind != RecordKind::ResyncEnd;
    }
    check_real_time(log, &finder.of_ops)?;
    let flushes_missing = finder.place_flushes(records)?;
    Ok(Owners { of_records, of_ops: finder.of_ops, flushes_missing })
}

struct Finder<'a> {
    ops: &'a [Op],
    log: &'a [Logged],
    unit_bytes: u64,
    of_ops: Vec<Numbers>,
}

impl Finder<'_> {
    fn owner(&mut self, record: &Entry, in_span: bool) -> Result<Owner, String> {
        let number = match record.kind {
            RecordKind::Write => self.write(record),
            RecordKind::WriteZeroes => self.cleared(record, Sort::Zero),
            RecordKind::Trim => self.cleared(record, Sort::Trim),
            // Flushes look alike; see `place_flushes`.
            RecordKind::Flush
            | RecordKind::Gap
            | RecordKind::ResyncBegin
            | RecordKind::ResyncEnd => return Ok(Owner::Mark),
            RecordKind::ReadBack if in_span => return Ok(Owner::Copy),
            _ => None,
        };
        if let Some(number) = number {
            self.of_ops[number].parts.push((record.seq, record.range));
            return Ok(Owner::Op(number));
        }
        if record.kind == RecordKind::WriteZeroes && in_span {
            return Ok(Owner::Copy);
        }
        let (seq, kind) = (record.seq, record.kind.name());
        Err(format!("record {seq}, a {kind} at {}, belongs to no operation", record.range))
    }

    /// The write that wrote just this there, and has no record of it yet.
    fn write(&self, record: &Entry) -> Option<usize> {
        let fits = |number: &usize| {
            let op = &self.ops[*number];
            op.sort == Sort::Write
                && op.range.contains(record.range)
                && part_of(op, record.range) == record.payload
                && record.flags == flags(op)
                && !self.of_ops[*number].covers_any_of(record.range)
        };
        let whole = |number: usize| self.ops[number].range == record.range;
        (0..self.ops.len())
            .filter(fits)
            .min_by_key(|number| (!whole(*number), self.log[*number].answered))
    }

    fn cleared(&self, record: &Entry, sort: Sort) -> Option<usize> {
        (0..self.ops.len()).find(|number| {
            let op = &self.ops[*number];
            op.sort == sort
                && self.log[*number].answer.error == 0
                && cleared(sort, op.range, self.unit_bytes) == Some(record.range)
                && record.flags == flags(op)
                && self.of_ops[*number].parts.is_empty()
        })
    }

    /// Gives each flush record a flush that may have made it, the one first that must be done
    /// first: that finds an assignment whenever there is one, also one in which flushes that did
    /// not overlap in time keep their order. Gives the number of flushes that are left.
    fn place_flushes(&self, records: &[Entry]) -> Result<usize, String> {
        let mut open: Vec<(Window, u64)> = (0..self.ops.len())
            .filter(|number| self.ops[*number].sort == Sort::Flush)
            .map(|number| &self.log[number])
            .map(|flush| (window(flush, self.log, &self.of_ops), flush.answered))
            .collect();
        open.sort_by_key(|(window, answered)| (window.before, *answered));
        for record in records.iter().filter(|record| record.kind == RecordKind::Flush) {
            let fits = |(window, _): &(Window, u64)| {
                window.after < record.seq && record.seq < window.before
            };
            match open.iter().position(fits) {
                Some(found) => drop(open.remove(found)),
                None => {
                    return Err(format!("record {} is a flush that nobody sent then", record.seq));
                }
            }
        }
        Ok(open.len())
    }
}

/// A part of what a write wrote.
pub(crate) fn part_of(op: &Op, range: ByteRange) -> &[u8] {
    let start = usize::try_from(range.start() - op.range.start()).expect("a part");
    &op.data[start..start + usize::try_from(range.len()).expect("a part")]
}

fn flags(op: &Op) -> u8 {
    let set = |is_set, flag| if is_set { flag } else { 0 };
    set(op.fua, FLAG_FUA) | set(op.no_hole, FLAG_NO_HOLE)
}

/// Numbers between which an operation's own have to lie, exclusive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) after: u64,
    pub(crate) before: u64,
}

/// What the operations that were answered before it was sent, and those that were sent after it
/// was answered, say about an operation's numbers.
pub(crate) fn window(op: &Logged, log: &[Logged], numbers: &[Numbers]) -> Window {
    let mut window = Window { after: 0, before: u64::MAX };
    for (other, numbers) in log.iter().zip(numbers) {
        let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else {
            continue;
        };
        if other.answered < op.sent {
            window.after = window.after.max(last);
        } else if op.answered < other.sent {
            window.before = window.before.min(first);
        }
    }
    window
}

fn check_real_time(log: &[Logged], of_ops: &[Numbers]) -> Result<(), String> {
    for (number, (op, numbers)) in log.iter().zip(of_ops).enumerate() {
        let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else {
            continue;
        };
        let Window { after, before } = window(op, log, of_ops);
        if first <= after || last >= before {
            return Err(format!(
                "operation {number} has records {first} to {last}; one answered before it was \
                 sent has {after}, or one sent after its answer has {before}"
            ));
        }
    }
    Ok(())
}
