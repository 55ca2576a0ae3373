//! A volume is seeded, and the power goes, or a call fails, at every write, sync, rename and
//! removal of it. Afterwards the volume holds what it held, or less of it, or the image: never a
//! mix, and the agent is never told to leave zeroes out of a copy into what is not zero.
#![allow(clippy::unwrap_used, reason = "tests")]

mod ingest_support;
mod volumes_support;

use std::path::Path;
use std::sync::Arc;

use ingest_support::{Change, Model, hello, resync, write};
use tidemark_collector::ingest::volume::volume_dir;
use tidemark_collector::storage::{Fault, MemoryStorage, Storage};
use tidemark_collector::view::View;
use tidemark_wire::session::Hello;
use tidemark_wire::{JournalId, RecordKind, Seq};
use volumes_support::Bench;

/// A volume in its first copy, a part of which is merged.
struct Past {
    storage: MemoryStorage,
    journal: JournalId,
    /// What is held after each record.
    states: Vec<Vec<u8>>,
}

fn past() -> Past {
    let storage = MemoryStorage::default();
    storage.create_dir(Path::new("/data/volumes")).unwrap();
    let bench = Bench::start(&storage, &[], "");
    let session = bench.open(&hello(1)).unwrap_or_else(|refusal| panic!("{}", refusal.text));
    let (mut model, mut changes) = (Model::new(), vec![resync(RecordKind::ResyncBegin)]);
    changes.extend((0u8..24).map(|at| write(u64::from(at) * 60_000, vec![at + 1; 5000])));
    let mut states = vec![model.0.clone()];
    let mut note = |_, change: &Change| {
        model.apply_all(std::slice::from_ref(change));
        states.push(model.0.clone());
    };
    let last = session.send(&changes[..13], Seq(0), Seq(1), &mut note);
    bench.merge(u32::MAX);
    session.send(&changes[13..], last, Seq(last.0 + 1), &mut note);
    let held = bench.volume().held().unwrap();
    assert!(held.seed.at() > Seq(0) && held.reader.segments().len() > 2);
    drop(held);
    bench.volumes.stop();
    assert!(bench.events.critical().is_empty());
    Past { journal: session.welcome.journal, storage: storage.after_crash(0), states }
}

fn image() -> Vec<u8> {
    let mut model = Model::new();
    model.apply_all(&[write(20_480, vec![0xAA; 90_000]), write(1_000_000, vec![0xBB; 4096])]);
    model.0
}

impl Past {
    /// What the volume is afterwards, and that its agent is told what fits.
    fn check(&self, bench: &Bench, image: &[u8], what: &str) -> bool {
        // An agent comes back until it is let in.
        let last = Seq(self.states.len() as u64 - 1);
        let known = Hello { journal: self.journal, released: last, newest: last, ..hello(1) };
        let session = (0..2).find_map(|_| bench.open(&known).ok());
        let session = session.unwrap_or_else(|| panic!("{what}: it is not let in"));
        // What a failed call left of a merge that was cut off before is an error until it is ended.
        if bench.volume().held().unwrap().seed.merging_to().is_some() {
            bench.merge(u32::MAX);
        }
        let (at, bytes) = bench.held().unwrap();
        let welcome = &session.welcome;
        assert_eq!(welcome.durable, at, "{what}");
        let seeded = bytes == image;
        let old = self.states.get(usize::try_from(at.0).unwrap()).is_some_and(|old| *old == bytes);
        assert!(old || (seeded && at == Seq(0)), "{what}: a mix at {at}");
        if seeded {
            assert!(welcome.seeded && welcome.journal != self.journal, "{what}");
        } else if at == Seq(0) && !welcome.seeded {
            assert!(bytes.iter().all(|byte| *byte == 0), "{what}");
        } else if welcome.journal == self.journal && at == last {
            assert!(welcome.span_open > Seq(0), "{what}");
        }
        let mut model = Model(bytes);
        let changes = [
            resync(RecordKind::ResyncBegin),
            write(300_000, vec![9; 9000]),
            resync(RecordKind::ResyncEnd),
        ];
        // Sequence numbers are not used again, whatever became of those before.
        let newest = session.send(&changes, at, Seq(last.0 + 1000), |_, _| ());
        model.apply_all(&changes);
        let held = bench.volume().held().unwrap();
        let view = View::open(Arc::clone(&held.reader), Arc::clone(&held.seed), newest).unwrap();
        let mut bytes = vec![0; model.0.len()];
        view.read_at(&mut bytes, 0).unwrap();
        assert!(bytes == model.0, "{what}: after a comparison");
        drop(view);
        bench.merge(u32::MAX);
        assert_eq!(held.seed.merging_to(), None, "{what}: merges go on");
        seeded
    }
}

#[test]
fn a_seeding_that_is_cut_off_anywhere_leaves_one_or_the_other() {
    let (past, image, id) = (past(), image(), hello(1).volume);
    let new = volume_dir(Path::new("/data"), id).join("seed.img.new");
    // With a merge that was cut off before, and without.
    for interrupted in [false, true] {
        for fault in [Fault::Crash, Fault::Once] {
            let (mut call, mut seen) = (0, [0; 2]);
            loop {
                let what = format!("{fault:?} at call {call}, interrupted {interrupted}");
                let storage = past.storage.after_kill();
                let bench = Bench::start(&storage, &[id], "");
                if interrupted {
                    bench.merge(2);
                    let held = bench.volume().held().unwrap();
                    assert!(held.seed.merging_to().is_some());
                }
                let before = storage.calls();
                storage.fail_after(call, fault);
                let done = bench.seed(&image).is_ok();
                let calls = storage.calls() - before;
                let storage = match fault {
                    Fault::Crash => {
                        bench.volumes.stop();
                        storage.after_crash(call)
                    }
                    Fault::Once => {
                        seen[usize::from(past.check(&bench, &image, &what))] += 1;
                        bench.volumes.stop();
                        storage.after_kill()
                    }
                };
                if fault == Fault::Crash {
                    let bench = Bench::start(&storage, &[id], "");
                    let events = bench.events.critical();
                    assert!(events.is_empty(), "{what}: {events:?}");
                    seen[usize::from(past.check(&bench, &image, &what))] += 1;
                    bench.volumes.stop();
                }
                assert!(storage.open(&new).is_err(), "{what}: the half import stays");
                if done && calls <= call {
                    break;
                }
                call += 1;
            }
            assert!(call > 20 && seen[0] > 5 && seen[1] > 0, "{call} calls: {seen:?}");
        }
    }
}
