//! The consumer's side: committed records in order, and the release of what is durable.

use std::slice;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidemark_wire::checksum::lead_bytes;
use tidemark_wire::planted::{self, Bug};
use tidemark_wire::{RecordHeader, RecordKind, Seq};
use zerocopy::little_endian::U64;

use super::Shared;
use super::futex::Futex;
use super::order::{Found, Ticket};
use super::pages::PageRun;

/// The one reader of a ring. Dropping it lets another take the role, which begins at the oldest
/// record that is not released.
pub struct Consumer {
    shared: Arc<Shared>,
    cursor: Ticket,
}

/// What [`Consumer::next`] finds.
pub enum Next<'a> {
    /// A record, which counts as read now.
    Record(RecordRef<'a>),
    /// The next record is still in flight.
    InFlight,
    /// All claimed records are read.
    Empty,
}

/// A committed record in the ring's memory.
#[derive(Clone, Copy)]
pub struct RecordRef<'a> {
    /// The header, sealed over an uncompressed payload.
    pub header: RecordHeader,
    /// One checksum for each piece.
    pub sums: &'a [U64],
    /// The payload, uncompressed.
    pub payload: &'a [u8],
    /// The record's place in the order.
    pub ticket: Ticket,
}

impl Consumer {
    pub(super) fn take(shared: &Arc<Shared>) -> Option<Self> {
        // Acquire pairs with the release store in `drop`.
        if shared.consumer_taken.swap(true, Ordering::Acquire) {
            return None;
        }
        Some(Self { shared: Arc::clone(shared), cursor: shared.order().head() })
    }

    /// The next record in order. Void records are passed over.
    #[allow(clippy::should_implement_trait, reason = "a record borrows from the consumer")]
    pub fn next(&mut self) -> Next<'_> {
        loop {
            let ticket = self.cursor;
            match self.shared.order().find(ticket) {
                Found::Empty => return Next::Empty,
                Found::InFlight if planted::is(Bug::InFlightPassed) => {
                    self.cursor = Ticket(ticket.0 + 1);
                }
                Found::InFlight => return Next::InFlight,
                Found::Void => self.cursor = Ticket(ticket.0 + 1),
                Found::Committed => {
                    self.cursor = Ticket(ticket.0 + 1);
                    return Next::Record(self.shared.record(ticket));
                }
            }
        }
    }

    /// The ticket that [`Consumer::next`] looks at next: all before it are read.
    #[must_use]
    pub fn cursor(&self) -> Ticket {
        self.cursor
    }

    /// A record that [`Consumer::next`] gave and that was not released since.
    ///
    /// # Panics
    /// When the ticket is not such a one: a programmer's mistake.
    #[must_use]
    pub fn record(&self, ticket: Ticket) -> RecordRef<'_> {
        let held = self.shared.order().head() <= ticket && ticket < self.cursor;
        assert!(held && self.shared.order().find(ticket) == Found::Committed, "a record in reach");
        self.shared.record(ticket)
    }

    /// Goes back, or ahead, to the oldest kept record with a sequence number above `after`.
    pub fn rewind_to(&mut self, after: Seq) {
        let order = self.shared.order();
        let mut ticket = order.head();
        loop {
            match order.find(ticket) {
                Found::Committed if self.shared.header(ticket).seq() > after => break,
                Found::Committed | Found::Void => ticket = Ticket(ticket.0 + 1),
                Found::InFlight | Found::Empty => break,
            }
        }
        self.cursor = ticket;
    }

    /// The size of a volume that has `size_bytes` behind record `after`, once it has all kept
    /// records above that, whether read already or not; `None` when one of them does not fit.
    #[must_use]
    pub fn size_behind(&self, after: Seq, size_bytes: u64) -> Option<u64> {
        let order = self.shared.order();
        let (head, tail) = (order.head(), order.tail());
        let committed =
            (head.0..tail.0).map(Ticket).filter(|one| order.find(*one) == Found::Committed);
        let mut headers = committed.map(|ticket| self.shared.header(ticket));
        headers.try_fold(size_bytes, |size_bytes, header| {
            let is_resize = header.kind() == Some(RecordKind::Resize);
            let end = header.offset_bytes.get().saturating_add(header.len_bytes.get());
            match is_resize {
                _ if header.seq() <= after => Some(size_bytes),
                true => (header.aux.get() == size_bytes).then_some(end),
                false => (end <= size_bytes).then_some(size_bytes),
            }
        })
    }

    /// Gives back the slots and pages of all records up to and with `seq`: they are durable
    /// elsewhere. It stops at a record in flight, and at one whose memory is still in use by an
    /// operation; a later call goes on from there.
    pub fn release_through(&mut self, seq: Seq) {
        loop {
            let order = self.shared.order();
            let ticket = order.head();
            let found = order.find(ticket);
            let committed = found == Found::Committed;
            if !committed && found != Found::Void {
                break;
            }
            let of_record = committed.then(|| self.shared.header(ticket).seq());
            let run = self.shared.run(ticket);
            let is_lent = run.is_some_and(|run| self.shared.is_lent(run));
            if is_lent || of_record.is_some_and(|of_record| of_record > seq) {
                break;
            }
            if let Some(of_record) = of_record {
                // Release pairs with the acquire load in `Ring::released_seq`.
                self.shared.mapping.released_seq().store(of_record.0, Ordering::Release);
            }
            order.release(ticket, run, &self.shared.pages);
        }
        self.cursor = self.cursor.max(self.shared.order().head());
    }

    /// Sleeps until the next record in order is committed or void, until
    /// [`super::Ring::wake_consumer`], or until the timeout; it may return for no reason.
    pub fn wait(&self, timeout: Duration) {
        // Acquire pairs with the release store in `Ring::wake_consumer`.
        let ready = || self.has_next() || self.shared.nudged.load(Ordering::Acquire);
        if !ready() {
            self.shared.bell().sleep_for(self.cursor, ready, &Futex::sleeping(timeout));
        }
        self.is_ready();
    }

    /// True when [`Consumer::wait`] would not sleep. A nudge counts as heard then.
    pub fn is_ready(&self) -> bool {
        // Acquire pairs with the release store in `Ring::wake_consumer`: whatever the nudge is
        // about is seen by who looks after this.
        let nudged = self.shared.nudged.swap(false, Ordering::Acquire);
        nudged || self.has_next()
    }

    fn has_next(&self) -> bool {
        matches!(self.shared.order().find(self.cursor), Found::Committed | Found::Void)
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // Release pairs with the swap in `take`.
        self.shared.consumer_taken.store(false, Ordering::Release);
    }
}

