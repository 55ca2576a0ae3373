//! The golden journal: one sealed segment with a record of every kind, and an open one.

use std::path::{Path, PathBuf};

use tidemark_wire::body::{Bookmark, Cut, PointKind, Resync};
use tidemark_wire::{PointId, RecordKind, Seq};
use zerocopy::IntoBytes;

use super::{Made, VOLUME_BYTES, apply, make, spec};

pub(crate) const SEALED: &str = "0000000000000001.seg";
pub(crate) const OPEN: &str = "0000000000000020.open";
/// So many of the golden records are in the sealed segment.
pub(crate) const SEALED_RECORDS: usize = 17;

pub(crate) fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata")
}

pub(crate) fn dir() -> PathBuf {
    testdata().join("segment")
}

pub(crate) fn blessing() -> bool {
    std::env::var_os("TIDEMARK_BLESS").is_some_and(|value| value == "1")
}

pub(crate) fn copy_to(dir_to: &Path) {
    for name in [SEALED, OPEN] {
        std::fs::copy(dir().join(name), dir_to.join(name)).unwrap();
    }
}

/// Bytes that do not compress, the same ones each time.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = super::Random::new(seed);
    (0..len).map(|_| u8::try_from(random.below(256)).unwrap()).collect()
}

fn body(kind: RecordKind, seq: u64, bytes: &[u8]) -> Made {
    make(&spec(kind, 0, 0, bytes.len()), seq, bytes, false)
}

fn data(kind: RecordKind, seq: u64, offset: u64, payload: &[u8], pack: bool) -> Made {
    make(&spec(kind, offset, payload.len() as u64, payload.len()), seq, payload, pack)
}

fn plain(kind: RecordKind, seq: u64, offset: u64, len: u64, aux: u64, flags: u8) -> Made {
    let mut spec = spec(kind, offset, len, 0);
    (spec.aux, spec.flags) = (aux, flags);
    make(&spec, seq, &[], false)
}

pub(crate) fn bookmark(label: &str) -> Bookmark {
    Bookmark {
        id: PointId::from_bytes([0xB0; 16]),
        kind: PointKind::Person,
        label: label.into(),
        reason: String::new(),
    }
}

pub(crate) fn records() -> Vec<Made> {
    use RecordKind as K;
    let resync = |id: u8, sent: u64, initial| Resync {
        id: [id; 16],
        total_bytes: VOLUME_BYTES.into(),
        sent_bytes: sent.into(),
        initial,
        reserved: [0; 7],
    };
    let cut = Cut {
        group_id: [0xC0; 16],
        point_id: [0xC1; 16],
        number: 3.into(),
        members: 2.into(),
        reserved: 0.into(),
    };
    let (mut mark, mut second) = (Vec::new(), Vec::new());
    bookmark("before the upgrade").encode(&mut mark);
    bookmark("after").encode(&mut second);
    let text = b"the quick brown fox jumps over the lazy dog. ".repeat(300);
    vec![
        body(K::ResyncBegin, 1, resync(1, 0, 1).as_bytes()),
        data(K::ReadBack, 2, 0, &noise(2, 4096), false),
        data(K::ReadBack, 3, 8192, &text[..12288], true),
        body(K::ResyncEnd, 4, resync(1, 16384, 1).as_bytes()),
        data(K::Write, 6, 5000, &noise(6, 1000), false),
        data(K::Write, 7, 262_144 - 4000, &text[..9000], true),
        plain(K::Flush, 8, 0, 0, 0, 0),
        plain(K::WriteZeroes, 9, 8192, 4096, 0, 2),
        plain(K::Trim, 10, 20_000, 590_000, 0, 0),
        body(K::Bookmark, 12, &mark),
        body(K::Cut, 13, cut.as_bytes()),
        plain(K::Resize, 14, 0, 2 * VOLUME_BYTES, VOLUME_BYTES, 0),
        plain(K::Unreadable, 15, 700_000, 4096, 5, 0),
        plain(K::Gap, 16, 0, 0, 1, 0),
        body(K::ResyncBegin, 17, resync(2, 0, 0).as_bytes()),
        data(K::Write, 18, 30_001, &noise(18, 17_000), false),
        body(K::ResyncEnd, 19, resync(2, 17_000, 0).as_bytes()),
        data(K::Write, 0x20, 40_000, &noise(20, 5000), false),
        data(K::ReadBack, 0x21, 699_000, &text[..6000], true),
        plain(K::Flush, 0x22, 0, 0, 0, 0),
        data(K::Write, 0x24, 1_000_000, &noise(24, 3000), false),
        body(K::Bookmark, 0x25, &second),
        data(K::Write, 0x26, 4096, &noise(26, 4096), false),
    ]
}

pub(crate) fn image_at(at: Seq) -> Vec<u8> {
    let mut image = vec![0; usize::try_from(VOLUME_BYTES).unwrap()];
    for made in records().iter().take_while(|made| made.seq <= at) {
        apply(&mut image, &made.bytes);
    }
    image
}
