//! Clears the bits of regions that are known to be equal again, every now and then, and writes what
//! is wanted without a change that waits for it.
//!
//! A sweep makes two marks: a flush of the backing store begins, and then the newest number in the
//! stream is taken. The next sweep clears a bit when nothing is in flight in its region, its last
//! change ended before that flush began, the flush succeeded, nothing of it is known to be missing,
//! and the collector has everything up to that number. A change takes its number before it ends, so
//! its record is among those. That is also what makes a region idle: it was not changed from one
//! sweep to the next.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidemark_block::store::Store;
use tidemark_wire::Seq;
use tidemark_wire::planted::{self, Bug};

use super::IntentLog;
use super::region::{ClearUntil, FlushEpoch};

/// Pause between two sweeps.
pub const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// Pause between two looks for wanted bits that no change waits for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a sweep needs of the volume.
#[allow(async_fn_in_trait)]
pub trait Swept {
    /// The newest number that a record of the volume has.
    fn newest(&self) -> Seq;

    /// The collector has all records up to this one; `None` while this process has not heard from
    /// it: it may lack what a predecessor took for sent.
    fn released(&self) -> Option<Seq>;

    /// Makes every change that has ended durable in the backing store. After an error what was
    /// changed since the last success is in doubt.
    ///
    /// # Errors
    /// The backing store's.
    async fn flush(&self) -> io::Result<()>;

    /// Waits; false when the volume is taken down meanwhile.
    async fn pause(&self, duration: Duration) -> bool;
}

/// What one sweep left for the next.
#[derive(Clone, Copy, Debug)]
pub struct Marks {
    /// The flush that it began, when that succeeded.
    flushed: FlushEpoch,
    /// The newest number behind the beginning of that flush.
    newest: Seq,
}

impl Marks {
    /// Nothing may clear.
    pub const NONE: Self = Self { flushed: FlushEpoch::NEVER, newest: Seq(0) };
}

impl<S: Store> IntentLog<S> {
    /// Sweeps until the volume is taken down.
    pub async fn run(&self, volume: &impl Swept) {
        let mut marks = Marks::NONE;
        let mut since_sweep = Duration::ZERO;
        while volume.pause(LOOK_EVERY).await {
            since_sweep += LOOK_EVERY;
            if since_sweep >= SWEEP_EVERY {
                since_sweep = Duration::ZERO;
                marks = self.sweep(volume, marks).await;
            }
            if self.map.is_dirty() && !self.map.is_failed() {
                self.write().await;
            }
        }
    }

    /// Clears what may clear since the sweep that left `before`, and makes marks for the next.
    /// Does not write: whoever needs a bit next writes the page, or [`IntentLog::run`].
    pub async fn sweep(&self, volume: &impl Swept, before: Marks) -> Marks {
        if volume.released().is_some_and(|released| released >= before.newest) {
            let until = ClearUntil { epoch: before.flushed };
            let cleared = self.map.clear(until);
            // Relaxed: a figure for people.
            self.counters.cleared.fetch_add(cleared, Ordering::Relaxed);
        }
        if self.map.unflushed().next().is_none() {
            return Marks { flushed: self.map.epochs().good(), newest: volume.newest() };
        }
        if planted::is(Bug::ClearedWithoutFlush) {
            return Marks { flushed: self.map.epochs().of_change(), newest: volume.newest() };
        }
        let epoch = self.map.flush_begins();
        let marks = Marks { flushed: epoch, newest: volume.newest() };
        match volume.flush().await {
            Ok(()) => {
                self.map.flush_ended(epoch);
                marks
            }
            Err(_) => Marks::NONE,
        }
    }
}