impl Shared {
    /// The header of a finished or in-flight ticket that is not released.
    pub(super) fn header(&self, ticket: Ticket) -> RecordHeader {
        let slot = self.mapping.slot(self.order().slot(ticket));
        // SAFETY: the slot lies in the mapping and its fields have alignment 1. The ticket is
        // past the in-flight stamp and not released, so nobody writes to the slot's bytes.
        unsafe { (&raw const (*slot).header).read() }
    }

    /// The pages of a finished or in-flight ticket that is not released.
    pub(super) fn run(&self, ticket: Ticket) -> Option<PageRun> {
        let slot = self.mapping.slot(self.order().slot(ticket));
        // SAFETY: as in `header`.
        let (first, count) =
            unsafe { ((&raw const (*slot).first_page).read(), (&raw const (*slot).pages).read()) };
        (count.get() > 0).then(|| PageRun { first: first.get(), count: count.get() })
    }

    /// A ticket past the in-flight stamp that is not released, with its memory. The caller makes
    /// sure that it is not released while the result lives.
    pub(super) fn record(&self, ticket: Ticket) -> RecordRef<'_> {
        let header = self.header(ticket);
        let (sums, payload): (&[U64], &[u8]) = match self.run(ticket) {
            None => (&[], &[]),
            Some(run) => {
                let lead = lead_bytes(header.grid_offset()) as usize;
                let len = header.payload_bytes.get() as usize;
                let count = header.sum_count.get() as usize;
                // SAFETY: the pages and their checksums belong to the ticket, nobody writes to
                // them before its release, and claim or recovery made sure that `count` pages
                // hold `lead + len` bytes and lie in the mapping.
                unsafe {
                    let sums = self.mapping.sum(run.first).cast::<U64>();
                    let start = self.mapping.page(run.first).add(lead);
                    (slice::from_raw_parts(sums, count), slice::from_raw_parts(start, len))
                }
            }
        };
        RecordRef { header, sums, payload, ticket }
    }
}
