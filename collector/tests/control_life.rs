//! The life of a volume with a whole daemon: policy, points by interval, pause, retirement,
//! erasing, forgetting, and the configuration read anew.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "tests wait in real time")]

mod ingest_support;

use std::path::Path;
use std::time::{Duration, Instant};

use ingest_support::{Agent, Daemon, Model, change, expect_refusal, hello, write};
use tidemark_collector::control::api::{
    ErrorKind, NewExport, NewPoint, NewPolicy, NewRetire, PointFilter, PointInfo, PointKind,
    ProtectionState,
};
use tidemark_collector::control::client::{Client, ClientError};
use tidemark_wire::body::{Bookmark, GapReason, PointKind as WireKind};
use tidemark_wire::frame::FrameKind;
use tidemark_wire::instruct::{Instruct, InstructKind};
use tidemark_wire::session::{RefuseReason, Standing, StandingState};
use tidemark_wire::{RecordKind, WallMicros};

const LONG: Duration = Duration::from_secs(20);

fn refused<T: std::fmt::Debug>(answer: Result<T, ClientError>, kind: ErrorKind, words: &str) {
    match answer.unwrap_err() {
        ClientError::Refused(info) => {
            let text = format!("{}; {}", info.message, info.hint.unwrap_or_default());
            assert_eq!(info.kind, kind, "{text}");
            assert!(text.contains(words), "{text}");
        }
        other => panic!("{other}"),
    }
}

/// A daemon with a copied volume.
fn with_volume(dir: &Path) -> (Daemon, Agent) {
    let daemon = Daemon::start(dir);
    let mut agent = Agent::open(&daemon.ingest, &hello(1));
    agent.copy(&mut Model::new());
    (daemon, agent)
}

/// Answers everything until a point is asked for, and places it; none when none is in time.
fn place_point(agent: &mut Agent, wait: Duration) -> Option<Bookmark> {
    let end = Instant::now() + wait;
    while Instant::now() < end {
        // A token comes every second, so this does not wait longer than that.
        let (kind, body) = agent.receive().unwrap();
        if kind == FrameKind::BookmarkRequest {
            agent.send_changes(&[change(RecordKind::Bookmark, 0, 0, body.clone())]);
            agent.wait_durable();
            return Some(Bookmark::decode(&body).unwrap());
        }
    }
    None
}

fn write_and_wait(agent: &mut Agent, bytes: usize) {
    agent.send_changes(&[write(0, vec![0x5a; bytes])]);
    agent.wait_durable();
}

fn wait_for<T>(look: impl Fn() -> Option<T>) -> T {
    let end = Instant::now() + LONG;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "it does not come");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn points(client: &Client, filter: &PointFilter) -> Vec<PointInfo> {
    client.points("disk1", filter).unwrap().points
}

#[test]
fn points_come_by_interval_and_only_when_something_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, mut agent) = with_volume(dir.path());
    let client = daemon.client();
    let every_second = NewPolicy { point_interval_seconds: Some(1), ..NewPolicy::default() };
    assert!(client.set_policy("disk1", &every_second).unwrap().own);
    let first = place_point(&mut agent, LONG).expect("the copy was a change");
    assert_eq!((first.kind, first.label.as_str()), (WireKind::Crash, ""));
    assert_eq!(place_point(&mut agent, Duration::from_secs(3)), None, "nothing was written");
    agent.send_changes(&[change(RecordKind::Flush, 0, 0, Vec::new())]);
    agent.wait_durable();
    assert_eq!(place_point(&mut agent, Duration::from_secs(3)), None, "a flush changes nothing");

    write_and_wait(&mut agent, 9000);
    let second = place_point(&mut agent, LONG).expect("something was written");
    // The catalog is written behind the acknowledgement.
    let list = wait_for(|| Some(points(&client, &PointFilter::default())).filter(|l| l.len() == 2));
    assert_eq!(list[1].id, second.id.to_string());
    assert_eq!(list[0].changed_bytes, None);
    let changed = list[1].changed_bytes.unwrap();
    assert!((9000..9500).contains(&changed), "{changed}");

    let new = NewPoint { label: "mine".into() };
    std::thread::scope(|scope| {
        let made = scope.spawn(|| daemon.client().create_point("disk1", &new).unwrap());
        place_point(&mut agent, LONG).unwrap();
        made.join().unwrap()
    });
    let of = |kind| PointFilter { kind: Some(kind), ..PointFilter::default() };
    assert_eq!(points(&client, &of(PointKind::Bookmark)).len(), 1);
    assert_eq!(points(&client, &of(PointKind::CrashConsistent)).len(), 2);
    assert!(points(&client, &of(PointKind::AppConsistent)).is_empty());
    let newest = client.points("disk1", &PointFilter { limit: Some(1), ..Default::default() });
    let newest = newest.unwrap();
    assert_eq!((newest.points[0].label.as_str(), newest.older), ("mine", 2));
    assert!(newest.points[0].changed_bytes.unwrap() < 500, "only the point itself");
    let since = PointFilter { since: Some(list[1].time.to_string()), ..Default::default() };
    assert_eq!(points(&client, &since).len(), 2);
    let until = PointFilter { until: Some(list[0].time.to_string()), ..Default::default() };
    assert_eq!(points(&client, &until).len(), 1);
    let wrong = PointFilter { since: Some("latest".into()), ..Default::default() };
    refused(client.points("disk1", &wrong), ErrorKind::Invalid, "is no time");
    daemon.stop();
}

