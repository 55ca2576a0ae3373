//! One volume: what is known of it, and the one owner of its journal and manifest.
//!
//! What enters: [`Command`]s, in the order in which the sessions gave them. What leaves: answers
//! through the session's port, marks and events to the observer, and [`Volume`], which everybody
//! may read. [`VolumeCore`] owns journal, manifest and the right to append: a session is opened
//! in the same order in which records are appended, so once it is open no record of an older one
//! gets in. There are no threads here, so the simulator runs the same code. A crash loses what
//! was not committed, and that was not acknowledged.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidemark_wire::body::GapReason;
use tidemark_wire::frame::RecordsBody;
use tidemark_wire::limits::WINDOW_BYTES_MAX;
use tidemark_wire::session::{Hello, Progress, Refuse, RefuseReason, Standing, Welcome};
use tidemark_wire::{Epoch, Seq, VolumeId, WallMicros};

use super::change::Change;
use super::early;
use super::manifest::Manifest;
use super::observer::Observer;
use super::port::SessionPort;
use super::session::Batch;
use crate::config::settings::Settings;
use crate::error::{ErrorKind, Failure, JournalError, Result, Severity};
use crate::journal::{
    Journal, JournalConfig, JournalIdentity, JournalReader, Mark, MarkBody, OpenReport,
};
use crate::policy::Policy;
use crate::seed::{SEED_FILE, Seed, merge_into_seed};
use crate::storage::Storage;

/// Directory of the segments in a volume's directory.
pub const JOURNAL_DIR: &str = "journal";

/// What sessions want from the owner of a volume.
pub enum Command {
    /// Open a session.
    Open(Box<Opening>),
    /// Append records; they are durable after [`VolumeCore::finish`].
    Append(Batch),
    /// The session with this port is over, or its opening is no longer wanted.
    Closed(Arc<dyn SessionPort>),
    /// Change what a person decides of the volume.
    Change(Change),
    /// The last command: what was appended becomes durable, and the owner ends.
    Stop,
}

