//! The volume's size, and the one that its stream has reached.
//!
//! The two differ between the moment in which the disk got another size and the record that says
//! so. While they do, no change is captured: the collector would find it on no volume. What enters
//! are the sizes of the disk and of what the collector holds; what leaves is that record. Both are
//! changed under the mutex of [`super::phase`], so that whoever begins a session, begins a copy or
//! resizes finds them as they belong together. A crash loses both; the backing store and the
//! collector say them anew.

use std::sync::atomic::{AtomicU64, Ordering};

use tidemark_block::ByteRange;
use tidemark_wire::record::RecordSpec;
use tidemark_wire::{RecordKind, Seq};

use super::Capture;
use super::phase::{CopyCause, Phase};
use crate::ring::order::Ticket;

/// Until the first session it is not known.
const UNKNOWN: u64 = 0;

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Sizes {
    volume: AtomicU64,
    /// Behind the last record in the ring, as far as the collector's welcome and the ring say.
    stream: AtomicU64,
}

impl Sizes {
    // Relaxed throughout: what depends on a size is done under a range's lock or under the mutex
    // of the phases, and those order it.
    fn volume(&self) -> u64 {
        self.volume.load(Ordering::Relaxed)
    }

    fn stream(&self) -> u64 {
        self.stream.load(Ordering::Relaxed)
    }
}

impl Capture {
    /// Size of the volume in bytes; 0 until somebody has set it.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.sizes.volume()
    }

    /// Sets the size of a volume that nobody serves yet.
    pub fn set_size(&self, size_bytes: u64) {
        self.sizes.volume.store(size_bytes, Ordering::Relaxed);
        self.intent.resize(size_bytes);
    }

    /// The volume has `size_bytes` from here on; the caller holds the lock on all of it. With
    /// `is_known` nothing but zeroes was added and nothing else changed, so that a record says all
    /// of it: true when it does. Else a copy has to begin with the record, and the caller, who
    /// knows what it has to look at, marks that and loses the capture ([`Capture::lose`]).
    pub fn resize(&self, size_bytes: u64, is_known: bool) -> bool {
        let is_recorded = self.phases.held(|phase| {
            let old = self.sizes.volume.swap(size_bytes, Ordering::Relaxed);
            self.intent.resize(size_bytes);
            let fits = [UNKNOWN, old].contains(&self.sizes.stream());
            let is_whole = phase.is_whole() && self.is_on() && fits;
            is_known && is_whole && self.stamp_resize(old, size_bytes).is_some()
        });
        // Who asks about what is not there any more gives up.
        self.desk.look_again();
        is_recorded
    }

    /// Puts the volume's size in the stream where that has reached another one. A copy does so
    /// behind its begin, the record `begin`, under the mutex of the phases. What was added is in
    /// doubt: the collector takes it for zeroes. Gives the record from which on the stream has the
    /// size; `None` when the ring has no room.
    pub(crate) fn stamp_size(&self, begin: Seq) -> Option<Seq> {
        let (stream, volume) = (self.sizes.stream(), self.sizes.volume());
        if [UNKNOWN, volume].contains(&stream) {
            return Some(begin);
        }
        if let Some(added) = ByteRange::between(stream, volume) {
            self.intent.doubt(added);
        }
        self.stamp_resize(stream, volume)
    }

    fn stamp_resize(&self, old_bytes: u64, new_bytes: u64) -> Option<Seq> {
        let spec = RecordSpec {
            kind: RecordKind::Resize,
            offset_bytes: 0,
            len_bytes: new_bytes,
            payload_bytes: 0,
            flags: 0,
            aux: old_bytes,
        };
        let record = self.ring.claim(&spec, None).ok()?;
        let seq = record.seq();
        record.commit();
        self.sizes.stream.store(new_bytes, Ordering::Relaxed);
        Some(seq)
    }

    /// A session begins in which what is in the ring goes on behind what the collector holds;
    /// `behind` gives the size that a volume has then ([`Consumer::size_behind`]). False when not
    /// all of it fits, or it does not lead to the volume's size and no copy is going to say that:
    /// then the stream is none that a collector takes. A process may have put changes in the ring
    /// before its first session, of a disk that had got another size a moment before it was opened.
    ///
    /// [`Consumer::size_behind`]: crate::ring::Consumer::size_behind
    #[must_use]
    pub fn continues(&self, behind: impl FnOnce() -> Option<u64>) -> bool {
        self.phases.held(|phase| {
            let Some(stream) = behind() else { return false };
            self.sizes.stream.store(stream, Ordering::Relaxed);
            stream == self.size_bytes() || matches!(phase, Phase::Wanted(_) | Phase::Paused)
        })
    }

    /// As [`Capture::want_copy`] for a copy before which nothing of what is in the ring goes to
    /// the collector, which holds a volume of `held_bytes`. Gives the ticket at or behind which the
    /// copy's first record will be, and that of no copy before it.
    pub fn want_copy_anew(&self, cause: CopyCause, held_bytes: u64) -> Ticket {
        let place = || {
            self.sizes.stream.store(held_bytes, Ordering::Relaxed);
            self.ring.tail_ticket()
        };
        self.doubt(cause);
        let ticket = self.phases.want_copy(cause, place);
        self.desk.look_again();
        ticket
    }
}
