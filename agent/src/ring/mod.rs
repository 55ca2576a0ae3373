//! The change ring: records of a volume that are not yet durable on the collector, in a file on
//! tmpfs that outlives a killed agent.
//!
//! What enters: a write's payload, received straight into pages of the ring ([`Ring::reserve`]),
//! then its record ([`Ring::claim`]), and at last whether it took effect ([`InFlight`]). What
//! leaves: committed records in the order of their tickets, to the one [`Consumer`]. The volume
//! owns the order of claims among overlapping writes; the ring owns tickets, slots and pages.
//! No path of a producer or of the consumer takes a lock or allocates, and none waits for
//! another: memory ([`pages`]) and order ([`order`]) are apart, so who stops between two steps
//! holds its own pages and its own slot, and nothing else until the ring is full.
//!
//! What a kill leaves behind, and what [`Ring::open`] makes of it. A store that was executed
//! stays, since the memory is the kernel's; and stores become visible in the order below.
//!
//! | killed after | in the file | made of it |
//! | --- | --- | --- |
//! | pages reserved, payload or sums written | nothing points at the pages | free pages |
//! | `tail` moved past the ticket | stamp still free | void; no I/O had begun |
//! | slot and header written | stamp still free | void; no I/O had begun |
//! | stamp in flight | header valid, I/O may have landed | read back, then void |
//! | stamp committed or void | whole | kept; void is skipped |
//! | released: `released_seq` stored | stamp committed | kept, shipped again, refused as known |
//! | released: stamp free for the next lap | head is behind | head moves on |
//! | released: pages freed (not in the file) or head moved | whole | nothing to do |
//!
//! Pages are freed only after the stamp has left the committed state, so that no stamp ever
//! stands over bytes of somebody else. A kill during [`Ring::open`] or before
//! [`Ring::settle`] loses nothing: what was in flight stays so until it is settled. A power cut
//! or a new boot loses the ring, and the file says so by its boot id.
//!
//! The caller opens a ring only once it holds the lock on the backing store: until the killed
//! agent's I/O has landed, the kernel may still read the ring's pages.

mod consumer;
pub mod dump;
mod error;
pub mod format;
mod futex;
mod mapping;
mod producer;
mod recovery;
#[cfg(test)]
mod recovery_tests;

pub mod atomics;
pub mod bell;
pub mod order;
pub mod pages;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use tidemark_wire::{Seq, VolumeId, WallMicros};
use uuid::Uuid;

use crate::clock::Clock;

use bell::Bell;
use format::PAGE_BYTES;
use futex::Futex;
use mapping::Mapping;
use order::{Cells, Order, Outcome, Ticket};
use pages::{PageRun, Pages, WORD_PAGES};

pub use consumer::{Consumer, Next, RecordRef};
pub use error::{RingError, RingErrorKind};
pub use producer::{Extent, InFlight};
pub use recovery::Recovery;

/// What a ring is for and how large it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSpec {
    /// The volume.
    pub volume: VolumeId,
    /// Payload memory in bytes: a multiple of 256 KiB between [`format::RING_BYTES_MIN`] and
    /// [`format::RING_BYTES_MAX`].
    pub ring_bytes: u64,
    /// Records, at most: a power of two between [`format::SLOTS_MIN`] and [`format::SLOTS_MAX`].
    pub slots: u32,
    /// The machine's boot ([`boot_id`]); a ring of another boot is refused.
    pub boot_id: [u8; 16],
}

/// Whether the ring's memory has to be locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mlock {
    /// A ring whose memory can't be locked is an error.
    Required,
    /// Locked if the limits of the process allow.
    WherePermitted,
}

/// How full a ring is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingUse {
    /// Pages in use.
    pub pages_used: u32,
    /// Pages that there are.
    pub pages: u32,
    /// Slots in use.
    pub slots_used: u32,
    /// Slots that there are.
    pub slots: u32,
    /// Payload memory in use, in bytes.
    pub bytes: u64,
}

impl RingUse {
    /// True when more than half of the pages or of the slots are in use.
    #[must_use]
    pub fn is_beyond_half(&self) -> bool {
        self.pages_used > self.pages / 2 || self.slots_used > self.slots / 2
    }
}

/// A change ring. Clones are handles to the same ring; the file stays locked until the last of
/// them, of its extents and of its chunks is gone.
#[derive(Clone)]
pub struct Ring {
    shared: Arc<Shared>,
}

/// Keeps the mapping alive for the chunks of one extent, and counts them.
struct Lease {
    _mapping: Arc<Mapping>,
}

