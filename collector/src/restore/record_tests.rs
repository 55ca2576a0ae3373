use tidemark_wire::{JournalId, Timeline, VolumeId};

use super::*;

fn subject() -> Subject {
    Subject {
        volume: VolumeId::from_bytes([1; 16]),
        name: "disk one".into(),
        journal: JournalId::from_bytes([2; 16]),
        timeline: Timeline(1),
        seq: Seq(77),
        size_bytes: (5 << 20) + 512,
    }
}

#[test]
fn a_stored_record_loads_and_speaks_of_one_state_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img.partial.json");
    assert_eq!(Record::load(&path).unwrap(), None);
    let mut record = Record::new(&subject(), Format::Qcow2, true);
    record.set(0, ChunkSum(5));
    record.set(1, ChunkSum(6));
    record.set(0, ChunkSum(7));
    record.store(&path).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let loaded = Record::load(&path).unwrap().unwrap();
    assert_eq!(loaded, record);
    assert_eq!((loaded.sums(), loaded.done_bytes()), (&[ChunkSum(7), ChunkSum(6)][..], 2 << 20));
    assert!(loaded.is_of(&subject()));
    let command = loaded.command(Path::new("/x/disk.img"));
    assert_eq!(command, "tidemark restore 'disk one' --at seq:77 --to /x/disk.img");
    for other in [
        Subject { seq: Seq(78), ..subject() },
        Subject { journal: JournalId::from_bytes([3; 16]), ..subject() },
        Subject { volume: VolumeId::from_bytes([3; 16]), ..subject() },
        Subject { timeline: Timeline(2), ..subject() },
        Subject { size_bytes: 5 << 20, ..subject() },
    ] {
        assert!(!loaded.is_of(&other), "{other:?}");
    }
}

#[test]
fn a_damaged_record_is_as_good_as_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.json");
    let mut record = Record::new(&subject(), Format::Raw, false);
    record.set(0, ChunkSum(5));
    record.store(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(Record::load(&path).unwrap(), None, "byte {at}");
        if at + 1 == whole.len() {
            // Only the end of the last line is missing then.
            continue;
        }
        std::fs::write(&path, &whole[..at]).unwrap();
        assert_eq!(Record::load(&path).unwrap(), None, "first {at} bytes");
    }
    let mut long = record.clone();
    (0..7).for_each(|chunk| long.set(chunk, ChunkSum(1)));
    long.store(&path).unwrap();
    assert_eq!(Record::load(&path).unwrap(), None, "more chunks than the disk has");
}

#[test]
fn chunks_of_a_large_disk_stay_few() {
    for (size_bytes, chunk_bytes) in [(1, 1 << 20), (16 << 30, 1 << 20), (1 << 40, 64 << 20)] {
        let record = Record::new(&Subject { size_bytes, ..subject() }, Format::Raw, false);
        assert_eq!(record.chunk_bytes, chunk_bytes);
    }
}

#[test]
fn a_sum_sees_every_byte_and_its_place_and_runs_cover_everything() {
    let mut bytes = vec![0; 5 * BLOCK_BYTES + 100];
    bytes[BLOCK_BYTES] = 1;
    bytes[2 * BLOCK_BYTES + 5] = 1;
    let sum = |bytes: &[u8], at: u64| {
        let (mut sum, mut runs) = (ChunkSum::default(), Vec::new());
        sum.add(at, bytes, |at, run, zero| {
            runs.push((at, run.len(), zero));
            Ok(())
        })
        .unwrap();
        (sum, runs)
    };
    let block = BLOCK_BYTES as u64;
    let (whole, runs) = sum(&bytes, block);
    assert_eq!(
        runs,
        [
            (block, BLOCK_BYTES, true),
            (2 * block, 2 * BLOCK_BYTES, false),
            (4 * block, 2 * BLOCK_BYTES + 100, true)
        ]
    );
    assert_ne!(sum(&bytes, 0).0, whole);
    for at in [0, BLOCK_BYTES, 2 * BLOCK_BYTES + 6, 5 * BLOCK_BYTES + 99] {
        let mut other = bytes.clone();
        other[at] ^= 0x80;
        assert_ne!(sum(&other, block).0, whole, "byte {at}");
    }
    let (zeroes, runs) = sum(&[0; 1000], 0);
    assert_eq!((zeroes, runs.len()), (ChunkSum::default(), 1));
}
