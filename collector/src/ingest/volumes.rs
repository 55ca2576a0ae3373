//! All volumes of the collector.
//!
//! What enters: the volumes found on disk at start, and the hello of an agent whose volume is
//! not known yet. What leaves: each volume with the way to its writer. Registering a volume is
//! durable (directory and manifest) before its first session is opened.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::bounded;
use tidemark_wire::body::Bookmark;
use tidemark_wire::instruct::{Instruct, InstructId, InstructKind};
use tidemark_wire::session::{Hello, Refuse, RefuseReason};
use tidemark_wire::{Epoch, JournalId, PointId, Timeline, VolumeId};

use super::change::{Change, Decision};
use super::manifest::Manifest;
use super::observer::Observer;
use super::owner::{Command, VolumeCore};
use super::volume::{JOURNAL_DIR, Live, Volume, volume_dir};
use super::writer::{Writer, WriterQueue};
use crate::config::settings::Settings;
use crate::error::{Failure, FailureKind, Result, Severity, nearest};
use crate::journal::JournalConfig;
use crate::policy::Overrides;
use crate::seam::{Clock, Random};
use crate::storage::Storage;

/// What the volumes stand on.
pub struct Ground<S: Storage> {
    /// Where everything is kept.
    pub storage: Arc<S>,
    /// The directory there.
    pub data_dir: PathBuf,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Identities.
    pub random: Arc<dyn Random>,
    /// Who is told.
    pub observer: Arc<dyn Observer>,
    /// Bounds of each journal.
    pub journal: JournalConfig,
    /// The configuration in force: the policy's defaults, and how many volumes there may be.
    pub settings: Arc<Settings>,
}

struct Entry<S: Storage> {
    volume: Arc<Volume<S>>,
    queue: WriterQueue,
    writer: Writer,
}

/// All volumes.
pub struct Volumes<S: Storage> {
    ground: Ground<S>,
    entries: Mutex<BTreeMap<VolumeId, Entry<S>>>,
}

impl<S: Storage> Volumes<S> {
    /// Opens the volumes that were found in the data directory. One whose manifest can't be read
    /// is reported and left alone.
    ///
    /// # Errors
    /// When a writer's thread can't be made.
    pub fn open(ground: Ground<S>, found: &[VolumeId]) -> Result<Self> {
        let volumes = Self { ground, entries: Mutex::default() };
        for id in found {
            let dir = volume_dir(&volumes.ground.data_dir, *id);
            match Manifest::load(&volumes.ground.storage, &dir) {
                Ok(manifest) if manifest.volume == *id => {
                    volumes.start(&mut volumes.lock(), manifest)?;
                }
                Ok(manifest) => volumes.skip(
                    *id,
                    &format!("{} holds the manifest of volume {}", dir.display(), manifest.volume),
                ),
                Err(error) if error.kind == FailureKind::NotFound && !volumes.has_journal(*id) => {
                    let text = format!("volume {id} was not registered to its end; its agent does");
                    volumes.ground.observer.event(Severity::Info, None, text);
                }
                Err(error) => volumes.skip(*id, &error.to_string()),
            }
        }
        Ok(volumes)
    }

    fn has_journal(&self, id: VolumeId) -> bool {
        let dir = volume_dir(&self.ground.data_dir, id).join(JOURNAL_DIR);
        self.ground.storage.list(&dir).is_ok_and(|files| !files.is_empty())
    }

    fn skip(&self, id: VolumeId, why: &str) {
        let message = format!("volume {id} is left alone: {why}");
        self.ground.observer.event(Severity::Critical, None, message);
    }

