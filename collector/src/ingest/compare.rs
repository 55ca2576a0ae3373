//! Answers an agent's questions about what differs.
//!
//! What enters: the hashes of some nodes of a volume. What leaves: for each node that differs from
//! what is durable here, the hashes of its leaves ([`tidemark_wire::compare`]). A few threads for
//! each session that asks do the work, as many as an agent has lanes, so that the disk is read at
//! several places and neither frames nor acknowledgements wait for it; their bounded queue holds
//! no more than the session lets in. It owns nothing that lasts: a crash
//! or the end of the session loses the questions, and the agent asks again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use tidemark_block::{ByteRange, StatusExtent};
use tidemark_wire::compare::{
    Compare, Differ, DifferNode, LEAF_BYTES, LeafHash, NODE_LEAVES, leaf_hash, node_hash,
    zero_leaves,
};

use super::port::Inbox;
use super::session::COMPARES_MAX;
use super::volume::{Held, Volume};
use crate::error::ViewError;
use crate::storage::Storage;
use crate::view::View;

/// Extents of a node that are looked at, at most; what lies behind them is read.
const EXTENTS_MAX: usize = 256;
/// Leaves that are read at a time: 1 MiB.
const READ_LEAVES: usize = 16;
/// Threads of one session.
const THREADS: usize = 8;
/// How often a state is opened that a merge passes at the same time.
const OPENS_MAX: usize = 8;
// A leaf fits in memory on every machine.
#[allow(clippy::cast_possible_truncation)]
const LEAF_USIZE: usize = LEAF_BYTES as usize;

/// The threads that compare for one session.
pub(super) struct Comparer {
    questions: Sender<Compare>,
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Comparer {
    /// Starts the threads; answers go to `inbox`.
    ///
    /// # Errors
    /// What the system says when it can't make any.
    pub(super) fn start<S: Storage>(
        volume: Arc<Volume<S>>,
        inbox: Arc<Inbox>,
    ) -> std::io::Result<Self> {
        let (questions, receiver) = bounded(COMPARES_MAX);
        let stopping = Arc::<AtomicBool>::default();
        let start = |_| {
            let (volume, inbox) = (Arc::clone(&volume), Arc::clone(&inbox));
            let (receiver, theirs) = (Receiver::clone(&receiver), Arc::clone(&stopping));
            std::thread::Builder::new()
                .name("compare".into())
                .spawn(move || serve(&volume, &inbox, &receiver, &theirs))
        };
        // One is enough to go on.
        let first = start(0)?;
        let others = (1..THREADS).filter_map(|at| start(at).ok());
        let threads = std::iter::once(first).chain(others).collect();
        Ok(Self { questions, stopping, threads })
    }

    /// Hands a question over. False when the threads have ended, or more wait than the session
    /// lets in.
    pub(super) fn ask(&self, question: Compare) -> bool {
        self.questions.try_send(question).is_ok()
    }

    /// Ends the threads; they let go of the volume after the leaves that they read just now.
    pub(super) fn stop(self) {
        // Relaxed: the flag orders nothing; the channel's end is what wakes the threads.
        self.stopping.store(true, Ordering::Relaxed);
        drop(self.questions);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread that compares has panicked");
            }
        }
    }
}

fn serve<S: Storage>(
    volume: &Volume<S>,
    inbox: &Inbox,
    questions: &Receiver<Compare>,
    stopping: &AtomicBool,
) {
    while let Ok(question) = questions.recv() {
        // Relaxed: see `stop`.
        let is_wanted = || !stopping.load(Ordering::Relaxed);
        let answered = match volume.held() {
            Ok(held) => answer(&volume.name(), &held, &question, &is_wanted),
            Err(error) => {
                tracing::warn!(volume = volume.name(), %error, "nothing can be compared");
                Some(unknown(&question))
            }
        };
        match answered {
            Some(differ) => inbox.differ(differ),
            None => return,
        }
    }
}

