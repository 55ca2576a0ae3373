//! Agents that were seen, and how one is forgotten.

use std::sync::Arc;

use super::api;
use super::desk::Desk;
use crate::error::{Failure, Result, nearest};
use crate::points::timestamp;
use crate::storage::Storage;

impl<S: Storage> Desk<S> {
    pub(super) async fn agent_list(self: &Arc<Self>) -> Result<Vec<api::AgentInfo>> {
        let rows = self.sources.catalog.agents().await?;
        let volumes = self.volume_list().await?;
        let describe = |row: crate::catalog::AgentRow| {
            let id = row.id.to_string();
            let its = || volumes.iter().filter(|volume| volume.agent.as_deref() == Some(&id));
            api::AgentInfo {
                connected: its().any(|volume| volume.connected),
                first_seen: timestamp(row.first_seen),
                last_seen: timestamp(row.last_seen),
                volumes: its()
                    .map(|volume| api::AgentVolume {
                        id: volume.id.clone(),
                        name: volume.name.clone(),
                        state: volume.state,
                    })
                    .collect(),
                id,
            }
        };
        Ok(rows.into_iter().map(describe).collect())
    }

    /// Forgets an agent that protects nothing any more. When it opens a session again, it is
    /// back.
    pub(super) async fn forget_agent(self: &Arc<Self>, agent: &str) -> Result<api::AgentInfo> {
        let agents = self.agent_list().await?;
        let Some(known) = agents.iter().find(|known| known.id == agent) else {
            let failure = Failure::not_found(format!("there is no agent {agent:?}"));
            let ids = agents.iter().map(|known| known.id.as_str());
            return Err(match nearest(agent, ids) {
                Some(id) => failure.with_hint(format!("did you mean {id}?")),
                None => failure.with_hint("`tidemark agent list` shows the agents"),
            });
        };
        let in_use = |volume: &&api::AgentVolume| volume.state != api::ProtectionState::Retired;
        let kept: Vec<&str> =
            known.volumes.iter().filter(in_use).map(|volume| volume.name.as_str()).collect();
        if !kept.is_empty() {
            return Err(Failure::conflict(format!("agent {agent} protects {}", kept.join(", ")))
                .with_hint("retire its volumes first: tidemark volume retire VOLUME"));
        }
        let id =
            agent.parse().map_err(|_| Failure::invalid(format!("{agent:?} is no identity")))?;
        self.sources.catalog.forget_agent(id, self.sources.clock.wall()).await?;
        tracing::info!(agent, "an agent was forgotten");
        Ok(known.clone())
    }
}