    /// All volumes, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Volume<S>>> {
        let mut all: Vec<_> = self.lock().values().map(|entry| Arc::clone(&entry.volume)).collect();
        all.sort_by_cached_key(|volume| volume.name());
        all
    }

    /// The volume with this name or id.
    ///
    /// # Errors
    /// `NotFound` with the nearest one, `Conflict` when several have the name.
    pub fn find(&self, wanted: &str) -> Result<Arc<Volume<S>>> {
        let all = self.all();
        if let Some(volume) = all.iter().find(|volume| volume.id().to_string() == wanted) {
            return Ok(Arc::clone(volume));
        }
        let mut named = all.iter().filter(|volume| volume.name() == wanted);
        match (named.next(), named.next()) {
            (Some(volume), None) => Ok(Arc::clone(volume)),
            (Some(one), Some(other)) => {
                let (one, other) = (one.id(), other.id());
                Err(Failure::conflict(format!("several volumes are named {wanted:?}"))
                    .with_hint(format!("name it by its id, for instance {one} or {other}")))
            }
            (None, _) => {
                let names: Vec<String> = all.iter().map(|volume| volume.name()).collect();
                let failure = Failure::not_found(format!("there is no volume {wanted:?}"));
                Err(match nearest(wanted, names.iter().map(String::as_str)) {
                    Some(name) => failure.with_hint(format!("did you mean {name}?")),
                    None if names.is_empty() => failure.with_hint("no agent has connected yet"),
                    None => failure.with_hint(format!("the volumes are {}", names.join(", "))),
                })
            }
        }
    }

    /// The volume of an agent, with the way to its writer; registers it when it is new.
    ///
    /// # Errors
    /// The refusal that the agent gets.
    pub fn get_or_register(
        &self,
        hello: &Hello,
    ) -> std::result::Result<(Arc<Volume<S>>, WriterQueue), Refuse> {
        // Held while a volume is made, so that two sessions can't make the same one.
        let mut entries = self.lock();
        if let Some(entry) = entries.get(&hello.volume) {
            if entry.volume.facts().erasing {
                let text = "the volume is being erased; it is taken anew in a moment".to_owned();
                return Err(Refuse { reason: RefuseReason::Unavailable, text });
            }
            return Ok((Arc::clone(&entry.volume), entry.queue.clone()));
        }
        let unavailable = |text: String| Refuse { reason: RefuseReason::Unavailable, text };
        let max = self.ground.settings.now().volumes_max;
        if entries.len() >= max {
            return Err(unavailable(format!("the collector keeps {max} volumes (volumes_max)")));
        }
        let dir = volume_dir(&self.ground.data_dir, hello.volume);
        match Manifest::load(&self.ground.storage, &dir) {
            Err(error) if error.kind == FailureKind::NotFound => {
                if self.has_journal(hello.volume) {
                    let why = "its manifest is missing beside its journal; put back a copy of it";
                    return Err(unavailable(format!("the volume is left alone: {why}")));
                }
            }
            Ok(_) => return Err(unavailable("the volume was left alone at start".into())),
            Err(error) => return Err(unavailable(error.to_string())),
        }
        let manifest = Manifest {
            volume: hello.volume,
            name: hello.name.clone(),
            size_bytes: hello.size_bytes,
            block_bytes: hello.block_bytes,
            journal: self.new_journal_id(),
            timeline: Timeline(1),
            epoch: Epoch(0),
            heard: Epoch(0),
            compare_next: false,
            agent: hello.agent,
            created: self.ground.clock.wall(),
            policy: Overrides::default(),
            retired: None,
            seeded: false,
        };
        self.warn_of_namesakes(&entries, hello);
        let made = self
            .ground
            .storage
            .create_dir(&dir)
            .map_err(|source| Failure::io("make", &dir, source))
            .and_then(|()| manifest.store(&self.ground.storage, &dir))
            .and_then(|()| self.start(&mut entries, manifest));
        made.map_err(|error| unavailable(error.to_string()))
    }

    /// A new volume with the name of one that is known: maybe the same disk, whose agent has lost
    /// its state.
    fn warn_of_namesakes(&self, entries: &BTreeMap<VolumeId, Entry<S>>, hello: &Hello) {
        let name = &hello.name;
        for other in entries.values().filter(|entry| entry.volume.name() == *name) {
            let (new, known) = (hello.volume, other.volume.id());
            let text = format!(
                "an agent brings a new volume {name} (id {new}), and there is another one of that \
                 name (id {known}), which stays as it is. If it is the same disk, its agent has \
                 lost its state_dir: put it back, or retire the old one by its id: tidemark volume \
                 retire {known}"
            );
            self.ground.observer.event(Severity::Warning, Some(name), text);
        }
    }

    fn start(
        &self,
        entries: &mut BTreeMap<VolumeId, Entry<S>>,
        manifest: Manifest,
    ) -> Result<(Arc<Volume<S>>, WriterQueue)> {
        let id = manifest.volume;
        let dir = volume_dir(&self.ground.data_dir, id);
        let volume = Arc::new(Volume::new(dir, manifest, Arc::clone(&self.ground.settings)));
        let core = VolumeCore::start(
            Arc::clone(&self.ground.storage),
            Arc::clone(&volume),
            Arc::clone(&self.ground.observer),
            self.ground.journal,
        );
        let (writer, queue) = Writer::start(core).map_err(|source| {
            Failure::unavailable(format!("no thread for volume {id}: {source}")).because(source)
        })?;
        let entry = Entry { volume: Arc::clone(&volume), queue: queue.clone(), writer };
        entries.insert(id, entry);
        Ok((volume, queue))
    }

    /// Asks the agent of a volume for a recovery point; it exists once its mark is durable.
    ///
    /// # Errors
    /// `Unavailable` when no agent is connected.
    pub fn ask_for_point(&self, volume: &Volume<S>, wanted: Bookmark) -> Result<()> {
        let name = volume.name();
        let Some(live) = volume.facts().live else {
            let message = format!("no agent of volume {name} is connected");
            return Err(Failure::unavailable(message)
                .with_hint("a point is placed by the agent; start it first"));
        };
        if live.port.bookmark(wanted) {
            return Ok(());
        }
        Err(Failure::unavailable(format!("too many points of volume {name} are being made")))
    }

    /// The session in which the agent of a volume can be told what a person wants.
    ///
    /// # Errors
    /// `Unavailable` when no agent is connected, `Conflict` when the volume is retired.
    pub fn live(&self, volume: &Volume<S>) -> Result<Live> {
        let (name, facts) = (volume.name(), volume.facts());
        if facts.manifest.retired.is_some() {
            return Err(Failure::conflict(format!("volume {name} is retired, not protected"))
                .with_hint(format!("take it back first: tidemark volume unretire {name}")));
        }
        facts.live.ok_or_else(|| {
            let message = format!("no agent of volume {name} is connected");
            Failure::unavailable(message)
                .with_hint("its agent has to do it; start it, or look why it can't connect")
        })
    }

    /// Hands on to the agent of a volume what a person wants; `from_bytes` is where a
    /// verification begins. The agent obeys under the identity that is given back.
    ///
    /// # Errors
    /// As [`Volumes::live`], and `Unavailable` when too many wishes wait.
    pub fn instruct(
        &self,
        volume: &Volume<S>,
        what: InstructKind,
        from_bytes: u64,
    ) -> Result<InstructId> {
        let (name, live) = (volume.name(), self.live(volume)?);
        let id = self.ground.random_id();
        if live.port.instruct(Instruct { id, what, from_bytes }) {
            return Ok(id);
        }
        Err(Failure::unavailable(format!("too many wishes wait for the agent of volume {name}")))
    }

    /// Has a volume's writer make a decision durable, and waits for it.
    ///
    /// # Errors
    /// `Conflict` when it does not fit the volume, `NotFound` when the volume is gone, and what
    /// the system says when it can't be written.
    pub fn decide(&self, volume: &Volume<S>, what: Decision) -> Result<Manifest> {
        let gone = || Failure::not_found(format!("volume {} is gone", volume.name()));
        let queue = self.lock().get(&volume.id()).map(|entry| entry.queue.clone());
        let (done, decided) = bounded(1);
        let sent = queue.ok_or_else(gone)?.send(Command::Change(Change { what, done }));
        sent.map_err(|_| gone())?;
        decided.recv().map_err(|_| gone())?
    }

    /// Ends a volume's writer, changes what lies on the disk, and opens the volume anew with the
    /// manifest that comes out of it. No session or volume gets in meanwhile.
    pub(super) fn reopen(
        &self,
        id: VolumeId,
        change: impl FnOnce(Manifest) -> Result<Manifest>,
    ) -> Result<()> {
        let mut entries = self.lock();
        let Some(entry) = entries.remove(&id) else {
            return Err(Failure::not_found(format!("volume {id} is gone")));
        };
        // One that has ended already is only to be joined.
        let _ = entry.queue.send(Command::Stop);
        entry.writer.join();
        let changed = change(entry.volume.facts().manifest);
        // After a failure the disk says how far the change came.
        let dir = volume_dir(&self.ground.data_dir, id);
        let manifest = Manifest::load(&self.ground.storage, &dir)?;
        self.start(&mut entries, manifest)?;
        changed.map(|_| ())
    }

    /// Ends a volume's writer and, when `last` succeeds after that, forgets the volume; else it
    /// is opened again. No other session or volume gets in meanwhile.
    pub(super) fn remove<T>(&self, id: VolumeId, last: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut entries = self.lock();
        let Some(entry) = entries.remove(&id) else {
            return Err(Failure::not_found(format!("volume {id} is gone")));
        };
        // One that has ended already is only to be joined.
        let _ = entry.queue.send(Command::Stop);
        entry.writer.join();
        let done = last();
        if done.is_err() {
            self.start(&mut entries, entry.volume.facts().manifest)?;
        }
        done
    }

    pub(super) fn storage(&self) -> &Arc<S> {
        &self.ground.storage
    }

    pub(super) fn data_dir(&self) -> &Path {
        &self.ground.data_dir
    }

    /// An identity for a copy that nobody has used.
    pub(super) fn new_journal_id(&self) -> JournalId {
        JournalId::from_random(self.ground.random_id())
    }

    /// An identity for a point that nobody has used.
    #[must_use]
    pub fn new_point_id(&self) -> PointId {
        PointId::from_random(self.ground.random_id())
    }

    /// Makes everything that was handed over durable and ends the writers.
    pub fn stop(&self) {
        let entries = std::mem::take(&mut *self.lock());
        for entry in entries.values() {
            // One that has ended already is only to be joined.
            let _ = entry.queue.send(Command::Stop);
        }
        entries.into_values().for_each(|entry| entry.writer.join());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Entry<S>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Storage> Ground<S> {
    fn random_id(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.random.fill(&mut bytes);
        bytes
    }
}
