//! What the last agent left of a volume, and what that makes of the write-intent log.
//!
//! | how the last agent ended | what may differ from the collector |
//! | --- | --- |
//! | there was none | everything |
//! | in order | nothing: the log is made anew |
//! | killed, while changes were captured and the volume copied | nothing; what was in flight is read back |
//! | killed otherwise | the regions that have a bit: which leaves was in memory |
//! | with the machine, or the change ring was lost | the regions that have a bit: they are compared |
//!
//! Where the log can't be read or is not the volume's, or did not cover everything, everything may
//! differ; so it is where the backing store was changed while no agent served it.

use std::fmt;
use std::io;
use std::sync::Arc;

use tidemark_block::store::Store;
use tidemark_wire::VolumeId;

use crate::intent_log::file::{FileError, IntentFile, LogFiles};
use crate::intent_log::map::{IntentMap, REGION_BYTES};
use crate::intent_log::{Coverage, IntentLog};
use crate::state::{KeptState, VolumeState};

/// How the agent before this one ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// There was none.
    First,
    /// In order.
    Clean,
    /// Killed: its change ring is there.
    Killed,
    /// With the machine: its change ring is of another boot, or not there.
    PowerCut,
}

impl Restart {
    /// How the agent ended that left the state `was` (`None` when there is none), and its ring or
    /// not.
    #[must_use]
    pub fn of(was: Option<&VolumeState>, has_ring: bool) -> Self {
        match was {
            None => Self::First,
            Some(was) if was.clean => Self::Clean,
            Some(_) if has_ring => Self::Killed,
            Some(_) => Self::PowerCut,
        }
    }
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "first start",
            Self::Clean => "start after a clean stop",
            Self::Killed => "restart after a kill of the agent",
            Self::PowerCut => "restart after a power cut, or without the change ring",
        })
    }
}

/// A start, as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// How the agent before this one ended.
    pub restart: Restart,
    /// Regions whose bit was found.
    pub marked: u64,
    /// Bytes that differ from the collector, at most.
    pub differing_bytes: u64,
}

impl fmt::Display for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { restart, marked, differing_bytes } = self;
        write!(
            f,
            "{restart}: {marked} regions of {} MiB were marked, {differing_bytes} bytes have to \
             be copied or compared",
            REGION_BYTES >> 20
        )
    }
}

/// Keeps in a volume's state whether its log covers what differs.
struct StateCoverage(Arc<KeptState>);

impl Coverage for StateCoverage {
    fn keep(&self, covered: bool) -> io::Result<()> {
        self.0.update(|state| state.covered = covered).map_err(io::Error::other)
    }
}

/// The write-intent log of a volume of `size_bytes`, whose last agent ended as `restart` says.
/// `state` is the volume's by now; no change of it is captured or done yet.
pub(super) async fn open_log<S: Store>(
    files: &impl LogFiles<Store = S>,
    name: &str,
    restart: Restart,
    state: &Arc<KeptState>,
    size_bytes: u64,
) -> IntentLog<S> {
    let kept = state.get();
    let (id, was_covered) = (kept.volume, kept.covered);
    let coverage = Box::new(StateCoverage(Arc::clone(state)));
    let map = Arc::new(IntentMap::new(size_bytes, was_covered, coverage));
    if was_covered && !matches!(restart, Restart::First | Restart::Clean) {
        match read_log(files, id, &map).await {
            Ok(file) => return IntentLog::in_file(map, file),
            Err(error) => tracing::warn!(
                volume = name,
                "its write-intent log says nothing: {error}; after a crash of this machine the \
                 whole volume is compared"
            ),
        }
    }
    // A crash from here on must not believe the new file before it has every bit.
    map.uncover();
    let log = match IntentFile::make(files, id, &map) {
        Ok(file) => IntentLog::in_file(Arc::clone(&map), file),
        Err(error) => {
            tracing::error!(
                volume = name,
                "no write-intent log can be made: {error}; a crash of this machine would be \
                 followed by a comparison of the whole volume; it is tried again every minute"
            );
            IntentLog::failed(Arc::clone(&map))
        }
    };
    match restart {
        Restart::Clean => {}
        Restart::First => map.doubt_all(),
        // What the last agent left is in the ring; without that whatever has a bit is compared.
        Restart::Killed | Restart::PowerCut => map.mark_all(),
    }
    log.write().await;
    log
}

async fn read_log<S: Store>(
    files: &impl LogFiles<Store = S>,
    volume: VolumeId,
    map: &IntentMap,
) -> Result<IntentFile<S>, FileError> {
    IntentFile::read(files.open()?, volume, map).await
}
