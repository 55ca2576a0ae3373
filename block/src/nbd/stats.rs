//! Figures of a server, counted since its start.

use std::sync::atomic::{AtomicU64, Ordering};

/// What [`super::Server::stats`] tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// Connections that are open now, handshakes included.
    pub connections_open: usize,
    /// Connections accepted.
    pub connections_accepted: u64,
    /// Connections turned away because `connections_max` were open.
    pub connections_refused: u64,
    /// Connections cut because the peer broke the protocol.
    pub violations: u64,
    /// Requests received, of all kinds.
    pub requests: u64,
    /// Bytes of content read for clients, holes not counted.
    pub bytes_read: u64,
    /// Bytes of payload received from clients for writing.
    pub bytes_written: u64,
}

/// The counters behind [`ServerStats`]. Relaxed everywhere: nothing else is read on the strength
/// of a figure, so no ordering has a pair.
#[derive(Debug, Default)]
pub(super) struct Counters {
    accepted: AtomicU64,
    refused: AtomicU64,
    violations: AtomicU64,
    requests: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

impl Counters {
    pub(super) fn count_accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_violation(&self) {
        self.violations.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_read(&self, bytes: usize) {
        self.bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn count_written(&self, bytes: usize) {
        self.bytes_written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self, connections_open: usize) -> ServerStats {
        ServerStats {
            connections_open,
            connections_accepted: self.accepted.load(Ordering::Relaxed),
            connections_refused: self.refused.load(Ordering::Relaxed),
            violations: self.violations.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            bytes_written: self.bytes_written.load(Ordering::Relaxed),
        }
    }
}
