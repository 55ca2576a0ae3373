//! Spans: the states that are never offered.
//!
//! Marks enter in the order of the stream; the list of spans leaves. A span begins with a gap or
//! a resync-begin and ends with the resync-end of the resynchronization that began last. A gap
//! inside a span does not begin another one, but what was resynchronized until then no longer
//! counts: the span waits for a resynchronization that begins after the gap.

use tidemark_wire::{RecordKind, Seq};

use super::format::MarkEntry;
use super::types::Span;

/// A span that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenSpan {
    pub(crate) begin: Seq,
    /// The resynchronization that ends it; none while it waits for one to begin.
    pub(crate) resync: Option<[u8; 16]>,
}

impl OpenSpan {
    /// As header and trailer carry it.
    pub(crate) fn to_fields(span: Option<Self>) -> (Seq, [u8; 16]) {
        span.map_or((Seq(0), [0; 16]), |span| (span.begin, span.resync.unwrap_or_default()))
    }

    /// From header or trailer.
    pub(crate) fn from_fields(begin: u64, resync: [u8; 16]) -> Option<Self> {
        let resync = (resync != [0; 16]).then_some(resync);
        (begin != 0).then_some(Self { begin: Seq(begin), resync })
    }
}

/// All spans of a journal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spans {
    closed: Vec<Span>,
    open: Option<OpenSpan>,
}

impl Spans {
    /// The spans of a journal whose first segment begins inside one.
    pub(crate) fn resume(open: Option<OpenSpan>) -> Self {
        Self { closed: Vec::new(), open }
    }

    pub(crate) fn open(&self) -> Option<OpenSpan> {
        self.open
    }

    /// Takes the next mark of the stream.
    pub(crate) fn apply(&mut self, mark: &MarkEntry) {
        let seq = Seq(mark.seq.get());
        let begin = self.open.map_or(seq, |open| open.begin);
        match RecordKind::from_byte(mark.kind) {
            Some(RecordKind::Gap) => self.open = Some(OpenSpan { begin, resync: None }),
            Some(RecordKind::ResyncBegin) => {
                self.open = Some(OpenSpan { begin, resync: Some(mark.id) });
            }
            Some(RecordKind::ResyncEnd)
                if self.open.is_some_and(|open| open.resync == Some(mark.id)) =>
            {
                self.closed.push(Span { begin, end: Some(seq) });
                self.open = None;
            }
            _ => {}
        }
    }

    /// Forgets the spans that end with a state or before it.
    pub(crate) fn forget_to(&mut self, seq: Seq) {
        self.closed.retain(|span| span.end.is_none_or(|end| end > seq));
    }

    /// Oldest first; the open one last.
    pub(crate) fn list(&self) -> Vec<Span> {
        let open = self.open.map(|open| Span { begin: open.begin, end: None });
        self.closed.iter().copied().chain(open).collect()
    }

    /// The span in which a state lies.
    pub(crate) fn covering(&self, seq: Seq) -> Option<Span> {
        if let Some(open) = self.open.filter(|open| seq >= open.begin) {
            return Some(Span { begin: open.begin, end: None });
        }
        let behind = self.closed.partition_point(|span| span.begin <= seq);
        let span = *self.closed.get(behind.checked_sub(1)?)?;
        span.end.is_some_and(|end| seq < end).then_some(span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn mark(seq: u64, kind: RecordKind, id: u8) -> MarkEntry {
        let mut mark = MarkEntry::new_zeroed();
        mark.seq = seq.into();
        mark.kind = kind as u8;
        mark.id = [id; 16];
        mark
    }

    fn spans(marks: &[MarkEntry]) -> Spans {
        let mut spans = Spans::default();
        marks.iter().for_each(|mark| spans.apply(mark));
        spans
    }

    #[test]
    fn a_gap_and_its_resynchronization_are_one_span() {
        let spans = spans(&[
            mark(5, RecordKind::Gap, 0),
            mark(7, RecordKind::ResyncBegin, 1),
            mark(9, RecordKind::ResyncEnd, 1),
        ]);
        assert_eq!(spans.list(), [Span { begin: Seq(5), end: Some(Seq(9)) }]);
        assert_eq!(spans.covering(Seq(4)), None);
        assert!(spans.covering(Seq(5)).is_some());
        assert!(spans.covering(Seq(8)).is_some());
        assert_eq!(spans.covering(Seq(9)), None);
    }

    #[test]
    fn a_gap_inside_a_resynchronization_voids_it() {
        let spans = spans(&[
            mark(5, RecordKind::ResyncBegin, 1),
            mark(6, RecordKind::Gap, 0),
            mark(7, RecordKind::ResyncEnd, 1),
        ]);
        assert_eq!(spans.list(), [Span { begin: Seq(5), end: None }]);
        assert!(spans.covering(Seq(700)).is_some());
    }

    #[test]
    fn an_end_of_another_resynchronization_ends_nothing() {
        let spans =
            spans(&[mark(5, RecordKind::ResyncBegin, 1), mark(7, RecordKind::ResyncEnd, 2)]);
        assert_eq!(spans.open().map(|open| open.begin), Some(Seq(5)));
    }
}
