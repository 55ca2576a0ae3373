//! Random records against a disk in memory: the view of every state equals the model, and a
//! state is offered exactly when it lies outside a span; over seals and over opening again.
#![allow(clippy::unwrap_used, reason = "tests")]

mod journal_support;

use std::path::Path;
use std::sync::Arc;

use journal_support::{Batch, Made, Random, VOLUME_BYTES, apply, identity, make, spec};
use proptest::prelude::*;
use tidemark_block::{ByteRange, StatusExtent};
use tidemark_collector::error::{NotOffered, ViewError};
use tidemark_collector::journal::{Journal, JournalConfig, JournalReader, Span};
use tidemark_collector::seed::Seed;
use tidemark_collector::storage::{MemoryStorage, RealStorage, Storage};
use tidemark_collector::view::View;
use tidemark_wire::body::Resync;
use tidemark_wire::{RecordKind, Seq, WallMicros};

const VOLUME_BYTES_MAX: u64 = 2 * VOLUME_BYTES;

#[derive(Clone, Debug)]
enum Op {
    Data { read_back: bool, at: u32, len: u32, pack: bool },
    Zeroes { trim: bool, at: u32, len: u32 },
    Flush,
    Gap,
    ResyncBegin { id: u8 },
    ResyncEnd { id: u8 },
    Resize { size: u32 },
    Commit,
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (any::<bool>(), any::<u32>(), 1u32..20_000, any::<bool>())
            .prop_map(|(read_back, at, len, pack)| Op::Data { read_back, at, len, pack }),
        2 => (any::<u32>(), 1u32..=262_144, any::<bool>())
            .prop_map(|(at, len, pack)| Op::Data { read_back: false, at, len, pack }),
        2 => (any::<bool>(), any::<u32>(), 1u32..10_000)
            .prop_map(|(trim, at, len)| Op::Zeroes { trim, at, len }),
        1 => (any::<bool>(), any::<u32>(), any::<u32>())
            .prop_map(|(trim, at, len)| Op::Zeroes { trim, at, len }),
        1 => Just(Op::Flush),
        1 => Just(Op::Gap),
        2 => (0u8..3).prop_map(|id| Op::ResyncBegin { id }),
        3 => (0u8..3).prop_map(|id| Op::ResyncEnd { id }),
        1 => any::<u32>().prop_map(|size| Op::Resize { size }),
        4 => Just(Op::Commit),
        1 => Just(Op::Reopen),
    ]
}

/// What is known of each state without the journal.
#[derive(Default)]
struct Model {
    image: Vec<u8>,
    states: Vec<(Seq, Vec<u8>, bool)>,
    span: Option<Option<u8>>,
}

impl Model {
    fn note(&mut self, op: &Op, made: &Made) {
        match op {
            Op::Gap => self.span = Some(None),
            Op::ResyncBegin { id } => self.span = Some(Some(*id)),
            Op::ResyncEnd { id } if self.span == Some(Some(*id)) => self.span = None,
            _ => {}
        }
        apply(&mut self.image, &made.bytes);
        self.states.push((made.seq, self.image.clone(), self.span.is_none()));
    }
}

/// The record of an op on a volume of `size` bytes; `None` for ops that are none.
fn record(op: &Op, seq: u64, size: u64, random: &mut Random) -> Option<Made> {
    let within = |at: u32, len: u32| {
        let at = u64::from(at) % size;
        (at, u64::from(len).clamp(1, size - at))
    };
    let resync = |id: u8| {
        let (total_bytes, sent_bytes) = (0.into(), 0.into());
        let body =
            Resync { id: [id + 1; 16], total_bytes, sent_bytes, initial: 0, reserved: [0; 7] };
        let mut bytes = Vec::new();
        zerocopy::IntoBytes::as_bytes(&body).clone_into(&mut bytes);
        bytes
    };
    let plain = |kind| make(&spec(kind, 0, 0, 0), seq, &[], false);
    Some(match *op {
        Op::Data { read_back, at, len, pack } => {
            let (at, len) = within(at, len);
            let base = random.below(256);
            let step = random.below(7);
            let payload: Vec<u8> =
                (0..len).map(|i| u8::try_from((base + i / 512 * step) % 256).unwrap()).collect();
            let kind = if read_back { RecordKind::ReadBack } else { RecordKind::Write };
            make(&spec(kind, at, len, payload.len()), seq, &payload, pack)
        }
        Op::Zeroes { trim, at, len } => {
            let (at, len) = within(at, len);
            let kind = if trim { RecordKind::Trim } else { RecordKind::WriteZeroes };
            make(&spec(kind, at, len, 0), seq, &[], false)
        }
        Op::Flush => plain(RecordKind::Flush),
        Op::Gap => plain(RecordKind::Gap),
        Op::ResyncBegin { id } => {
            let body = resync(id);
            make(&spec(RecordKind::ResyncBegin, 0, 0, body.len()), seq, &body, false)
        }
        Op::ResyncEnd { id } => {
            let body = resync(id);
            make(&spec(RecordKind::ResyncEnd, 0, 0, body.len()), seq, &body, false)
        }
        Op::Resize { size: new } => {
            let new = 4096 + u64::from(new) % (VOLUME_BYTES_MAX - 4096);
            let mut spec = spec(RecordKind::Resize, 0, new, 0);
            spec.aux = size;
            make(&spec, seq, &[], false)
        }
        Op::Commit | Op::Reopen => return None,
    })
}

