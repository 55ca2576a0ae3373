//! A segment file in words, without a running daemon.

use std::fmt::Write;
use std::path::Path;

use crate::error::Result;
use crate::journal::{SegmentReport, inspect_segment};
use crate::points::timestamp;
use crate::storage::RealStorage;

/// What is in a segment file, and whether it is whole.
///
/// # Errors
/// When the file can't be read, or is no segment at all.
pub fn describe(path: &Path) -> Result<(String, bool)> {
    let report = inspect_segment(&RealStorage, path)?;
    let mut text = String::new();
    write_report(&report, &mut text).expect("a string takes any text");
    Ok((text, report.damage.is_empty()))
}

fn write_report(report: &SegmentReport, out: &mut String) -> std::fmt::Result {
    let state = if report.sealed { "sealed" } else { "open" };
    writeln!(out, "file       {} ({} bytes, {state})", report.file.display(), report.bytes)?;
    writeln!(out, "version    {}", report.version)?;
    writeln!(out, "volume     {}", report.volume)?;
    writeln!(out, "journal    {}", report.journal)?;
    writeln!(out, "timeline   {}, begun in session {}", report.timeline, report.epoch)?;
    writeln!(out, "cipher     {}, key {}", report.cipher, report.key_id)?;
    writeln!(out, "records    {}, the one before is {}", report.records, report.prev_seq)?;
    if report.records > 0 {
        let (first, last) = (timestamp(report.first_time), timestamp(report.last_time));
        writeln!(out, "first      {} ({first})", report.first_seq)?;
        writeln!(out, "last       {} ({last})", report.last_seq)?;
    }
    for (kind, count) in &report.kinds {
        writeln!(out, "  {:<14} {count}", kind.name())?;
    }
    if let Some(chain) = &report.chain {
        write!(out, "chain      ")?;
        for byte in chain {
            write!(out, "{byte:02x}")?;
        }
        writeln!(out)?;
    }
    for damage in &report.damage {
        writeln!(out, "DAMAGED    {damage}")?;
    }
    Ok(())
}
