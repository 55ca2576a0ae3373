//! Exports that are being served.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::desk::{Desk, blocking};
use super::feed::Feed;
use super::{api, convert};
use crate::config::Address;
use crate::error::{Failure, Result, Severity};
use crate::export::{DamageListener, Running};
use crate::ingest::observer::Observer;
use crate::points::timestamp;
use crate::storage::Storage;

/// All exports of this daemon, by number.
pub(super) struct LiveExports<S: Storage> {
    live: Mutex<BTreeMap<u64, Live<S>>>,
    places: Arc<Semaphore>,
    places_max: usize,
}

struct Live<S: Storage> {
    info: api::ExportInfo,
    running: Running<S>,
    /// Held for its drop.
    _place: OwnedSemaphorePermit,
}

struct Reporter {
    feed: Arc<Feed>,
    volume: String,
}

impl DamageListener for Reporter {
    fn damaged(&self, message: String) {
        self.feed.event(Severity::Critical, Some(&self.volume), message);
    }
}

impl<S: Storage> LiveExports<S> {
    pub(super) fn new(places_max: usize) -> Self {
        Self { live: Mutex::default(), places: Arc::new(Semaphore::new(places_max)), places_max }
    }

    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Live<S>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Storage> Desk<S> {
    pub(super) async fn create_export(
        self: &Arc<Self>,
        new: api::NewExport,
    ) -> Result<api::ExportInfo> {
        let listen: Address =
            new.listen.parse().map_err(|error| Failure::invalid(format!("listen: {error}")))?;
        if matches!(&listen, Address::Unix(path) if !path.is_absolute()) {
            return Err(Failure::invalid(format!("listen: {listen} needs an absolute path")));
        }
        let place = Arc::clone(&self.exports.places).try_acquire_owned().map_err(|_| {
            let max = self.exports.places_max;
            Failure::unavailable(format!("{max} exports are served already (exports_max)"))
                .with_hint("end one of them first")
        })?;
        let (volume, state) = self.find_state(&new.volume, &new.at).await?;
        let view = self.open_view(&volume, &state).await?;
        let size_bytes = view.size_bytes();
        let name = volume.name();
        let reporter = Reporter { feed: Arc::clone(&self.sources.feed), volume: name.clone() };
        let nbd_name = name.clone();
        let running =
            blocking(move || Running::start(view, &nbd_name, &listen, Arc::new(reporter))).await?;
        let listen = running.address().to_string();
        let now = self.sources.clock.wall();
        let added =
            self.sources.catalog.add_export(volume.id(), &new.at, state.seq, &listen, now).await;
        let id = match added {
            Ok(id) => id,
            Err(error) => {
                stop(running).await?;
                return Err(error);
            }
        };
        let info = api::ExportInfo {
            id,
            volume: name.clone(),
            volume_id: volume.id().to_string(),
            at: new.at,
            state: convert::state(&state),
            listen,
            uri: running.uri().to_owned(),
            nbd_name: name,
            size_bytes,
            created: timestamp(now),
        };
        tracing::info!(volume = info.volume, seq = info.state.seq, uri = info.uri, "export begun");
        self.exports.lock().insert(id, Live { info: info.clone(), running, _place: place });
        Ok(info)
    }

    pub(super) fn export_list(&self) -> Vec<api::ExportInfo> {
        self.exports.lock().values().map(|live| live.info.clone()).collect()
    }

    pub(super) async fn delete_export(self: &Arc<Self>, id: u64) -> Result<api::ExportInfo> {
        let live = self.exports.lock().remove(&id);
        let Some(live) = live else {
            return Err(Failure::not_found(format!("there is no export {id}")));
        };
        let info = live.info.clone();
        stop(live.running).await?;
        self.sources.catalog.end_export(id, self.sources.clock.wall()).await?;
        tracing::info!(volume = info.volume, seq = info.state.seq, uri = info.uri, "export ended");
        Ok(info)
    }

    pub(super) async fn stop_exports(self: &Arc<Self>) {
        let ids: Vec<u64> = self.exports.lock().keys().copied().collect();
        let mut ending = tokio::task::JoinSet::new();
        for id in ids {
            let desk = Arc::clone(self);
            ending.spawn(async move { desk.delete_export(id).await });
        }
        while let Some(ended) = ending.join_next().await {
            if let Ok(Err(error)) = ended {
                tracing::warn!(%error, "an export did not end well");
            }
        }
    }
}

async fn stop<S: Storage>(running: Running<S>) -> Result<()> {
    blocking(move || {
        running.stop();
        Ok(())
    })
    .await
}