/// An agent that wants a session.
pub struct Opening {
    /// What it said.
    pub hello: Hello,
    /// Who it is, for people.
    pub peer: String,
    /// How it is answered.
    pub port: Arc<dyn SessionPort>,
}

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
            problem: None,
            newest_point: None,
            erasing: false,
            seeding: false,
        };
        Self { id, dir, settings, facts: Mutex::new(facts), held: Mutex::new(None) }
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
    /// the volume sees by its count whether somebody reads on.
    pub(super) fn begin_erase(&self) -> Option<Held<S>> {
        self.lock().erasing = true;
        self.held_lock().take()
    }

    /// Takes [`Volume::begin_erase`] back.
    pub(super) fn cancel_erase(&self, held: Option<Held<S>>) {
        *self.held_lock() = held;
        self.lock().erasing = false;
    }

    /// The agent told how far its copy is.
    pub fn set_progress(&self, progress: Progress) {
        self.lock().copy = Some(progress);
    }

    /// The agent told how its stream stands.
    pub fn set_standing(&self, standing: Standing) {
        self.lock().standing = Some(standing);
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held_lock(&self) -> MutexGuard<'_, Option<Held<S>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The owner of a volume's journal and manifest.
pub struct VolumeCore<S: Storage> {
    pub(super) storage: Arc<S>,
    pub(super) shared: Arc<Volume<S>>,
    pub(super) observer: Arc<dyn Observer>,
    config: JournalConfig,
    pub(super) manifest: Manifest,
    journal: Option<Journal<S>>,
    span_open: Option<Seq>,
    /// What is damaged in the journal, so that it takes no records.
    damage: Option<String>,
    live: Option<Live>,
    appended: bool,
    token_sent_at: Option<Duration>,
    /// What was reported as the reason why nothing becomes durable; until something does. An
    /// agent comes back every few seconds and meets the same problem; people are told once.
    reported: Option<String>,
}

impl<S: Storage> VolumeCore<S> {
    /// Takes charge of a volume and opens its journal. Where that fails, the volume says so and
    /// the next session tries again.
    pub fn start(
        storage: Arc<S>,
        shared: Arc<Volume<S>>,
        observer: Arc<dyn Observer>,
        config: JournalConfig,
    ) -> Self {
        let manifest = shared.lock().manifest.clone();
        let mut core = Self {
            storage,
            shared,
            observer,
            config,
            manifest,
            journal: None,
            span_open: None,
            damage: None,
            live: None,
            appended: false,
            token_sent_at: None,
            reported: None,
        };
        core.observer.volume(&core.manifest);
        if let Err(error) = core.ensure_journal() {
            core.set_problem(error.to_string());
        }
        core
    }

    /// Does one command; appended records wait for [`VolumeCore::finish`].
    pub fn handle(&mut self, command: Command) {
        match command {
            Command::Open(opening) => self.open(*opening),
            Command::Append(batch) => self.append(&batch),
            Command::Closed(port) => {
                if self.live.as_ref().is_some_and(|live| Arc::ptr_eq(&live.port, &port)) {
                    self.set_live(None);
                    self.report(Severity::Info, "the agent is disconnected".into());
                }
            }
            Command::Change(change) => self.change(change),
            Command::Stop => {}
        }
    }

    /// Makes everything that was appended durable with one sync and acknowledges it.
    pub fn finish(&mut self) {
        if std::mem::take(&mut self.appended) && !self.commit() {
            self.token_sent_at = None;
        }
        // A token proves a recoverable state only when there is one and no span hides it.
        if let Some(sent_at) = self.token_sent_at.take()
            && self.span_open.is_none()
            && self.journal.as_ref().is_some_and(|journal| journal.reader().durable() > Seq(0))
        {
            let recoverable_at = &mut self.shared.lock().recoverable_at;
            *recoverable_at = (*recoverable_at).max(Some(sent_at));
        }
    }

    fn commit(&mut self) -> bool {
        let Some(journal) = &mut self.journal else { return false };
        let committed = match journal.commit() {
            Ok(committed) => committed,
            Err(error) => {
                self.fail(&error);
                return false;
            }
        };
        if let Some(live) = &self.live {
            live.port.durable(committed.durable);
        }
        if self.reported.take().is_some() {
            self.report(Severity::Info, "the journal takes records again".into());
        }
        if !committed.new_marks.is_empty() {
            self.look_at_spans();
            committed.new_marks.iter().for_each(|mark| self.report_span(mark));
            self.note_points(&committed.new_marks);
            self.observer.marks(self.manifest.volume, &committed.new_marks);
        }
        true
    }

    fn append(&mut self, batch: &Batch) {
        // A session that was fenced has been told so; what it still sent is dropped here.
        if self.live.as_ref().is_none_or(|live| live.epoch != batch.epoch) {
            return;
        }
        if batch.count > 0 {
            let Some(journal) = &mut self.journal else { return };
            let appended = match RecordsBody::decode(&batch.body) {
                Ok(records) => journal.append(&records),
                Err(error) => return self.end_live(RefuseReason::Protocol, error.to_string()),
            };
            if let Err(error) = appended {
                return self.fail(&error);
            }
            self.appended = true;
            early::tell(self.live.as_ref(), journal.last_appended(), batch, &*self.observer);
        }
        self.token_sent_at = self.token_sent_at.max(batch.token_sent_at);
    }

    fn open(&mut self, opening: Opening) {
        self.finish();
        let Opening { hello, peer, port } = opening;
        match self.admit(&hello) {
            Ok(welcome) => {
                let epoch = welcome.epoch;
                let durable = welcome.durable;
                let text = format!("session {epoch} of {peer} has taken over");
                self.end_live(RefuseReason::Fenced, text);
                let live = Live { epoch, peer, port: Arc::clone(&port) };
                self.set_live(Some(live));
                port.opened(Ok(welcome));
                if self.reported.is_none() {
                    let text = format!("the agent is connected, the newest record is {durable}");
                    self.report(Severity::Info, text);
                }
            }
            Err(refusal) => port.opened(Err(refusal)),
        }
    }

    /// Raises the epoch durably before anything says that the session is open.
    fn admit(&mut self, hello: &Hello) -> std::result::Result<Welcome, Refuse> {
        let refuse = |reason, text: String| Refuse { reason, text };
        if self.manifest.retired.is_some() {
            let text = self.retired_text();
            return Err(refuse(RefuseReason::Retired, text));
        }
        if self.shared.lock().seeding {
            return Err(refuse(RefuseReason::Unavailable, self.seeding_text()));
        }
        if let Err(error) = self.ensure_journal() {
            self.set_problem(error.to_string());
            return Err(refuse(RefuseReason::Unavailable, error.to_string()));
        }
        if let Some(damage) = &self.damage {
            return Err(refuse(RefuseReason::Unavailable, damage.clone()));
        }
        let Some(journal) = &mut self.journal else {
            return Err(refuse(RefuseReason::Unavailable, "the journal is not open".into()));
        };
        let reader = journal.reader();
        let durable = reader.durable();
        let last_time = reader.last_time().unwrap_or(WallMicros(0));
        let size_bytes = reader.size_at(durable);
        if hello.size_bytes != size_bytes {
            let name = &self.manifest.name;
            let text = format!(
                "volume {name} has {size_bytes} bytes on the collector and {} at the agent; give \
                 the disk its former size, or move the volume's file in the agent's state_dir \
                 away to protect it anew",
                hello.size_bytes
            );
            return Err(refuse(RefuseReason::Mismatch, text));
        }
        let raised = Manifest {
            epoch: Epoch(self.manifest.epoch.max(hello.epoch).0.saturating_add(1)),
            name: hello.name.clone(),
            agent: hello.agent,
            block_bytes: hello.block_bytes,
            ..self.manifest.clone()
        };
        if let Err(error) = raised.store(&self.storage, &self.shared.dir) {
            self.set_problem(error.to_string());
            return Err(refuse(RefuseReason::Unavailable, error.to_string()));
        }
        journal.set_epoch(raised.epoch);
        self.put_in_force(raised);
        self.observer.seen(&self.manifest);
        Ok(Welcome {
            journal: self.manifest.journal,
            timeline: self.manifest.timeline,
            epoch: self.manifest.epoch,
            durable,
            span_open: self.span_open.unwrap_or(Seq(0)),
            window_bytes: WINDOW_BYTES_MAX,
            seeded: self.manifest.seeded && durable == Seq(0),
            last_time,
        })
    }

    /// Opens the journal, or reopens one that a failed write has closed. One that is damaged is
    /// an error as well, before a session begins that could not append.
    fn ensure_journal(&mut self) -> std::result::Result<(), JournalError> {
        match &mut self.journal {
            Some(journal) => journal.reopen()?,
            None => {
                let seed = Seed::open_or_create(
                    &self.storage,
                    &self.shared.dir.join(SEED_FILE),
                    self.manifest.size_bytes,
                )?;
                let identity = JournalIdentity {
                    volume: self.manifest.volume,
                    journal: self.manifest.journal,
                    timeline: self.manifest.timeline,
                    epoch: self.manifest.epoch,
                    size_bytes: self.manifest.size_bytes,
                };
                let (journal, report) = Journal::open_above(
                    Arc::clone(&self.storage),
                    &self.shared.journal_dir(),
                    identity,
                    self.config,
                    seed.base(),
                )?;
                self.report_opening(&report);
                self.complete_merge(&journal, &seed);
                self.damage = report.damaged.first().map(ToString::to_string);
                let (marks, damaged) = journal.reader().marks()?;
                // The volume goes on without them; what they said can't be shown any more.
                for damage in damaged {
                    let text = format!("a recovery point or a mark is lost: {damage}");
                    self.report(Severity::Critical, text);
                }
                self.note_points(&marks);
                self.observer.history(self.manifest.volume, &marks);
                let held = Held { reader: journal.reader(), seed: Arc::new(seed) };
                *self.shared.held_lock() = Some(held);
                self.journal = Some(journal);
            }
        }
        self.look_at_spans();
        self.shared.lock().problem.clone_from(&self.damage);
        Ok(())
    }

    /// Ends a merge that a crash cut off, before anything reads the seed. One that can't be ended
    /// now is tried again by the merger; what can't be told from the seed meanwhile is an error
    /// of the read.
    fn complete_merge(&self, journal: &Journal<S>, seed: &Seed<S>) {
        let Some(to) = seed.merging_to() else { return };
        let mut pace = |_| ControlFlow::Continue(());
        match merge_into_seed(&journal.reader(), seed, to, &mut pace) {
            Ok(merged) => {
                for damage in &merged.damaged {
                    self.report(Severity::Critical, damage.to_string());
                }
                if merged.to.is_none() {
                    return;
                }
                let text = format!("a merge that was interrupted is complete at record {to}");
                self.report(Severity::Info, text);
            }
            Err(error) => {
                let text = format!("an interrupted merge to record {to} can't be ended: {error}");
                self.report(Severity::Critical, text);
            }
        }
    }

    fn report_opening(&self, report: &OpenReport) {
        if let Some(cut) = &report.cut {
            self.report(Severity::Warning, cut.to_string());
        }
        for damage in &report.damaged {
            self.report(Severity::Critical, damage.to_string());
        }
        tracing::info!(
            volume = %self.manifest.name,
            records = report.records,
            durable = report.durable.0,
            "journal opened"
        );
    }

    fn look_at_spans(&mut self) {
        let Some(journal) = &self.journal else { return };
        self.span_open = journal.reader().span_open();
        if self.span_open.is_none() {
            self.shared.lock().copy = None;
        }
    }

    /// Nothing of what waits became durable. The agent comes back and sends it again.
    fn fail(&mut self, error: &JournalError) {
        let text = error.to_string();
        // What was appended before the refused records still waits, unless the journal is closed.
        self.appended &= self.journal.as_ref().is_some_and(|journal| !journal.is_latched());
        if error.kind() == ErrorKind::Resynchronize {
            return self.end_live(RefuseReason::Protocol, text);
        }
        self.set_problem(text.clone());
        self.end_live(RefuseReason::Unavailable, text);
    }

    fn note_points(&self, marks: &[Mark]) {
        let is_point = |mark: &&Mark| matches!(mark.body, MarkBody::Bookmark(_));
        if let Some(newest) = marks.iter().rev().find(is_point) {
            self.shared.lock().newest_point = Some(newest.seq);
        }
    }

    pub(super) fn end_live(&mut self, reason: RefuseReason, text: String) {
        if let Some(live) = self.live.take() {
            live.port.end(Refuse { reason, text });
            self.set_live(None);
        }
    }

    fn set_live(&mut self, live: Option<Live>) {
        {
            let mut facts = self.shared.lock();
            facts.live.clone_from(&live);
            // What an earlier session has told says nothing of this one.
            facts.standing = facts.standing.filter(|_| live.is_none());
        }
        self.live = live;
    }

    /// Nothing becomes durable for now.
    fn set_problem(&mut self, text: String) {
        self.shared.lock().problem = Some(text.clone());
        if self.reported.as_ref() != Some(&text) {
            self.report(Severity::Critical, text.clone());
            self.reported = Some(text);
        }
    }

    /// Says what the agent could not capture, and when the copy is whole again.
    fn report_span(&self, mark: &Mark) {
        let seq = mark.seq;
        match &mark.body {
            MarkBody::Gap(reason) => {
                let why = reason.map_or("for a reason that is not known here", GapReason::text);
                let text = format!("changes before record {seq} are missing: {why}");
                self.report(Severity::Warning, text);
            }
            MarkBody::ResyncBegin(resync) => {
                let what = if resync.initial == 1 { "the first copy" } else { "a comparison" };
                let text = format!("{what} of {} bytes began at {seq}", resync.total_bytes);
                self.report(Severity::Info, text);
            }
            MarkBody::ResyncEnd(resync) if self.span_open.is_none() => {
                let sent = resync.sent_bytes;
                let text =
                    format!("the copy is whole from record {seq} on; {sent} bytes were sent");
                self.report(Severity::Info, text);
            }
            _ => {}
        }
    }

    pub(super) fn report(&self, severity: Severity, message: String) {
        self.observer.event(severity, Some(&self.manifest.name), message);
    }
}

/// Directory of a volume below the data directory.
#[must_use]
pub fn volume_dir(data_dir: &Path, id: VolumeId) -> PathBuf {
    data_dir.join("volumes").join(id.to_string())
}
