//! Open files of sealed segments, a bounded number of them.
//!
//! A journal has thousands of segments and a process has few descriptors, so the file of a
//! sealed segment is opened when a record in it is read and closed when others were read since.
//! At the bound a read costs one more open; a file that is being read stays open meanwhile.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tidemark_wire::Seq;

use super::cache::Cache;
use crate::storage::Storage;

/// Files that one journal keeps open for reading, at most; each may have two descriptors.
const FILES_MAX: usize = 64;

pub(crate) struct Files<S: Storage> {
    storage: Arc<S>,
    /// By the first record of the segment.
    open: Mutex<Cache<Seq, Arc<S::File>>>,
}

impl<S: Storage> Files<S> {
    pub(crate) fn new(storage: Arc<S>) -> Self {
        Self { storage, open: Mutex::new(Cache::new(FILES_MAX, |_| 1)) }
    }

    pub(crate) fn get(&self, first_seq: Seq, path: &Path) -> io::Result<Arc<S::File>> {
        if let Some(file) = self.open.lock().unwrap_or_else(PoisonError::into_inner).get(&first_seq)
        {
            return Ok(file);
        }
        let file = Arc::new(self.storage.open_read_only(path)?);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(first_seq, Arc::clone(&file));
        Ok(file)
    }

    /// Removes the file of a segment that nobody reads any more.
    pub(crate) fn remove(&self, first_seq: Seq, path: &Path) -> io::Result<()> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&first_seq);
        self.storage.remove(path)
    }
}
