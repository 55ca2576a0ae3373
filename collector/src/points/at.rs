//! AT: how a person names a state.
//!
//! `latest`, `latest-app`, `seq:N`, a point's name or id, an RFC 3339 time, an age such as `5m`
//! or `1h30m`. What does not exist is answered with the nearest that does. Pure: time and
//! history are given.

use jiff::Timestamp;
use tidemark_wire::body::PointKind;
use tidemark_wire::{PointId, Seq, WallMicros};

use super::{Point, timestamp};
use crate::error::{Failure, NotOffered, Result, nearest};

/// What a text means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// The newest state that can be opened.
    Latest,
    /// The newest app-consistent point.
    LatestApp,
    /// A sequence number.
    Seq(Seq),
    /// The last state at or before a time.
    Time(WallMicros),
    /// The last state that is at least this old.
    Age {
        /// The age in microseconds.
        micros: u64,
    },
    /// A point's id.
    Id(PointId),
    /// A point's name.
    Name(String),
}

/// A state that can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Its number.
    pub seq: Seq,
    /// When its last record was captured.
    pub time: Option<WallMicros>,
    /// The point by which it was found.
    pub point: Option<Point>,
}

/// What can be asked about the history of a volume.
pub trait History {
    /// Newest durable record; 0 when there is none.
    fn durable(&self) -> Seq;
    /// The oldest state kept.
    fn oldest(&self) -> Option<Seq>;
    /// The last record at or before a sequence number.
    ///
    /// # Errors
    /// When the journal can't be read.
    fn floor(&self, seq: Seq) -> Result<Option<(Seq, WallMicros)>>;
    /// The last record captured at or before a time.
    ///
    /// # Errors
    /// When the journal can't be read.
    fn at_time(&self, time: WallMicros) -> Result<Option<(Seq, WallMicros)>>;
    /// Whether a state may be opened.
    ///
    /// # Errors
    /// Why not, with the nearest ones.
    fn offerable(&self, seq: Seq) -> std::result::Result<(), NotOffered>;
}

/// Longest text that is looked at.
const TEXT_BYTES_MAX: usize = 512;

impl At {
    /// Reads a text. A name that reads as something else is found by the point's id.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.is_empty() || text.len() > TEXT_BYTES_MAX {
            return Err(Failure::invalid("no state is named").with_hint(HINT));
        }
        if let Some(number) = text.strip_prefix("seq:") {
            return number.parse().map(|seq| Self::Seq(Seq(seq))).map_err(|_| {
                Failure::invalid(format!("{number:?} is not a sequence number"))
                    .with_hint("write for instance seq:1200")
            });
        }
        Ok(match text {
            "latest" => Self::Latest,
            "latest-app" => Self::LatestApp,
            _ => {
                if let Some(micros) = parse_age(text) {
                    Self::Age { micros }
                } else if let Ok(time) = text.parse::<Timestamp>() {
                    let micros = u64::try_from(time.as_microsecond()).unwrap_or(0);
                    Self::Time(WallMicros(micros))
                } else if let Ok(id) = text.parse::<PointId>() {
                    Self::Id(id)
                } else {
                    Self::Name(text.to_owned())
                }
            }
        })
    }

    /// The state that is meant.
    ///
    /// # Errors
    /// `NotFound` with the nearest state or name, `Conflict` for a name of several points,
    /// `Unavailable` when there is no state at all yet.
    pub fn resolve(
        &self,
        history: &impl History,
        points: &[Point],
        now: WallMicros,
    ) -> Result<State> {
        match self {
            Self::Latest => latest(history)?.ok_or_else(nothing_yet),
            Self::LatestApp => latest_app(history, points),
            Self::Seq(seq) => by_seq(history, *seq),
            Self::Time(time) if *time > now => Err(with_newest(
                Failure::not_found(format!("{} lies in the future", timestamp(*time))),
                history,
            )),
            Self::Time(time) => by_time(history, *time),
            Self::Age { micros } => by_time(history, WallMicros(now.0.saturating_sub(*micros))),
            Self::Id(id) => match points.iter().find(|point| point.id == *id) {
                Some(point) => by_point(history, point),
                None => Err(no_point(&id.to_string(), points)),
            },
            Self::Name(name) => by_name(history, points, name),
        }
    }
}

const HINT: &str = "write latest, latest-app, seq:N, the name or id of a point, a time such as \
                    2026-01-31T12:00:00Z, or an age such as 5m";

/// `5m`, `2h`, `1d`, `1h30m`: numbers with units, in microseconds.
fn parse_age(text: &str) -> Option<u64> {
    let mut total: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        let mut behind = rest[digits..].chars();
        let seconds = match behind.next()? {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 24 * 3600,
            'w' => 7 * 24 * 3600,
            _ => return None,
        };
        total = total.checked_add(number.checked_mul(seconds * 1_000_000)?)?;
        rest = behind.as_str();
    }
    Some(total)
}

/// The newest state that can be opened.
///
/// # Errors
/// When the journal can't be read.
pub fn latest(history: &impl History) -> Result<Option<State>> {
    let durable = history.durable();
    if durable == Seq(0) {
        return Ok(None);
    }
    match history.offerable(durable) {
        Ok(()) => state(history, durable).map(Some),
        Err(NotOffered::InSpan { before: Some(before), .. }) => state(history, before).map(Some),
        Err(NotOffered::AfterEnd { newest }) => state(history, newest).map(Some),
        Err(NotOffered::Damaged(damage)) => Err(damaged(&damage)),
        Err(NotOffered::InSpan { before: None, .. } | NotOffered::BeforeStart { .. }) => Ok(None),
    }
}

