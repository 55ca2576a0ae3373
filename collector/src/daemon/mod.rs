//! The daemon: puts everything together, and takes it apart in order.
//!
//! At start each thing that can be wrong from outside (data directory, addresses, catalog) is
//! looked at before the first agent is let in. At stop agents are told first, then what waits is
//! made durable, then the rest ends; each step has a bound. A crash at any moment loses nothing
//! that was acknowledged.

mod data_dir;
pub mod inspect;
pub mod log;
mod notify;

use std::future::Future;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use self::data_dir::DataDir;
use crate::catalog::{CATALOG_FILE, Catalog};
use crate::config::settings::Settings;
use crate::config::{Address, Config};
use crate::control::desk::{Desk, Sources};
use crate::control::{Feed, FeedTask, interruption, server, upkeep};
use crate::error::{Failure, Result, Severity};
use crate::ingest::observer::Observer;
use crate::ingest::server::IngestServer;
use crate::ingest::socket::{Listener, bind_unix};
use crate::ingest::volumes::{Ground, Volumes};
use crate::journal::JournalConfig;
use crate::merge::Merger;
use crate::points::timestamp;
use crate::seam::{Clock, SystemClock, SystemRandom};
use crate::storage::RealStorage;

/// How long requests of the control API may take to end at a stop.
const CONTROL_STOP_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long the catalog may take to write what waits for it at a stop.
const FEED_STOP_WAIT_MAX: Duration = Duration::from_secs(5);

/// Runs the daemon until `stop` ends. `ready` is told the addresses on which agents can connect,
/// once they can.
///
/// # Errors
/// Why it could not start. A stop always succeeds.
pub async fn run(
    config: Config,
    stop: impl Future<Output = ()>,
    ready: impl FnOnce(&[Address]),
) -> Result<()> {
    // From here on a hangup no longer ends the process.
    let hangup = signal(SignalKind::hangup())
        .map_err(|error| Failure::internal(format!("no signals: {error}")).because(error))?;
    let data_dir = DataDir::prepare(&config)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let control = ControlSocket::bind(&config)?;
    let listeners = bind_all(&config)?;
    let listen: Vec<Address> =
        listeners.iter().map(|listener| listener.address().clone()).collect();
    let catalog = Catalog::open(&config.data_dir.join(CATALOG_FILE)).await?;
    let (feed, task) = Feed::new(Arc::clone(&clock));
    // Moves on to the merger: the task below ends when nobody holds the feed any more.
    let observer: Arc<dyn Observer> = feed.clone();
    let feeding = tokio::spawn(FeedTask::run(task, catalog.clone()));
    let sessions_max = config.sessions_max;
    let settings = Settings::new(config);
    let volumes = open_volumes(&settings, &data_dir, &clock, &feed).await?;
    settle(&catalog, &data_dir, feed.as_ref(), clock.as_ref()).await?;
    let desk = Desk::new(Sources {
        storage: Arc::new(RealStorage),
        volumes: Arc::clone(&volumes),
        catalog: catalog.clone(),
        feed,
        clock: Arc::clone(&clock),
        settings: Arc::clone(&settings),
        listen: listen.clone(),
    });
    desk.reopen_exports().await?;
    let merger = start_merger(&volumes, observer, &clock, &settings)?;
    let ingest = IngestServer::start(listeners, Arc::clone(&volumes), clock, sessions_max)?;
    let (stopping, stopped) = watch::channel(false);
    let retrying = tokio::spawn(Arc::clone(&desk).retry_exports(until(stopped.clone())));
    let serving = tokio::spawn(server::serve(control.socket()?, Arc::clone(&desk), until(stopped)));
    let keeping = tokio::spawn(upkeep::run(Arc::clone(&desk), until(stopping.subscribe())));
    let reloading = tokio::spawn(reload_on_hangup(hangup, Arc::clone(&settings)));
    tracing::info!(listen = ?listen.iter().map(ToString::to_string).collect::<Vec<_>>(), "ready");
    ready(&listen);
    notify::tell("READY=1");
    stop.await;
    tracing::info!("stopping");
    notify::tell("STOPPING=1");
    // The receiver is there as long as the API is served.
    let _ = stopping.send(true);
    let ended = tokio::task::spawn_blocking(move || ingest.stop()).await;
    report_panic("ingest", ended.is_err());
    report_panic("an export", retrying.await.is_err());
    reloading.abort();
    // What it has begun it ends; that is short.
    report_panic("the upkeep", keeping.await.is_err());
    desk.stop().await;
    if tokio::time::timeout(CONTROL_STOP_WAIT_MAX, serving).await.is_err() {
        tracing::warn!("requests of the control API were cut off");
    }
    let ended = tokio::task::spawn_blocking(move || drop(merger)).await;
    report_panic("the merger", ended.is_err());
    let ended = tokio::task::spawn_blocking(move || volumes.stop()).await;
    report_panic("a journal", ended.is_err());
    drop(desk);
    if tokio::time::timeout(FEED_STOP_WAIT_MAX, feeding).await.is_err() {
        tracing::warn!("the catalog was not written to its end");
    }
    catalog.close().await;
    tracing::info!("stopped");
    Ok(())
}

