//! The one owner of a volume's journal and manifest.
//!
//! What enters: [`Command`]s, in the order in which the sessions gave them. What leaves: answers
//! through the session's port, marks and events to the observer, and the facts in [`Volume`].
//! [`VolumeCore`] owns journal, manifest and the right to append: a session is opened
//! ([`super::admission`]) in the same order in which records are appended, so once it is open no
//! record of an older one gets in. There are no threads here, so the simulator runs the same code.
//! A crash loses what was not committed, and that was not acknowledged.

use std::sync::Arc;
use std::time::Duration;

use tidemark_wire::frame::RecordsBody;
use tidemark_wire::session::{Hello, Refuse, RefuseReason, Standing, StandingState};
use tidemark_wire::{Epoch, Seq};

use super::change::Change;
use super::contest::Contest;
use super::manifest::Manifest;
use super::observer::Observer;
use super::port::SessionPort;
use super::session::Batch;
use super::volume::{Live, Volume};
use crate::error::{ErrorKind, JournalError, Severity};
use crate::journal::{Journal, JournalConfig, JournalReader, Mark, MarkBody};
use crate::storage::Storage;

/// What sessions want from the owner of a volume.
pub enum Command {
    /// Open a session.
    Open(Box<Opening>),
    /// Append records; they are durable after [`VolumeCore::finish`].
    Append(Batch),
    /// The agent of a session told how its stream stands.
    Standing {
        /// The session.
        epoch: Epoch,
        /// How.
        standing: Standing,
    },
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
    /// When it came (monotonic).
    pub now: Duration,
    /// How it is answered.
    pub port: Arc<dyn SessionPort>,
}

/// The owner of a volume's journal and manifest.
pub struct VolumeCore<S: Storage> {
    pub(super) storage: Arc<S>,
    pub(super) shared: Arc<Volume<S>>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) config: JournalConfig,
    pub(super) manifest: Manifest,
    pub(super) journal: Option<Journal<S>>,
    pub(super) span_open: Option<Seq>,
    /// What is damaged in the journal, so that it takes no records.
    pub(super) damage: Option<String>,
    pub(super) live: Option<Live>,
    pub(super) contest: Contest,
    appended: bool,
    token_sent_at: Option<Duration>,
    /// What was reported as the reason why nothing becomes durable; until something does. An
    /// agent comes back every few seconds and meets the same problem; people are told once.
    pub(super) reported: Option<String>,
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
            contest: Contest::default(),
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
            Command::Standing { epoch, standing } => self.note_standing(epoch, standing),
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
        if self.reported.take().is_some() {
            self.report(Severity::Info, "the journal takes records again".into());
        }
        if !committed.new_marks.is_empty() {
            self.look_at_spans();
            committed.new_marks.iter().for_each(|mark| self.report_mark(mark));
            self.note_points(&committed.new_marks);
            self.observer.marks(self.manifest.volume, &committed.new_marks);
        }
        // Last: what the agent says after it meets everything that came of the records.
        if let Some(live) = &self.live {
            live.port.durable(committed.durable);
        }
        true
    }

    fn append(&mut self, batch: &Batch) {
        // A session that was fenced has been told so; what it still sent is dropped here.
        if !self.is_live(batch.epoch) || !self.note_heard(batch.epoch, None) {
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
        }
        self.token_sent_at = self.token_sent_at.max(batch.token_sent_at);
    }

    pub(super) fn look_at_spans(&mut self) {
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

    pub(super) fn note_points(&self, marks: &[Mark]) {
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

    fn is_live(&self, epoch: Epoch) -> bool {
        self.live.as_ref().is_some_and(|live| live.epoch == epoch)
    }

    fn note_standing(&mut self, epoch: Epoch, standing: Standing) {
        if !self.is_live(epoch) {
            return;
        }
        // What was asked for stays until the stream is whole without it: the agent that was told
        // to compare has done so then.
        let is_whole = standing.state == StandingState::Whole && self.span_open.is_none();
        let compare_next = standing.compare_next || (self.manifest.compare_next && !is_whole);
        let said = self.manifest.compare_next != compare_next;
        if !self.note_heard(epoch, Some(compare_next)) || !said {
            return;
        }
        if compare_next {
            let text = "the agent can't keep what the collector may lack (its write-intent log \
                        fails); its next start compares the whole volume; look at the disk that \
                        holds its state_dir";
            self.report(Severity::Critical, text.to_owned());
        } else {
            let text = "what the collector may lack is kept by the agent again".to_owned();
            self.report(Severity::Info, text);
        }
    }

    /// Keeps durably that the agent of a session was heard, and what its next start has to know;
    /// false when that can't be kept, and with it the session ends. Nothing of a session is
    /// acknowledged before.
    fn note_heard(&mut self, epoch: Epoch, compare_next: Option<bool>) -> bool {
        let compare_next = compare_next.unwrap_or(self.manifest.compare_next);
        if self.manifest.heard == epoch && self.manifest.compare_next == compare_next {
            return true;
        }
        let heard = Manifest { heard: epoch, compare_next, ..self.manifest.clone() };
        if let Err(error) = heard.store(&self.storage, self.shared.dir()) {
            self.set_problem(error.to_string());
            self.end_live(RefuseReason::Unavailable, error.to_string());
            return false;
        }
        self.put_in_force(heard);
        true
    }

    pub(super) fn set_live(&mut self, live: Option<Live>) {
        {
            let mut facts = self.shared.lock();
            facts.live.clone_from(&live);
            // What an earlier session has told says nothing of this one.
            facts.standing = facts.standing.filter(|_| live.is_none());
            facts.verified = facts.verified.take().filter(|_| live.is_none());
        }
        self.live = live;
    }

    /// Nothing becomes durable for now.
    pub(super) fn set_problem(&mut self, text: String) {
        self.shared.lock().problem = Some(text.clone());
        if self.reported.as_ref() != Some(&text) {
            self.report(Severity::Critical, text.clone());
            self.reported = Some(text);
        }
    }

    pub(super) fn span_is_closed(&self) -> bool {
        self.span_open.is_none()
    }

    pub(super) fn reader(&self) -> Option<Arc<JournalReader<S>>> {
        self.journal.as_ref().map(Journal::reader)
    }

    pub(super) fn report(&self, severity: Severity, message: String) {
        self.observer.event(severity, Some(&self.manifest.name), message);
    }
}
