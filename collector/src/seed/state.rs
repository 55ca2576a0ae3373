//! `seed.json`: which state the seed is, and what is being done to it. The format's only home.
//!
//! What enters: a changed state. What leaves: the file, replaced by writing another one, syncing
//! it, renaming it and syncing the directory, so a crash leaves the old state or the new one. It
//! is text for the person who has nothing but the disk left: while `merging_to` or `installing`
//! is set, `seed.img` is no state of the volume and must not be opened by other tools. The
//! checksum covers the same text with an empty checksum.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tidemark_block::ByteRange;
use tidemark_wire::limits::VOLUME_BYTES_MAX;
use tidemark_wire::{Seq, WallMicros};

use super::lost::{Lost, LostRanges};
use crate::error::{Damage, JournalError, Part};
use crate::journal::Base;
use crate::storage::document::{self, Document};
use crate::storage::{Storage, StorageFile};

/// Longest file that is read.
const STATE_BYTES_MAX: u64 = 32 << 20;

/// What the seed is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SeedState {
    pub(super) base: Base,
    /// The state that the seed is becoming.
    pub(super) merging_to: Option<Seq>,
    /// The image of state 0 was imported and is not all zero.
    pub(super) seeded: bool,
    /// Image and sums are being replaced by the ones beside them that end in `.new`.
    pub(super) installing: bool,
    pub(super) lost: LostRanges,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: String,
    version: u32,
    at: u64,
    time_us: Option<u64>,
    merging_to: Option<u64>,
    installing: bool,
    seeded: bool,
    size_bytes: u64,
    chain: String,
    span_begin: u64,
    span_resync: String,
    /// The record at `at`, when it is a recovery point; else empty.
    point: String,
    unreadable: Vec<LostText>,
    checksum: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LostText {
    offset_bytes: u64,
    len_bytes: u64,
    seq: u64,
    errno: u64,
}

impl Document for Text {
    const FORMAT: &'static str = "tidemark seed state";
    const VERSION: u32 = 1;

    fn head(&self) -> (&str, u32) {
        (&self.format, self.version)
    }

    fn checksum(&mut self) -> &mut String {
        &mut self.checksum
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(field: &str, text: &str) -> Result<Vec<u8>, String> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|pair| {
        let digits = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(digits, 16).ok()
    });
    bytes
        .collect::<Option<_>>()
        .filter(|_| rest.is_empty())
        .ok_or_else(|| format!("{field} is not hexadecimal"))
}

fn array_from_hex<const N: usize>(field: &str, text: &str) -> Result<[u8; N], String> {
    from_hex(field, text)?
        .try_into()
        .map_err(|_| format!("{field} has not {} hexadecimal digits", 2 * N))
}

impl SeedState {
    pub(super) fn empty(size_bytes: u64) -> Self {
        let (base, lost) = (Base::empty(size_bytes), LostRanges::default());
        Self { base, merging_to: None, seeded: false, installing: false, lost }
    }

    fn encode(&self) -> Vec<u8> {
        let unreadable = self.lost.list().iter().map(|lost| LostText {
            offset_bytes: lost.range.start(),
            len_bytes: lost.range.len(),
            seq: lost.seq.0,
            errno: lost.errno,
        });
        document::encode(Text {
            format: Text::FORMAT.to_owned(),
            version: Text::VERSION,
            at: self.base.at.0,
            time_us: self.base.time.map(|time| time.0),
            merging_to: self.merging_to.map(|seq| seq.0),
            installing: self.installing,
            seeded: self.seeded,
            size_bytes: self.base.size_bytes,
            chain: to_hex(&self.base.chain),
            span_begin: self.base.span_begin.0,
            span_resync: to_hex(&self.base.span_resync),
            point: to_hex(&self.base.point),
            unreadable: unreadable.collect(),
            checksum: String::new(),
        })
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let text: Text = document::decode(bytes)?;
        if text.size_bytes > VOLUME_BYTES_MAX {
            return Err(format!("a volume of {} bytes", text.size_bytes));
        }
        let lost = text.unreadable.iter().map(|lost| {
            let range = ByteRange::new(lost.offset_bytes, lost.len_bytes)?;
            Some(Lost { range, seq: Seq(lost.seq), errno: lost.errno })
        });
        let lost = lost.collect::<Option<Vec<_>>>().and_then(LostRanges::from_sorted);
        let base = Base {
            at: Seq(text.at),
            time: text.time_us.map(WallMicros),
            chain: array_from_hex("chain", &text.chain)?,
            span_begin: Seq(text.span_begin),
            span_resync: array_from_hex("span_resync", &text.span_resync)?,
            size_bytes: text.size_bytes,
            point: from_hex("point", &text.point)?,
        };
        if !base.point.is_empty() && base.mark().is_none() {
            return Err(format!("point is not the record {}", base.at));
        }
        Ok(Self {
            base,
            merging_to: text.merging_to.map(Seq),
            seeded: text.seeded,
            installing: text.installing,
            lost: lost.ok_or("its unreadable ranges overlap or wrap")?,
        })
    }

