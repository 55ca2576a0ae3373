//! What the disk may have looked like, told by nothing but the guest and the disk itself.
//!
//! What enters: when the guest begins a change and when it is answered, and what lands on the
//! backing store, sector by sector. Each gets a moment, a number that only rises. What leaves: a
//! judgement of any image: whether there is a moment at which a power cut could have left it. At
//! moment T every change that was answered before T is there, no change that was begun after T
//! is, and of the others any sector may be. So a sector that shows a change says that T is behind
//! that change's begin, and not behind the answer of a later change of the same sector; all
//! sectors together have to leave a T.
//!
//! Only the sectors of a few zones are followed, where the guest works. It knows nothing of
//! sequence numbers, rings or journals.

use std::sync::{Mutex, MutexGuard, PoisonError};

use xxhash_rust::xxh3::xxh3_64;

/// Bytes of a sector: what a disk writes whole or not at all.
pub(crate) const SECTOR: usize = 512;
/// Bytes of a zone.
pub(crate) const ZONE_BYTES: usize = 16 * 1024;
const ZONE_SECTORS: usize = ZONE_BYTES / SECTOR;

/// A point in the order of everything that happens.
pub(crate) type Moment = u64;

/// Names a change.
pub(crate) type OpId = usize;

/// What a change does to its range.
#[derive(Clone, Debug)]
pub(crate) enum What {
    Data(Vec<u8>),
    Zero(usize),
    /// The disk lost or changed something by itself.
    Fate,
}

struct Op {
    start: usize,
    what: What,
    begun: Moment,
    /// When it was answered; the largest number while it is not.
    done: Moment,
    /// The backing store failed a part of it that can be no other's.
    has_failed: bool,
}

struct Version {
    sum: u64,
    ops: Vec<OpId>,
}

/// A run of moments, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moments {
    pub(crate) first: Moment,
    pub(crate) last: Moment,
}

#[derive(Default)]
struct State {
    now: Moment,
    ops: Vec<Op>,
    open: Vec<OpId>,
    zones: Vec<usize>,
    sectors: Vec<Vec<Version>>,
    /// For each sector the oldest version that a power cut may leave.
    floors: Vec<usize>,
    /// For each sector how many of its versions no flush makes durable any more.
    lost: Vec<usize>,
    broken: Option<String>,
}

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Model(Mutex<State>);

impl State {
    fn tick(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    /// The followed sectors that lie whole in a range: index and place.
    fn followed(&self, start: usize, end: usize) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        for (zone, zone_start) in self.zones.iter().enumerate() {
            let from = start.max(*zone_start).next_multiple_of(SECTOR);
            let to = end.min(zone_start + ZONE_BYTES);
            let mut at = from;
            while at + SECTOR <= to {
                found.push((zone * ZONE_SECTORS + (at - zone_start) / SECTOR, at));
                at += SECTOR;
            }
        }
        found
    }

    fn begun(&self, version: &Version) -> Moment {
        version.ops.iter().map(|op| self.ops[*op].begun).min().unwrap_or(0)
    }

    fn done(&self, version: &Version) -> Moment {
        version.ops.iter().map(|op| self.ops[*op].done).max().unwrap_or(0)
    }

    /// Open changes that could have put these bytes there.
    fn candidates(&self, at: usize, bytes: &[u8]) -> Vec<OpId> {
        let fits = |id: &&OpId| {
            let op = &self.ops[**id];
            let len = match &op.what {
                What::Data(data) => data.len(),
                What::Zero(len) => *len,
                What::Fate => 0,
            };
            let (from, to) = (op.start.max(at), (op.start + len).min(at + bytes.len()));
            from < to
                && match &op.what {
                    What::Data(data) => {
                        data[from - op.start..to - op.start] == bytes[from - at..to - at]
                    }
                    _ => bytes[from - at..to - at].iter().all(|byte| *byte == 0),
                }
        };
        self.open.iter().filter(fits).copied().collect()
    }

