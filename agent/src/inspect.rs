//! Shows a change ring's file to a person.

use std::io::{self, Write};
use std::path::Path;

use crate::ring::dump::{self, Dump, EntryState};

/// Lists the complete records of the ring at `path` and checks them. True when all checksums
/// hold.
///
/// # Errors
/// When the file is no ring or `out` fails.
pub fn print_ring(path: &Path, out: &mut dyn Write) -> anyhow::Result<bool> {
    let dump = dump::read(path)?;
    writeln!(
        out,
        "volume {}  {} pages  {} slots  released up to record {}  capture {}",
        dump.volume,
        dump.page_count,
        dump.slot_count,
        dump.released_seq,
        if dump.capture_off { "off" } else { "on" }
    )?;
    print_entries(&dump, out)?;
    let count = |state| dump.entries.iter().filter(|entry| entry.state == state).count();
    let damaged = dump.entries.iter().filter(|entry| entry.damage.is_some()).count();
    writeln!(
        out,
        "{} complete, {} in flight, {} void, {damaged} damaged",
        count(EntryState::Committed),
        count(EntryState::InFlight),
        count(EntryState::Void)
    )?;
    Ok(damaged == 0)
}

fn print_entries(dump: &Dump, out: &mut dyn Write) -> io::Result<()> {
    for entry in &dump.entries {
        let header = &entry.header;
        match entry.state {
            EntryState::Void => continue,
            EntryState::Committed => write!(out, "record {}", header.seq())?,
            EntryState::InFlight => write!(out, "in flight {}", header.seq())?,
            EntryState::Unknown(state) => write!(out, "ticket {} in state {state}", entry.ticket)?,
        }
        let kind = header.kind().map_or("unknown kind", |kind| kind.name());
        write!(out, "  {kind}  bytes {}+{}", header.offset_bytes, header.len_bytes)?;
        match &entry.damage {
            None => writeln!(out, "  {} checksums hold", header.sum_count)?,
            Some(damage) => writeln!(out, "  DAMAGED: {damage}")?,
        }
    }
    Ok(())
}
