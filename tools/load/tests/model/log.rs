//! The clients' own log: when each operation was sent and answered, and with what.
//!
//! The stamps come from one counter, so "answered before sent" is a fact and not a matter of
//! clocks: an operation's first stamp is taken before its first byte is sent, its second one
//! after the last byte of its answer was received.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Written by the connections while a case runs.
pub(crate) struct Log {
    stamps: AtomicU64,
    entries: Vec<Entry>,
}

#[derive(Default)]
struct Entry {
    sent: OnceLock<u64>,
    answer: OnceLock<(u64, Answer)>,
}

/// What the server said.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// 0, or the error of the protocol.
    pub(crate) error: u32,
    /// What a read has read.
    pub(crate) data: Vec<u8>,
}

/// What is known of one operation after the run.
#[derive(Clone, Debug)]
pub(crate) struct Logged {
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    pub(crate) answer: Answer,
}

impl Log {
    /// An empty log of `count` operations.
    pub(crate) fn new(count: usize) -> Self {
        let entries = std::iter::repeat_with(Entry::default).take(count).collect();
        Self { stamps: AtomicU64::new(1), entries }
    }

    // One counter, and sequentially consistent as the only thing that orders the threads' events.
    fn stamp(&self) -> u64 {
        self.stamps.fetch_add(1, Ordering::SeqCst)
    }

    /// An operation is about to be sent.
    pub(crate) fn sent(&self, op: usize) {
        self.entries[op].sent.set(self.stamp()).expect("an operation is sent once");
    }

    /// The answer to an operation is there, whole.
    pub(crate) fn answered(&self, op: usize, answer: Answer) {
        let answer = (self.stamp(), answer);
        self.entries[op].answer.set(answer).expect("an operation is answered once");
    }

    /// The log after the run; fails when an operation was never answered.
    pub(crate) fn finish(self) -> Result<Vec<Logged>, String> {
        let entries = self.entries.into_iter().enumerate();
        entries
            .map(|(op, entry)| match (entry.sent.into_inner(), entry.answer.into_inner()) {
                (Some(sent), Some((answered, answer))) => Ok(Logged { sent, answered, answer }),
                _ => Err(format!("operation {op} was never answered")),
            })
            .collect()
    }
}
