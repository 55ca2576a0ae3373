//! Exports and clones: made, listed and ended.
//!
//! Requests enter, disks that are served leave. What is served lives here, what is remembered of
//! it in the catalog and, for a clone, in `DATA/clones/ID/`. Order: the catalog's row, a clone's
//! files, the socket, "ready" in the row; and at the end: the socket goes, the clone's directory
//! is renamed to waste, the row is ended, the waste is removed. So a crash anywhere leaves an
//! export that comes back ([`reopen`]) or something that the next start cleans up.

mod live;
mod reopen;
mod request;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidemark_wire::PointId;

pub(super) use self::live::LiveExports;
use self::live::{Live, Serving};
use self::request::Wanted;
use super::desk::{Desk, blocking};
use super::feed::Feed;
use super::{api, convert};
use crate::catalog::{ExportRow, Front};
use crate::error::{Failure, Result, Severity};
use crate::export::overlay::{Identity, Overlay, Place, mark_ended, remove_ended};
use crate::export::{Afterwards, Content, ExportDirectory, ExportListener, Running, Served};
use crate::ingest::observer::Observer;
use crate::points::timestamp;
use crate::restore::quoted;
use crate::seam::boot_id;
use crate::storage::Storage;
use crate::view::View;

/// How long the kernel may take to tell that a file of the directory was closed.
const RELEASE_WAIT: Duration = Duration::from_millis(1_000);
/// Between two looks at whether it did.
const RELEASE_POLL: Duration = Duration::from_millis(20);

struct Reporter {
    feed: Arc<Feed>,
    volume: String,
    export: u64,
}

impl ExportListener for Reporter {
    fn damaged(&self, message: String) {
        let message = format!(
            "export {}: {message}; `tidemark resync {} --full` makes the newest state right where \
             the disk still holds these bytes",
            self.export,
            quoted(&self.volume)
        );
        self.feed.event(Severity::Critical, Some(&self.volume), message);
    }

    fn out_of_space(&self, message: String) {
        self.feed.event(Severity::Warning, Some(&self.volume), message);
    }

    fn failed(&self, message: String) {
        let message = format!("export {}: {message}", self.export);
        self.feed.event(Severity::Critical, Some(&self.volume), message);
    }
}

/// Whether the files of a clone are to be made or are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Files {
    New,
    Kept,
}

impl<S: Storage> Desk<S> {
    pub(super) async fn create_export(
        self: &Arc<Self>,
        new: api::NewExport,
    ) -> Result<api::ExportInfo> {
        let settings = self.sources.settings.now();
        let wanted = Wanted::check(&new, settings.clone_bytes_max)?;
        let place = self.exports.place(settings.exports_max)?;
        let (volume, state) = self.find_state(&new.volume, &new.at).await?;
        let view = self.open_view(&volume, &state).await?;
        let mut row = ExportRow {
            id: 0,
            volume: volume.id(),
            name: volume.name(),
            at: new.at,
            seq: state.seq,
            size_bytes: view.size_bytes(),
            time: state.time,
            point: state.point.as_ref().map(|point| point.id),
            front: wanted.front,
            listen: wanted.listen,
            space_bytes: wanted.space_bytes,
            created: self.sources.clock.wall(),
            ready: false,
        };
        row.id = self.sources.catalog.add_export(&row).await?;
        let running = match self.serve(&row, view, Files::New).await {
            Ok(running) => running,
            Err(error) => {
                self.forget(&row).await?;
                return Err(error);
            }
        };
        row.listen = running.address().map(ToString::to_string).unwrap_or_default();
        row.ready = true;
        if let Err(error) = self.sources.catalog.export_is_ready(row.id, &row.listen).await {
            stop(running, Afterwards::Removed).await?;
            self.forget(&row).await?;
            return Err(error);
        }
        let state = convert::state(&state);
        let live = Arc::new(Live::new(row, state, Serving::Running(running), place));
        let info = live.info();
        self.exports.insert(live);
        tracing::info!(
            export = info.id,
            volume = info.volume,
            seq = info.state.seq,
            "export begun"
        );
        Ok(info)
    }

    /// Opens the clone, if it is one, and begins to serve.
    async fn serve(
        self: &Arc<Self>,
        row: &ExportRow,
        view: View<S>,
        files: Files,
    ) -> Result<Running<S>> {
        let (desk, row) = (Arc::clone(self), row.clone());
        blocking(move || {
            let content = desk.content(&row, view, files)?;
            let writable = if row.space_bytes.is_some() { "writable clone" } else { "read-only" };
            let listener = Reporter {
                feed: Arc::clone(&desk.sources.feed),
                volume: row.name.clone(),
                export: row.id,
            };
            let served = Served {
                content,
                name: match row.front {
                    Front::Nbd => row.name.clone(),
                    Front::File => ExportDirectory::<S>::file_name(&row.name, row.id),
                },
                description: format!("{} at seq:{}, {writable}", row.name, row.seq),
                listener: Arc::new(listener),
            };
            match row.front {
                Front::Nbd => {
                    let listen = row.listen.parse().map_err(|error| {
                        Failure::invalid(format!("listen: {error}")).because(error)
                    })?;
                    Running::over_nbd(served, &listen)
                }
                Front::File => desk.exports.in_directory(|dir| Running::as_file(served, dir)),
            }
        })
        .await
    }