/// Answers a question from what is durable. A leaf that can't be read differs from whatever the
/// agent has, so that the agent sends it: that repairs it. `None` when `is_wanted` says no in
/// between. `name` is the volume's, for messages.
pub fn answer<S: Storage>(
    name: &str,
    held: &Held<S>,
    question: &Compare,
    is_wanted: &dyn Fn() -> bool,
) -> Option<Differ> {
    let opened = (0..OPENS_MAX).find_map(|_| {
        open(held, question)
            .inspect_err(|error| tracing::debug!(volume = name, %error, "opened again"))
            .ok()
    });
    let Some(view) = opened.map(View::read_once) else {
        tracing::warn!(volume = name, "what the journal holds can't be opened to compare it");
        return Some(unknown(question));
    };
    debug_assert!(view.at() >= question.min_seq, "the session has looked");
    let mut reader = LeafReader {
        name,
        view: &view,
        is_wanted,
        extents: Vec::with_capacity(EXTENTS_MAX),
        buffer: vec![0; READ_LEAVES * LEAF_USIZE],
        has_failed: false,
    };
    let mut nodes = Vec::new();
    for (index, theirs) in question.nodes.iter().enumerate() {
        let (start, len) = question.range.node(index);
        let node = ByteRange::new(start, len).expect("a node lies in a volume");
        let leaves = reader.hash_node(node)?;
        if !node_hash(&leaves).matches(*theirs) {
            nodes.push(DifferNode { index, leaves });
        }
    }
    Some(Differ { id: question.id, range: question.range, nodes })
}

/// What is held: the newest, also inside of a span, or the very state that the question names. One
/// that is not offered is not compared.
fn open<S: Storage>(held: &Held<S>, question: &Compare) -> Result<View<S>, ViewError> {
    if question.exact {
        View::open(Arc::clone(&held.reader), Arc::clone(&held.seed), question.min_seq)
    } else {
        View::open_inside_span(&held.reader, Arc::clone(&held.seed))
    }
}

/// Every leaf differs.
fn unknown(question: &Compare) -> Differ {
    let range = question.range;
    let node = |index| {
        let leaves = vec![LeafHash::UNKNOWN; range.leaf_count(index)];
        DifferNode { index, leaves }
    };
    Differ { id: question.id, range, nodes: (0..range.node_count()).map(node).collect() }
}

struct LeafReader<'a, S: Storage> {
    name: &'a str,
    view: &'a View<S>,
    is_wanted: &'a dyn Fn() -> bool,
    extents: Vec<StatusExtent>,
    buffer: Vec<u8>,
    /// A leaf could not be read, which was said.
    has_failed: bool,
}

impl<S: Storage> LeafReader<'_, S> {
    fn hash_node(&mut self, node: ByteRange) -> Option<Vec<LeafHash>> {
        self.extents.clear();
        if self.view.status(node, EXTENTS_MAX, &mut self.extents).is_err() {
            // Reading tells what is wrong, leaf by leaf.
            self.extents.clear();
        }
        let mut leaves = Vec::with_capacity(NODE_LEAVES);
        let mut at = node.start();
        while at < node.end() {
            if !(self.is_wanted)() {
                return None;
            }
            let left = node.end() - at;
            let zeroes = self.extents.iter().map(|extent| (extent.len_bytes, extent.zero));
            let zero_len = zero_leaves(zeroes, at - node.start(), left);
            let end = at + if zero_len > 0 { zero_len } else { left.min(self.buffer_bytes()) };
            if zero_len > 0 {
                leaves.extend(leaves_of(at, end).map(|(_, len)| LeafHash::of_zeroes(len as u64)));
            } else {
                self.hash_data(at, end, &mut leaves);
            }
            at = end;
        }
        Some(leaves)
    }

    fn buffer_bytes(&self) -> u64 {
        self.buffer.len() as u64
    }

    fn hash_data(&mut self, start: u64, end: u64, leaves: &mut Vec<LeafHash>) {
        let len = usize::try_from(end - start).unwrap_or(usize::MAX);
        if self.view.read_at(&mut self.buffer[..len], start).is_ok() {
            return leaves.extend(self.buffer[..len].chunks(LEAF_USIZE).map(leaf_hash));
        }
        for (at, len) in leaves_of(start, end) {
            let bytes = &mut self.buffer[..len];
            let hash = match self.view.read_at(bytes, at) {
                Ok(()) => leaf_hash(bytes),
                Err(error) => {
                    self.say(&error);
                    LeafHash::UNKNOWN
                }
            };
            leaves.push(hash);
        }
    }

    /// Says the first failure of a question; the others are likely of the same sort.
    fn say(&mut self, error: &ViewError) {
        if !std::mem::replace(&mut self.has_failed, true) {
            let volume = self.name;
            tracing::warn!(volume, %error, "can't be compared; the agent is asked to send it");
        }
    }
}

/// Places and lengths of the leaves between two places, the first of them a leaf's first byte.
fn leaves_of(start: u64, end: u64) -> impl Iterator<Item = (u64, usize)> {
    (start..end).step_by(LEAF_USIZE).map(move |at| {
        let len = usize::try_from(end - at).unwrap_or(usize::MAX);
        (at, len.min(LEAF_USIZE))
    })
}
