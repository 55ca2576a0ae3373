//! Storage in memory that loses what a real one may lose. For tests and the simulator.
//!
//! Fault model. Each file has a live image, which calls see, and a durable one, to which a
//! datasync brings it; names likewise, by directory. [`MemoryStorage::after_crash`] gives the
//! storage after a power cut: of the writes that were not synced, any sectors of 512 bytes may
//! be there, in any order; of the names that were not synced, the first ones may be. A call can
//! be chosen at which the power goes ([`Fault::Crash`]: it and all later ones fail) or which
//! alone fails ([`Fault::Once`]); the disk can be full ([`MemoryStorage::set_full`]). A write that
//! fails, or in which a process is killed, may have been done up to a place, which calls see then.
//! A datasync that fails forgets what it should have made durable, as the page cache of Linux
//! does: a later one succeeds without it. Reads do not fail, and durable bytes do not rot; tests
//! change those with [`MemoryStorage::edit`].

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidemark_block::ByteRange;

use super::pages::Pages;
use super::{FileExtent, Storage, StorageFile};

const SECTOR_BYTES: usize = 512;
/// How a chosen call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The power goes: this call and all later ones fail.
    Crash,
    /// This call fails; later ones work.
    Once,
}

/// Files in memory; clones share them.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage {
    inner: Arc<Mutex<Inner>>,
}

/// A file in memory.
#[derive(Debug)]
pub struct MemoryFile {
    storage: MemoryStorage,
    id: u64,
}

#[derive(Clone, Debug, Default)]
struct Inner {
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    /// Changes of names since their directory was synced, oldest first.
    name_changes: Vec<NameChange>,
    dirs: Vec<PathBuf>,
    files: HashMap<u64, Image>,
    next_id: u64,
    /// Calls so far that change something or make something durable.
    calls: u64,
    fault: Option<(u64, Fault)>,
    crashed: bool,
    /// Nothing that needs room succeeds.
    full: bool,
}

#[derive(Clone, Debug)]
enum NameChange {
    Create(PathBuf, u64),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

#[derive(Clone, Debug, Default)]
struct Image {
    live: Pages,
    durable: Pages,
    /// Changes since the last datasync, oldest first.
    changes: Vec<Change>,
    /// The one in which the power went, or the process was killed.
    interrupted: Option<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Zero { at: usize, len: usize },
    SetLen(usize),
}

impl NameChange {
    fn dir(&self) -> Option<&Path> {
        match self {
            Self::Create(path, _) | Self::Rename(path, _) | Self::Remove(path) => path.parent(),
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            Self::Create(path, id) => {
                names.insert(path.clone(), *id);
            }
            Self::Rename(from, to) => {
                let moved: Vec<PathBuf> =
                    names.keys().filter(|path| path.starts_with(from)).cloned().collect();
                for path in moved {
                    let id = names.remove(&path).expect("the key was just there");
                    let below = path.strip_prefix(from).expect("it starts with this");
                    names.insert(to.join(below), id);
                }
            }
            Self::Remove(path) => {
                names.remove(path);
            }
        }
    }
}

impl Change {
    /// What may be there of a change that did not come to its end: of a write, its first bytes.
    fn begun(self, dice: &mut Dice) -> Option<Self> {
        let Self::Write { at, mut bytes } = self else { return None };
        // A page cache takes whole sectors, too.
        let ends: Vec<usize> = sectors(at, bytes.len()).map(|part| part.end).collect();
        let count = dice.roll() % (ends.len() as u64 + 1);
        let kept = usize::try_from(count).expect("not more than there are").checked_sub(1);
        bytes.truncate(kept.map_or(0, |last| ends[last]));
        (!bytes.is_empty()).then_some(Self::Write { at, bytes })
    }

    fn apply(&self, image: &mut Pages) {
        match self {
            Self::Write { at, bytes } => image.write(*at, bytes),
            Self::Zero { at, len } => image.zero(*at, *len),
            Self::SetLen(len) => image.resize(*len),
        }
    }