struct Shared {
    mapping: Arc<Mapping>,
    pages: Pages<AtomicU64>,
    /// By first page of an extent; a count above one means that a chunk of it is about.
    leases: Box<[Arc<Lease>]>,
    /// First sequence number that may not be used. Not in the file: it has to be set anew by
    /// whoever reserved numbers durably.
    seq_limit: AtomicU64,
    consumer_taken: AtomicBool,
    /// The consumer is to return from its sleep whatever it finds.
    nudged: AtomicBool,
    clock: Arc<dyn Clock>,
}

impl Shared {
    fn new(mapping: Mapping, clock: Arc<dyn Clock>) -> Arc<Self> {
        let layout = mapping.layout();
        let words = layout.page_count / WORD_PAGES;
        let mapping = Arc::new(mapping);
        let lease = |_| Arc::new(Lease { _mapping: Arc::clone(&mapping) });
        Arc::new(Self {
            pages: Pages::new((0..words).map(|_| AtomicU64::new(0)).collect()),
            leases: (0..layout.page_count).map(lease).collect(),
            seq_limit: AtomicU64::new(0),
            consumer_taken: AtomicBool::new(false),
            nudged: AtomicBool::new(false),
            clock,
            mapping,
        })
    }

    fn order(&self) -> Order<'_, Mapping> {
        Order(&self.mapping)
    }

    fn bell(&self) -> Bell<'_, AtomicU64, std::sync::atomic::AtomicU32> {
        Bell { wanted: self.mapping.wanted(), sleeping: self.mapping.sleeping() }
    }

    fn finish(&self, ticket: Ticket, outcome: Outcome) {
        self.order().finish(ticket, outcome);
        self.bell().ring(ticket, &Futex::WAKE_ONLY);
    }

    /// True while a chunk of the extent is about.
    fn is_lent(&self, run: PageRun) -> bool {
        if Arc::strong_count(&self.leases[run.first as usize]) > 1 {
            return true;
        }
        // Acquire pairs with the release in the drop of the last chunk's owner.
        fence(Ordering::Acquire);
        false
    }

    /// Free slots as at the start of a lap.
    fn stamp_all_free(&self) {
        for slot in 0..self.mapping.layout().slot_count {
            let free = order::stamp(Ticket(u64::from(slot)), order::State::Free);
            self.mapping.stamp(slot as usize).store(free, Ordering::Relaxed);
        }
    }
}

