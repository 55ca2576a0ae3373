//! The producer's side: payload memory, records in flight.

use std::cell::Cell;
use std::mem::offset_of;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tidemark_block::{Chunk, ChunkOwner, Payload};
use tidemark_wire::checksum::lead_bytes;
use tidemark_wire::limits::RECORD_PAYLOAD_BYTES_MAX;
use tidemark_wire::record::{RecordSpec, fill_sums};
use tidemark_wire::{RecordHeader, Seq, WallMicros};
use zerocopy::little_endian::U64;

use super::format::{PAGE_BYTES, Slot};
use super::order::{Claim, Outcome, Ticket};
use super::pages::PageRun;
use super::{Ring, Shared};

/// Words between the places where two threads begin their first search for pages.
const HINT_STRIDE: usize = 97;
static NEXT_HINT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The word of the allocator where this thread last found pages: threads that begin their
    /// search in different words do not meet.
    static HINT: Cell<usize> =
        Cell::new(NEXT_HINT.fetch_add(1, Ordering::Relaxed).wrapping_mul(HINT_STRIDE));
}

/// Where a payload lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) run: PageRun,
    /// Bytes of the first page before the payload.
    lead: usize,
    len: usize,
}

/// Payload memory that belongs to its holder until it is claimed; dropping it gives it back.
pub struct Extent {
    shared: Arc<Shared>,
    /// `None` once a record has taken the memory over.
    span: Option<Span>,
}

/// A record whose change may be taking effect.
///
/// Who drops it with neither [`InFlight::commit`] nor [`InFlight::void`] leaves it in flight:
/// nobody knows whether the change took effect, so the consumer stops before it, and the next
/// [`Ring::open`] has the range read back.
#[must_use = "a record in flight has to be committed or voided"]
pub struct InFlight {
    shared: Arc<Shared>,
    span: Option<Span>,
    claim: Claim,
    settled: bool,
}

impl Ring {
    /// Takes memory for a payload of up to `len_max` bytes (at least 1) that begins at byte `at`
    /// of the volume; 0 for the body of a record. It may be shorter, also because no longer run
    /// of pages is free. `None` when no page is free.
    #[must_use]
    pub fn reserve(&self, at: u64, len_max: usize) -> Option<Extent> {
        assert!(len_max > 0, "a payload has at least one byte");
        let lead = lead_bytes(at) as usize;
        let want = len_max.min(RECORD_PAYLOAD_BYTES_MAX as usize - lead);
        let pages = u32::try_from((lead + want).div_ceil(PAGE_BYTES)).expect("at most 64");
        let run = self.shared.pages.allocate(pages, HINT.get())?;
        if let Some((word, _)) = run.bits() {
            HINT.set(word);
        }
        let len = want.min(run.count as usize * PAGE_BYTES - lead);
        Some(Extent { shared: Arc::clone(&self.shared), span: Some(Span { run, lead, len }) })
    }

    /// Gives a record its place in the order, its number and its time, and writes it into its
    /// slot, in flight. From here on the change may take effect. When no slot or no number is
    /// free, the payload is handed back.
    ///
    /// # Errors
    /// The payload, when the ring is full or out of numbers.
    ///
    /// # Panics
    /// When the spec is none that the wire allows, or the payload is not the one it describes:
    /// a programmer's mistake.
    pub fn claim(
        &self,
        spec: &RecordSpec,
        payload: Option<Extent>,
    ) -> Result<InFlight, Option<Extent>> {
        // Number and time are not known yet; 1 stands for a number that passes the check.
        let mut header = RecordHeader::new(spec, Seq(1), WallMicros(0));
        if let Err(error) = header.check_fields() {
            panic!("a record that can't be: {error}");
        }
        let shared = &self.shared;
        let sums: &[U64] = match &payload {
            Some(extent) => extent.make_sums(&header),
            None => &[],
        };
        assert_eq!(sums.len(), header.sum_count.get() as usize, "payload where the kind has one");
        let limit = Seq(shared.seq_limit.load(Ordering::Relaxed));
        let Some(claim) = shared.order().claim(shared.clock.wall(), limit) else {
            return Err(payload);
        };
        header.seq = claim.seq.0.into();
        header.time_us = claim.time.0.into();
        header.seal(sums);
        let span = payload.and_then(Extent::hand_over);
        shared.fill_slot(claim.ticket, &header, span.map(|span| span.run));
        shared.order().start(claim.ticket);
        Ok(InFlight { shared: Arc::clone(shared), span, claim, settled: false })
    }
}

impl Shared {
    /// Writes a slot but its stamp. The caller owns the ticket.
    pub(super) fn fill_slot(&self, ticket: Ticket, header: &RecordHeader, run: Option<PageRun>) {
        let slot = self.mapping.slot(self.order().slot(ticket));
        let (first, count) = run.map_or((0, 0), |run| (run.first, run.count));
        // SAFETY: the slot lies in the mapping; all its fields have alignment 1; the caller's
        // ticket makes it the only one to touch the slot's bytes (its stamp apart, which is not
        // touched here) until it stores the next stamp.
        unsafe {
            (&raw mut (*slot).first_page).write(first.into());
            (&raw mut (*slot).pages).write(count.into());
            (&raw mut (*slot).header).write(*header);
        }
    }