    /// Reads the file; `None` when there is none.
    pub(super) fn load<S: Storage>(storage: &S, path: &Path) -> Result<Option<Self>, JournalError> {
        let file = match storage.open_read_only(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(JournalError::io("open", path))?,
        };
        let len = file.len().map_err(JournalError::io("look at", path))?.min(STATE_BYTES_MAX);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        file.read_at(&mut bytes, 0).map_err(JournalError::io("read", path))?;
        let damage = |detail| Damage::new(path, Part::SeedState, 0, detail).into();
        Self::decode(&bytes).map(Some).map_err(damage)
    }

    /// Replaces the file; it is durable on return. After an error either state may be there.
    pub(super) fn store<S: Storage>(&self, storage: &S, path: &Path) -> Result<(), JournalError> {
        document::replace(storage, path, &self.encode())
            .map_err(|failed| JournalError::io(failed.doing, &failed.path)(failed.source))
    }
}

pub(super) fn remove_if_there<S: Storage>(storage: &S, path: &Path) -> Result<(), JournalError> {
    match storage.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(JournalError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn state() -> SeedState {
        let mut lost = LostRanges::default();
        lost.add(Lost { range: ByteRange::new(512, 1024).unwrap(), seq: Seq(6), errno: 5 });
        let base = Base {
            at: Seq(7),
            time: Some(WallMicros(1_700_000_000_000_000)),
            chain: [0xA5; 32],
            span_begin: Seq(3),
            span_resync: [9; 16],
            size_bytes: 1 << 30,
            point: Vec::new(),
        };
        SeedState { base, merging_to: Some(Seq(12)), seeded: true, installing: false, lost }
    }

    #[test]
    fn a_state_reads_back_as_it_was_written() {
        assert_eq!(SeedState::decode(&state().encode()), Ok(state()));
        let empty = SeedState::empty(4096);
        assert_eq!(SeedState::decode(&empty.encode()), Ok(empty));
    }

    #[test]
    fn the_file_is_the_golden_one() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/seed/seed.json");
        let golden = std::fs::read_to_string(path).unwrap();
        assert_eq!(String::from_utf8(state().encode()).unwrap(), golden);
        assert_eq!(SeedState::decode(golden.as_bytes()), Ok(state()));
    }

    #[test]
    fn a_point_that_is_another_record_is_damage() {
        let mut other = state();
        other.base.point = vec![1, 2, 3];
        let error = SeedState::decode(&other.encode()).unwrap_err();
        assert!(error.contains("point is not the record 7"), "{error}");
    }

    #[test]
    fn damage_is_found_and_named() {
        let whole = String::from_utf8(state().encode()).unwrap();
        for (from, to, wanted) in [
            ("\"at\": 7", "\"at\": 6", "checksum"),
            ("\"version\": 1", "\"version\": 9", "version 9"),
            ("\"seeded\"", "\"seedet\"", "seedet"),
            ("tidemark seed", "something", "format"),
        ] {
            let damaged = whole.replace(from, to);
            assert_ne!(damaged, whole);
            let error = SeedState::decode(damaged.as_bytes()).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
        for len in 0..whole.len() - 2 {
            assert!(SeedState::decode(&whole.as_bytes()[..len]).is_err());
        }
    }
}
