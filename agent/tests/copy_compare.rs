//! Copies against a collector in memory: what is sent, also when either side is killed in the
//! middle, and what a person's wishes do.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test may look at the machine's clock")]

mod copy_support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use copy_support::{Agent, Collector, DISK_BYTES, Ground, noise, wait_for};
use tidemark_agent::volume::Volume;
use tidemark_block::store::UringStore;
use tidemark_block::{ByteRange, Device, Durability, Payload, ZeroOptions};
use tidemark_wire::body::GapReason;
use tidemark_wire::compare::{LEAF_BYTES, NODE_BYTES};
use tidemark_wire::instruct::InstructKind;
use tidemark_wire::session::StandingState;
use tidemark_wire::{RecordKind, WallMicros};

const MIB: u64 = 1 << 20;
/// What may be sent again after a kill: it was on its way.
const ON_THE_WAY_BYTES: u64 = 5 * MIB;

/// Data here and there, holes elsewhere; gives the bytes of data.
fn fill(ground: &Ground) -> u64 {
    let parts = [(0, 3), (9, 8), (37, 1), (60, 12), (101, 4), (150, 9)];
    for (at, len) in parts {
        ground.fill(at * MIB, usize::try_from(len * MIB).unwrap(), at + 1);
    }
    // The short last leaf, and a block in the middle of a hole.
    ground.fill(DISK_BYTES - 4096, 4096, 99);
    ground.fill(130 * MIB + 8192, 4096, 98);
    parts.iter().map(|(_, len)| len * MIB).sum::<u64>() + 2 * LEAF_BYTES
}

#[track_caller]
fn check_equal(ground: &Ground, collector: &Collector) {
    let disk = std::fs::read(&ground.backing).unwrap();
    let kept = collector.kept();
    let differs = disk.iter().zip(&kept.image).position(|(one, other)| one != other);
    assert_eq!(differs, None, "first byte that differs");
}

/// Does something to the volume on one of its executors, and waits for it.
fn on_volume<F: Future<Output = ()> + 'static>(
    agent: &Agent,
    work: impl FnOnce(Arc<Volume<UringStore>>) -> F + Send + 'static,
) {
    let (done, is_done) = std::sync::mpsc::channel();
    let volume = Arc::clone(&agent.volume);
    agent.spawn(move || async move {
        work(volume).await;
        done.send(()).unwrap();
    });
    is_done.recv_timeout(Duration::from_secs(60)).unwrap();
}

async fn write(volume: &Volume<UringStore>, at: u64, bytes: &[u8]) {
    let mut done = 0;
    while done < bytes.len() {
        let rest = ByteRange::new(at + done as u64, (bytes.len() - done) as u64).unwrap();
        let mut payload = volume.reserve(rest).await.unwrap();
        let len = payload.bytes_mut().len();
        payload.bytes_mut().copy_from_slice(&bytes[done..done + len]);
        volume.write(payload, Durability::Cached).await.unwrap();
        done += len;
    }
}

#[test]
fn a_first_copy_asks_nothing_and_sends_what_is_not_zero() {
    let (ground, collector) = (Ground::new(), Collector::new());
    let data = fill(&ground);
    let agent = ground.start(&collector);
    agent.wait_whole();
    check_equal(&ground, &collector);
    {
        let kept = collector.kept();
        assert_eq!(kept.questions, 0);
        assert!(kept.data_bytes <= data + 16 * LEAF_BYTES, "{} of {data}", kept.data_bytes);
        assert_eq!(kept.kinds.first(), Some(&RecordKind::ResyncBegin));
        assert!(!kept.kinds.contains(&RecordKind::WriteZeroes), "zeroes are left out");
    }
    let (done, total, sent) = agent.capture().progress().get();
    assert_eq!((done, total), (DISK_BYTES, DISK_BYTES));
    assert_eq!(sent, collector.kept().data_bytes);
    agent.kill();
}

