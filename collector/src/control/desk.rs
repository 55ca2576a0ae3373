//! Where requests are answered: everything that the API's handlers call.

use std::path::PathBuf;
use std::sync::Arc;

use super::exports::LiveExports;
use super::feed::Feed;
use super::jobs::RunningJobs;
use crate::catalog::Catalog;
use crate::config::Address;
use crate::config::settings::Settings;
use crate::error::{Failure, Result};
use crate::ingest::volume::Volume;
use crate::ingest::volumes::Volumes;
use crate::points::at::{At, State};
use crate::seam::Clock;
use crate::storage::Storage;
use crate::view::View;

/// What the answers are made from.
pub struct Sources<S: Storage> {
    /// Where segments are read for people.
    pub storage: Arc<S>,
    /// All volumes.
    pub volumes: Arc<Volumes<S>>,
    /// Points, jobs, events.
    pub catalog: Catalog,
    /// Tells when a point is there.
    pub feed: Arc<Feed>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What the daemon runs with.
    pub settings: Arc<Settings>,
    /// Addresses on which agents connect, with the ports that were chosen.
    pub listen: Vec<Address>,
}

/// The desk.
pub struct Desk<S: Storage> {
    pub(super) sources: Sources<S>,
    pub(super) exports: LiveExports<S>,
    pub(super) jobs: RunningJobs,
    pub(super) started: jiff::Timestamp,
}

impl<S: Storage> Desk<S> {
    /// A desk with no exports and no jobs.
    #[must_use]
    pub fn new(sources: Sources<S>) -> Arc<Self> {
        let started = crate::points::timestamp(sources.clock.wall());
        let exports = LiveExports::new();
        Arc::new(Self { sources, exports, jobs: RunningJobs::default(), started })
    }

    /// Ends every job and stops serving every export; waits a bounded time, and for clones as
    /// long as their flushes take.
    pub async fn stop(self: &Arc<Self>) {
        self.jobs.stop().await;
        self.suspend_exports().await;
    }

    /// The volume and the state that a person means.
    pub(super) async fn find_state(
        self: &Arc<Self>,
        volume: &str,
        at: &str,
    ) -> Result<(Arc<Volume<S>>, State)> {
        let at = At::parse(at)?;
        let volume = self.sources.volumes.find(volume)?;
        let points = self.sources.catalog.points(volume.id()).await?;
        let now = self.sources.clock.wall();
        let held = volume.held()?;
        let state = blocking(move || at.resolve(held.reader.as_ref(), &points, now)).await?;
        Ok((volume, state))
    }

    /// Opens a state.
    pub(super) async fn open_view(&self, volume: &Volume<S>, state: &State) -> Result<View<S>> {
        let (held, seq) = (volume.held()?, state.seq);
        blocking(move || Ok(View::open(held.reader, held.seed, seq)?)).await
    }

    /// Where the journal of a volume is.
    pub(super) fn journal_file(volume: &Volume<S>, name: &str) -> PathBuf {
        volume.journal_dir().join(name)
    }
}

/// Runs something that reads files away from the event loop.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Failure::internal(format!("a request has failed: {error}")))?
}
