//! The readers' side of a journal: what is durable, which states are offered, where records lie.
//!
//! The writer publishes after each commit; a reader takes what it needs under a lock that is
//! held for a copy of a few words, so neither waits for the other's I/O. Shared by many threads.
//!
//! The oldest state is that of the seed, the base. Before a merge writes anything it raises the
//! floor, under the lock of the pins: from then on nothing older is opened, and nothing that is
//! open is older. When it has ended, the segments below the new base leave the list; whoever took
//! the list before keeps them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tidemark_wire::planted::{self, Bug};
use tidemark_wire::{Record, RecordHeader, Seq, WallMicros};

use super::base::Base;
use super::format::MarkEntry;
use super::places::{count_until, latest_time};
use super::recover::size_after;
use super::segment::Segment;
use super::span::Spans;
use super::types::{Mark, SegmentInfo, Span};
use crate::error::{Damage, JournalError, NotOffered, Part, ReadError};
use crate::storage::{Reads, RealStorage, Storage};

/// The segments of a journal, oldest first.
pub(crate) type SegmentList<S> = Arc<Vec<Arc<Segment<S>>>>;

/// What readers see of the journal.
pub(crate) struct Published<S: Storage> {
    pub(crate) segments: SegmentList<S>,
    /// What the first of them stands on.
    pub(crate) base: Base,
    pub(crate) durable: Seq,
    pub(crate) last_time: Option<WallMicros>,
    pub(crate) spans: Spans,
    /// Size of the volume from a record on, oldest first, never empty.
    pub(crate) sizes: Vec<(Seq, u64)>,
    /// Segments from the first damaged one on, and why they can't be read.
    pub(crate) unreadable: Vec<SegmentInfo>,
    pub(crate) damage: Option<Damage>,
}

impl<S: Storage> Published<S> {
    /// Takes a mark that became durable.
    pub(crate) fn apply_mark(&mut self, mark: &MarkEntry) {
        self.spans.apply(mark);
        self.sizes.extend(size_after(mark));
    }

    /// Size of the volume after the newest durable record, in bytes.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.sizes.last().map_or(0, |(_, size)| *size)
    }
}

/// Reads a journal; cheap to share.
pub struct JournalReader<S: Storage = RealStorage> {
    published: RwLock<Published<S>>,
    pins: Mutex<Pins>,
}

#[derive(Default)]
struct Pins {
    /// States that something reads, and how many do.
    held: BTreeMap<Seq, usize>,
    /// The oldest state that may be opened; 0 while nothing was merged.
    floor: Seq,
}

/// Keeps what a state needs, for as long as it lives.
pub struct Pin<S: Storage> {
    reader: Arc<JournalReader<S>>,
    seq: Seq,
}

impl<S: Storage> Drop for Pin<S> {
    fn drop(&mut self) {
        let mut pins = self.reader.pins();
        if let Some(count) = pins.held.get_mut(&self.seq) {
            *count -= 1;
            if *count == 0 {
                pins.held.remove(&self.seq);
            }
        }
    }
}

impl<S: Storage> JournalReader<S> {
    pub(crate) fn new(published: Published<S>) -> Self {
        let pins = Pins { held: BTreeMap::new(), floor: published.base.at };
        Self { published: RwLock::new(published), pins: Mutex::new(pins) }
    }

    pub(crate) fn published(&self) -> RwLockReadGuard<'_, Published<S>> {
        // The writer changes it by moves and pushes, which no panic can leave half done.
        self.published.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn publish(&self) -> RwLockWriteGuard<'_, Published<S>> {
        self.published.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn pins(&self) -> MutexGuard<'_, Pins> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Newest durable record; 0 when there is none.
    pub fn durable(&self) -> Seq {
        self.published().durable
    }

    /// When the newest durable record was captured.
    pub fn last_time(&self) -> Option<WallMicros> {
        self.published().last_time
    }

    /// The oldest state kept, offered or not; `None` when there is no record.
    pub fn first_seq(&self) -> Option<Seq> {
        let first = self.published().segments.first().map(|segment| segment.first_seq());
        let floor = self.pins().floor;
        if floor > Seq(0) { Some(floor) } else { first }
    }

    /// Size of the volume at a state, in bytes.
    pub fn size_at(&self, seq: Seq) -> u64 {
        let published = self.published();
        let behind = published.sizes.partition_point(|(since, _)| *since <= seq);
        published.sizes[behind.saturating_sub(1)].1
    }

    /// All spans, oldest first.
    pub fn spans(&self) -> Vec<Span> {
        self.published().spans.list()
    }

    /// The gap or resync-begin record of the span that has not ended.
    pub fn span_open(&self) -> Option<Seq> {
        self.published().spans.open().map(|open| open.begin)
    }

