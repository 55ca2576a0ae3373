//! The set of volumes: the one owner of which there are and in what stage each is.
//!
//! ```text
//!   add ──▶ Served ──remove──▶ Leaving ──last user lets go──▶ Closing ──thread ends──▶ gone
//!              ▲                  │
//!              └─────── add ──────┘
//! ```
//! A volume that leaves can't be opened any more, but who has it open keeps it, and it is protected
//! as before; a thread then drains and closes it. What a crash leaves is told by each volume's own
//! files.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use anyhow::{Context, bail};
use tidemark_block::{Export, ExportList};
use tidemark_wire::VolumeId;

use super::attachment::Attachment;
use super::open;
use super::running::{DRAIN_PATIENCE, ProtectedVolume, Running, Stopped, Surroundings, unit_bytes};
use super::served::Served;
use crate::attach::Attached;
use crate::config::{Config, VolumeConfig};
use crate::control::api::VolumeStatus;

/// See the module's documentation.
pub(super) struct Volumes {
    around: Surroundings,
    exports: Arc<ExportList<Served>>,
    by_name: BTreeMap<String, Entry>,
    /// Volumes that were ever started: their copiers are spread over the workers by it.
    started: usize,
}

struct Entry {
    backing: PathBuf,
    stage: Stage,
    attachment: Attachment,
}

enum Stage {
    Served(Running, Weak<Served>),
    Leaving(Running, Weak<Served>),
    /// With what a person saw of it when that began.
    Closing(JoinHandle<()>, Box<VolumeStatus>),
}

/// What the outside is told of a served volume.
pub(super) struct Facts {
    pub(super) id: VolumeId,
    pub(super) size_bytes: u64,
    pub(super) block_bytes: u32,
}

impl Volumes {
    /// No volumes yet; they are served as `exports`.
    pub(super) fn new(around: Surroundings, exports: Arc<ExportList<Served>>) -> Self {
        Self { around, exports, by_name: BTreeMap::new(), started: 0 }
    }

    /// Opens, starts and serves a volume; one that is leaving is served again.
    pub(super) fn add(&mut self, config: &Config, volume: &VolumeConfig) -> anyhow::Result<()> {
        let name = &volume.name;
        let (running, served) = match self.by_name.remove(name) {
            None => {
                let opened =
                    open::open(config, volume, &self.around.clock, self.around.random.as_ref())?;
                self.started += 1;
                (Running::start(opened, self.started, &self.around)?, Weak::new())
            }
            Some(Entry { stage: Stage::Leaving(running, served), backing, .. })
                if backing == volume.backing =>
            {
                (running, served)
            }
            Some(entry) => {
                let held = matches!(entry.stage, Stage::Leaving(..) | Stage::Served(..));
                self.by_name.insert(name.clone(), entry);
                bail!(
                    "volume {name:?}: the one of this name that was removed is {}; try again then",
                    if held { "open until its last user lets go" } else { "being closed" }
                );
            }
        };
        running.set_copy_rate(volume);
        let served = self.serve(&running, &served)?;
        let entry = Entry {
            backing: volume.backing.clone(),
            stage: Stage::Served(running, served),
            attachment: Attachment::None,
        };
        self.by_name.insert(name.clone(), entry);
        Ok(())
    }

    /// Serves a volume; who still has it open from before shares the value with newcomers.
    fn serve(&self, running: &Running, before: &Weak<Served>) -> anyhow::Result<Weak<Served>> {
        let volume = running.volume();
        let device = before.upgrade().unwrap_or_else(|| Arc::new(Served(Arc::clone(volume))));
        let served = Arc::downgrade(&device);
        let description = format!("volume {}", volume.id());
        let export = Export { name: volume.name().to_owned(), description, device };
        self.exports.add(export).context("serve the volume")?;
        Ok(served)
    }

    /// Lets nobody open a volume any more; it ends when the last who has it open lets go.
    pub(super) fn remove(&mut self, name: &str) -> anyhow::Result<()> {
        let Some(entry) = self.by_name.remove(name) else {
            return Ok(());
        };
        if let Some(why) = entry.attachment.keeps() {
            let message = format!("volume {name:?} {why}; it stays as it was");
            self.by_name.insert(name.to_owned(), entry);
            bail!(message);
        }
        let stage = match entry.stage {
            Stage::Served(running, served) => {
                self.exports.remove(name);
                Stage::Leaving(running, served)
            }
            other => other,
        };
        self.by_name.insert(name.to_owned(), Entry { stage, ..entry });
        Ok(())
    }

