//! The stream of one volume's changes: its change ring, whether every change is in it, and the
//! records that carry no data.
//!
//! The volume puts its changes in, the copier closes what is missing, the shipper takes records
//! out; this is what the three share. It owns the ring, the state in [`phase`] and the copier's
//! questions on the [`desk`], and knows which [`verification`] is wanted. What a crash leaves is
//! what the ring's file says.

pub mod desk;
pub mod phase;
mod size;
pub mod verification;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidemark_block::Payload;
use tidemark_block::engine::Event;
use tidemark_wire::body::{Bookmark, GapReason};
use tidemark_wire::record::RecordSpec;
use tidemark_wire::session::Standing;
use tidemark_wire::{RecordKind, Seq};

use crate::intent_log::map::IntentMap;
use crate::ring::Ring;
use desk::Desk;
use phase::{CopyCause, CopyRound, Phase, Phases};
use size::Sizes;
use verification::{Verifications, VerifyWish};

/// How far a copy of the volume is, in bytes.
#[derive(Default)]
pub struct CopyProgress {
    /// Looked at.
    pub done_bytes: AtomicU64,
    /// To look at.
    pub total_bytes: AtomicU64,
    /// Sent.
    pub sent_bytes: AtomicU64,
}

impl CopyProgress {
    /// Bytes looked at, to look at, and sent.
    #[must_use]
    pub fn get(&self) -> (u64, u64, u64) {
        // Relaxed: figures for people, no other memory depends on them.
        let load = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        (load(&self.done_bytes), load(&self.total_bytes), load(&self.sent_bytes))
    }
}

/// See the module's documentation.
pub struct Capture {
    /// The volume's name, for messages.
    name: String,
    ring: Ring,
    intent: Arc<IntentMap>,
    phases: Phases,
    desk: Desk,
    sizes: Sizes,
    verifications: Verifications,
    progress: CopyProgress,
    /// Bytes per second that a copy may read; 0 when there is no limit.
    copy_rate: AtomicU64,
    released: Event,
}

impl Capture {
    /// The stream of the volume called `name`, in `ring`; what it lacks is in `intent`.
    #[must_use]
    pub fn new(name: String, ring: Ring, intent: Arc<IntentMap>) -> Self {
        let phases = Phases::new(ring.clock().clone());
        Self {
            name,
            ring,
            intent,
            phases,
            desk: Desk::default(),
            sizes: Sizes::default(),
            verifications: Verifications::default(),
            progress: CopyProgress::default(),
            copy_rate: AtomicU64::new(0),
            released: Event::new(),
        }
    }

    /// The volume's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The change ring.
    #[must_use]
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// What the collector lacks, or may.
    #[must_use]
    pub fn intent(&self) -> &Arc<IntentMap> {
        &self.intent
    }

    /// Whether the stream is whole, and the copy that makes it so.
    #[must_use]
    pub fn phases(&self) -> &Phases {
        &self.phases
    }

    /// Where copies and verifications ask the collector what differs.
    #[must_use]
    pub fn desk(&self) -> &Desk {
        &self.desk
    }

    /// Which verification is wanted, and how it stands.
    #[must_use]
    pub fn verifications(&self) -> &Verifications {
        &self.verifications
    }

