//! Sets of moments: places in the order of events at which a state may have been.

use super::log::Event;

/// All moments from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interval {
    pub(crate) first: Event,
    pub(crate) last: Event,
}

impl Interval {
    pub(crate) fn new(first: Event, last: Event) -> Self {
        Self { first, last }
    }

    fn is_empty(self) -> bool {
        self.first > self.last
    }

    fn intersect(self, other: Self) -> Self {
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }
}

/// A union of intervals, in order, none of which touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Moments(Vec<Interval>);

impl Moments {
    /// The union of any intervals, some of which may be empty.
    pub(crate) fn union(mut intervals: Vec<Interval>) -> Self {
        intervals.retain(|interval| !interval.is_empty());
        intervals.sort_by_key(|interval| interval.first);
        let mut out: Vec<Interval> = Vec::with_capacity(intervals.len());
        for interval in intervals {
            match out.last_mut() {
                Some(last) if interval.first <= last.last.saturating_add(1) => {
                    last.last = last.last.max(interval.last);
                }
                _ => out.push(interval),
            }
        }
        Self(out)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keeps the moments that are in `other`, too.
    pub(crate) fn keep(&mut self, other: &Self) {
        // Most bytes of a state say nothing new.
        let all_in =
            |mine: &Interval| other.0.iter().any(|o| o.first <= mine.first && mine.last <= o.last);
        if self.0.iter().all(all_in) {
            return;
        }
        let pairs = self.0.iter().flat_map(|mine| other.0.iter().map(|o| mine.intersect(*o)));
        *self = Self::union(pairs.collect());
    }
}

impl std::fmt::Display for Moments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_empty() {
            return f.write_str("no moment");
        }
        for (index, Interval { first, last }) in self.0.iter().enumerate() {
            let or = if index > 0 { " or " } else { "" };
            match *last {
                Event::MAX => write!(f, "{or}from {first} on")?,
                last => write!(f, "{or}{first} to {last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(list: &[(u64, u64)]) -> Moments {
        Moments::union(list.iter().map(|(first, last)| Interval::new(*first, *last)).collect())
    }

    #[test]
    fn unions_and_intersections() {
        assert_eq!(moments(&[(5, 9), (1, 4), (7, 3), (20, 30)]), moments(&[(1, 9), (20, 30)]));
        let mut some = moments(&[(1, 9), (20, 30), (40, 50)]);
        some.keep(&moments(&[(5, 25), (30, 30)]));
        assert_eq!(some, moments(&[(5, 9), (20, 25), (30, 30)]));
        some.keep(&moments(&[(0, u64::MAX)]));
        assert_eq!(some.to_string(), "5 to 9 or 20 to 25 or 30 to 30");
        some.keep(&moments(&[(26, 29)]));
        assert!(some.is_empty());
    }
}
