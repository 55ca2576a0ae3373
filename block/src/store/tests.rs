//! The store on real files and, where there are loop devices, on a block device.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::engine::{Executor, ExecutorConfig};

const SIZE_BYTES: u64 = 8 * 1024 * 1024;
const PIECE: usize = 64 * 1024;

fn on_executor<F: Future>(future: F) -> F::Output {
    Executor::new(&ExecutorConfig::default()).unwrap().block_on(future)
}

fn sparse_file(folder: &tempfile::TempDir, size_bytes: u64) -> PathBuf {
    let path = folder.path().join("disk");
    std::fs::File::create(&path).unwrap().set_len(size_bytes).unwrap();
    path
}

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(start, len).unwrap()
}

fn filled(byte: u8) -> Chunk {
    let mut chunk = Chunk::zeroed(PIECE);
    chunk.as_mut_slice().fill(byte);
    chunk
}

async fn expect(store: &UringStore, at: u64, byte: u8) {
    let (read, chunk) = store.read_at(filled(!byte), at).await;
    read.unwrap();
    assert!(chunk.as_slice().iter().all(|found| *found == byte), "bytes at {at}");
}

/// What holds on files and devices alike.
async fn exercise(store: &UringStore) {
    let piece = PIECE as u64;
    let (written, _) = store.write_at(filled(1), 0, Durability::Cached).await;
    written.unwrap();
    let (written, _) = store.write_at(filled(2), piece, Durability::Stable).await;
    written.unwrap();
    store.sync().await.unwrap();
    expect(store, 0, 1).await;
    expect(store, piece, 2).await;
    zeroes_or_says_so(store, 0, store.zero(range(0, piece)).await).await;
    zeroes_or_says_so(store, piece, store.punch(range(piece, piece)).await).await;
    let (read, _) = store.read_at(Chunk::zeroed(2 * PIECE), SIZE_BYTES - piece).await;
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

async fn zeroes_or_says_so(store: &UringStore, at: u64, result: io::Result<()>) {
    match result {
        Ok(()) => expect(store, at, 0).await,
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::Unsupported);
            eprintln!("skipped: the range at {at} can't be zeroed here: {error}");
        }
    }
}

#[test]
fn a_file_is_written_punched_and_zeroed_directly() {
    let folder = tempfile::tempdir().unwrap();
    let store = UringStore::open(&sparse_file(&folder, SIZE_BYTES), OpenMode::ReadWrite).unwrap();
    if !store.direct() {
        eprintln!("skipped: no direct I/O in {}", folder.path().display());
    }
    assert_eq!(store.geometry().size_bytes, SIZE_BYTES);
    assert_eq!(store.direct(), store.geometry().io_align_bytes > 1);
    on_executor(exercise(&store));
}

#[test]
fn holes_and_data_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let store = UringStore::open(&sparse_file(&folder, SIZE_BYTES), OpenMode::ReadWrite).unwrap();
    let piece = PIECE as u64;
    on_executor(async {
        let (written, _) = store.write_at(filled(1), 4 * piece, Durability::Stable).await;
        written.unwrap();
    });
    let mut found = Vec::new();
    store.data_extents(range(piece, 10 * piece), 8, &mut found).unwrap();
    let lengths: Vec<_> =
        found.iter().map(|extent| (extent.len_bytes / piece, extent.hole)).collect();
    assert_eq!(lengths, [(3, true), (1, false), (6, true)]);
    found.clear();
    store.data_extents(range(4 * piece, 10 * piece), 1, &mut found).unwrap();
    assert_eq!(found, [StatusExtent { len_bytes: piece, hole: false, zero: false }]);
    found.clear();
    store.data_extents(range(6 * piece, 0), 1, &mut found).unwrap();
    assert!(found.is_empty());
}

#[test]
fn a_store_has_one_writer_or_many_readers() {
    let folder = tempfile::tempdir().unwrap();
    let path = sparse_file(&folder, SIZE_BYTES);
    let writer = UringStore::open(&path, OpenMode::ReadWrite).unwrap();
    for mode in [OpenMode::ReadWrite, OpenMode::ReadOnly] {
        let refused = UringStore::open(&path, mode).err().unwrap();
        assert!(matches!(&refused, StoreError::InUse { path: named } if *named == path));
        assert!(refused.to_string().contains("another process holds it"), "{refused}");
    }
    drop(writer);
    let _first = UringStore::open(&path, OpenMode::ReadOnly).unwrap();
    let second = UringStore::open(&path, OpenMode::ReadOnly).unwrap();
    assert!(second.geometry().read_only);
    on_executor(async {
        let (written, _) = second.write_at(filled(1), 0, Durability::Cached).await;
        assert!(written.is_err());
    });
    assert!(UringStore::open(&path, OpenMode::ReadWrite).is_err());
}

#[test]
fn an_odd_size_goes_through_the_page_cache() {
    let folder = tempfile::tempdir().unwrap();
    let path = sparse_file(&folder, 1001);
    let store = UringStore::open(&path, OpenMode::ReadWrite).unwrap();
    assert!(!store.direct());
    assert_eq!(store.geometry().io_align_bytes, 1);
    on_executor(async {
        let mut chunk = Chunk::zeroed(7);
        chunk.as_mut_slice().fill(9);
        let (written, chunk) = store.write_at(chunk, 994, Durability::Stable).await;
        written.unwrap();
        let (read, _) = store.read_at(chunk, 994).await;
        read.unwrap();
    });
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1001);
}

#[test]
fn what_is_no_disk_is_refused_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let empty = sparse_file(&folder, 0);
    let missing = folder.path().join("missing");
    let open = |path: &Path| UringStore::open(path, OpenMode::ReadWrite).err().unwrap();
    assert!(matches!(open(&empty), StoreError::Empty { .. }));
    assert!(matches!(open(folder.path()), StoreError::WrongKind { .. }));
    assert!(matches!(open(Path::new("/dev/null")), StoreError::WrongKind { .. }));
    assert!(matches!(open(&missing), StoreError::Open { .. }));
    assert!(open(&missing).to_string().contains(missing.to_str().unwrap()));
}

/// A loop device that goes away with the test.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn new(file: &Path) -> Result<Self, String> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        let made = made.map_err(|error| format!("losetup: {error}"))?;
        if !made.status.success() {
            return Err(String::from_utf8_lossy(&made.stderr).into_owned());
        }
        Ok(Self(PathBuf::from(String::from_utf8_lossy(&made.stdout).trim())))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let gone = Command::new("losetup").arg("--detach").arg(&self.0).status();
        assert!(gone.unwrap().success(), "{} is left behind", self.0.display());
    }
}

#[test]
fn a_block_device_is_claimed_and_written_directly() {
    let folder = tempfile::tempdir().unwrap();
    let device = match LoopDevice::new(&sparse_file(&folder, SIZE_BYTES)) {
        Ok(device) => device,
        Err(reason) => {
            eprintln!("skipped: no loop device: {reason}");
            return;
        }
    };
    let store = UringStore::open(&device.0, OpenMode::ReadWrite).unwrap();
    assert!(store.direct());
    assert_eq!(store.geometry().size_bytes, SIZE_BYTES);
    on_executor(exercise(&store));
    let mut found = Vec::new();
    store.data_extents(range(0, SIZE_BYTES), 8, &mut found).unwrap();
    assert_eq!(found, [StatusExtent { len_bytes: SIZE_BYTES, hole: false, zero: false }]);
    let refused = UringStore::open(&device.0, OpenMode::ReadWrite).err().unwrap();
    assert!(matches!(refused, StoreError::InUse { .. }), "{refused}");
    drop(store);
}
