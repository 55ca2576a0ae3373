//! The control API's requests and answers, as JSON.
//!
//! The daemon and the operator's tool share exactly this module, so that neither can drift.
//! Times are RFC 3339 in UTC; sizes are bytes; a sequence number is a plain number. A field that
//! an answer does not have is absent or `null`, never a special value.

mod volume;

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::volume::{
    AgentInfo, AgentVolume, ComparisonResult, Erased, NewPolicy, NewResync, NewRetire, NewSeed,
    PointFilter, PolicyInfo, Reloaded, RetiredInfo,
};
pub use crate::config::CONTROL_SOCKET_DEFAULT;
pub use crate::policy::DayWindow;

/// Answer of `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the collector.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// When the daemon started.
    pub started: Timestamp,
    /// Where it keeps everything.
    pub data_dir: PathBuf,
    /// Addresses on which it takes sessions of agents.
    pub listen: Vec<String>,
    /// Free space of the file system below the data directory.
    pub free_bytes: u64,
    /// Agents' sessions that are open.
    pub sessions: u32,
    /// Every known volume.
    pub volumes: Vec<VolumeStatus>,
    /// Exports that are being served.
    pub exports: u32,
    /// Jobs that have not ended.
    pub jobs_running: u32,
}

/// In which state the protection of a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProtectionState {
    /// The agent is connected, no span is open and the newest token is young.
    Protected,
    /// A span is open: the volume is being copied or compared.
    Copying,
    /// The agent is connected, but the newest durable token is older than it should be.
    Behind,
    /// The agent is connected, but captures no changes until a copy has begun.
    Lost,
    /// The agent is connected, but captures no changes, because a person wants it so.
    Paused,
    /// No session of the volume is open.
    Disconnected,
    /// A person has ended the protection; what is kept goes in a while.
    Retired,
}

impl ProtectionState {
    /// The word that people see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Protected => "protected",
            Self::Copying => "copying",
            Self::Behind => "behind",
            Self::Lost => "lost",
            Self::Paused => "paused",
            Self::Disconnected => "disconnected",
            Self::Retired => "retired",
        }
    }
}

/// Answer of `GET /v1/volumes/{v}`; `GET /v1/volumes` is a list of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Identity (UUID).
    pub id: String,
    /// Name, as the agent gave it.
    pub name: String,
    /// Size of the disk.
    pub size_bytes: u64,
    /// Smallest unit in which it is written.
    pub block_bytes: u32,
    /// State of its protection.
    pub state: ProtectionState,
    /// Since when, where that is known: for a paused or retired volume, and while a copy runs.
    pub since: Option<Timestamp>,
    /// Why it is in that state, where there is more to say.
    pub reason: Option<String>,
    /// Set while it is retired.
    pub retired: Option<RetiredInfo>,
    /// What holds for it.
    pub policy: PolicyInfo,
    /// A session of the volume is open.
    pub connected: bool,
    /// The agent of the session that is or was the last one (UUID).
    pub agent: Option<String>,
    /// Identity of the collector's copy (UUID).
    pub journal: String,
    /// The timeline that goes on.
    pub timeline: u32,
    /// Epoch of the newest session.
    pub epoch: u64,
    /// Newest record on stable storage; 0 when there is none.
    pub durable_seq: u64,
    /// When that record was captured.
    pub durable_time: Option<Timestamp>,
    /// Oldest state that can be opened.
    pub first_seq: Option<u64>,
    /// When that state was captured.
    pub first_time: Option<Timestamp>,
    /// How old the newest recoverable state is. `None` when this daemon has not yet seen a token
    /// of the volume become durable.
    pub rpo_seconds: Option<f64>,
    /// Bytes of the journal.
    pub journal_bytes: u64,
    /// Files of the journal.
    pub segments: u32,
    /// Ranges of the history inside which no state is offered, oldest first.
    pub spans: Vec<SpanInfo>,
    /// How far the copy is, while one is under way.
    pub copy: Option<CopyProgress>,
    /// How many bytes of the disk differ at most from what is held here, as the agent has told;
    /// absent while none is connected.
    pub differing_bytes: Option<u64>,
    /// Why the volume can't be journaled or opened at the moment, and what to do.
    pub problem: Option<String>,
}

/// A range of the history inside which no state is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanInfo {
    /// The gap or resync-begin record.
    pub begin_seq: u64,
    /// The resync-end record; `None` while the span is open.
    pub end_seq: Option<u64>,
}

/// How far the copy of a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyProgress {
    /// Bytes of the volume that were looked at.
    pub done_bytes: u64,
    /// Bytes of the volume to look at.
    pub total_bytes: u64,
    /// Bytes that had to be sent.
    pub sent_bytes: u64,
}

/// What a recovery point promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PointKind {
    /// As after a power cut.
    CrashConsistent,
    /// The application made its files consistent first.
    AppConsistent,
    /// A person's bookmark; as after a power cut.
    Bookmark,
}

