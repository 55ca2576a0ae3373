//! The witness's log: what it asked for, and what it was told, in which order.
//!
//! One global counter numbers two kinds of events: an operation is about to be sent, and its
//! answer has been read. So "acknowledged before it was submitted" is a comparison of two
//! numbers. An operation without a good answer (connection lost, error) may have taken effect
//! wholly, in part or not at all, at any time; its acknowledgement is [`NEVER`].
//!
//! The file is text: a head line, then one line for each operation, in the order of submission:
//! `number connection kind offset length submitted acknowledged submitted_us answered_us`. The
//! last two are wall-clock microseconds. It is written whole when a run ends; a crash loses it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, bail, ensure};

use super::pattern::{OpNumber, Pattern};

/// Place of an event in the one order of all events; 0 is the beginning of the run.
pub(crate) type Event = u64;
/// The acknowledgement that did not come.
pub(crate) const NEVER: Event = Event::MAX;
const HEAD: &str = "tidemark-witness-log 1";

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Write { fua: bool },
    Zeroes { no_hole: bool },
    Trim,
    Flush,
}

impl Kind {
    fn letter(self) -> char {
        match self {
            Self::Write { fua: false } => 'w',
            Self::Write { fua: true } => 'W',
            Self::Zeroes { no_hole: false } => 'z',
            Self::Zeroes { no_hole: true } => 'Z',
            Self::Trim => 't',
            Self::Flush => 'f',
        }
    }

    fn from_letter(letter: &str) -> Option<Self> {
        Some(match letter {
            "w" => Self::Write { fua: false },
            "W" => Self::Write { fua: true },
            "z" => Self::Zeroes { no_hole: false },
            "Z" => Self::Zeroes { no_hole: true },
            "t" => Self::Trim,
            "f" => Self::Flush,
            _ => return None,
        })
    }
}

/// One operation and what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Op {
    pub(crate) number: OpNumber,
    pub(crate) connection: u32,
    pub(crate) kind: Kind,
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) submitted: Event,
    pub(crate) acknowledged: Event,
    pub(crate) submitted_us: i64,
    /// `i64::MAX` when no answer came.
    pub(crate) answered_us: i64,
}

impl Op {
    pub(crate) fn end(&self) -> u64 {
        self.offset + u64::from(self.len)
    }

    /// True when the operation may write all of `[start, end)`.
    pub(crate) fn covers(&self, start: u64, end: u64) -> bool {
        self.kind != Kind::Flush && self.offset <= start && end <= self.end()
    }
}

impl FromStr for Op {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Self> {
        let fields: Vec<&str> = line.split(' ').collect();
        let [number, connection, kind, offset, len, submitted, acked, submitted_us, answered_us] =
            fields[..]
        else {
            bail!("{} fields instead of 9", fields.len());
        };
        let never = acked == "-";
        Ok(Self {
            number: number.parse()?,
            connection: connection.parse()?,
            kind: Kind::from_letter(kind).with_context(|| format!("no kind {kind:?}"))?,
            offset: offset.parse()?,
            len: len.parse()?,
            submitted: submitted.parse()?,
            acknowledged: if never { NEVER } else { acked.parse()? },
            submitted_us: submitted_us.parse()?,
            answered_us: if never { i64::MAX } else { answered_us.parse()? },
        })
    }
}

/// A whole log.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    pub(crate) pattern: Pattern,
    pub(crate) size_bytes: u64,
    /// In the order of submission.
    pub(crate) ops: Vec<Op>,
}

impl Log {
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("the log {}", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut lines = text.lines();
        let head = lines.next().unwrap_or_default();
        let numbers = head.strip_prefix(HEAD).context("its first line is not that of a log")?;
        let mut numbers = numbers.split_whitespace();
        let mut next = || -> anyhow::Result<u64> { Ok(numbers.next().context("head")?.parse()?) };
        let (pattern, size_bytes) = (Pattern { seed: next()? }, next()?);
        let mut ops: Vec<Op> = Vec::new();
        for (index, line) in lines.enumerate() {
            let op: Op = line.parse().with_context(|| format!("line {}", index + 2))?;
            let risen = ops.last().is_none_or(|last| last.submitted < op.submitted);
            ensure!(risen, "line {}: not behind the line before it", index + 2);
            ops.push(op);
        }
        Ok(Self { pattern, size_bytes, ops })
    }

    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let mut text = format!("{HEAD} {} {}\n", self.pattern.seed, self.size_bytes);
        for op in &self.ops {
            let Op { number, connection, offset, len, submitted, submitted_us, .. } = op;
            let kind = op.kind.letter();
            write!(text, "{number} {connection} {kind} {offset} {len} {submitted} ")?;
            match op.acknowledged {
                NEVER => writeln!(text, "- {submitted_us} -")?,
                event => writeln!(text, "{event} {submitted_us} {}", op.answered_us)?,
            }
        }
        fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }

    /// The last event of the log.
    pub(crate) fn last_event(&self) -> Event {
        let acked = self.ops.iter().map(|op| op.acknowledged).filter(|event| *event != NEVER);
        self.ops.iter().map(|op| op.submitted).chain(acked).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_reads_back_and_a_bad_line_is_named() {
        let line = "1 0 W 4097 512 1 3 100 200\n2 1 t 0 4096 2 - 150 -\n";
        let text = format!("{HEAD} 7 1048576\n{line}");
        let log = Log::parse(&text).expect("a good log");
        assert_eq!(log.ops[0].kind, Kind::Write { fua: true });
        assert_eq!((log.ops[1].acknowledged, log.last_event()), (NEVER, 3));
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        log.write(&path).expect("written");
        let back = fs::read_to_string(&path).expect("read");
        assert_eq!(back, text);
        let error = Log::parse(&format!("{text}3 1 q 0 1 9 10 0 0\n")).expect_err("a bad kind");
        assert!(format!("{error:#}").starts_with("line 4: "), "{error:#}");
    }
}
