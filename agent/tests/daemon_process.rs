//! The agent as people run it: volumes that come and go, stops, starts, and what it notices.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test may look at the machine's clock")]

mod daemon_support;

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;

use daemon_support::{Agent, Collector, Place, wait_for};
use nix::sys::signal::Signal;
use tidemark_wire::body::GapReason;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn volumes_come_and_go_while_it_runs_and_a_clean_stop_leaves_nothing_to_copy() {
    let mut place = Place::new(&["one", "two"]);
    let collector = Collector::listen(&place.path("collector"));
    let agent = Agent::start(&place);
    let [one, two] = ["one", "two"].map(|name| place.wait_whole(name));
    assert_eq!(collector.copy_of(one["id"].as_str().unwrap()).copies, 1);

    // A third one by a request, while somebody writes to the second.
    let mut client = place.client("two");
    client.write_all(&[7; 4096]).unwrap();
    place.make_backing("three");
    place.volumes.push("three".into());
    place.write_config();
    let reloaded = place.ask(&["reload"]);
    assert_eq!(text(&reloaded.stdout), "added: three\n", "{}", text(&reloaded.stderr));
    place.wait_whole("three");

    // The second goes by a signal; who has it open keeps it, and it is protected as before.
    place.volumes.retain(|name| name != "two");
    place.write_config();
    agent.signal(Signal::SIGHUP);
    let left = wait_for("removed", || place.status("two").filter(|two| two["leaving"] == true));
    assert_eq!(left["users"], 1);
    let id = two["id"].as_str().unwrap();
    let before = collector.copy_of(id).writes;
    client.seek(SeekFrom::Start(1 << 20)).unwrap();
    client.write_all(&[8; 4096]).unwrap();
    wait_for("its write", || (collector.copy_of(id).writes > before).then_some(()));
    let mut socket = std::os::unix::net::UnixStream::connect(place.path("nbd")).unwrap();
    assert!(nbd::client::handshake(&mut socket, b"two").is_err(), "nobody else can open it");
    drop(client);
    let clean = |line: &str| line.contains("clean: all acknowledged") && line.contains("two");
    wait_for("closed", || place.status("two").is_none().then_some(()));
    assert!(agent.log().lines().any(clean), "{}", agent.log());

    // All three again: nothing is copied, also not the one that came back.
    agent.stop();
    place.volumes.push("two".into());
    let agent = Agent::start(&place);
    for name in ["one", "two", "three"] {
        let status = place.wait_whole(name);
        let copy = collector.copy_of(status["id"].as_str().unwrap());
        assert_eq!((copy.copies, copy.gaps), (1, vec![]), "{name}");
    }
    let log = agent.stop();
    assert_eq!(log.matches("clean: all acknowledged").count(), 3, "{log}");
}

#[test]
fn a_start_that_fails_leaves_the_other_volumes_as_clean_as_they_were() {
    let mut place = Place::new(&["one"]);
    let _collector = Collector::listen(&place.path("collector"));
    let agent = Agent::start(&place);
    place.wait_whole("one");
    agent.stop();
    place.volumes.push("missing".into());
    let mut failing = Agent::spawn(&place, "failing.log");
    assert!(!failing.ended(), "{}", failing.log());
    assert!(failing.log().contains("volume \"missing\""), "{}", failing.log());
    let state = fs::read_to_string(place.path("state").join("one.volume.json")).unwrap();
    assert!(state.contains("\"clean\": true"), "{state}");
}

#[test]
fn a_volume_that_can_not_be_opened_stays_as_clean_as_it_was() {
    let place = Place::new(&["one"]);
    let collector = Collector::listen(&place.path("collector"));
    let agent = Agent::start(&place);
    let one = place.wait_whole("one");
    let id = one["id"].as_str().unwrap();
    agent.stop();
    // Something that is no ring and can't be replaced by one.
    fs::create_dir(place.ring(id)).unwrap();
    let mut failing = Agent::spawn(&place, "failing.log");
    assert!(!failing.ended(), "{}", failing.log());
    fs::remove_dir(place.ring(id)).unwrap();
    let agent = Agent::start(&place);
    place.wait_whole("one");
    agent.stop();
    let copy = collector.copy_of(id);
    assert_eq!((copy.copies, copy.gaps), (1, vec![]));
}

