//! What the clients of one case do, drawn by proptest and made concrete for the disk at hand.
//!
//! Every write has contents of its own: no other write of the case has the same bytes at the same
//! place, so a record of the journal tells whose it is. No two zeroings, and no two trims, clear
//! the same range, for the same reason.

use std::collections::HashSet;

use proptest::prelude::*;
use tidemark_block::ByteRange;

/// Longest write or read.
pub(crate) const LENGTH_MAX: u64 = 300 * 1024;
/// Bytes of the disk that most operations meet on.
const HOT_BYTES: u64 = 48 * 1024;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Sort {
    Read,
    Write,
    Zero,
    Trim,
    Flush,
}

/// The change ring of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RingSort {
    /// Room for everything that the case writes.
    Roomy,
    /// The smallest memory, and this many slots: it is full most of the time.
    Tiny { slots: u32 },
}

/// The connection to the collector in a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkSort {
    /// As it is.
    Steady,
    /// Each send waits this long.
    Slow { millis: u64 },
    /// Lost in the middle of a frame, a few times.
    Cutting { after_bytes: u64 },
}

/// An operation as it is drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draw {
    sort: Sort,
    at: u64,
    len: u64,
    unit: u64,
    hot: bool,
    fua: bool,
    no_hole: bool,
    fast: bool,
    packs: bool,
}

/// One case.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// Size of the disk in units of 512 bytes.
    pub(crate) sectors: u64,
    /// Requests in flight of each connection.
    pub(crate) depths: Vec<usize>,
    pub(crate) ring: RingSort,
    pub(crate) link: LinkSort,
    pub(crate) segment_bytes_max: u64,
    /// The clients begin before the collector has a whole copy.
    pub(crate) early: bool,
    /// The disk is not empty at first.
    pub(crate) filled: bool,
    /// Views are read from a journal that was closed and opened again.
    pub(crate) reopen: bool,
    pub(crate) salt: u64,
    pub(crate) draws: Vec<Draw>,
}

/// An operation that a client sends.
#[derive(Debug)]
pub(crate) struct Op {
    pub(crate) sort: Sort,
    pub(crate) range: ByteRange,
    pub(crate) fua: bool,
    pub(crate) no_hole: bool,
    pub(crate) fast: bool,
    /// What a write writes.
    pub(crate) data: Vec<u8>,
}

/// Everything that happens in a case.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) size_bytes: u64,
    /// The disk before the first operation.
    pub(crate) base: Vec<u8>,
    /// In the order in which each connection takes its own; operation `i` is that of connection
    /// `i` modulo their number.
    pub(crate) ops: Vec<Op>,
}

/// Draws cases with up to `ops_max` operations.
pub(crate) fn cases(ops_max: usize) -> impl Strategy<Value = Case> {
    let ring = prop_oneof![
        3 => Just(RingSort::Roomy),
        2 => (4u32..8).prop_map(|bits| RingSort::Tiny { slots: 1 << bits }),
    ];
    let link = prop_oneof![
        3 => Just(LinkSort::Steady),
        1 => (1u64..6).prop_map(|millis| LinkSort::Slow { millis }),
        2 => (3_000u64..300_000).prop_map(|after_bytes| LinkSort::Cutting { after_bytes }),
    ];
    let world = (
        320u64..1600,
        prop::collection::vec(1usize..14, 2..5),
        ring,
        link,
        (15u32..20).prop_map(|bits| 1u64 << bits),
        prop::bool::weighted(0.3),
    );
    let rest = (
        any::<bool>(),
        any::<bool>(),
        any::<u64>(),
        prop::collection::vec(draw(), ops_max / 4..ops_max),
    );
    (world, rest).prop_map(|(world, rest)| {
        let (sectors, depths, ring, link, segment_bytes_max, early) = world;
        let (filled, reopen, salt, draws) = rest;
        Case { sectors, depths, ring, link, segment_bytes_max, early, filled, reopen, salt, draws }
    })
}

fn draw() -> impl Strategy<Value = Draw> {
    let sort = prop_oneof![
        10 => Just(Sort::Write),
        4 => Just(Sort::Read),
        3 => Just(Sort::Zero),
        2 => Just(Sort::Trim),
        2 => Just(Sort::Flush),
    ];
    let len = prop_oneof![
        3 => 1u64..20,
        4 => 1u64..6000,
        3 => 4096u64..40_000,
        1 => 40_000u64..=LENGTH_MAX,
    ];
    let unit = prop_oneof![4 => Just(1u64), 2 => Just(512u64), 3 => Just(4096u64)];
    let flags = (
        prop::bool::weighted(0.6),
        prop::bool::weighted(0.2),
        any::<bool>(),
        prop::bool::weighted(0.2),
        any::<bool>(),
    );
    (sort, any::<u32>(), len, unit, flags).prop_map(|(sort, at, len, unit, flags)| {
        let (hot, fua, no_hole, fast, packs) = flags;
        Draw { sort, at: at.into(), len, unit, hot, fua, no_hole, fast, packs }
    })
}

