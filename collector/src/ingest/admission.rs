//! Lets an agent in: opens what the volume keeps, then the session.
//!
//! What enters: the hello of an agent. What leaves: a welcome whose epoch is durable, or a refusal.
//! The journal is opened here too, at the start and again after a write of it has failed: what a
//! crash or a person left on the disk is found before any session begins. The state is the
//! owner's ([`super::owner`]).

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tidemark_wire::limits::{COUNTER_MAX, WINDOW_BYTES_MAX};
use tidemark_wire::session::{Hello, Lineage, Refuse, RefuseReason, Welcome};
use tidemark_wire::{Epoch, Seq, WallMicros};

use super::contest::{Answer, Claim, fenced_text};
use super::manifest::Manifest;
use super::owner::{Opening, VolumeCore};
use super::unsure::changed_behind;
use super::volume::{Held, Live};
use crate::error::{JournalError, Severity};
use crate::journal::{Journal, JournalIdentity, OpenReport};
use crate::seed::{SEED_FILE, Seed, merge_into_seed};
use crate::storage::Storage;

impl<S: Storage> VolumeCore<S> {
    pub(super) fn open(&mut self, opening: Opening) {
        self.finish();
        let Opening { hello, peer, now, port } = opening;
        let admitted = self.fence(&hello, &peer, now).and_then(|()| self.admit(&hello, &peer));
        match admitted {
            Ok(welcome) => {
                let epoch = welcome.epoch;
                let durable = welcome.durable;
                let text = format!("session {epoch} of {peer} has taken over");
                self.end_live(RefuseReason::Fenced, text);
                let (agent, run) = (hello.agent, hello.run);
                let live = Live { epoch, peer, agent, run, port: Arc::clone(&port) };
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

    /// Refuses an agent while another one with the same identity is there.
    fn fence(&mut self, hello: &Hello, peer: &str, now: Duration) -> Result<(), Refuse> {
        let is_older = hello.epoch < self.manifest.heard;
        let answer = self.contest.judge(hello, is_older, self.live.as_ref(), now);
        let Answer::Fenced { is_news } = answer else { return Ok(()) };
        let holder = self.live.as_ref().map(|live| Claim { agent: live.agent, peer: &live.peer });
        let other = Claim { agent: hello.agent, peer };
        let text = fenced_text(&self.manifest.name, holder.as_ref(), &other);
        if is_news {
            self.report(Severity::Critical, text.clone());
        }
        Err(Refuse { reason: RefuseReason::Fenced, text })
    }

    /// Who remembers less, and what people have to know of it.
    fn lineage(&self, hello: &Hello, peer: &str, durable: Seq) -> (Lineage, Option<String>) {
        let (heard, known) = (self.manifest.heard, self.manifest.epoch);
        if hello.epoch < heard {
            let text = format!(
                "the agent of {peer} remembers session {}, and session {heard} was heard here: its \
                 machine was put back to an older state, or is a copy of the one that was \
                 protected. The states up to record {durable} stay as they are; the disk as it is \
                 there now is compared whole and follows them",
                hello.epoch
            );
            return (Lineage::SourceOlder, Some(text));
        }
        let is_behind = hello.epoch > known || hello.released > durable;
        if hello.journal == self.manifest.journal && is_behind {
            let text = format!(
                "the agent of {peer} has had session {} and knows of records up to {} as durable; \
                 here session {known} and record {durable} are the newest: what the collector \
                 holds of the volume was put back to an older copy. Its states stay good, later \
                 ones are lost; the disk is compared whole",
                hello.epoch, hello.released
            );
            return (Lineage::CollectorOlder, Some(text));
        }
        (Lineage::Same, None)
    }

    /// Raises the epoch durably before anything says that the session is open.
    fn admit(&mut self, hello: &Hello, peer: &str) -> Result<Welcome, Refuse> {
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
        let Some(journal) = &self.journal else {
            return Err(refuse(RefuseReason::Unavailable, "the journal is not open".into()));
        };
        let reader = journal.reader();
        let durable = reader.durable();
        let last_time = reader.last_time().unwrap_or(WallMicros(0));
        let size_bytes = reader.size_at(durable);
        let unsure = hello.unsure_after.map(|after| changed_behind(&reader, after));
        let (lineage, news) = self.lineage(hello, peer, durable);
        let epoch = self.manifest.epoch.max(hello.epoch).0.saturating_add(1);
        if epoch > COUNTER_MAX {
            let text = format!("no session can follow epoch {}", hello.epoch);
            return Err(refuse(RefuseReason::Protocol, text));
        }
        let raised = Manifest {
            epoch: Epoch(epoch),
            name: hello.name.clone(),
            agent: hello.agent,
            block_bytes: hello.block_bytes,
            ..self.manifest.clone()
        };
        if let Err(error) = raised.store(&self.storage, self.shared.dir()) {
            self.set_problem(error.to_string());
            return Err(refuse(RefuseReason::Unavailable, error.to_string()));
        }
        if let Some(journal) = &mut self.journal {
            journal.set_epoch(raised.epoch);
        }
        self.put_in_force(raised);
        self.observer.seen(&self.manifest);
        if let Some(text) = news {
            self.report(Severity::Critical, text);
        }
        Ok(Welcome {
            journal: self.manifest.journal,
            timeline: self.manifest.timeline,
            epoch: self.manifest.epoch,
            durable,
            span_open: self.span_open.unwrap_or(Seq(0)),
            window_bytes: WINDOW_BYTES_MAX,
            seeded: self.manifest.seeded && durable == Seq(0),
            last_time,
            size_bytes,
            lineage,
            compare: self.manifest.compare_next,
            unsure: unsure.unwrap_or_default(),
        })
    }

    /// Opens the journal, or reopens one that a failed write has closed. One that is damaged is
    /// an error as well, before a session begins that could not append.
    pub(super) fn ensure_journal(&mut self) -> Result<(), JournalError> {
        match &mut self.journal {
            Some(journal) => journal.reopen()?,
            None => {
                // As in `journal::recover`: what a killed collector has renamed here.
                let dir = self.shared.dir();
                self.storage.sync_dir(dir).map_err(JournalError::io("sync", dir))?;
                let seed = Seed::open_or_create(
                    &self.storage,
                    &self.shared.dir().join(SEED_FILE),
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
}
