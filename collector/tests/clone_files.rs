//! A clone's files against a model: right bytes, space counted, and after a kill or a power cut
//! at every call what may be lost and nothing else.
#![allow(clippy::unwrap_used, reason = "tests")]

mod journal_support;

use std::path::Path;
use std::sync::Arc;

use journal_support::{Batch, Random, identity, make, spec};
use tidemark_block::{ByteRange, StatusExtent};
use tidemark_collector::export::DiskError;
use tidemark_collector::export::overlay::{BootId, Identity, Overlay, Place};
use tidemark_collector::journal::{Journal, JournalConfig, JournalIdentity};
use tidemark_collector::seed::Seed;
use tidemark_collector::storage::{Fault, MemoryStorage, Storage};
use tidemark_collector::view::View;
use tidemark_wire::{RecordKind, Seq};

/// Not a whole number of blocks.
const SIZE: usize = 16 * 4096 + 1000;
const BLOCK: usize = 4096;
/// Room for all blocks.
const ROOMY: u64 = 1 << 20;
const BOOT: BootId = [1; 16];
const NEXT_BOOT: BootId = [2; 16];
const DIR: &str = "/data/clones/7";

/// The state below: half of it random bytes.
fn base_image() -> Vec<u8> {
    let mut random = Random::new(5);
    let mut image = vec![0; SIZE];
    image[3000..40_000].fill_with(|| u8::try_from(1 + random.below(255)).unwrap());
    image
}

/// The state below, in files of its own, which no crash touches.
fn base_view() -> View<MemoryStorage> {
    let storage = Arc::new(MemoryStorage::default());
    let (dir, size_bytes) = (Path::new("/volume"), SIZE as u64);
    storage.create_dir(dir).unwrap();
    let seed = Seed::open_or_create(&storage, &dir.join("seed.img"), size_bytes).unwrap();
    let (mut journal, _) = Journal::open_or_create(
        storage,
        &dir.join("journal"),
        JournalIdentity { size_bytes, ..identity() },
        JournalConfig::default(),
    )
    .unwrap();
    let image = base_image();
    let payload = &image[3000..40_000];
    let write = spec(RecordKind::Write, 3000, payload.len() as u64, payload.len());
    Batch::of(Seq(0), &[make(&write, 1, payload, false)]).append_to(&mut journal).unwrap();
    journal.commit().unwrap();
    View::open(journal.reader(), Arc::new(seed), Seq(1)).unwrap()
}

