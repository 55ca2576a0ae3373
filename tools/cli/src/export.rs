//! `tidemark export`: states, and writable clones of them, served as disks.

use std::path::Path;

use jiff::Timestamp;
use tidemark_collector::control::api::{ExportInfo, NewExport};
use tidemark_collector::control::client::Client;

use crate::args::{ExportArguments, ExportCommand, ExportCreate, ExportStop};
use crate::ask;
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
        (Some(ExportCommand::Stop(stop)), _) => console.show(&end(stop, client)?, stopped),
        (Some(ExportCommand::Create(create)), _) | (None, Some(create)) => {
            let new = request(create, client.socket(), console.now)?;
            console.show(&client.create_export(&new)?, created)
        }
        (None, None) => Err(Failure::new("name a volume, or list or stop").into()),
    }
}

/// Ends an export. Where a person can answer, it is asked about a clone's writes; elsewhere the
/// collector refuses without `--yes`.
fn end(stop: &ExportStop, client: &Client) -> Result<ExportInfo, Failure> {
    let mut discard = stop.yes;
    if !discard {
        let export = client.exports()?.into_iter().find(|export| export.id == stop.id);
        if let Some(question) = export.as_ref().and_then(question) {
            discard = match ask::agrees(&question)? {
                Some(false) => return Err(Failure::new(format!("export {} goes on", stop.id))),
                answer => answer.is_some(),
            };
        }
    }
    Ok(client.delete_export(stop.id, discard, stop.force)?)
}

/// What to ask before a clone ends; nothing when it was not written to.
fn question(export: &ExportInfo) -> Option<String> {
    let holds = match export.used_bytes {
        _ if !export.writable => return None,
        Some(0) => return None,
        Some(used) => format!("holds {} of its own", render::size(used)),
        None => "may hold writes of its own".to_owned(),
    };
    let (id, volume) = (export.id, &export.volume);
    Some(format!("Export {id} is a writable clone of volume {volume} and {holds}. End it?"))
}

