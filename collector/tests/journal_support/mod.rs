//! A sender of random records with a model of the disk that they make.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, reason = "tests")]

pub(crate) mod golden;

use tidemark_collector::error::JournalError;
use tidemark_collector::journal::{Journal, JournalIdentity};
use tidemark_collector::storage::Storage;
use tidemark_wire::codec::Compressor;
use tidemark_wire::frame::{RecordsBody, RecordsHeader};
use tidemark_wire::record::{self, RecordSpec};
use tidemark_wire::{Epoch, JournalId, Record, RecordKind, Seq, Timeline, VolumeId, WallMicros};
use zerocopy::IntoBytes;

pub(crate) const VOLUME_BYTES: u64 = 600 * 1024;

pub(crate) fn identity() -> JournalIdentity {
    JournalIdentity {
        volume: VolumeId::from_bytes([1; 16]),
        journal: JournalId::from_bytes([2; 16]),
        timeline: Timeline(1),
        epoch: Epoch(3),
        size_bytes: VOLUME_BYTES,
    }
}

/// One record as bytes, with what it does to the model.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) seq: Seq,
    pub(crate) bytes: Vec<u8>,
}

/// Frames of consecutive records.
pub(crate) struct Batch {
    body: Vec<u8>,
}

pub(crate) fn spec(kind: RecordKind, offset: u64, len: u64, payload_bytes: usize) -> RecordSpec {
    RecordSpec {
        kind,
        offset_bytes: offset,
        len_bytes: len,
        payload_bytes: u32::try_from(payload_bytes).unwrap(),
        flags: 0,
        aux: 0,
    }
}

/// A record; compressed where that makes it smaller and `pack` says so.
pub(crate) fn make(spec: &RecordSpec, seq: u64, payload: &[u8], pack: bool) -> Made {
    let mut bytes = Vec::new();
    record::encode(spec, Seq(seq), WallMicros(seq * 1000), payload, &mut bytes);
    if pack && let Some(packed) = Compressor::default().compress(payload) {
        let record = Record::decode(&bytes).unwrap();
        let mut header = *record.header;
        header.codec = 1;
        header.stored_bytes = u32::try_from(packed.len()).unwrap().into();
        header.seal(record.sums);
        let mut out = header.as_bytes().to_vec();
        out.extend_from_slice(record.sums.as_bytes());
        out.extend_from_slice(packed);
        out.resize(out.len() + header.padding_bytes(), 0);
        bytes = out;
    }
    Made { seq: Seq(seq), bytes }
}

impl Batch {
    pub(crate) fn of(prev: Seq, records: &[Made]) -> Self {
        let first = records.first().map_or(prev, |made| made.seq);
        let last = records.last().map_or(prev, |made| made.seq);
        let header = RecordsHeader {
            timeline: 1.into(),
            count: u32::try_from(records.len()).unwrap().into(),
            epoch: 3.into(),
            prev_seq: prev.0.into(),
            first_seq: first.0.into(),
            last_seq: last.0.into(),
            token: 0.into(),
        };
        let mut body = header.as_bytes().to_vec();
        records.iter().for_each(|made| body.extend_from_slice(&made.bytes));
        Self { body }
    }

    pub(crate) fn append_to<S: Storage>(
        &self,
        journal: &mut Journal<S>,
    ) -> Result<(), JournalError> {
        journal.append(&RecordsBody::decode(&self.body).unwrap())
    }
}

pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// What a record does to the disk.
pub(crate) fn apply(image: &mut Vec<u8>, bytes: &[u8]) {
    let record = Record::decode(bytes).unwrap();
    let mut scratch = Vec::new();
    let payload = record.payload(&mut scratch).unwrap();
    let start = usize::try_from(record.header.offset_bytes.get()).unwrap();
    let len = usize::try_from(record.header.len_bytes.get()).unwrap();
    match record.kind {
        RecordKind::Write | RecordKind::ReadBack => {
            image[start..start + len].copy_from_slice(payload);
        }
        RecordKind::WriteZeroes | RecordKind::Trim => image[start..start + len].fill(0),
        RecordKind::Resize => image.resize(len, 0),
        _ => {}
    }
}

/// Sends random records; the same seed gives the same ones.
pub(crate) struct Sender {
    records: Vec<Made>,
}

impl Sender {
    pub(crate) fn new(seed: u64, count: u64) -> Self {
        let mut random = Random::new(seed);
        let mut seq = 0;
        let records = (0..count).map(|_| {
            seq += 1 + random.below(3);
            let offset = random.below(VOLUME_BYTES - 1);
            let len = 1 + random.below((VOLUME_BYTES - offset).min(9000));
            match random.below(8) {
                0 => make(&spec(RecordKind::Flush, 0, 0, 0), seq, &[], false),
                1 => {
                    make(&spec(RecordKind::Trim, offset, VOLUME_BYTES - offset, 0), seq, &[], false)
                }
                _ => {
                    let fill = u8::try_from(random.below(256)).unwrap();
                    let mut payload = vec![fill; usize::try_from(len).unwrap()];
                    let pack = random.below(2) == 0;
                    if !pack {
                        payload.fill_with(|| u8::try_from(random.below(256)).unwrap());
                    }
                    make(&spec(RecordKind::Write, offset, len, payload.len()), seq, &payload, pack)
                }
            }
        });
        Self { records: records.collect() }
    }

    pub(crate) fn seqs(&self) -> impl Iterator<Item = Seq> {
        self.records.iter().map(|made| made.seq)
    }

    pub(crate) fn last(&self) -> Seq {
        self.records.last().unwrap().seq
    }

    /// What follows `after`, three records at a time.
    pub(crate) fn batches_after(&self, after: Seq) -> impl Iterator<Item = Batch> {
        let from = self.records.partition_point(|made| made.seq <= after);
        let mut prev = after;
        self.records[from..].chunks(3).map(move |records| {
            let batch = Batch::of(prev, records);
            prev = records.last().unwrap().seq;
            batch
        })
    }

    pub(crate) fn image_at(&self, at: Seq) -> Vec<u8> {
        let mut image = vec![0; usize::try_from(VOLUME_BYTES).unwrap()];
        for made in self.records.iter().take_while(|made| made.seq <= at) {
            apply(&mut image, &made.bytes);
        }
        image
    }
}
