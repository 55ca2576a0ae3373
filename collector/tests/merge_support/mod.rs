//! A volume with journal and seed on some storage, and a model of each of its states.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use tidemark_collector::error::{JournalError, NotOffered, ViewError};
use tidemark_collector::ingest::volume::Held;
use tidemark_collector::journal::{Journal, JournalConfig};
use tidemark_collector::merge::{MergeLimits, Step, merge_once};
use tidemark_collector::seed::{Merged, Seed, merge_into_seed};
use tidemark_collector::storage::Storage;
use tidemark_collector::view::View;
use tidemark_wire::body::Resync;
use tidemark_wire::record::RecordSpec;
use tidemark_wire::{RecordKind, Seq, WallMicros};
use zerocopy::IntoBytes;

use crate::journal_support::{Batch, Made, Random, VOLUME_BYTES, apply, identity, make, spec};

pub(crate) const VOLUME_BYTES_MAX: u64 = 3 * VOLUME_BYTES;
const CONFIG: JournalConfig = JournalConfig { segment_bytes_max: 24 * 1024 };

/// A state that the volume has been in.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) seq: Seq,
    pub(crate) bytes: Vec<u8>,
    /// Bytes that the protected machine could not read.
    pub(crate) lost: Vec<bool>,
    pub(crate) offered: bool,
}

/// What is known without the collector.
#[derive(Clone)]
pub(crate) struct Model {
    bytes: Vec<u8>,
    lost: Vec<bool>,
    in_span: bool,
    pub(crate) states: Vec<State>,
}

impl Model {
    pub(crate) fn new() -> Self {
        let len = usize::try_from(VOLUME_BYTES).unwrap();
        Self { bytes: vec![0; len], lost: vec![false; len], in_span: false, states: Vec::new() }
    }

    pub(crate) fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn note(&mut self, spec: &RecordSpec, made: &Made) {
        apply(&mut self.bytes, &made.bytes);
        self.lost.resize(self.bytes.len(), false);
        match spec.kind {
            RecordKind::Gap | RecordKind::ResyncBegin => self.in_span = true,
            RecordKind::ResyncEnd => self.in_span = false,
            kind if kind.changes_bytes() || kind == RecordKind::Unreadable => {
                let start = usize::try_from(spec.offset_bytes).unwrap();
                let end = start + usize::try_from(spec.len_bytes).unwrap();
                self.lost[start..end].fill(kind == RecordKind::Unreadable);
            }
            _ => {}
        }
        self.states.push(State {
            seq: made.seq,
            bytes: self.bytes.clone(),
            lost: self.lost.clone(),
            offered: !self.in_span,
        });
    }

    pub(crate) fn last(&self) -> Seq {
        self.states.last().map_or(Seq(0), |state| state.seq)
    }
}

/// One thing that happens to the volume.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Data { at: u32, len: u32, pack: bool },
    Zeroes { at: u32, len: u32 },
    Unreadable { at: u32, len: u32 },
    Resize { size: u32 },
    Resync { records: u8 },
    Merge { percent: u8 },
    Reopen,
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => (any::<u32>(), 1u32..20_000, any::<bool>())
            .prop_map(|(at, len, pack)| Op::Data { at, len, pack }),
        2 => (any::<u32>(), 1u32..10_000).prop_map(|(at, len)| Op::Zeroes { at, len }),
        1 => (any::<u32>(), any::<u32>()).prop_map(|(at, len)| Op::Zeroes { at, len }),
        1 => (any::<u32>(), 1u32..9_000).prop_map(|(at, len)| Op::Unreadable { at, len }),
        1 => (any::<u32>(), any::<u32>()).prop_map(|(at, len)| Op::Unreadable { at, len }),
        1 => any::<u32>().prop_map(|size| Op::Resize { size }),
        1 => (0u8..6).prop_map(|records| Op::Resync { records }),
        2 => (0u8..=100).prop_map(|percent| Op::Merge { percent }),
        1 => Just(Op::Reopen),
    ]
}

/// The directory of a volume, opened as the collector does.
pub(crate) struct World<S: Storage> {
    pub(crate) storage: Arc<S>,
    pub(crate) dir: PathBuf,
    pub(crate) journal: Journal<S>,
    pub(crate) held: Held<S>,
}

