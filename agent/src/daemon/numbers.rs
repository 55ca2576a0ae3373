//! Reserves the numbers of records ahead.
//!
//! In: the passing of time. Out: numbers that the ring may give, once they are durably this
//! agent's in the volume's state file. They are reserved when half of a reservation is left, and
//! every [`RESERVE_EVERY`] in which there were records; from then on only numbers behind the former
//! reservation are given. So a state file that is put back to an older one, with its machine or
//! without it, is noticed: the collector then holds a number that this state had not reserved. A
//! machine that is put back by less than [`RESERVE_EVERY`] looks like one that lost its power. So
//! each reservation also keeps which records were claimed before it ([`VolumeState::known`]); after
//! a power cut the collector says what those behind have changed, and that is compared as well.
//!
//! [`VolumeState::known`]: crate::state::VolumeState::known

use std::time::Duration;

use tidemark_wire::Seq;

use crate::ring::Ring;
use crate::state::{KeptState, SEQ_RESERVATION};

/// How long a reservation is used while there are records.
const RESERVE_EVERY: Duration = Duration::from_secs(10);

/// See the module's documentation.
pub struct Numbers {
    /// When the next reservation is due.
    next: Duration,
    /// The ring's next number at the last reservation.
    seen: Seq,
    /// The last try failed, which was said.
    cannot: bool,
}

impl Numbers {
    /// Of a volume whose ring begins at a reservation that was just made.
    #[must_use]
    pub fn new(ring: &Ring, now: Duration) -> Self {
        Self { next: now + RESERVE_EVERY, seen: ring.next_seq(), cannot: false }
    }

    /// Does what has to be done now and then. Where that fails, the numbers run out at some point,
    /// and the volume goes on without capture.
    pub fn keep(&mut self, volume: &str, state: &KeptState, ring: &Ring, now: Duration) {
        let (next, reserved) = (ring.next_seq(), state.get().reserved_until);
        let is_short = next.0 + SEQ_RESERVATION / 2 > reserved.0;
        let is_due = now >= self.next && next != self.seen;
        if !is_short && !is_due {
            return;
        }
        let until = Seq(next.max(reserved).0 + SEQ_RESERVATION);
        let last_time = ring.last_time();
        let kept = state.update(|state| {
            state.reserved_until = until;
            state.known = Seq(next.0 - 1);
            state.last_time = state.last_time.max(last_time);
        });
        match kept {
            Ok(()) => {
                ring.set_seq_limit(until);
                ring.raise_seq(Seq(reserved.0 - 1));
                *self = Self::new(ring, now);
            }
            Err(error) if !self.cannot => {
                tracing::error!(
                    volume,
                    "can't reserve more record numbers: {error}; make room there, or changes will \
                     not be captured any more"
                );
                self.cannot = true;
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tidemark_wire::{RecordKind, VolumeId};

    use super::*;
    use crate::capture::Capture;
    use crate::clock::{Clock, SystemClock};
    use crate::daemon::open::new_state;
    use crate::intent_log::map::IntentMap;
    use crate::ring::RingSpec;
    use crate::state::{StateFile, VolumeState};

    #[test]
    fn a_state_from_before_is_behind_every_later_record() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = VolumeId::from_bytes([7; 16]);
        let state = new_state(volume);
        let state = VolumeState { reserved_until: Seq(SEQ_RESERVATION), ..state };
        let file = StateFile::new(dir.path(), "data");
        file.store(&state).expect("stored");
        let kept = KeptState::new(file, state);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let spec = RingSpec { volume, ring_bytes: 1 << 20, slots: 64, boot_id: [9; 16] };
        let ring = Ring::in_memory(&spec, Seq(1), clock).expect("a ring");
        ring.set_seq_limit(Seq(SEQ_RESERVATION));
        let capture = Capture::new("data".into(), ring, Arc::new(IntentMap::volatile(1 << 20)));
        let mut numbers = Numbers::new(capture.ring(), Duration::ZERO);
        let keep = |numbers: &mut Numbers, at: Duration| {
            numbers.keep("data", &kept, capture.ring(), at);
            kept.get().reserved_until
        };
        let stamp = || capture.stamp(RecordKind::Flush, 0, &[]).expect("there is room");
        assert_eq!(keep(&mut numbers, RESERVE_EVERY * 2), Seq(SEQ_RESERVATION), "nothing new");
        let mut before = kept.get().reserved_until;
        for round in 3..6 {
            assert!(stamp() < before);
            let after = keep(&mut numbers, RESERVE_EVERY * round);
            assert!(after > before);
            assert!((before..after).contains(&stamp()), "round {round}");
            let soon = RESERVE_EVERY * round + Duration::from_secs(1);
            assert_eq!(keep(&mut numbers, soon), after, "not due yet");
            before = after;
        }
    }
}