    fn content(&self, row: &ExportRow, view: View<S>, files: Files) -> Result<Content<S>> {
        let Some(space_bytes) = row.space_bytes else { return Ok(Content::State(Box::new(view))) };
        let boot = boot_id().map_err(|error| {
            Failure::internal(format!("the kernel does not name its boot: {error}")).because(error)
        })?;
        let place = Place {
            storage: Arc::clone(&self.sources.storage),
            dir: self.clone_dir(row.id),
            identity: Identity {
                clone: row.id,
                volume: row.volume,
                seq: row.seq,
                size_bytes: row.size_bytes,
            },
            space_bytes,
            boot,
        };
        let overlay = match files {
            Files::New => Overlay::create(place, view),
            Files::Kept => Overlay::open(place, view),
        };
        overlay.map(|overlay| Content::Clone(Box::new(overlay)))
    }

    fn clones_dir(&self) -> PathBuf {
        self.sources.settings.now().data_dir.join("clones")
    }

    fn clone_dir(&self, id: u64) -> PathBuf {
        self.clones_dir().join(id.to_string())
    }

    /// Ends the row of an export that is not served, and removes what it had.
    async fn forget(self: &Arc<Self>, row: &ExportRow) -> Result<()> {
        let storage = Arc::clone(&self.sources.storage);
        let dir = row.space_bytes.map(|_| self.clone_dir(row.id));
        let marked = (Arc::clone(&storage), dir.clone());
        blocking(move || marked.1.map_or(Ok(()), |dir| mark_ended(&marked.0, &dir))).await?;
        self.sources.catalog.end_export(row.id, self.sources.clock.wall()).await?;
        blocking(move || dir.map_or(Ok(()), |dir| remove_ended(&storage, &dir))).await
    }

    pub(super) async fn export_list(self: &Arc<Self>) -> Result<Vec<api::ExportInfo>> {
        let all = self.exports.all();
        blocking(move || Ok(all.iter().map(|live| live.info()).collect())).await
    }

    /// Ends an export. A clone that was written to goes only with `discard`; a file that somebody
    /// has open is taken away from them only with `force`.
    pub(super) async fn delete_export(
        self: &Arc<Self>,
        id: u64,
        discard: bool,
        force: bool,
    ) -> Result<api::ExportInfo> {
        let none = || Failure::not_found(format!("there is no export {id}"));
        let live = self.exports.get(id).ok_or_else(none)?;
        let mut info = live.info();
        if info.writable && !discard {
            live.check_unchanged()?;
        }
        if info.path.is_some() && !force {
            info = wait_unused(&live, info).await?;
        }
        // From here on the export is ours alone.
        let live = self.exports.remove(id).ok_or_else(none)?;
        if let Err(error) = self.end(&live).await {
            // It stays listed, so that a person can try again.
            let message = format!("it could not be ended: {error}");
            live.put(Serving::Problem { message, _pin: None });
            self.exports.insert(live);
            return Err(error);
        }
        tracing::info!(export = id, volume = info.volume, seq = info.state.seq, "export ended");
        Ok(info)
    }

    async fn end(self: &Arc<Self>, live: &Live<S>) -> Result<()> {
        if let Serving::Running(running) = live.take() {
            stop(running, Afterwards::Removed).await?;
        }
        self.forget(&live.row).await
    }

    /// The point by which an export's state was found, as it is known now.
    async fn point_of(&self, row: &ExportRow, id: PointId) -> Result<Option<api::PointInfo>> {
        let points = self.sources.catalog.points(row.volume).await?;
        Ok(points.iter().find(|point| point.id == id).map(|found| convert::point(found, true)))
    }

    async fn state_of(&self, row: &ExportRow) -> Result<api::StateInfo> {
        let point = match row.point {
            Some(id) => self.point_of(row, id).await?,
            None => None,
        };
        Ok(api::StateInfo { seq: row.seq.0, time: row.time.map(timestamp), point })
    }
}

/// Waits until nobody has the file open, as long as the kernel may take to tell.
async fn wait_unused<S: Storage>(
    live: &Arc<Live<S>>,
    mut info: api::ExportInfo,
) -> Result<api::ExportInfo> {
    let mut waited = Duration::ZERO;
    while info.clients > 0 && waited < RELEASE_WAIT {
        tokio::time::sleep(RELEASE_POLL).await;
        waited += RELEASE_POLL;
        info = live.info();
    }
    if info.clients == 0 {
        return Ok(info);
    }
    let live = Arc::clone(live);
    let users = blocking(move || Ok(live.users())).await?;
    let who = match users.as_slice() {
        [] => "somebody who can't be seen from here".to_owned(),
        users => users.join(", "),
    };
    let file = info.path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    Err(Failure::conflict(format!("export {} is in use: {who} has {file} open", info.id))
        .with_hint("unmount and detach it first, or end the export with --force"))
}

async fn stop<S: Storage>(running: Running<S>, afterwards: Afterwards) -> Result<()> {
    blocking(move || {
        running
            .stop(afterwards)
            .map_err(|error| Failure::internal(error.to_string()).because(error))
    })
    .await
}