    pub(crate) fn segment_list(&self) -> SegmentList<S> {
        Arc::clone(&self.published().segments)
    }

    /// All segments, oldest first; also those that can't be read.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let (list, unreadable) = {
            let published = self.published();
            (Arc::clone(&published.segments), published.unreadable.clone())
        };
        list.iter().map(|segment| segment.info()).chain(unreadable).collect()
    }

    /// Bytes of all segment files.
    pub fn bytes(&self) -> u64 {
        self.segments().iter().map(|segment| segment.bytes).sum()
    }

    /// Whether the state at `seq` may be opened.
    ///
    /// # Errors
    /// Why not, with the nearest states.
    pub fn offerable(&self, seq: Seq) -> Result<(), NotOffered> {
        // Without a record nothing is known of the volume, not even that it was empty.
        let oldest = self.first_seq();
        let (span, oldest) = {
            let published = self.published();
            let Some(oldest) = oldest.filter(|_| seq <= published.durable) else {
                return Err(match &published.damage {
                    Some(damage) => NotOffered::Damaged(damage.clone()),
                    None => NotOffered::AfterEnd { newest: published.durable },
                });
            };
            let span = published.spans.covering(seq);
            (span.filter(|_| !planted::is(Bug::SpanOffered)), oldest)
        };
        if seq < oldest {
            return Err(NotOffered::BeforeStart { oldest });
        }
        let Some(span) = span else { return Ok(()) };
        // A record that can't be read here only costs the hint.
        let before = self.floor(Seq(span.begin.0.saturating_sub(1))).ok().flatten();
        Err(NotOffered::InSpan { before: before.map(|(seq, _)| seq), after: span.end })
    }

    /// The last record at or before a sequence number. Its time is not below the times of the
    /// segments before, also where a clock has jumped back.
    ///
    /// # Errors
    /// `Io` or `Damaged`.
    pub fn floor(&self, seq: Seq) -> Result<Option<(Seq, WallMicros)>, JournalError> {
        let Snapshot { segments, durable, base } = self.snapshot();
        let seq = seq.min(durable);
        let behind = segments.partition_point(|segment| segment.first_seq() <= seq);
        let Some(segment) = behind.checked_sub(1).map(|at| &segments[at]) else {
            return Ok(base.filter(|(at, _)| *at <= seq));
        };
        let start = segment.waypoint(|waypoint| waypoint.seq.get() <= seq.0)?;
        let found = last_while(segment, start, |header| header.seq() <= seq)?;
        let merged = base.map_or(WallMicros(0), |(_, time)| time);
        let before = latest_time(&segments[..behind - 1]).max(merged);
        Ok(found.map(|(seq, time)| (seq, time.max(before))))
    }

    /// The last record captured at or before a time: the one before the first record that is later,
    /// as far as that shows at the ends of segments, at waypoints, and behind the last of them
    /// before. So a clock that has jumped back hides nothing that came before.
    ///
    /// # Errors
    /// `Io` or `Damaged`.
    pub fn seq_at_time(&self, time: WallMicros) -> Result<Option<(Seq, WallMicros)>, JournalError> {
        let Snapshot { segments, durable, base } = self.snapshot();
        let behind = count_until(&segments, time);
        let Some(segment) = behind.checked_sub(1).map(|at| &segments[at]) else {
            return Ok(base.filter(|(_, captured)| *captured <= time));
        };
        let start = segment.waypoint_until(time)?;
        last_while(segment, start, |header| {
            header.time_us.get() <= time.0 && header.seq() <= durable
        })
    }

    fn snapshot(&self) -> Snapshot<S> {
        let published = self.published();
        Snapshot {
            segments: Arc::clone(&published.segments),
            durable: published.durable,
            base: published.base.time.map(|time| (published.base.at, time)),
        }
    }

    /// All marks that can be read, oldest first, and what is damaged of the others; also the
    /// recovery point that the oldest state is. Reads each of their records.
    ///
    /// # Errors
    /// `Io`.
    pub fn marks(&self) -> Result<(Vec<Mark>, Vec<Damage>), JournalError> {
        let (segments, durable, oldest) = {
            let published = self.published();
            (Arc::clone(&published.segments), published.durable, published.base.mark())
        };
        let (mut marks, mut damaged) = (Vec::from_iter(oldest), Vec::new());
        for segment in segments.iter() {
            let Some(entries) = whole(segment.marks(), &mut damaged)? else { continue };
            for entry in entries.iter().take_while(|entry| entry.seq.get() <= durable.0) {
                marks.extend(whole(read_mark(segment, entry), &mut damaged)?.flatten());
            }
        }
        Ok((marks, damaged))
    }

    /// Keeps what the state at `seq` needs until the pin is dropped.
    #[must_use]
    pub fn pin(self: &Arc<Self>, seq: Seq) -> Pin<S> {
        *self.pins().held.entry(seq).or_insert(0) += 1;
        Pin { reader: Arc::clone(self), seq }
    }

    /// States that are pinned, oldest first, and how many pins each has. A merge goes no further
    /// than the first of them.
    #[must_use]
    pub fn pinned(&self) -> Vec<(Seq, usize)> {
        self.pins().held.iter().map(|(seq, count)| (*seq, *count)).collect()
    }

    /// The newest state that may be opened; `None` while there is none.
    ///
    /// # Errors
    /// `Io` or `Damaged`.
    pub(crate) fn newest_offered(&self) -> Result<Option<Seq>, JournalError> {
        // Both at one moment: a gap record between them would look like a state.
        let (open, durable) = {
            let published = self.published();
            (published.spans.open(), published.durable)
        };
        let newest = match open {
            None => durable,
            Some(open) => {
                let before = self.floor(Seq(open.begin.0.saturating_sub(1)))?;
                before.map_or(Seq(0), |(seq, _)| seq)
            }
        };
        Ok((newest > Seq(0)).then_some(newest))
    }

    /// The oldest state that something reads; one below the floor can't be read any more.
    pub(crate) fn oldest_pin(&self) -> Option<Seq> {
        let pins = self.pins();
        pins.held.range(pins.floor..).next().map(|(seq, _)| *seq)
    }

    /// Lets nothing older than `to` be opened from here on, and gives what that was before; `None`
    /// when something older is open.
    pub(crate) fn raise_floor(&self, to: Seq) -> Option<Seq> {
        let mut pins = self.pins();
        let floor = pins.floor;
        if floor < to && pins.held.range(floor..to).next().is_some() {
            return None;
        }
        pins.floor = floor.max(to);
        Some(floor)
    }

    /// Takes that back: the seed has not been changed.
    pub(crate) fn lower_floor(&self, to: Seq) {
        self.pins().floor = to;
    }

    /// The seed has become `base`: the segments up to it leave. Their files go when nothing
    /// reads them.
    pub(crate) fn leave(&self, base: Base) {
        let gone = {
            let mut published = self.publish();
            let old = Arc::clone(&published.segments);
            let (gone, kept) =
                old.split_at(old.partition_point(|segment| segment.first_seq() <= base.at));
            gone.iter().for_each(|segment| segment.leave());
            published.segments = Arc::new(kept.to_vec());
            published.spans.forget_to(base.at);
            let first = published.sizes.partition_point(|(since, _)| *since <= base.at);
            published.sizes.drain(..first);
            published.sizes.insert(0, (base.at, base.size_bytes));
            published.base = base;
            old
        };
        // Files are removed here, not under the lock.
        drop(gone);
    }
}

