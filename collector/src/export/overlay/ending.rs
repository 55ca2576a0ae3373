//! The end of a clone: its directory becomes waste at one moment, then it goes.
//!
//! A crash at any place leaves either a clone that goes on, or a directory under a name that says
//! that it is waste, which the next start removes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Failure, Result};
use crate::storage::Storage;

/// What the name of an ended clone's directory ends with.
const ENDED_SUFFIX: &str = "ended";

fn ended_path(dir: &Path) -> PathBuf {
    dir.with_extension(ENDED_SUFFIX)
}

/// Marks the clone in `dir` as one that was ended, durably: from here on its files are only
/// waste. Fine when it is marked already, or when there is none.
///
/// # Errors
/// What the system says.
pub fn mark_ended<S: Storage>(storage: &Arc<S>, dir: &Path) -> Result<()> {
    match storage.rename(dir, &ended_path(dir)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed.map_err(|e| Failure::io("end the clone in", dir, e))?,
    }
    let above = dir.parent().unwrap_or(Path::new("."));
    storage.sync_dir(above).map_err(|e| Failure::io("sync", above, e))
}

/// Gives the space of a clone back that [`mark_ended`] has marked. Fine when there is none.
///
/// # Errors
/// What the system says.
pub fn remove_ended<S: Storage>(storage: &Arc<S>, dir: &Path) -> Result<()> {
    let ended = ended_path(dir);
    storage.remove_tree(&ended).map_err(|e| Failure::io("remove", &ended, e))
}

/// What lies in the directory of all clones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundClones {
    /// Clones that go on, by number.
    pub kept: Vec<u64>,
    /// Clones that were ended; their rest is to be removed.
    pub ended: Vec<u64>,
}

/// Looks at the names in the directory of all clones; there may be none.
///
/// # Errors
/// What the system says.
pub fn find_clones(dir: &Path) -> Result<FoundClones> {
    let failed = |error| Failure::io("list", dir, error);
    let mut found = FoundClones::default();
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let text = name.to_string_lossy();
        let ended = text.strip_suffix(ENDED_SUFFIX).and_then(|text| text.strip_suffix('.'));
        match (text.parse(), ended.map(str::parse)) {
            (Ok(id), _) => found.kept.push(id),
            (_, Some(Ok(id))) => found.ended.push(id),
            _ => tracing::warn!(?name, dir = %dir.display(), "not a clone, left alone"),
        }
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::storage::RealStorage;

    #[test]
    fn an_ended_clone_is_waste_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Arc::new(RealStorage);
        assert_eq!(find_clones(&dir.path().join("none")).unwrap(), FoundClones::default());
        for name in ["3", "12", "lost+found"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let clone = dir.path().join("12");
        std::fs::write(clone.join("overlay.data"), b"x").unwrap();
        mark_ended(&storage, &clone).unwrap();
        mark_ended(&storage, &clone).unwrap();
        let found = find_clones(dir.path()).unwrap();
        assert_eq!(found, FoundClones { kept: vec![3], ended: vec![12] });
        remove_ended(&storage, &clone).unwrap();
        remove_ended(&storage, &clone).unwrap();
        assert!(find_clones(dir.path()).unwrap().ended.is_empty());
    }
}
