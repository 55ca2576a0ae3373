//! Starts after each way in which an agent ends: what it says, and what it compares.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test may look at the machine's clock")]

mod daemon_support;

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

use daemon_support::{Agent, Collector, Copy, Place, wait_for};
use tidemark_wire::body::GapReason;

const REGION_BYTES: u64 = 4 << 20;
const REGIONS: usize = 32;

/// A volume of 32 regions that the collector has a copy of, and its identity.
fn protected() -> (Place, Collector, Agent, String) {
    let place = Place::new(&["one"]);
    File::create(place.backing("one")).unwrap().set_len(REGIONS as u64 * REGION_BYTES).unwrap();
    let collector = Collector::listen(&place.path("collector"));
    let agent = Agent::start(&place);
    let id = place.wait_whole("one")["id"].as_str().unwrap().to_owned();
    // What the first copy marked goes with a clean stop.
    agent.stop();
    let agent = Agent::start(&place);
    place.wait_whole("one");
    (place, collector, agent, id)
}

/// Writes to some regions, all of which the collector has when this ends.
fn write(place: &Place, collector: &Collector, id: &str, regions: &[u64]) {
    let mut client = place.client("one");
    let before = collector.copy_of(id).writes;
    for region in regions {
        client.seek(SeekFrom::Start(region * REGION_BYTES + 4096)).unwrap();
        client.write_all(&[9; 4096]).unwrap();
    }
    client.flush().unwrap();
    wait_for("the writes", || {
        (collector.copy_of(id).writes >= before + regions.len()).then_some(())
    });
}

/// The machine loses power: the change ring is gone, the stores are as they were.
fn power_cut(place: &Place, agent: Agent, id: &str) {
    agent.kill();
    fs::remove_file(place.ring(id)).unwrap();
    fs::remove_file(place.ring(id).with_extension("mark")).unwrap();
}

/// Waits for the copy that follows a gap for `reason`, the `gaps`th of the volume.
fn wait_copied(place: &Place, collector: &Collector, id: &str, gaps: &[GapReason]) -> Copy {
    let gaps: Vec<u64> = gaps.iter().map(|reason| *reason as u64).collect();
    wait_for("the gap", || (collector.copy_of(id).gaps == gaps).then_some(()));
    place.wait_whole("one");
    collector.copy_of(id)
}

#[test]
fn after_a_power_cut_the_marked_regions_are_compared_and_no_others() {
    let (place, collector, agent, id) = protected();
    write(&place, &collector, &id, &[3, 17, 30]);
    let before = collector.copy_of(&id).compared_nodes;
    power_cut(&place, agent, &id);
    let agent = Agent::start(&place);
    let said = agent.log();
    let started = "restart after a power cut, or without the change ring: 3 regions";
    assert!(said.contains(started), "{said}");
    let copy = wait_copied(&place, &collector, &id, &[GapReason::RingLost]);
    assert_eq!(copy.compared_nodes - before, 3, "{}", agent.log());
    let notes = place.status("one").unwrap()["notes"].to_string();
    assert!(notes.contains(started), "{notes}");
    agent.stop();
}

#[test]
fn after_a_kill_and_after_a_clean_stop_nothing_is_compared() {
    let (place, collector, agent, id) = protected();
    write(&place, &collector, &id, &[5]);
    let before = collector.copy_of(&id).compared_nodes;
    agent.kill();
    let agent = Agent::start(&place);
    assert!(
        agent.log().contains("restart after a kill of the agent: 1 regions"),
        "{}",
        agent.log()
    );
    place.wait_whole("one");
    agent.stop();
    let agent = Agent::start(&place);
    assert!(agent.log().contains("start after a clean stop: 0 regions"), "{}", agent.log());
    place.wait_whole("one");
    let copy = collector.copy_of(&id);
    assert_eq!((copy.compared_nodes, copy.gaps), (before, vec![]));
    agent.stop();
}

#[test]
fn a_log_that_is_not_there_or_damaged_or_did_not_cover_everything_means_the_whole_volume() {
    let (place, collector, agent, id) = protected();
    let log = place.path("state").join("one.intent");
    let state = place.path("state").join("one.volume.json");
    let mut agent = agent;
    let mut gaps = Vec::new();
    let remove: fn(&std::path::Path) = |log| fs::remove_file(log).unwrap();
    let damage: fn(&std::path::Path) = |log| {
        let file = OpenOptions::new().write(true).open(log).unwrap();
        file.write_all_at(b"?", 4096 + 700).unwrap();
    };
    for (deed, said) in [(remove, "it can't be read"), (damage, "its page 0 is damaged")] {
        write(&place, &collector, &id, &[5]);
        let before = collector.copy_of(&id).compared_nodes;
        power_cut(&place, agent, &id);
        deed(&log);
        agent = Agent::start(&place);
        assert!(agent.log().contains(said), "{}", agent.log());
        gaps.push(GapReason::RingLost);
        let copy = wait_copied(&place, &collector, &id, &gaps);
        assert_eq!(copy.compared_nodes - before, REGIONS);
        let kept = fs::read_to_string(&state).unwrap();
        assert!(kept.contains("\"covered\": true"), "{kept}");
    }
    agent.stop();
}

#[test]
fn an_edit_between_the_power_cut_and_the_start_is_noticed() {
    let (place, collector, agent, id) = protected();
    write(&place, &collector, &id, &[5]);
    let before = collector.copy_of(&id).compared_nodes;
    power_cut(&place, agent, &id);
    let disk = OpenOptions::new().write(true).open(place.backing("one")).unwrap();
    disk.write_all_at(b"somebody was here", 20 * REGION_BYTES).unwrap();
    // As if it had been later than any mark may be old.
    disk.set_modified(SystemTime::now() + Duration::from_secs(120)).unwrap();
    let agent = Agent::start(&place);
    assert!(agent.log().contains("it was written while no agent served it"), "{}", agent.log());
    let copy = wait_copied(&place, &collector, &id, &[GapReason::RingLost]);
    assert_eq!(copy.compared_nodes - before, REGIONS);
    agent.stop();
}
