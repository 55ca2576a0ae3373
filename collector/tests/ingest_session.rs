//! Sessions with a whole daemon: what is acknowledged is there, across restarts, and a peer that
//! does wrong loses its connection and nothing else.
#![allow(clippy::unwrap_used, reason = "tests")]

mod ingest_support;

use ingest_support::{
    Agent, Change, Daemon, Model, VOLUME_BYTES, change, expect_refusal, hello, resync, write,
};
use proptest::prelude::*;
use proptest::test_runner::{Config as RunConfig, TestRunner};
use tidemark_collector::control::api::{Event, JobState, NewRestore, ProtectionState, Severity};
use tidemark_collector::control::client::Client;
use tidemark_wire::frame::FrameKind;
use tidemark_wire::session::{
    Hello, Lineage, Refuse, RefuseReason, Standing, StandingState, Welcome,
};
use tidemark_wire::{AgentRun, Epoch, RecordKind, Seq, WallMicros};

/// Restores a state and returns the file's bytes.
fn restored(client: &Client, at: &str, dir: &std::path::Path) -> Vec<u8> {
    let target = dir.join("restored.img");
    let new = NewRestore {
        volume: "disk1".into(),
        at: at.into(),
        target,
        format: None,
        overwrite: true,
        restart: false,
        erase: false,
    };
    let mut job = client.create_restore(&new).unwrap();
    while job.state == JobState::Running {
        std::thread::yield_now();
        job = client.job(job.id).unwrap();
    }
    assert_eq!(job.state, JobState::Done, "{:?}", job.error);
    let result = job.result.unwrap();
    assert_eq!(job.done_bytes, job.total_bytes);
    let bytes = std::fs::read(new.target).unwrap();
    assert_eq!(result.size_bytes, bytes.len() as u64);
    bytes
}

fn resize(old_bytes: u64, new_bytes: u64) -> Change {
    let mut resize = change(RecordKind::Resize, 0, new_bytes, Vec::new());
    resize.spec.aux = old_bytes;
    resize
}

#[test]
fn a_volume_has_the_size_that_its_newest_durable_record_made() {
    const GROWN: u64 = VOLUME_BYTES + (1 << 20);
    const CUT: u64 = 12_288;
    let dir = tempfile::tempdir().unwrap();
    let mut model = Model::new();
    let daemon = Daemon::start(dir.path());
    // What the agent says of its size when it comes decides nothing.
    let mut told = hello(1);
    let mut agent = Agent::open(&daemon.ingest, &told);
    agent.copy(&mut model);
    let mut states = vec![(agent.last, model.0.clone())];
    for (old, new) in [(VOLUME_BYTES, GROWN), (GROWN, CUT), (CUT, GROWN)] {
        let last = write(new - 4096, vec![0x77; 4096]);
        model.0.resize(usize::try_from(new).unwrap(), 0);
        model.apply_all(std::slice::from_ref(&last));
        let seq = agent.send_changes(&[resize(old, new), last]);
        states.push((seq, model.0.clone()));
        agent.wait_durable();
        (told.size_bytes, told.epoch) = (old, agent.welcome.clone().unwrap().epoch);
        agent = Agent::open(&daemon.ingest, &told);
        assert_eq!(agent.welcome.clone().unwrap().size_bytes, new);
        assert_eq!(daemon.client().volume("disk1").unwrap().size_bytes, new);
    }
    agent.send_changes(&[write(GROWN, vec![1; 512])]);
    expect_refusal(&mut agent, RefuseReason::Protocol, "of a volume of");
    told.epoch = agent.welcome.clone().unwrap().epoch;
    let mut agent = Agent::open(&daemon.ingest, &told);
    agent.send_changes(&[resize(CUT, VOLUME_BYTES)]);
    expect_refusal(&mut agent, RefuseReason::Protocol, "but it has");
    told.epoch = agent.welcome.clone().unwrap().epoch;
    daemon.stop();

    let daemon = Daemon::start(dir.path());
    let agent = Agent::open(&daemon.ingest, &told);
    assert_eq!(agent.welcome.clone().unwrap().size_bytes, GROWN);
    let events = daemon.client().events(0).unwrap();
    let of_size = events.iter().filter(|event| event.message.contains("volume disk1 "));
    let said: Vec<_> = of_size.map(|event| event.message.split(" at ").next().unwrap()).collect();
    assert_eq!(
        said,
        [
            format!("volume disk1 grew from {VOLUME_BYTES} to {GROWN} bytes"),
            format!("volume disk1 shrank from {GROWN} to {CUT} bytes"),
            format!("volume disk1 grew from {CUT} to {GROWN} bytes"),
        ]
    );
    for (seq, bytes) in states {
        assert!(restored(&daemon.client(), &format!("seq:{seq}"), dir.path()) == bytes, "{seq}");
    }
    daemon.stop();
}

