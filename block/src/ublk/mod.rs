//! Block devices of this machine by the kernel's ublk driver: `/dev/ublkbN`, served by this process.
//!
//! What enters: requests of the kernel for a device, and a person's wish to make or take one away.
//! What leaves: calls of a [`Device`](crate::Device), and answers. [`Control`] makes, starts, stops
//! and deletes devices; a [`Server`] is the thread that serves one, with an executor of its own.
//! The kernel owns a device: it outlives this process, whose successor takes it over
//! ([`Control::begin_recovery`]). A crash loses nothing: what was not answered is asked again of
//! the next server, so a change may be carried out twice, before it is acknowledged once.
//!
//! The path of a write: a slot, one of 128 tasks of the queue, gets a request; it reserves the
//! device's memory, reads the payload from the kernel straight into it, and writes. No further
//! copy; the one that is made is the kernel's own, from its pages into ours.
//!
//! The crate libublk is not used: its queues bring a ring, an executor and a buffer for each
//! request of their own, so each payload would be copied once more, and change threads.
//!
//! - `abi`: structures and numbers; `control`: the commands about devices;
//! - `request`: what a request means; `queue`: the server and its slots.

mod abi;
mod control;
mod queue;
mod request;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use control::{Control, Shape, Standing, State};
pub use queue::Server;

/// Requests of one device that can be in flight; the kernel keeps those beyond.
pub(crate) const REQUESTS_MAX: u16 = 128;
/// Longest payload of a request, in bytes; the kernel splits what is longer.
pub(crate) const PAYLOAD_BYTES_MAX: u32 = 1 << 20;

/// The number of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number(u32);

impl Number {
    /// The block device.
    #[must_use]
    pub fn device(self) -> PathBuf {
        PathBuf::from(format!("/dev/ublkb{}", self.0))
    }

    /// The file by which it is served.
    #[must_use]
    pub fn queue_file(self) -> PathBuf {
        PathBuf::from(format!("/dev/ublkc{}", self.0))
    }

    /// Of the block device at `path`, when that is one of ublk.
    #[must_use]
    pub fn of_device(path: &Path) -> Option<Self> {
        path.to_str()?.strip_prefix("/dev/ublkb").and_then(parsed)
    }

    /// All devices that there are, also those that are not started.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let entries = std::fs::read_dir("/sys/class/ublk-char").into_iter().flatten().flatten();
        let mut numbers: Vec<_> = entries
            .filter_map(|entry| parsed(entry.file_name().to_str()?.strip_prefix("ublkc")?))
            .collect();
        numbers.sort_unstable();
        numbers
    }
}

fn parsed(digits: &str) -> Option<Number> {
    u32::from_str(digits).ok().filter(|number| number.to_string() == digits).map(Number)
}

/// Why the ublk driver can't be used, or did not do something.
#[derive(Debug, thiserror::Error)]
pub enum UblkError {
    /// There is no driver.
    #[error("the kernel's ublk driver is not there ({} is missing)", abi::CONTROL_PATH)]
    Missing,
    /// Its file can't be opened.
    #[error("can't open {}: {source}", abi::CONTROL_PATH)]
    Closed {
        /// The operating system's error.
        source: io::Error,
    },
    /// There is no io_uring, or none with large entries.
    #[error(
        "commands to the ublk driver need io_uring: {source}; see sysctl kernel.io_uring_disabled"
    )]
    Ring {
        /// The operating system's error.
        source: io::Error,
    },
    /// The driver is too old.
    #[error("the ublk driver of this kernel has not got all that is needed; that is Linux 6.5")]
    Old,
    /// The driver refused a command.
    #[error("the ublk driver does not {doing}: {source}")]
    Refused {
        /// What it was to do.
        doing: Doing,
        /// Its error.
        source: io::Error,
    },
}

/// What the driver is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Say what it can do.
    Features,
    /// Say how a device is.
    Look,
    /// Make a device.
    Add,
    /// Take the shape of a device.
    SetShape,
    /// Start it.
    Start,
    /// Begin, or end, to give it to another server.
    Recover,
    /// Stop it.
    Stop,
    /// Delete it.
    Delete,
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Features => "say what it can do",
            Self::Look => "say how the device is",
            Self::Add => "make a device",
            Self::SetShape => "take the size and limits of the device",
            Self::Start => "start the device",
            Self::Recover => "give the device to another server",
            Self::Stop => "stop the device",
            Self::Delete => "delete the device",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_paths_and_nothing_else_is() {
        let number = Number::of_device(Path::new("/dev/ublkb12")).expect("a device");
        assert_eq!(number.queue_file(), Path::new("/dev/ublkc12"));
        assert_eq!(number.device(), Path::new("/dev/ublkb12"));
        for path in ["/dev/ublkb", "/dev/ublkb1p1", "/dev/ublkc1", "/dev/ublkb01", "/dev/ublkb+1"] {
            assert_eq!(Number::of_device(Path::new(path)), None, "{path}");
        }
    }
}
