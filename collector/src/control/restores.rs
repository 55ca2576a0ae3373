//! Restores: what one would do, and beginning one.

use std::sync::Arc;

use super::desk::{Desk, blocking};
use super::jobs::{Ended, RESTORE};
use super::{api, convert};
use crate::catalog::{JobRow, JobStatus};
use crate::error::{Failure, Result};
use crate::ingest::volume::Volume;
use crate::points::at::State;
use crate::restore::{Plan, Restored, Subject, Wanted, plan, restore};
use crate::storage::Storage;

impl<S: Storage> Desk<S> {
    pub(super) async fn plan_restore(
        self: &Arc<Self>,
        new: api::NewRestore,
    ) -> Result<api::RestorePlan> {
        let (volume, state, plan, size_bytes) = self.plan(&new).await?;
        Ok(api::RestorePlan {
            volume: volume.name(),
            state: convert::state(&state),
            target: plan.target().to_owned(),
            format: convert::format(plan.format()),
            destroys: plan.destroys(),
            note: plan.note(),
            resumes_at_bytes: plan.resumes_at(),
            total_bytes: size_bytes,
        })
    }

    async fn plan(
        self: &Arc<Self>,
        new: &api::NewRestore,
    ) -> Result<(Arc<Volume<S>>, State, Plan, u64)> {
        let (volume, state) = self.find_state(&new.volume, &new.at).await?;
        let (held, manifest) = (volume.held()?, volume.facts().manifest);
        let subject = Subject {
            volume: manifest.volume,
            name: manifest.name,
            journal: manifest.journal,
            timeline: manifest.timeline,
            seq: state.seq,
            size_bytes: held.reader.size_at(state.seq),
        };
        let size_bytes = subject.size_bytes;
        let wanted = Wanted {
            target: new.target.clone(),
            format: new.format.map(convert::wanted_format),
            overwrite: new.overwrite,
            restart: new.restart,
        };
        let data_dir = self.sources.settings.now().data_dir.clone();
        let plan = blocking(move || plan(&wanted, subject, &data_dir)).await?;
        Ok((volume, state, plan, size_bytes))
    }

    pub(super) async fn create_restore(self: &Arc<Self>, new: api::NewRestore) -> Result<api::Job> {
        let (volume, state, plan, _) = self.plan(&new).await?;
        if let Some(device) = plan.destroys().filter(|_| !new.erase) {
            let message = format!("everything on {device} would be lost");
            return Err(Failure::conflict(message).with_hint("allow it (--yes)"));
        }
        let view = self.open_view(&volume, &state).await?;
        let row = JobRow {
            id: 0,
            kind: RESTORE.to_owned(),
            volume: volume.name(),
            at: new.at,
            seq: state.seq,
            time: state.time,
            target: plan.target().to_owned(),
            status: JobStatus::Running,
            done_bytes: 0,
            total_bytes: view.size_bytes(),
            started: self.sources.clock.wall(),
            finished: None,
            written_bytes: None,
            checksums_verified: None,
            comparison: None,
            error: None,
        };
        let (seq, target) = (state.seq, plan.target().display().to_string());
        self.begin_job(row, move |progress| {
            Ok(match restore(&view, plan, progress)? {
                Restored::Done { written_bytes, checksums_verified } => Ended::Done {
                    written_bytes,
                    checksums_verified,
                    message: format!("state seq:{seq} was restored to {target}"),
                },
                Restored::Cancelled => Ended::Cancelled,
            })
        })
        .await
    }
}