#[test]
fn a_first_copy_into_a_seeded_image_sends_the_differences_and_the_zeroes() {
    let (ground, collector) = (Ground::new(), Collector::new());
    fill(&ground);
    let disk = std::fs::read(&ground.backing).unwrap();
    {
        let mut kept = collector.kept();
        kept.image.copy_from_slice(&disk);
        kept.image[10_000] ^= 1;
        let hole = usize::try_from(45 * MIB).unwrap();
        kept.image[hole..hole + 4096].fill(7);
        kept.seeded = true;
    }
    let agent = ground.start(&collector);
    agent.wait_whole();
    check_equal(&ground, &collector);
    {
        let kept = collector.kept();
        assert_eq!(kept.data_bytes, LEAF_BYTES, "one leaf of data differed");
        let wanted = [
            RecordKind::ResyncBegin,
            RecordKind::ReadBack,
            RecordKind::WriteZeroes,
            RecordKind::ResyncEnd,
        ];
        let mut kinds = kept.kinds.clone();
        kinds.sort_by_key(|kind| wanted.iter().position(|one| one == kind));
        assert_eq!(kinds, wanted);
    }
    agent.kill();
}

#[test]
fn killed_collectors_and_agents_cost_what_was_on_its_way_and_no_more() {
    let (ground, collector) = (Ground::new(), Collector::new());
    let data = fill(&ground);
    collector.kept().kill_after = Some(6 * MIB);
    let agent = ground.start(&collector);
    wait_for("the collector was killed", || collector.kept().kill_after.is_none());
    collector.kept().kill_after = Some(6 * MIB);
    wait_for("and again", || collector.kept().kill_after.is_none());
    assert_eq!(collector.kept().questions, 0, "the first copy goes on as one");
    wait_for("some more", || collector.kept().data_bytes > 20 * MIB);
    agent.kill();
    let agent = ground.start(&collector);
    wait_for("a comparison", || collector.kept().data_bytes > 26 * MIB);
    agent.kill();
    let asked = collector.kept().questions;
    collector.kept().kill_at_question = Some(asked + 2);
    let agent = ground.start(&collector);
    wait_for("a kill at a question", || collector.kept().kill_at_question.is_none());
    agent.wait_whole();
    check_equal(&ground, &collector);
    let sent = collector.kept().data_bytes;
    let most = data + 5 * ON_THE_WAY_BYTES;
    assert!(sent < most, "{sent} bytes sent of {data}");

    // Once more for nothing: everything is equal.
    agent.kill();
    collector.count_anew();
    let agent = ground.start(&collector);
    agent.wait_whole();
    collector.instruct(InstructKind::Compare);
    wait_for("it ends", || collector.kept().kinds.last() == Some(&RecordKind::ResyncEnd));
    agent.wait_whole();
    let kept = collector.kept();
    assert_eq!((kept.data_bytes, kept.questions), (0, 6));
    assert_eq!(kept.kinds, [RecordKind::ResyncBegin, RecordKind::ResyncEnd], "there is no gap");
    drop(kept);
    agent.kill();
}

