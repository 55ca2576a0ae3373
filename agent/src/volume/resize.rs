//! A disk that gets another size while it is served.
//!
//! What enters: the size of the backing store, which is looked at every now and then
//! ([`Volume::has_other_size`]). What leaves: the volume's new size, and the record in its stream
//! ([`Volume::resize`]). All of the volume is locked for that: every change before has ended, and
//! every one behind it is held against the new size. Where the volume grows by a hole, or shrinks,
//! the record says all that changed. Else, and while a copy runs, the capture is lost and a copy
//! follows. A crash in between leaves a volume whose size the collector does not know; its next
//! session finds that.
//!
//! A file that somebody cuts while it is served is grown again by every write behind its new end
//! that comes before the next look. So writes note how far they went: a file that ends where one
//! of them may have made it end was cut at a place that nobody knows any more, and all of it is
//! compared. A write up to the very end of the volume would hide the cut, so the file is looked at
//! before each of those; what is left is a cut in the moment between that look and the write. A
//! disk that is cut and grown again to its size between two looks, of which there is one a second,
//! is not told from one that was left alone: only a comparison of the whole volume finds that.

use std::io;
use std::sync::atomic::Ordering;

use tidemark_block::store::Store;
use tidemark_block::{ByteRange, DeviceError, StatusExtent};
use tidemark_wire::body::GapReason;
use tidemark_wire::limits::VOLUME_BYTES_MAX;

use super::Volume;

/// A volume that has got another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resized {
    /// Its size before, in bytes.
    pub old_bytes: u64,
    /// Its size now, in bytes.
    pub new_bytes: u64,
    /// A record says all that changed; otherwise a copy follows.
    pub is_recorded: bool,
}

/// Why a volume keeps its size.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// The backing store can't be looked at.
    #[error("the size of its backing store can't be found out: {0}")]
    Look(#[source] io::Error),
    /// A size that no volume has.
    #[error(
        "its backing store has {size_bytes} bytes now, which no volume can have; what lies behind \
         its end fails until it has a size between one block and {VOLUME_BYTES_MAX} bytes"
    )]
    Size {
        /// What it has.
        size_bytes: u64,
    },
}

impl<S: Store> Volume<S> {
    /// The size of the backing store, in whole units, when it is not the volume's.
    ///
    /// # Errors
    /// The operating system's.
    pub fn has_other_size(&self) -> io::Result<Option<u64>> {
        // Relaxed: the figure is taken before the look, so a write that it does not count any more
        // had ended before, and the look shows what it did to the file.
        let written_to = self.written_to.swap(0, Ordering::Relaxed);
        let size_bytes = self.whole_units(self.store().size_now()?);
        if size_bytes == self.size_bytes() {
            return Ok(None);
        }
        self.written_to.fetch_max(written_to, Ordering::Relaxed);
        Ok(Some(size_bytes))
    }

    fn whole_units(&self, size_bytes: u64) -> u64 {
        size_bytes - size_bytes % self.unit_bytes()
    }

    /// Takes the size of the backing store as the volume's; `None` when it is that already.
    ///
    /// # Errors
    /// [`ResizeError`]; the volume stays as it is.
    pub async fn resize(&self) -> Result<Option<Resized>, ResizeError> {
        let everything = ByteRange::new(0, VOLUME_BYTES_MAX).expect("the largest volume");
        let _held = self.locks.lock(everything).await;
        let Some(new_bytes) = self.has_other_size().map_err(ResizeError::Look)? else {
            return Ok(None);
        };
        if !(1..=VOLUME_BYTES_MAX).contains(&new_bytes) {
            return Err(ResizeError::Size { size_bytes: new_bytes });
        }
        let old_bytes = self.size_bytes();
        // Relaxed: the lock orders it behind every write.
        let written_to = self.written_to.load(Ordering::Relaxed);
        let tail = ByteRange::between(old_bytes, new_bytes);
        let is_known = match tail {
            Some(tail) => self.is_hole(tail),
            None => !self.store().grows_by_writing() || written_to < new_bytes,
        };
        // The collector may hold what was there before a cut, and a power cut may take the records.
        let _entered = match tail {
            Some(tail) => {
                self.intent.map().resize(new_bytes);
                Some(self.intent.enter(tail).await)
            }
            None => None,
        };
        let is_recorded = self.capture.resize(new_bytes, is_known);
        if !is_recorded {
            let map = self.intent.map();
            match tail {
                // Also a hole: the collector may hold what was there before a cut that was not
                // recorded either.
                Some(tail) => map.doubt(tail),
                None if is_known => {}
                None => map.doubt_all(),
            }
            self.capture.lose(GapReason::Resized);
        }
        Ok(Some(Resized { old_bytes, new_bytes, is_recorded }))
    }

    fn is_hole(&self, range: ByteRange) -> bool {
        let mut extents = Vec::with_capacity(1);
        let asked = self.store().data_extents(range, 1, &mut extents);
        let covers = |extent: &StatusExtent| extent.zero && extent.len_bytes >= range.len();
        asked.is_ok() && extents.first().is_some_and(covers)
    }

    /// Before a change of `range`, whose lock is held: refuses one at the end of a file that is
    /// not there any more.
    pub(super) fn check_end(&self, range: ByteRange) -> Result<(), DeviceError> {
        let size_bytes = self.size_bytes();
        let is_last = range.align_outward(self.unit_bytes()).end() == size_bytes;
        if !is_last || !self.store().grows_by_writing() {
            return Ok(());
        }
        match self.store().size_now() {
            Ok(now) if now < size_bytes => Err(DeviceError::OutOfRange { range, size_bytes: now }),
            Ok(_) => Ok(()),
            Err(error) => Err(DeviceError::io(range, error)),
        }
    }

    /// A change of `range`, whose lock is held, has ended.
    pub(super) fn note_end(&self, range: ByteRange) {
        // Relaxed: see `has_other_size`. The load spares the steady state a write to shared memory.
        let end = range.align_outward(self.unit_bytes()).end();
        if self.written_to.load(Ordering::Relaxed) < end {
            self.written_to.fetch_max(end, Ordering::Relaxed);
        }
    }

    /// The error of what the store failed; where the store ends before, it is one of the range.
    pub(super) fn store_error(&self, range: ByteRange, error: io::Error) -> DeviceError {
        match self.store().size_now() {
            Ok(size_bytes) if size_bytes < range.end() => {
                DeviceError::OutOfRange { range, size_bytes }
            }
            // It did when it was read, and a write behind that has made it grow again.
            Ok(size_bytes) if error.kind() == io::ErrorKind::UnexpectedEof => {
                DeviceError::OutOfRange { range, size_bytes: size_bytes.min(range.start()) }
            }
            _ => DeviceError::io(range, error),
        }
    }
}