    /// True when a sector held bytes of this sum before the disk changed it by itself: a change of
    /// a part of the unit around it may have read them before, and writes them back.
    fn is_taken_back(&self, index: usize, sum: u64) -> bool {
        let [.., before, last] = &self.sectors[index][..] else { return false };
        let is_fate = |op: &OpId| matches!(self.ops[*op].what, What::Fate);
        before.sum == sum && last.ops.iter().all(is_fate)
    }

    /// What the disk does by itself, now.
    fn fate(&mut self) -> OpId {
        let moment = self.tick();
        let id = self.ops.len();
        let fate =
            Op { start: 0, what: What::Fate, begun: moment, done: moment, has_failed: false };
        self.ops.push(fate);
        id
    }

    fn breaks(&mut self, text: String) {
        self.broken.get_or_insert(text);
    }
}

impl Model {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows these zones, which hold what `read` gives.
    pub(crate) fn follow(&self, zones: &[usize], mut read: impl FnMut(usize, &mut [u8])) {
        let mut state = self.lock();
        state.zones = zones.to_vec();
        state.sectors.clear();
        for zone in zones {
            let mut bytes = [0; ZONE_BYTES];
            read(*zone, &mut bytes);
            for sector in bytes.chunks(SECTOR) {
                state.sectors.push(vec![Version { sum: xxh3_64(sector), ops: Vec::new() }]);
            }
        }
        state.floors = vec![0; state.sectors.len()];
        state.lost = vec![0; state.sectors.len()];
    }

    pub(crate) fn zones(&self) -> Vec<usize> {
        self.lock().zones.clone()
    }

    /// What was found to be wrong, once.
    pub(crate) fn broken(&self) -> Option<String> {
        self.lock().broken.clone()
    }

    pub(crate) fn now(&self) -> Moment {
        self.lock().tick()
    }

    /// The guest begins a change.
    pub(crate) fn begin(&self, start: usize, what: What) -> OpId {
        let mut state = self.lock();
        let begun = state.tick();
        let id = state.ops.len();
        state.ops.push(Op { start, what, begun, done: Moment::MAX, has_failed: false });
        state.open.push(id);
        id
    }

    /// The guest is told that a change is done.
    pub(crate) fn done(&self, id: OpId) {
        let mut state = self.lock();
        state.open.retain(|open| *open != id);
        if state.ops[id].has_failed {
            let start = state.ops[id].start;
            state.breaks(format!("a change at {start} succeeded that the backing store failed"));
        }
        let done = state.tick();
        state.ops[id].done = done;
        let op = &state.ops[id];
        let What::Data(data) = &op.what else { return };
        let (start, end) = (op.start, op.start + data.len());
        for (index, at) in state.followed(start, end) {
            let sum = xxh3_64(&data[at - start..at - start + SECTOR]);
            let has_landed = state.sectors[index]
                .iter()
                .rev()
                .any(|version| version.sum == sum || version.ops.contains(&id));
            if !has_landed {
                state.breaks(format!("a write was answered that is not on the disk at {at}"));
                return;
            }
        }
    }

    /// The guest is told that a change failed, or will never hear of it.
    pub(crate) fn gone(&self, id: OpId) {
        self.lock().open.retain(|open| *open != id);
    }

    /// The guest is cut off from everything that it has begun.
    pub(crate) fn all_gone(&self) {
        self.lock().open.clear();
    }

    /// A flush that began at `begun` was answered well.
    pub(crate) fn flushed(&self, begun: Moment) {
        let mut state = self.lock();
        for index in 0..state.sectors.len() {
            let kept = state.sectors[index].iter().rposition(|version| state.done(version) < begun);
            let kept = kept.filter(|kept| *kept >= state.lost[index]);
            state.floors[index] = state.floors[index].max(kept.unwrap_or(0));
        }
    }