#[test]
fn a_pause_loses_nothing_and_its_end_sends_what_was_missed() {
    let (ground, collector) = (Ground::new(), Collector::new());
    fill(&ground);
    let agent = ground.start(&collector);
    agent.wait_whole();
    collector.instruct(InstructKind::Pause);
    wait_for("it is paused", || agent.capture().is_paused());
    assert!(agent.state.get().paused && !agent.capture().is_on());
    collector.count_anew();
    on_volume(&agent, |volume| async move {
        write(&volume, 3 * NODE_BYTES + 100, &noise(100_000, 5)).await;
        let whole = ByteRange::new(60 * MIB, 12 * MIB).unwrap();
        volume.trim(whole, Durability::Cached).await.unwrap();
    });
    // Neither a loss nor a wish for a comparison ends it.
    agent.capture().lose(GapReason::RingFull);
    collector.instruct(InstructKind::CompareMarked);
    wait_for("it is told", || {
        let told = collector.kept().standings.last().copied();
        told.is_some_and(|told| told.state == StandingState::Paused)
    });
    assert!(collector.kept().kinds.is_empty(), "nothing is captured");
    collector.instruct(InstructKind::Resume);
    agent.wait_whole();
    check_equal(&ground, &collector);
    {
        let kept = collector.kept();
        assert!(kept.data_bytes <= 3 * LEAF_BYTES, "{} bytes sent", kept.data_bytes);
        assert_eq!(kept.questions, 0, "what was missed is known to the leaf");
        assert_eq!(kept.kinds[..2], [RecordKind::Gap, RecordKind::ResyncBegin]);
        // A trim of twelve nodes is not told leaf by leaf.
        let zeroes = kept.kinds.iter().filter(|kind| **kind == RecordKind::WriteZeroes).count();
        assert!((1..=12).contains(&zeroes), "{zeroes} records of zeroes");
        let told = kept.standings.last().unwrap();
        assert_eq!((told.state, told.reason), (StandingState::Whole, None));
    }
    assert!(!agent.state.get().paused);
    agent.kill();
}

#[test]
fn a_comparison_under_writes_ends_equal() {
    let (ground, collector) = (Ground::new(), Collector::new());
    fill(&ground);
    let agent = ground.start(&collector);
    agent.wait_whole();
    // The collector's disk rots under it.
    for at in (0..DISK_BYTES).step_by(7 * 1024 * 1024) {
        let at = usize::try_from(at).unwrap();
        collector.kept().image[at..at + 512].fill(0xbd);
    }
    collector.instruct(InstructKind::Compare);
    for round in 0..400u64 {
        on_volume(&agent, move |volume| async move {
            let at = (round * 7_919 * 4096) % (DISK_BYTES - 70_000);
            write(&volume, at, &noise(30_000, round)).await;
            if round % 5 == 0 {
                let range = ByteRange::new(at / 2, 40_000).unwrap();
                let options =
                    ZeroOptions { no_hole: false, fast: false, durability: Durability::Cached };
                volume.write_zeroes(range, options).await.unwrap();
            }
        });
    }
    agent.wait_whole();
    let tail = agent.capture().ring().next_seq().0 - 1;
    wait_for("all is durable", || collector.kept().durable.0 >= tail);
    check_equal(&ground, &collector);
    agent.kill();
}

#[test]
fn a_rate_holds_a_copy_back_and_can_be_taken_away() {
    let (ground, collector) = (Ground::new(), Collector::new());
    let data = fill(&ground);
    let agent = ground.start(&collector);
    agent.wait_whole();
    collector.count_anew();
    agent.capture().set_copy_rate(Some(8 * MIB));
    let begin = Instant::now();
    collector.instruct(InstructKind::Compare);
    wait_for("it begins", || !collector.kept().kinds.is_empty());
    std::thread::sleep(Duration::from_millis(700));
    assert!(!agent.is_whole(), "{data} bytes take longer than {:?}", begin.elapsed());
    agent.capture().set_copy_rate(None);
    wait_for("it ends", || collector.kept().kinds.last() == Some(&RecordKind::ResyncEnd));
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    agent.kill();
}

#[test]
fn no_record_gets_a_smaller_time_than_the_collector_holds() {
    let (ground, collector) = (Ground::new(), Collector::new());
    fill(&ground);
    let ahead = WallMicros(40_000_000_000_000_000);
    collector.kept().last_time = ahead;
    let agent = ground.start(&collector);
    agent.wait_whole();
    let kept = collector.kept();
    assert!(kept.times.iter().all(|time| *time >= ahead));
    assert!(agent.state.get().last_time >= ahead, "also after a loss of the ring");
    drop(kept);
    agent.kill();
}
