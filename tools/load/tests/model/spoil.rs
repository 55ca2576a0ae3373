//! Makes the test's own knowledge wrong, to show that the test can fail.

use std::str::FromStr;

use super::journal::Entry;
use super::log::Logged;
use super::plan::{Plan, Sort};

/// Long enough that its contents are no other operation's by chance.
const LENGTH_MIN: u64 = 64;

/// What is made wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoil {
    /// One byte of what a write wrote.
    Payload,
    /// One byte of what a read has read.
    Read,
    /// Two writes change places in time.
    Order,
    /// A record is missing.
    Record,
    /// One byte of the model at the last state.
    Image,
}

impl FromStr for Spoil {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "payload" => Self::Payload,
            "read" => Self::Read,
            "order" => Self::Order,
            "record" => Self::Record,
            "image" => Self::Image,
            _ => return Err(format!("{text:?} is no way to spoil a run")),
        })
    }
}

impl Spoil {
    /// Spoils log and records.
    pub(crate) fn apply(self, plan: &mut Plan, log: &mut [Logged], records: &mut Vec<Entry>) {
        let long = |sort, at: usize| {
            let op = &plan.ops[at];
            op.sort == sort && op.range.len() >= LENGTH_MIN
        };
        let last = |sort| (0..plan.ops.len()).rev().find(|at| long(sort, *at));
        match self {
            Self::Payload => {
                let at = last(Sort::Write).expect("a case has writes");
                *plan.ops[at].data.last_mut().expect("a long write") ^= 1;
            }
            Self::Read => {
                let at = last(Sort::Read).expect("a case has reads");
                // Two values: one of them is nobody's, whatever was in flight.
                log[at].answer.data.fill(0x5A);
            }
            Self::Order => {
                let at = last(Sort::Write).expect("a case has writes");
                let before = |other: &usize| log[*other].answered < log[at].sent;
                let first = (0..at).find(|other| long(Sort::Write, *other) && before(other));
                let first = first.expect("a write before it");
                let (one, other) = (log[first].clone(), log[at].clone());
                (log[first].sent, log[first].answered) = (other.sent, other.answered);
                (log[at].sent, log[at].answered) = (one.sent, one.answered);
            }
            Self::Record => {
                let is_long = |record: &Entry| record.payload.len() as u64 >= LENGTH_MIN;
                let write = tidemark_wire::RecordKind::Write;
                let at = records.iter().rposition(|record| record.kind == write && is_long(record));
                records.remove(at.expect("a case has writes"));
            }
            Self::Image => {}
        }
    }
}