    /// Applies any part of the change that a power cut may leave.
    fn apply_torn(&self, image: &mut Pages, dice: &mut Dice) {
        match self {
            Self::Write { at, bytes } => {
                for part in sectors(*at, bytes.len()) {
                    if dice.coin() {
                        image.write(at + part.start, &bytes[part]);
                    }
                }
            }
            Self::Zero { at, len } => {
                for part in sectors(*at, *len) {
                    if dice.coin() {
                        image.zero(at + part.start, part.len());
                    }
                }
            }
            Self::SetLen(_) if dice.coin() => self.apply(image),
            Self::SetLen(_) => {}
        }
    }
}

/// The parts of a run at `at` that lie in one sector each.
fn sectors(at: usize, len: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let end = ((at + start + 1).next_multiple_of(SECTOR_BYTES) - at).min(len);
        let part = start..end;
        start = end;
        (!part.is_empty()).then_some(part)
    })
}

/// SplitMix64: a seed gives the same crash each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn coin(&mut self) -> bool {
        self.roll().is_multiple_of(2)
    }
}

impl MemoryStorage {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls so far that change something or make something durable.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.inner().calls
    }

    /// Lets the call fail that comes after `calls` further ones.
    pub fn fail_after(&self, calls: u64, fault: Fault) {
        let mut inner = self.inner();
        inner.fault = Some((inner.calls + calls, fault));
    }

    /// Lets no call fail that was chosen before.
    pub fn clear_fault(&self) {
        self.inner().fault = None;
    }

    /// True once the power went, or the process was killed, at a chosen call.
    #[must_use]
    pub fn is_crashed(&self) -> bool {
        self.inner().crashed
    }

    /// Lets everything that needs room fail, or succeed again.
    pub fn set_full(&self, full: bool) {
        self.inner().full = full;
    }

    /// Names of all files, as calls see them.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.inner().names.keys().cloned().collect()
    }

    /// What is there after a power cut now; `seed` chooses what of the unsynced changes is. This
    /// storage and its open files are of no use afterwards.
    #[must_use]
    pub fn after_crash(&self, seed: u64) -> Self {
        let inner = self.inner();
        let mut dice = Dice(seed);
        let mut names = inner.durable_names.clone();
        for dir in &inner.dirs {
            let changes: Vec<_> =
                inner.name_changes.iter().filter(|change| change.dir() == Some(dir)).collect();
            let kept = usize::try_from(dice.roll() % (changes.len() as u64 + 1));
            let kept = kept.expect("not more than there are");
            changes[..kept].iter().for_each(|change| change.apply(&mut names));
        }
        let mut files = HashMap::new();
        for id in names.values() {
            let image = &inner.files[id];
            let mut after = image.durable.clone();
            for change in image.changes.iter().chain(&image.interrupted) {
                change.apply_torn(&mut after, &mut dice);
            }
            let durable = after.clone();
            files.insert(*id, Image { live: after, durable, ..Image::default() });
        }
        let after = Inner {
            durable_names: names.clone(),
            names,
            dirs: inner.dirs.clone(),
            files,
            next_id: inner.next_id,
            ..Inner::default()
        };
        Self { inner: Arc::new(Mutex::new(after)) }
    }

    /// What a process finds that starts after this one was killed at the call at which the power
    /// went: all that calls before it did is there, as in the page cache, and what that one had
    /// begun. This storage and its open files are of no use afterwards.
    #[must_use]
    pub fn after_kill(&self) -> Self {
        let mut after = Inner { fault: None, crashed: false, ..self.inner().clone() };
        let mut dice = Dice(after.calls);
        for image in after.files.values_mut() {
            if let Some(change) = image.interrupted.take() {
                image.make(change.begun(&mut dice));
            }
        }
        Self { inner: Arc::new(Mutex::new(after)) }
    }

    /// Changes a bit of a file behind everybody's back, durably; false when there is no such bit.
    pub fn flip(&self, path: &Path, at: usize, bit: u8) -> bool {
        let mut inner = self.inner();
        let Ok(id) = inner.id(path) else { return false };
        let image = inner.files.get_mut(&id).expect("a name leads to a file");
        if at >= image.live.len() {
            return false;
        }
        let mut byte = [0];
        image.live.read(at, &mut byte);
        byte[0] ^= 1 << (bit % 8);
        image.live.write(at, &byte);
        image.durable.write(at, &byte);
        true
    }

    /// Length of the data at a place, up to a hole; 0 in a hole and behind the end.
    #[must_use]
    pub fn data_at(&self, path: &Path, at: usize) -> usize {
        let mut inner = self.inner();
        let Ok(id) = inner.id(path) else { return 0 };
        let live = &inner.image(id).live;
        let (len, kept) = live.run(at, live.len());
        if kept { len } else { 0 }
    }

    /// Changes the bytes of a file behind everybody's back, durably.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn edit(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut inner = self.inner();
        let id = inner.id(path)?;
        let image = inner.files.get_mut(&id).expect("a name leads to a file");
        let mut bytes = image.live.to_vec();
        change(&mut bytes);
        image.live = Pages::from(bytes.as_slice());
        image.durable = image.live.clone();
        image.changes.clear();
        Ok(())
    }
}

