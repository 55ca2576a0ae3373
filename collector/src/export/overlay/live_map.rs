//! The map that is believed after a kill of the process, within one boot; see [`super::format`].
//!
//! It is written with every change of a block's state and never synced: the page cache outlives
//! the process. A crash of the machine may leave anything of it, and then nobody reads it.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use zerocopy::{FromZeros, IntoBytes};

use super::format::{BODY_AT, BootId, Head, Identity, LIVE_FILE, LIVE_MAGIC};
use super::states::{States, map_bytes};
use crate::storage::{Storage, StorageFile};

/// Bytes of one write while the file is made.
const WRITE_BYTES: usize = 1 << 20;

pub(super) struct LiveMap<S: Storage> {
    file: S::File,
}

impl<S: Storage> LiveMap<S> {
    /// Writes a map of this boot; it replaces the one that is there. Written in full, so that a
    /// later change needs no new space.
    pub(super) fn write_new(
        storage: &Arc<S>,
        dir: &Path,
        identity: &Identity,
        boot: BootId,
        states: &[u8],
    ) -> io::Result<Self> {
        let new = dir.join("overlay.live.new");
        match storage.remove(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = storage.create(&new)?;
        file.write_at(Head::new(LIVE_MAGIC, identity, boot).as_bytes(), 0)?;
        let mut at = BODY_AT;
        for part in states.chunks(WRITE_BYTES) {
            file.write_at(part, at)?;
            at += part.len() as u64;
        }
        storage.rename(&new, &dir.join(LIVE_FILE))?;
        Ok(Self { file })
    }

    /// The states as the process before left them; `None` when there is nothing to believe.
    pub(super) fn load(
        storage: &Arc<S>,
        dir: &Path,
        identity: &Identity,
        boot: BootId,
    ) -> Option<States> {
        let file = storage.open_read_only(&dir.join(LIVE_FILE)).ok()?;
        let mut head = Head::new_zeroed();
        file.read_at(head.as_mut_bytes(), 0).ok()?;
        head.check(LIVE_MAGIC, identity).ok()?;
        if head.boot != boot {
            return None;
        }
        let mut bytes = vec![0; map_bytes(identity.size_bytes)];
        file.read_at(&mut bytes, BODY_AT).ok()?;
        States::from_bytes(identity.size_bytes, bytes)
    }

    /// Takes over bytes of the map.
    pub(super) fn put(&self, states: &States, changed: Range<usize>) -> io::Result<()> {
        self.file.write_at(&states.bytes()[changed.clone()], BODY_AT + changed.start as u64)
    }

    /// Makes it one that nobody believes.
    pub(super) fn distrust(&self) -> io::Result<()> {
        self.file.write_at(Head::new_zeroed().as_bytes(), 0)
    }
}
