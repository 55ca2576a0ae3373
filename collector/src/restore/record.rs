//! The record of an unfinished restore: which state goes where, and the sums of what is written.
//!
//! The disk is cut into chunks of one size. The record holds one sum for each chunk from the
//! start that was whole when the target was last synced, so it never speaks of bytes that a power
//! cut could take. It is written to another name, synced and renamed. It is text; the checksum
//! covers the same text with an empty checksum. A record that is damaged is as good as none.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidemark_wire::{Seq, checksum};

use super::place::{remove_if_there, sync_parent};
use super::target::BLOCK_BYTES;
use super::{Subject, command};
use crate::error::{Failure, Result};
use crate::storage::document::{self, Document};

/// Chunks of one disk, about; so the record stays below a megabyte.
const CHUNKS_MAX: u64 = 16 << 10;
const CHUNK_BYTES_MIN: u64 = 1 << 20;
/// Longest record that is read.
const RECORD_BYTES_MAX: u64 = 4 << 20;

/// How the bytes of the disk lie in the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// One after the other.
    Raw,
    /// As QEMU's qcow2 does it.
    Qcow2,
}

/// What is known of an unfinished restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    format: String,
    version: u32,
    volume: String,
    /// For people; the volume may have another name by now.
    name: String,
    journal: String,
    timeline: u32,
    seq: u64,
    size_bytes: u64,
    pub(super) target_format: Format,
    pub(super) overwrite: bool,
    pub(super) chunk_bytes: u64,
    /// One for each chunk that is written and synced, from the start of the disk on.
    sums: Vec<ChunkSum>,
    checksum: String,
}

impl Document for Record {
    const FORMAT: &'static str = "tidemark unfinished restore";
    const VERSION: u32 = 1;

    fn head(&self) -> (&str, u32) {
        (&self.format, self.version)
    }

    fn checksum(&mut self) -> &mut String {
        &mut self.checksum
    }
}

impl Record {
    /// Of a restore that has written nothing.
    pub(super) fn new(subject: &Subject, target_format: Format, overwrite: bool) -> Self {
        let chunk_bytes = (subject.size_bytes / CHUNKS_MAX).next_power_of_two();
        Self {
            format: Self::FORMAT.to_owned(),
            version: Self::VERSION,
            volume: subject.volume.to_string(),
            name: subject.name.clone(),
            journal: subject.journal.to_string(),
            timeline: subject.timeline.0,
            seq: subject.seq.0,
            size_bytes: subject.size_bytes,
            target_format,
            overwrite,
            chunk_bytes: chunk_bytes.max(CHUNK_BYTES_MIN),
            sums: Vec::new(),
            checksum: String::new(),
        }
    }

    /// The record at a path; `None` when there is none, or none that can be believed.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn load(path: &Path) -> Result<Option<Self>> {
        let failed = |source| Failure::io("read", path, source);
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
            Ok(found) if !found.is_file() || found.len() > RECORD_BYTES_MAX => return Ok(None),
            Ok(_) => {}
        }
        let decoded = Self::decode(&fs::read(path).map_err(failed)?);
        if let Err(detail) = &decoded {
            tracing::warn!(path = %path.display(), detail, "this record is not believed");
        }
        Ok(decoded.ok())
    }

    fn decode(bytes: &[u8]) -> std::result::Result<Self, String> {
        let record: Self = document::decode(bytes)?;
        let unit = record.chunk_bytes;
        let chunks = record.size_bytes.div_ceil(unit.max(1));
        if !unit.is_power_of_two() || unit < CHUNK_BYTES_MIN || record.sums.len() as u64 > chunks {
            return Err(format!("{} chunks of {unit} bytes", record.sums.len()));
        }
        Ok(record)
    }

    /// Replaces the record at a path; it is durable on return.
    ///
    /// # Errors
    /// What the system says; the old one then still holds.
    pub(super) fn store(&self, path: &Path) -> Result<()> {
        let bytes = document::encode(self.clone());
        let new = path.with_extension("json.new");
        let failed = |doing: &'static str, path: &PathBuf| {
            let path = path.clone();
            move |source| Failure::io(doing, &path, source)
        };
        remove_if_there(&new).map_err(failed("remove", &new))?;
        let mut file = File::create_new(&new).map_err(failed("create", &new))?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(failed("write", &new))?;
        fs::rename(&new, path).map_err(failed("rename", &new))?;
        sync_parent(path)
    }

    /// Whether it speaks of this state.
    pub(super) fn is_of(&self, subject: &Subject) -> bool {
        self.volume == subject.volume.to_string()
            && self.journal == subject.journal.to_string()
            && self.timeline == subject.timeline.0
            && self.seq == subject.seq.0
            && self.size_bytes == subject.size_bytes
    }

    /// The command that goes on with it.
    pub(super) fn command(&self, target: &Path) -> String {
        command(&self.name, Seq(self.seq), target)
    }

    /// What was being restored, for people.
    pub(super) fn describe(&self) -> String {
        let percent = u128::from(self.done_bytes()) * 100 / u128::from(self.size_bytes.max(1));
        format!("volume {} at seq:{} ({percent} % done)", self.name, self.seq)
    }

    /// Bytes of the disk that were written, from its start.
    pub(super) fn done_bytes(&self) -> u64 {
        (self.sums.len() as u64 * self.chunk_bytes).min(self.size_bytes)
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The sums of the chunks that were written, in order.
    pub(super) fn sums(&self) -> &[ChunkSum] {
        &self.sums
    }

    /// A chunk is written: the next one, or an earlier one anew.
    pub(super) fn set(&mut self, chunk: usize, sum: ChunkSum) {
        match self.sums.get_mut(chunk) {
            Some(slot) => *slot = sum,
            None => {
                debug_assert_eq!(chunk, self.sums.len(), "chunks are written in order");
                self.sums.push(sum);
            }
        }
    }
}

/// Sum of one chunk: XXH3-64, chained over its blocks of [`BLOCK_BYTES`] that are not all zeroes,
/// each with its number on the disk. Zeroes therefore cost nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChunkSum(u64);

impl ChunkSum {
    /// Adds the bytes at a place on the disk, which is one where a block begins. Returns nothing
    /// that the caller has to keep; `each` is told which runs of them are data or zeroes.
    pub(super) fn add(
        &mut self,
        at: u64,
        bytes: &[u8],
        mut each: impl FnMut(u64, &[u8], bool) -> Result<()>,
    ) -> Result<()> {
        debug_assert_eq!(at % BLOCK_BYTES as u64, 0, "blocks lie on their grid");
        let (mut start, mut start_zero) = (0, true);
        for (index, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
            let from = index * BLOCK_BYTES;
            let zero = is_zero(block);
            if zero != start_zero && from > start {
                each(at + start as u64, &bytes[start..from], start_zero)?;
                start = from;
            }
            start_zero = zero;
            if !zero {
                let number = (at / BLOCK_BYTES as u64 + index as u64).to_le_bytes();
                self.0 = checksum::sum_parts(&[&self.0.to_le_bytes(), &number, block]);
            }
        }
        if start < bytes.len() {
            each(at + start as u64, &bytes[start..], start_zero)?;
        }
        Ok(())
    }
}

/// Looks at whole words, since this runs over every byte of a disk.
fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