    fn start_of(&self, span: Span) -> *mut u8 {
        // SAFETY: `lead` is below the length of a page, and the page lies in the mapping.
        unsafe { self.mapping.page(span.run.first).add(span.lead) }
    }

    /// A chunk over a payload.
    fn lend(&self, span: Span) -> Chunk {
        let owner: ChunkOwner = Arc::clone(&self.leases[span.run.first as usize]) as ChunkOwner;
        let start = NonNull::new(self.start_of(span)).expect("no mapping begins at address 0");
        // SAFETY: the bytes are mapped, and so initialized, for as long as the lease lives. The
        // run's pages belong to the caller, and are not given to anybody else while the lease is
        // out: `Extent::drop` and `Consumer::release_through` look.
        unsafe { Chunk::from_raw(start, span.len, owner) }
    }
}

const _: () = assert!(offset_of!(Slot, first_page) >= size_of::<u64>(), "behind the stamp");

impl Extent {
    fn span(&self) -> Span {
        self.span.expect("taken over only by `hand_over`, which consumes the extent")
    }

    /// Length of the payload in bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "an extent has at least one byte")]
    pub fn len(&self) -> usize {
        self.span().len
    }

    /// Shortens the payload to its first `len` bytes, at least one. The memory behind stays with
    /// it.
    ///
    /// # Panics
    /// When `len` is 0: a programmer's mistake.
    pub fn truncate(&mut self, len: usize) {
        assert!(len > 0, "a payload has at least one byte");
        if let Some(span) = &mut self.span {
            span.len = span.len.min(len);
        }
    }

    /// The payload.
    ///
    /// # Panics
    /// While a chunk of it is about: a programmer's mistake.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.assert_whole();
        // SAFETY: the pages are this extent's own by their bits, mapped while `shared` lives;
        // no chunk of them is about; the lifetime is that of `&self`.
        unsafe { slice::from_raw_parts(self.shared.start_of(self.span()), self.len()) }
    }

    /// The payload, to be filled.
    ///
    /// # Panics
    /// While a chunk of it is about: a programmer's mistake.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.assert_whole();
        // SAFETY: as above, and `&mut self` makes it the only access.
        unsafe { slice::from_raw_parts_mut(self.shared.start_of(self.span()), self.len()) }
    }

    /// The payload as a chunk, for an operation that fills it. The extent can't be looked at or
    /// claimed before the chunk and all parts of it are dropped; if the extent is dropped first,
    /// its pages stay out of use until the ring is opened again.
    ///
    /// # Panics
    /// While another chunk of it is about: a programmer's mistake.
    #[must_use]
    pub fn lend(&mut self) -> Chunk {
        self.assert_whole();
        self.shared.lend(self.span())
    }

    fn assert_whole(&self) {
        assert!(!self.shared.is_lent(self.span().run), "a chunk of the extent is still about");
    }

    /// Computes the checksums of the payload into their place in the ring.
    fn make_sums(&self, header: &RecordHeader) -> &[U64] {
        let span = self.span();
        let (lead, len) = (lead_bytes(header.grid_offset()), header.payload_bytes.get());
        let reserved_so = lead as usize == span.lead && len as usize == span.len;
        assert!(reserved_so, "a payload of {len} bytes at {lead} is not what was reserved");
        let count = header.sum_count.get() as usize;
        assert!(count <= span.run.count as usize, "a page for each piece");
        // SAFETY: the checksums of the extent's pages belong to it as the pages do; there are
        // `count` of them from the first page's on; `U64` has alignment 1.
        let sums = unsafe {
            slice::from_raw_parts_mut(self.shared.mapping.sum(span.run.first).cast::<U64>(), count)
        };
        fill_sums(header, self.as_slice(), sums);
        sums
    }

    fn hand_over(mut self) -> Option<Span> {
        self.span.take()
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        let Some(span) = self.span else { return };
        if self.shared.is_lent(span.run) {
            tracing::error!("payload memory was dropped while in use; {:?} stays taken", span.run);
        } else {
            self.shared.pages.free(span.run);
        }
    }
}

impl Payload for Extent {
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.as_mut_slice()
    }
}

impl InFlight {
    /// The record's place in the order.
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        self.claim.ticket
    }

    /// The record's sequence number.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.claim.seq
    }

    /// The record's time.
    #[must_use]
    pub fn time(&self) -> WallMicros {
        self.claim.time
    }

    /// The payload as a chunk, to be read by the operation on the backing store and written to
    /// by nobody. `None` where the record has no payload. The memory is not given to another
    /// record before the chunk is dropped.
    #[must_use]
    pub fn chunk(&self) -> Option<Chunk> {
        self.span.map(|span| self.shared.lend(span))
    }

    /// The change took effect: the record counts.
    pub fn commit(mut self) {
        self.end(Outcome::Committed);
    }

    /// The change did not take effect, or a later record describes what it left.
    pub fn void(mut self) {
        self.end(Outcome::Void);
    }

    fn end(&mut self, outcome: Outcome) {
        self.settled = true;
        self.shared.finish(self.claim.ticket, outcome);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.settled {
            let seq = self.claim.seq;
            tracing::error!("record {seq} was dropped in flight; shipping stops before it");
        }
    }
}
