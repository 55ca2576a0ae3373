//! `tidemark status`: the collector and how well each volume is protected.

use jiff::Timestamp;
use tidemark_collector::control::api::Status;
use tidemark_collector::control::client::Client;

use crate::console::{Console, Stop};
use crate::{render, volume};

/// Asks and shows.
pub(crate) fn show(client: &Client, console: &mut Console<'_>) -> Result<(), Stop> {
    let now = console.now;
    console.show(&client.status()?, |status| text(status, now))
}

fn text(status: &Status, now: Timestamp) -> String {
    let uptime = now.duration_since(status.started).as_secs_f64();
    let mut out = format!(
        "collector {} (process {}), up for {}\n",
        status.version,
        status.pid,
        render::duration(uptime)
    );
    out += &render::facts([
        (
            "data",
            Some(format!(
                "{}, {} free",
                status.data_dir.display(),
                render::size(status.free_bytes)
            )),
        ),
        ("agents", Some(format!("{} connected to {}", status.sessions, status.listen.join(", ")))),
        ("serving", Some(format!("{} exports, {} jobs", status.exports, status.jobs_running))),
    ]);
    if status.volumes.is_empty() {
        out += "\nNo volume yet: it appears when its agent connects for the first time.\n";
    } else {
        out += "\n";
        out += &volume::table(&status.volumes);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_collector_says_what_comes_next() {
        let status = Status {
            version: "0.1.0".into(),
            pid: 7,
            started: Timestamp::UNIX_EPOCH,
            data_dir: "/var/lib/tidemark".into(),
            listen: vec!["unix:/run/a".into()],
            free_bytes: 1 << 40,
            sessions: 0,
            volumes: vec![],
            exports: 0,
            jobs_running: 0,
        };
        let shown = text(&status, Timestamp::from_second(90).expect("a time"));
        assert!(shown.starts_with("collector 0.1.0 (process 7), up for 1 min 30 s\n"), "{shown}");
        assert!(shown.contains("1.0 TiB free") && shown.contains("No volume yet"), "{shown}");
    }
}
