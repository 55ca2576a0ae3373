//! Routes: decode, call, encode.

use std::future::Future;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::Deserialize;
use tidemark_wire::Seq;

use super::api;
use super::convert;
use super::desk::Desk;
use super::extract::{Asked, Body, Named, Refusal};
use super::listener::BoundedListener;
use crate::error::{Failure, Result};
use crate::storage::Storage;

/// Longest request body.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Events of one answer.
const EVENTS_MAX: u32 = 1_000;

type Answer<T> = std::result::Result<Json<T>, Refusal>;
type At<S> = State<Arc<Desk<S>>>;

/// Serves the API on a socket until `stop` ends, then lets the requests in flight end.
///
/// # Errors
/// `Internal` when the socket can't be used.
pub async fn serve<S: Storage>(
    socket: std::os::unix::net::UnixListener,
    desk: Arc<Desk<S>>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let failed = |error: std::io::Error| {
        Failure::internal(format!("the control socket does not work: {error}")).because(error)
    };
    socket.set_nonblocking(true).map_err(failed)?;
    let socket = tokio::net::UnixListener::from_std(socket).map_err(failed)?;
    axum::serve(BoundedListener::new(socket), router(desk))
        .with_graceful_shutdown(stop)
        .await
        .map_err(failed)
}

fn router<S: Storage>(desk: Arc<Desk<S>>) -> Router {
    Router::new()
        .route("/v1/status", get(status::<S>))
        .route("/v1/volumes", get(volumes::<S>))
        .route("/v1/volumes/{volume}", get(volume::<S>).delete(erase_volume::<S>))
        .route("/v1/volumes/{volume}/seed", post(create_seed::<S>))
        .route("/v1/volumes/{volume}/policy", post(set_policy::<S>))
        .route("/v1/volumes/{volume}/pause", post(pause::<S>))
        .route("/v1/volumes/{volume}/resume", post(resume::<S>))
        .route("/v1/volumes/{volume}/resync", post(create_resync::<S>))
        .route("/v1/volumes/{volume}/verify", post(create_verify::<S>))
        .route("/v1/volumes/{volume}/retire", post(retire::<S>))
        .route("/v1/volumes/{volume}/unretire", post(unretire::<S>))
        .route("/v1/volumes/{volume}/points", get(points::<S>).post(create_point::<S>))
        .route("/v1/volumes/{volume}/resolve", get(resolve::<S>))
        .route("/v1/volumes/{volume}/segments", get(segments::<S>))
        .route("/v1/volumes/{volume}/segments/{segment}", get(records::<S>))
        .route("/v1/exports", get(exports::<S>).post(create_export::<S>))
        .route("/v1/exports/{id}", delete(delete_export::<S>))
        .route("/v1/restores", post(create_restore::<S>))
        .route("/v1/restores/plan", post(plan_restore::<S>))
        .route("/v1/jobs", get(jobs::<S>))
        .route("/v1/jobs/{id}", get(job::<S>).delete(cancel_job::<S>))
        .route("/v1/agents", get(agents::<S>))
        .route("/v1/agents/{agent}", delete(forget_agent::<S>))
        .route("/v1/reload", post(reload::<S>))
        .route("/v1/events", get(events::<S>))
        .fallback(nothing_here)
        .method_not_allowed_fallback(not_that_way)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(desk)
}

/// Runs what begins or ends work to its end, also when the client goes away meanwhile: half of
/// it would be an export or a job that nobody knows of.
async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Answer<T> {
    let done = tokio::spawn(work).await;
    let failed = |error| Failure::internal(format!("a request has failed: {error}"));
    Ok(Json(done.map_err(failed)??))
}

async fn nothing_here(uri: axum::http::Uri) -> Refusal {
    Refusal(Failure::not_found(format!("there is nothing at {}", uri.path())))
}

async fn not_that_way(method: axum::http::Method, uri: axum::http::Uri) -> Refusal {
    Refusal(Failure::invalid(format!("{method} is not possible on {}", uri.path())))
}

async fn status<S: Storage>(State(desk): At<S>) -> Answer<api::Status> {
    Ok(Json(desk.status().await?))
}

async fn volumes<S: Storage>(State(desk): At<S>) -> Answer<Vec<api::VolumeStatus>> {
    Ok(Json(desk.volume_list().await?))
}

async fn volume<S: Storage>(
    State(desk): At<S>,
    Named(volume): Named<String>,
) -> Answer<api::VolumeStatus> {
    Ok(Json(desk.volume(&volume).await?))
}

async fn set_policy<S: Storage>(
    State(desk): At<S>,
    Named(volume): Named<String>,
    Body(new): Body<api::NewPolicy>,
) -> Answer<api::PolicyInfo> {
    whole(async move { desk.set_policy(&volume, new).await }).await
}

async fn pause<S: Storage>(
    State(desk): At<S>,
    Named(volume): Named<String>,
) -> Answer<api::VolumeStatus> {
    whole(async move { desk.set_paused(&volume, true).await }).await
}

async fn resume<S: Storage>(
    State(desk): At<S>,
    Named(volume): Named<String>,
) -> Answer<api::VolumeStatus> {
    whole(async move { desk.set_paused(&volume, false).await }).await
}

