//! Requests and answers of the control socket, as JSON.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::attach::{Attached, Via};

/// Longest request line, in bytes; a longer one is refused.
pub const REQUEST_BYTES_MAX: u64 = 4096;
/// Longest answer line, in bytes: far beyond what the largest list takes.
pub const ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What a person asks of the running agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The volumes and how they are.
    List,
    /// Makes a volume a block device of this machine.
    Attach {
        /// Its name.
        volume: String,
        /// How; absent: the best way that there is.
        via: Option<Via>,
    },
    /// Takes the block device of a volume away.
    Detach {
        /// Its name.
        volume: String,
    },
    /// Looks now whether the backing store of a volume has another size, and takes it.
    Resize {
        /// Its name.
        volume: String,
    },
    /// Reads the configuration anew.
    Reload,
}

/// What the agent answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// To [`Request::List`].
    Volumes {
        /// In the order of their names.
        volumes: Vec<VolumeStatus>,
    },
    /// To [`Request::Attach`].
    Attached {
        /// The device.
        attached: Attached,
    },
    /// To [`Request::Detach`].
    Detached {
        /// The device that is gone.
        device: PathBuf,
    },
    /// To [`Request::Resize`].
    Resized {
        /// Size before, in bytes.
        old_bytes: u64,
        /// Size now, in bytes; the same where nothing has changed.
        new_bytes: u64,
        /// What a person should know of it.
        notes: Vec<String>,
    },
    /// To [`Request::Reload`].
    Reloaded {
        /// What changed and what did not.
        report: ReloadReport,
    },
    /// The agent did not do it.
    Refused {
        /// What happened, to what, and what to do.
        message: String,
    },
}

/// One volume, as `list` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// Its identity at the collector.
    pub id: String,
    /// The file or block device that holds its bytes.
    pub backing: PathBuf,
    /// Its size.
    pub size_bytes: u64,
    /// Whether the collector's copy follows it.
    pub standing: VolumeStanding,
    /// There is a connection to the collector.
    pub connected: bool,
    /// The collector answers and does not take it; a note says why.
    #[serde(default)]
    pub refused: bool,
    /// It is removed and waits for its last user.
    pub leaving: bool,
    /// NBD connections and open files of it.
    pub users: u64,
    /// Payload in its change ring that the collector has not acknowledged.
    pub ring_used_bytes: u64,
    /// Its write-intent log.
    pub intent: IntentStatus,
    /// The block device that it is attached as.
    pub attached: Option<Attached>,
    /// What a person should know of it.
    pub notes: Vec<String>,
}

/// The write-intent log of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntentStatus {
    /// Regions of 4 MiB whose bit is set: a power cut now is followed by a comparison of these.
    pub marked_regions: u64,
    /// Bytes that differ from the collector, at most.
    pub differing_bytes: u64,
    /// Times that the log was synced since the agent's start.
    pub syncs: u64,
    /// Bits that were cleared since.
    pub cleared: u64,
    /// It can't be written: a power cut is followed by a comparison of the whole volume.
    pub failed: bool,
}

/// Whether the collector's copy follows a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum VolumeStanding {
    /// Every change is on the collector or in the change ring.
    Whole,
    /// A copy or comparison brings the collector level.
    Copying {
        /// Bytes looked at.
        done_bytes: u64,
        /// Bytes to look at.
        total_bytes: u64,
    },
    /// A copy has to begin, until then changes are not captured.
    Lost {
        /// Why.
        reason: String,
    },
    /// A person has paused the protection.
    Paused,
}

/// What reading the configuration anew did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// Volumes that are served now.
    pub added: Vec<String>,
    /// Volumes that nobody can open any more.
    pub removed: Vec<String>,
    /// Settings in force now.
    pub changed: Vec<String>,
    /// Settings that stay as they were until the agent is started anew.
    pub kept: Vec<String>,
    /// What could not be done, and what to do.
    pub problems: Vec<String>,
}

impl ReloadReport {
    /// One line for each thing that a person has to know.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let of = |head: &str, items: &[String]| {
            items.iter().map(|item| format!("{head}{item}")).collect::<Vec<_>>()
        };
        let lines = [
            of("added: ", &self.added),
            of("removed: ", &self.removed),
            of("changed: ", &self.changed),
            of("stays until the agent is started anew: ", &self.kept),
            of("not done: ", &self.problems),
        ]
        .concat();
        if lines.is_empty() { vec!["nothing changed".into()] } else { lines }
    }
}
