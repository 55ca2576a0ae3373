//! `tidemark export`: states served as read-only disks over NBD.

use std::path::Path;

use jiff::Timestamp;
use tidemark_collector::control::api::{ExportInfo, NewExport};
use tidemark_collector::control::client::Client;

use crate::args::{ExportArguments, ExportCommand, ExportCreate};
use crate::console::{Console, Stop};
use crate::failure::Failure;
use crate::point;
use crate::render::{self, Column};

/// Creates, lists or stops.
pub(crate) fn run(
    arguments: &ExportArguments,
    client: &Client,
    console: &mut Console<'_>,
) -> Result<(), Stop> {
    match (&arguments.command, &arguments.create) {
        (Some(ExportCommand::List), _) => {
            console.show(&client.exports()?, |exports| table(exports))
        }
        (Some(ExportCommand::Stop { id }), _) => console.show(&client.delete_export(*id)?, stopped),
        (Some(ExportCommand::Create(create)), _) | (None, Some(create)) => {
            let new = request(create, client.socket(), console.now)?;
            console.show(&client.create_export(&new)?, created)
        }
        (None, None) => Err(Failure::new("name a volume, or list or stop").into()),
    }
}

fn request(create: &ExportCreate, control: &Path, now: Timestamp) -> Result<NewExport, Failure> {
    let listen = match &create.listen {
        Some(address) => address.clone(),
        None => socket_beside(control, &create.volume, now)?,
    };
    Ok(NewExport { volume: create.volume.clone(), at: create.at.clone(), listen })
}

/// A new socket beside the control socket: whoever may use that one may use this one.
fn socket_beside(control: &Path, volume: &str, now: Timestamp) -> Result<String, Failure> {
    let control = std::path::absolute(control)
        .map_err(|e| Failure::new(format!("no absolute path of {}: {e}", control.display())))?;
    let safe: String = volume
        .chars()
        .take(32)
        .map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' })
        .collect();
    let name = format!("export-{safe}-{}.sock", now.as_millisecond());
    Ok(format!("unix:{}", control.with_file_name(name).display()))
}

fn created(export: &ExportInfo) -> String {
    let head = format!(
        "Volume {} as it was at {}, read-only, {}:\n\n",
        export.volume,
        point::state(&export.state),
        render::size(export.size_bytes)
    );
    head + &format!("    {}\n\nStop it with: tidemark export stop {}\n", export.uri, export.id)
}

fn stopped(export: &ExportInfo) -> String {
    format!("export {} of volume {} is stopped\n", export.id, export.volume)
}

fn table(exports: &[ExportInfo]) -> String {
    let columns = [
        Column::Number("ID"),
        Column::Text("VOLUME"),
        Column::Text("AT"),
        Column::Number("SEQ"),
        Column::Text("STATE OF"),
        Column::Text("URI"),
    ];
    render::table(
        &columns,
        exports.iter().map(|export| {
            vec![
                export.id.to_string(),
                export.volume.clone(),
                export.at.clone(),
                export.state.seq.to_string(),
                render::or_dash(export.state.time, render::time),
                export.uri.clone(),
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use tidemark_collector::control::api::StateInfo;

    use super::*;

    #[test]
    fn the_default_socket_lies_beside_the_control_socket() {
        let create = ExportCreate { volume: "vm/root".into(), at: "5m".into(), listen: None };
        let new =
            request(&create, Path::new("/run/tidemark/collector.sock"), Timestamp::UNIX_EPOCH)
                .expect("an absolute path");
        assert_eq!(new.listen, "unix:/run/tidemark/export-vm-root-0.sock");
        assert_eq!(new.at, "5m");
    }

    #[test]
    fn an_export_says_how_to_use_and_stop_it() {
        let export = ExportInfo {
            id: 4,
            volume: "disk".into(),
            volume_id: "v".into(),
            at: "5m".into(),
            state: StateInfo { seq: 12, time: None, point: None },
            listen: "unix:/run/x.sock".into(),
            uri: "nbd+unix:///disk?socket=/run/x.sock".into(),
            nbd_name: "disk".into(),
            size_bytes: 1 << 20,
            created: Timestamp::UNIX_EPOCH,
        };
        let shown = created(&export);
        assert!(shown.contains("\n    nbd+unix:///disk?socket=/run/x.sock\n"), "{shown}");
        assert!(shown.ends_with("tidemark export stop 4\n"), "{shown}");
        assert_eq!(table(&[export]).lines().count(), 2);
    }
}