#[test]
fn an_agent_that_may_have_been_put_back_hears_what_changed_since() {
    const MIB: u64 = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let told = Hello { size_bytes: 64 * MIB, ..hello(1) };
    let mut agent = Agent::open(&daemon.ingest, &told);
    agent.send_changes(&[resync(RecordKind::ResyncBegin), resync(RecordKind::ResyncEnd)]);
    let known = agent.send_changes(&[write(40 * MIB, vec![1; 512])]);
    let trim = change(RecordKind::Trim, 20 * MIB, 3 * MIB, Vec::new());
    agent.send_changes(&[write(5 * MIB + 512, vec![2; 512]), trim]);
    let newest = agent.send_changes(&[write(6 * MIB, vec![3; 512])]);
    agent.wait_durable();
    let ask = |unsure_after| {
        let agent = Agent::open(&daemon.ingest, &Hello { unsure_after, ..told.clone() });
        agent.welcome.unwrap().unsure
    };
    assert_eq!(ask(None), []);
    assert_eq!(ask(Some(newest)), []);
    assert_eq!(ask(Some(known)), [(5 * MIB, 2 * MIB), (20 * MIB, 3 * MIB)]);
    assert_eq!(ask(Some(Seq(newest.0 - 1))), [(6 * MIB, MIB)]);
    assert_eq!(ask(Some(Seq(0))).len(), 3);
    daemon.stop();
}

#[test]
fn what_is_acknowledged_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = Model::new();
    let mut states = Vec::new();

    let daemon = Daemon::start(dir.path());
    let mut agent = Agent::open(&daemon.ingest, &hello(1));
    let first = agent.welcome.clone().unwrap();
    assert_eq!((first.durable, first.epoch), (Seq(0), Epoch(1)));
    agent.copy(&mut model);
    for round in 0..5u8 {
        let changes = [
            write(u64::from(round) * 5000, vec![round + 1; 9000]),
            change(RecordKind::Trim, u64::from(round) * 7000, 4096, Vec::new()),
        ];
        model.apply_all(&changes);
        states.push((agent.send_changes(&changes), model.clone()));
    }
    agent.wait_durable();
    let durable = agent.last;
    daemon.stop();
    let refusal = agent.wait_refusal();
    assert_eq!(refusal.reason, RefuseReason::Stopping);

    let daemon = Daemon::start(dir.path());
    let mut agent = Agent::open(&daemon.ingest, &hello(1));
    let second = agent.welcome.clone().unwrap();
    assert_eq!((second.durable, second.journal), (durable, first.journal));
    assert!(second.epoch > first.epoch);
    let changes = [write(1 << 20, vec![0xaa; 256 << 10])];
    model.apply_all(&changes);
    states.push((agent.send_changes(&changes), model.clone()));
    agent.wait_durable();

    let client = daemon.client();
    for (seq, model) in &states {
        let bytes = restored(&client, &format!("seq:{seq}"), dir.path());
        assert!(bytes == model.0, "state {seq} is not what was written");
    }
    let status = client.volume("disk1").unwrap();
    assert_eq!(status.durable_seq, agent.last.0);
    assert_eq!(status.spans.len(), 1);
    drop(agent);
    daemon.stop();
}

