//! What ingest tells the rest of the collector.

use tidemark_wire::{Seq, VolumeId};

use super::manifest::Manifest;
use crate::error::Severity;
use crate::journal::Mark;

/// Listens to ingest. Calls come from the threads that write journals, so they must not wait.
pub trait Observer: Send + Sync + 'static {
    /// A volume was found at start, or its manifest has changed.
    fn volume(&self, manifest: &Manifest);

    /// The agent that the manifest names has opened a session just now.
    fn seen(&self, manifest: &Manifest);

    /// The journal of a volume was opened; these are all its marks.
    fn history(&self, volume: VolumeId, marks: &[Mark]);

    /// Marks of a volume became durable.
    fn marks(&self, volume: VolumeId, marks: &[Mark]);

    /// The history of a volume now begins with the state `oldest`.
    fn trimmed(&self, volume: VolumeId, oldest: Seq);

    /// Something happened that a person may want to know.
    fn event(&self, severity: Severity, volume: Option<&str>, message: String);
}
