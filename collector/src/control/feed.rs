//! From ingest to the catalog.
//!
//! What enters: what ingest tells its observer, from threads that must not wait. What leaves:
//! rows of the catalog, and the answer to whoever waits for a point. Between them is a queue of
//! [`QUEUE_MAX`]; what does not fit is logged and dropped. Points that were dropped come back
//! when the journal is opened the next time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tidemark_wire::{AgentId, PointId, Seq, VolumeId, WallMicros};
use tokio::sync::{mpsc, oneshot};

use crate::catalog::{Catalog, VolumeRow};
use crate::error::{Failure, Result, Severity};
use crate::ingest::manifest::Manifest;
use crate::ingest::observer::Observer;
use crate::journal::Mark;
use crate::points::Point;
use crate::seam::Clock;

/// Things that may wait for the catalog.
const QUEUE_MAX: usize = 4096;
/// Points that may be waited for.
const WAITS_MAX: usize = 256;

enum Item {
    Volume(Box<VolumeRow>),
    AllPoints(VolumeId, Vec<Point>),
    NewPoints(VolumeId, Vec<Point>),
    Seen(AgentId, WallMicros),
    Trimmed(VolumeId, Seq),
    Forgotten(VolumeId, oneshot::Sender<Result<()>>),
    Event { time: WallMicros, severity: Severity, volume: Option<String>, message: String },
}

type Waits = Mutex<HashMap<PointId, oneshot::Sender<Point>>>;

/// The end that ingest has.
pub struct Feed {
    items: mpsc::Sender<Item>,
    waits: Arc<Waits>,
    clock: Arc<dyn Clock>,
}

/// The end that writes the catalog.
pub struct FeedTask {
    items: mpsc::Receiver<Item>,
    waits: Arc<Waits>,
    clock: Arc<dyn Clock>,
}

impl Feed {
    /// Both ends.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> (Arc<Self>, FeedTask) {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let waits = Arc::<Waits>::default();
        let task =
            FeedTask { items: receiver, waits: Arc::clone(&waits), clock: Arc::clone(&clock) };
        (Arc::new(Self { items: sender, waits, clock }), task)
    }

    /// Receives the point once it is durable and in the catalog.
    ///
    /// # Errors
    /// `Unavailable` when too many are waited for.
    pub(super) fn expect(&self, id: PointId) -> Result<oneshot::Receiver<Point>> {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        waits.retain(|_, wait| !wait.is_closed());
        if waits.len() >= WAITS_MAX {
            return Err(Failure::unavailable("too many points are being made"));
        }
        let (sender, receiver) = oneshot::channel();
        waits.insert(id, sender);
        Ok(receiver)
    }

    /// Forgets a volume, behind everything that was told of it before.
    ///
    /// # Errors
    /// `Internal`.
    pub(super) async fn forget(&self, volume: VolumeId) -> Result<()> {
        let (done, forgotten) = oneshot::channel();
        let stopped = || Failure::unavailable("the collector is stopping");
        self.items.send(Item::Forgotten(volume, done)).await.map_err(|_| stopped())?;
        forgotten.await.map_err(|_| stopped())?
    }

    fn put(&self, item: Item) {
        if self.items.try_send(item).is_err() {
            tracing::error!("the catalog does not keep up; something is not in it");
        }
    }
}

impl Observer for Feed {
    fn volume(&self, manifest: &Manifest) {
        self.put(Item::Volume(Box::new(VolumeRow {
            id: manifest.volume,
            name: manifest.name.clone(),
            size_bytes: manifest.size_bytes,
            block_bytes: manifest.block_bytes,
            journal: manifest.journal,
            timeline: manifest.timeline,
            epoch: manifest.epoch,
            agent: manifest.agent,
        })));
    }

    fn seen(&self, manifest: &Manifest) {
        self.put(Item::Seen(manifest.agent, self.clock.wall()));
    }

    fn history(&self, volume: VolumeId, marks: &[Mark]) {
        self.put(Item::AllPoints(volume, points(marks)));
    }

    fn marks(&self, volume: VolumeId, marks: &[Mark]) {
        let points = points(marks);
        if !points.is_empty() {
            self.put(Item::NewPoints(volume, points));
        }
    }

    fn trimmed(&self, volume: VolumeId, oldest: Seq) {
        self.put(Item::Trimmed(volume, oldest));
    }

    fn event(&self, severity: Severity, volume: Option<&str>, message: String) {
        match severity {
            Severity::Info => tracing::info!(volume, "{message}"),
            Severity::Warning => tracing::warn!(volume, "{message}"),
            Severity::Critical => tracing::error!(volume, "{message}"),
        }
        let (time, volume) = (self.clock.wall(), volume.map(str::to_owned));
        self.put(Item::Event { time, severity, volume, message });
    }
}

fn points(marks: &[Mark]) -> Vec<Point> {
    marks.iter().filter_map(Point::from_mark).collect()
}

impl FeedTask {
    /// Writes what comes in until every [`Feed`] is gone.
    pub async fn run(mut self, catalog: Catalog) {
        while let Some(item) = self.items.recv().await {
            if let Err(error) = self.write(&catalog, item).await {
                tracing::error!(%error, "something is not in the catalog");
            }
        }
    }

    async fn write(&self, catalog: &Catalog, item: Item) -> Result<()> {
        match item {
            Item::Volume(row) => catalog.put_volume(&row, self.clock.wall()).await,
            Item::Seen(agent, time) => catalog.agent_seen(agent, time).await,
            Item::Trimmed(volume, oldest) => catalog.trim_points(volume, oldest).await,
            Item::Forgotten(volume, done) => {
                // Whoever does not wait any more does not miss it.
                let _ = done.send(catalog.forget_volume(volume).await);
                Ok(())
            }
            Item::AllPoints(volume, points) => catalog.replace_points(volume, &points).await,
            Item::NewPoints(volume, points) => {
                catalog.add_points(volume, &points).await?;
                let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
                for point in points {
                    if let Some(wait) = waits.remove(&point.id) {
                        // Whoever does not wait any more does not miss it.
                        let _ = wait.send(point);
                    }
                }
                Ok(())
            }
            Item::Event { time, severity, volume, message } => {
                catalog.add_event(time, severity, volume.as_deref(), &message).await
            }
        }
    }
}