async fn retire<S: Storage>(
    State(desk): At<S>,
    Named(volume): Named<String>,
    Body(new): Body<api::NewRetire>,
) -> Answer<api::VolumeStatus> {
    whole(async move { desk.retire(&volume, new).await }).await
}

async fn unretire<S: Storage>(
    State(desk): At<S>,
    Named(volume): Named<String>,
) -> Answer<api::VolumeStatus> {
    whole(async move { desk.unretire(&volume).await }).await
}

async fn erase_volume<S: Storage>(
    State(desk): At<S>,
    Named(volume): Named<String>,
) -> Answer<api::Erased> {
    whole(async move { desk.erase(&volume).await }).await
}

async fn agents<S: Storage>(State(desk): At<S>) -> Answer<Vec<api::AgentInfo>> {
    Ok(Json(desk.agent_list().await?))
}

async fn forget_agent<S: Storage>(
    State(desk): At<S>,
    Named(agent): Named<String>,
) -> Answer<api::AgentInfo> {
    whole(async move { desk.forget_agent(&agent).await }).await
}

async fn reload<S: Storage>(State(desk): At<S>) -> Answer<api::Reloaded> {
    whole(async move { desk.reload().await }).await
}

async fn points<S: Storage>(
    State(desk): At<S>,
    Named(volume): Named<String>,
    Asked(filter): Asked<api::PointFilter>,
) -> Answer<api::PointList> {
    Ok(Json(desk.points(&volume, filter).await?))
}

async fn create_point<S: Storage>(
    State(desk): At<S>,
    Named(volume): Named<String>,
    Body(new): Body<api::NewPoint>,
) -> Answer<api::PointInfo> {
    Ok(Json(desk.create_point(&volume, new).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    at: String,
}

async fn resolve<S: Storage>(
    State(desk): At<S>,
    Named(volume): Named<String>,
    Asked(which): Asked<Which>,
) -> Answer<api::StateInfo> {
    Ok(Json(desk.resolve(&volume, &which.at).await?))
}

async fn segments<S: Storage>(
    State(desk): At<S>,
    Named(volume): Named<String>,
) -> Answer<Vec<api::SegmentInfo>> {
    Ok(Json(desk.segments(&volume).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    #[serde(default)]
    after: u64,
    limit: Option<u32>,
}

async fn records<S: Storage>(
    State(desk): At<S>,
    Named((volume, segment)): Named<(String, String)>,
    Asked(page): Asked<Page>,
) -> Answer<api::RecordPage> {
    Ok(Json(desk.records(&volume, segment, Seq(page.after), page.limit).await?))
}

async fn exports<S: Storage>(State(desk): At<S>) -> Answer<Vec<api::ExportInfo>> {
    Ok(Json(desk.export_list().await?))
}

async fn create_export<S: Storage>(
    State(desk): At<S>,
    Body(new): Body<api::NewExport>,
) -> Answer<api::ExportInfo> {
    whole(async move { desk.create_export(new).await }).await
}

/// What a person has agreed to lose.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ending {
    #[serde(default)]
    discard: bool,
    #[serde(default)]
    force: bool,
}

async fn delete_export<S: Storage>(
    State(desk): At<S>,
    Named(id): Named<u64>,
    Asked(ending): Asked<Ending>,
) -> Answer<api::ExportInfo> {
    whole(async move { desk.delete_export(id, ending.discard, ending.force).await }).await
}

async fn create_restore<S: Storage>(
    State(desk): At<S>,
    Body(new): Body<api::NewRestore>,
) -> Answer<api::Job> {
    whole(async move { desk.create_restore(new).await }).await
}

async fn create_seed<S: Storage>(
    State(desk): At<S>,
    Named(volume): Named<String>,
    Body(new): Body<api::NewSeed>,
) -> Answer<api::Job> {
    whole(async move { desk.create_seed(&volume, new).await }).await
}

async fn create_resync<S: Storage>(
    State(desk): At<S>,
    Named(volume): Named<String>,
    Body(new): Body<api::NewResync>,
) -> Answer<api::Job> {
    whole(async move { desk.create_resync(&volume, new).await }).await
}

async fn create_verify<S: Storage>(
    State(desk): At<S>,
    Named(volume): Named<String>,
) -> Answer<api::Job> {
    whole(async move { desk.create_verify(&volume).await }).await
}

async fn plan_restore<S: Storage>(
    State(desk): At<S>,
    Body(new): Body<api::NewRestore>,
) -> Answer<api::RestorePlan> {
    Ok(Json(desk.plan_restore(new).await?))
}

async fn jobs<S: Storage>(State(desk): At<S>) -> Answer<Vec<api::Job>> {
    Ok(Json(desk.job_list().await?))
}

async fn job<S: Storage>(State(desk): At<S>, Named(id): Named<u64>) -> Answer<api::Job> {
    Ok(Json(desk.job(id).await?))
}

async fn cancel_job<S: Storage>(State(desk): At<S>, Named(id): Named<u64>) -> Answer<api::Job> {
    Ok(Json(desk.cancel_job(id).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Since {
    #[serde(default)]
    after: u64,
}

async fn events<S: Storage>(
    State(desk): At<S>,
    Asked(since): Asked<Since>,
) -> Answer<Vec<api::Event>> {
    let rows = desk.sources.catalog.events(since.after, EVENTS_MAX).await?;
    Ok(Json(rows.into_iter().map(convert::event).collect()))
}
