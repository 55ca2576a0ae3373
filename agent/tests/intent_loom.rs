//! Loom models of the write-intent log's word: the code that ships, on loom's atomics. Each model
//! runs all interleavings up to a bound of preemptions.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p tidemark-agent --test intent_loom --release`, with a
//! target folder of its own.

#![cfg(loom)]

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

use tidemark_agent::intent_log::region::{ClearUntil, Epochs, FlushEpoch, Region};

/// One region, its leaves, the flush epochs, and the log's page on stable storage.
struct Model {
    word: AtomicU64,
    leaves: AtomicU64,
    now: AtomicU64,
    good: AtomicU64,
    /// The bit as a crash would find it; whoever writes the page holds the lock.
    disk: AtomicU64,
    page: Mutex<()>,
    /// The newest number in the stream.
    newest: AtomicU64,
    /// The change has landed in the backing store.
    landed: AtomicU64,
}

impl Model {
    /// The bit is set, on stable storage, and idle since the first epoch.
    fn idle() -> Arc<Self> {
        let model = Self {
            word: AtomicU64::new(0),
            leaves: AtomicU64::new(0),
            now: AtomicU64::new(1),
            good: AtomicU64::new(0),
            disk: AtomicU64::new(1),
            page: Mutex::new(()),
            newest: AtomicU64::new(0),
            landed: AtomicU64::new(0),
        };
        model.region().found(FlushEpoch(1));
        Arc::new(model)
    }

    fn region(&self) -> Region<'_, AtomicU64> {
        Region(&self.word)
    }

    fn epochs(&self) -> Epochs<'_, AtomicU64> {
        Epochs { now: &self.now, good: &self.good }
    }

    fn write_page(&self) {
        let _lead = self.page.lock().expect("no panic");
        let marked = self.region().is_marked();
        self.disk.store(u64::from(marked), Ordering::Release);
        if marked {
            self.region().set();
        }
    }

    /// A change up to where it may land. True when it found its bit.
    fn enter(&self) -> bool {
        let was_set = self.region().enter(FlushEpoch(1));
        if !was_set {
            self.write_page();
        }
        assert!(self.region().is_set(), "it waited for its bit");
        was_set
    }

    fn leave(&self) {
        self.region().leave(self.epochs().of_change());
    }

    fn flush(&self) -> FlushEpoch {
        let epoch = self.epochs().flush_begins();
        self.epochs().flush_ended(epoch);
        epoch
    }

    fn clear(&self, epoch: FlushEpoch) -> bool {
        let lacks_nothing = || self.leaves.load(Ordering::Acquire) == 0;
        self.region().clear(ClearUntil { epoch }, lacks_nothing)
    }
}

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

#[test]
fn whoever_changes_a_region_has_its_bit_on_stable_storage_whatever_a_sweep_does() {
    check(4, || {
        let model = Model::idle();
        let idle_since = model.flush();
        let change = {
            let model = Arc::clone(&model);
            thread::spawn(move || {
                model.enter();
                assert_eq!(model.disk.load(Ordering::Acquire), 1);
                thread::yield_now();
                assert_eq!(model.disk.load(Ordering::Acquire), 1, "the sweep wrote it away");
                model.leave();
            })
        };
        model.clear(idle_since);
        model.write_page();
        change.join().expect("no panic");
    });
}

#[test]
fn two_changes_and_a_sweep_agree_on_the_bit() {
    check(3, || {
        let model = Model::idle();
        let idle_since = model.flush();
        let change = |model: &Arc<Model>| {
            let model = Arc::clone(model);
            thread::spawn(move || {
                model.enter();
                assert_eq!(model.disk.load(Ordering::Acquire), 1);
                model.leave();
            })
        };
        let both = [change(&model), change(&model)];
        model.clear(idle_since);
        model.write_page();
        both.into_iter().for_each(|one| one.join().expect("no panic"));
        assert!(!model.clear(idle_since), "it was changed since");
    });
}

#[test]
fn a_flush_covers_what_it_is_believed_to_cover() {
    check(5, || {
        let model = Model::idle();
        let change = {
            let model = Arc::clone(&model);
            thread::spawn(move || {
                model.enter();
                model.landed.store(1, Ordering::Relaxed);
                model.leave();
            })
        };
        let epoch = model.epochs().flush_begins();
        let saw = model.landed.load(Ordering::Relaxed);
        model.epochs().flush_ended(epoch);
        change.join().expect("no panic");
        let covered = !model.region().is_unflushed(model.epochs().good());
        assert!(!covered || saw == 1, "a flush that began before the change landed");
    });
}

#[test]
fn a_bit_clears_only_behind_every_record_of_its_region() {
    check(4, || {
        let model = Model::idle();
        let change = {
            let model = Arc::clone(&model);
            thread::spawn(move || {
                let was_set = model.region().enter(FlushEpoch(1));
                // The record is claimed before the change ends.
                model.newest.store(1, Ordering::Relaxed);
                model.leave();
                was_set
            })
        };
        let epoch = model.epochs().flush_begins();
        let newest = model.newest.load(Ordering::Relaxed);
        model.epochs().flush_ended(epoch);
        let cleared = model.clear(epoch);
        let was_set = change.join().expect("no panic");
        assert!(!(cleared && was_set) || newest == 1, "its record is not among the released");
    });
}

#[test]
fn what_is_missing_keeps_its_bit() {
    check(4, || {
        let model = Model::idle();
        let change = {
            let model = Arc::clone(&model);
            thread::spawn(move || {
                let was_set = model.region().enter(FlushEpoch(1));
                model.leaves.fetch_or(1, Ordering::AcqRel);
                model.leave();
                was_set
            })
        };
        let epoch = model.flush();
        let cleared = model.clear(epoch);
        let was_set = change.join().expect("no panic");
        assert!(!(cleared && was_set), "the bit of a region that lacks a leaf went");
        assert!(!model.clear(epoch) || !was_set);
    });
}

#[test]
fn a_doubt_is_never_lost_to_a_clear() {
    check(4, || {
        let model = Model::idle();
        let epoch = model.flush();
        let doubt = {
            let model = Arc::clone(&model);
            thread::spawn(move || model.region().doubt().is_set)
        };
        let cleared = model.clear(epoch);
        let was_set = doubt.join().expect("no panic");
        assert!(model.region().is_doubted() && model.region().is_marked());
        assert_eq!(cleared, !was_set, "who doubts knows whether the bit is there");
    });
}
