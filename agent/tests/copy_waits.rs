//! A copy that can't begin leaves its thread to the clients, and is made once it can.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test may look at the machine's clock")]

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use tidemark_agent::capture::Capture;
use tidemark_agent::capture::phase::{CopyCause, Phase};
use tidemark_agent::clock::{Clock, SystemClock};
use tidemark_agent::copy;
use tidemark_agent::intent_log::IntentLog;
use tidemark_agent::random::{Random, SystemSource};
use tidemark_agent::ring::{Ring, RingSpec};
use tidemark_agent::volume::Volume;
use tidemark_block::engine::{ExecutorConfig, Workers};
use tidemark_block::store::{OpenMode, UringStore};
use tidemark_wire::body::GapReason;
use tidemark_wire::{Seq, VolumeId};

#[test]
fn a_copy_without_numbers_waits_and_its_thread_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let backing = dir.path().join("disk");
    std::fs::File::create(&backing).unwrap().set_len(1 << 20).unwrap();
    let store = UringStore::open(&backing, OpenMode::ReadWrite).unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let id = VolumeId::from_bytes([7; 16]);
    let spec = RingSpec { volume: id, ring_bytes: 1 << 20, slots: 64, boot_id: [9; 16] };
    let ring = Ring::in_memory(&spec, Seq(1), Arc::clone(&clock)).unwrap();
    let intent = IntentLog::volatile(1 << 20);
    let capture = Arc::new(Capture::new("data".into(), ring, Arc::clone(intent.map())));
    let volume = Arc::new(Volume::new(id, store, Arc::clone(&capture), intent));
    let workers = Workers::start("serve", 1, ExecutorConfig::default()).unwrap();
    let random: Arc<dyn Random> = Arc::new(SystemSource::default());

    let timer = copy::EngineTimer::new(clock);
    capture.phases().welcomed();

    // No number is reserved: not even the first record of the copy can be had.
    capture.want_copy(CopyCause::Initial);
    workers.spawn_on(0, move || copy::run(volume, random, timer));
    let (done, turns) = channel();
    for _ in 0..3 {
        let done = done.clone();
        workers.spawn_on(0, move || async move { done.send(()).unwrap() });
        turns.recv_timeout(Duration::from_secs(5)).expect("the thread has its turns");
    }
    capture.lose(GapReason::RingFull);
    assert_eq!(capture.phases().phase(), Phase::Wanted(CopyCause::Initial));

    capture.ring().set_seq_limit(Seq(1000));
    // It ends when its begin is at the collector, whoever that is.
    let mut consumer = capture.ring().consumer().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !matches!(capture.phases().phase(), Phase::Whole { copy_end: Some(_) }) {
        assert!(Instant::now() < deadline, "{:?}", capture.phases().phase());
        consumer.release_through(Seq(1000));
        std::thread::sleep(Duration::from_millis(5));
    }
    capture.close();
    workers.shutdown();
}