    /// Sets the most that copies of a served volume read in a second.
    pub(super) fn set_copy_rate(&self, volume: &VolumeConfig) {
        if let Some(Entry { stage: Stage::Served(running, _), .. }) = self.by_name.get(&volume.name)
        {
            running.set_copy_rate(volume);
        }
    }

    /// Facts of a volume that can be attached.
    pub(super) fn facts(&self, name: &str) -> Option<Facts> {
        match &self.by_name.get(name)?.stage {
            Stage::Served(running, _) => {
                let volume = running.volume();
                let block_bytes = unit_bytes(volume);
                Some(Facts { id: volume.id(), size_bytes: volume.size_bytes(), block_bytes })
            }
            Stage::Leaving(..) | Stage::Closing(..) => None,
        }
    }

    /// A volume that clients may change.
    pub(super) fn protected(&self, name: &str) -> Option<Arc<ProtectedVolume>> {
        Some(Arc::clone(self.by_name.get(name)?.running()?.volume()))
    }

    /// Volumes whose backing store has another size; each is looked at now and then.
    pub(super) fn resized(&mut self) -> Vec<String> {
        let now = self.around.clock.monotonic();
        let free = self.by_name.iter_mut().filter(|(_, entry)| !entry.attachment.is_in_work());
        let resized = free.filter_map(|(name, entry)| {
            let running = entry.running_mut()?;
            running.has_other_size(now).then(|| name.clone())
        });
        resized.collect()
    }

    /// A volume was resized, or could not be.
    pub(super) fn note_resize(&mut self, name: &str, is_done: bool) {
        if let Some(running) = self.by_name.get_mut(name).and_then(Entry::running_mut) {
            running.note_resize(is_done);
        }
    }

    /// How a served volume is attached.
    pub(super) fn attachment(&mut self, name: &str) -> Option<&mut Attachment> {
        let entry = self.by_name.get_mut(name)?;
        matches!(entry.stage, Stage::Served(..)).then_some(&mut entry.attachment)
    }

    /// True while a thread makes, or takes away, a device of some volume.
    pub(super) fn any_attachment_in_work(&self) -> bool {
        self.by_name.values().any(|entry| entry.attachment.is_in_work())
    }

    /// How volumes are attached, with their names.
    pub(super) fn attached(&self) -> impl Iterator<Item = (&str, &Attached)> {
        self.by_name
            .iter()
            .filter_map(|(name, entry)| Some((name.as_str(), entry.attachment.attached()?)))
    }

    /// The devices that volumes are attached as, with the volumes' names.
    pub(super) fn devices(&self) -> impl Iterator<Item = (&str, &PathBuf)> {
        self.attached().map(|(name, attached)| (name, &attached.device))
    }

    /// The names of the served volumes, in order.
    pub(super) fn names(&self) -> Vec<String> {
        let served = |(name, entry): (&String, &Entry)| {
            matches!(entry.stage, Stage::Served(..)).then(|| name.clone())
        };
        self.by_name.iter().filter_map(served).collect()
    }

    /// What a person sees of all volumes.
    pub(super) fn list(&self) -> Vec<VolumeStatus> {
        self.by_name.values().map(status).collect()
    }

    /// Does for each volume what has to be done now and then, and closes those that left.
    pub(super) fn keep(&mut self) {
        let clock = &self.around.clock;
        for running in self.by_name.values_mut().filter_map(Entry::running_mut) {
            running.keep(clock.as_ref());
        }
        let left = self.by_name.iter().filter(|(_, entry)| entry.is_left());
        let left: Vec<String> = left.map(|(name, _)| name.clone()).collect();
        for name in left {
            self.close(&name);
        }
        self.by_name.retain(|_, entry| match &entry.stage {
            Stage::Closing(thread, _) => !thread.is_finished(),
            Stage::Served(..) | Stage::Leaving(..) => true,
        });
    }