impl PointKind {
    /// The word that people see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CrashConsistent => "crash-consistent",
            Self::AppConsistent => "app-consistent",
            Self::Bookmark => "bookmark",
        }
    }
}

/// A recovery point. Answer of `POST /v1/volumes/{v}/points`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointInfo {
    /// Identity (UUID).
    pub id: String,
    /// What it promises.
    pub kind: PointKind,
    /// The name that a person gave it; may be empty.
    pub label: String,
    /// Why it promises less than was asked for; empty when it does not.
    pub reason: String,
    /// The state that it names.
    pub seq: u64,
    /// When that state was captured. Never below the time of an earlier point.
    pub time: Timestamp,
    /// Bytes of the journal between the point before and this one; `None` for the oldest point,
    /// and in an answer that shows only this one.
    pub changed_bytes: Option<u64>,
    /// False when the state lies inside a span and so can't be opened.
    pub offered: bool,
}

/// Answer of `GET /v1/volumes/{v}/points`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointList {
    /// The volume's name.
    pub volume: String,
    /// The newest state that can be opened: what `latest` means now.
    pub latest: Option<StateInfo>,
    /// The oldest state that can be opened.
    pub oldest: Option<StateInfo>,
    /// Points that match, oldest first.
    pub points: Vec<PointInfo>,
    /// Points that match and are older than those shown, because of the limit.
    pub older: u64,
}

/// A state of a volume. Answer of `GET /v1/volumes/{v}/resolve?at=AT`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateInfo {
    /// Sequence number of the state.
    pub seq: u64,
    /// When its last record was captured; absent for the empty state before the first record.
    pub time: Option<Timestamp>,
    /// The point that names the state, when the state was found by one.
    pub point: Option<PointInfo>,
}

/// Body of `POST /v1/volumes/{v}/points`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPoint {
    /// A person's name for the point.
    pub label: String,
}

/// One file of a journal; `GET /v1/volumes/{v}/segments` is a list of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentInfo {
    /// Name of the file.
    pub name: String,
    /// First record.
    pub first_seq: u64,
    /// Last durable record; `None` when the file holds none yet.
    pub last_seq: Option<u64>,
    /// Number of durable records.
    pub records: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// Index and trailer are written; the file no longer changes.
    pub sealed: bool,
}

/// Answer of `GET /v1/volumes/{v}/segments/{name}?after=SEQ&limit=N`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordPage {
    /// The file that was read.
    pub segment: SegmentInfo,
    /// Records behind `after`, in order.
    pub records: Vec<RecordInfo>,
    /// Give this as `after` to go on; `None` when the file ends here.
    pub next_after: Option<u64>,
    /// What is wrong with the file and where; nothing behind that place was decoded.
    pub damage: Option<String>,
}

/// One decoded change record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordInfo {
    /// Sequence number.
    pub seq: u64,
    /// When the change was captured.
    pub time: Timestamp,
    /// What it is about: "write", "trim", "bookmark" and so on.
    pub kind: String,
    /// First byte of the range on the volume.
    pub offset_bytes: u64,
    /// Length of the range.
    pub len_bytes: u64,
    /// Length of the payload as it is stored.
    pub stored_bytes: u32,
    /// How the payload is stored: "raw" or "snappy".
    pub codec: String,
    /// The client asked for forced unit access.
    pub fua: bool,
    /// Number of checksums that were compared with the payload and held.
    pub checked: u32,
    /// The body in words: a bookmark's label, the reason of a gap; empty for plain records.
    pub detail: String,
}

/// Body of `POST /v1/exports`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewExport {
    /// Name or id of the volume.
    pub volume: String,
    /// Which state.
    pub at: String,
    /// `unix:/path` or `tcp:127.0.0.1:10809`; port 0 lets the system choose one. Needed unless
    /// `fuse` is set.
    #[serde(default)]
    pub listen: Option<String>,
    /// Show it as a file of the collector's FUSE directory instead.
    #[serde(default)]
    pub fuse: bool,
    /// Make it a clone that can be written, with writes of its own.
    #[serde(default)]
    pub writable: bool,
    /// What a clone may hold of its own; the configured `clone_mib_max` when nothing is said.
    #[serde(default)]
    pub space_bytes: Option<u64>,
}

/// A state that is served as a disk, or a writable clone of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportInfo {
    /// Number of the export, for `DELETE /v1/exports/{id}?discard=BOOL&force=BOOL`.
    pub id: u64,
    /// The volume's name when the export was made.
    pub volume: String,
    /// The volume's identity.
    pub volume_id: String,
    /// The state, as it was asked for.
    pub at: String,
    /// The state that is served.
    pub state: StateInfo,
    /// Where it is served over NBD; with the port that was chosen.
    pub listen: Option<String>,
    /// What to give to NBD clients: `nbd+unix:///name?socket=…` or `nbd://host:port/name`.
    pub uri: Option<String>,
    /// Name of the export within NBD.
    pub nbd_name: Option<String>,
    /// The file of the FUSE directory that is the disk.
    pub path: Option<PathBuf>,
    /// Size of the disk.
    pub size_bytes: u64,
    /// When it was made.
    pub created: Timestamp,
    /// It is a clone that can be written.
    pub writable: bool,
    /// What a clone holds of its own; absent for a state, and while it is not served.
    pub used_bytes: Option<u64>,
    /// What a clone may hold of its own.
    pub space_bytes: Option<u64>,
    /// NBD connections, or openings of the file.
    pub clients: u32,
    /// Why it is not served at the moment, and what to do. Its state and a clone's writes are
    /// kept meanwhile.
    pub problem: Option<String>,
}

