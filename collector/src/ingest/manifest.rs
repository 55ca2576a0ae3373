//! The manifest of a volume: who it is, which copy this is, how far its epochs have come.
//!
//! What enters: a changed manifest. What leaves: `manifest.json` beside the volume's journal.
//! The volume's writer owns it. It is written to another name, synced and renamed, and the
//! directory is synced, before what it says takes effect; so a crash leaves the old one or the
//! new one. It is text for the person who has nothing but the disk left; the checksum covers the
//! same text with an empty checksum. What a person decided for the volume, and what its agent told,
//! is in it only when there is something, so a manifest of a version that did not know it yet reads
//! the same.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidemark_wire::{AgentId, Epoch, JournalId, Timeline, VolumeId, WallMicros};

use crate::error::{Failure, Result};
use crate::policy::Overrides;
use crate::storage::document::{self, Document};
use crate::storage::{Storage, StorageFile};

/// Name of the file in the volume's directory.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Longest manifest that is read.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// What is known of a volume for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The volume.
    pub volume: VolumeId,
    /// Its name, as its agent gave it.
    pub name: String,
    /// Its size before the first record, in bytes.
    pub size_bytes: u64,
    /// Smallest unit in which it is written, in bytes.
    pub block_bytes: u32,
    /// This copy of it.
    pub journal: JournalId,
    /// The timeline that goes on.
    pub timeline: Timeline,
    /// Epoch of the newest session.
    pub epoch: Epoch,
    /// Epoch of the newest session in which its agent said anything after the welcome, so that it
    /// is sure to have kept that epoch.
    pub heard: Epoch,
    /// The agent could not keep what may differ when it was heard last: its next start has to
    /// compare the whole volume.
    pub compare_next: bool,
    /// The agent of that session.
    pub agent: AgentId,
    /// When the copy was begun.
    pub created: WallMicros,
    /// What a person decided for this volume and not for the others.
    pub policy: Overrides,
    /// Set while the volume is retired.
    pub retired: Option<Retired>,
    /// The copy below the journal was begun from an image, not from zeroes.
    pub seeded: bool,
}