impl Case {
    /// True when the stream has no gap but the first copy.
    pub(crate) fn is_gapless(&self) -> bool {
        self.ring == RingSort::Roomy && !self.early
    }

    /// The case on a disk that trims units of `unit_bytes`.
    pub(crate) fn plan(&self, unit_bytes: u64) -> Plan {
        let size_bytes = self.sectors * 512;
        let mut maker = Maker {
            size_bytes,
            unit_bytes,
            // A copy records zeroes without a flag; where there may be one, a client's are told
            // from them by theirs.
            mark_zeroes: !self.is_gapless(),
            salt: self.salt,
            cleared: HashSet::new(),
            short: HashSet::new(),
        };
        let base = maker.base(self.filled);
        let ops = (1..).zip(&self.draws).map(|(number, draw)| maker.op(number, draw)).collect();
        Plan { size_bytes, base, ops }
    }
}

/// Where a short write lies, and what it writes.
type Short = (u64, Vec<u8>);

struct Maker {
    size_bytes: u64,
    unit_bytes: u64,
    mark_zeroes: bool,
    salt: u64,
    cleared: HashSet<(Sort, ByteRange)>,
    short: HashSet<Short>,
}

impl Maker {
    /// Blocks of data and of nothing, so that the first copy meets both.
    fn base(&self, filled: bool) -> Vec<u8> {
        let mut base = vec![0; usize::try_from(self.size_bytes).expect("a small disk")];
        if filled {
            for (number, block) in base.chunks_mut(24 * 1024).enumerate().step_by(2) {
                let whole = ByteRange::new(number as u64 * 24 * 1024, block.len() as u64);
                let whole = whole.expect("a small disk");
                block.copy_from_slice(&noise(self.salt, whole));
            }
        }
        base
    }

    fn op(&mut self, number: u64, draw: &Draw) -> Op {
        let range = self.place(draw);
        let nowhere = ByteRange::new(0, 0).expect("empty");
        let mut op = Op {
            sort: draw.sort,
            range,
            fua: draw.fua && draw.sort != Sort::Read,
            no_hole: draw.no_hole && draw.sort == Sort::Zero,
            fast: draw.fast && draw.sort == Sort::Zero,
            data: Vec::new(),
        };
        match draw.sort {
            Sort::Write => op.data = self.contents(number, range, draw.packs),
            Sort::Zero | Sort::Trim => {
                op.no_hole |= self.mark_zeroes && draw.sort == Sort::Zero && !op.fua;
                let cleared = cleared(draw.sort, range, self.unit_bytes);
                if cleared.is_some_and(|range| !self.cleared.insert((draw.sort, range))) {
                    op = Op { sort: Sort::Flush, no_hole: false, fast: false, ..op };
                }
            }
            Sort::Read | Sort::Flush => {}
        }
        if op.sort == Sort::Flush {
            op = Op { range: nowhere, fua: false, ..op };
        }
        op
    }

    fn place(&self, draw: &Draw) -> ByteRange {
        let within = if draw.hot { HOT_BYTES.min(self.size_bytes) } else { self.size_bytes };
        let start = draw.at % within;
        let start = start - start % draw.unit;
        let len = draw.len.next_multiple_of(draw.unit).min(self.size_bytes - start);
        ByteRange::new(start, len).expect("inside of the disk")
    }

    fn contents(&mut self, number: u64, range: ByteRange, packs: bool) -> Vec<u8> {
        // A short write may look like another by chance; then it gets other contents.
        for turn in 0u64.. {
            let salt = self.salt ^ (number << 32) ^ (turn << 20) ^ u64::from(packs);
            let data = if packs { pattern(salt, range) } else { noise(salt, range) };
            if data.len() > 16 || self.short.insert((range.start(), data.clone())) {
                return data;
            }
            assert!(turn < 4000, "more writes of one byte at one place than it has values");
        }
        unreachable!("the loop ends by itself")
    }
}

/// The range that reads as zeroes after a zeroing or a trim; `None` when a trim is too short.
pub(crate) fn cleared(sort: Sort, range: ByteRange, unit_bytes: u64) -> Option<ByteRange> {
    if sort == Sort::Trim { range.align_inward(unit_bytes) } else { Some(range) }
}

/// Bytes that do not shrink.
fn noise(salt: u64, range: ByteRange) -> Vec<u8> {
    let first = range.start() / 8;
    let last = range.end().div_ceil(8);
    let mut bytes: Vec<u8> =
        (first..last).flat_map(|word| mix(salt ^ mix(word)).to_le_bytes()).collect();
    let lead = usize::try_from(range.start() % 8).expect("below 8");
    bytes.drain(..lead);
    bytes.truncate(usize::try_from(range.len()).expect("short"));
    bytes
}

/// Bytes that shrink: 40 of them again and again.
fn pattern(salt: u64, range: ByteRange) -> Vec<u8> {
    let words: Vec<u8> = (0..5).flat_map(|word| mix(salt ^ mix(word)).to_le_bytes()).collect();
    (range.start()..range.end())
        .map(|at| words[usize::try_from(at % 40).expect("below 40")])
        .collect()
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}
