//! What a volume's history promises: how far back it reaches, how much it may take, how often a
//! recovery point is made, and when it is compared with the disk.
//!
//! Pure. The defaults come from the configuration, what a person decided for one volume is in
//! the volume's manifest as [`Overrides`]; the policy in force is the one over the other.

mod day_window;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use day_window::DayWindow;

/// Longest time of a policy, in seconds: a hundred years.
pub const SECONDS_MAX: u64 = 100 * 366 * 86_400;
/// Largest journal that can be named, in bytes: one EiB.
pub const JOURNAL_BYTES_MAX: u64 = 1 << 60;
/// Longest time between two comparisons of a schedule, in days.
pub const DAYS_MAX: u32 = 36_600;

/// What holds for a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Every state that is younger than this is kept.
    pub window: Duration,
    /// Bytes of the journal beyond which older history goes first, although the window would
    /// keep it; none: no limit.
    pub journal_bytes_max: Option<u64>,
    /// Time between two recovery points that are made by themselves, when something was written;
    /// none: no points are made by themselves.
    pub point_interval: Option<Duration>,
    /// When scheduled comparisons begin. One that changes nothing ends with the window and goes on
    /// in the next; one that makes the copy equal goes on to its end, because until then the
    /// newest state can't be opened.
    pub compare_window: DayWindow,
    /// Days between two verifications; none: only when a person wants one.
    pub verify_days: Option<u32>,
    /// Days between two comparisons that make the copy equal to the disk; none: only when a person
    /// wants one, or after a gap.
    pub resync_days: Option<u32>,
}

impl Default for Policy {
    /// A day of history, a point every 30 s, a verification a week in the hours after midnight.
    fn default() -> Self {
        Self {
            window: Duration::from_secs(86_400),
            journal_bytes_max: None,
            point_interval: Some(Duration::from_secs(30)),
            compare_window: DayWindow::default(),
            verify_days: Some(7),
            resync_days: None,
        }
    }
}

/// What a person decided for one volume; what is absent follows the defaults. Zero stands for
/// "no limit", "no points" and "never".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overrides {
    /// See [`Policy::window`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_seconds: Option<u64>,
    /// See [`Policy::journal_bytes_max`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal_bytes_max: Option<u64>,
    /// See [`Policy::point_interval`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point_interval_seconds: Option<u64>,
    /// See [`Policy::compare_window`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compare_window: Option<DayWindow>,
    /// See [`Policy::verify_days`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_days: Option<u32>,
    /// See [`Policy::resync_days`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resync_days: Option<u32>,
}

impl Overrides {
    /// What is wrong with the values, if anything is.
    ///
    /// # Errors
    /// The value and what is allowed.
    pub fn check(&self) -> Result<(), String> {
        for (what, value, min, max) in [
            ("a window", self.window_seconds, 1, SECONDS_MAX),
            ("an interval of points", self.point_interval_seconds, 0, SECONDS_MAX),
        ] {
            if let Some(seconds) = value.filter(|seconds| !(min..=max).contains(seconds)) {
                return Err(format!("{what} of {seconds} s; allowed are {min} to {max} s"));
            }
        }
        for days in [self.verify_days, self.resync_days].into_iter().flatten() {
            if days > DAYS_MAX {
                return Err(format!("{days} days between two comparisons; at most {DAYS_MAX}"));
            }
        }
        if let Some(bytes) = self.journal_bytes_max.filter(|bytes| *bytes > JOURNAL_BYTES_MAX) {
            return Err(format!("a journal of {bytes} bytes; at most {JOURNAL_BYTES_MAX}"));
        }
        Ok(())
    }

    /// The policy in force over these defaults.
    #[must_use]
    pub fn over(&self, defaults: Policy) -> Policy {
        let seconds = |seconds: u64| (seconds != 0).then(|| Duration::from_secs(seconds));
        let bytes = |bytes: u64| (bytes != 0).then_some(bytes);
        let days = |days: u32| (days != 0).then_some(days);
        Policy {
            window: self.window_seconds.map_or(defaults.window, Duration::from_secs),
            journal_bytes_max: self.journal_bytes_max.map_or(defaults.journal_bytes_max, bytes),
            point_interval: self.point_interval_seconds.map_or(defaults.point_interval, seconds),
            compare_window: self.compare_window.unwrap_or(defaults.compare_window),
            verify_days: self.verify_days.map_or(defaults.verify_days, days),
            resync_days: self.resync_days.map_or(defaults.resync_days, days),
        }
    }

    /// These, with what `newer` says instead where it says something.
    #[must_use]
    pub fn with(&self, newer: Self) -> Self {
        Self {
            window_seconds: newer.window_seconds.or(self.window_seconds),
            journal_bytes_max: newer.journal_bytes_max.or(self.journal_bytes_max),
            point_interval_seconds: newer.point_interval_seconds.or(self.point_interval_seconds),
            compare_window: newer.compare_window.or(self.compare_window),
            verify_days: newer.verify_days.or(self.verify_days),
            resync_days: newer.resync_days.or(self.resync_days),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn what_was_decided_for_a_volume_stands_over_the_defaults() {
        let defaults = Policy { journal_bytes_max: Some(7), ..Policy::default() };
        assert_eq!(Overrides::default().over(defaults), defaults);
        let own = Overrides { window_seconds: Some(60), ..Overrides::default() };
        let own = own.with(Overrides {
            journal_bytes_max: Some(0),
            point_interval_seconds: Some(0),
            compare_window: Some("22:00-23:00".parse().unwrap()),
            verify_days: Some(0),
            resync_days: Some(30),
            ..Overrides::default()
        });
        let policy = own.over(defaults);
        assert_eq!(policy.window, Duration::from_secs(60));
        assert_eq!((policy.journal_bytes_max, policy.point_interval), (None, None));
        assert_eq!((policy.verify_days, policy.resync_days), (None, Some(30)));
        assert_eq!(policy.compare_window.to_string(), "22:00-23:00");
    }

    #[test]
    fn values_that_make_no_sense_are_named() {
        let own = Overrides { window_seconds: Some(0), ..Overrides::default() };
        assert!(own.check().unwrap_err().contains("a window of 0 s"));
        let own = Overrides { journal_bytes_max: Some(u64::MAX), ..Overrides::default() };
        assert!(own.check().unwrap_err().contains("at most"));
        let whole = Overrides { point_interval_seconds: Some(0), ..Overrides::default() };
        whole.check().unwrap();
    }
}