fn place(storage: &MemoryStorage, space_bytes: u64, boot: BootId) -> Place<MemoryStorage> {
    Place {
        storage: Arc::new(storage.clone()),
        dir: DIR.into(),
        identity: Identity {
            clone: 7,
            volume: identity().volume,
            seq: Seq(1),
            size_bytes: SIZE as u64,
        },
        space_bytes,
        boot,
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write { at: usize, bytes: Vec<u8> },
    Zero { at: usize, len: usize },
    Trim { at: usize, len: usize },
    Flush,
}

fn ops(seed: u64, count: usize) -> Vec<Op> {
    let mut random = Random::new(seed);
    let mut below = |bound: usize| usize::try_from(random.below(bound as u64)).unwrap();
    let mut ops = Vec::new();
    for _ in 0..count {
        let kind = below(8);
        let on_blocks = below(2) == 0;
        let mut at = below(SIZE - 1);
        let mut len = 1 + below((SIZE - at).min(13_000));
        if on_blocks {
            at -= at % BLOCK;
            len = len.next_multiple_of(BLOCK).min(SIZE - at);
        }
        ops.push(match kind {
            0..=3 => {
                let fill = u8::try_from(below(256)).unwrap();
                Op::Write { at, bytes: vec![fill; len] }
            }
            4 => Op::Zero { at, len },
            5 => Op::Trim { at, len },
            _ => Op::Flush,
        });
    }
    ops
}

fn range(at: usize, len: usize) -> ByteRange {
    ByteRange::new(at as u64, len as u64).unwrap()
}

fn run(overlay: &Overlay<MemoryStorage>, op: &Op) -> Result<(), DiskError> {
    match op {
        Op::Write { at, bytes } => overlay.write_at(bytes, *at as u64),
        Op::Zero { at, len } => overlay.write_zeroes(range(*at, *len)),
        Op::Trim { at, len } => overlay.trim(range(*at, *len)),
        Op::Flush => overlay.flush(),
    }
}

/// What each byte was since the last flush, as a set of 256 bits, and what it is now.
#[derive(Clone)]
struct Model {
    now: Vec<u8>,
    seen: Vec<[u64; 4]>,
}

fn only(byte: u8) -> [u64; 4] {
    let mut set = [0; 4];
    set[usize::from(byte / 64)] |= 1 << (byte % 64);
    set
}

impl Model {
    fn new() -> Self {
        let now = base_image();
        Self { seen: now.iter().map(|byte| only(*byte)).collect(), now }
    }

    fn apply(&mut self, op: &Op) {
        let (at, bytes) = match op {
            Op::Write { at, bytes } => (*at, bytes.clone()),
            Op::Zero { at, len } => (*at, vec![0; *len]),
            Op::Trim { at, len } => {
                let start = at.next_multiple_of(BLOCK);
                let end = if at + len == SIZE { SIZE } else { (at + len) / BLOCK * BLOCK };
                (start, vec![0; end.saturating_sub(start)])
            }
            Op::Flush => return,
        };
        for (place, byte) in (at..).zip(&bytes) {
            self.now[place] = *byte;
            self.seen[place][usize::from(byte / 64)] |= 1 << (byte % 64);
        }
    }

    fn flushed(&mut self) {
        self.seen = self.now.iter().map(|byte| only(*byte)).collect();
    }

    fn check_seen(&self, image: &[u8], why: &str) {
        for (place, byte) in image.iter().enumerate() {
            let seen = self.seen[place][usize::from(byte / 64)] >> (byte % 64) & 1 == 1;
            assert!(seen, "{why}: byte {place} is {byte}, which it never was since the flush");
        }
    }
}

fn image(overlay: &Overlay<MemoryStorage>) -> Vec<u8> {
    let mut bytes = vec![0xAA; SIZE];
    overlay.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// Runs until an op fails; what was acknowledged, with the failed one as seen, and that op.
fn run_until_failure(overlay: &Overlay<MemoryStorage>, ops: &[Op]) -> (Model, Option<Model>) {
    let mut model = Model::new();
    for op in ops {
        let before = model.clone();
        model.apply(op);
        match run(overlay, op) {
            Ok(()) if matches!(op, Op::Flush) => model.flushed(),
            Ok(()) => {}
            Err(_) => return (model, Some(before)),
        }
    }
    (model, None)
}

#[test]
fn a_clone_reads_as_what_was_written_over_the_state() {
    for seed in 0..30 {
        let storage = MemoryStorage::default();
        let overlay = Overlay::create(place(&storage, ROOMY, BOOT), base_view()).unwrap();
        assert!(!overlay.is_changed() && image(&overlay) == base_image());
        let mut model = Model::new();
        for op in ops(seed, 60) {
            run(&overlay, &op).unwrap();
            model.apply(&op);
            assert!(image(&overlay) == model.now, "seed {seed} after {op:?}");
        }
        check_status(&overlay, &model.now);
        drop(overlay);
        let again = Overlay::open(place(&storage, ROOMY, BOOT), base_view()).unwrap();
        assert!(image(&again) == model.now, "seed {seed} opened again");
        again.flush().unwrap();
        drop(again);
        let again = Overlay::open(place(&storage.after_crash(1), ROOMY, NEXT_BOOT), base_view());
        assert!(image(&again.unwrap()) == model.now, "seed {seed} flushed, and a power cut");
    }
}

fn check_status(overlay: &Overlay<MemoryStorage>, now: &[u8]) {
    let mut at = 0;
    while at < SIZE {
        let mut extents: Vec<StatusExtent> = Vec::new();
        overlay.status(range(at, SIZE - at), 2, &mut extents).unwrap();
        assert!(!extents.is_empty() && extents.len() <= 2);
        for extent in extents {
            let end = at + usize::try_from(extent.len_bytes).unwrap();
            assert!(!extent.zero || now[at..end].iter().all(|byte| *byte == 0));
            at = end;
        }
    }
    assert_eq!(at, SIZE);
}

#[test]
fn a_kill_at_any_call_loses_nothing_that_was_answered() {
    for seed in 0..4 {
        let ops = ops(seed + 100, 25);
        for call in 0.. {
            let storage = MemoryStorage::default();
            let overlay = Overlay::create(place(&storage, ROOMY, BOOT), base_view()).unwrap();
            storage.fail_after(call, Fault::Crash);
            let (model, failed) = run_until_failure(&overlay, &ops);
            drop(overlay);
            let Some(before) = failed else { break };
            let left = storage.after_kill();
            let again = Overlay::open(place(&left, ROOMY, BOOT), base_view()).unwrap();
            for (place, byte) in image(&again).iter().enumerate() {
                let (old, new) = (before.now[place], model.now[place]);
                assert!(*byte == old || *byte == new, "seed {seed}, call {call}, byte {place}");
            }
        }
    }
}

#[test]
fn a_failed_call_loses_at_most_what_was_not_flushed() {
    for seed in 0..4 {
        let ops = ops(seed + 100, 25);
        for call in 0.. {
            let storage = MemoryStorage::default();
            let overlay = Overlay::create(place(&storage, ROOMY, BOOT), base_view()).unwrap();
            storage.fail_after(call, Fault::Once);
            let (model, failed) = run_until_failure(&overlay, &ops);
            drop(overlay);
            if failed.is_none() {
                break;
            }
            let again = Overlay::open(place(&storage, ROOMY, BOOT), base_view()).unwrap();
            model.check_seen(&image(&again), &format!("seed {seed}, call {call}"));
        }
    }
}

#[test]
fn a_power_cut_at_any_call_loses_what_a_disk_may_lose() {
    for seed in 0..6 {
        let ops = ops(seed + 200, 25);
        for call in 0.. {
            let storage = MemoryStorage::default();
            let overlay = Overlay::create(place(&storage, ROOMY, BOOT), base_view()).unwrap();
            storage.fail_after(call, Fault::Crash);
            let (model, failed) = run_until_failure(&overlay, &ops);
            drop(overlay);
            for dice in 0..3 {
                let left = storage.after_crash(dice);
                let again = Overlay::open(place(&left, ROOMY, NEXT_BOOT), base_view()).unwrap();
                let found = image(&again);
                model.check_seen(&found, &format!("seed {seed}, call {call}, dice {dice}"));
                again.write_at(&[9; 10], 5).unwrap();
                again.flush().unwrap();
                drop(again);
                let last = Overlay::open(place(&left.after_crash(dice), ROOMY, BOOT), base_view());
                let last = image(&last.unwrap());
                assert!(last[15..] == found[15..] && last[5..15] == [9; 10]);
            }
            if failed.is_none() {
                break;
            }
        }
    }
}

#[test]
fn space_is_counted_refused_and_given_back() {
    let storage = MemoryStorage::default();
    let overlay = Overlay::create(place(&storage, 3 * BLOCK as u64, BOOT), base_view()).unwrap();
    overlay.write_at(&[1; 2 * BLOCK], 0).unwrap();
    overlay.write_at(&[2; 10], 3 * BLOCK as u64).unwrap();
    assert_eq!(overlay.used_bytes(), 3 * BLOCK as u64);
    let refused = |at: usize| match overlay.write_at(&[3; 10], at as u64) {
        Err(DiskError::NoSpace { message, first }) => (message, first),
        other => panic!("{other:?}"),
    };
    let (message, first) = refused(5 * BLOCK);
    assert!(first && message.contains("clone 7 holds 12288 bytes"), "{message}");
    assert!(!refused(5 * BLOCK).1, "told once");
    overlay.write_at(&[4; 100], 50).unwrap();
    // A refused write has changed nothing, not even in blocks that had room.
    assert!(overlay.write_at(&vec![5; 3 * BLOCK], 0).is_err());
    let mut model = Model::new();
    for (at, bytes) in [(0, vec![1; 2 * BLOCK]), (3 * BLOCK, vec![2; 10]), (50, vec![4; 100])] {
        model.apply(&Op::Write { at, bytes });
    }
    assert!(image(&overlay) == model.now);

    overlay.trim(range(0, BLOCK)).unwrap();
    assert_eq!(overlay.used_bytes(), 2 * BLOCK as u64);
    overlay.write_at(&[3; 10], 5 * BLOCK as u64).unwrap();
    assert!(refused(6 * BLOCK).1, "there was room in between");
    overlay.write_zeroes(range(0, SIZE)).unwrap();
    assert_eq!(overlay.used_bytes(), 0);
    assert!(overlay.is_changed() && image(&overlay) == vec![0; SIZE]);
}

#[test]
fn after_a_failed_sync_nothing_more_is_believed() {
    let storage = MemoryStorage::default();
    let overlay = Overlay::create(place(&storage, ROOMY, BOOT), base_view()).unwrap();
    overlay.write_at(&[1; BLOCK], 0).unwrap();
    overlay.flush().unwrap();
    overlay.write_at(&[2; BLOCK], BLOCK as u64).unwrap();
    storage.fail_after(0, Fault::Once);
    assert!(matches!(overlay.flush(), Err(DiskError::Io { operation: "sync", .. })));
    for failed in [overlay.flush(), overlay.write_at(&[3], 0), overlay.trim(range(0, BLOCK))] {
        assert!(matches!(failed, Err(DiskError::Failed { .. })), "{failed:?}");
    }
    drop(overlay);
    // In the same boot, too, the next process goes back to the last flush.
    let again = Overlay::open(place(&storage, ROOMY, BOOT), base_view()).unwrap();
    let mut model = Model::new();
    model.apply(&Op::Write { at: 0, bytes: vec![1; BLOCK] });
    assert!(image(&again) == model.now);
}

#[test]
fn damaged_and_foreign_files_are_refused() {
    let storage = MemoryStorage::default();
    let overlay = Overlay::create(place(&storage, ROOMY, BOOT), base_view()).unwrap();
    for block in 0..3u64 {
        overlay.write_at(&[1; BLOCK], block * BLOCK as u64).unwrap();
        overlay.flush().unwrap();
    }
    drop(overlay);
    let map = Path::new(DIR).join("overlay.map");
    let open = |place: Place<MemoryStorage>| {
        Overlay::open(place, base_view()).map(|_| ()).map_err(|error| error.to_string())
    };
    let mut other = place(&storage, ROOMY, NEXT_BOOT);
    other.identity.clone = 8;
    assert!(open(other).unwrap_err().contains("belongs to clone 7"));
    // The first of three flushes rots: that is no torn write.
    storage.edit(&map, |bytes| bytes[4096 + 100] ^= 1).unwrap();
    let text = open(place(&storage, ROOMY, NEXT_BOOT)).unwrap_err();
    assert!(text.contains("overlay.map of a clone is damaged: entry 0 does not hold"), "{text}");
    storage.edit(&map, |bytes| bytes[8] = 9).unwrap();
    let text = open(place(&storage, ROOMY, NEXT_BOOT)).unwrap_err();
    assert!(text.contains("version 9"), "{text}");
    storage.edit(&map, |bytes| bytes.truncate(10)).unwrap();
    open(place(&storage, ROOMY, NEXT_BOOT)).unwrap_err();
    // In the same boot the other map is whole.
    open(place(&storage, ROOMY, BOOT)).unwrap();
}
