//! `tidemark agent`: machines that protect disks.

use tidemark_collector::control::api::AgentInfo;
use tidemark_collector::control::client::Client;

use crate::args::AgentCommand;
use crate::console::{Console, Stop};
use crate::render::{self, Column};

/// Asks or forgets, and shows.
pub(crate) fn run(
    command: &AgentCommand,
    client: &Client,
    console: &mut Console<'_>,
) -> Result<(), Stop> {
    match command {
        AgentCommand::List => console.show(&client.agents()?, |agents| table(agents)),
        AgentCommand::Forget { agent } => console.show(&client.forget_agent(agent)?, |agent| {
            format!("agent {} is forgotten; should it come again, it is listed anew\n", agent.id)
        }),
    }
}

fn table(agents: &[AgentInfo]) -> String {
    let columns = [
        Column::Text("AGENT"),
        Column::Text("CONNECTED"),
        Column::Text("LAST SEEN"),
        Column::Text("VOLUMES"),
    ];
    render::table(
        &columns,
        agents.iter().map(|agent| {
            let volumes: Vec<String> = agent
                .volumes
                .iter()
                .map(|volume| format!("{} ({})", volume.name, volume.state.name()))
                .collect();
            let none = volumes.is_empty();
            vec![
                agent.id.clone(),
                if agent.connected { "yes" } else { "no" }.to_owned(),
                render::time(agent.last_seen),
                if none { render::NOTHING.to_owned() } else { volumes.join(", ") },
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use tidemark_collector::control::api::{AgentVolume, ProtectionState};

    use super::*;

    #[test]
    fn an_agent_is_shown_with_its_volumes() {
        let volume = |name: &str, state| AgentVolume { id: "v".into(), name: name.into(), state };
        let agent = AgentInfo {
            id: "a1".into(),
            connected: false,
            first_seen: Timestamp::UNIX_EPOCH,
            last_seen: Timestamp::UNIX_EPOCH,
            volumes: vec![
                volume("db", ProtectionState::Retired),
                volume("web", ProtectionState::Disconnected),
            ],
        };
        let shown = table(&[agent]);
        assert!(
            shown.contains("no         1970-01-01T00:00:00Z  db (retired), web (disconnected)")
        );
    }
}