#[test]
fn tokens_make_the_rpo_and_the_state_follows() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let client = daemon.client();
    let mut agent = Agent::open(&daemon.ingest, &hello(1));
    let mut model = Model::new();
    agent.send_changes(&[ingest_support::resync(RecordKind::ResyncBegin)]);
    agent.answer_token();
    agent.wait_durable();
    let status = client.volume("disk1").unwrap();
    assert_eq!((status.state, status.rpo_seconds), (ProtectionState::Copying, None));
    agent.send_changes(&[ingest_support::resync(RecordKind::ResyncEnd)]);
    model.apply_all(&[]);
    agent.answer_token();
    agent.send_changes(&[write(0, vec![1; 512])]);
    agent.wait_durable();
    let status = client.volume("disk1").unwrap();
    assert_eq!(status.state, ProtectionState::Protected);
    assert!(status.rpo_seconds.unwrap() < 5.0, "{status:?}");
    agent.send(FrameKind::Goodbye, &[]);
    while agent.receive().is_some() {}
    let gone = (0..2000).any(|_| {
        std::thread::yield_now();
        client.volume("disk1").unwrap().state == ProtectionState::Disconnected
    });
    assert!(gone);
    daemon.stop();
}

#[test]
fn a_newer_session_fences_the_older_one() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let mut model = Model::new();
    let mut old = Agent::open(&daemon.ingest, &hello(1));
    old.copy(&mut model);
    let mut new = Agent::open(&daemon.ingest, &hello(1));
    let refusal = old.wait_refusal();
    assert_eq!(refusal.reason, RefuseReason::Fenced);
    assert_eq!(new.welcome.clone().unwrap().durable, old.last);
    // Records with the old epoch do not get in on the new connection either.
    let (body, _) = old.body(&[write(0, vec![9; 512])], 3);
    new.send(FrameKind::Records, &body);
    expect_refusal(&mut new, RefuseReason::Protocol, "epoch");
    let mut third = Agent::open(&daemon.ingest, &hello(1));
    assert_eq!(third.welcome.clone().unwrap().durable, old.last);
    third.send_changes(&[write(0, vec![1; 512])]);
    third.wait_durable();
    daemon.stop();
}

#[test]
fn nothing_is_appended_twice_or_with_a_hole_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let mut model = Model::new();
    let mut agent = Agent::open(&daemon.ingest, &hello(1));
    agent.copy(&mut model);
    let (body, _) = agent.body(&[write(0, vec![1; 512])], 3);
    agent.send(FrameKind::Records, &body);
    agent.send(FrameKind::Records, &body);
    expect_refusal(&mut agent, RefuseReason::Protocol, "the last one was");

    let mut agent = Agent::open(&daemon.ingest, &hello(1));
    agent.last = Seq(agent.last.0 + 1);
    agent.send_changes(&[write(0, vec![2; 512])]);
    expect_refusal(&mut agent, RefuseReason::Protocol, "records that follow");

    // Unless the agent says that something is missing.
    let mut agent = Agent::open(&daemon.ingest, &hello(1));
    agent.last = Seq(agent.last.0 + 100);
    agent.send_changes(&[ingest_support::resync(RecordKind::ResyncBegin)]);
    agent.wait_durable();
    daemon.stop();
}

