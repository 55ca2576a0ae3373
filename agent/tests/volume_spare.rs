//! A write whose payload came while changes were not captured, and that takes effect when they are
//! captured again.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod ring_support;

use std::sync::Arc;

use ring_support::{create, small, tmpfs_dir};
use tidemark_agent::capture::Capture;
use tidemark_agent::intent_log::IntentLog;
use tidemark_agent::volume::Volume;
use tidemark_block::engine::{Executor, ExecutorConfig};
use tidemark_block::store::{OpenMode, UringStore};
use tidemark_block::{ByteRange, Device, Durability, Payload};
use tidemark_wire::compare::LEAF_BYTES;
use tidemark_wire::{RecordKind, VolumeId};

const DISK_BYTES: u64 = 16 * LEAF_BYTES;

#[test]
fn what_finds_no_slot_in_the_ring_is_known_to_be_missing() {
    let (folder, ring_folder) = (tempfile::tempdir().unwrap(), tmpfs_dir());
    let path = folder.path().join("disk");
    std::fs::File::create(&path).unwrap().set_len(DISK_BYTES).unwrap();
    let ring = create(&ring_folder.path().join("ring"), &small()).unwrap();
    let store = UringStore::open(&path, OpenMode::ReadWrite).unwrap();
    let intent = IntentLog::volatile(DISK_BYTES);
    let capture = Arc::new(Capture::new("test".into(), ring, Arc::clone(intent.map())));
    let id = VolumeId::from_bytes([7; 16]);
    let volume = Volume::new(id, store, Arc::clone(&capture), intent);
    let executor = Executor::new(&ExecutorConfig::default()).unwrap();
    executor.block_on(async {
        capture.ring().turn_capture_off();
        let range = ByteRange::new(5 * LEAF_BYTES, 4096).unwrap();
        let mut payload = volume.reserve(range).await.unwrap();
        payload.bytes_mut().fill(1);
        capture.ring().turn_capture_on();
        // There is memory for the payload, and no slot for its record.
        while capture.stamp(RecordKind::Flush, 0, &[]).is_some() {}
        volume.write(payload, Durability::Cached).await.unwrap();
    });
    assert!(!capture.is_on(), "a full ring was noted");
    let missing = capture.intent().next_differing(0).unwrap();
    assert_eq!(missing.region, ByteRange::new(0, DISK_BYTES).unwrap());
    assert_eq!(capture.intent().differing_bytes(), LEAF_BYTES, "the leaf of the write");
}
