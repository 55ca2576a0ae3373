//! The seed's three files: made, found again after a crash, and replaced by an imported image.
//!
//! A seed is made in the order image, state, sums: a state file beside no sums is one whose
//! making was cut off, sums beside no state file are damage. What an import made is installed
//! with the state file as its log: `installing` is durable before the first file is replaced and
//! goes when the last one was, so a crash leaves the old seed or one whose installation is ended
//! at the next opening.

use std::io;
use std::path::{Path, PathBuf};

use tidemark_wire::Seq;
use tidemark_wire::limits::CHECK_BLOCK_BYTES;

use super::state::{SeedState, remove_if_there};
use crate::error::{Damage, JournalError, Part};
use crate::storage::{Storage, StorageFile};

/// Where the files are.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    pub(super) image: PathBuf,
    pub(super) sums: PathBuf,
    pub(super) state: PathBuf,
}

impl Paths {
    pub(super) fn of(image: &Path) -> Self {
        let image = image.to_owned();
        let (sums, state) = (image.with_extension("sums"), image.with_extension("json"));
        Self { image, sums, state }
    }

    pub(super) fn image_new(&self) -> PathBuf {
        self.image.with_extension("img.new")
    }

    pub(super) fn sums_new(&self) -> PathBuf {
        self.image.with_extension("sums.new")
    }

    fn dir(&self) -> &Path {
        self.image.parent().unwrap_or(Path::new("."))
    }
}

/// The open files of a seed that is in order.
pub(super) struct Opened<S: Storage> {
    pub(super) image: S::File,
    pub(super) sums: S::File,
    pub(super) state: SeedState,
    /// Length of the image; larger than the volume while a merge has not ended.
    pub(super) file_bytes: u64,
}

/// Length of the file of sums for an image, in bytes.
pub(super) fn sums_bytes(image_bytes: u64) -> u64 {
    image_bytes.div_ceil(u64::from(CHECK_BLOCK_BYTES)) * 8
}

pub(super) fn open_or_create<S: Storage>(
    storage: &S,
    paths: &Paths,
    size_bytes: u64,
) -> Result<Opened<S>, JournalError> {
    let state = match SeedState::load(storage, &paths.state)? {
        Some(state) if state.installing => finish_install(storage, paths, state)?,
        Some(state) => {
            // A program that was killed after this sync had failed leaves a name that is not
            // durable; the journal removes what the state says is merged.
            storage.sync_dir(paths.dir()).map_err(JournalError::io("sync", paths.dir()))?;
            // What an import left that was cut off before it was installed; as large as the disk.
            discard(storage, paths)?;
            state
        }
        None => create(storage, paths, size_bytes)?,
    };
    let image = storage.open(&paths.image).map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            return missing(&paths.image, "the seed's image is missing");
        }
        JournalError::io("open", &paths.image)(error)
    })?;
    let size_bytes = state.base.size_bytes;
    let len = image.len().map_err(JournalError::io("look at", &paths.image))?;
    if len < size_bytes {
        let detail = format!("it has {len} bytes, the volume has {size_bytes}");
        return Err(Damage::new(&paths.image, Part::File, len, detail).into());
    }
    let sums = open_sums(storage, paths, &state, len)?;
    let mut file_bytes = len;
    if state.merging_to.is_none() && len > size_bytes {
        cut(&image, &sums, paths, size_bytes)?;
        file_bytes = size_bytes;
    }
    Ok(Opened { image, sums, state, file_bytes })
}

fn missing(path: &Path, what: &str) -> JournalError {
    Damage::new(path, Part::File, 0, format!("{what}; put back a copy of it")).into()
}

