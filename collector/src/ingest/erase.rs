//! Erasing a retired volume with everything that is kept of it.
//!
//! What enters: a volume that nothing uses. What leaves: its directory under the name of something
//! doomed, then nothing. The rename is what decides: a crash before it leaves the retired volume
//! as it was, a crash after it leaves a directory that the next start removes. Only then is the
//! volume unknown, so an agent that comes again registers it anew and never meets half of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::after;
use tidemark_wire::VolumeId;

use super::volume::{Volume, volume_dir};
use super::volumes::Volumes;
use crate::error::{Failure, Result};
use crate::storage::Storage;

/// How the directory of an erased volume is named, behind the volume's identity.
const ERASED_SUFFIX: &str = ".erased";
/// How long readers that came just before may take to show what they read, or to end.
const READERS_WAIT: Duration = Duration::from_secs(1);

/// The volume whose erased directory has this name.
#[must_use]
pub fn erased_volume(name: &str) -> Option<VolumeId> {
    name.strip_suffix(ERASED_SUFFIX)?.parse().ok()
}

/// A directory that nobody needs any more.
pub struct Doomed(PathBuf);

impl Doomed {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl<S: Storage> Volumes<S> {
    /// Makes a retired volume unknown, durably; its files are left to [`Volumes::remove_doomed`].
    /// Blocks for about a second.
    ///
    /// # Errors
    /// `Conflict` when it is not retired, is being seeded or something reads it; what the system says when the
    /// directory can't be renamed. The volume is as before then.
    pub fn erase(&self, volume: &Arc<Volume<S>>) -> Result<Doomed> {
        let name = volume.name();
        let facts = volume.facts();
        if facts.manifest.retired.is_none() {
            return Err(Failure::conflict(format!("volume {name} is not retired"))
                .with_hint(format!("retire it first: tidemark volume retire {name}")));
        }
        if facts.seeding {
            // The new seed would be put into whatever volume has the name then.
            return Err(Failure::conflict(format!("volume {name} is being seeded"))
                .with_hint("cancel that job first"));
        }
        let Some(held) = volume.begin_erase() else {
            return Err(Failure::conflict(format!("volume {name} is being erased already")));
        };
        // Nothing can be opened from here on. What was about to be is pinned within the wait.
        wait(READERS_WAIT);
        let is_read = held.as_ref().is_some_and(|held| !held.reader.pinned().is_empty());
        if is_read {
            volume.cancel_erase(held);
            return Err(Failure::conflict(format!("volume {name} is being read"))
                .with_hint("end its exports and jobs first"));
        }
        if let Some(held) = held {
            // A merge that works writes to names, and those may be another volume's soon.
            held.seed.close();
        }
        self.remove(volume.id(), || {
            // Its writer has ended: nobody decides otherwise any more.
            if volume.facts().manifest.retired.is_none() {
                return Err(Failure::conflict(format!("volume {name} was taken back meanwhile")));
            }
            self.doom(volume.id())
        })
    }

    /// Gives the directory its last name.
    fn doom(&self, id: VolumeId) -> Result<Doomed> {
        let storage = self.storage();
        let dir = volume_dir(self.data_dir(), id);
        let above = dir.parent().expect("a volume's directory lies below the data directory");
        let doomed = above.join(format!("{id}{ERASED_SUFFIX}"));
        // Left over from another life of the same volume.
        storage.remove_tree(&doomed).map_err(|source| Failure::io("remove", &doomed, source))?;
        storage
            .rename(&dir, &doomed)
            .and_then(|()| storage.sync_dir(above))
            .map_err(|source| Failure::io("rename", &dir, source))?;
        Ok(Doomed(doomed))
    }

    /// Removes the files of an erased volume. What can't be removed is tried again at the next
    /// start.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove_doomed(&self, doomed: &Doomed) -> Result<()> {
        let removed = self.storage().remove_tree(&doomed.0);
        removed.map_err(|source| Failure::io("remove", &doomed.0, source))
    }
}

fn wait(time: Duration) {
    // The channel sends once and does not break.
    let _ = after(time).recv();
}