/// How a restored disk is laid out in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetFormat {
    /// Byte for byte, with holes.
    Raw,
    /// An image of QEMU's format of that name.
    Qcow2,
}

/// Body of `POST /v1/restores`, whose answer is a [`Job`], and of `POST /v1/restores/plan`, whose
/// answer is a [`RestorePlan`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewRestore {
    /// Name or id of the volume.
    pub volume: String,
    /// Which state.
    pub at: String,
    /// Absolute path on the collector's machine: of the file to make, or of a block device.
    pub target: PathBuf,
    /// How to lay it out; without it by the name (`.qcow2`), or as an unfinished restore to the
    /// same target has begun.
    #[serde(default)]
    pub format: Option<TargetFormat>,
    /// Replace the file when it exists.
    #[serde(default)]
    pub overwrite: bool,
    /// Begin anew, also when an unfinished restore to the same target could be gone on with.
    #[serde(default)]
    pub restart: bool,
    /// Overwrite the target when it is a block device.
    #[serde(default)]
    pub erase: bool,
}

/// What a restore would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// The volume's name.
    pub volume: String,
    /// The state.
    pub state: StateInfo,
    /// Where it would go; a device by its own name.
    pub target: PathBuf,
    /// How it would be laid out.
    pub format: TargetFormat,
    /// The block device whose content would be lost, described.
    pub destroys: Option<String>,
    /// What else a person should know.
    pub note: Option<String>,
    /// Bytes of the disk, from its start, that an earlier run has written; they are checked and
    /// not written again.
    pub resumes_at_bytes: u64,
    /// Bytes of the disk.
    pub total_bytes: u64,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Working.
    Running,
    /// Ended well.
    Done,
    /// Ended with an error.
    Failed,
    /// Ended because a person wanted it to.
    Cancelled,
    /// Ended because the collector was stopped or killed.
    Interrupted,
}

/// A piece of long work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Number of the job.
    pub id: u64,
    /// What it does: "restore", "seed", "resync" or "verify".
    pub kind: String,
    /// The volume's name.
    pub volume: String,
    /// The state, as it was asked for; empty for a seeding, and what is compared for a comparison.
    pub at: String,
    /// The state that is worked on; 0 for a seeding or comparison.
    pub state_seq: u64,
    /// When that state was captured.
    pub state_time: Option<Timestamp>,
    /// The file or device that is written; for a seeding the image that is read, for a comparison
    /// the volume's name.
    pub target: PathBuf,
    /// How it stands.
    pub state: JobState,
    /// Bytes of the disk that are done.
    pub done_bytes: u64,
    /// Bytes of the disk.
    pub total_bytes: u64,
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Option<Timestamp>,
    /// What it has achieved, when `state` is `done`.
    pub result: Option<RestoreResult>,
    /// What a comparison has done or found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comparison: Option<ComparisonResult>,
    /// Why it failed, when `state` is `failed`.
    pub error: Option<ErrorInfo>,
    /// The command that goes on with it, when it has ended early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub go_on: Option<String>,
}

/// What a job has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreResult {
    /// Bytes that this job has written; the rest reads as zeroes, or was there already from an
    /// earlier job that this one went on with.
    pub written_bytes: u64,
    /// Bytes of the disk.
    pub size_bytes: u64,
    /// Blocks whose checksums were compared with what was read, and held.
    pub checksums_verified: u64,
}

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// For the record.
    Info,
    /// Somebody should look at it.
    Warning,
    /// Somebody has to act.
    Critical,
}

/// Something that happened; `GET /v1/events?after=ID` is a list of them, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Rising number.
    pub id: u64,
    /// When.
    pub time: Timestamp,
    /// How much it matters.
    pub severity: Severity,
    /// The volume's name, when it is about one.
    pub volume: Option<String>,
    /// What happened, in a sentence.
    pub message: String,
}

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The thing that was named does not exist (404).
    NotFound,
    /// The request makes no sense (400).
    Invalid,
    /// The request does not fit the state of things (409).
    Conflict,
    /// Not possible now; later it may be (503).
    Unavailable,
    /// The collector has a problem of its own (500).
    Internal,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorInfo {
    /// What the caller can do.
    pub kind: ErrorKind,
    /// What happened, to which volume or file.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorInfo,
}