/// A volume is no longer protected, and its history goes in a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retired {
    /// When a person wanted that.
    pub since: WallMicros,
    /// When everything that is kept of it is erased.
    pub erase_after: WallMicros,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: String,
    version: u32,
    volume: String,
    name: String,
    size_bytes: u64,
    block_bytes: u32,
    journal: String,
    timeline: u32,
    epoch: u64,
    #[serde(default, skip_serializing_if = "is_default")]
    heard: u64,
    #[serde(default, skip_serializing_if = "is_default")]
    compare_next: bool,
    agent: String,
    created_us: u64,
    #[serde(default, skip_serializing_if = "is_default")]
    policy: Overrides,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retired: Option<RetiredText>,
    #[serde(default, skip_serializing_if = "is_default")]
    seeded: bool,
    checksum: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RetiredText {
    since_us: u64,
    erase_after_us: u64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Document for Text {
    const FORMAT: &'static str = "tidemark volume manifest";
    const VERSION: u32 = 1;

    fn head(&self) -> (&str, u32) {
        (&self.format, self.version)
    }

    fn checksum(&mut self) -> &mut String {
        &mut self.checksum
    }
}

impl Manifest {
    fn encode(&self) -> Vec<u8> {
        document::encode(Text {
            format: Text::FORMAT.to_owned(),
            version: Text::VERSION,
            volume: self.volume.to_string(),
            name: self.name.clone(),
            size_bytes: self.size_bytes,
            block_bytes: self.block_bytes,
            journal: self.journal.to_string(),
            timeline: self.timeline.0,
            epoch: self.epoch.0,
            heard: self.heard.0,
            compare_next: self.compare_next,
            agent: self.agent.to_string(),
            created_us: self.created.0,
            policy: self.policy,
            retired: self.retired.map(|retired| RetiredText {
                since_us: retired.since.0,
                erase_after_us: retired.erase_after.0,
            }),
            seeded: self.seeded,
            checksum: String::new(),
        })
    }

    fn decode(bytes: &[u8]) -> std::result::Result<Self, String> {
        let text: Text = document::decode(bytes)?;
        text.policy.check().map_err(|error| format!("policy: {error}"))?;
        let id = |field: &str, value: &str| {
            value
                .parse::<uuid::Uuid>()
                .map(|id| *id.as_bytes())
                .map_err(|e| format!("{field}: {e}"))
        };
        Ok(Self {
            volume: VolumeId::from_bytes(id("volume", &text.volume)?),
            size_bytes: text.size_bytes,
            block_bytes: text.block_bytes,
            journal: JournalId::from_bytes(id("journal", &text.journal)?),
            timeline: Timeline(text.timeline),
            epoch: Epoch(text.epoch),
            heard: Epoch(text.heard),
            compare_next: text.compare_next,
            agent: AgentId::from_bytes(id("agent", &text.agent)?),
            created: WallMicros(text.created_us),
            policy: text.policy,
            retired: text.retired.map(|retired| Retired {
                since: WallMicros(retired.since_us),
                erase_after: WallMicros(retired.erase_after_us),
            }),
            seeded: text.seeded,
            name: text.name,
        })
    }

    /// Reads the manifest of a volume's directory.
    ///
    /// # Errors
    /// `NotFound` when there is none, `Internal` when it is damaged or can't be read.
    pub fn load<S: Storage>(storage: &Arc<S>, dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST_FILE);
        let failed = |source| Failure::io("read", &path, source);
        let file = storage.open_read_only(&path).map_err(failed)?;
        let len = file.len().map_err(failed)?.min(MANIFEST_BYTES_MAX);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        file.read_at(&mut bytes, 0).map_err(failed)?;
        Self::decode(&bytes).map_err(|detail| {
            Failure::internal(format!("the manifest {} is damaged: {detail}", path.display()))
                .with_hint("put back a copy of it; the volume is left alone until then")
        })
    }

    /// Replaces the manifest of a volume's directory; it is durable on return.
    ///
    /// # Errors
    /// What the system says; the old manifest then still holds.
    pub fn store<S: Storage>(&self, storage: &Arc<S>, dir: &Path) -> Result<()> {
        document::replace(storage.as_ref(), &dir.join(MANIFEST_FILE), &self.encode())
            .map_err(|failed| Failure::io(failed.doing, &failed.path, failed.source))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::storage::RealStorage;

    fn manifest() -> Manifest {
        Manifest {
            volume: VolumeId::from_bytes([1; 16]),
            name: "db \"one\"".into(),
            size_bytes: 1 << 30,
            block_bytes: 512,
            journal: JournalId::from_bytes([2; 16]),
            timeline: Timeline(1),
            epoch: Epoch(7),
            heard: Epoch(0),
            compare_next: false,
            agent: AgentId::from_bytes([3; 16]),
            created: WallMicros(1_700_000_000_000_000),
            policy: Overrides::default(),
            retired: None,
            seeded: false,
        }
    }

    #[test]
    fn a_manifest_without_decisions_is_as_it_always_was() {
        let text = String::from_utf8(manifest().encode()).unwrap();
        assert!(text.contains("\"checksum\": \"da7a0b4602ad4961\""), "{text}");
        for later in ["policy", "retired", "seeded", "heard", "compare_next"] {
            assert!(!text.contains(later), "{later}");
        }
    }

    #[test]
    fn what_was_decided_or_heard_is_kept() {
        let wanted = Manifest {
            policy: Overrides { window_seconds: Some(7200), ..Overrides::default() },
            retired: Some(Retired { since: WallMicros(5), erase_after: WallMicros(9) }),
            seeded: true,
            heard: Epoch(6),
            compare_next: true,
            ..manifest()
        };
        assert_eq!(Manifest::decode(&wanted.encode()).unwrap(), wanted);
        let wrong = Overrides { window_seconds: Some(0), ..Overrides::default() };
        let error = Manifest::decode(&Manifest { policy: wrong, ..wanted }.encode()).unwrap_err();
        assert!(error.contains("policy: a window of 0 s"), "{error}");
    }

    #[test]
    fn a_stored_manifest_loads_and_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Arc::new(RealStorage);
        let mut wanted = manifest();
        for epoch in 8..10 {
            wanted.epoch = Epoch(epoch);
            wanted.store(&storage, dir.path()).unwrap();
            assert_eq!(Manifest::load(&storage, dir.path()).unwrap(), wanted);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn damage_is_found_and_named() {
        let whole = String::from_utf8(manifest().encode()).unwrap();
        for (from, to, wanted) in [
            ("\"epoch\": 7", "\"epoch\": 6", "checksum"),
            ("\"version\": 1", "\"version\": 9", "version 9"),
            ("\"name\"", "\"nome\"", "nome"),
            ("tidemark volume", "something", "format"),
        ] {
            let damaged = whole.replace(from, to);
            assert_ne!(damaged, whole);
            let error = Manifest::decode(damaged.as_bytes()).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
        for len in 0..whole.len() - 2 {
            assert!(Manifest::decode(&whole.as_bytes()[..len]).is_err());
        }
    }
}
