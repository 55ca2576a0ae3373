//! What a run did, as one number to compare and, where somebody looks, as text.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use crate::time::Time;

/// Lines that are kept.
const LINES_MAX: usize = 40_000;

/// See the module's documentation.
pub(crate) struct Trace {
    time: Arc<Time>,
    hash: RefCell<Xxh3>,
    lines: Option<RefCell<VecDeque<String>>>,
}

impl Trace {
    /// With text only when somebody is going to read it.
    pub(crate) fn new(time: Arc<Time>, with_text: bool) -> Self {
        let lines = with_text.then(RefCell::default);
        Self { time, hash: RefCell::new(Xxh3::new()), lines }
    }

    /// Something that happened, in numbers.
    pub(crate) fn note(&self, what: u64, of: u64) {
        let mut hash = self.hash.borrow_mut();
        let now = u64::try_from(self.time.now().as_nanos()).unwrap_or(u64::MAX);
        for number in [now, what, of] {
            hash.update(&number.to_le_bytes());
        }
    }

    /// The same in words.
    pub(crate) fn say(&self, text: impl FnOnce() -> String) {
        if let Some(lines) = &self.lines {
            let mut lines = lines.borrow_mut();
            if lines.len() == LINES_MAX {
                lines.pop_front();
            }
            lines.push_back(format!("{:>12.6} {}", self.time.now().as_secs_f64(), text()));
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash.borrow().digest()
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines
            .as_ref()
            .map(|lines| lines.borrow().iter().cloned().collect())
            .unwrap_or_default()
    }
}
