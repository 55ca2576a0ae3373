//! The files of the directory: which inode number stands for which disk, and which are open.
//!
//! The list of exports is the truth, this table follows it: a disk gets a number when its name is
//! first looked at, and loses it when the list no longer holds that disk under that name. Numbers
//! are never given out twice, so a name that is removed and added again is a different file for
//! every client that still knows the first. An open file keeps its disk until it is closed, as
//! [`ExportList`] promises; nothing else here keeps a disk alive. All of it lives in memory.
//!
//! Lock order: the table's lock, then the list's.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileHandle, INodeNo};

use crate::exports::ExportList;

/// Open files at one time. An open beyond it fails with `ENFILE`.
const OPEN_FILES_MAX: usize = 4096;

/// First number given to a file; the ones below stand for `.` and `..` as places in a listing.
const FIRST_INO: u64 = 16;

/// A disk that has been looked at.
#[derive(Debug)]
pub(super) struct File<D> {
    pub(super) ino: INodeNo,
    pub(super) name: String,
    device: Weak<D>,
    /// Last change, in nanoseconds since 1970.
    modified_nanos: AtomicU64,
    /// Requests that failed; see [`Self::count_failure`].
    failures: AtomicU64,
}

/// A file that is open.
#[derive(Debug)]
pub(super) struct OpenFile<D> {
    pub(super) file: Arc<File<D>>,
    pub(super) device: Arc<D>,
    pub(super) writable: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Files<D> {
    exports: Arc<ExportList<D>>,
    table: RwLock<Table<D>>,
}

#[derive(Debug)]
struct Table<D> {
    by_name: BTreeMap<String, Arc<File<D>>>,
    open: HashMap<u64, Arc<OpenFile<D>>>,
    next_ino: u64,
    next_handle: u64,
}

impl<D> File<D> {
    fn new(ino: INodeNo, name: String, device: &Arc<D>) -> Self {
        let file = Self {
            ino,
            name,
            device: Arc::downgrade(device),
            modified_nanos: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        };
        file.set_modified(SystemTime::now());
        file
    }

    /// When the disk was last written through this directory, or else when it was first seen.
    pub(super) fn modified(&self) -> SystemTime {
        // Relaxed: the figure stands alone, no other memory is read on its strength.
        UNIX_EPOCH + Duration::from_nanos(self.modified_nanos.load(Ordering::Relaxed))
    }

