//! The volume as a [`Device`]: what frontends call.

use std::io;
use std::sync::atomic::{Ordering, fence};

use tidemark_block::store::Store;
use tidemark_block::{
    ByteRange, Chunk, Device, DeviceError, Durability, Geometry, PAYLOAD_BYTES_MAX, Payload,
    StatusExtent, ZeroOptions, check_range, check_read, check_write,
};
use tidemark_wire::RecordKind;
use tidemark_wire::body::GapReason;
use tidemark_wire::planted::{self, Bug};
use tidemark_wire::record::{FLAG_FUA, FLAG_NO_HOLE, RecordSpec};

use tidemark_block::range_lock::RangeGuard;

use super::{Volume, VolumePayload, data_spec, range_spec};
use crate::ring::{Extent, InFlight};

impl<S: Store> Volume<S> {
    /// Claims a record while changes are captured; `None` when they are not, also from now on.
    /// What it would have said is then missing.
    fn claim(&self, spec: &RecordSpec) -> Option<InFlight> {
        let range =
            || ByteRange::new(spec.offset_bytes, spec.len_bytes).expect("a range of the volume");
        if !self.capture.is_on() {
            self.miss(range());
            return None;
        }
        let record = self.ring().claim(spec, None).ok();
        if record.is_none() {
            self.miss_for_want_of_room(range());
        }
        record
    }

    /// A change that is in flight is not captured, because changes are not. A copy that has begun
    /// meanwhile may have been past it: then it has to be another one.
    fn miss(&self, range: ByteRange) {
        self.intent().map().miss(range);
        // Pairs with the fence in `Ring::turn_capture_on`: either that is seen here, or the copy
        // that follows it sees what is missed.
        fence(Ordering::SeqCst);
        if self.capture.is_on() {
            self.capture.lose(GapReason::RingFull);
        }
    }

    /// A change that is in flight has no room in the ring. In this order: a copy that is wanted
    /// from here on finds it.
    fn miss_for_want_of_room(&self, range: ByteRange) {
        self.intent().map().miss(range);
        self.capture.lose(GapReason::RingFull);
    }

    async fn write_captured(
        &self,
        mut extent: Extent,
        range: ByteRange,
        durability: Durability,
    ) -> io::Result<()> {
        if !self.capture.is_on() {
            self.miss(range);
            return self.write_missed(range.start(), extent.lend(), durability).await;
        }
        let good = self.intent().map().flushed();
        let spec = data_spec(RecordKind::Write, range, flags(durability, false));
        match self.ring().claim(&spec, Some(extent)) {
            Ok(record) => {
                let chunk = record.chunk().expect("a record of data has memory");
                let written = self.units.write(range.start(), chunk, durability).await;
                self.settle(record, written, good)
            }
            Err(extent) => {
                self.miss_for_want_of_room(range);
                if planted::is(Bug::FullRingFails) {
                    return Err(io::ErrorKind::OutOfMemory.into());
                }
                let mut extent = extent.expect("a refused claim gives its extent back");
                self.write_missed(range.start(), extent.lend(), durability).await
            }
        }
    }

    /// Writes what is not captured.
    async fn write_missed(
        &self,
        start: u64,
        chunk: Chunk,
        durability: Durability,
    ) -> io::Result<()> {
        let good = self.intent().map().flushed();
        let written = self.units.write(start, chunk, durability).await;
        if written.is_err() {
            self.doubt_since(good);
        }
        written
    }

    /// Writes a payload from outside the ring. When changes are captured (again) by now, it is
    /// copied into the ring, in as many records as the free memory is torn into.
    async fn write_spare(
        &self,
        start: u64,
        chunk: Chunk,
        durability: Durability,
    ) -> io::Result<()> {
        let good = self.intent().map().flushed();
        let mut records = Vec::new();
        let (mut done, mut has_room) = (0, true);
        while done < chunk.len() && self.capture.is_on() {
            let at = start + done as u64;
            let claimed = self.ring().reserve(at, chunk.len() - done).and_then(|mut extent| {
                let len = extent.bytes_mut().len();
                extent.bytes_mut().copy_from_slice(&chunk.as_slice()[done..done + len]);
                let range = ByteRange::new(at, len as u64).expect("a part of the write");
                let spec = data_spec(RecordKind::Write, range, flags(durability, false));
                Some((len, self.ring().claim(&spec, Some(extent)).ok()?))
            });
            let Some((len, record)) = claimed else {
                has_room = false;
                break;
            };
            done += len;
            records.push(record);
        }
        if done < chunk.len() {
            let missing = ByteRange::between(start + done as u64, start + chunk.len() as u64);
            let missing = missing.expect("the rest of the write");
            if has_room {
                self.miss(missing);
            } else {
                self.miss_for_want_of_room(missing);
            }
        }
        let written = self.write_missed(start, chunk, durability).await;
        for record in records {
            let part = if written.is_ok() { Ok(()) } else { Err(io::ErrorKind::Other.into()) };
            // The write's own result is the one that counts.
            let _ = self.settle(record, part, good);
        }
        written
    }

    /// Runs a change without payload under its record.
    async fn change(
        &self,
        spec: &RecordSpec,
        work: impl Future<Output = io::Result<()>>,
    ) -> io::Result<()> {
        let good = self.intent().map().flushed();
        match self.claim(spec) {
            Some(record) => {
                let result = work.await;
                // A wish that the store can't grant has changed nothing.
                if result.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::Unsupported) {
                    record.void();
                    return result;
                }
                self.settle(record, result, good)
            }
            None => {
                let result = work.await;
                if result.as_ref().is_err_and(|e| e.kind() != io::ErrorKind::Unsupported) {
                    self.doubt_since(good);
                }
                result
            }
        }
    }
}

