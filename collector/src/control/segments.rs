//! States and segments of one volume.

use std::sync::Arc;

use tidemark_wire::Seq;

use super::api;
use super::convert;
use super::desk::{Desk, blocking};
use crate::error::{Failure, Result, nearest};
use crate::journal::inspect_records;
use crate::storage::Storage;

/// Records of one page.
const RECORDS_MAX: u32 = 1_000;

impl<S: Storage> Desk<S> {
    pub(super) async fn resolve(
        self: &Arc<Self>,
        volume: &str,
        at: &str,
    ) -> Result<api::StateInfo> {
        self.find_state(volume, at).await.map(|(_, state)| convert::state(&state))
    }

    pub(super) async fn segments(self: &Arc<Self>, volume: &str) -> Result<Vec<api::SegmentInfo>> {
        let held = self.sources.volumes.find(volume)?.held()?;
        blocking(move || Ok(held.reader.segments().iter().map(convert::segment).collect())).await
    }

    pub(super) async fn records(
        self: &Arc<Self>,
        volume: &str,
        name: String,
        after: Seq,
        limit: Option<u32>,
    ) -> Result<api::RecordPage> {
        let volume = self.sources.volumes.find(volume)?;
        let (held, storage) = (volume.held()?, Arc::clone(&self.sources.storage));
        let limit = limit.unwrap_or(RECORDS_MAX).clamp(1, RECORDS_MAX);
        blocking(move || {
            // Only names of this journal are opened, whatever path the request spells.
            let segments = held.reader.segments();
            let Some(segment) = segments.iter().find(|segment| segment.name == name) else {
                let failure = Failure::not_found(format!("there is no segment {name:?}"));
                let names = segments.iter().map(|segment| segment.name.as_str());
                return Err(match nearest(&name, names) {
                    Some(right) => failure.with_hint(format!("did you mean {right}?")),
                    None => failure,
                });
            };
            let path = Self::journal_file(&volume, &segment.name);
            let (mut records, mut damage) =
                inspect_records(storage.as_ref(), &path, after, limit as usize)?;
            // Behind what was synced when the segment was looked up, a write may be under way.
            let seen = records.last().map_or(after, |record| record.seq);
            if !segment.sealed && seen >= segment.last_seq {
                records.retain(|record| record.seq <= segment.last_seq);
                damage = None;
            }
            let full = records.len() == limit as usize;
            Ok(api::RecordPage {
                segment: convert::segment(segment),
                next_after: records.last().filter(|_| full).map(|record| record.seq.0),
                records: records.iter().map(convert::record).collect(),
                damage: damage.map(|damage| damage.to_string()),
            })
        })
        .await
    }
}
