//! An image that a person brings takes the place of the empty disk below a volume's journal.
//!
//! What enters: a volume of which no state can be opened yet, and an image of its size. What
//! leaves: the same volume with the image as its seed, a journal identity of its own and no
//! records; its agent compares. The image is imported beside what is there, while no session is
//! let in; then the volume's writer ends, the pieces are exchanged, and it is opened again.
//!
//! The exchange is in this order, so that a crash never leaves an image of which the agent is not
//! told: first the journal goes, its newest file first, so that what is left goes on from the seed
//! (nothing in it could be opened; an agent that finds less compares or copies), then the manifest says that the volume is seeded (an agent compares, with zeroes or
//! with the image), then the image is put in place.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use tidemark_wire::session::RefuseReason;

use super::change::Decision;
use super::manifest::Manifest;
use super::owner::VolumeCore;
use super::volume::{Volume, volume_dir};
use super::volumes::Volumes;
use crate::error::{Failure, Result, Severity};
use crate::seed::{SeedBuilder, merge_into_seed};
use crate::storage::Storage;

/// A volume that is being seeded. When it goes without [`Seeding::finish`], the volume is as it
/// was before, and its agent may come again.
pub struct Seeding<S: Storage> {
    volume: Arc<Volume<S>>,
    builder: Option<SeedBuilder<S>>,
}

impl<S: Storage> Volumes<S> {
    /// Ends the session of a volume and begins to make a new seed for it.
    ///
    /// # Errors
    /// `Conflict` when a state of it can be opened, when it is retired, or is being seeded.
    pub fn begin_seeding(&self, volume: &Arc<Volume<S>>) -> Result<Seeding<S>> {
        let manifest = self.decide(volume, Decision::BeginSeed)?;
        let mut seeding = Seeding { volume: Arc::clone(volume), builder: None };
        let dir = volume_dir(self.data_dir(), volume.id());
        let storage = Arc::clone(self.storage());
        seeding.builder = Some(SeedBuilder::create(storage, &dir, manifest.size_bytes)?);
        Ok(seeding)
    }

    /// Puts the new seed in the place of the old one, and opens the volume anew.
    ///
    /// # Errors
    /// What the system says; the volume is open again with whatever the exchange came to.
    pub fn finish_seeding(&self, mut seeding: Seeding<S>) -> Result<()> {
        let (volume, journal) = (Arc::clone(&seeding.volume), self.new_journal_id());
        let held = volume.held()?;
        if let Some(to) = held.seed.merging_to() {
            // Between two states the seed can't do without the journal.
            merge_into_seed(&held.reader, &held.seed, to, &mut |_| ControlFlow::Continue(()))?;
        }
        let builder = seeding.builder.take().expect("a seeding has a builder until its end");
        if let Err(error) = builder.sync() {
            seeding.builder = Some(builder);
            return Err(error.into());
        }
        held.seed.close();
        self.reopen(volume.id(), |manifest| {
            // One that began since and was cut off; it ends when the volume is opened.
            if held.seed.merging_to().is_some() {
                let text = format!("a merge of volume {} was interrupted", manifest.name);
                return Err(Failure::unavailable(text).with_hint("seed the volume again"));
            }
            let seeded = Manifest { journal, seeded: true, ..manifest };
            self.exchange(&volume, builder, &seeded)?;
            Ok(seeded)
        })
    }

    fn exchange(
        &self,
        volume: &Volume<S>,
        builder: SeedBuilder<S>,
        seeded: &Manifest,
    ) -> Result<()> {
        let (storage, dir) = (self.storage(), volume.journal_dir());
        let failed = |path: &Path, source| Failure::io("remove", path, source);
        let names = storage.list(&dir).map_err(|source| failed(&dir, source))?;
        for name in names.into_iter().rev() {
            let path = dir.join(name);
            storage.remove(&path).map_err(|source| failed(&path, source))?;
        }
        storage.sync_dir(&dir).map_err(|source| failed(&dir, source))?;
        seeded.store(storage, volume.dir())?;
        builder.finish(true)?;
        Ok(())
    }
}

impl<S: Storage> Seeding<S> {
    /// Takes bytes of the image: whole blocks of 4 KiB, the last one as long as the volume.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let builder = self.builder.as_ref().expect("a seeding has a builder until its end");
        Ok(builder.write(at, bytes)?)
    }
}

impl<S: Storage> Drop for Seeding<S> {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.builder.take().map(SeedBuilder::discard) {
            tracing::warn!("{error}");
        }
        let mut facts = self.volume.lock();
        facts.seeding = false;
        facts.problem = None;
    }
}

impl<S: Storage> VolumeCore<S> {
    pub(super) fn begin_seed(&mut self) -> Result<()> {
        self.finish();
        let name = self.manifest.name.clone();
        let refused = |why: String| Err(Failure::conflict(format!("volume {name} {why}")));
        if self.manifest.retired.is_some() {
            return refused("is retired".to_owned());
        }
        if self.shared.lock().seeding {
            return refused("is being seeded already".to_owned());
        }
        let held = self.shared.held()?;
        // A damaged journal may hold states; a person has to look at it first.
        if let Some(damage) = &self.damage {
            return refused(format!("has damaged files, which may hold states: {damage}"));
        }
        if let Some(seq) = held.reader.newest_offered()? {
            return refused(format!("has states that can be opened, the newest is seq:{seq}"))
                .map_err(|failure| {
                    failure.with_hint("an image is only of use before the first copy is whole")
                });
        }
        let text = self.seeding_text();
        {
            let mut facts = self.shared.lock();
            facts.seeding = true;
            facts.problem = Some(text.clone());
        }
        self.report(Severity::Info, text.clone());
        self.end_live(RefuseReason::Unavailable, text);
        Ok(())
    }

    /// Why a volume takes no session meanwhile.
    pub(super) fn seeding_text(&self) -> String {
        format!("volume {} is being seeded from an image; its agent waits", self.manifest.name)
    }
}