impl<S: Store> Device for Volume<S> {
    type Payload = VolumePayload;

    fn geometry(&self) -> Geometry {
        let size_bytes = self.size_bytes();
        Geometry { size_bytes, ..self.units.store().geometry().as_device() }
    }

    async fn reserve(&self, range: ByteRange) -> Result<VolumePayload, DeviceError> {
        check_write(&self.geometry(), range)?;
        while planted::is(Bug::FullRingBlocks) && self.ring().used().is_beyond_half() {
            self.capture.released().wait().await;
        }
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX).min(PAYLOAD_BYTES_MAX);
        if self.capture.is_on() {
            match self.ring().reserve(range.start(), len) {
                Some(extent) => {
                    return Ok(VolumePayload::Captured { start: range.start(), extent });
                }
                None => self.capture.lose(GapReason::RingFull),
            }
        }
        let mut chunk = self.spare.take().await;
        chunk.truncate(len);
        Ok(VolumePayload::Spare { start: range.start(), chunk })
    }

    async fn write(
        &self,
        payload: VolumePayload,
        durability: Durability,
    ) -> Result<(), DeviceError> {
        let range = payload.range();
        let units = range.align_outward(self.unit_bytes());
        let _held =
            if planted::is(Bug::RangeUnlocked) { None } else { Some(self.lock(range).await?) };
        self.check_end(range)?;
        let _entered = self.intent.enter(units).await;
        let written = match payload {
            VolumePayload::Captured { extent, .. } => {
                self.write_captured(extent, range, durability).await
            }
            VolumePayload::Spare { start, chunk } => {
                self.write_spare(start, chunk, durability).await
            }
        };
        self.note_end(range);
        written.map_err(|error| self.store_error(range, error))
    }

    async fn read(&self, start: u64, into: Chunk) -> Result<Chunk, DeviceError> {
        let range = check_read(&self.geometry(), start, into.len())?;
        self.units.read(start, into).await.map_err(|error| self.store_error(range, error))
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        let all = ByteRange::new(0, self.size_bytes()).expect("a size from 0 on");
        self.sync().await.map_err(|error| DeviceError::io(all, error))?;
        let nowhere = ByteRange::new(0, 0).expect("empty");
        if let Some(record) = self.claim(&range_spec(RecordKind::Flush, nowhere, 0)) {
            record.commit();
        }
        Ok(())
    }

    async fn trim(&self, range: ByteRange, durability: Durability) -> Result<(), DeviceError> {
        check_write(&self.geometry(), range)?;
        if let Some(units) = range.align_inward(self.unit_bytes()) {
            let _held = self.lock(units).await?;
            let _entered = self.intent.enter(units).await;
            let spec = range_spec(RecordKind::Trim, units, flags(durability, false));
            match self.change(&spec, self.units.store().punch(units)).await {
                // A trim is a wish; one that can't be granted leaves the bytes as they were.
                Err(error) if error.kind() != io::ErrorKind::Unsupported => {
                    return Err(self.store_error(units, error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        self.settle_durability(range, durability).await
    }

    async fn write_zeroes(
        &self,
        range: ByteRange,
        options: ZeroOptions,
    ) -> Result<(), DeviceError> {
        check_write(&self.geometry(), range)?;
        if !range.is_empty() {
            let units = range.align_outward(self.unit_bytes());
            let _held = self.lock(range).await?;
            self.check_end(range)?;
            let _entered = self.intent.enter(units).await;
            let flags = flags(options.durability, options.no_hole);
            let spec = range_spec(RecordKind::WriteZeroes, range, flags);
            let work =
                async { self.units.zero(range, options.no_hole, options.fast).await.map(|_| ()) };
            let zeroed = self.change(&spec, work).await;
            self.note_end(range);
            zeroed.map_err(|error| DeviceError::zeroing(range, error))?;
        }
        self.settle_durability(range, options.durability).await
    }

    async fn block_status(
        &self,
        range: ByteRange,
        extents_max: usize,
        extents: &mut Vec<StatusExtent>,
    ) -> Result<(), DeviceError> {
        check_range(&self.geometry(), range)?;
        let status = self.units.store().data_extents(range, extents_max, extents);
        status.map_err(|error| DeviceError::io(range, error))
    }

    async fn cache(&self, range: ByteRange) -> Result<(), DeviceError> {
        check_range(&self.geometry(), range)
    }
}

impl<S: Store> Volume<S> {
    /// Waits for the units of `range`. The disk may have got smaller since the request was let in;
    /// while the lock is held it does not.
    async fn lock(&self, range: ByteRange) -> Result<RangeGuard<'_>, DeviceError> {
        let held = self.locks.lock(range.align_outward(self.unit_bytes())).await;
        check_write(&self.geometry(), range)?;
        Ok(held)
    }

    async fn settle_durability(
        &self,
        range: ByteRange,
        durability: Durability,
    ) -> Result<(), DeviceError> {
        match durability {
            Durability::Cached => Ok(()),
            Durability::Stable => self.sync().await.map_err(|error| DeviceError::io(range, error)),
        }
    }
}

impl VolumePayload {
    fn range(&self) -> ByteRange {
        let (start, len) = match self {
            Self::Captured { start, extent } => (*start, extent.len()),
            Self::Spare { start, chunk } => (*start, chunk.len()),
        };
        ByteRange::new(start, len as u64).expect("checked when it was reserved")
    }
}

fn flags(durability: Durability, no_hole: bool) -> u8 {
    let fua = if durability == Durability::Stable { FLAG_FUA } else { 0 };
    fua | if no_hole { FLAG_NO_HOLE } else { 0 }
}
