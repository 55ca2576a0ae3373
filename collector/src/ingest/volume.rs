//! One volume, as everybody may see it.
//!
//! What enters: facts from the owner of the volume ([`super::owner`]), and what its agent tells of
//! itself. What leaves: copies of them, and journal and seed for whoever opens a state. Nothing
//! here is durable but the manifest, which the owner stores before it is shown here.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidemark_wire::body::Resync;
use tidemark_wire::instruct::{InstructId, Verified};
use tidemark_wire::session::{Progress, Standing};
use tidemark_wire::{AgentId, AgentRun, Epoch, Seq, VolumeId};

use super::manifest::Manifest;
use super::port::SessionPort;
use crate::config::settings::Settings;
use crate::error::{Failure, Result};
use crate::journal::JournalReader;
use crate::policy::Policy;
use crate::seed::Seed;
use crate::storage::Storage;

/// Directory of the segments in a volume's directory.
pub const JOURNAL_DIR: &str = "journal";

/// Obeyed wishes that are remembered: whoever waits for one looks several times a second.
const OBEYED_MAX: usize = 16;

/// The copy of a volume, for readers.
pub struct Held<S: Storage> {
    /// The journal.
    pub reader: Arc<JournalReader<S>>,
    /// The seed below it.
    pub seed: Arc<Seed<S>>,
}

impl<S: Storage> Clone for Held<S> {
    fn clone(&self) -> Self {
        Self { reader: Arc::clone(&self.reader), seed: Arc::clone(&self.seed) }
    }
}

/// The session that may append.
#[derive(Clone)]
pub struct Live {
    /// Its epoch.
    pub epoch: Epoch,
    /// Who sends, for people.
    pub peer: String,
    /// Its installation.
    pub agent: AgentId,
    /// Its process.
    pub run: AgentRun,
    /// How it is answered.
    pub port: Arc<dyn SessionPort>,
}

/// What is known of a volume now.
#[derive(Clone)]
pub struct Facts {
    /// The manifest as it stands on disk.
    pub manifest: Manifest,
    /// The open session.
    pub live: Option<Live>,
    /// When the newest token was sent that is durable with no span open (monotonic).
    pub recoverable_at: Option<Duration>,
    /// How far the copy is that is under way.
    pub copy: Option<Progress>,
    /// How the agent's stream stands, as its newest session has told; `None` before the first.
    pub standing: Option<Standing>,
    /// Wishes that its agent has obeyed, the newest last.
    pub obeyed: VecDeque<InstructId>,
    /// How the verification stands that the agent has told of last.
    pub verified: Option<Verified>,
    /// The newest copy that has ended since the collector was started, and the record of its end.
    pub last_copy: Option<(Seq, Resync)>,
    /// Why nothing can be appended.
    pub problem: Option<String>,
    /// The newest recovery point that is durable.
    pub newest_point: Option<Seq>,
    /// Everything that is kept of it is being erased; nothing of it is opened any more.
    pub erasing: bool,
    /// An image is being imported, and no session is let in.
    pub seeding: bool,
}

/// A volume, as everybody may see it.
pub struct Volume<S: Storage> {
    id: VolumeId,
    dir: PathBuf,
    settings: Arc<Settings>,
    facts: Mutex<Facts>,
    /// The agent has told something.
    told: Condvar,
    held: Mutex<Option<Held<S>>>,
}

impl<S: Storage> Volume<S> {
    /// The volume in `dir`, with nothing opened yet.
    #[must_use]
    pub fn new(dir: PathBuf, manifest: Manifest, settings: Arc<Settings>) -> Self {
        let id = manifest.volume;
        let facts = Facts {
            manifest,
            live: None,
            recoverable_at: None,
            copy: None,
            standing: None,
            obeyed: VecDeque::new(),
            verified: None,
            last_copy: None,
            problem: None,
            newest_point: None,
            erasing: false,
            seeding: false,
        };
        Self {
            id,
            dir,
            settings,
            facts: Mutex::new(facts),
            told: Condvar::new(),
            held: Mutex::new(None),
        }
    }

    /// What holds for it: what was decided for it, over the defaults in force.
    #[must_use]
    pub fn policy(&self) -> Policy {
        let overrides = self.lock().manifest.policy;
        overrides.over(self.settings.now().policy)
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        self.lock().manifest.name.clone()
    }

    /// The directory of its journal.
    #[must_use]
    pub fn journal_dir(&self) -> PathBuf {
        self.dir.join(JOURNAL_DIR)
    }

    /// What is known of it now.
    #[must_use]
    pub fn facts(&self) -> Facts {
        self.lock().clone()
    }

    /// Journal and seed, to open a state.
    ///
    /// # Errors
    /// `Unavailable` while they can't be opened, `Conflict` while the volume is being erased.
    pub fn held(&self) -> Result<Held<S>> {
        let held = self.held_lock().clone();
        held.ok_or_else(|| {
            let facts = self.lock();
            let name = &facts.manifest.name;
            if facts.erasing {
                return Failure::conflict(format!("volume {name} is being erased"));
            }
            let why = facts.problem.as_deref().unwrap_or("its journal is not open");
            Failure::unavailable(format!("volume {name} can't be read: {why}"))
        })
    }

    /// Lets nobody open anything of it any more. Gives back what was held, so that whoever erases
    /// the volume sees by its count whether somebody reads on. `None` when somebody erases it
    /// already.
    pub(super) fn begin_erase(&self) -> Option<Option<Held<S>>> {
        if std::mem::replace(&mut self.lock().erasing, true) {
            return None;
        }
        Some(self.held_lock().take())
    }

    /// Takes [`Volume::begin_erase`] back.
    pub(super) fn cancel_erase(&self, held: Option<Held<S>>) {
        *self.held_lock() = held;
        self.lock().erasing = false;
    }

    /// The agent told how far its copy is.
    pub fn set_progress(&self, progress: Progress) {
        self.lock().copy = Some(progress);
        self.told.notify_all();
    }

    /// The agent told how its stream stands.
    pub fn set_standing(&self, standing: Standing) {
        self.lock().standing = Some(standing);
        self.told.notify_all();
    }

    /// The agent did what a person wanted.
    pub fn set_obeyed(&self, id: InstructId) {
        let obeyed = &mut self.lock().obeyed;
        if obeyed.len() == OBEYED_MAX {
            obeyed.pop_front();
        }
        obeyed.push_back(id);
        self.told.notify_all();
    }

    /// The agent told how a verification stands.
    pub fn set_verified(&self, verified: Verified) {
        self.lock().verified = Some(verified);
        self.told.notify_all();
    }

    /// Waits until the agent tells something, or this long. What it told just before may have been
    /// missed, so whoever waits looks again in any case.
    pub fn wait_told(&self, at_most: Duration) {
        // A poisoned lock is let go of as any other.
        drop(self.told.wait_timeout(self.lock(), at_most));
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn held_lock(&self) -> MutexGuard<'_, Option<Held<S>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
/// Directory of a volume below the data directory.
#[must_use]
pub fn volume_dir(data_dir: &Path, id: VolumeId) -> PathBuf {
    data_dir.join("volumes").join(id.to_string())
}
