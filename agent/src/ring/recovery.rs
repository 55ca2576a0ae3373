//! What a ring that a killed agent left is worth: each slot is judged, and the allocator rebuilt.
//!
//! The whole file is checked before anything is changed, so a damaged one stays as evidence. The
//! few stores that follow may be cut off by another kill; the next recovery judges the same.

use std::path::Path;
use std::sync::atomic::Ordering;

use tidemark_block::ByteRange;
use tidemark_wire::record::check_pieces;
use tidemark_wire::{RecordKind, Seq};

use super::Shared;
use super::error::{RingError, RingErrorKind};
use super::order::{Cells, Outcome, State, Ticket, read_stamp, stamp};
use super::pages::PageRun;

/// What was found in a ring that was opened.
#[derive(Debug)]
#[must_use = "what was in flight has to be read back, then settled"]
pub struct Recovery {
    /// Ranges whose change may or may not have reached the backing store. They have to be read
    /// back. Until [`super::Ring::settle`] they keep the consumer from passing them, and
    /// another kill from forgetting them.
    pub in_flight: Vec<ByteRange>,
    /// Committed records in the ring.
    pub kept: u64,
    /// Largest number of a record that is in the ring or was released; zero when there is none.
    pub last_seq: Seq,
    /// The agent had stopped capturing writes: the ring is not all that happened.
    pub capture_was_off: bool,
    stranded: Vec<Ticket>,
}

impl Recovery {
    pub(super) fn into_stranded(self) -> Vec<Ticket> {
        self.stranded
    }
}

/// Beyond any ticket or number that can be reached, and small enough for sums of them.
const COUNTER_MAX: u64 = 1 << 60;

/// Judges the ring. Nobody else has it yet, so the order of loads and stores does not matter.
pub(super) fn recover(path: &Path, shared: &Shared) -> Result<Recovery, RingError> {
    let mut survey = Survey { path, shared, previous: Seq(0) };
    let (head, tail) = survey.bounds()?;
    let mapping = &shared.mapping;
    let mut recovery = Recovery {
        in_flight: Vec::new(),
        kept: 0,
        last_seq: Seq(mapping.released_seq().load(Ordering::Relaxed)),
        capture_was_off: mapping.capture_off().load(Ordering::Relaxed) != 0,
        stranded: Vec::new(),
    };
    let mut unfilled = Vec::new();
    for ticket in (head..tail).map(Ticket) {
        match survey.state(ticket)? {
            State::Free => unfilled.push(ticket),
            State::Void => survey.take_pages(ticket)?,
            state @ (State::InFlight | State::Committed) => {
                let kind = survey.check_record(ticket, state, &mut recovery)?;
                if state == State::Committed {
                    recovery.kept += 1;
                    continue;
                }
                recovery.stranded.push(ticket);
                let header = shared.header(ticket);
                let range = ByteRange::new(header.offset_bytes.get(), header.len_bytes.get());
                let range = range.expect("the header's check refuses ranges that wrap");
                if kind.changes_bytes() && !range.is_empty() {
                    recovery.in_flight.push(range);
                }
            }
        }
    }
    for ticket in (tail..head + mapping.slot_count()).map(Ticket) {
        if survey.state(ticket)? != State::Free {
            return Err(survey.damaged(ticket, "is in use, but was never claimed"));
        }
    }
    if recovery.last_seq >= shared.order().next_seq() {
        return Err(survey.damaged(Ticket(tail), "would get a number that was used before"));
    }
    mapping.head().store(head, Ordering::Relaxed);
    mapping.sleeping().store(super::bell::AWAKE, Ordering::Relaxed);
    for ticket in unfilled {
        survey.forget_pages(ticket);
        shared.order().finish(ticket, Outcome::Void);
    }
    Ok(recovery)
}

struct Survey<'a> {
    path: &'a Path,
    shared: &'a Shared,
    /// Number of the record judged last.
    previous: Seq,
}

impl Survey<'_> {
    fn damaged(&self, ticket: Ticket, what: &str) -> RingError {
        let slot = self.shared.order().slot(ticket);
        let detail = format!("is damaged: record {} in slot {slot} {what}", ticket.0);
        RingError::new(RingErrorKind::Damaged, self.path, detail)
    }

    /// Head and tail, the head moved past what was released without it.
    fn bounds(&self) -> Result<(u64, u64), RingError> {
        let mapping = &self.shared.mapping;
        let (mut head, tail) =
            (mapping.head().load(Ordering::Relaxed), mapping.tail().load(Ordering::Relaxed));
        let base = mapping.seq_base().load(Ordering::Relaxed);
        if head > tail || tail > COUNTER_MAX || base > COUNTER_MAX {
            return Err(self.damaged(Ticket(head), "can't be the first of those up to the tail"));
        }
        while head < tail {
            let slot = self.shared.order().slot(Ticket(head));
            let next_lap = stamp(Ticket(head + mapping.slot_count()), State::Free);
            if mapping.stamp(slot).load(Ordering::Relaxed) < next_lap {
                break;
            }
            head += 1;
        }
        if tail - head > mapping.slot_count() {
            return Err(self.damaged(Ticket(head), "is further from the tail than there are slots"));
        }
        Ok((head, tail))
    }

    fn state(&self, ticket: Ticket) -> Result<State, RingError> {
        let slot = self.shared.order().slot(ticket);
        let value = self.shared.mapping.stamp(slot).load(Ordering::Relaxed);
        match read_stamp(value) {
            Some((of, state)) if of == ticket => Ok(state),
            _ => Err(self.damaged(ticket, &format!("has the stamp {value}"))),
        }
    }

    /// Checks a record as far as its state lets one expect, and takes its pages.
    fn check_record(
        &mut self,
        ticket: Ticket,
        state: State,
        recovery: &mut Recovery,
    ) -> Result<RecordKind, RingError> {
        let header = self.shared.header(ticket);
        let kind = header.check_fields().map_err(|e| self.damaged(ticket, &e.to_string()))?;
        let pages = self.shared.run(ticket).map_or(0, |run| run.count);
        if pages < header.sum_count.get() {
            return Err(self.damaged(ticket, "has more checksums than pages"));
        }
        self.take_pages(ticket)?;
        let record = self.shared.record(ticket);
        let mut resealed = header;
        resealed.seal(record.sums);
        if resealed.header_sum != header.header_sum {
            return Err(self.damaged(ticket, "does not match its checksum"));
        }
        if state == State::Committed {
            check_pieces(&header, record.sums, record.payload)
                .map_err(|e| self.damaged(ticket, &e.to_string()))?;
        }
        if header.seq() <= self.previous {
            return Err(self.damaged(ticket, "has a number that is not above the one before"));
        }
        self.previous = header.seq();
        // A record whose release was cut off is not above the released ones.
        recovery.last_seq = recovery.last_seq.max(header.seq());
        Ok(kind)
    }

    fn take_pages(&self, ticket: Ticket) -> Result<(), RingError> {
        let Some(run) = self.shared.run(ticket) else { return Ok(()) };
        if self.shared.pages.take(run) {
            return Ok(());
        }
        let PageRun { first, count } = run;
        Err(self.damaged(ticket, &format!("has {count} pages from page {first}, not its own")))
    }

    /// Makes a slot that was claimed and not filled own no page.
    fn forget_pages(&self, ticket: Ticket) {
        let slot = self.shared.mapping.slot(self.shared.order().slot(ticket));
        // SAFETY: the slot lies in the mapping, its fields have alignment 1, and nobody else has
        // the ring yet.
        unsafe { (&raw mut (*slot).pages).write(0.into()) };
    }
}
