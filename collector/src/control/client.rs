//! A small client of the control API for programs without an event loop of their own.
//!
//! Each call opens a connection to the daemon's unix socket, sends one request and waits for the
//! answer, at most [`CALL_SECONDS_MAX`]. An answer longer than [`ANSWER_BYTES_MAX`] is an error.

mod volume;

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::api::{
    ErrorBody, ErrorInfo, Event, ExportInfo, Job, NewExport, NewRestore, RecordPage, RestorePlan,
    SegmentInfo, StateInfo, Status, VolumeStatus,
};

/// Longest wait for one answer. Creating a point waits for the agent, so this is generous.
pub const CALL_SECONDS_MAX: u64 = 60;
/// Longest answer that is read.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("no collector answers on {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// No answer in time.
    #[error("the collector on {} gave no answer within {CALL_SECONDS_MAX} s", path.display())]
    Timeout {
        /// The socket.
        path: PathBuf,
    },
    /// The connection broke, or the answer is not one of this API.
    #[error("the answer of the collector on {} is not understood: {detail}", path.display())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What was wrong with it.
        detail: String,
    },
    /// The collector answered with an error.
    #[error("{}", .0.message)]
    Refused(ErrorInfo),
    /// The client could not be set up.
    #[error("no event loop for the control client: {0}")]
    Setup(#[source] std::io::Error),
}

/// A client of one collector.
pub struct Client {
    socket: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Client {
    /// A client for the daemon behind `socket`; nothing is connected yet.
    ///
    /// # Errors
    /// `Setup`.
    pub fn new(socket: impl Into<PathBuf>) -> Result<Self, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ClientError::Setup)?;
        Ok(Self { socket: socket.into(), runtime })
    }

    /// The socket that is called.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The daemon and all its volumes.
    ///
    /// # Errors
    /// Any kind of [`ClientError`] but `Setup`; this holds for all calls.
    pub fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status")
    }

    /// All volumes.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn volumes(&self) -> Result<Vec<VolumeStatus>, ClientError> {
        self.get("/v1/volumes")
    }

    /// One volume, by name or id.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn volume(&self, volume: &str) -> Result<VolumeStatus, ClientError> {
        self.get(&format!("/v1/volumes/{}", escape(volume)))
    }

    /// The state that `at` means now.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn resolve(&self, volume: &str, at: &str) -> Result<StateInfo, ClientError> {
        self.get(&format!("/v1/volumes/{}/resolve?at={}", escape(volume), escape(at)))
    }

    /// The files of a volume's journal, oldest first.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn segments(&self, volume: &str) -> Result<Vec<SegmentInfo>, ClientError> {
        self.get(&format!("/v1/volumes/{}/segments", escape(volume)))
    }

    /// Records of one file, behind `after_seq`, at most `limit` of them.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn records(
        &self,
        volume: &str,
        segment: &str,
        after_seq: u64,
        limit: u32,
    ) -> Result<RecordPage, ClientError> {
        let (volume, segment) = (escape(volume), escape(segment));
        self.get(&format!(
            "/v1/volumes/{volume}/segments/{segment}?after={after_seq}&limit={limit}"
        ))
    }

    /// Serves a state, or a clone of it.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn create_export(&self, new: &NewExport) -> Result<ExportInfo, ClientError> {
        self.post("/v1/exports", new)
    }

    /// What is served.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn exports(&self) -> Result<Vec<ExportInfo>, ClientError> {
        self.get("/v1/exports")
    }

    /// Ends an export: a clone that was written to only with `discard`, a file that is open only
    /// with `force`.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn delete_export(
        &self,
        id: u64,
        discard: bool,
        force: bool,
    ) -> Result<ExportInfo, ClientError> {
        let path = format!("/v1/exports/{id}?discard={discard}&force={force}");
        self.call(Method::DELETE, &path, Bytes::new())
    }

    /// What a restore would do; nothing is begun.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn plan_restore(&self, new: &NewRestore) -> Result<RestorePlan, ClientError> {
        self.post("/v1/restores/plan", new)
    }

    /// Begins a restore.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn create_restore(&self, new: &NewRestore) -> Result<Job, ClientError> {
        self.post("/v1/restores", new)
    }

    /// All jobs that are remembered, oldest first.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn jobs(&self) -> Result<Vec<Job>, ClientError> {
        self.get("/v1/jobs")
    }

    /// One job.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn job(&self, id: u64) -> Result<Job, ClientError> {
        self.get(&format!("/v1/jobs/{id}"))
    }

    /// Cancels a job; it may run on for a moment.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn cancel_job(&self, id: u64) -> Result<Job, ClientError> {
        self.call(Method::DELETE, &format!("/v1/jobs/{id}"), Bytes::new())
    }

    /// Events with a number larger than `after_id`, oldest first.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn events(&self, after_id: u64) -> Result<Vec<Event>, ClientError> {
        self.get(&format!("/v1/events?after={after_id}"))
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, Bytes::new())
    }

    fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|e| self.protocol(e))?;
        self.call(Method::POST, path, body.into())
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "collector")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|e| self.protocol(e))?;
        let limit = Duration::from_secs(CALL_SECONDS_MAX);
        let answer = self
            .runtime
            .block_on(async { tokio::time::timeout(limit, self.exchange(request)).await });
        let (status, bytes) =
            answer.map_err(|_| ClientError::Timeout { path: self.socket.clone() })??;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|e| self.protocol(e));
        }
        match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(body) => Err(ClientError::Refused(body.error)),
            Err(_) => Err(self.protocol(format!("status {status} without an error body"))),
        }
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let stream = tokio::net::UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ClientError::Connect { path: self.socket.clone(), source })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.protocol(e))?;
        // The connection has to be polled for the request to move; it ends with the answer, and
        // its error, if any, is also the request's.
        let driver = tokio::spawn(connection);
        let answer = async {
            let response = sender.send_request(request).await.map_err(|e| self.protocol(e))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|e| self.protocol(e))?;
            Ok((status, body.to_bytes()))
        }
        .await;
        driver.abort();
        answer
    }

    fn protocol(&self, detail: impl ToString) -> ClientError {
        ClientError::Protocol { path: self.socket.clone(), detail: detail.to_string() }
    }
}

/// Percent-encodes everything that is not unreserved in a URI (RFC 3986, section 2.3).
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
