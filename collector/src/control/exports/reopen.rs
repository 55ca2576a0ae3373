//! Exports across a restart of the daemon.
//!
//! At start every export that the catalog knows comes back under its number, at its address, with
//! its state, before anything may merge: the pins come first. One that can't be served stays
//! listed with its problem, its state pinned and its clone's files kept, and is tried again every
//! few seconds. At stop clones are flushed and all stay in the catalog.

use std::sync::Arc;
use std::time::Duration;

use super::live::{Live, Serving};
use super::{Files, stop};
use crate::catalog::ExportRow;
use crate::control::desk::{Desk, blocking};
use crate::error::{Result, Severity};
use crate::export::overlay::{FoundClones, find_clones, remove_ended};
use crate::export::{Afterwards, ExportDirectory, Running};
use crate::ingest::observer::Observer;
use crate::ingest::volume::Held;
use crate::storage::Storage;
use crate::view::View;

/// Between two tries to serve what could not be served.
const RETRY: Duration = Duration::from_secs(5);
/// No export gets a number beyond this; a directory that is called so is nobody's clone.
const NUMBER_MAX: u64 = 1 << 53;

impl<S: Storage> Desk<S> {
    /// Mounts the FUSE directory and serves again what an earlier daemon served. Call it once,
    /// before anything merges.
    ///
    /// # Errors
    /// When the catalog or the directory of clones can't be read; an export that can't be served
    /// is none.
    pub async fn reopen_exports(self: &Arc<Self>) -> Result<()> {
        self.mount_directory().await;
        let dir = self.clones_dir();
        let found = blocking(move || find_clones(&dir)).await?;
        let rows = self.sources.catalog.exports().await?;
        // A new clone must never get the directory of one that only the disk knows: a lost catalog
        // counts anew, and what fails to be made there would be removed.
        let numbers = found.kept.iter().chain(&found.ended).filter(|id| **id <= NUMBER_MAX);
        if let Some(last) = numbers.max() {
            self.sources.catalog.skip_exports(*last).await?;
        }
        self.clean_up(&found, &rows).await?;
        for row in rows {
            if found.ended.contains(&row.id) {
                continue;
            }
            if !row.ready {
                tracing::info!(export = row.id, "an export that was never served is removed");
                self.forget(&row).await?;
                continue;
            }
            self.reopen(row).await?;
        }
        Ok(())
    }

    async fn mount_directory(self: &Arc<Self>) {
        let Some(path) = self.sources.settings.now().fuse_mount.clone() else { return };
        let mounted = blocking(move || ExportDirectory::mount(&path)).await;
        if let Err(error) = &mounted {
            let message = format!("there are no exports as files: {error}");
            self.sources.feed.event(Severity::Critical, None, message);
        }
        self.exports.show(mounted);
    }

    /// Removes what is left of clones that were ended, and names directories of unknown ones.
    async fn clean_up(self: &Arc<Self>, found: &FoundClones, rows: &[ExportRow]) -> Result<()> {
        for id in &found.ended {
            if rows.iter().any(|row| row.id == *id) {
                self.sources.catalog.end_export(*id, self.sources.clock.wall()).await?;
            }
            let (storage, dir) = (Arc::clone(&self.sources.storage), self.clone_dir(*id));
            if let Err(error) = blocking(move || remove_ended(&storage, &dir)).await {
                tracing::warn!(export = id, %error, "an ended clone still takes space");
            }
        }
        for id in found.kept.iter().filter(|id| !rows.iter().any(|row| row.id == **id)) {
            let message = format!(
                "{} holds a clone that the catalog does not know; it is left alone, remove it if \
                 nobody needs it",
                self.clone_dir(*id).display()
            );
            self.sources.feed.event(Severity::Warning, None, message);
        }
        Ok(())
    }

    async fn reopen(self: &Arc<Self>, row: ExportRow) -> Result<()> {
        let serving = self.try_to_serve(&row).await;
        if let Serving::Problem { message, .. } = &serving {
            self.report_problem(&row, message);
        }
        let state = self.state_of(&row).await?;
        let place = self.exports.place_again();
        self.exports.insert(Arc::new(Live::new(row, state, serving, place)));
        Ok(())
    }

    fn report_problem(&self, row: &ExportRow, problem: &str) {
        let message = format!("export {} can't be served: {problem}", row.id);
        self.sources.feed.event(Severity::Critical, Some(&row.name), message);
    }

    /// Serves an export again, or says why not and keeps its state.
    async fn try_to_serve(self: &Arc<Self>, row: &ExportRow) -> Serving<S> {
        let held = self.sources.volumes.find(&row.volume.to_string()).and_then(|one| one.held());
        let pin = held.as_ref().ok().map(|held| held.reader.pin(row.seq));
        match self.serve_again(row, held).await {
            Ok(running) => Serving::Running(running),
            Err(error) => Serving::Problem { message: error.to_string(), _pin: pin },
        }
    }

    async fn serve_again(
        self: &Arc<Self>,
        row: &ExportRow,
        held: Result<Held<S>>,
    ) -> Result<Running<S>> {
        let (held, seq) = (held?, row.seq);
        let view = blocking(move || Ok(View::open(held.reader, held.seed, seq)?)).await?;
        self.serve(row, view, Files::Kept).await
    }

    /// Tries again to serve what could not be served, until `stop` ends.
    pub async fn retry_exports(self: Arc<Self>, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => return,
                () = tokio::time::sleep(RETRY) => {}
            }
            for live in self.exports.all() {
                let Some(before) = live.problem() else { continue };
                self.retry(&live, &before).await;
            }
        }
    }

    async fn retry(self: &Arc<Self>, live: &Live<S>, before: &str) {
        let serving = self.try_to_serve(&live.row).await;
        match &serving {
            Serving::Problem { message, .. } if message == before => {}
            Serving::Problem { message, .. } => self.report_problem(&live.row, message),
            _ => {
                let message = format!("export {} is served again", live.row.id);
                self.sources.feed.event(Severity::Info, Some(&live.row.name), message);
            }
        }
        // One that was ended meanwhile is not served after all.
        if let Some(Serving::Running(late)) = live.replace_problem(serving)
            && let Err(error) = stop(late, Afterwards::Removed).await
        {
            tracing::warn!(%error, "an export did not end well");
        }
    }

    /// Stops serving; everything stays in the catalog and comes back at the next start.
    pub(in crate::control) async fn suspend_exports(self: &Arc<Self>) {
        let desk = Arc::clone(self);
        let hidden = blocking(move || {
            desk.exports.hide();
            Ok(())
        });
        if let Err(error) = hidden.await {
            tracing::warn!(%error, "the FUSE directory did not end well");
        }
        let mut ending = tokio::task::JoinSet::new();
        for live in self.exports.all() {
            let desk = Arc::clone(self);
            ending.spawn(async move {
                if let Serving::Running(running) = live.take()
                    && let Err(error) = stop(running, Afterwards::Kept).await
                {
                    let message = format!("export {} did not end well: {error}", live.row.id);
                    desk.sources.feed.event(Severity::Critical, Some(&live.row.name), message);
                }
            });
        }
        while ending.join_next().await.is_some() {}
    }
}
