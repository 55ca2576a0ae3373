//! `tidemark event`: what happened.

use tidemark_collector::control::api::{Event, Severity};
use tidemark_collector::control::client::Client;

use crate::args::EventCommand;
use crate::console::{Console, Stop};
use crate::render::{self, Column};

/// Asks and shows.
pub(crate) fn run(
    command: &EventCommand,
    client: &Client,
    console: &mut Console<'_>,
) -> Result<(), Stop> {
    let EventCommand::List { after } = command;
    console.show(&client.events(*after)?, |events| table(events))
}

fn table(events: &[Event]) -> String {
    let columns = [
        Column::Number("ID"),
        Column::Text("TIME"),
        Column::Text("SEVERITY"),
        Column::Text("VOLUME"),
        Column::Text("WHAT"),
    ];
    render::table(
        &columns,
        events.iter().map(|event| {
            vec![
                event.id.to_string(),
                render::time(event.time),
                severity(event.severity).to_owned(),
                render::or_dash(event.volume.clone(), |name| name),
                event.message.clone(),
            ]
        }),
    )
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Critical => "critical",
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let event = Event {
            id: 3,
            time: Timestamp::UNIX_EPOCH,
            severity: Severity::Warning,
            volume: None,
            message: "the tail of 0001.open was cut".into(),
        };
        let shown = table(&[event]);
        assert!(
            shown.ends_with(
                "3  1970-01-01T00:00:00Z  warning   -       the tail of 0001.open was cut\n"
            ),
            "{shown}"
        );
    }
}