/// Makes image and state of a volume before its first record; an image that is one hole is what
/// a crash, or a version that made nothing else, left.
fn create<S: Storage>(
    storage: &S,
    paths: &Paths,
    size_bytes: u64,
) -> Result<SeedState, JournalError> {
    let path = &paths.image;
    if storage.open_read_only(&paths.sums).is_ok() {
        return Err(missing(&paths.state, "the seed's state is missing beside its sums"));
    }
    let size_bytes = match storage.open(path) {
        Ok(image) => {
            let len = image.len().map_err(JournalError::io("look at", path))?;
            let first = image.extent_at(0).map_err(JournalError::io("look at", path))?;
            if first.len_bytes < len || (len > 0 && !first.hole) {
                return Err(missing(&paths.state, "the seed's state is missing beside its data"));
            }
            len
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let new = paths.image_new();
            drop(make(storage, &new, size_bytes)?);
            storage.rename(&new, path).map_err(JournalError::io("rename", &new))?;
            size_bytes
        }
        Err(error) => return Err(JournalError::io("open", path)(error)),
    };
    let state = SeedState::empty(size_bytes);
    state.store(storage, &paths.state)?;
    Ok(state)
}

/// A file of one hole, with its length durable; one that is there is what a crash left.
pub(super) fn make<S: Storage>(
    storage: &S,
    path: &Path,
    len_bytes: u64,
) -> Result<S::File, JournalError> {
    remove_if_there(storage, path)?;
    let file = storage.create(path).map_err(JournalError::io("create", path))?;
    file.set_len(len_bytes).map_err(JournalError::io("size", path))?;
    file.datasync().map_err(JournalError::io("sync", path))?;
    Ok(file)
}

fn open_sums<S: Storage>(
    storage: &S,
    paths: &Paths,
    state: &SeedState,
    image_bytes: u64,
) -> Result<S::File, JournalError> {
    let path = &paths.sums;
    let fresh = state.base.at == Seq(0) && !state.seeded && state.merging_to.is_none();
    let file = match storage.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound && fresh => {
            let new = paths.sums_new();
            let file = make(storage, &new, sums_bytes(image_bytes))?;
            storage.rename(&new, path).map_err(JournalError::io("rename", &new))?;
            storage.sync_dir(paths.dir()).map_err(JournalError::io("sync", paths.dir()))?;
            file
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(missing(path, "the seed's checksums are missing"));
        }
        Err(error) => return Err(JournalError::io("open", path)(error)),
    };
    let (len, wanted) =
        (file.len().map_err(JournalError::io("look at", path))?, sums_bytes(state.base.size_bytes));
    if len < wanted {
        let detail = format!("it has {len} bytes and should have {wanted}");
        return Err(Damage::new(path, Part::File, len, detail).into());
    }
    Ok(file)
}

/// Gives image and sums the length of the volume, or a longer one while a merge needs it.
pub(super) fn cut<F: StorageFile>(
    image: &F,
    sums: &F,
    paths: &Paths,
    len_bytes: u64,
) -> Result<(), JournalError> {
    image.set_len(len_bytes).map_err(JournalError::io("size", &paths.image))?;
    sums.set_len(sums_bytes(len_bytes)).map_err(JournalError::io("size", &paths.sums))
}

/// Puts a new image with its sums, both durable beside the old ones, in their place.
pub(super) fn install<S: Storage>(
    storage: &S,
    paths: &Paths,
    mut state: SeedState,
) -> Result<SeedState, JournalError> {
    storage.sync_dir(paths.dir()).map_err(JournalError::io("sync", paths.dir()))?;
    state.installing = true;
    state.store(storage, &paths.state)?;
    finish_install(storage, paths, state)
}

fn finish_install<S: Storage>(
    storage: &S,
    paths: &Paths,
    mut state: SeedState,
) -> Result<SeedState, JournalError> {
    for (from, to) in [(paths.image_new(), &paths.image), (paths.sums_new(), &paths.sums)] {
        match storage.rename(&from, to) {
            // An earlier try came further.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed.map_err(JournalError::io("rename", &from))?,
        }
    }
    storage.sync_dir(paths.dir()).map_err(JournalError::io("sync", paths.dir()))?;
    state.installing = false;
    state.store(storage, &paths.state)?;
    Ok(state)
}

/// Removes the files of an import that was not installed.
pub(super) fn discard<S: Storage>(storage: &S, paths: &Paths) -> Result<(), JournalError> {
    remove_if_there(storage, &paths.image_new())?;
    remove_if_there(storage, &paths.sums_new())
}