fn open<S: Storage>(storage: &Arc<S>, dir: &Path) -> Journal<S> {
    let config = JournalConfig { segment_bytes_max: 48 * 1024 };
    let path = dir.join("journal");
    let (journal, report) =
        Journal::open_or_create(Arc::clone(storage), &path, identity(), config).unwrap();
    assert_eq!((report.cut, report.damaged), (None, Vec::new()));
    journal
}

fn run<S: Storage>(storage: &Arc<S>, dir: &Path, ops: &[Op]) {
    storage.create_dir(dir).unwrap();
    let mut journal = open(storage, dir);
    let mut model =
        Model { image: vec![0; usize::try_from(VOLUME_BYTES).unwrap()], ..Model::default() };
    let mut random = Random::new(ops.len() as u64);
    let (mut seq, mut prev) = (0, Seq(0));
    for op in ops {
        seq += 1 + random.below(3);
        let size = model.image.len() as u64;
        if let Some(made) = record(op, seq, size, &mut random) {
            Batch::of(prev, std::slice::from_ref(&made)).append_to(&mut journal).unwrap();
            model.note(op, &made);
            prev = made.seq;
        } else {
            assert_eq!(journal.commit().unwrap().durable, prev);
            if matches!(op, Op::Reopen) {
                drop(journal);
                journal = open(storage, dir);
            }
        }
    }
    journal.commit().unwrap();
    let seed = Seed::open_or_create(storage, &dir.join("seed.img"), VOLUME_BYTES).unwrap();
    let seed = Arc::new(seed);
    check_all(&journal.reader(), &seed, &model, &mut random);
    drop(journal);
    let journal = open(storage, dir);
    check_all(&journal.reader(), &seed, &model, &mut random);
}

fn check_all<S: Storage>(
    reader: &Arc<JournalReader<S>>,
    seed: &Arc<Seed<S>>,
    model: &Model,
    random: &mut Random,
) {
    let Some((last, _, _)) = model.states.last() else { return };
    assert_eq!(reader.durable(), *last);
    for (number, (seq, image, offered)) in model.states.iter().enumerate() {
        let opened = View::open(Arc::clone(reader), Arc::clone(seed), *seq);
        if *offered {
            check_view(&opened.unwrap(), image, random);
        } else {
            assert!(
                matches!(opened, Err(ViewError::NotOffered(NotOffered::InSpan { .. }))),
                "{seq} is in a span"
            );
        }
        let found = Some((*seq, WallMicros(seq.0 * 1000)));
        assert_eq!(reader.floor(*seq).unwrap(), found);
        assert_eq!(reader.seq_at_time(WallMicros(seq.0 * 1000)).unwrap(), found);
        let next = model.states.get(number + 1).map(|(next, _, _)| *next);
        if next.is_none_or(|next| next.0 > seq.0 + 1) {
            assert_eq!(reader.floor(Seq(seq.0 + 1)).unwrap(), found);
            assert_eq!(reader.seq_at_time(WallMicros(seq.0 * 1000 + 1)).unwrap(), found);
        }
    }
    let newest = *last;
    assert_eq!(reader.offerable(Seq(last.0 + 1)), Err(NotOffered::AfterEnd { newest }));
    assert_eq!(reader.floor(Seq(0)).unwrap(), None);
    check_spans(&reader.spans(), model);
    assert!(reader.pinned().is_empty(), "dropped views hold no pin");
}

fn check_spans(spans: &[Span], model: &Model) {
    for (seq, _, offered) in &model.states {
        let inside =
            spans.iter().any(|span| span.begin <= *seq && span.end.is_none_or(|end| *seq < end));
        assert_eq!(inside, !offered, "record {seq}, spans {spans:?}");
    }
}

fn check_view<S: Storage>(view: &View<S>, image: &[u8], random: &mut Random) {
    assert_eq!(view.size_bytes(), image.len() as u64);
    for _ in 0..4 {
        let at = random.below(image.len() as u64);
        let len = 1 + random.below((image.len() as u64 - at).min(70_000));
        let range = usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap();
        let mut part = vec![0xAA; range.len()];
        view.read_at(&mut part, at).unwrap();
        assert!(part == image[range], "{at}+{len} of the state at {} differs", view.at());
    }
    let mut whole = vec![0xAA; image.len()];
    view.read_at(&mut whole, 0).unwrap();
    assert!(whole == image, "the state at {} differs", view.at());
    let beyond = view.read_at(&mut [0; 2], image.len() as u64 - 1);
    assert!(matches!(beyond, Err(ViewError::OutOfRange { .. })));

    let mut at = 0;
    while at < image.len() {
        let mut extents: Vec<StatusExtent> = Vec::new();
        let range = ByteRange::between(at as u64, image.len() as u64).unwrap();
        view.status(range, 3, &mut extents).unwrap();
        assert!(!extents.is_empty() && extents.len() <= 3);
        for extent in extents {
            let end = at + usize::try_from(extent.len_bytes).unwrap();
            assert!(!extent.zero || image[at..end].iter().all(|byte| *byte == 0));
            at = end;
        }
    }
    assert_eq!(at, image.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_state_equals_the_model(ops in prop::collection::vec(op(), 1..60)) {
        run(&Arc::new(MemoryStorage::default()), Path::new("/volume"), &ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_state_equals_the_model_on_the_file_system(
        ops in prop::collection::vec(op(), 1..60)
    ) {
        let dir = tempfile::tempdir().unwrap();
        run(&Arc::new(RealStorage), &dir.path().join("volume"), &ops);
    }
}