#[test]
fn a_removed_volume_that_is_still_open_can_come_back() {
    let mut place = Place::new(&["one", "two"]);
    let _collector = Collector::listen(&place.path("collector"));
    let agent = Agent::start(&place);
    place.wait_whole("two");
    let mut client = place.client("two");
    for round in 0..2 {
        place.volumes.pop();
        place.write_config();
        assert_eq!(text(&place.ask(&["reload"]).stdout), "removed: two\n", "{round}");
        place.volumes.push("two".into());
        place.write_config();
        assert_eq!(text(&place.ask(&["reload"]).stdout), "added: two\n", "{round}");
        client.write_all(&[round; 512]).unwrap();
    }
    drop(place.client("two"));
    // The first client still counts after newcomers have come and gone.
    place.volumes.pop();
    place.write_config();
    place.ask(&["reload"]);
    client.write_all(&[3; 512]).unwrap();
    assert_eq!(place.status("two").unwrap()["users"], 1);
    agent.stop();
}

#[test]
fn a_configuration_that_is_no_good_changes_nothing() {
    let place = Place::new(&["one"]);
    let _collector = Collector::listen(&place.path("collector"));
    let agent = Agent::start(&place);
    let config = place.path("agent.toml");
    let good = fs::read_to_string(&config).unwrap();

    fs::write(&config, good.replace("[nbd]\n", "[nbd]\nlisten_at = []\n")).unwrap();
    let refused = place.ask(&["reload"]);
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    assert!(said.contains("nothing was changed") && said.contains("did you mean"), "{said}");
    let checked = place.ask(&["check", "--config", config.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(2));

    // What can't be opened is said, and the rest is done.
    let more = "[[volume]]\nname = 'gone'\nbacking = '/nonexistent/disk'\nring_mib = 4\n";
    fs::write(&config, format!("{}{more}", good.replace("workers = 1", "workers = 2"))).unwrap();
    let partly = place.ask(&["reload"]);
    assert_eq!(partly.status.code(), Some(1));
    let said = text(&partly.stdout);
    assert!(said.contains("stays until the agent is started anew: workers"), "{said}");
    assert!(
        said.contains("not done: volume \"gone\": /nonexistent/disk: can't be opened"),
        "{said}"
    );
    assert!(place.status("one").is_some() && place.status("gone").is_none());

    fs::write(&config, &good).unwrap();
    assert_eq!(text(&place.ask(&["reload"]).stdout), "nothing changed\n");
    let checked = place.ask(&["check", "--config", config.to_str().unwrap()]);
    assert_eq!(text(&checked.stdout), format!("{} is good\n", config.display()));
    for (arguments, wanted) in [
        (["attach", "on"], "there is no volume \"on\"; is \"one\" meant?"),
        (["detach", "one"], "volume \"one\" is not attached"),
    ] {
        let refused = place.ask(&arguments);
        assert_eq!(refused.status.code(), Some(1));
        assert!(text(&refused.stderr).contains(wanted), "{}", text(&refused.stderr));
    }
    agent.stop();
    let nobody = place.ask(&["list"]);
    assert!(text(&nobody.stderr).contains("is it running?"), "{}", text(&nobody.stderr));
}

#[test]
fn what_can_not_work_is_found_without_running_it() {
    let mut place = Place::new(&["one", "two"]);
    let check = |place: &Place, from: &str, to: &str| {
        let config = place.write_config();
        let good = fs::read_to_string(&config).unwrap();
        fs::write(&config, good.replace(from, to)).unwrap();
        let checked = place.ask(&["check", "--config", config.to_str().unwrap()]);
        assert_eq!(checked.status.code(), Some(2), "{from} {to}");
        text(&checked.stderr)
    };
    let said = check(&place, "ring_mib = 4", "ring_mib = 4000");
    assert!(said.contains("2 volume(s) take 8000 MiB together"), "{said}");
    let all = "workers = 1\nring_total_mib = 1048576";
    place.volumes = (0..16).map(|number| format!("v{number}")).collect();
    let config = place.write_config();
    let good = fs::read_to_string(&config).unwrap();
    let huge = good.replace("workers = 1", all).replace("ring_mib = 4", "ring_mib = 65536");
    fs::write(&config, huge).unwrap();
    let checked = place.ask(&["check", "--config", config.to_str().unwrap()]);
    let said = text(&checked.stderr);
    assert!(said.contains("the change rings take 1048576 MiB together, and ring_dir"), "{said}");
    place.volumes = vec!["one".into()];
    place.table = format!("[fuse]\nmount = '{}'", place.path("").display());
    let said = check(&place, "", "");
    assert!(said.contains("lies in the FUSE directory"), "{said}");
}

#[test]
fn a_second_agent_is_refused_with_the_firsts_pid() {
    let place = Place::new(&["one"]);
    let first = Agent::start(&place);
    let pid = format!("process {}", first.pid());
    let mode = fs::metadata(place.path("agent.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "only its owner asks the agent");

    let mut second = Agent::spawn(&place, "second.log");
    assert!(!second.ended());
    assert!(second.log().contains(&pid), "{}", second.log());

    // With a state directory and sockets of its own it finds the lock on the disk.
    let mut other = Place::new(&["one"]);
    fs::remove_file(other.backing("one")).unwrap();
    std::os::unix::fs::symlink(place.backing("one"), other.backing("one")).unwrap();
    let mut third = Agent::spawn(&other, "third.log");
    assert!(!third.ended());
    assert!(third.log().contains(&format!("{pid} (tidemark-agent)")), "{}", third.log());

    // And it does not take over a socket on which the first one listens.
    other.volumes.clear();
    let config = fs::read_to_string(other.write_config()).unwrap();
    let path = |place: &Place| place.path("agent.sock").display().to_string();
    fs::write(other.path("mixed.toml"), config.replace(&path(&other), &path(&place))).unwrap();
    let mixed = other.path("mixed.toml");
    let refused = other.ask(&["--config", mixed.to_str().unwrap()]);
    assert!(text(&refused.stderr).contains("another process listens there"));
    assert!(place.status("one").is_some(), "the first one still answers");
    first.stop();
}

#[test]
fn a_backing_file_that_was_edited_while_no_agent_ran_is_compared() {
    let place = Place::new(&["one", "two"]);
    let collector = Collector::listen(&place.path("collector"));
    let id = |name: &str| place.wait_whole(name)["id"].as_str().unwrap().to_owned();
    let edit = |name: &str, at| {
        let disk = OpenOptions::new().write(true).open(place.backing(name)).unwrap();
        disk.write_all_at(b"somebody was here", at).unwrap();
    };
    let gaps = |id: &str| collector.copy_of(id).gaps;
    let outside = GapReason::OutsideChange as u64;

    let agent = Agent::start(&place);
    let (one, two) = (id("one"), id("two"));
    agent.stop();
    edit("one", 12345);
    let agent = Agent::start(&place);
    wait_for("a comparison", || (gaps(&one) == [outside]).then_some(()));
    id("one");
    id("two");
    assert!(gaps(&two).is_empty(), "nobody touched it");
    assert!(agent.log().contains("it was written while no agent served it"), "{}", agent.log());

    // After a kill: what the agent wrote itself is no change, what came later is one.
    let mut client = place.client("two");
    client.write_all(&[9; 65536]).unwrap();
    client.flush().unwrap();
    agent.kill();
    let agent = Agent::start(&place);
    id("two");
    assert!(gaps(&two).is_empty(), "{}", agent.log());
    agent.kill();
    std::thread::sleep(std::time::Duration::from_millis(200));
    edit("two", 1 << 20);
    let agent = Agent::start(&place);
    wait_for("a comparison", || (gaps(&two) == [outside]).then_some(()));
    id("two");
    assert_eq!(collector.copy_of(&two).copies, 2);
    agent.stop();
}

#[test]
fn systemd_is_told_when_it_serves_reloads_and_stops() {
    let place = Place::new(&["one"]);
    let socket = UnixDatagram::bind(place.path("notify")).unwrap();
    socket.set_read_timeout(Some(daemon_support::PATIENCE)).unwrap();
    let said = || {
        let mut bytes = [0; 256];
        let count = socket.recv(&mut bytes).unwrap();
        text(&bytes[..count])
    };
    let agent = Agent::spawn_with(&place, "agent.log", |command| {
        command.env("NOTIFY_SOCKET", place.path("notify"));
    });
    assert_eq!(said(), "READY=1");
    drop(place.client("one"));
    agent.signal(Signal::SIGHUP);
    assert!(said().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert_eq!(said(), "READY=1");
    agent.signal(Signal::SIGTERM);
    assert_eq!(said(), "STOPPING=1");
    drop(agent);
}
