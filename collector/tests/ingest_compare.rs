//! What an agent is told when it asks what differs: with a whole daemon, also within a span, and
//! where the journal is damaged.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::cast_possible_truncation, reason = "a leaf is small")]

mod ingest_support;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ingest_support::{
    Agent, Change, Daemon, Model, VOLUME_BYTES, change, config, expect_refusal, hello, resync,
    time_of, write,
};
use tidemark_collector::config::settings::Settings;
use tidemark_collector::error::Severity;
use tidemark_collector::ingest::compare::answer;
use tidemark_collector::ingest::manifest::Manifest;
use tidemark_collector::ingest::observer::Observer;
use tidemark_collector::ingest::owner::{Command, Opening, VolumeCore};
use tidemark_collector::ingest::port::SessionPort;
use tidemark_collector::ingest::session::Batch;
use tidemark_collector::ingest::volume::{Volume, volume_dir};
use tidemark_collector::journal::{JournalConfig, Mark};
use tidemark_collector::policy::Overrides;
use tidemark_collector::storage::{RealStorage, Storage};
use tidemark_wire::body::Bookmark;
use tidemark_wire::compare::{
    Compare, Differ, LEAF_BYTES, LeafHash, NodeRange, leaf_hash, node_hash,
};
use tidemark_wire::frame::{FrameKind, RecordsHeader};
use tidemark_wire::instruct::Instruct;
use tidemark_wire::session::{Refuse, RefuseReason, Welcome};
use tidemark_wire::{Epoch, JournalId, RecordKind, Seq, Timeline, VolumeId, WallMicros, record};
use zerocopy::IntoBytes;

const LEAF: usize = LEAF_BYTES as usize;

fn whole() -> NodeRange {
    NodeRange::new(0, VOLUME_BYTES).unwrap()
}

fn leaves(bytes: &[u8]) -> Vec<LeafHash> {
    bytes.chunks(LEAF).map(leaf_hash).collect()
}

fn question(bytes: &[u8], min_seq: Seq) -> Compare {
    let nodes = vec![node_hash(&leaves(bytes))];
    Compare { id: [3; 16], min_seq, exact: false, range: whole(), nodes }
}

/// The leaves that an answer says differ from `bytes`.
fn differing(differ: &Differ, bytes: &[u8]) -> Vec<usize> {
    let Some(node) = differ.nodes.first() else { return Vec::new() };
    let pairs = leaves(bytes).into_iter().zip(&node.leaves).enumerate();
    pairs.filter(|(_, (ours, theirs))| !ours.matches(**theirs)).map(|(at, _)| at).collect()
}

fn ask(agent: &mut Agent, question: &Compare) -> Differ {
    let mut body = Vec::new();
    question.encode(&mut body);
    agent.send(FrameKind::Compare, &body);
    loop {
        let (kind, body) = agent.receive().unwrap();
        match kind {
            FrameKind::Differ => return Differ::decode(&body).unwrap(),
            FrameKind::Token | FrameKind::Ack => {}
            _ => panic!("{kind:?} {:?}", Refuse::decode(&body)),
        }
    }
}

#[test]
fn exactly_the_leaves_that_differ_are_told_also_within_a_span() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let mut agent = Agent::open(&daemon.ingest, &hello(1));
    let mut model = Model::new();
    let begin = agent.send_changes(&[resync(RecordKind::ResyncBegin)]);
    let changes = [
        write(3 * LEAF_BYTES - 100, vec![0x5a; 9000]),
        write(20 * LEAF_BYTES, vec![0xa5; 200_000]),
        change(RecordKind::WriteZeroes, 21 * LEAF_BYTES, 70_000, Vec::new()),
    ];
    model.apply_all(&changes);
    agent.send_changes(&changes);
    agent.wait_durable();
    let same = ask(&mut agent, &question(&model.0, begin));
    assert_eq!((same.id, same.nodes.len()), ([3; 16], 0));

    let mut other = model.0.clone();
    for at in [0, 5 * LEAF + 77, 21 * LEAF, 32 * LEAF - 1] {
        other[at] ^= 1;
    }
    let differ = ask(&mut agent, &question(&other, begin));
    assert_eq!(differing(&differ, &other), [0, 5, 21, 31]);
    assert_eq!(differ.nodes[0].leaves, leaves(&model.0));

    // The question of the next session is answered as well, and a copy's end changes nothing.
    drop(agent);
    let mut agent = Agent::open(&daemon.ingest, &hello(1));
    assert_eq!(agent.welcome.clone().unwrap().span_open, begin);
    assert_eq!(ask(&mut agent, &question(&other, begin)), differ);
    agent.send_changes(&[resync(RecordKind::ResyncEnd)]);
    agent.wait_durable();
    assert_eq!(ask(&mut agent, &question(&other, begin)), differ);

    let mut body = Vec::new();
    question(&other, Seq(agent.last.0 + 1)).encode(&mut body);
    agent.send(FrameKind::Compare, &body);
    expect_refusal(&mut agent, RefuseReason::Protocol, "newest durable");
    daemon.stop();
}

