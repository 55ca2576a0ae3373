//! The exports of this daemon, by number: served, or waiting with a problem.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::catalog::ExportRow;
use crate::control::api;
use crate::error::{Failure, Result};
use crate::export::{ExportDirectory, Running};
use crate::journal::Pin;
use crate::points::timestamp;
use crate::storage::Storage;

/// All exports, and the directory in which some of them are files.
pub(in crate::control) struct LiveExports<S: Storage> {
    live: Mutex<BTreeMap<u64, Arc<Live<S>>>>,
    directory: Mutex<Shown<S>>,
    /// Places that are taken.
    places: Arc<Mutex<usize>>,
}

/// One place of an export, taken until it is dropped.
pub(super) struct Taken(Arc<Mutex<usize>>);

impl Drop for Taken {
    fn drop(&mut self) {
        *lock(&self.0) -= 1;
    }
}

/// The FUSE directory.
enum Shown<S: Storage> {
    Mounted(ExportDirectory<S>),
    /// Why there is none.
    Not(String),
}

/// One export.
pub(super) struct Live<S: Storage> {
    pub(super) row: ExportRow,
    state: api::StateInfo,
    serving: Mutex<Serving<S>>,
    /// Held for its drop.
    _place: Taken,
}

/// How an export stands.
pub(super) enum Serving<S: Storage> {
    Running(Running<S>),
    /// It can't be served; its state is kept as far as its journal is open.
    Problem {
        message: String,
        /// Held for its drop.
        _pin: Option<Pin<S>>,
    },
    Ended,
}

impl<S: Storage> LiveExports<S> {
    pub(in crate::control) fn new() -> Self {
        Self {
            live: Mutex::default(),
            directory: Mutex::new(Shown::Not("none is configured; set fuse_mount".into())),
            places: Arc::default(),
        }
    }

    pub(in crate::control) fn count(&self) -> usize {
        lock(&self.live).len()
    }

    /// A place for a new export, of at most so many.
    pub(super) fn place(&self, places_max: usize) -> Result<Taken> {
        let mut taken = lock(&self.places);
        if *taken >= places_max {
            let message = format!("{taken} exports are served already (exports_max {places_max})");
            return Err(Failure::unavailable(message).with_hint("end one of them first"));
        }
        *taken += 1;
        Ok(Taken(Arc::clone(&self.places)))
    }

    /// A place for an export that was there before, whatever the limit is now.
    pub(super) fn place_again(&self) -> Taken {
        *lock(&self.places) += 1;
        Taken(Arc::clone(&self.places))
    }

    pub(super) fn insert(&self, live: Arc<Live<S>>) {
        lock(&self.live).insert(live.row.id, live);
    }

    pub(super) fn get(&self, id: u64) -> Option<Arc<Live<S>>> {
        lock(&self.live).get(&id).cloned()
    }

    pub(super) fn remove(&self, id: u64) -> Option<Arc<Live<S>>> {
        lock(&self.live).remove(&id)
    }

    pub(super) fn all(&self) -> Vec<Arc<Live<S>>> {
        lock(&self.live).values().cloned().collect()
    }

    pub(super) fn show(&self, directory: Result<ExportDirectory<S>>) {
        *lock(&self.directory) = match directory {
            Ok(directory) => Shown::Mounted(directory),
            Err(why) => Shown::Not(why.to_string()),
        };
    }

    /// Does something with the FUSE directory.
    pub(super) fn in_directory<T>(
        &self,
        work: impl FnOnce(&ExportDirectory<S>) -> Result<T>,
    ) -> Result<T> {
        match &*lock(&self.directory) {
            Shown::Mounted(directory) => work(directory),
            Shown::Not(why) => {
                let message = format!("the collector has no FUSE directory: {why}");
                Err(Failure::unavailable(message).with_hint("serve it over NBD instead"))
            }
        }
    }

    /// Takes the FUSE directory down. Blocks.
    pub(super) fn hide(&self) {
        let shown = std::mem::replace(&mut *lock(&self.directory), Shown::Not("it ends".into()));
        if let Shown::Mounted(directory) = shown {
            directory.unmount();
        }
    }
}

/// What is guarded here is replaced whole, so a poisoned lock is usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Storage> Live<S> {
    pub(super) fn new(
        row: ExportRow,
        state: api::StateInfo,
        serving: Serving<S>,
        place: Taken,
    ) -> Self {
        Self { row, state, serving: Mutex::new(serving), _place: place }
    }

    /// What there is to say about it now.
    pub(super) fn info(&self) -> api::ExportInfo {
        let row = &self.row;
        let mut info = api::ExportInfo {
            id: row.id,
            volume: row.name.clone(),
            volume_id: row.volume.to_string(),
            at: row.at.clone(),
            state: self.state.clone(),
            listen: Some(row.listen.clone()).filter(|listen| !listen.is_empty()),
            uri: None,
            nbd_name: None,
            path: None,
            size_bytes: row.size_bytes,
            created: timestamp(row.created),
            writable: row.space_bytes.is_some(),
            used_bytes: None,
            space_bytes: row.space_bytes,
            clients: 0,
            problem: None,
        };
        match &*lock(&self.serving) {
            Serving::Running(running) => {
                info.uri = running.uri().map(str::to_owned);
                info.nbd_name = info.uri.as_ref().map(|_| row.name.clone());
                info.path = running.path().map(Into::into);
                let overlay = running.content().clone_of_state();
                info.used_bytes = overlay.map(|overlay| overlay.used_bytes());
                info.clients = u32::try_from(running.clients()).unwrap_or(u32::MAX);
            }
            Serving::Problem { message, .. } => info.problem = Some(message.clone()),
            Serving::Ended => {}
        }
        info
    }

    /// Refuses a clone that was written to, or of which that is not known.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        let what = match &*lock(&self.serving) {
            Serving::Running(running) => match running.content().clone_of_state() {
                Some(overlay) if overlay.is_changed() => {
                    format!("holds {} bytes of its own", overlay.used_bytes())
                }
                _ => return Ok(()),
            },
            Serving::Problem { .. } => "may hold writes of its own".to_owned(),
            Serving::Ended => return Ok(()),
        };
        let message =
            format!("export {} is a writable clone and {what}, which would go", self.row.id);
        Err(Failure::conflict(message).with_hint("end it with --yes if nobody needs them"))
    }

    /// Who has the file open, as far as it can be seen.
    pub(super) fn users(&self) -> Vec<String> {
        match &*lock(&self.serving) {
            Serving::Running(running) => running.users(),
            _ => Vec::new(),
        }
    }

    /// Takes out how it is served, for good.
    pub(super) fn take(&self) -> Serving<S> {
        std::mem::replace(&mut *lock(&self.serving), Serving::Ended)
    }

    /// Says how it stands from now on.
    pub(super) fn put(&self, serving: Serving<S>) {
        *lock(&self.serving) = serving;
    }

    /// Why it is not served.
    pub(super) fn problem(&self) -> Option<String> {
        match &*lock(&self.serving) {
            Serving::Problem { message, .. } => Some(message.clone()),
            _ => None,
        }
    }

    /// Replaces a problem by what there is now; what comes too late is given back.
    pub(super) fn replace_problem(&self, serving: Serving<S>) -> Option<Serving<S>> {
        let mut now = lock(&self.serving);
        if matches!(*now, Serving::Problem { .. }) {
            *now = serving;
            return None;
        }
        Some(serving)
    }
}
