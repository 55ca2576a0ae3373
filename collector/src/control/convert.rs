//! From what the collector knows to what the API says.

use tidemark_wire::body::PointKind;
use tidemark_wire::checksum::piece_count;
use tidemark_wire::record::FLAG_FUA;

use super::api;
use crate::catalog::{Comparison, EventRow, JobRow, JobStatus};
use crate::error::{Failure, FailureKind, Severity};
use crate::journal::{InspectedRecord, MarkBody, SegmentInfo};
use crate::points::at::State;
use crate::points::{Point, timestamp};
use crate::policy::Policy;
use crate::restore::Format;

pub(super) fn error(failure: &Failure) -> api::ErrorInfo {
    api::ErrorInfo {
        kind: error_kind(failure.kind),
        message: failure.message.clone(),
        hint: failure.hint.clone(),
    }
}

fn error_kind(kind: FailureKind) -> api::ErrorKind {
    match kind {
        FailureKind::NotFound => api::ErrorKind::NotFound,
        FailureKind::Invalid => api::ErrorKind::Invalid,
        FailureKind::Conflict => api::ErrorKind::Conflict,
        FailureKind::Unavailable => api::ErrorKind::Unavailable,
        FailureKind::Internal => api::ErrorKind::Internal,
    }
}

pub(super) fn point(point: &Point, offered: bool) -> api::PointInfo {
    api::PointInfo {
        id: point.id.to_string(),
        kind: match point.kind {
            PointKind::Crash => api::PointKind::CrashConsistent,
            PointKind::App => api::PointKind::AppConsistent,
            PointKind::Person => api::PointKind::Bookmark,
        },
        label: point.label.clone(),
        reason: point.reason.clone(),
        seq: point.seq.0,
        time: timestamp(point.time),
        changed_bytes: None,
        offered,
    }
}

pub(super) fn policy(policy: &Policy, own: bool) -> api::PolicyInfo {
    api::PolicyInfo {
        window_seconds: policy.window.as_secs(),
        journal_bytes_max: policy.journal_bytes_max,
        point_interval_seconds: policy.point_interval.map(|interval| interval.as_secs()),
        compare_window: policy.compare_window,
        verify_days: policy.verify_days,
        resync_days: policy.resync_days,
        own,
    }
}

pub(super) fn state(found: &State) -> api::StateInfo {
    api::StateInfo {
        seq: found.seq.0,
        time: found.time.map(timestamp),
        // A state is only found when it can be opened.
        point: found.point.as_ref().map(|named| point(named, true)),
    }
}

pub(super) fn segment(segment: &SegmentInfo) -> api::SegmentInfo {
    api::SegmentInfo {
        name: segment.name.clone(),
        first_seq: segment.first_seq.0,
        last_seq: (segment.records > 0).then_some(segment.last_seq.0),
        records: segment.records,
        file_bytes: segment.bytes,
        sealed: segment.sealed,
    }
}

pub(super) fn record(record: &InspectedRecord) -> api::RecordInfo {
    let grid = if record.kind.has_data() { record.range.start() } else { 0 };
    let codec = if record.stored_bytes == record.payload_bytes { "raw" } else { "snappy" };
    api::RecordInfo {
        seq: record.seq.0,
        time: timestamp(record.time),
        kind: record.kind.name().to_owned(),
        offset_bytes: record.range.start(),
        len_bytes: record.range.len(),
        stored_bytes: record.stored_bytes,
        codec: codec.to_owned(),
        fua: record.flags & FLAG_FUA != 0,
        checked: piece_count(grid, record.payload_bytes),
        detail: record.mark.as_ref().map(detail).unwrap_or_default(),
    }
}

fn detail(mark: &MarkBody) -> String {
    match mark {
        MarkBody::Bookmark(bookmark) => {
            let mut text = format!("{} {:?}", bookmark.kind.name(), bookmark.label);
            if !bookmark.reason.is_empty() {
                text.push_str(&format!(" ({})", bookmark.reason));
            }
            text
        }
        MarkBody::Cut(cut) => format!("cut {} of a group of {}", cut.number, cut.members),
        MarkBody::Resize { size_bytes, old_bytes } => {
            format!("from {old_bytes} to {size_bytes} bytes")
        }
        MarkBody::Unreadable { errno, .. } => {
            format!("can't be read on the protected machine (errno {errno})")
        }
        MarkBody::Gap(Some(reason)) => reason.text().to_owned(),
        MarkBody::Gap(None) => "for a reason that this program does not know".to_owned(),
        MarkBody::ResyncBegin(resync) if resync.initial == 1 => {
            format!("first copy of {} bytes", resync.total_bytes)
        }
        MarkBody::ResyncBegin(resync) => format!("comparison of {} bytes", resync.total_bytes),
        MarkBody::ResyncEnd(resync) => {
            format!("{} of {} bytes were sent", resync.sent_bytes, resync.total_bytes)
        }
    }
}

pub(super) fn event(event: EventRow) -> api::Event {
    api::Event {
        id: event.id,
        time: timestamp(event.time),
        severity: match event.severity {
            Severity::Info => api::Severity::Info,
            Severity::Warning => api::Severity::Warning,
            Severity::Critical => api::Severity::Critical,
        },
        volume: event.volume,
        message: event.message,
    }
}

/// `done_bytes` of a job that runs is not in its row.
pub(super) fn job(row: JobRow, running_done_bytes: Option<u64>) -> api::Job {
    let result = match (row.written_bytes, row.checksums_verified) {
        (Some(written_bytes), Some(checksums_verified)) => Some(api::RestoreResult {
            written_bytes,
            size_bytes: row.total_bytes,
            checksums_verified,
        }),
        _ => None,
    };
    let go_on = super::jobs::go_on(&row);
    api::Job {
        id: row.id,
        kind: row.kind,
        volume: row.volume,
        at: row.at,
        state_seq: row.seq.0,
        state_time: row.time.map(timestamp),
        target: row.target,
        state: match row.status {
            JobStatus::Running => api::JobState::Running,
            JobStatus::Done => api::JobState::Done,
            JobStatus::Failed => api::JobState::Failed,
            JobStatus::Cancelled => api::JobState::Cancelled,
            JobStatus::Interrupted => api::JobState::Interrupted,
        },
        done_bytes: running_done_bytes.unwrap_or(row.done_bytes),
        total_bytes: row.total_bytes,
        started: timestamp(row.started),
        finished: row.finished.map(timestamp),
        result,
        comparison: row.comparison.map(comparison),
        error: row.error.map(|(kind, message, hint)| api::ErrorInfo {
            kind: error_kind(kind),
            message,
            hint,
        }),
        go_on,
    }
}

fn comparison(found: Comparison) -> api::ComparisonResult {
    api::ComparisonResult {
        compared_bytes: found.compared_bytes,
        differing_bytes: found.differing_bytes,
        unreadable_bytes: found.unreadable_bytes,
        sent_bytes: found.sent_bytes,
        seconds: found.seconds,
    }
}

pub(super) fn format(format: Format) -> api::TargetFormat {
    match format {
        Format::Raw => api::TargetFormat::Raw,
        Format::Qcow2 => api::TargetFormat::Qcow2,
    }
}

pub(super) fn wanted_format(format: api::TargetFormat) -> Format {
    match format {
        api::TargetFormat::Raw => Format::Raw,
        api::TargetFormat::Qcow2 => Format::Qcow2,
    }
}