    /// These bytes, whole sectors, are on the disk from now on.
    pub(crate) fn landed(&self, at: usize, bytes: &[u8]) {
        let mut state = self.lock();
        for (index, place) in state.followed(at, at + bytes.len()) {
            let sector = &bytes[place - at..place - at + SECTOR];
            let sum = xxh3_64(sector);
            if state.sectors[index].last().is_some_and(|version| version.sum == sum) {
                continue;
            }
            let mut ops = state.candidates(place, sector);
            if ops.is_empty() && state.is_taken_back(index, sum) {
                ops.push(state.fate());
            }
            if ops.is_empty() {
                state.breaks(format!("bytes landed at {place} that nobody has written"));
                return;
            }
            state.sectors[index].push(Version { sum, ops });
        }
    }

    /// A flush that failed has taken what is there in a range for durable, which it may not be.
    pub(crate) fn lost(&self, start: usize, end: usize) {
        let mut state = self.lock();
        for (index, _) in state.followed(start, end) {
            state.lost[index] = state.sectors[index].len();
        }
    }

    /// The backing store failed a write of these bytes.
    pub(crate) fn failed(&self, at: usize, bytes: &[u8]) {
        let mut state = self.lock();
        if let [only] = state.candidates(at, bytes)[..] {
            state.ops[only].has_failed = true;
        }
    }

    /// The disk holds what `read` gives now, by fate. After a power cut (`is_cut`) that is nothing
    /// older than what was flushed.
    pub(crate) fn fate(&self, is_cut: bool, mut read: impl FnMut(usize, &mut [u8])) {
        let mut state = self.lock();
        let id = state.fate();
        for zone in 0..state.zones.len() {
            let mut bytes = [0; ZONE_BYTES];
            let start = state.zones[zone];
            read(start, &mut bytes);
            for (place, sector) in bytes.chunks(SECTOR).enumerate() {
                let (index, sum) = (zone * ZONE_SECTORS + place, xxh3_64(sector));
                let versions = &state.sectors[index];
                if versions.last().is_some_and(|version| version.sum == sum) {
                    continue;
                }
                let floor = state.floors[index];
                if is_cut && !versions[floor..].iter().any(|version| version.sum == sum) {
                    let at = start + place * SECTOR;
                    state.breaks(format!("what was flushed at {at} was lost in a power cut"));
                }
                state.sectors[index].push(Version { sum, ops: vec![id] });
                state.floors[index] = state.sectors[index].len() - 1;
            }
        }
    }

    /// The moments at which a power cut could have left the image that `read` gives: it fills the
    /// bytes of a zone, or names why some sectors can't be read, which are passed over.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn judge(
        &self,
        mut read: impl FnMut(usize, &mut [u8]) -> Result<Vec<std::ops::Range<usize>>, String>,
    ) -> Result<Moments, String> {
        let state = self.lock();
        let mut left = vec![Moments { first: 0, last: Moment::MAX }];
        for (zone, start) in state.zones.iter().enumerate() {
            let mut bytes = [0; ZONE_BYTES];
            let unknown = read(*start, &mut bytes)?;
            for (place, sector) in bytes.chunks(SECTOR).enumerate() {
                let at = start + place * SECTOR;
                if unknown.iter().any(|range| range.start < at + SECTOR && at < range.end) {
                    continue;
                }
                let versions = &state.sectors[zone * ZONE_SECTORS + place];
                let allowed = state.moments(versions, xxh3_64(sector));
                if allowed.is_empty() {
                    return Err(format!("the sector at {at} never held what it holds"));
                }
                let both = intersect(&left, &allowed);
                if both.is_empty() {
                    return Err(format!(
                        "no moment: the sector at {at} is from {allowed:?}, others from {left:?}"
                    ));
                }
                left = both;
            }
        }
        let (first, last) = (left.first(), left.last());
        let ends = first.zip(last).map(|(first, last)| (first.first, last.last));
        let (first, last) = ends.expect("an empty list was an error");
        Ok(Moments { first, last })
    }
}

