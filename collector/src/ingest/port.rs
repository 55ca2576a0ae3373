//! The way from a volume's writer back to the session that feeds it.
//!
//! What enters: the writer's answers, from its thread, and those of the comparing thread. What
//! leaves: the same, taken by the thread that drives the session. Acknowledgements that were not
//! yet taken are replaced by the newest one, and the number of what waits of each other sort is
//! limited, so the writer never waits for a slow agent and the port is bounded.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use tidemark_wire::Seq;
use tidemark_wire::body::Bookmark;
use tidemark_wire::compare::Differ;
use tidemark_wire::instruct::Instruct;
use tidemark_wire::session::{Refuse, Welcome};

/// Recovery points that may wait to be asked for on one session.
pub const BOOKMARKS_MAX: usize = 16;

/// Wishes of people that may wait for one session.
pub const INSTRUCTIONS_MAX: usize = 4;

/// How a volume answers a session.
pub trait SessionPort: Send + Sync + 'static {
    /// Answer to the opening.
    fn opened(&self, answer: Result<Welcome, Refuse>);
    /// Everything up to `seq` is on stable storage.
    fn durable(&self, seq: Seq);
    /// The session is over.
    fn end(&self, refusal: Refuse);
    /// Somebody wants a recovery point; false when too many wait.
    fn bookmark(&self, wanted: Bookmark) -> bool;
    /// A person wants something of the agent; false when too many wishes wait.
    fn instruct(&self, wanted: Instruct) -> bool;
    /// When the agent was heard last (monotonic).
    fn heard_at(&self) -> Duration;
}

/// What has come in for a session.
#[derive(Debug, Default)]
pub struct Pending {
    /// See [`SessionPort::opened`].
    pub opened: Option<Result<Welcome, Refuse>>,
    /// See [`SessionPort::durable`].
    pub durable: Option<Seq>,
    /// See [`SessionPort::bookmark`].
    pub bookmarks: VecDeque<Bookmark>,
    /// See [`SessionPort::instruct`].
    pub instructions: VecDeque<Instruct>,
    /// Answers of the comparing thread; the session bounds the questions.
    pub differs: Vec<Differ>,
    /// See [`SessionPort::end`].
    pub end: Option<Refuse>,
}

/// A port with a bell.
pub struct Inbox {
    pending: Mutex<Pending>,
    heard_at_micros: AtomicU64,
    ring: Sender<()>,
    bell: Receiver<()>,
}

impl Default for Inbox {
    fn default() -> Self {
        let (ring, bell) = bounded(1);
        Self { pending: Mutex::default(), heard_at_micros: AtomicU64::new(0), ring, bell }
    }
}

impl Inbox {
    /// Receives when something has come in since [`Inbox::take`].
    #[must_use]
    pub fn bell(&self) -> &Receiver<()> {
        &self.bell
    }

    /// Takes what has come in.
    #[must_use]
    pub fn take(&self) -> Pending {
        std::mem::take(&mut *self.lock())
    }

    /// A question of a comparison is answered.
    pub fn differ(&self, differ: Differ) {
        self.put(|pending| pending.differs.push(differ));
    }

    /// A frame of the agent has come.
    pub fn heard(&self, now: Duration) {
        let micros = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        // Relaxed: the time orders nothing else.
        self.heard_at_micros.store(micros, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.lock());
        // A full bell rings already.
        let _ = self.ring.try_send(());
    }
}

impl SessionPort for Inbox {
    fn opened(&self, answer: Result<Welcome, Refuse>) {
        self.put(|pending| pending.opened = Some(answer));
    }

    fn durable(&self, seq: Seq) {
        self.put(|pending| pending.durable = Some(seq));
    }

    fn end(&self, refusal: Refuse) {
        self.put(|pending| {
            pending.end.get_or_insert(refusal);
        });
    }

    fn bookmark(&self, wanted: Bookmark) -> bool {
        let mut taken = false;
        self.put(|pending| {
            if pending.bookmarks.len() < BOOKMARKS_MAX {
                pending.bookmarks.push_back(wanted);
                taken = true;
            }
        });
        taken
    }

    fn instruct(&self, wanted: Instruct) -> bool {
        let mut taken = false;
        self.put(|pending| {
            if pending.instructions.len() < INSTRUCTIONS_MAX {
                pending.instructions.push_back(wanted);
                taken = true;
            }
        });
        taken
    }

    fn heard_at(&self) -> Duration {
        // Relaxed: as in `heard`.
        Duration::from_micros(self.heard_at_micros.load(Ordering::Relaxed))
    }
}