#[test]
fn a_policy_is_kept_and_what_makes_no_sense_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, agent) = with_volume(dir.path());
    let client = daemon.client();
    let shown = client.set_policy("disk1", &NewPolicy::default()).unwrap();
    assert_eq!((shown.window_seconds, shown.own), (86_400, false));
    let new = NewPolicy {
        window_seconds: Some(7200),
        journal_bytes_max: Some(1 << 30),
        ..NewPolicy::default()
    };
    let set = client.set_policy("disk1", &new).unwrap();
    assert_eq!((set.window_seconds, set.journal_bytes_max), (7200, Some(1 << 30)));
    let wrong = NewPolicy { window_seconds: Some(0), ..NewPolicy::default() };
    refused(client.set_policy("disk1", &wrong), ErrorKind::Invalid, "a window of 0 s");
    refused(client.set_policy("disk7", &new), ErrorKind::NotFound, "did you mean disk1?");
    drop(agent);
    daemon.stop();

    let daemon = Daemon::start(dir.path());
    let client = daemon.client();
    assert_eq!(client.volume("disk1").unwrap().policy, set, "after a restart");
    let back = NewPolicy { default: true, ..NewPolicy::default() };
    assert!(!client.set_policy("disk1", &back).unwrap().own);

    // The defaults change with the configuration.
    let file = dir.path().join("collector.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{text}exports_max = 3\n[policy]\nwindow_seconds = 60\n"))
        .unwrap();
    let done = client.reload().unwrap();
    assert_eq!((done.changed, done.kept), (vec!["policy".to_owned()], vec!["exports_max".into()]));
    assert_eq!(client.volume("disk1").unwrap().policy.window_seconds, 60);
    std::fs::write(&file, "window = 1").unwrap();
    refused(client.reload(), ErrorKind::Invalid, "collector.toml:1");
    assert_eq!(client.volume("disk1").unwrap().policy.window_seconds, 60);
    daemon.stop();
}

/// Waits for an instruction and says how the stream stands after it.
fn obey(agent: &mut Agent, state: StandingState, reason: Option<GapReason>) -> InstructKind {
    loop {
        let (kind, body) = agent.receive().unwrap();
        if kind == FrameKind::Instruct {
            let mut standing = Vec::new();
            let since = WallMicros(1_000_000);
            Standing { state, reason, since, differing_bytes: 0, compare_next: false }
                .encode(&mut standing);
            agent.send(FrameKind::Standing, &standing);
            return Instruct::decode(&body).unwrap().what;
        }
    }
}

#[test]
fn pause_and_resume_are_the_agent_s_and_are_answered_when_it_did_them() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, mut agent) = with_volume(dir.path());
    std::thread::scope(|scope| {
        let paused = scope.spawn(|| daemon.client().pause("disk1").unwrap());
        let what = obey(&mut agent, StandingState::Paused, Some(GapReason::Paused));
        assert_eq!(what, InstructKind::Pause);
        let paused = paused.join().unwrap();
        assert_eq!(paused.state, ProtectionState::Paused);
        assert_eq!(paused.reason.unwrap(), "protection was paused");
        assert_eq!(paused.since.unwrap().as_second(), 1);

        let resumed = scope.spawn(|| daemon.client().resume("disk1").unwrap());
        assert_eq!(obey(&mut agent, StandingState::Whole, None), InstructKind::Resume);
        assert_ne!(resumed.join().unwrap().state, ProtectionState::Paused);
    });
    drop(agent);
    let client = daemon.client();
    wait_for(|| (!client.volume("disk1").unwrap().connected).then_some(()));
    refused(client.pause("disk1"), ErrorKind::Unavailable, "start it");
    daemon.stop();
}