impl State {
    /// The moments at which a sector may show content with this sum.
    fn moments(&self, versions: &[Version], sum: u64) -> Vec<Moments> {
        let mut found: Vec<Moments> = Vec::new();
        let mut last = Moment::MAX;
        for version in versions.iter().rev() {
            if version.sum == sum {
                let first = self.begun(version) + 1;
                if first <= last {
                    found.push(Moments { first, last });
                }
            }
            last = last.min(self.done(version));
        }
        found.sort_by_key(|moments| moments.first);
        let mut joined: Vec<Moments> = Vec::new();
        for moments in found {
            match joined.last_mut() {
                Some(before) if moments.first <= before.last.saturating_add(1) => {
                    before.last = before.last.max(moments.last);
                }
                _ => joined.push(moments),
            }
        }
        joined
    }
}

fn intersect(one: &[Moments], other: &[Moments]) -> Vec<Moments> {
    let mut both = Vec::new();
    for a in one {
        for b in other {
            let (first, last) = (a.first.max(b.first), a.last.min(b.last));
            if first <= last {
                both.push(Moments { first, last });
            }
        }
    }
    both
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: usize = 3 * ZONE_BYTES;

    fn model() -> Model {
        let model = Model::default();
        model.follow(&[0, OTHER], |_, _| ());
        model
    }

    fn write(model: &Model, at: usize, value: u8) -> OpId {
        let id = model.begin(at, What::Data(vec![value; SECTOR]));
        model.landed(at, &[value; SECTOR]);
        id
    }

    fn judge(model: &Model, first: u8, second: u8) -> Result<Moments, String> {
        model.judge(|zone, bytes| {
            bytes[..SECTOR].fill(if zone == 0 { first } else { second });
            Ok(Vec::new())
        })
    }

    #[test]
    fn a_change_without_the_one_that_was_answered_before_it_is_no_state() {
        let model = model();
        let one = write(&model, 0, 1);
        model.done(one);
        let two = write(&model, OTHER, 2);
        model.done(two);
        judge(&model, 0, 0).expect("before both");
        judge(&model, 1, 0).expect("between them");
        judge(&model, 1, 2).expect("behind both");
        judge(&model, 0, 2).expect_err("the second without the first");
        judge(&model, 3, 0).expect_err("what nobody has written");
        assert_eq!(model.broken(), None);
    }

    #[test]
    fn changes_in_flight_together_may_be_there_in_any_combination() {
        let model = model();
        let (one, two) = (write(&model, 0, 1), write(&model, OTHER, 2));
        model.done(one);
        model.done(two);
        for (first, second) in [(0, 0), (0, 2), (1, 0), (1, 2)] {
            judge(&model, first, second).expect("a state");
        }
    }

    #[test]
    fn what_a_power_cut_took_is_gone_from_then_on() {
        let model = model();
        let one = write(&model, 0, 1);
        model.done(one);
        model.fate(true, |_, _| ());
        let two = write(&model, OTHER, 2);
        model.done(two);
        judge(&model, 1, 0).expect("before the cut");
        judge(&model, 0, 2).expect("after it");
        judge(&model, 1, 2).expect_err("a state that mixes both");
        assert_eq!(model.broken(), None);
        let three = write(&model, 0, 3);
        model.done(three);
        model.flushed(model.now());
        model.fate(true, |_, _| ());
        assert!(model.broken().is_some_and(|text| text.contains("flushed")));
    }

    #[test]
    fn an_answer_to_a_write_that_is_not_on_the_disk_is_noticed() {
        let model = model();
        let id = model.begin(0, What::Data(vec![1; SECTOR]));
        model.done(id);
        assert!(model.broken().is_some_and(|text| text.contains("not on the disk")));
        let model = super::tests::model();
        model.landed(0, &[1; SECTOR]);
        assert!(model.broken().is_some_and(|text| text.contains("nobody")));
    }
}
