//! One write of the kernel that became several payloads of the device.
//!
//! A write longer than the memory that a device hands out at a time is passed on in parts, each
//! as soon as it is copied, so that no thread holds memory while it waits for more. The parts are
//! written side by side; whoever ends the last one answers the kernel, once.

use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender};
use fuser::Errno;

/// Counts the parts of one write. The first error stands for the whole write: the client then
/// knows nothing about any byte of it, as after an error of a disk.
#[derive(Debug, Default)]
struct Countdown {
    parts_left: usize,
    first_error: Option<Errno>,
}

impl Countdown {
    /// Ends one part; the outcome of the write when it was the last.
    fn end_part(&mut self, result: Result<(), Errno>) -> Option<Result<(), Errno>> {
        assert!(self.parts_left > 0, "more parts ended than were begun");
        self.parts_left -= 1;
        self.first_error = self.first_error.or(result.err());
        (self.parts_left == 0).then(|| self.first_error.take().map_or(Ok(()), Err))
    }
}

/// A write in parts, with what has to be answered at the end.
#[derive(Debug)]
pub(super) struct SplitWrite<R> {
    state: Mutex<(Countdown, Option<R>)>,
}

impl<R> SplitWrite<R> {
    /// Begins a part. The thread that makes the parts holds one of its own until it has made
    /// them all, so the write can't end before.
    pub(super) fn begin_part(&self) {
        self.lock().0.parts_left += 1;
    }

    /// Ends a part. The last one gets what has to be answered, and the outcome.
    pub(super) fn end_part(&self, result: Result<(), Errno>) -> Option<(R, Result<(), Errno>)> {
        let mut state = self.lock();
        let outcome = state.0.end_part(result)?;
        state.1.take().map(|reply| (reply, outcome))
    }

    // The state is whole between any two statements, so a poisoned lock is usable.
    fn lock(&self) -> std::sync::MutexGuard<'_, (Countdown, Option<R>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Split writes that are not in use, kept so that none is allocated in the steady state.
#[derive(Debug)]
pub(super) struct SplitWrites<R> {
    put: Sender<Arc<SplitWrite<R>>>,
    take: Receiver<Arc<SplitWrite<R>>>,
}

impl<R> SplitWrites<R> {
    /// Keeps at most `kept_max`. More are allocated when more are in flight, and freed again.
    pub(super) fn new(kept_max: usize) -> Self {
        let (put, take) = crossbeam_channel::bounded(kept_max);
        Self { put, take }
    }

    /// A write with one part begun, which belongs to the caller.
    pub(super) fn begin(&self, reply: R) -> Arc<SplitWrite<R>> {
        let fresh = (Countdown { parts_left: 1, first_error: None }, Some(reply));
        match self.take.try_recv() {
            Ok(kept) => {
                *kept.lock() = fresh;
                kept
            }
            Err(_) => Arc::new(SplitWrite { state: Mutex::new(fresh) }),
        }
    }

    /// Takes back a write that has ended.
    pub(super) fn keep(&self, ended: Arc<SplitWrite<R>>) {
        // A full store means that enough are kept; this one is freed.
        drop(self.put.try_send(ended));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_part_answers() {
        let writes = SplitWrites::new(2);
        let write = writes.begin("reply");
        write.begin_part();
        write.begin_part();
        assert_eq!(write.end_part(Ok(())), None);
        assert_eq!(write.end_part(Ok(())), None);
        assert_eq!(write.end_part(Ok(())), Some(("reply", Ok(()))));
    }

    #[test]
    fn the_first_error_is_the_answer() {
        let writes = SplitWrites::new(2);
        let write = writes.begin("reply");
        write.begin_part();
        write.begin_part();
        assert_eq!(write.end_part(Err(Errno::ENOSPC)), None);
        assert_eq!(write.end_part(Err(Errno::EIO)), None);
        assert_eq!(write.end_part(Ok(())), Some(("reply", Err(Errno::ENOSPC))));
    }

    #[test]
    fn a_kept_write_begins_anew() {
        let writes = SplitWrites::new(1);
        let first = writes.begin(1);
        let address = Arc::as_ptr(&first);
        assert_eq!(first.end_part(Err(Errno::EIO)), Some((1, Err(Errno::EIO))));
        writes.keep(first);
        let second = writes.begin(2);
        assert_eq!(Arc::as_ptr(&second), address);
        let third = writes.begin(3);
        assert_eq!(second.end_part(Ok(())), Some((2, Ok(()))));
        assert_eq!(third.end_part(Ok(())), Some((3, Ok(()))));
        writes.keep(second);
        writes.keep(third);
        assert_eq!(writes.take.len(), 1);
    }
}
