//! Merging: what leaves retention goes into the seed disk.
//!
//! What enters: the copy of a volume and what is to be kept of it ([`MergeLimits`]). What leaves:
//! a seed at a later state and a shorter journal. Who owns the state: seed and journal; here is
//! decided only how far a merge goes. What a crash may lose: nothing ([`crate::seed`]).
//!
//! A merge ends with the last record of a sealed segment, M. M is never beyond the oldest state
//! that something reads, nor beyond the newest one that can be opened, so that one stays, however
//! long a gap lasts. Up to there segments go that are older than the window, or while the journal
//! has more bytes than it may have. While no state can be opened yet (the first copy of a volume)
//! sealed segments are of no use to anybody and go at once. One call is one step of at most
//! [`STEP_BYTES_MAX`], because a step that a crash cuts off is repeated at the next start before
//! the volume is read.

mod merger;

use tidemark_wire::{Seq, WallMicros};

pub use self::merger::Merger;
use crate::error::JournalError;
use crate::ingest::volume::Held;
use crate::seed::{Merged, Pace, merge_into_seed};
use crate::storage::Storage;

/// Bytes of segments that one step takes, at most; one segment may be larger.
pub const STEP_BYTES_MAX: u64 = 256 << 20;

/// What of a journal is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeLimits {
    /// Segments whose last record was captured before this leave.
    pub older_than: WallMicros,
    /// While the journal has more bytes than this, its oldest segment leaves.
    pub journal_bytes_max: Option<u64>,
}

/// Where a step goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    to: Seq,
    /// Why it goes beyond the window: the journal was too large. When its last record was
    /// captured.
    shortened: Option<WallMicros>,
}

/// What a step did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// What went into the seed.
    pub merged: Merged,
    /// States within the window went, because the journal was too large: the time from which on
    /// states are kept.
    pub shortened: Option<WallMicros>,
}

/// Merges what does not have to be kept, one step. Does nothing when all of it has to be, or when
/// something reads an older state.
///
/// # Errors
/// `Io`: the next call goes on. `Damaged`: the tables of the oldest segment are; it stays, and so
/// does all that follows.
pub fn merge_once<S: Storage>(
    held: &Held<S>,
    limits: &MergeLimits,
    pace: &mut Pace<'_>,
) -> Result<Step, JournalError> {
    let (reader, seed) = (&held.reader, &held.seed);
    let target = match seed.merging_to() {
        Some(to) => Some(Target { to, shortened: None }),
        None => choose(held, limits)?,
    };
    let Some(target) = target else { return Ok(Step::default()) };
    let merged = merge_into_seed(reader, seed, target.to, pace)?;
    let shortened = target.shortened.filter(|_| merged.to == Some(target.to));
    Ok(Step { merged, shortened })
}

fn choose<S: Storage>(
    held: &Held<S>,
    limits: &MergeLimits,
) -> Result<Option<Target>, JournalError> {
    let newest = held.reader.newest_offered()?;
    let pin = held.reader.oldest_pin();
    let bound = newest.into_iter().chain(pin).min().unwrap_or(Seq(u64::MAX));
    let segments = held.reader.segments();
    let mut left_bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let (mut step_bytes, mut target) = (0, None);
    for segment in segments.iter().take_while(|segment| segment.sealed) {
        step_bytes += segment.bytes;
        if segment.damage.is_some()
            || segment.last_seq > bound
            || (target.is_some() && step_bytes > STEP_BYTES_MAX)
        {
            break;
        }
        let due = newest.is_none() || segment.last_time < limits.older_than;
        let large = limits.journal_bytes_max.is_some_and(|max| left_bytes > max);
        if !due && !large {
            break;
        }
        left_bytes -= segment.bytes;
        let shortened = (!due).then_some(segment.last_time);
        target = Some(Target { to: segment.last_seq, shortened });
    }
    Ok(target)
}