impl<S: Storage> World<S> {
    pub(crate) fn open(storage: &Arc<S>, dir: &Path) -> Result<Self, JournalError> {
        storage.create_dir(dir).unwrap();
        let seed = Seed::open_or_create(storage, &dir.join("seed.img"), VOLUME_BYTES)?;
        let (journal, report) = Journal::open_above(
            Arc::clone(storage),
            &dir.join("journal"),
            identity(),
            CONFIG,
            seed.base(),
        )?;
        assert_eq!(report.damaged, Vec::new());
        let held = Held { reader: journal.reader(), seed: Arc::new(seed) };
        let world = Self { storage: Arc::clone(storage), dir: dir.to_owned(), journal, held };
        world.complete()?;
        Ok(world)
    }

    fn complete(&self) -> Result<Merged, JournalError> {
        let Some(to) = self.held.seed.merging_to() else { return Ok(Merged::default()) };
        let mut pace = |_| ControlFlow::Continue(());
        let merged = merge_into_seed(&self.held.reader, &self.held.seed, to, &mut pace)?;
        assert_eq!(merged.to, Some(to));
        Ok(merged)
    }

    pub(crate) fn send(&mut self, prev: Seq, made: &Made) -> Result<(), JournalError> {
        Batch::of(prev, std::slice::from_ref(made)).append_to(&mut self.journal)?;
        self.journal.commit().map(|_| ())
    }

    /// Merges everything captured before a time, step by step.
    pub(crate) fn merge(&self, older_than: WallMicros) -> Result<Vec<Step>, JournalError> {
        let limits = MergeLimits { older_than, journal_bytes_max: None };
        let mut steps = Vec::new();
        loop {
            let mut pace = |_| ControlFlow::Continue(());
            let step = merge_once(&self.held, &limits, &mut pace)?;
            if step.merged.to.is_none() {
                return Ok(steps);
            }
            steps.push(step);
        }
    }

    pub(crate) fn view(&self, at: Seq) -> Result<View<S>, ViewError> {
        View::open(Arc::clone(&self.held.reader), Arc::clone(&self.held.seed), at)
    }

    /// Does one thing, to the volume and to the model; the model only hears of what succeeded.
    pub(crate) fn apply(
        &mut self,
        op: &Op,
        model: &mut Model,
        random: &mut Random,
    ) -> Result<(), JournalError> {
        match op {
            Op::Merge { percent } => {
                let newest = model.last().0 * 1000;
                self.merge(WallMicros(newest / 100 * u64::from(*percent))).map(|_| ())
            }
            Op::Reopen => {
                *self = Self::open(&self.storage, &self.dir)?;
                Ok(())
            }
            Op::Resync { records } => {
                let body = Resync {
                    id: [7; 16],
                    total_bytes: 0.into(),
                    sent_bytes: 0.into(),
                    initial: 0,
                    reserved: [0; 7],
                };
                let body = body.as_bytes();
                let mark = |kind| spec(kind, 0, 0, body.len());
                self.record(&mark(RecordKind::ResyncBegin), body, false, model, random)?;
                for _ in 0..*records {
                    let at = u32::try_from(random.below(1 << 30)).unwrap();
                    self.apply(&Op::Data { at, len: 9000, pack: false }, model, random)?;
                }
                self.record(&mark(RecordKind::ResyncEnd), body, false, model, random)
            }
            Op::Resize { size } => {
                let new = 4096 + u64::from(*size) % (VOLUME_BYTES_MAX - 4096);
                let mut spec = spec(RecordKind::Resize, 0, new, 0);
                spec.aux = model.size();
                self.record(&spec, &[], false, model, random)
            }
            Op::Data { at, len, pack } => {
                let (at, len) = within(*at, *len, model);
                let (base, step) = (random.below(256), random.below(7));
                let byte = |i| u8::try_from((base + i / 512 * step) % 256).unwrap();
                let payload: Vec<u8> = (0..len).map(byte).collect();
                let spec = spec(RecordKind::Write, at, len, payload.len());
                self.record(&spec, &payload, *pack, model, random)
            }
            Op::Zeroes { at, len } => {
                let (at, len) = within(*at, *len, model);
                self.record(&spec(RecordKind::Trim, at, len, 0), &[], false, model, random)
            }
            Op::Unreadable { at, len } => {
                let (at, len) = within(*at, *len, model);
                let mut spec = spec(RecordKind::Unreadable, at, len, 0);
                spec.aux = 5;
                self.record(&spec, &[], false, model, random)
            }
        }
    }