#[test]
fn damage_and_what_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let mut model = Model::new();
    let mut agent = Agent::open(&daemon.ingest, &hello(1));
    agent.copy(&mut model);
    let durable = agent.last;
    let (mut body, _) = agent.body(&[write(0, vec![1; 4096])], 3);
    *body.last_mut().unwrap() ^= 1;
    agent.send(FrameKind::Records, &body);
    expect_refusal(&mut agent, RefuseReason::Damaged, "payload of record");

    let mut agent = Agent::open(&daemon.ingest, &hello(1));
    assert_eq!(agent.welcome.clone().unwrap().durable, durable);
    agent.send_changes(&[write(VOLUME_BYTES - 512, vec![1; 1024])]);
    expect_refusal(&mut agent, RefuseReason::Protocol, "ends at byte");

    let mut agent = Agent::connect(&daemon.ingest);
    let mut named = hello(3);
    named.name = "a\nb".into();
    agent.say_hello(&named);
    expect_refusal(&mut agent, RefuseReason::Protocol, "control character");

    let mut agent = Agent::connect(&daemon.ingest);
    agent.send(FrameKind::Records, &[0; 48]);
    expect_refusal(&mut agent, RefuseReason::Protocol, "at this point");
    daemon.stop();
}

#[test]
fn more_sessions_than_allowed_are_turned_away() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let mut agents: Vec<_> =
        (1..=8).map(|volume| Agent::open(&daemon.ingest, &hello(volume))).collect();
    let mut further = Agent::connect(&daemon.ingest);
    expect_refusal(&mut further, RefuseReason::Unavailable, "sessions_max");
    agents[0].send_changes(&[ingest_support::resync(RecordKind::ResyncBegin)]);
    agents[0].wait_durable();
    daemon.stop();
}

#[derive(Clone, Debug)]
enum Garbage {
    Bytes(Vec<u8>),
    Frame(u8, Vec<u8>),
    AfterHello(u8, Vec<u8>),
}

fn garbage() -> impl Strategy<Value = Garbage> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..400);
    prop_oneof![
        bytes().prop_map(Garbage::Bytes),
        (1u8..=9, bytes()).prop_map(|(kind, body)| Garbage::Frame(kind, body)),
        (1u8..=9, bytes()).prop_map(|(kind, body)| Garbage::AfterHello(kind, body)),
    ]
}

#[test]
fn garbage_costs_its_sender_the_connection_and_nobody_else_anything() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let mut model = Model::new();
    let good = std::cell::RefCell::new(Agent::open(&daemon.ingest, &hello(1)));
    good.borrow_mut().copy(&mut model);
    let mut runner =
        TestRunner::new(RunConfig { cases: 60, failure_persistence: None, ..RunConfig::default() });
    let result = runner.run(&garbage(), |garbage| {
        let mut bad = match &garbage {
            Garbage::AfterHello(..) => Agent::open(&daemon.ingest, &hello(2)),
            _ => Agent::connect(&daemon.ingest),
        };
        match garbage {
            Garbage::Bytes(bytes) => bad.send_bytes(&bytes),
            Garbage::Frame(kind, body) | Garbage::AfterHello(kind, body) => {
                bad.send(FrameKind::from_byte(kind).unwrap(), &body);
            }
        }
        drop(bad);
        let mut good = good.borrow_mut();
        let changes: [Change; 1] = [write(4096, vec![3; 512])];
        good.send_changes(&changes);
        good.wait_durable();
        Ok(())
    });
    result.unwrap();
    daemon.stop();
}

#[test]
fn a_volume_that_has_lost_its_manifest_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let mut agent = Agent::open(&daemon.ingest, &hello(1));
    agent.copy(&mut Model::new());
    daemon.stop();
    let volume = dir.path().join("data/volumes").join(hello(1).volume.to_string());
    std::fs::remove_file(volume.join("manifest.json")).unwrap();

    let daemon = Daemon::start(dir.path());
    let mut agent = Agent::connect(&daemon.ingest);
    agent.say_hello(&hello(1));
    expect_refusal(&mut agent, RefuseReason::Unavailable, "manifest is missing");
    assert!(!volume.join("manifest.json").exists(), "another identity is not made up");
    daemon.stop();
}

/// Waits until so many critical events have these words.
fn wait_critical(client: &Client, words: &str, count: usize) {
    let has = |event: &Event| event.severity == Severity::Critical && event.message.contains(words);
    let found = (0..2000).any(|_| {
        std::thread::yield_now();
        client.events(0).unwrap().into_iter().filter(has).count() == count
    });
    assert!(found, "{words}: {:?}", client.events(0).unwrap());
}