impl Ring {
    /// Makes a new ring in a new file on tmpfs, fully allocated and locked. Its first record
    /// gets at least `first_seq`; none can be claimed before [`Ring::set_seq_limit`]. Capture is
    /// off: if the caller is killed before it has said whether an earlier ring was lost, the next
    /// one must not take this ring for all that happened.
    ///
    /// # Errors
    /// `Size`, `Exists`, `NotTmpfs`, `NoSpace`, `NotLocked`, `InUse` or `Io`.
    pub fn create(
        path: &Path,
        spec: &RingSpec,
        first_seq: Seq,
        mlock: Mlock,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, RingError> {
        let mapping = Mapping::create(path, spec, mlock)?;
        // Nobody else has the file yet; publishing it orders this store.
        mapping.capture_off().store(1, Ordering::Relaxed);
        Ok(Self::start(mapping, spec, first_seq, clock))
    }

    /// Makes a ring in memory that does not outlive the process: for tests and simulations.
    ///
    /// # Errors
    /// `Size` or `Io`.
    pub fn in_memory(
        spec: &RingSpec,
        first_seq: Seq,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, RingError> {
        Ok(Self::start(Mapping::anonymous(spec)?, spec, first_seq, clock))
    }

    fn start(mapping: Mapping, spec: &RingSpec, first_seq: Seq, clock: Arc<dyn Clock>) -> Self {
        let ring = Self { shared: Shared::new(mapping, clock) };
        ring.shared.stamp_all_free();
        ring.raise_seq(Seq(first_seq.0.saturating_sub(1)));
        ring.shared.mapping.publish(spec);
        ring
    }

    /// Opens the ring that a killed or stopped agent left, and checks all of it: the records
    /// that are kept match their checksums. Later records get at least `first_seq`, and more
    /// than any record that the ring ever held. The caller holds the lock on the backing store.
    ///
    /// # Errors
    /// Any [`RingErrorKind`] but `Exists` and `NoSpace`. Where
    /// [`RingErrorKind::wants_new_ring`] says so, the caller discards the file.
    pub fn open(
        path: &Path,
        spec: &RingSpec,
        first_seq: Seq,
        mlock: Mlock,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Recovery), RingError> {
        let mapping = Mapping::open(path, spec, mlock)?;
        let shared = Shared::new(mapping, clock);
        let recovery = recovery::recover(path, &shared)?;
        let ring = Self { shared };
        ring.raise_seq(Seq(first_seq.0.saturating_sub(1)));
        Ok((ring, recovery))
    }

    /// Removes the file of a ring that nobody uses.
    ///
    /// # Errors
    /// `Missing`, `InUse` or `Io`.
    pub fn discard(path: &Path) -> Result<(), RingError> {
        let file = File::open(path).map_err(|e| {
            let missing = e.kind() == io::ErrorKind::NotFound;
            let kind = if missing { RingErrorKind::Missing } else { RingErrorKind::Io };
            RingError::io(kind, path, "open the file", e)
        })?;
        let _lock = mapping::lock(path, file)?;
        std::fs::remove_file(path)
            .map_err(|e| RingError::io(RingErrorKind::Io, path, "remove the file", e))
    }

    /// Voids what was in flight when the ring was opened, and lets the consumer pass it. To be
    /// called once the ranges' read-back records are committed, or once nothing depends on them
    /// because capture is off and a gap will be recorded.
    pub fn settle(&self, recovery: Recovery) {
        for ticket in recovery.into_stranded() {
            self.shared.finish(ticket, Outcome::Void);
        }
    }

    /// Allows sequence numbers below `limit`; the caller has durably reserved them.
    pub fn set_seq_limit(&self, limit: Seq) {
        // Relaxed: the number orders nothing else.
        self.shared.seq_limit.fetch_max(limit.0, Ordering::Relaxed);
    }

    /// Makes the numbers of all claims that begin from now on larger than `min`.
    pub fn raise_seq(&self, min: Seq) {
        self.shared.order().raise_seq(min);
    }

    /// Makes the times of all claims that begin from now on no smaller than `min`.
    pub fn raise_time(&self, min: WallMicros) {
        self.shared.order().raise_time(min);
    }

    /// The newest time of a record, or one that was raised to; 0 when there is none.
    #[must_use]
    pub fn last_time(&self) -> WallMicros {
        self.shared.order().last_time()
    }

    /// What times are taken from.
    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.shared.clock
    }

    /// The number of the next record, if nobody raises it before.
    #[must_use]
    pub fn next_seq(&self) -> Seq {
        self.shared.order().next_seq()
    }

    /// The ticket of the next record.
    #[must_use]
    pub fn tail_ticket(&self) -> Ticket {
        self.shared.order().tail()
    }

    /// The largest sequence number that was released: the ring holds all records after it.
    #[must_use]
    pub fn released_seq(&self) -> Seq {
        // Acquire pairs with the release store in `Consumer::release_through`.
        Seq(self.shared.mapping.released_seq().load(Ordering::Acquire))
    }

    /// Notes, also for the next agent, that writes are not captured.
    pub fn turn_capture_off(&self) {
        // Release pairs with the load in `capture_is_on`.
        self.shared.mapping.capture_off().store(1, Ordering::Release);
    }

    /// Notes that writes are captured.
    pub fn turn_capture_on(&self) {
        // Release pairs with the load in `capture_is_on`.
        self.shared.mapping.capture_off().store(0, Ordering::Release);
        // Pairs with the fence of a writer that does not capture: see `Volume::miss`.
        fence(Ordering::SeqCst);
    }

    /// True while writes are captured.
    #[must_use]
    pub fn capture_is_on(&self) -> bool {
        // Acquire pairs with the stores above.
        self.shared.mapping.capture_off().load(Ordering::Acquire) == 0
    }

    /// How full the ring is, about: others go on meanwhile.
    #[must_use]
    pub fn used(&self) -> RingUse {
        let layout = self.shared.mapping.layout();
        let order = self.shared.order();
        let head = order.head();
        let slots_used = (order.tail().0 - head.0).min(u64::from(layout.slot_count));
        let pages_used = self.shared.pages.used();
        RingUse {
            pages_used,
            pages: layout.page_count,
            slots_used: u32::try_from(slots_used).expect("no more than the slots that there are"),
            slots: layout.slot_count,
            bytes: u64::from(pages_used) * PAGE_BYTES as u64,
        }
    }

    /// True when everything that was claimed is released.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let order = self.shared.order();
        // In this order: what happens in between makes an empty ring look used, never the reverse.
        let head = order.head();
        head == order.tail()
    }

    /// Takes the consumer's role, or `None` while somebody has it.
    #[must_use]
    pub fn consumer(&self) -> Option<Consumer> {
        Consumer::take(&self.shared)
    }

    /// Makes a consumer that sleeps, or goes to sleep next, return at once.
    pub fn wake_consumer(&self) {
        // Release pairs with the swap in `Consumer::wait`; the bell's fence comes after it, so
        // either the consumer sees the nudge or the flag is seen here.
        self.shared.nudged.store(true, Ordering::Release);
        self.shared.bell().wake(&Futex::WAKE_ONLY);
    }
}

/// The identifier of the machine's present boot, from /proc/sys/kernel/random/boot_id.
///
/// # Errors
/// When it can't be read or is no UUID.
pub fn boot_id() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let id = Uuid::parse_str(text.trim()).map_err(io::Error::other)?;
    Ok(id.into_bytes())
}
