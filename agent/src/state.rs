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
use tidemark_wire::{Epoch, JournalId, Seq, Timeline, VolumeId, checksum};

/// Sequence numbers that one durable reservation covers.
pub const SEQ_RESERVATION: u64 = 1 << 22;

const FORMAT_VERSION: u32 = 1;

/// The durable facts of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeState {
    /// Identity of the volume.
    pub volume: VolumeId,
    /// Numbers below this one may have been used.
    pub reserved_until: Seq,
    /// The collector's copy that the volume was sent to; `NIL` when to none.
    pub journal: JournalId,
    /// The timeline on which it was sent.
    pub timeline: Timeline,
    /// The epoch of the last session.
    pub epoch: Epoch,
    /// A whole copy of the volume reached that journal, and every change after it was captured.
    pub copied: bool,
    /// The agent stopped in order: everything was acknowledged up to `released`, the backing
    /// store was flushed and nothing was written since.
    pub clean: bool,
    /// The last acknowledged record of a clean stop.
    pub released: Seq,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    volume: String,
    reserved_until: u64,
    journal: String,
    timeline: u32,
    epoch: u64,
    copied: bool,
    clean: bool,
    released: u64,
    checksum: String,
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
        let document: Document =
            serde_json::from_str(&text).map_err(|e| self.damaged(e.to_string()))?;
        if document.version != FORMAT_VERSION {
            return Err(self.damaged(format!("version {}", document.version)));
        }
        if document.checksum != document.compute_checksum() {
            return Err(self.damaged("checksum does not match".into()));
        }
        let id = |e: &dyn std::fmt::Display| self.damaged(e.to_string());
        Ok(Some(VolumeState {
            volume: document.volume.parse().map_err(|e| id(&e))?,
            reserved_until: Seq(document.reserved_until),
            journal: document.journal.parse().map_err(|e| id(&e))?,
            timeline: Timeline(document.timeline),
            epoch: Epoch(document.epoch),
            copied: document.copied,
            clean: document.clean,
            released: Seq(document.released),
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
            journal: state.journal.to_string(),
            timeline: state.timeline.0,
            epoch: state.epoch.0,
            copied: state.copied,
            clean: state.clean,
            released: state.released.0,
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
    fn compute_checksum(&self) -> String {
        let numbers = [
            u64::from(self.version),
            self.reserved_until,
            u64::from(self.timeline),
            self.epoch,
            u64::from(self.copied),
            u64::from(self.clean),
            self.released,
        ];
        let numbers: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        let sum = checksum::sum_parts(&[self.volume.as_bytes(), self.journal.as_bytes(), &numbers]);
        format!("{sum:016x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> VolumeState {
        VolumeState {
            volume: VolumeId::from_random([1; 16]),
            reserved_until: Seq(SEQ_RESERVATION),
            journal: JournalId::NIL,
            timeline: Timeline(1),
            epoch: Epoch(3),
            copied: true,
            clean: false,
            released: Seq(17),
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
    fn a_changed_digit_is_noticed() {
        let dir = tempfile::tempdir().expect("temp dir");
        let file = StateFile::new(dir.path(), "data");
        file.store(&state()).expect("stored");
        let text = fs::read_to_string(&file.path).expect("text");
        fs::write(&file.path, text.replace("\"released\": 17", "\"released\": 18")).expect("write");
        let error = file.load().expect_err("damaged").to_string();
        assert!(error.contains("checksum does not match"), "{error}");
    }
}
