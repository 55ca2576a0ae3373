//! What the cases have done, to be printed, and to be sure that they have tried everything.

use std::fmt;

/// Sums over all cases.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) cases: u64,
    pub(crate) operations: u64,
    pub(crate) written_bytes: u64,
    /// Reads of the clients that were held against the log.
    pub(crate) reads: u64,
    pub(crate) records: u64,
    /// Records whose payload is compressed.
    pub(crate) packed: u64,
    /// Writes that came in several records.
    pub(crate) torn: u64,
    pub(crate) views: u64,
    pub(crate) view_bytes: u64,
    /// States that were read while the case ran.
    pub(crate) live_views: u64,
    /// States in spans.
    pub(crate) refused: u64,
    /// Copies that were completed, first ones included.
    pub(crate) spans: u64,
    /// Copies that something outdated.
    pub(crate) restarted: u64,
    /// Changes, or parts of them, that were not captured.
    pub(crate) uncaptured: u64,
    pub(crate) sealed: u64,
    /// Connections to the collector that were lost.
    pub(crate) cuts: u64,
}

impl Figures {
    /// What no case has tried.
    pub(crate) fn untried(&self) -> Vec<&'static str> {
        let tried = [
            (self.reads, "a read of a client"),
            (self.packed, "a compressed record"),
            (self.torn, "a write in several records"),
            (self.live_views, "a view while records come in"),
            (self.refused, "a state in a span"),
            (self.spans.saturating_sub(self.cases), "a gap and the copy that closes it"),
            (self.uncaptured, "a change that was not captured"),
            (self.sealed, "a sealed segment"),
            (self.cuts, "a lost connection"),
        ];
        tried.into_iter().filter(|(count, _)| *count == 0).map(|(_, what)| what).collect()
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes / (1 << 20);
        writeln!(
            f,
            "cases: {}; operations: {} ({} MiB written); records: {} ({} compressed), {} writes \
             in several",
            self.cases,
            self.operations,
            mib(self.written_bytes),
            self.records,
            self.packed,
            self.torn
        )?;
        writeln!(
            f,
            "views compared: {} ({} MiB); states in spans refused: {}; views during the run: {}; \
             reads of clients compared: {}",
            self.views,
            mib(self.view_bytes),
            self.refused,
            self.live_views,
            self.reads
        )?;
        write!(
            f,
            "copies completed: {}, outdated: {}; changes not captured: {}; segments sealed: {}; \
             connections lost: {}",
            self.spans, self.restarted, self.uncaptured, self.sealed, self.cuts
        )
    }
}
