//! Restores a state of a volume to a file or a block device of the collector's machine.
//!
//! What enters: a view, and what a person wants ([`Wanted`]). What leaves: the target, whole and
//! synced. [`plan()`] says what would happen and refuses what can't or must not; [`restore()`]
//! does it: [`steps`] cuts the state into pieces, [`fill`] reads them ahead with a few threads and
//! writes them in order to a [`target::Target`], of which there are three. A crash loses what was
//! written since the last [`record`]; the same restore begun again reads what was written back,
//! believes it only where its sum holds, and goes on from there. A file is `NAME.partial` until
//! it is whole, so the name itself is only ever a whole disk; a device is whole when the job has
//! ended well.

mod device;
mod device_facts;
mod fill;
mod nbd;
mod place;
mod plan;
mod qcow2;
mod raw;
mod record;
mod steps;
mod target;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tidemark_wire::{JournalId, Seq, Timeline, VolumeId};

pub use plan::{Format, Plan, Wanted, plan};

use self::fill::{Fill, Filled};
use self::place::Place;
use self::target::Target;
use crate::error::Result;
use crate::storage::Storage;
use crate::view::View;

/// Shared between a piece of long work and whoever watches it.
#[derive(Debug, Default)]
pub struct Progress {
    done_bytes: AtomicU64,
    cancelled: AtomicBool,
}

impl Progress {
    /// Bytes of the disk that are done.
    #[must_use]
    pub fn done_bytes(&self) -> u64 {
        // Relaxed: a figure for people, nothing hangs on its order.
        self.done_bytes.load(Ordering::Relaxed)
    }

    /// Asks the work to end.
    pub fn cancel(&self) {
        // Relaxed: the work looks often, and nothing else is handed over by this.
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether somebody has asked it to end.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// So many bytes more of the disk are done.
    pub fn add(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// How a restore ended when it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// The target is there.
    Done {
        /// Bytes that this run wrote; the rest was there already, or is zeroes.
        written_bytes: u64,
        /// Blocks of 4 KiB that the view gave out, each only after its checksum held.
        checksums_verified: u64,
    },
    /// It was cancelled; the same restore begun again goes on with what was written.
    Cancelled,
}

/// The state that is restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The volume.
    pub volume: VolumeId,
    /// Its name, for people.
    pub name: String,
    /// The collector's copy.
    pub journal: JournalId,
    /// The timeline.
    pub timeline: Timeline,
    /// The state.
    pub seq: Seq,
    /// Size of the volume at that state.
    pub size_bytes: u64,
}

/// The command that goes on with a restore that has ended early.
#[must_use]
pub fn command(volume: &str, seq: Seq, target: &std::path::Path) -> String {
    let target = target.to_string_lossy();
    format!("tidemark restore {} --at seq:{seq} --to {}", quoted(volume), quoted(&target))
}

/// A word as a shell takes it.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@%+=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Writes the state to the target.
///
/// # Errors
/// As [`plan()`]; `Unavailable` when the disk is full; `Internal` when the state is damaged. What
/// was written stays, for the next run.
pub fn restore<S: Storage>(view: &View<S>, plan: Plan, progress: &Progress) -> Result<Restored> {
    let Plan { subject, place, resume, overwrite } = plan;
    place.prepare()?;
    let kept_bytes = resume.as_ref().map_or(0, record::Record::done_bytes);
    let mut target = open(&place, &subject, kept_bytes)?;
    let record = match resume {
        Some(record) => record,
        None => {
            place.forget()?;
            record::Record::new(&subject, place.format(), overwrite)
        }
    };
    let mut fill = Fill::new(view, target.as_mut(), record, place.record_path(), progress);
    let filled = fill.run();
    let anything = fill.has_record();
    match filled {
        Ok(Filled { written_bytes, checksums_verified, whole: true }) => {
            target.finish(overwrite)?;
            place.forget()?;
            Ok(Restored::Done { written_bytes, checksums_verified })
        }
        Ok(_) => {
            target.leave(anything);
            Ok(Restored::Cancelled)
        }
        Err(error) => {
            target.leave(anything);
            Err(error)
        }
    }
}

/// Opens the target; `kept_bytes` at its start were written by an earlier run.
fn open(place: &Place, subject: &Subject, kept_bytes: u64) -> Result<Box<dyn Target>> {
    Ok(match place {
        Place::Raw { path } => Box::new(raw::RawFile::open(path, subject.size_bytes, kept_bytes)?),
        Place::Qcow2 { path, run_dir } => {
            Box::new(qcow2::Qcow2::open(path, run_dir, subject.size_bytes, kept_bytes)?)
        }
        Place::Device { path, .. } => Box::new(device::Device::open(path, subject.size_bytes)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_pasted_into_a_shell() {
        let command = command("it's mine", Seq(7), std::path::Path::new("/srv/a b.img"));
        assert_eq!(command, "tidemark restore 'it'\\''s mine' --at seq:7 --to '/srv/a b.img'");
    }
}
