//! The FUSE directory of a collector: one file for each export that is served as one.
//!
//! It owns the mount and the executor thread that runs the requests; the files come and go with
//! the exports on its list. A crash leaves a dead mount, which the next start takes away; a loop
//! device over one of its files does not survive that and has to be set up again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidemark_block::engine::{ExecutorConfig, Workers};
use tidemark_block::exports::{ExportList, NAME_BYTES_MAX};
use tidemark_block::fuse::{Directory, FuseConfig};

use super::device::ExportDevice;
use crate::error::{Failure, Result};
use crate::storage::Storage;

/// Requests running at one time, all files together.
pub(super) const IN_FLIGHT_MAX: u16 = 256;

/// See the module.
pub struct ExportDirectory<S: Storage> {
    path: PathBuf,
    list: Arc<ExportList<ExportDevice<S>>>,
    directory: Directory<ExportDevice<S>>,
    workers: Workers,
}

impl<S: Storage> ExportDirectory<S> {
    /// Mounts an empty directory.
    ///
    /// # Errors
    /// `Unavailable` when it can't be mounted or threads can't be made, with what to do.
    pub fn mount(path: &Path) -> Result<Self> {
        let config = ExecutorConfig {
            tasks_max: 2 * usize::from(IN_FLIGHT_MAX) + 16,
            ..ExecutorConfig::default()
        };
        let workers = Workers::start("export-fuse", 1, config).map_err(super::no_threads)?;
        let list = Arc::new(ExportList::new());
        let config = FuseConfig { in_flight_max: IN_FLIGHT_MAX, ..FuseConfig::default() };
        let directory = Directory::mount(path, Arc::clone(&list), &workers.handle(), config)
            .map_err(|error| Failure::unavailable(error.to_string()).because(error))?;
        Ok(Self { path: path.to_owned(), list, directory, workers })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn list(&self) -> Arc<ExportList<ExportDevice<S>>> {
        Arc::clone(&self.list)
    }

    /// The name of the file of an export: the volume's name, where a file may be called so, and
    /// the export's number.
    #[must_use]
    pub fn file_name(volume: &str, id: u64) -> String {
        let tail = format!("-{id}");
        let safe: String =
            volume.chars().map(|c| if c == '/' || c == '\0' { '-' } else { c }).collect();
        let head = &safe[..safe.floor_char_boundary(NAME_BYTES_MAX - tail.len())];
        format!("{head}{tail}")
    }

    /// Unmounts; waits a moment for users, then takes it away from them. Blocks.
    pub fn unmount(self) {
        self.directory.unmount();
        self.workers.shutdown();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::RealStorage;

    #[test]
    fn a_file_is_named_by_volume_and_number() {
        let name = ExportDirectory::<RealStorage>::file_name;
        assert_eq!(name("vm/root", 7), "vm-root-7");
        let long = name(&"ä".repeat(200), 12);
        assert!(long.len() <= NAME_BYTES_MAX && long.ends_with("ä-12"), "{long}");
    }
}
