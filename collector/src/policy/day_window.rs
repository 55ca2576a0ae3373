//! A part of the day, in local time, for work that should not meet office hours.

use std::fmt;
use std::str::FromStr;

use jiff::civil::{Date, Time};
use jiff::{Timestamp, ToSpan, tz::TimeZone};
use serde::{Deserialize, Serialize};

const MINUTES_OF_DAY: u16 = 24 * 60;

/// From one time of the day until another, which may be on the next day; the same one twice: all
/// day. Whether a moment lies in it is asked of the clock on the wall at that moment, so a day on
/// which the clocks change has a longer or shorter window, or, where the window lies in the hour
/// that is left out, none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DayWindow {
    from_minute: u16,
    until_minute: u16,
}

impl Default for DayWindow {
    /// Midnight to six.
    fn default() -> Self {
        Self { from_minute: 0, until_minute: 6 * 60 }
    }
}

impl DayWindow {
    /// The local day on which the window has opened that `now` lies in; `None` outside of it.
    #[must_use]
    pub fn opened(&self, now: Timestamp, zone: &TimeZone) -> Option<Date> {
        let local = zone.to_datetime(now);
        let (minute, today) = (minute_of(local.time()), local.date());
        let (from, until) = (self.from_minute, self.until_minute);
        if from < until {
            return (from..until).contains(&minute).then_some(today);
        }
        if minute >= from {
            return Some(today);
        }
        let yesterday = today.checked_sub(1.day()).unwrap_or(today);
        (minute < until || from == until).then_some(yesterday)
    }

    /// The local day to which work counts that began at `began`, inside of the window or not.
    #[must_use]
    pub fn day_of(&self, began: Timestamp, zone: &TimeZone) -> Date {
        self.opened(began, zone).unwrap_or_else(|| zone.to_datetime(began).date())
    }
}

fn minute_of(time: Time) -> u16 {
    let parts = (u16::try_from(time.hour()), u16::try_from(time.minute()));
    parts.0.unwrap_or(0) * 60 + parts.1.unwrap_or(0)
}

impl fmt::Display for DayWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, until) = (self.from_minute, self.until_minute);
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, until / 60, until % 60)
    }
}

impl FromStr for DayWindow {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('-').and_then(|(from, until)| {
            let window = Self { from_minute: minute(from)?, until_minute: minute(until)? };
            Some(window)
        });
        parsed.ok_or_else(|| {
            format!("{text:?} is no part of a day; write two local times, as in 00:00-06:00")
        })
    }
}

/// The minute of a day that `HH:MM` names; 24:00 is that of 00:00.
fn minute(text: &str) -> Option<u16> {
    let (hours, minutes) = text.trim().split_once(':')?;
    let two = |digits: &str| {
        let good = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
        good.then(|| digits.parse::<u16>().ok()).flatten()
    };
    let (hours, minutes) = (two(hours)?, two(minutes)?);
    let minute = hours * 60 + minutes;
    (minutes < 60 && minute <= MINUTES_OF_DAY).then_some(minute % MINUTES_OF_DAY)
}

impl TryFrom<String> for DayWindow {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<DayWindow> for String {
    fn from(window: DayWindow) -> Self {
        window.to_string()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use jiff::civil::date;

    use super::*;

    fn window(text: &str) -> DayWindow {
        text.parse().unwrap()
    }

    fn opened(text: &str, local: &str, zone: &TimeZone) -> Option<Date> {
        let local: jiff::civil::DateTime = local.parse().unwrap();
        window(text).opened(zone.to_timestamp(local).unwrap(), zone)
    }

    #[test]
    fn a_window_may_go_over_midnight_and_belongs_to_the_day_on_which_it_opened() {
        let utc = TimeZone::UTC;
        let first = Some(date(2026, 3, 1));
        assert_eq!(opened("00:00-06:00", "2026-03-01T00:00", &utc), first);
        assert_eq!(opened("00:00-06:00", "2026-03-01T05:59:59", &utc), first);
        assert_eq!(opened("00:00-06:00", "2026-03-01T06:00", &utc), None);
        assert_eq!(opened("22:30-04:00", "2026-03-01T22:29", &utc), None);
        assert_eq!(opened("22:30-04:00", "2026-03-01T22:30", &utc), first);
        assert_eq!(opened("22:30-04:00", "2026-03-02T03:59", &utc), first);
        assert_eq!(opened("22:30-04:00", "2026-03-02T04:00", &utc), None);
        assert_eq!(opened("12:00-12:00", "2026-03-02T11:00", &utc), first, "all day");
        assert_eq!(opened("20:00-24:00", "2026-03-01T23:59", &utc), first);
        let noon = utc.to_timestamp(date(2026, 3, 1).at(12, 0, 0, 0)).unwrap();
        assert_eq!(window("00:00-06:00").day_of(noon, &utc), date(2026, 3, 1));
    }

    #[test]
    fn clocks_that_change_make_a_window_longer_or_shorter_and_no_day_twice() {
        // Central European rules, written out: clocks go from 2 to 3 on 29 March 2026, and back
        // on 25 October.
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let seconds_open = |text: &str, day: Date| {
            let noon_before = zone.to_timestamp(day.at(0, 0, 0, 0)).unwrap() - 12.hours();
            let steps = (0..2 * 24 * 60).map(|minute| noon_before + minute.minutes());
            steps.filter(|now| window(text).opened(*now, &zone) == Some(day)).count() * 60
        };
        assert_eq!(seconds_open("00:00-06:00", date(2026, 3, 28)), 6 * 3600);
        assert_eq!(seconds_open("00:00-06:00", date(2026, 3, 29)), 5 * 3600);
        assert_eq!(seconds_open("00:00-06:00", date(2026, 10, 25)), 7 * 3600);
        assert_eq!(seconds_open("02:15-02:45", date(2026, 3, 29)), 0, "that hour is left out");
        assert_eq!(seconds_open("22:00-06:00", date(2026, 3, 28)), 7 * 3600);
    }

    #[test]
    fn what_is_no_part_of_a_day_is_refused_with_an_example() {
        for text in ["", "6", "06:00", "0:00-6:00", "00:00-24:01", "00:60-06:00", "a0:00-06:00"] {
            let error = text.parse::<DayWindow>().unwrap_err();
            assert!(error.contains("00:00-06:00"), "{error}");
        }
        for text in ["00:00-06:00", "22:30-04:00", "12:00-12:00"] {
            assert_eq!(window(text).to_string(), text);
        }
    }
}