/// The oldest state that can be opened.
///
/// # Errors
/// When the journal can't be read.
pub fn oldest(history: &impl History) -> Result<Option<State>> {
    let Some(first) = history.oldest() else { return Ok(None) };
    match history.offerable(first) {
        Ok(()) => state(history, first).map(Some),
        Err(NotOffered::InSpan { after: Some(after), .. }) => state(history, after).map(Some),
        Err(_) => Ok(None),
    }
}

fn state(history: &impl History, seq: Seq) -> Result<State> {
    let time = history.floor(seq)?.map(|(_, time)| time);
    Ok(State { seq, time, point: None })
}

fn latest_app(history: &impl History, points: &[Point]) -> Result<State> {
    let newest = points
        .iter()
        .filter(|point| point.kind == PointKind::App && history.offerable(point.seq).is_ok())
        .max_by_key(|point| point.seq);
    match newest {
        Some(point) => by_point(history, point),
        None => Err(with_newest(Failure::not_found("there is no app-consistent point"), history)),
    }
}

fn by_seq(history: &impl History, seq: Seq) -> Result<State> {
    check(history, seq, &format!("seq:{seq}"))?;
    state(history, seq)
}

fn by_time(history: &impl History, time: WallMicros) -> Result<State> {
    if history.durable() == Seq(0) {
        return Err(nothing_yet());
    }
    let shown = timestamp(time);
    let Some((seq, captured)) = history.at_time(time)? else {
        let failure = Failure::not_found(format!("nothing as old as {shown} is kept"));
        return Err(match oldest(history)? {
            Some(oldest) => failure.with_hint(format!("the oldest state is {}", name(&oldest))),
            None => nothing_yet(),
        });
    };
    check(history, seq, &format!("the state at {shown}"))?;
    Ok(State { seq, time: Some(captured), point: None })
}

fn by_point(history: &impl History, point: &Point) -> Result<State> {
    let shown = if point.label.is_empty() { point.id.to_string() } else { point.label.clone() };
    check(history, point.seq, &format!("point {shown:?}"))?;
    Ok(State { seq: point.seq, time: Some(point.time), point: Some(point.clone()) })
}

fn by_name(history: &impl History, points: &[Point], name: &str) -> Result<State> {
    let named: Vec<&Point> = points.iter().filter(|point| point.label == name).collect();
    match named[..] {
        [point] => by_point(history, point),
        [] => Err(no_point(name, points)),
        _ => {
            let ids: Vec<String> =
                named.iter().map(|p| format!("{} ({})", p.id, timestamp(p.time))).collect();
            let message = format!("{} points are named {name:?}", named.len());
            Err(Failure::conflict(message).with_hint(format!("use an id: {}", ids.join(", "))))
        }
    }
}

fn no_point(wanted: &str, points: &[Point]) -> Failure {
    let failure = Failure::not_found(format!("there is no point {wanted:?}"));
    let words = ["latest", "latest-app"];
    let names = points.iter().map(|point| point.label.as_str()).filter(|name| !name.is_empty());
    match nearest(wanted, names.chain(words)) {
        Some(name) => failure.with_hint(format!("did you mean {name}?")),
        None => failure.with_hint(HINT),
    }
}

/// Refuses a state that can't be opened, with the nearest that can.
fn check(history: &impl History, seq: Seq, what: &str) -> Result<()> {
    let Err(why) = history.offerable(seq) else { return Ok(()) };
    Err(match why {
        NotOffered::InSpan { before, after } => {
            let failure = Failure::not_found(format!(
                "{what} can't be opened: changes were missing then, or a copy was under way"
            ));
            let mut near = Vec::new();
            for (word, seq) in [("before", before), ("after", after)] {
                if let Some(seq) = seq {
                    near.push(format!("{word} it {}", name(&state(history, seq)?)));
                }
            }
            match near.is_empty() {
                true => failure.with_hint("there is no other state yet; wait for the copy to end"),
                false => failure.with_hint(format!("the nearest states are {}", near.join(", "))),
            }
        }
        NotOffered::AfterEnd { .. } => {
            with_newest(Failure::not_found(format!("{what} does not exist yet")), history)
        }
        NotOffered::BeforeStart { .. } => {
            let failure = Failure::not_found(format!("{what} is no longer kept"));
            match oldest(history)? {
                Some(oldest) => failure.with_hint(format!("the oldest state is {}", name(&oldest))),
                None => failure,
            }
        }
        NotOffered::Damaged(damage) => damaged(&damage),
    })
}

fn with_newest(failure: Failure, history: &impl History) -> Failure {
    match latest(history) {
        Ok(Some(newest)) => failure.with_hint(format!("the newest state is {}", name(&newest))),
        _ => failure.with_hint("there is no state yet"),
    }
}

fn damaged(damage: &crate::error::Damage) -> Failure {
    Failure::conflict(format!("the state needs a damaged file: {damage}"))
        .with_hint("choose a state before it")
}

fn nothing_yet() -> Failure {
    Failure::unavailable("no state of the volume can be opened yet")
        .with_hint("wait until its first copy has ended")
}

/// A state for a person: its number and its time.
fn name(state: &State) -> String {
    match state.time {
        Some(time) => format!("seq:{} ({})", state.seq, timestamp(time)),
        None => format!("seq:{}", state.seq),
    }
}

#[cfg(test)]
#[path = "at_tests.rs"]
mod tests;
