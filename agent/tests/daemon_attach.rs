//! Volumes as block devices of this machine, from the request to the next agent: over the FUSE
//! directory and loop devices, where root may make them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test may look at the machine's clock")]

mod daemon_support;

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::PathBuf;

use daemon_support::{Agent, Collector, Place, wait_for};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A place with a FUSE directory; `None`, which is said, where there can be none.
fn place(volumes: &[&str]) -> Option<Place> {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root || !["/dev/fuse", "/dev/loop-control"].iter().all(|path| fs::exists(path).unwrap())
    {
        eprintln!("skipped: loop devices over FUSE need root, /dev/fuse and /dev/loop-control");
        return None;
    }
    let mut place = Place::new(volumes);
    place.table = format!("[fuse]\nmount = '{}'", place.path("fuse").display());
    Some(place)
}

fn attach(place: &Place, volume: &str) -> PathBuf {
    let attached = place.ask(&["attach", volume, "--via", "loop"]);
    assert!(attached.status.success(), "{}", text(&attached.stderr));
    text(&attached.stdout).trim_end().into()
}

#[test]
fn a_device_comes_and_goes_by_request_and_keeps_its_volume() {
    let Some(mut place) = place(&["one", "two"]) else { return };
    let _collector = Collector::listen(&place.path("collector"));
    let agent = Agent::start(&place);
    let device = attach(&place, "one");
    let status = place.status("one").unwrap();
    assert_eq!(status["attached"]["device"], device.to_str().unwrap());
    let again = place.ask(&["attach", "one"]);
    assert!(text(&again.stderr).contains("is attached as"), "{}", text(&again.stderr));

    let mut disk = OpenOptions::new().write(true).open(&device).unwrap();
    disk.write_all(&[5; 4096]).unwrap();
    disk.sync_all().unwrap();
    let held = place.ask(&["detach", "one"]);
    assert_eq!(held.status.code(), Some(1), "somebody has it open");
    drop(disk);

    // An attached volume is not removed.
    place.volumes.remove(0);
    place.write_config();
    let kept = place.ask(&["reload"]);
    assert_eq!(kept.status.code(), Some(1));
    assert!(text(&kept.stdout).contains("detach it first"), "{}", text(&kept.stdout));

    let detached = place.ask(&["detach", "one"]);
    assert!(detached.status.success(), "{}", text(&detached.stderr));
    assert_eq!(text(&place.ask(&["reload"]).stdout), "removed: one\n");
    wait_for("closed", || place.status("one").is_none().then_some(()));
    let mut bytes = [0; 4096];
    fs::File::open(place.backing("one")).unwrap().read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [5; 4096]);
    agent.stop();
}

#[test]
fn the_next_agent_says_what_became_of_a_loop_device() {
    let Some(place) = place(&["one"]) else { return };
    let _collector = Collector::listen(&place.path("collector"));
    let agent = Agent::start(&place);
    place.wait_whole("one");
    let device = attach(&place, "one");
    let log = agent.stop();
    assert!(log.contains("fails from now on"), "{log}");
    assert!(log.contains("clean: all acknowledged"), "{log}");

    let agent = Agent::start(&place);
    let status = place.wait_whole("one");
    let notes = status["notes"].to_string();
    assert!(notes.contains("tidemark-agent detach one"), "{notes} {}", agent.log());
    let detached = place.ask(&["detach", "one"]);
    assert!(detached.status.success(), "{}", text(&detached.stderr));
    attach(&place, "one");
    let detached = place.ask(&["detach", "one"]);
    assert!(detached.status.success(), "{}", text(&detached.stderr));
    let left = text(&std::process::Command::new("losetup").output().unwrap().stdout);
    let ours = place.path("fuse").display().to_string();
    assert!(!left.contains(&ours), "{device:?} {left}");
    agent.stop();
}
