//! What ingest tells the rest of the collector.

use tidemark_wire::VolumeId;

use super::manifest::Manifest;
use crate::journal::Mark;

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// For the record.
    Info,
    /// Somebody should look at it.
    Warning,
    /// Somebody has to act.
    Critical,
}

/// Listens to ingest. Calls come from the threads that write journals, so they must not wait.
pub trait Observer: Send + Sync + 'static {
    /// A volume was found at start, or its manifest has changed.
    fn volume(&self, manifest: &Manifest);

    /// Marks of a volume became durable.
    fn marks(&self, volume: VolumeId, marks: &[Mark]);

    /// Something happened that a person may want to know.
    fn event(&self, severity: Severity, volume: Option<&str>, message: String);
}