fn request(create: &ExportCreate, control: &Path, now: Timestamp) -> Result<NewExport, Failure> {
    let listen = match &create.listen {
        _ if create.fuse => None,
        Some(address) => Some(address.clone()),
        None => Some(socket_beside(control, &create.volume, now)?),
    };
    Ok(NewExport {
        volume: create.volume.clone(),
        at: create.at.clone(),
        listen,
        fuse: create.fuse,
        writable: create.writable,
        space_bytes: create.space,
    })
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

/// Where its clients find it.
fn place(export: &ExportInfo) -> String {
    let path = export.path.as_ref().map(|path| path.display().to_string());
    let listen = export.listen.clone();
    path.or_else(|| export.uri.clone()).or(listen).unwrap_or_else(|| render::NOTHING.to_owned())
}

fn created(export: &ExportInfo) -> String {
    let sort = match export.space_bytes {
        Some(space) => format!("a clone that may hold {} of its own", render::size(space)),
        None => "read-only".to_owned(),
    };
    let head = format!(
        "Volume {} as it was at {}, {sort}, {}:\n\n",
        export.volume,
        point::state(&export.state),
        render::size(export.size_bytes)
    );
    head + &format!("    {}\n\nStop it with: tidemark export stop {}\n", place(export), export.id)
}

fn stopped(export: &ExportInfo) -> String {
    let (id, volume) = (export.id, &export.volume);
    match export.used_bytes {
        Some(used) if used > 0 => format!(
            "export {id} of volume {volume} is stopped, and {} of its own are gone\n",
            render::size(used)
        ),
        _ => format!("export {id} of volume {volume} is stopped\n"),
    }
}

fn table(exports: &[ExportInfo]) -> String {
    let columns = [
        Column::Number("ID"),
        Column::Text("VOLUME"),
        Column::Text("AT"),
        Column::Number("SEQ"),
        Column::Text("STATE OF"),
        Column::Text("KIND"),
        Column::Number("USED"),
        Column::Number("SPACE"),
        Column::Number("CLIENTS"),
        Column::Text("WHERE"),
    ];
    let rows = exports.iter().map(|export| {
        vec![
            export.id.to_string(),
            export.volume.clone(),
            export.at.clone(),
            export.state.seq.to_string(),
            render::or_dash(export.state.time, render::time),
            if export.writable { "clone" } else { "read-only" }.to_owned(),
            render::or_dash(export.used_bytes, render::size),
            render::or_dash(export.space_bytes, render::size),
            export.clients.to_string(),
            place(export),
        ]
    });
    let problems: String = exports
        .iter()
        .filter_map(|export| {
            let problem = export.problem.as_ref()?;
            Some(format!("export {} is not served: {problem}\n", export.id))
        })
        .collect();
    let table = render::table(&columns, rows);
    if problems.is_empty() { table } else { format!("{table}\n{problems}") }
}

#[cfg(test)]
mod tests {
    use tidemark_collector::control::api::StateInfo;

    use super::*;

    fn create(listen: Option<&str>, fuse: bool) -> ExportCreate {
        ExportCreate {
            volume: "vm/root".into(),
            at: "5m".into(),
            listen: listen.map(str::to_owned),
            fuse,
            writable: true,
            space: Some(1 << 30),
        }
    }

    fn export() -> ExportInfo {
        ExportInfo {
            id: 4,
            volume: "disk".into(),
            volume_id: "v".into(),
            at: "5m".into(),
            state: StateInfo { seq: 12, time: None, point: None },
            listen: Some("unix:/run/x.sock".into()),
            uri: Some("nbd+unix:///disk?socket=/run/x.sock".into()),
            nbd_name: Some("disk".into()),
            path: None,
            size_bytes: 1 << 20,
            created: Timestamp::UNIX_EPOCH,
            writable: false,
            used_bytes: None,
            space_bytes: None,
            clients: 2,
            problem: None,
        }
    }

    fn clone() -> ExportInfo {
        ExportInfo {
            writable: true,
            used_bytes: Some(3 << 20),
            space_bytes: Some(1 << 30),
            uri: None,
            nbd_name: None,
            listen: None,
            path: Some("/run/exports/disk-4".into()),
            ..export()
        }
    }

    #[test]
    fn the_default_socket_lies_beside_the_control_socket() {
        let control = Path::new("/run/tidemark/collector.sock");
        let made =
            |create| request(&create, control, Timestamp::UNIX_EPOCH).expect("an absolute path");
        let new = made(create(None, false));
        assert_eq!(new.listen.as_deref(), Some("unix:/run/tidemark/export-vm-root-0.sock"));
        assert_eq!((new.at.as_str(), new.space_bytes), ("5m", Some(1 << 30)));
        let new = made(create(None, true));
        assert!(new.fuse && new.listen.is_none());
    }

    #[test]
    fn an_export_says_how_to_use_and_stop_it() {
        let shown = created(&export());
        assert!(shown.contains("read-only, 1.0 MiB"), "{shown}");
        assert!(shown.contains("\n    nbd+unix:///disk?socket=/run/x.sock\n"), "{shown}");
        assert!(shown.ends_with("tidemark export stop 4\n"), "{shown}");
        let shown = created(&clone());
        assert!(shown.contains("may hold 1.0 GiB of its own"), "{shown}");
        assert!(shown.contains("\n    /run/exports/disk-4\n"), "{shown}");
        assert_eq!(
            stopped(&clone()),
            "export 4 of volume disk is stopped, and 3.0 MiB of its own are gone\n"
        );
    }

    #[test]
    fn a_problem_stands_below_the_table() {
        let broken = ExportInfo { problem: Some("its socket is taken".into()), ..export() };
        let shown = table(&[export(), clone(), broken]);
        assert_eq!(shown.lines().count(), 6);
        assert!(shown.ends_with("\nexport 4 is not served: its socket is taken\n"), "{shown}");
    }

    #[test]
    fn only_a_clone_with_writes_is_asked_about() {
        assert_eq!(question(&export()), None);
        assert_eq!(question(&ExportInfo { used_bytes: Some(0), ..clone() }), None);
        let asked = question(&clone()).expect("it holds something");
        assert!(asked.contains("holds 3.0 MiB of its own"), "{asked}");
        assert!(question(&ExportInfo { used_bytes: None, ..clone() }).is_some());
    }
}
