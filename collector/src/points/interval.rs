//! When a recovery point is due by itself.
//!
//! What enters: time, the newest point of a volume, and whether its agent could place one. What
//! leaves: the record behind which to look for a change, once the interval has passed. One state
//! for each volume; at most one point is asked for at a time. Time is measured since the newest
//! point was seen to become durable, whoever wanted it, so a jump of the wall clock moves nothing.
//! A restart of the collector begins the interval anew, nothing else is lost.

use std::time::Duration;

use tidemark_wire::Seq;

/// How long an agent may take to place a point before another one is asked for.
pub const ANSWER_WAIT_MAX: Duration = Duration::from_secs(60);

/// What is true of a volume now.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// Its newest durable point.
    pub newest: Option<Seq>,
    /// Its newest durable record.
    pub durable: Seq,
    /// Time between two points; none: none are made.
    pub interval: Option<Duration>,
    /// Its agent is connected, not paused, and no span is open.
    pub able: bool,
}

/// The points of one volume.
#[derive(Clone, Debug)]
pub struct IntervalPoints {
    newest: Option<Seq>,
    since: Duration,
    asked_at: Option<Duration>,
    /// Nothing has changed between the newest point and this record.
    unchanged_until: Seq,
}

impl IntervalPoints {
    /// A volume that is seen for the first time.
    #[must_use]
    pub fn new(now: Duration) -> Self {
        Self { newest: None, since: now, asked_at: None, unchanged_until: Seq(0) }
    }

    /// The record behind which a change would make a point due; none while it is not time.
    pub fn look(&mut self, now: Duration, sight: Sight) -> Option<Seq> {
        if sight.newest != self.newest {
            *self = Self { newest: sight.newest, ..Self::new(now) };
        }
        if !sight.able {
            // What was asked of a session that has ended does not come any more.
            self.asked_at = None;
            return None;
        }
        if self.asked_at.is_some_and(|asked| now.saturating_sub(asked) < ANSWER_WAIT_MAX) {
            return None;
        }
        let interval = sight.interval?;
        let behind = self.unchanged_until.max(self.newest.unwrap_or(Seq(0)));
        let due = now.saturating_sub(self.since) >= interval && sight.durable > behind;
        due.then_some(behind)
    }

    /// Nothing up to `until` has changed the disk.
    pub fn unchanged(&mut self, until: Seq) {
        self.unchanged_until = self.unchanged_until.max(until);
    }

    /// The agent was asked for a point.
    pub fn asked(&mut self, now: Duration) {
        self.asked_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGHT: Sight = Sight {
        newest: Some(Seq(10)),
        durable: Seq(12),
        interval: Some(Duration::from_secs(30)),
        able: true,
    };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_point_is_due_an_interval_after_the_newest_one_and_asked_for_once() {
        let mut points = IntervalPoints::new(at(0));
        assert_eq!(points.look(at(5), SIGHT), None, "the newest point was seen just now");
        assert_eq!(points.look(at(34), SIGHT), None);
        assert_eq!(points.look(at(35), SIGHT), Some(Seq(10)));
        points.asked(at(35));
        assert_eq!(points.look(at(94), SIGHT), None, "an answer is awaited");
        assert_eq!(points.look(at(95), SIGHT), Some(Seq(10)), "it did not come");
        points.asked(at(95));
        let placed = Sight { newest: Some(Seq(20)), durable: Seq(25), ..SIGHT };
        assert_eq!(points.look(at(96), placed), None);
        assert_eq!(points.look(at(126), placed), Some(Seq(20)));
    }

    #[test]
    fn nothing_is_due_when_nothing_was_journaled_or_only_what_changes_nothing() {
        let mut points = IntervalPoints::new(at(0));
        assert_eq!(points.look(at(0), SIGHT), None);
        let idle = Sight { durable: Seq(10), ..SIGHT };
        assert_eq!(points.look(at(99), idle), None);
        assert_eq!(points.look(at(99), SIGHT), Some(Seq(10)));
        points.unchanged(Seq(12));
        assert_eq!(points.look(at(100), SIGHT), None);
        let more = Sight { durable: Seq(13), ..SIGHT };
        assert_eq!(points.look(at(100), more), Some(Seq(12)), "it goes on where it has looked");
    }

    #[test]
    fn nothing_is_due_while_the_agent_can_t_place_it_or_nobody_wants_it() {
        let mut points = IntervalPoints::new(at(0));
        assert_eq!(points.look(at(0), SIGHT), None);
        points.asked(at(1));
        assert_eq!(points.look(at(40), Sight { able: false, ..SIGHT }), None);
        assert_eq!(points.look(at(40), Sight { interval: None, ..SIGHT }), None);
        assert_eq!(points.look(at(40), SIGHT), Some(Seq(10)), "the session has ended meanwhile");
    }
}