    /// How the stream stands, for the collector.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let standing = self.phases.standing(self.is_on());
        Standing {
            differing_bytes: self.intent.differing_bytes(),
            compare_next: self.intent.is_failed(),
            ..standing
        }
    }

    /// Bytes per second that a copy may read from the backing store; `None` when there is no
    /// limit. It counts from the copy's next read on.
    pub fn set_copy_rate(&self, bytes_per_second: Option<u64>) {
        // Relaxed: the number orders nothing else.
        self.copy_rate.store(bytes_per_second.unwrap_or(0), Ordering::Relaxed);
    }

    /// See [`Capture::set_copy_rate`].
    #[must_use]
    pub fn copy_rate(&self) -> Option<u64> {
        // Relaxed: as above.
        let rate = self.copy_rate.load(Ordering::Relaxed);
        (rate > 0).then_some(rate)
    }

    /// How far a copy is.
    #[must_use]
    pub fn progress(&self) -> &CopyProgress {
        &self.progress
    }

    /// Happens whenever the shipper gave ring memory back.
    #[must_use]
    pub fn released(&self) -> &Event {
        &self.released
    }

    /// True while changes are put in the ring.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.ring.capture_is_on()
    }

    /// Gives the capture up: from here on changes are only done, until a copy has begun.
    pub fn lose(&self, reason: GapReason) {
        if self.phases.lose(reason, || self.ring.turn_capture_off()) {
            tracing::warn!(
                volume = self.name,
                "changes are not captured any more: {}; a copy of the volume will follow by itself",
                reason.text()
            );
        }
        self.desk.look_again();
    }

    /// Marks what a copy has to compare that the collector's welcome asks for, before it is wanted.
    /// Whatever else is missing is in the map by itself: who opens the volume, does not capture a
    /// change or drops a record puts it there.
    fn doubt(&self, cause: CopyCause) {
        match cause {
            // Nothing is known of what the collector holds.
            CopyCause::Initial
            | CopyCause::Seeded
            | CopyCause::Gap(
                GapReason::CollectorBehind
                | GapReason::SourceBehind
                | GapReason::OutsideChange
                | GapReason::MapInDoubt,
            ) => self.intent.doubt_all(),
            // Of what a predecessor has missed, or its copy has not brought, the bits are left.
            CopyCause::Gap(GapReason::RingLost | GapReason::CopyInterrupted) => {
                self.intent.doubt_marked();
            }
            // In the map to the leaf, or to the region where the backing store failed; what a new
            // size leaves in doubt is marked by who has seen it.
            CopyCause::Asked
            | CopyCause::Gap(
                GapReason::RingFull
                | GapReason::BackingError
                | GapReason::Paused
                | GapReason::Resized,
            ) => {}
        }
    }

    /// A person wants that changes are not captured: they are only done, and no copy begins.
    pub fn pause(&self) {
        if self.phases.pause(|| self.ring.turn_capture_off()) {
            tracing::warn!(
                volume = self.name,
                "protection is paused: changes are not captured until a person resumes it"
            );
        }
        self.desk.look_again();
    }

    /// Ends a pause: a copy brings the collector level again.
    pub fn resume(&self) {
        if self.phases.resume() {
            tracing::info!(volume = self.name, "protection is resumed; a comparison follows");
        }
    }

    /// The wish for a copy that was the last one, while every change is captured and none is
    /// wanted; `None` else. As long as it is the same, nothing was missed.
    #[must_use]
    pub fn whole_round(&self) -> Option<CopyRound> {
        self.phases.whole_round().filter(|_| self.is_on())
    }

    /// True during a pause.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.phases.phase() == Phase::Paused
    }

    /// A person wants a comparison of the whole volume with the collector's copy. A copy that runs
    /// or is wanted makes it, or the one that follows a pause.
    pub fn ask_whole_copy(&self) {
        self.intent.doubt_all();
        self.phases.ask_copy();
        self.desk.look_again();
    }

    /// A person wants what is marked in the map to be made equal. Nothing is to be done when
    /// nothing is; where a copy runs or is wanted, that one does it.
    pub fn ask_copy(&self) {
        if self.intent.differing_bytes() > 0 {
            self.phases.ask_copy();
            self.desk.look_again();
        }
    }

    /// A verification is wanted; it takes the place of one that runs.
    pub fn verify(&self, wish: VerifyWish) {
        self.verifications.ask(wish);
        self.desk.look_again();
    }

    /// No verification is wanted any more.
    pub fn stop_verify(&self) {
        self.verifications.stop();
        self.desk.look_again();
    }

    /// The collector can't go on from what it holds: a copy is made.
    pub fn want_copy(&self, cause: CopyCause) {
        self.doubt(cause);
        self.phases.want_copy(cause, || ());
        self.desk.look_again();
    }

    /// Ends what runs for the volume by itself: copies, and who waits for room.
    pub fn close(&self) {
        self.phases.close();
        self.verifications.close();
        self.desk.look_again();
        self.released.notify_all();
    }

    /// Puts a record without data of the volume in the stream; its body is `body`. `None` when
    /// the ring has no room.
    pub fn stamp(&self, kind: RecordKind, aux: u64, body: &[u8]) -> Option<Seq> {
        let mut spec =
            RecordSpec { kind, offset_bytes: 0, len_bytes: 0, payload_bytes: 0, flags: 0, aux };
        let mut extent = None;
        if !body.is_empty() {
            let mut memory = self.ring.reserve(0, body.len())?;
            if memory.bytes_mut().len() != body.len() {
                return None;
            }
            memory.bytes_mut().copy_from_slice(body);
            spec.payload_bytes = u32::try_from(body.len()).ok()?;
            extent = Some(memory);
        }
        let record = self.ring.claim(&spec, extent).ok()?;
        let seq = record.seq();
        record.commit();
        Some(seq)
    }

    /// Puts a bookmark behind every change that was acknowledged before this call. `None` when
    /// changes are not captured just now or the ring is full.
    pub fn bookmark(&self, bookmark: &Bookmark) -> Option<Seq> {
        if !self.is_on() {
            return None;
        }
        let mut body = Vec::new();
        bookmark.encode(&mut body);
        self.stamp(RecordKind::Bookmark, 0, &body)
    }
}