    /// Drains and closes a volume that nobody uses, on a thread of its own.
    fn close(&mut self, name: &str) {
        let Some(entry) = self.by_name.remove(name) else { return };
        let mut seen = status(&entry);
        seen.notes.push("nobody uses it any more: it is drained and closed".to_owned());
        let Stage::Leaving(running, _) = entry.stage else {
            self.by_name.insert(name.to_owned(), entry);
            return;
        };
        tracing::info!(volume = name, "nobody uses it any more: it is drained and closed");
        let clock = Arc::clone(&self.around.clock);
        let work = move || {
            let stopped = running.drain(clock.monotonic() + DRAIN_PATIENCE, clock.as_ref());
            stopped.wait_for_tasks(clock.as_ref());
            stopped.settle(clock.as_ref());
        };
        match std::thread::Builder::new().name(format!("close-{name}")).spawn(work) {
            Ok(thread) => {
                let stage = Stage::Closing(thread, Box::new(seen));
                self.by_name.insert(name.to_owned(), Entry { stage, ..entry });
            }
            // The volume was dropped without a word to the collector: as after a kill.
            Err(error) => tracing::error!(volume = name, "no thread to close it: {error}"),
        }
    }

    /// Flushes the backing stores and waits until the collector has everything. Nobody changes a
    /// volume any more.
    pub(super) fn drain(self) -> Vec<Stopped> {
        let (mut running, mut closing) = (Vec::new(), Vec::new());
        for (name, entry) in self.by_name {
            match entry.stage {
                Stage::Served(one, _) | Stage::Leaving(one, _) => running.push(one),
                Stage::Closing(thread, _) => closing.push((name, thread)),
            }
        }
        // All of them drain at the same time, however many there are.
        running.iter().for_each(Running::begin_drain);
        tracing::info!(
            "waiting up to {} s until the collector has what is in the change rings",
            DRAIN_PATIENCE.as_secs()
        );
        let clock = self.around.clock.as_ref();
        let deadline = clock.monotonic() + DRAIN_PATIENCE;
        let stopped = running.into_iter().map(|one| one.drain(deadline, clock)).collect();
        for (name, thread) in closing {
            if thread.join().is_err() {
                tracing::error!(volume = name, "the thread that closed it panicked");
            }
        }
        stopped
    }
}

impl Entry {
    fn running(&self) -> Option<&Running> {
        match &self.stage {
            Stage::Served(running, _) | Stage::Leaving(running, _) => Some(running),
            Stage::Closing(..) => None,
        }
    }

    fn running_mut(&mut self) -> Option<&mut Running> {
        match &mut self.stage {
            Stage::Served(running, _) | Stage::Leaving(running, _) => Some(running),
            Stage::Closing(..) => None,
        }
    }

    /// True when it was removed and nobody has it open any more.
    fn is_left(&self) -> bool {
        matches!(&self.stage, Stage::Leaving(_, served) if served.strong_count() == 0)
    }
}

fn status(entry: &Entry) -> VolumeStatus {
    let (running, served, leaving) = match &entry.stage {
        Stage::Served(running, served) => (running, served, false),
        Stage::Leaving(running, served) => (running, served, true),
        Stage::Closing(_, seen) => return (**seen).clone(),
    };
    let volume: &ProtectedVolume = running.volume();
    // One is the list of exports.
    let users = served.strong_count().saturating_sub(usize::from(!leaving));
    let mut notes = Vec::new();
    if !volume.store().direct() {
        notes.push("no direct I/O on its backing store: the page cache is used".to_owned());
    }
    notes.extend(entry.attachment.note());
    let refused = running.refused();
    notes.extend(refused.iter().map(|why| format!("the collector refuses it: {why}")));
    notes.push(running.started().to_string());
    if running.intent_status().failed {
        notes.push(
            "its write-intent log can't be written: a crash of this machine would be followed by \
             a comparison of the whole volume"
                .to_owned(),
        );
    }
    VolumeStatus {
        name: volume.name().to_owned(),
        id: volume.id().to_string(),
        backing: entry.backing.clone(),
        size_bytes: volume.size_bytes(),
        standing: running.standing(),
        connected: running.is_connected(),
        refused: refused.is_some(),
        leaving,
        users: users as u64,
        ring_used_bytes: volume.capture().ring().used().bytes,
        intent: running.intent_status(),
        attached: entry.attachment.attached().cloned(),
        notes,
    }
}
