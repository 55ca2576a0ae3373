//! The file of a volume's write-intent log, in the state directory.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tidemark_block::store::{OpenMode, StoreError, UringStore};

use crate::intent_log::file::LogFiles;

/// See the module's documentation.
pub(super) struct StateDirLog {
    path: PathBuf,
}

impl StateDirLog {
    /// The log of the volume called `name` in `state_dir`.
    pub(super) fn new(state_dir: &Path, name: &str) -> Self {
        Self { path: state_dir.join(format!("{name}.intent")) }
    }
}

impl LogFiles for StateDirLog {
    type Store = UringStore;

    fn open(&self) -> io::Result<UringStore> {
        UringStore::open(&self.path, OpenMode::ReadWrite).map_err(|error| match error {
            StoreError::Open { source, .. } | StoreError::Inspect { source, .. } => source,
            other => io::Error::other(other),
        })
    }

    fn make(&self, content: &[u8]) -> io::Result<UringStore> {
        let beside = self.path.with_extension("intent.new");
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&beside, &self.path)?;
        File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
        self.open()
    }
}
