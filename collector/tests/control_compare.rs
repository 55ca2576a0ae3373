//! Comparisons as jobs, with a whole daemon and an agent that does as it is told: what people are
//! told, and what it takes for a person to be needed.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "tests wait in real time")]

mod ingest_support;

use std::path::Path;
use std::time::{Duration, Instant};

use ingest_support::{Agent, Daemon, Model, VOLUME_BYTES, hello};
use tidemark_collector::control::api::{ErrorKind, Job, JobState, NewResync, Severity};
use tidemark_collector::control::client::{Client, ClientError};
use tidemark_wire::WallMicros;
use tidemark_wire::body::GapReason;
use tidemark_wire::frame::FrameKind;
use tidemark_wire::instruct::{Instruct, InstructKind, Obeyed, Verified, VerifyState};
use tidemark_wire::session::{Standing, StandingState};

const LONG: Duration = Duration::from_secs(20);

/// A daemon with a copied volume, whose agent has said that the stream is whole.
fn with_volume(dir: &Path) -> (Daemon, Agent) {
    let daemon = Daemon::start(dir);
    let mut agent = Agent::open(&daemon.ingest, &hello(1));
    agent.copy(&mut Model::new());
    stand(&mut agent, StandingState::Whole, 0);
    (daemon, agent)
}

fn stand(agent: &mut Agent, state: StandingState, differing_bytes: u64) {
    let reason = (state != StandingState::Whole).then_some(GapReason::RingFull);
    let mut body = Vec::new();
    let since = WallMicros(1_000_000);
    Standing { state, reason, since, differing_bytes, compare_next: false }.encode(&mut body);
    agent.send(FrameKind::Standing, &body);
}

/// Waits for a wish; says how the stream stands after it, and that it was obeyed.
fn obey(agent: &mut Agent, state: StandingState, differing_bytes: u64) -> Instruct {
    let wanted = loop {
        let (kind, body) = agent.receive().unwrap();
        if kind == FrameKind::Instruct {
            break Instruct::decode(&body).unwrap();
        }
    };
    stand(agent, state, differing_bytes);
    let mut body = Vec::new();
    Obeyed { id: wanted.id }.encode(&mut body);
    agent.send(FrameKind::Obeyed, &body);
    wanted
}

fn tell(agent: &mut Agent, id: [u8; 16], state: VerifyState, found: (u64, u64)) {
    let (differing_bytes, unreadable_bytes) = found;
    let ranges = if found == (0, 0) { Vec::new() } else { vec![(65_536, 65_536)] };
    let (reached_bytes, compared_bytes) = (VOLUME_BYTES, VOLUME_BYTES);
    let report = Verified {
        id,
        state,
        reached_bytes,
        compared_bytes,
        differing_bytes,
        unreadable_bytes,
        ranges,
    };
    let mut body = Vec::new();
    report.encode(&mut body);
    agent.send(FrameKind::Verified, &body);
}

fn ended(client: &Client, id: u64) -> Job {
    let end = Instant::now() + LONG;
    loop {
        let job = client.job(id).unwrap();
        if job.state != JobState::Running {
            return job;
        }
        assert!(Instant::now() < end, "it does not end: {job:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn conflict<T: std::fmt::Debug>(answer: Result<T, ClientError>, words: &str) {
    let ClientError::Refused(info) = answer.unwrap_err() else { panic!("a refusal") };
    let text = format!("{}; {}", info.message, info.hint.unwrap_or_default());
    assert!(info.kind == ErrorKind::Conflict && text.contains(words), "{text}");
}

fn criticals(client: &Client) -> Vec<String> {
    let events = client.events(0).unwrap();
    let critical = events.into_iter().filter(|event| event.severity == Severity::Critical);
    critical.map(|event| event.message).collect()
}

#[test]
fn a_verification_that_finds_nothing_is_done_and_one_that_does_needs_a_person() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, mut agent) = with_volume(dir.path());
    let client = daemon.client();
    let job = client.create_verify("disk1").unwrap();
    conflict(client.create_verify("disk1"), "another job is at work on disk1");
    let wanted = obey(&mut agent, StandingState::Whole, 0);
    assert_eq!((wanted.what, wanted.from_bytes), (InstructKind::Verify, 0));
    tell(&mut agent, wanted.id, VerifyState::Running, (0, 0));
    tell(&mut agent, wanted.id, VerifyState::Done, (0, 0));
    let job = ended(&client, job.id);
    assert_eq!(job.state, JobState::Done);
    assert_eq!(job.comparison.unwrap().compared_bytes, VOLUME_BYTES);
    assert!(criticals(&client).is_empty());

    for found in [(65_536, 0), (0, 512)] {
        let job = client.create_verify("disk1").unwrap();
        let wanted = obey(&mut agent, StandingState::Whole, 0);
        tell(&mut agent, wanted.id, VerifyState::Done, found);
        let job = ended(&client, job.id);
        assert_eq!(job.state, JobState::Failed);
        let comparison = job.comparison.unwrap();
        assert_eq!((comparison.differing_bytes, comparison.unreadable_bytes), found);
        let error = job.error.unwrap();
        assert!(error.message.contains("at bytes 65536 to 131072"), "{}", error.message);
        assert!(error.hint.unwrap().contains("tidemark resync disk1 --full"));
        let critical = criticals(&client).pop().unwrap();
        assert!(critical.contains("needs a person"), "{critical}");
    }
    daemon.stop();
}