/// What is known at one moment.
struct Snapshot<S: Storage> {
    segments: SegmentList<S>,
    durable: Seq,
    /// The state that the seed is, with its time.
    base: Option<(Seq, WallMicros)>,
}

/// Sets damage aside; only other errors stay errors.
fn whole<T>(
    read: Result<T, ReadError>,
    damaged: &mut Vec<Damage>,
) -> Result<Option<T>, JournalError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(ReadError::Damaged(damage)) => {
            damaged.push(damage);
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn read_mark<S: Storage>(
    segment: &Segment<S>,
    entry: &MarkEntry,
) -> Result<Option<Mark>, ReadError> {
    let position = u64::from(entry.position.get());
    let bytes = segment.read_record(Reads::Again, position, entry.record_bytes.get())?;
    let mark = Record::decode(&bytes).and_then(|record| Mark::from_record(&record));
    let mark = mark.map_err(|error| segment.damage(position, &error))?;
    if mark.as_ref().is_some_and(|mark| mark.seq.0 == entry.seq.get()) {
        return Ok(mark);
    }
    let detail = format!("another record stands where the marks have {}", entry.seq);
    Err(Damage::new(&segment.path(), Part::Record, position, detail).into())
}

/// Goes from record to record from `start` on and gives the last one for which `holds` does.
/// Called with a waypoint's place, it reads at most as many heads as lie between two waypoints.
fn last_while<S: Storage>(
    segment: &Segment<S>,
    start: u64,
    holds: impl Fn(&RecordHeader) -> bool,
) -> Result<Option<(Seq, WallMicros)>, JournalError> {
    let last = segment.extremes().last_seq;
    let (mut position, mut found) = (start, None);
    loop {
        let head = segment.read_head(position)?.header;
        if !holds(&head) {
            return Ok(found);
        }
        found = Some((head.seq(), WallMicros(head.time_us.get())));
        if head.seq() >= last {
            return Ok(found);
        }
        position += head.record_bytes() as u64;
    }
}