#[test]
fn what_is_sent_after_the_questions_is_acknowledged_and_every_question_answered() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let mut agent = Agent::open(&daemon.ingest, &hello(1));
    let mut model = Model::new();
    agent.copy(&mut model);
    let begin = agent.send_changes(&[resync(RecordKind::ResyncBegin)]);
    agent.wait_durable();
    let mut body = Vec::new();
    question(&model.0, begin).encode(&mut body);
    for round in 0..20u8 {
        (0..4).for_each(|_| agent.send(FrameKind::Compare, &body));
        agent.send_changes(&[write(u64::from(round) * 512, vec![round; 512])]);
        let (mut answers, mut is_durable) = (0, false);
        while answers < 4 || !is_durable {
            let (kind, body) = agent.receive().unwrap();
            answers += usize::from(kind == FrameKind::Differ);
            is_durable |= kind == FrameKind::Ack && body[..8] == agent.last.0.to_le_bytes();
        }
    }
    daemon.stop();
}

struct Nobody;

impl Observer for Nobody {
    fn volume(&self, _: &Manifest) {}
    fn seen(&self, _: &Manifest) {}
    fn history(&self, _: VolumeId, _: &[Mark]) {}
    fn marks(&self, _: VolumeId, _: &[Mark]) {}
    fn trimmed(&self, _: VolumeId, _: Seq) {}
    fn event(&self, _: Severity, _: Option<&str>, _: String) {}
}

#[derive(Default)]
struct Port(Mutex<Option<Welcome>>);

impl SessionPort for Port {
    fn opened(&self, answer: Result<Welcome, Refuse>) {
        *self.0.lock().unwrap() = answer.ok();
    }
    fn durable(&self, _: Seq) {}
    fn end(&self, _: Refuse) {}
    fn bookmark(&self, _: Bookmark) -> bool {
        false
    }
    fn instruct(&self, _: Instruct) -> bool {
        false
    }
    fn heard_at(&self) -> Duration {
        Duration::ZERO
    }
}

/// A volume in `data_dir` that holds `changes`, each in a sealed segment of its own.
fn volume_of(data_dir: &Path, changes: &[Change]) -> Arc<Volume<RealStorage>> {
    let storage = Arc::new(RealStorage);
    let hello = hello(1);
    let dir = volume_dir(data_dir, hello.volume);
    let manifest = Manifest {
        volume: hello.volume,
        name: hello.name.clone(),
        size_bytes: hello.size_bytes,
        block_bytes: 512,
        journal: JournalId::from_bytes([5; 16]),
        timeline: Timeline(1),
        epoch: Epoch(0),
        heard: Epoch(0),
        compare_next: false,
        agent: hello.agent,
        created: WallMicros(1),
        policy: Overrides::default(),
        retired: None,
        seeded: false,
    };
    storage.create_dir(&dir).unwrap();
    manifest.store(&storage, &dir).unwrap();
    let settings = Settings::new(config(data_dir));
    let volume = Arc::new(Volume::new(dir, manifest, settings));
    let config = JournalConfig { segment_bytes_max: 4096 };
    let mut core = VolumeCore::start(storage, Arc::clone(&volume), Arc::new(Nobody), config);
    let port = Arc::<Port>::default();
    let opening =
        Opening { hello, peer: "test".into(), now: Duration::from_secs(1000), port: port.clone() };
    core.handle(Command::Open(Box::new(opening)));
    let epoch = port.0.lock().unwrap().clone().unwrap().epoch;
    for (number, one) in (1u64..).zip(changes) {
        let mut bytes = Vec::new();
        record::encode(&one.spec, Seq(number), time_of(Seq(number)), &one.payload, &mut bytes);
        let header = RecordsHeader {
            timeline: 1.into(),
            count: 1.into(),
            epoch: epoch.0.into(),
            prev_seq: (number - 1).into(),
            first_seq: number.into(),
            last_seq: number.into(),
            token: 0.into(),
        };
        let mut body = header.as_bytes().to_vec();
        body.extend_from_slice(&bytes);
        core.handle(Command::Append(Batch { epoch, body, count: 1, token_sent_at: None }));
        core.finish();
    }
    volume
}

#[test]
fn a_leaf_that_cannot_be_read_differs_and_its_neighbours_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut changes = vec![resync(RecordKind::ResyncBegin)];
    changes.extend((0..6u8).map(|leaf| {
        write(u64::from(leaf) * LEAF_BYTES, (0..LEAF).map(|at| leaf ^ (at % 251) as u8).collect())
    }));
    changes.push(change(RecordKind::Unreadable, 9 * LEAF_BYTES, 4096, Vec::new()));
    let volume = volume_of(dir.path(), &changes);
    let mut model = Model::new();
    model.apply_all(&changes);
    let ask = |bytes: &[u8]| {
        answer("disk1", &volume.held().unwrap(), &question(bytes, Seq(1)), &|| true).unwrap()
    };
    assert_eq!(differing(&ask(&model.0), &model.0), [9], "it could not be read at the source");

    // The segment with the write to the third leaf.
    let segment = volume.journal_dir().join(format!("{:016x}.seg", 4));
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&segment).unwrap();
    let payload = &changes[3].payload[100..1100];
    let bytes = std::fs::read(&segment).unwrap();
    let at = bytes.windows(payload.len()).position(|window| window == payload).unwrap();
    file.write_all_at(&[payload[0] ^ 1], at as u64).unwrap();
    let differ = ask(&model.0);
    assert_eq!(differing(&differ, &model.0), [2, 9]);
    assert_eq!(differ.nodes[0].leaves[2], LeafHash::UNKNOWN);
    let stopped = answer("disk1", &volume.held().unwrap(), &question(&model.0, Seq(1)), &|| false);
    assert_eq!(stopped, None);
}