    /// Sets the time that [`Self::modified`] gives.
    pub(super) fn set_modified(&self, time: SystemTime) {
        let nanos = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        // Relaxed: see `modified`.
        self.modified_nanos.store(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Counts a failed request. The count is returned when it is a power of two: the ones to log,
    /// so that a broken disk does not fill the log.
    pub(super) fn count_failure(&self) -> Option<u64> {
        // Relaxed: a counter, nothing is ordered by it.
        let count = self.failures.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        count.is_power_of_two().then_some(count)
    }

    fn is(&self, device: &Arc<D>) -> bool {
        // The weak reference keeps the allocation, so an equal address is the same device.
        std::ptr::eq(self.device.as_ptr(), Arc::as_ptr(device))
    }
}

impl<D> Files<D> {
    pub(super) fn new(exports: Arc<ExportList<D>>) -> Self {
        let table = Table {
            by_name: BTreeMap::new(),
            open: HashMap::new(),
            next_ino: FIRST_INO,
            next_handle: 1,
        };
        Self { exports, table: RwLock::new(table) }
    }

    /// The file of this name.
    pub(super) fn lookup(&self, name: &OsStr) -> Option<(Arc<File<D>>, Arc<D>)> {
        let device = self.exports.get(name.to_str()?)?.device;
        let file = self.write().follow(&self.exports, name.to_str()?, &device);
        Some((file, device))
    }

    /// The file with this number, as long as it is listed or open.
    pub(super) fn by_ino(&self, ino: INodeNo) -> Option<(Arc<File<D>>, Arc<D>)> {
        let table = self.read();
        if let Some(file) = table.by_name.values().find(|file| file.ino == ino)
            && let Some(device) = listed(&self.exports, file)
        {
            return Some((Arc::clone(file), device));
        }
        let open = table.open.values().find(|open| open.file.ino == ino)?;
        Some((Arc::clone(&open.file), Arc::clone(&open.device)))
    }

    /// All files, in the order of their numbers.
    pub(super) fn list(&self) -> Vec<Arc<File<D>>> {
        let mut table = self.write();
        let mut files: Vec<_> = (self.exports.names().iter())
            .filter_map(|name| {
                let device = self.exports.get(name)?.device;
                Some(table.follow(&self.exports, name, &device))
            })
            .collect();
        files.sort_by_key(|file| file.ino);
        files
    }

    /// Opens a file.
    pub(super) fn open(&self, open: OpenFile<D>) -> Result<FileHandle, Errno> {
        let mut table = self.write();
        if table.open.len() >= OPEN_FILES_MAX {
            return Err(Errno::ENFILE);
        }
        let handle = table.next_handle;
        table.next_handle += 1;
        table.open.insert(handle, Arc::new(open));
        Ok(FileHandle(handle))
    }

    /// The open file behind a handle.
    pub(super) fn opened(&self, handle: FileHandle) -> Option<Arc<OpenFile<D>>> {
        self.read().open.get(&handle.0).cloned()
    }

    /// Forgets a handle. Requests in flight keep the disk until they end.
    pub(super) fn close(&self, handle: FileHandle) {
        let closed = self.write().open.remove(&handle.0);
        // The lock is free again when the disk's own drop runs.
        drop(closed);
    }

    // A panic of another holder can't leave the table half changed: each change is one insert or
    // one remove, so a poisoned lock is usable.
    fn read(&self) -> RwLockReadGuard<'_, Table<D>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table<D>> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D> Table<D> {
    /// The file of a listed disk; a new one when the name is new or stands for another disk now.
    /// What left the list is dropped on that occasion, so the table is never longer than the list
    /// has been at one time.
    fn follow(&mut self, exports: &ExportList<D>, name: &str, device: &Arc<D>) -> Arc<File<D>> {
        if let Some(file) = self.by_name.get(name).filter(|file| file.is(device)) {
            return Arc::clone(file);
        }
        self.by_name.retain(|_, file| listed(exports, file).is_some());
        let file = Arc::new(File::new(INodeNo(self.next_ino), name.to_owned(), device));
        self.next_ino += 1;
        self.by_name.insert(name.to_owned(), Arc::clone(&file));
        file
    }
}

/// The disk of a file, when the list still holds it under the file's name.
fn listed<D>(exports: &ExportList<D>, file: &File<D>) -> Option<Arc<D>> {
    exports.get(&file.name).map(|export| export.device).filter(|device| file.is(device))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exports::Export;

    fn add(exports: &ExportList<u8>, name: &str) -> Arc<u8> {
        let device = Arc::new(0);
        let export = Export {
            name: name.to_owned(),
            description: String::new(),
            device: Arc::clone(&device),
        };
        exports.add(export).expect("a fresh name");
        device
    }

    fn open(files: &Files<u8>, name: &str) -> (INodeNo, FileHandle) {
        let (file, device) = files.lookup(OsStr::new(name)).expect("listed");
        let ino = file.ino;
        (ino, files.open(OpenFile { file, device, writable: true }).expect("room"))
    }

    fn ino(files: &Files<u8>, name: &str) -> Option<INodeNo> {
        files.lookup(OsStr::new(name)).map(|(file, _)| file.ino)
    }

    #[test]
    fn a_name_keeps_its_number_while_its_disk_is_listed() {
        let exports = Arc::new(ExportList::new());
        let files = Files::new(Arc::clone(&exports));
        add(&exports, "a");
        add(&exports, "b");
        let (a, b) = (ino(&files, "a"), ino(&files, "b"));
        assert!(a.is_some() && b.is_some() && a != b);
        assert_eq!(ino(&files, "a"), a);
        assert_eq!(ino(&files, "c"), None);
        let listed: Vec<_> = files.list().iter().map(|f| Some(f.ino)).collect();
        assert_eq!(listed, [a, b]);
    }

    #[test]
    fn numbers_are_never_used_again() {
        let exports = Arc::new(ExportList::new());
        let files = Files::new(Arc::clone(&exports));
        let mut seen = Vec::new();
        for _ in 0..50 {
            add(&exports, "a");
            let number = ino(&files, "a").expect("listed");
            assert!(!seen.contains(&number), "{number} was given out twice");
            seen.push(number);
            exports.remove("a");
            assert!(files.by_ino(number).is_none(), "gone with its export");
        }
        assert!(files.list().is_empty());
    }

    #[test]
    fn a_replaced_disk_is_another_file() {
        let exports = Arc::new(ExportList::new());
        let files = Files::new(Arc::clone(&exports));
        add(&exports, "a");
        let (first, handle) = open(&files, "a");
        exports.remove("a");
        let second_device = add(&exports, "a");
        let second = ino(&files, "a").expect("listed");
        assert_ne!(first, second);
        let (_, device) = files.by_ino(second).expect("listed");
        assert!(Arc::ptr_eq(&device, &second_device));
        assert!(files.by_ino(first).is_some(), "still open");
        files.close(handle);
        assert!(files.by_ino(first).is_none(), "neither listed nor open");
    }

    #[test]
    fn only_open_files_keep_a_removed_disk() {
        let exports = Arc::new(ExportList::new());
        let files = Files::new(Arc::clone(&exports));
        let device = Arc::downgrade(&add(&exports, "a"));
        let (_, handle) = open(&files, "a");
        exports.remove("a");
        assert!(device.upgrade().is_some(), "held by the open file");
        assert!(files.opened(handle).is_some());
        files.close(handle);
        assert!(device.upgrade().is_none(), "nobody holds it");
        assert!(files.opened(handle).is_none());
    }

    #[test]
    fn the_table_does_not_outgrow_the_list() {
        let exports = Arc::new(ExportList::new());
        let files = Files::new(Arc::clone(&exports));
        for i in 0..100 {
            let name = format!("disk-{i}");
            add(&exports, &name);
            assert!(ino(&files, &name).is_some());
            exports.remove(&name);
        }
        assert!(files.read().by_name.len() <= 1);
    }

    #[test]
    fn open_files_are_bounded() {
        let exports = Arc::new(ExportList::new());
        let files = Files::new(Arc::clone(&exports));
        add(&exports, "a");
        let mut handles: Vec<_> = (0..OPEN_FILES_MAX).map(|_| open(&files, "a").1).collect();
        let (file, device) = files.lookup(OsStr::new("a")).expect("listed");
        let refused = files.open(OpenFile { file, device, writable: false });
        assert_eq!(refused, Err(Errno::ENFILE));
        files.close(handles.pop().expect("one is open"));
        open(&files, "a");
    }

    #[test]
    fn failures_are_logged_ever_more_seldom() {
        let file = File::new(INodeNo(20), "a".to_owned(), &Arc::new(0_u8));
        let logged: Vec<_> = (0..20).filter_map(|_| file.count_failure()).collect();
        assert_eq!(logged, [1, 2, 4, 8, 16]);
    }
}