#[test]
fn a_copy_of_a_machine_is_fenced_while_the_other_one_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let (one, other) = (AgentRun([1; 6]), AgentRun([2; 6]));
    let mut agent = Agent::open(&daemon.ingest, &Hello { run: one, ..hello(1) });
    agent.copy(&mut Model::new());
    for epoch in [0, 1] {
        let mut copy = Agent::connect(&daemon.ingest);
        copy.say_exactly(&Hello { run: other, epoch: Epoch(epoch), ..hello(1) });
        expect_refusal(&mut copy, RefuseReason::Fenced, "two agents");
    }
    agent.send_changes(&[write(0, vec![3; 512])]);
    agent.wait_durable();
    let seq = agent.last;
    agent.send(FrameKind::Goodbye, &[]);
    while agent.receive().is_some() {}
    // Nobody else is there: what the one that comes holds now is compared whole.
    let older = Hello { run: other, epoch: Epoch(0), ..hello(1) };
    let mut copy = Agent::connect(&daemon.ingest);
    copy.say_exactly(&older);
    let (kind, body) = copy.receive().unwrap();
    assert_eq!(kind, FrameKind::Welcome, "{:?}", Refuse::decode(&body));
    let welcome = Welcome::decode(&body).unwrap();
    assert_eq!((welcome.lineage, welcome.durable), (Lineage::SourceOlder, seq));
    wait_critical(&daemon.client(), "is a copy of the one", 1);
    daemon.stop();
}

#[test]
fn a_collector_that_was_put_back_knows_it_from_what_the_agent_remembers() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let mut agent = Agent::open(&daemon.ingest, &hello(1));
    agent.copy(&mut Model::new());
    let (journal, last) = (agent.welcome.clone().unwrap().journal, agent.last);
    let known = Hello { journal, released: last, newest: last, ..hello(1) };
    for (released, epoch, lineage) in [
        (last, 1, Lineage::Same),
        (Seq(last.0 + 1), 2, Lineage::CollectorOlder),
        (last, 900, Lineage::CollectorOlder),
        (last, 901, Lineage::Same),
    ] {
        let newest = released;
        let agent = Agent::open(
            &daemon.ingest,
            &Hello { released, newest, epoch: Epoch(epoch), ..known.clone() },
        );
        let welcome = agent.welcome.clone().unwrap();
        assert_eq!(welcome.lineage, lineage, "{released} {epoch}");
        assert!(welcome.epoch > Epoch(epoch), "numbers of sessions are never used again");
    }
    wait_critical(&daemon.client(), "put back to an older copy", 2);
    daemon.stop();
}

#[test]
fn an_agent_that_cannot_keep_its_map_is_told_to_compare_until_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path());
    let mut agent = Agent::open(&daemon.ingest, &hello(1));
    agent.copy(&mut Model::new());
    let say = |agent: &mut Agent, state, compare_next| {
        let mut body = Vec::new();
        let since = WallMicros(1);
        Standing { state, reason: None, since, differing_bytes: 0, compare_next }.encode(&mut body);
        agent.send(FrameKind::Standing, &body);
        // What is sent behind it is durable later.
        agent.send_changes(&[write(0, vec![1; 512])]);
        agent.wait_durable();
    };
    say(&mut agent, StandingState::Whole, true);
    for (state, is_kept) in [(StandingState::Copying, true), (StandingState::Whole, false)] {
        daemon.stop();
        daemon = Daemon::start(dir.path());
        let mut again = Agent::open(&daemon.ingest, &hello(1));
        assert!(again.welcome.clone().unwrap().compare, "kept through a restart");
        say(&mut again, state, false);
        let third = Agent::open(&daemon.ingest, &hello(1));
        assert_eq!(third.welcome.clone().unwrap().compare, is_kept, "{state:?}");
    }
    daemon.stop();
}