    fn record(
        &mut self,
        spec: &RecordSpec,
        payload: &[u8],
        pack: bool,
        model: &mut Model,
        random: &mut Random,
    ) -> Result<(), JournalError> {
        let prev = model.last();
        let made = make(spec, prev.0 + 1 + random.below(3), payload, pack);
        self.send(prev, &made)?;
        model.note(spec, &made);
        Ok(())
    }

    /// Every state is what the model says, or is no longer kept. Reads of a whole state where
    /// nothing was unreadable, else of each stretch.
    pub(crate) fn check(&self, model: &Model) {
        let reader = &self.held.reader;
        assert_eq!(reader.durable(), model.last());
        let oldest = reader.first_seq();
        for state in &model.states {
            let opened = self.view(state.seq);
            if oldest.is_some_and(|oldest| state.seq < oldest) {
                let error = opened.err();
                assert!(
                    matches!(
                        error,
                        Some(ViewError::NotOffered(NotOffered::BeforeStart { oldest: found }))
                            if Some(found) == oldest
                    ),
                    "{}: {error:?}",
                    state.seq
                );
                continue;
            }
            if !state.offered {
                let error = opened.err();
                assert!(
                    matches!(error, Some(ViewError::NotOffered(NotOffered::InSpan { .. }))),
                    "{} is in a span: {error:?}",
                    state.seq
                );
                continue;
            }
            check_view(&opened.unwrap(), state);
            let found = Some((state.seq, WallMicros(state.seq.0 * 1000)));
            assert_eq!(reader.floor(state.seq).unwrap(), found);
            assert_eq!(reader.seq_at_time(WallMicros(state.seq.0 * 1000)).unwrap(), found);
        }
        // The newest state that can be opened never goes.
        if let Some(newest) = model.states.iter().rev().find(|state| state.offered) {
            assert!(self.view(newest.seq).is_ok(), "{} has gone", newest.seq);
        }
    }
}

fn within(at: u32, len: u32, model: &Model) -> (u64, u64) {
    let at = u64::from(at) % model.size();
    (at, u64::from(len).clamp(1, model.size() - at))
}

pub(crate) fn check_view<S: Storage>(view: &View<S>, state: &State) {
    assert_eq!(view.size_bytes(), state.bytes.len() as u64);
    let mut at = 0;
    for run in state.lost.chunk_by(|a, b| a == b) {
        let end = at + run.len();
        let mut bytes = vec![0xAA; run.len()];
        let read = view.read_at(&mut bytes, at as u64);
        if run[0] {
            assert!(
                matches!(read, Err(ViewError::Unreadable { errno: 5, .. })),
                "{at}..{end} of {}: {read:?}",
                state.seq
            );
        } else {
            read.unwrap_or_else(|error| panic!("{at}..{end} of {}: {error}", state.seq));
            assert!(bytes == state.bytes[at..end], "{at}..{end} of {} differs", state.seq);
        }
        at = end;
    }
    check_status(view, state);
}

/// What is said to be a hole is zero and readable.
fn check_status<S: Storage>(view: &View<S>, state: &State) {
    let (mut at, mut out) = (0, Vec::new());
    while at < state.bytes.len() {
        let range =
            tidemark_block::ByteRange::between(at as u64, state.bytes.len() as u64).unwrap();
        out.clear();
        view.status(range, 64, &mut out).unwrap();
        for extent in &out {
            let end = at + usize::try_from(extent.len_bytes).unwrap();
            let zero = state.bytes[at..end].iter().all(|byte| *byte == 0)
                && state.lost[at..end].iter().all(|lost| !lost);
            assert!(!extent.zero || zero, "{at}..{end} of {} is no hole", state.seq);
            at = end;
        }
    }
}
