//! Tells people of spans: what is missing and why, how large the copy is that brings it, and what
//! it took when the history is whole again; and of new sizes.
//!
//! What enters: marks that have become durable. What leaves: events, and with the volume's facts
//! the newest copy that has ended, for whoever waits for it. What is told of a span comes from the
//! journal, so it is the same after a crash.

use std::time::Duration;

use tidemark_wire::WallMicros;
use tidemark_wire::body::{GapReason, Resync};

use super::owner::VolumeCore;
use crate::error::Severity;
use crate::journal::{Mark, MarkBody};
use crate::storage::Storage;

impl<S: Storage> VolumeCore<S> {
    pub(super) fn report_mark(&self, mark: &Mark) {
        let seq = mark.seq;
        match &mark.body {
            MarkBody::Gap(reason) => {
                let why = reason.map_or("for a reason that is not known here", GapReason::text);
                let text = format!("changes before record {seq} are missing: {why}");
                self.report(Severity::Warning, text);
            }
            MarkBody::ResyncBegin(resync) => {
                let what = if resync.initial == 1 { "the first copy" } else { "a comparison" };
                let text = format!("{what} of {} bytes began at {seq}", resync.total_bytes);
                self.report(Severity::Info, text);
            }
            MarkBody::ResyncEnd(resync) if self.span_is_closed() => {
                self.shared.lock().last_copy = Some((seq, *resync));
                self.report(Severity::Info, self.end_text(mark, resync));
            }
            MarkBody::Resize { size_bytes, old_bytes } => {
                let shrank = size_bytes < old_bytes;
                let (severity, what) =
                    if shrank { (Severity::Warning, "shrank") } else { (Severity::Info, "grew") };
                let name = &self.manifest.name;
                let text = format!(
                    "volume {name} {what} from {old_bytes} to {size_bytes} bytes at record {seq}; \
                     states before it keep their size"
                );
                self.report(severity, text);
            }
            _ => {}
        }
    }

    fn end_text(&self, mark: &Mark, resync: &Resync) -> String {
        let (seq, total, sent) = (mark.seq, resync.total_bytes, resync.sent_bytes);
        let took = self.span_begin_time(mark).map(|begin| {
            let micros = mark.time.0.saturating_sub(begin.0);
            format!(", {:.1} s after the span began", Duration::from_micros(micros).as_secs_f64())
        });
        format!(
            "the history is whole again from record {seq} on: {total} bytes were looked at, {sent} \
             of them sent{}",
            took.unwrap_or_default()
        )
    }

    /// When the span began that this mark has ended.
    fn span_begin_time(&self, end: &Mark) -> Option<WallMicros> {
        let reader = self.reader()?;
        let span = reader.spans().into_iter().find(|span| span.end == Some(end.seq))?;
        // Without the record the event says less.
        let (found, time) = reader.floor(span.begin).ok().flatten()?;
        (found == span.begin).then_some(time)
    }
}
