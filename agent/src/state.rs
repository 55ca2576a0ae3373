//! What the agent keeps of a volume across restarts, in one small file per volume in the state
//! directory.
//!
//! The file is replaced whole (written beside, synced, renamed, directory synced), so a reader
//! finds the old or the new one. It is written before what it says takes effect: numbers are
//! used only below `reserved_until`, and `clean` is taken back before the first client may
//! write. A crash may lose nothing here; a file that does not decode stops the volume, because
//! guessing could reuse numbers.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tidemark_wire::{Epoch, JournalId, Seq, Timeline, VolumeId, WallMicros, checksum};

/// Sequence numbers that one durable reservation covers.
pub const SEQ_RESERVATION: u64 = 1 << 22;

const FORMAT_VERSION: u32 = 3;
/// Knew no write-intent log, and so covered nothing.
const VERSION_BEFORE: u32 = 2;

/// The durable facts of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeState {
    /// Identity of the volume.
    pub volume: VolumeId,
    /// Numbers below this one may have been used.
    pub reserved_until: Seq,
    /// Every record up to here was claimed before this state was kept. A machine that is put back
    /// to this state, or loses its power, may know nothing of the ones behind it.
    pub known: Seq,
    /// The collector has to be asked what the records behind this one have changed: this machine
    /// lost its power, or was put back, and no copy has ended since.
    pub unsure_after: Option<Seq>,
    /// The collector's copy that the volume was sent to; `NIL` when to none.
    pub journal: JournalId,
    /// The timeline on which it was sent.
    pub timeline: Timeline,
    /// The epoch of the last session.
    pub epoch: Epoch,
    /// A whole copy of the volume reached that journal, and every change after it was captured.
    pub copied: bool,
    /// The bits of the write-intent log cover everything that may differ from that copy.
    pub covered: bool,
    /// The agent stopped in order: everything was acknowledged up to `released`, the backing
    /// store was flushed and nothing was written since.
    pub clean: bool,
    /// The last acknowledged record of a clean stop.
    pub released: Seq,
    /// A person wants that changes are not captured.
    pub paused: bool,
    /// No record gets a smaller time from here on: times never fall, whatever the wall clock of
    /// the next boot says. The newest time when numbers were reserved last, or of a clean stop.
    pub last_time: WallMicros,
    /// What the backing store looked like when it was last known to be unchanged by others.
    pub backing: Option<BackingMark>,
}

/// Sort of a backing store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackingKind {
    /// A regular file.
    File,
    /// A block device.
    Device,
}

/// What tells whether a backing store was changed while no agent served it. Fields that a sort of
/// backing store does not have are 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackingMark {
    /// File or device.
    pub kind: BackingKind,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Number of the file's inode.
    pub inode: u64,
    /// Number of the device that holds the file, or of the block device itself.
    pub device: u64,
    /// When the file's bytes were changed last, in nanoseconds since the Unix epoch.
    pub mtime_ns: i64,
    /// When the file or its attributes were changed last, in nanoseconds since the Unix epoch.
    pub ctime_ns: i64,
    /// The mark that this agent left on the file; all zero where it could leave none.
    pub generation: [u8; 16],
    /// The machine's boot in which the mark was made.
    pub boot_id: [u8; 16],
    /// Sectors written to the block device since that boot.
    pub sectors_written: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    volume: String,
    reserved_until: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    known: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unsure_after: Option<u64>,
    journal: String,
    timeline: u32,
    epoch: u64,
    copied: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    covered: Option<bool>,
    clean: bool,
    released: u64,
    paused: bool,
    last_time_us: u64,
    backing: Option<BackingMark>,
    checksum: String,
}

/// What every version begins with.
#[derive(Deserialize)]
struct Head {
    version: u32,
}

/// Why the state of a volume could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The operating system refused.
    #[error("state file {path}: {source}")]
    Io {
        /// The file or its directory.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The file is not a state file of this version, or damaged.
    #[error(
        "state file {path} is damaged or foreign ({detail}); move it away to protect the volume \
         anew with a whole copy"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
}