/// Reads the configuration anew at each SIGHUP, and says what came of it.
async fn reload_on_hangup(mut hangup: Signal, settings: Arc<Settings>) {
    while hangup.recv().await.is_some() {
        notify::tell("RELOADING=1");
        let on = Arc::clone(&settings);
        match tokio::task::spawn_blocking(move || on.reload()).await {
            Ok(Ok(done)) => {
                tracing::info!(changed = ?done.changed, "the configuration was read anew");
                if !done.kept.is_empty() {
                    tracing::warn!(keys = ?done.kept, "what changed here waits for a restart");
                }
            }
            Ok(Err(error)) => tracing::error!("the configuration stays as it was: {error}"),
            Err(_) => report_panic("a reload", true),
        }
        notify::tell("READY=1");
    }
}

fn start_merger(
    volumes: &Arc<Volumes<RealStorage>>,
    observer: Arc<dyn Observer>,
    clock: &Arc<dyn Clock>,
    settings: &Arc<Settings>,
) -> Result<Merger> {
    Merger::start(Arc::clone(volumes), observer, Arc::clone(clock), Arc::clone(settings)).map_err(
        |source| Failure::unavailable(format!("no thread for merges: {source}")).because(source),
    )
}

async fn until(mut stopped: watch::Receiver<bool>) {
    // A sender that is gone is a stop too.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

fn report_panic(what: &str, panicked: bool) {
    if panicked {
        tracing::error!("{what} has panicked at the stop");
    }
}

fn bind_all(config: &Config) -> Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    for address in &config.listen {
        if let Address::Unix(path) = address {
            data_dir::make_parent(path)?;
        }
        listeners.push(Listener::bind(address)?);
    }
    Ok(listeners)
}

async fn open_volumes(
    settings: &Arc<Settings>,
    data_dir: &DataDir,
    clock: &Arc<dyn Clock>,
    feed: &Arc<Feed>,
) -> Result<Arc<Volumes<RealStorage>>> {
    let ground = Ground {
        storage: Arc::new(RealStorage),
        data_dir: settings.now().data_dir.clone(),
        clock: Arc::clone(clock),
        random: Arc::new(SystemRandom::default()),
        observer: feed.clone(),
        journal: JournalConfig::default(),
        settings: Arc::clone(settings),
    };
    let found = data_dir.volumes.clone();
    let opened = tokio::task::spawn_blocking(move || Volumes::open(ground, &found)).await;
    let opened = opened.map_err(|error| {
        Failure::internal(format!("opening the volumes has failed: {error}")).because(error)
    })?;
    opened.map(Arc::new)
}

/// Jobs of an earlier daemon have ended with it, and a volume that was here and is gone
/// must not go unnoticed.
async fn settle(
    catalog: &Catalog,
    data_dir: &DataDir,
    feed: &Feed,
    clock: &dyn Clock,
) -> Result<()> {
    let now = clock.wall();
    for job in catalog.end_stale_jobs(now).await? {
        feed.event(Severity::Warning, Some(&job.volume), interruption(&job));
    }
    data_dir.finish_erasing(catalog).await?;
    for (id, name, seen) in catalog.known_volumes().await? {
        if !data_dir.volumes.contains(&id) {
            let message = format!(
                "volume {id}, last seen {}, is not in the data directory any more",
                timestamp(seen)
            );
            feed.event(Severity::Critical, Some(&name), message);
        }
    }
    Ok(())
}

/// The control socket; its file is removed at the end.
struct ControlSocket {
    socket: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    fn bind(config: &Config) -> Result<Self> {
        let path = config.control_socket.clone();
        data_dir::make_parent(&path)?;
        let socket = bind_unix(&path).map_err(|source| Failure::io("listen on", &path, source))?;
        Ok(Self { socket, path })
    }

    fn socket(&self) -> Result<UnixListener> {
        self.socket.try_clone().map_err(|source| Failure::io("use", &self.path, source))
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}
