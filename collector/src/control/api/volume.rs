//! Requests and answers about the life of a volume, its points, its agent, and the daemon's
//! configuration.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{PointKind, ProtectionState};
use crate::policy::DayWindow;

/// What holds for a volume. Answer of `POST /v1/volumes/{v}/policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyInfo {
    /// Every state that is younger than this is kept.
    pub window_seconds: u64,
    /// Size of the journal beyond which older history goes first; `None`: no limit.
    pub journal_bytes_max: Option<u64>,
    /// Time between two points that are made by themselves; `None`: none are made.
    pub point_interval_seconds: Option<u64>,
    /// When scheduled comparisons may run, in the collector's local time.
    pub compare_window: DayWindow,
    /// Days between two verifications; `None`: none are made by themselves.
    pub verify_days: Option<u32>,
    /// Days between two comparisons that make the copy equal to the disk; `None`: none are made by
    /// themselves, but for those that close a gap.
    pub resync_days: Option<u32>,
    /// Something of it was decided for this volume; else all are the collector's defaults.
    pub own: bool,
}

/// Body of `POST /v1/volumes/{v}/policy`. What is absent stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NewPolicy {
    /// Go back to the collector's defaults first.
    pub default: bool,
    /// See [`PolicyInfo::window_seconds`].
    pub window_seconds: Option<u64>,
    /// See [`PolicyInfo::journal_bytes_max`]; 0: no limit.
    pub journal_bytes_max: Option<u64>,
    /// See [`PolicyInfo::point_interval_seconds`]; 0: none.
    pub point_interval_seconds: Option<u64>,
    /// See [`PolicyInfo::compare_window`], as in `22:00-04:00`.
    pub compare_window: Option<DayWindow>,
    /// See [`PolicyInfo::verify_days`]; 0: none.
    pub verify_days: Option<u32>,
    /// See [`PolicyInfo::resync_days`]; 0: none.
    pub resync_days: Option<u32>,
}

/// Body of `POST /v1/volumes/{v}/seed`; the answer is a [`super::Job`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewSeed {
    /// Absolute path, on the collector's machine, of a raw image of the disk: a file or a block
    /// device.
    pub image: PathBuf,
}

/// Body of `POST /v1/volumes/{v}/resync`; the answer is a [`super::Job`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NewResync {
    /// Compare the whole disk, not only what may differ.
    pub full: bool,
}

/// What a resynchronization or a verification has done or found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComparisonResult {
    /// Bytes of the disk that were looked at.
    pub compared_bytes: u64,
    /// Bytes that differed: of a verification. They still do.
    pub differing_bytes: u64,
    /// Bytes that one of the sides could not read, so that nothing is known of them.
    pub unreadable_bytes: u64,
    /// Bytes that were sent: of a resynchronization.
    pub sent_bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

/// When a volume was retired, and what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiredInfo {
    /// Since when.
    pub since: Timestamp,
    /// When everything that is kept of it is erased.
    pub erase_after: Timestamp,
}

/// Body of `POST /v1/volumes/{v}/retire`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewRetire {
    /// How long its history is kept; `None`: as the collector's configuration says.
    pub grace_seconds: Option<u64>,
}

/// Answer of `DELETE /v1/volumes/{v}`: the volume is unknown now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erased {
    /// Identity (UUID).
    pub id: String,
    /// Its name.
    pub name: String,
    /// Why its files could not all be removed; the next start of the collector tries again.
    pub left: Option<String>,
}

/// Query of `GET /v1/volumes/{v}/points`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointFilter {
    /// Only those of this kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<PointKind>,
    /// Only those captured at or after this: an RFC 3339 time or an age such as `5m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Only those captured at or before this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Only so many, the newest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// An agent that was seen; `GET /v1/agents` is a list of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// Identity (UUID).
    pub id: String,
    /// A session of one of its volumes is open.
    pub connected: bool,
    /// When it came for the first time.
    pub first_seen: Timestamp,
    /// When it opened its newest session.
    pub last_seen: Timestamp,
    /// Volumes whose newest session was its.
    pub volumes: Vec<AgentVolume>,
}

/// A volume of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentVolume {
    /// Identity (UUID).
    pub id: String,
    /// Its name.
    pub name: String,
    /// State of its protection.
    pub state: ProtectionState,
}

/// Answer of `POST /v1/reload`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Keys of the configuration whose new values are in force now.
    pub changed: Vec<String>,
    /// Keys whose new values wait for the next start of the collector.
    pub kept: Vec<String>,
}