/// The state file of one volume.
pub struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// The state file of the volume called `name` in `dir`.
    #[must_use]
    pub fn new(dir: &Path, name: &str) -> Self {
        Self { path: dir.join(format!("{name}.volume.json")) }
    }

    /// Reads the state; `None` when the volume is new here.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn load(&self) -> Result<Option<VolumeState>, StateError> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(self.io(e)),
        };
        let head: Head = serde_json::from_str(&text).map_err(|e| self.damaged(e.to_string()))?;
        if ![VERSION_BEFORE, FORMAT_VERSION].contains(&head.version) {
            let detail = format!("version {}, this program knows {FORMAT_VERSION}", head.version);
            return Err(self.damaged(detail));
        }
        let mut document: Document =
            serde_json::from_str(&text).map_err(|e| self.damaged(e.to_string()))?;
        let sum = document.compute_checksum();
        if document.checksum != sum {
            return Err(self.damaged("checksum does not match".into()));
        }
        let covered = match (head.version, document.covered) {
            (FORMAT_VERSION, Some(covered)) => covered,
            (VERSION_BEFORE, None) => false,
            (version, _) => {
                let detail = format!("`covered` does not belong to version {version} so");
                return Err(self.damaged(detail));
            }
        };
        let id = |e: &dyn std::fmt::Display| self.damaged(e.to_string());
        Ok(Some(VolumeState {
            volume: document.volume.parse().map_err(|e| id(&e))?,
            reserved_until: Seq(document.reserved_until),
            known: Seq(document.known.unwrap_or(0)),
            unsure_after: document.unsure_after.map(Seq),
            journal: document.journal.parse().map_err(|e| id(&e))?,
            timeline: Timeline(document.timeline),
            epoch: Epoch(document.epoch),
            copied: document.copied,
            covered,
            clean: document.clean,
            released: Seq(document.released),
            paused: document.paused,
            last_time: WallMicros(document.last_time_us),
            backing: document.backing,
        }))
    }

    /// Replaces the state durably.
    ///
    /// # Errors
    /// [`StateError::Io`]; the old state is then still in place.
    pub fn store(&self, state: &VolumeState) -> Result<(), StateError> {
        let mut document = Document {
            version: FORMAT_VERSION,
            volume: state.volume.to_string(),
            reserved_until: state.reserved_until.0,
            known: Some(state.known.0),
            unsure_after: state.unsure_after.map(|seq| seq.0),
            journal: state.journal.to_string(),
            timeline: state.timeline.0,
            epoch: state.epoch.0,
            copied: state.copied,
            covered: Some(state.covered),
            clean: state.clean,
            released: state.released.0,
            paused: state.paused,
            last_time_us: state.last_time.0,
            backing: state.backing.clone(),
            checksum: String::new(),
        };
        document.checksum = document.compute_checksum();
        let text = serde_json::to_vec_pretty(&document).map_err(|e| self.io(e.into()))?;
        self.replace(&text).map_err(|e| self.io(e))
    }

    fn replace(&self, text: &[u8]) -> io::Result<()> {
        let beside = self.path.with_extension("json.new");
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        File::open(dir)?.sync_all()
    }

    fn io(&self, source: io::Error) -> StateError {
        StateError::Io { path: self.path.clone(), source }
    }

    fn damaged(&self, detail: String) -> StateError {
        StateError::Damaged { path: self.path.clone(), detail }
    }
}

/// The state of one volume in memory, in step with its file.
pub struct KeptState {
    file: StateFile,
    state: Mutex<VolumeState>,
}

impl KeptState {
    /// Keeps `state` in `file`, which holds it already.
    #[must_use]
    pub fn new(file: StateFile, state: VolumeState) -> Self {
        Self { file, state: Mutex::new(state) }
    }

    /// The state.
    #[must_use]
    pub fn get(&self) -> VolumeState {
        self.lock().clone()
    }

    /// Changes the state, durably where it did change.
    ///
    /// # Errors
    /// [`StateError::Io`]; nothing has changed then.
    pub fn update(&self, change: impl FnOnce(&mut VolumeState)) -> Result<(), StateError> {
        let mut state = self.lock();
        let mut changed = state.clone();
        change(&mut changed);
        if changed != *state {
            self.file.store(&changed)?;
            *state = changed;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, VolumeState> {
        // The state is replaced whole, so a panic of a holder leaves a good one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Document {
    /// XXH3-64 of this document without its checksum.
    fn compute_checksum(&mut self) -> String {
        let given = std::mem::take(&mut self.checksum);
        let bytes = serde_json::to_vec(self).expect("plain fields always serialize");
        self.checksum = given;
        format!("{:016x}", checksum::sum(&bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> VolumeState {
        VolumeState {
            volume: VolumeId::from_random([1; 16]),
            reserved_until: Seq(SEQ_RESERVATION),
            known: Seq(16),
            unsure_after: Some(Seq(12)),
            journal: JournalId::NIL,
            timeline: Timeline(1),
            epoch: Epoch(3),
            copied: true,
            covered: true,
            clean: false,
            released: Seq(17),
            paused: false,
            last_time: WallMicros(1_700_000_000_000_000),
            backing: Some(BackingMark {
                kind: BackingKind::File,
                size_bytes: 1 << 30,
                inode: 12,
                device: 34,
                mtime_ns: -1,
                ctime_ns: 5,
                generation: [6; 16],
                boot_id: [7; 16],
                sectors_written: 0,
            }),
        }
    }

    #[test]
    fn comes_back_as_it_was_stored() {
        let dir = tempfile::tempdir().expect("temp dir");
        let file = StateFile::new(dir.path(), "data");
        assert_eq!(file.load().expect("absent is fine"), None);
        file.store(&state()).expect("stored");
        assert_eq!(file.load().expect("loaded"), Some(state()));
    }

    #[test]
    fn what_knew_no_write_intent_log_covers_nothing() {
        let dir = tempfile::tempdir().expect("temp dir");
        let file = StateFile::new(dir.path(), "data");
        file.store(&state()).expect("stored");
        let text = fs::read_to_string(&file.path).expect("text");
        let mut before: Document = serde_json::from_str(&text).expect("a document");
        (before.version, before.covered) = (VERSION_BEFORE, None);
        before.checksum = before.compute_checksum();
        fs::write(&file.path, serde_json::to_vec(&before).expect("plain")).expect("write");
        let found = file.load().expect("loaded");
        assert_eq!(found, Some(VolumeState { covered: false, ..state() }));
    }

    #[test]
    fn a_changed_digit_is_noticed() {
        let dir = tempfile::tempdir().expect("temp dir");
        let file = StateFile::new(dir.path(), "data");
        file.store(&state()).expect("stored");
        let text = fs::read_to_string(&file.path).expect("text");
        for (from, to, wanted) in [
            ("\"released\": 17", "\"released\": 18", "checksum does not match"),
            ("\"paused\": false", "\"paused\": true", "checksum does not match"),
            ("\"inode\": 12", "\"inode\": 13", "checksum does not match"),
            ("\"covered\": true", "\"covered\": false", "checksum does not match"),
            ("\"version\": 3", "\"version\": 1", "version 1, this program knows 3"),
        ] {
            assert!(text.contains(from), "{text}");
            fs::write(&file.path, text.replace(from, to)).expect("write");
            let error = file.load().expect_err("damaged").to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
