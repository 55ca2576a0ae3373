//! Verifications against a collector in memory: what they find, also under live writes, and what
//! ends them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test may look at the machine's clock")]

mod copy_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use copy_support::{Agent, Collector, DISK_BYTES, Ground, noise, wait_for};
use tidemark_agent::volume::Volume;
use tidemark_block::engine::sleep;
use tidemark_block::store::UringStore;
use tidemark_block::{ByteRange, Device, Durability, Payload};
use tidemark_wire::RecordKind;
use tidemark_wire::compare::{LEAF_BYTES, NODE_BYTES};
use tidemark_wire::instruct::{InstructKind, Verified, VerifyState};

const MIB: u64 = 1 << 20;

/// A disk with data here and there, and a whole copy of it.
fn begin() -> (Ground, Collector, Agent) {
    let (ground, collector) = (Ground::new(), Collector::new());
    for at in [0, 9, 40, 41, 100, 150] {
        ground.fill(at * MIB, 3 << 20, at + 1);
    }
    ground.fill(DISK_BYTES - 4096, 4096, 99);
    let agent = ground.start(&collector);
    agent.wait_whole();
    collector.count_anew();
    (ground, collector, agent)
}

fn rot(collector: &Collector, at: u64) {
    let at = usize::try_from(at).unwrap();
    collector.kept().image[at] ^= 0x40;
}

fn verify(collector: &Collector, id: u8, from_bytes: u64) -> Verified {
    collector.instruct_as(id, InstructKind::Verify, from_bytes);
    let ended = || {
        let report = collector.kept().verified.clone();
        report.filter(|report| report.id == [id; 16] && report.is_over())
    };
    wait_for("the verification ends", || ended().is_some());
    ended().unwrap()
}

async fn write(volume: &Volume<UringStore>, at: u64, bytes: &[u8]) {
    let range = ByteRange::new(at, bytes.len() as u64).unwrap();
    let mut payload = volume.reserve(range).await.unwrap();
    let len = payload.bytes_mut().len();
    payload.bytes_mut().copy_from_slice(&bytes[..len]);
    volume.write(payload, Durability::Cached).await.unwrap();
}

#[test]
fn what_differs_is_named_and_nothing_is_changed() {
    let (_ground, collector, agent) = begin();
    let report = verify(&collector, 2, 0);
    assert_eq!(report.state, VerifyState::Done);
    assert_eq!((report.compared_bytes, report.differing_bytes), (DISK_BYTES, 0));
    assert_eq!(report.reached_bytes, DISK_BYTES);

    let leaf = 9 * MIB + 2 * LEAF_BYTES;
    rot(&collector, leaf + 77);
    rot(&collector, leaf + LEAF_BYTES);
    rot(&collector, DISK_BYTES - 1);
    let report = verify(&collector, 3, 0);
    let last = DISK_BYTES % LEAF_BYTES;
    assert_eq!(report.state, VerifyState::Done);
    assert_eq!(report.differing_bytes, 2 * LEAF_BYTES + last);
    let mut ranges = report.ranges;
    ranges.sort_unstable();
    assert_eq!(ranges, [(leaf, 2 * LEAF_BYTES), (DISK_BYTES - last, last)]);
    assert_eq!(report.unreadable_bytes, 0);

    let report = verify(&collector, 4, 40 * MIB + 1);
    assert_eq!(report.compared_bytes, DISK_BYTES - 40 * MIB, "it may begin later");
    assert_eq!(report.differing_bytes, last);
    let kept = collector.kept();
    assert!(kept.kinds.is_empty(), "nothing is in the stream: {:?}", kept.kinds);
    assert_eq!(kept.obeyed, [[2; 16], [3; 16], [4; 16]]);
    drop(kept);
    agent.kill();
}

#[test]
fn under_live_writes_it_finds_what_differs_and_nothing_else() {
    let (_ground, collector, agent) = begin();
    collector.kept().before = Some(Vec::new());
    let stop = Arc::new(AtomicBool::new(false));
    // Two writers all over the disk, but for the leaf that rots.
    let rotten = 100 * MIB;
    for writer in 0..2u64 {
        let (volume, stop) = (Arc::clone(&agent.volume), Arc::clone(&stop));
        agent.spawn(move || async move {
            let mut round = writer;
            while !stop.load(Ordering::Relaxed) {
                round += 2;
                let at = (round * 7_919 * 4096) % (DISK_BYTES - 70_000);
                if at + 70_000 > rotten && at < rotten + LEAF_BYTES {
                    continue;
                }
                // The ring must not fill up, which would be a gap.
                sleep(Duration::from_millis(2)).await;
                while volume.capture().ring().used().is_beyond_half() {
                    sleep(Duration::from_millis(2)).await;
                }
                write(
                    &volume,
                    at,
                    &noise(3000 + 512 * usize::try_from(round % 90).unwrap(), round),
                )
                .await;
            }
        });
    }
    wait_for("writes", || collector.kept().kinds.len() > 50);
    assert_eq!(verify(&collector, 2, 0).differing_bytes, 0);
    rot(&collector, rotten);
    let report = verify(&collector, 3, 0);
    assert_eq!((report.state, report.ranges), (VerifyState::Done, vec![(rotten, LEAF_BYTES)]));
    stop.store(true, Ordering::Relaxed);
    let kinds = collector.kept().kinds.clone();
    assert!(kinds.iter().all(|kind| *kind == RecordKind::Write), "only what was written");
    agent.kill();
}

#[test]
fn it_ends_when_the_stream_is_not_whole_or_nobody_wants_it() {
    let (_ground, collector, agent) = begin();
    agent.capture().set_copy_rate(Some(MIB));
    collector.instruct_as(2, InstructKind::Verify, 0);
    let state = |id: u8| {
        let report = collector.kept().verified.clone();
        report.filter(|report| report.id == [id; 16]).map(|report| report.state)
    };
    wait_for("it runs", || state(2) == Some(VerifyState::Running));
    collector.instruct_as(3, InstructKind::StopVerify, 0);
    wait_for("it stops", || state(2) == Some(VerifyState::Stopped));
    let report = collector.kept().verified.clone().unwrap();
    assert!(report.reached_bytes < DISK_BYTES && report.reached_bytes.is_multiple_of(NODE_BYTES));

    collector.instruct_as(4, InstructKind::Verify, 0);
    wait_for("the next one runs", || state(4) == Some(VerifyState::Running));
    collector.instruct(InstructKind::Compare);
    wait_for("it ends", || state(4) == Some(VerifyState::NotWhole));
    assert_eq!(verify(&collector, 5, 0).state, VerifyState::NotWhole, "during a copy");
    agent.capture().set_copy_rate(None);
    agent.wait_whole();
    agent.kill();
}

#[test]
fn a_verification_outlasts_a_lost_connection() {
    let (_ground, collector, agent) = begin();
    rot(&collector, 9 * MIB);
    collector.kept().kill_at_question = Some(2);
    let report = verify(&collector, 2, 0);
    assert_eq!((report.state, report.differing_bytes), (VerifyState::Done, LEAF_BYTES));
    assert_eq!(report.compared_bytes, DISK_BYTES);
    assert!(collector.kept().kill_at_question.is_none(), "it was killed");
    agent.kill();
}
