//! Listens at the collector: what it acknowledges, which points it lists, which records reach it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidemark_block::engine::Event;
use tidemark_collector::error::Severity;
use tidemark_collector::ingest::manifest::Manifest;
use tidemark_collector::ingest::observer::Observer;
use tidemark_collector::ingest::port::{Inbox, SessionPort};
use tidemark_collector::journal::{Mark, MarkBody};
use tidemark_wire::body::Bookmark;
use tidemark_wire::instruct::Instruct;
use tidemark_wire::session::{Refuse, Welcome};
use tidemark_wire::{PointId, RecordHeader, Seq, VolumeId};

use crate::model::Moment;

#[derive(Default)]
struct Seen {
    acknowledged: Seq,
    /// Points that were asked for, with the moment of that.
    asked: BTreeMap<[u8; 16], Moment>,
    /// Points that were listed.
    listed: BTreeMap<Seq, [u8; 16]>,
    /// The marks that a start has found.
    history: Option<BTreeMap<Seq, [u8; 16]>>,
    /// Records that were handed to the writer, with what tells one from another.
    records: BTreeMap<Seq, u64>,
    reused: Option<Seq>,
    /// The agent's machine was put back, and does not know which numbers it had used.
    forgets: bool,
    events: Vec<String>,
}

/// See the module's documentation. Outlives the collector.
#[derive(Default)]
pub(crate) struct Witness(Mutex<Seen>);

impl Witness {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn acknowledged(&self) -> Seq {
        self.lock().acknowledged
    }

    pub(crate) fn asked(&self, id: PointId, at: Moment) {
        self.lock().asked.insert(id.to_bytes(), at);
    }

    pub(crate) fn record(&self, header: &RecordHeader) {
        // Codec and length of what is stored may differ from time to time.
        let (place, len) = (header.offset_bytes.get(), header.len_bytes.get());
        let own = [header.time_us.get(), place, len, u64::from(header.kind)];
        let print = own.iter().fold(0_u64, |sum, part| sum.rotate_left(13) ^ part);
        let mut seen = self.lock();
        if *seen.records.entry(header.seq()).or_insert(print) != print {
            seen.reused.get_or_insert(header.seq());
        }
    }

    /// A number that two records had.
    pub(crate) fn reused(&self) -> Option<Seq> {
        self.lock().reused
    }

    pub(crate) fn records(&self) -> Vec<Seq> {
        self.lock().records.keys().copied().collect()
    }

    /// Points that were listed, with the moment at which they were asked for.
    pub(crate) fn points(&self) -> Vec<(Seq, Moment)> {
        let seen = self.lock();
        let asked = |id| seen.asked.get(id).copied().unwrap_or(0);
        seen.listed.iter().map(|(seq, id)| (*seq, asked(id))).collect()
    }

    /// A listed point that the last start of the collector has not found, though it has not gone
    /// into the seed.
    pub(crate) fn lost_point(&self, oldest: Seq) -> Option<Seq> {
        let mut seen = self.lock();
        let history = seen.history.take()?;
        let kept = seen.listed.range(oldest..);
        let lost = kept.filter(|(seq, id)| history.get(seq) != Some(id));
        lost.map(|(seq, _)| *seq).next()
    }

    /// The collector's disk is an older one from here on: what it had acknowledged and listed since
    /// is gone with the newer.
    pub(crate) fn put_back(&self) {
        let mut seen = self.lock();
        seen.acknowledged = Seq(0);
        seen.listed.clear();
    }

    /// The agent's machine is an older one from here on. Numbers of records that have not become
    /// durable at the collector may be used again: nobody can know that they were.
    pub(crate) fn agent_put_back(&self) {
        self.lock().forgets = true;
    }

    /// A session begins with the collector's word of what is durable.
    fn welcomed(&self, durable: Seq) {
        let mut seen = self.lock();
        if seen.forgets {
            seen.records.retain(|seq, _| *seq <= durable);
        }
    }

    /// What was reported since the last call.
    pub(crate) fn take_events(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().events)
    }
}

fn points(marks: &[Mark]) -> impl Iterator<Item = (Seq, [u8; 16])> {
    marks.iter().filter_map(|mark| match &mark.body {
        MarkBody::Bookmark(bookmark) => Some((mark.seq, bookmark.id.to_bytes())),
        _ => None,
    })
}

impl Observer for Witness {
    fn volume(&self, _manifest: &Manifest) {}

    fn seen(&self, _manifest: &Manifest) {}

    fn history(&self, _volume: VolumeId, marks: &[Mark]) {
        self.lock().history = Some(points(marks).collect());
    }

    fn marks(&self, _volume: VolumeId, marks: &[Mark]) {
        self.lock().listed.extend(points(marks));
    }

    fn trimmed(&self, _volume: VolumeId, _oldest: Seq) {}

    fn event(&self, severity: Severity, _volume: Option<&str>, message: String) {
        self.lock().events.push(format!("collector: {severity:?}: {message}"));
    }
}

/// The way back to a session, overheard.
pub(crate) struct Port {
    pub(crate) inbox: Inbox,
    pub(crate) rung: Event,
    witness: Arc<Witness>,
}

impl Port {
    pub(crate) fn new(witness: Arc<Witness>) -> Self {
        Self { inbox: Inbox::default(), rung: Event::new(), witness }
    }
}

impl SessionPort for Port {
    fn heard_at(&self) -> std::time::Duration {
        self.inbox.heard_at()
    }

    fn opened(&self, answer: Result<Welcome, Refuse>) {
        if let Ok(welcome) = &answer {
            self.witness.welcomed(welcome.durable);
        }
        self.inbox.opened(answer);
        self.rung.notify_all();
    }

    fn durable(&self, seq: Seq) {
        let mut seen = self.witness.lock();
        seen.acknowledged = seen.acknowledged.max(seq);
        drop(seen);
        self.inbox.durable(seq);
        self.rung.notify_all();
    }

    fn end(&self, refusal: Refuse) {
        self.inbox.end(refusal);
        self.rung.notify_all();
    }

    fn bookmark(&self, wanted: Bookmark) -> bool {
        let taken = self.inbox.bookmark(wanted);
        self.rung.notify_all();
        taken
    }

    fn instruct(&self, wanted: Instruct) -> bool {
        let taken = self.inbox.instruct(wanted);
        self.rung.notify_all();
        taken
    }
}
