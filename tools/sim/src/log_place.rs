//! Where the agent's write-intent log is: a disk of its own, with the faults of any other.

use std::cell::{Cell, RefCell};
use std::io;
use std::sync::Arc;

use tidemark_agent::intent_log::file::LogFiles;

use crate::disk::{Disk, DiskSpec, SimStore};
use crate::model::Model;
use crate::random::Random;
use crate::time::Time;

/// See the module's documentation. Outlives the agent.
pub(crate) struct LogPlace {
    time: Arc<Time>,
    random: Arc<Random>,
    disk: RefCell<Option<Arc<Disk>>>,
    /// New files that can't be made, from here on.
    failing: Cell<u64>,
}

impl LogPlace {
    pub(crate) fn new(time: Arc<Time>, random: Arc<Random>) -> Self {
        Self { time, random, disk: RefCell::default(), failing: Cell::new(0) }
    }

    /// The disk with the file, once one was made.
    pub(crate) fn disk(&self) -> Option<Arc<Disk>> {
        self.disk.borrow().clone()
    }

    /// Writes, reads and new files fail for a while.
    pub(crate) fn fail(&self, count: u64) {
        self.failing.set(count);
        if let Some(disk) = self.disk() {
            match self.random.below(3) {
                0 => disk.fail_writes(count),
                1 => disk.fail_reads(count),
                _ => disk.fail_syncs(count),
            }
        }
    }

    pub(crate) fn heal(&self) {
        self.failing.set(0);
        if let Some(disk) = self.disk() {
            disk.heal();
        }
    }
}

impl LogFiles for LogPlace {
    type Store = SimStore;

    fn open(&self) -> io::Result<SimStore> {
        self.disk().map(SimStore::open).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn make(&self, content: &[u8]) -> io::Result<SimStore> {
        let left = self.failing.get();
        self.failing.set(left.saturating_sub(1));
        if left > 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let spec = DiskSpec {
            size_bytes: content.len(),
            unit_bytes: 512,
            can_punch: false,
            tells_holes: false,
            is_cached: false,
        };
        // Nobody follows its sectors.
        let model = Arc::<Model>::default();
        let disk = Disk::new(spec, model, Arc::clone(&self.time), Arc::clone(&self.random));
        disk.prepare(0, content);
        *self.disk.borrow_mut() = Some(Arc::clone(&disk));
        Ok(SimStore::open(disk))
    }
}