#[test]
fn a_volume_ends_in_two_steps_and_comes_back_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, mut agent) = with_volume(dir.path());
    let client = daemon.client();
    let id = client.volume("disk1").unwrap().agent.unwrap();
    refused(client.erase("disk1"), ErrorKind::Conflict, "tidemark volume retire disk1");
    refused(client.forget_agent(&id), ErrorKind::Conflict, "protects disk1");
    refused(client.unretire("disk1"), ErrorKind::Conflict, "is not retired");

    let retired = client.retire("disk1", &NewRetire::default()).unwrap();
    assert_eq!(retired.state, ProtectionState::Retired);
    let grace = retired.retired.unwrap();
    assert_eq!(grace.erase_after.duration_since(grace.since).as_secs(), 7 * 86_400);
    expect_refusal(&mut agent, RefuseReason::Retired, "tidemark volume unretire disk1");
    let mut again = Agent::connect(&daemon.ingest);
    again.say_hello(&hello(1));
    expect_refusal(&mut again, RefuseReason::Retired, "is retired");
    refused(client.retire("disk1", &NewRetire::default()), ErrorKind::Conflict, "already");
    refused(client.pause("disk1"), ErrorKind::Conflict, "unretire");
    drop((agent, again));
    daemon.stop();

    // It is known after a restart, and its states can be opened; what is open keeps it.
    let daemon = Daemon::start(dir.path());
    let client = daemon.client();
    let new = NewExport {
        volume: "disk1".into(),
        at: "latest".into(),
        listen: Some(format!("unix:{}", dir.path().join("export.sock").display())),
        writable: false,
        space_bytes: None,
        fuse: false,
    };
    let export = client.create_export(&new).unwrap();
    refused(client.erase("disk1"), ErrorKind::Conflict, &format!("export {}", export.id));
    client.delete_export(export.id, false, false).unwrap();
    assert_eq!(client.unretire("disk1").unwrap().state, ProtectionState::Disconnected);
    client.retire("disk1", &NewRetire { grace_seconds: Some(90_000) }).unwrap();

    assert_eq!(client.erase("disk1").unwrap().left, None);
    assert!(client.volumes().unwrap().is_empty());
    assert_eq!(std::fs::read_dir(dir.path().join("data/volumes")).unwrap().count(), 0);
    assert_eq!(client.agents().unwrap()[0].volumes, []);
    assert_eq!(client.forget_agent(&id).unwrap().id, id);
    assert!(client.agents().unwrap().is_empty());
    refused(client.forget_agent("x"), ErrorKind::NotFound, "tidemark agent list");

    let mut agent = Agent::open(&daemon.ingest, &hello(1));
    assert_eq!(agent.welcome.clone().unwrap().durable.0, 0, "nothing of its past is left");
    agent.copy(&mut Model::new());
    assert!(client.agents().unwrap()[0].connected);

    // And by itself, once the grace is over.
    client.retire("disk1", &NewRetire { grace_seconds: Some(1) }).unwrap();
    wait_for(|| {
        let events = client.events(0).unwrap();
        let erased = events.iter().filter(|event| event.message.contains("was erased with"));
        (erased.count() == 2).then_some(())
    });
    assert!(client.volumes().unwrap().is_empty());
    daemon.stop();
}

#[test]
fn an_erasing_that_was_begun_is_completed_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, agent) = with_volume(dir.path());
    drop(agent);
    daemon.stop();
    let volumes = dir.path().join("data/volumes");
    let id = hello(1).volume.to_string();
    std::fs::rename(volumes.join(&id), volumes.join(format!("{id}.erased"))).unwrap();
    let daemon = Daemon::start(dir.path());
    let client = daemon.client();
    assert!(client.volumes().unwrap().is_empty());
    assert_eq!(std::fs::read_dir(&volumes).unwrap().count(), 0);
    let events = client.events(0).unwrap();
    assert!(events.iter().all(|event| !event.message.contains("not in the data directory")));
    daemon.stop();
}
