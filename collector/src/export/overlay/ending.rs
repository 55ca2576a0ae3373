//! The end of a clone: its files become waste at one moment, then they go.
//!
//! A crash at any place leaves either a clone that goes on, or one that is marked and whose rest
//! the next start removes. The mark goes last.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::format::{ENDED_FILE, MAP_FILE};
use crate::error::{Failure, Result};
use crate::storage::Storage;

/// Marks the clone in `dir` as one that was ended, durably: from here on its files are only
/// waste. Fine when it is marked already, or when there is none.
///
/// # Errors
/// What the system says.
pub fn mark_ended<S: Storage>(storage: &Arc<S>, dir: &Path) -> Result<()> {
    match storage.rename(&dir.join(MAP_FILE), &dir.join(ENDED_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed.map_err(|e| Failure::io("end the clone in", dir, e))?,
    }
    storage.sync_dir(dir).map_err(|e| Failure::io("sync", dir, e))
}

/// Whether [`mark_ended`] was done.
#[must_use]
pub fn is_ended<S: Storage>(storage: &Arc<S>, dir: &Path) -> bool {
    storage.open_read_only(&dir.join(ENDED_FILE)).is_ok()
}

/// Removes all files of a clone and its directory, and so gives their space back. The mark of
/// its end goes last. Fine when there is none.
///
/// # Errors
/// What the system says.
pub fn remove<S: Storage>(storage: &Arc<S>, dir: &Path) -> Result<()> {
    let failed = |e| Failure::io("remove", dir, e);
    let names = match storage.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        names => names.map_err(failed)?,
    };
    for name in names.iter().filter(|name| *name != ENDED_FILE) {
        storage.remove(&dir.join(name)).map_err(failed)?;
    }
    if names.iter().any(|name| name == ENDED_FILE) {
        storage.sync_dir(dir).map_err(failed)?;
        storage.remove(&dir.join(ENDED_FILE)).map_err(failed)?;
    }
    storage.remove_dir(dir).map_err(failed)
}