impl Image {
    fn make(&mut self, change: Option<Change>) {
        if let Some(change) = change {
            change.apply(&mut self.live);
            self.changes.push(change);
        }
    }
}

impl Inner {
    /// As [`Inner::count`], of a call that needs room.
    fn count_growth(&mut self) -> io::Result<()> {
        self.count()?;
        if self.full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    /// Counts a call; says whether it is the one that fails.
    fn count(&mut self) -> io::Result<()> {
        let crashed = || io::Error::other("the power is gone");
        if self.crashed {
            return Err(crashed());
        }
        let call = self.calls;
        self.calls += 1;
        match self.fault {
            Some((at, Fault::Crash)) if at == call => {
                self.crashed = true;
                Err(crashed())
            }
            Some((at, Fault::Once)) if at == call => Err(io::Error::other("injected failure")),
            _ => Ok(()),
        }
    }

    fn id(&self, path: &Path) -> io::Result<u64> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn change_name(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.name_changes.push(change);
    }

    fn image(&mut self, id: u64) -> &mut Image {
        self.files.get_mut(&id).expect("an open file has an image")
    }
}

impl Storage for MemoryStorage {
    type File = MemoryFile;

    fn create(&self, path: &Path) -> io::Result<MemoryFile> {
        let mut inner = self.inner();
        inner.count_growth()?;
        if inner.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if !inner.dirs.iter().any(|dir| path.parent() == Some(dir)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let id = inner.next_id;
        inner.next_id += 1;
        inner.files.insert(id, Image::default());
        inner.change_name(NameChange::Create(path.to_owned(), id));
        Ok(MemoryFile { storage: self.clone(), id })
    }

    fn open(&self, path: &Path) -> io::Result<MemoryFile> {
        let id = self.inner().id(path)?;
        Ok(MemoryFile { storage: self.clone(), id })
    }

    fn open_read_only(&self, path: &Path) -> io::Result<MemoryFile> {
        self.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.count()?;
        if !inner.dirs.iter().any(|dir| dir == from) {
            inner.id(from)?;
        }
        for dir in &mut inner.dirs {
            if let Ok(below) = dir.strip_prefix(from) {
                *dir = to.join(below);
            }
        }
        inner.change_name(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.count()?;
        inner.id(path)?;
        inner.change_name(NameChange::Remove(path.to_owned()));
        Ok(())
    }

    fn remove_tree(&self, dir: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.count()?;
        let below: Vec<PathBuf> =
            inner.names.keys().filter(|path| path.starts_with(dir)).cloned().collect();
        for path in below {
            inner.change_name(NameChange::Remove(path));
        }
        inner.dirs.retain(|known| !known.starts_with(dir));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let inner = self.inner();
        let below = inner.names.keys().filter(|path| path.parent() == Some(dir));
        let names = below.filter_map(|path| path.file_name());
        Ok(names.map(|name| name.to_string_lossy().into_owned()).collect())
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        if !inner.dirs.iter().any(|known| known == dir) {
            inner.dirs.push(dir.to_owned());
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.count()?;
        let changes = std::mem::take(&mut inner.name_changes);
        for change in changes {
            if change.dir() == Some(dir) {
                change.apply(&mut inner.durable_names);
            } else {
                inner.name_changes.push(change);
            }
        }
        Ok(())
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        Ok(if self.inner().full { 0 } else { u64::MAX })
    }
}

fn place(at: u64) -> io::Result<usize> {
    usize::try_from(at).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl MemoryFile {
    fn change(&self, change: Change) -> io::Result<()> {
        let mut inner = self.storage.inner();
        let is_gone = inner.crashed;
        let needs_room = matches!(change, Change::Write { .. });
        let counted = if needs_room { inner.count_growth() } else { inner.count() };
        let (crashed, mut dice) = (inner.crashed, Dice(inner.calls));
        let image = inner.image(self.id);
        match counted {
            Ok(()) => image.make(Some(change)),
            Err(_) if is_gone => {}
            Err(_) if crashed => image.interrupted = Some(change),
            Err(_) => image.make(change.begun(&mut dice)),
        }
        counted
    }

    fn with_live<T>(&self, read: impl FnOnce(&Pages) -> io::Result<T>) -> io::Result<T> {
        read(&self.storage.inner().image(self.id).live)
    }
}

impl StorageFile for MemoryFile {
    type Map = Vec<u8>;

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.change(Change::Write { at: place(at)?, bytes: bytes.to_vec() })
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let at = place(at)?;
        self.with_live(|live| {
            if at + bytes.len() > live.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            live.read(at, bytes);
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with_live(|live| Ok(live.len() as u64))
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.change(Change::SetLen(place(len_bytes)?))
    }

    fn datasync(&self) -> io::Result<()> {
        let mut inner = self.storage.inner();
        let counted = inner.count();
        let crashed = inner.crashed;
        let image = inner.image(self.id);
        if counted.is_ok() {
            for change in std::mem::take(&mut image.changes) {
                change.apply(&mut image.durable);
            }
        } else if !crashed {
            image.changes.clear();
        }
        counted
    }

    fn punch(&self, range: ByteRange) -> io::Result<()> {
        let (start, end) = (place(range.start())?, place(range.end())?);
        let held = self.with_live(|live| Ok(live.len()))?;
        let len = end.min(held).saturating_sub(start);
        self.change(Change::Zero { at: start.min(held), len })
    }

    fn extent_at(&self, at: u64) -> io::Result<FileExtent> {
        let at = place(at)?;
        self.with_live(|live| {
            let (len, kept) = live.run(at, live.len());
            Ok(FileExtent { len_bytes: len as u64, hole: !kept })
        })
    }

    fn map(&self, range: ByteRange) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; place(range.len())?];
        self.read_at(&mut bytes, range.start())?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a process finds that follows a killed one is what its first sync makes durable.
    #[test]
    fn a_write_that_a_kill_cuts_off_is_the_same_in_both_images() {
        for fault in [Fault::Crash, Fault::Once] {
            let storage = MemoryStorage::default();
            storage.create_dir(Path::new("/d")).expect("a directory");
            let path = Path::new("/d/f");
            let file = storage.create(path).expect("a file");
            file.write_at(&[1; 3000], 0).expect("written");
            storage.sync_dir(Path::new("/d")).expect("synced");
            storage.fail_after(0, fault);
            file.write_at(&[2; 3000], 1000).expect_err("the chosen call");
            let after = match fault {
                Fault::Crash => storage.after_kill(),
                Fault::Once => storage,
            };
            let file = after.open(path).expect("it is there");
            let mut seen = vec![0; place(file.len().expect("a length")).expect("small")];
            file.read_at(&mut seen, 0).expect("read");
            assert!((3000..=4000).contains(&seen.len()), "up to a place: {}", seen.len());
            file.datasync().expect("synced");
            let durable = after.after_crash(7);
            let file = durable.open(path).expect("it is there");
            assert_eq!(file.len().expect("a length"), seen.len() as u64);
            let mut kept = vec![0; seen.len()];
            file.read_at(&mut kept, 0).expect("read");
            assert_eq!(kept, seen);
        }
    }
}