#[test]
fn a_resynchronization_is_done_when_nothing_differs_and_no_span_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, mut agent) = with_volume(dir.path());
    let client = daemon.client();
    // Nothing is marked: done at once.
    let job = client.create_resync("disk1", &NewResync { full: false }).unwrap();
    assert_eq!(obey(&mut agent, StandingState::Whole, 0).what, InstructKind::CompareMarked);
    let job = ended(&client, job.id);
    assert_eq!((job.state, job.comparison.unwrap().compared_bytes), (JobState::Done, 0));

    let job = client.create_resync("disk1", &NewResync { full: true }).unwrap();
    assert_eq!(obey(&mut agent, StandingState::Whole, VOLUME_BYTES).what, InstructKind::Compare);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(client.job(job.id).unwrap().state, JobState::Running, "all of it is in doubt");
    assert_eq!(client.volume("disk1").unwrap().differing_bytes, Some(VOLUME_BYTES));
    stand(&mut agent, StandingState::Copying, 65_536);
    let end = Instant::now() + LONG;
    while client.volume("disk1").unwrap().differing_bytes != Some(65_536) {
        assert!(Instant::now() < end, "the standing does not arrive");
    }
    conflict(client.create_verify("disk1"), "is known to differ");
    agent.copy(&mut Model::new());
    stand(&mut agent, StandingState::Whole, 0);
    let job = ended(&client, job.id);
    assert_eq!(job.state, JobState::Done);
    assert_eq!(job.comparison.unwrap().compared_bytes, VOLUME_BYTES);
    let ends = client.events(0).unwrap();
    let ends: Vec<_> = ends.iter().filter(|one| one.message.contains("whole again")).collect();
    assert_eq!(ends.len(), 2, "the first copy's and this one's: {ends:?}");
    assert!(ends[1].message.ends_with("s after the span began"), "{}", ends[1].message);
    daemon.stop();
}

#[test]
fn a_cancelled_verification_is_ended_at_the_agent_and_a_pause_refuses_all() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, mut agent) = with_volume(dir.path());
    let client = daemon.client();
    let job = client.create_verify("disk1").unwrap();
    let wanted = obey(&mut agent, StandingState::Whole, 0);
    tell(&mut agent, wanted.id, VerifyState::Running, (0, 0));
    client.cancel_job(job.id).unwrap();
    assert_eq!(obey(&mut agent, StandingState::Whole, 0).what, InstructKind::StopVerify);
    tell(&mut agent, wanted.id, VerifyState::Stopped, (0, 0));
    assert_eq!(ended(&client, job.id).state, JobState::Cancelled);

    let job = client.create_verify("disk1").unwrap();
    let wanted = obey(&mut agent, StandingState::Whole, 0);
    tell(&mut agent, wanted.id, VerifyState::NotWhole, (0, 0));
    let job = ended(&client, job.id);
    assert_eq!(job.state, JobState::Failed);
    assert!(job.error.unwrap().hint.unwrap().contains("tidemark resync disk1"));
    assert!(criticals(&client).is_empty(), "that is nothing for a person");

    stand(&mut agent, StandingState::Paused, 0);
    let end = Instant::now() + LONG;
    while client.volume("disk1").unwrap().state.name() != "paused" {
        assert!(Instant::now() < end, "the standing does not come");
    }
    conflict(client.create_verify("disk1"), "volume resume disk1");
    conflict(client.create_resync("disk1", &NewResync { full: true }), "volume resume disk1");
    daemon.stop();
}
