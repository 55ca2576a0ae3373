//! The shipper against a collector that follows a script: what goes out after sessions that break
//! at the worst moment, and that it never waits for a collector that does not answer.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test may look at the machine's clock")]

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tidemark_agent::capture::Capture;
use tidemark_agent::capture::desk::QUESTIONS_MAX;
use tidemark_agent::clock::{Clock, SystemClock};
use tidemark_agent::intent_log::map::IntentMap;
use tidemark_agent::random::{Random, SystemSource};
use tidemark_agent::ring::{Ring, RingSpec};
use tidemark_agent::shipper::link::{Dial, Link, receive_frame};
use tidemark_agent::shipper::{Drained, Shipper, ShipperParts, VolumeFacts};
use tidemark_agent::state::{KeptState, StateFile, VolumeState};
use tidemark_block::ByteRange;
use tidemark_wire::body::GapReason;
use tidemark_wire::compare::{
    Compare, Differ, LEAF_BYTES, LeafHash, NODE_BYTES, NodeRange, node_hash,
};
use tidemark_wire::frame::{self, FrameKind, RecordsBody};
use tidemark_wire::session::{
    Ack, Hello, Lineage, Refuse, RefuseReason, SIGN_OF_LIFE_EVERY, Welcome,
};
use tidemark_wire::{
    AgentId, AgentRun, Epoch, JournalId, RecordKind, Seq, Timeline, VolumeId, WallMicros,
};

const JOURNAL: JournalId = JournalId::from_bytes([5; 16]);
/// One region of the write-intent log.
const DISK_BYTES: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(10);
/// Long enough for records that must not come to come.
const QUIET: Duration = Duration::from_millis(300);

/// Gives the shipper one end of a new connection and the script the other.
struct ScriptDial(Sender<UnixStream>);

impl Dial for ScriptDial {
    fn dial(&self) -> io::Result<Link> {
        let (ours, theirs) = UnixStream::pair()?;
        self.0.send(theirs).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        let (reader, closer) = (ours.try_clone()?, ours.try_clone()?);
        Ok(Link {
            reader: Box::new(reader),
            writer: Box::new(ours),
            closer: Box::new(move || drop(closer.shutdown(Shutdown::Both))),
        })
    }

    fn peer(&self) -> String {
        "the script".into()
    }
}

/// The collector's side of one connection, its hello read.
struct Connection {
    stream: UnixStream,
    hello: Hello,
    body: Vec<u8>,
    /// What the welcome says of it.
    unsure: Vec<(u64, u64)>,
}

impl Connection {
    fn accept(connections: &Receiver<UnixStream>) -> Self {
        let mut stream = connections.recv_timeout(PATIENCE).unwrap();
        let mut body = Vec::new();
        assert_eq!(receive_frame(&mut stream, &mut body).unwrap(), FrameKind::Hello);
        Self { stream, hello: Hello::decode(&body).unwrap(), body, unsure: Vec::new() }
    }

    fn send(&mut self, kind: FrameKind, encode: impl FnOnce(&mut Vec<u8>)) {
        let (mut body, mut out) = (Vec::new(), Vec::new());
        encode(&mut body);
        frame::encode(kind, &body, &mut out);
        self.stream.write_all(&out).unwrap();
    }

    fn welcome(&mut self, durable: u64) {
        self.welcome_in_span(durable, 0);
    }

    /// The collector holds the begin of a span and not its end.
    fn welcome_in_span(&mut self, durable: u64, span_open: u64) {
        let welcome = Welcome {
            journal: JOURNAL,
            timeline: Timeline(1),
            epoch: Epoch(self.hello.epoch.0 + 1),
            durable: Seq(durable),
            span_open: Seq(span_open),
            window_bytes: 1 << 20,
            seeded: false,
            last_time: WallMicros(0),
            size_bytes: self.hello.size_bytes,
            lineage: Lineage::Same,
            compare: false,
            unsure: self.unsure.clone(),
        };
        self.send(FrameKind::Welcome, |body| welcome.encode(body));
    }

    /// Predecessor and kinds of the records of the next frame that has any.
    fn records(&mut self, patience: Duration) -> Option<(u64, Vec<RecordKind>)> {
        self.stream.set_read_timeout(Some(patience)).unwrap();
        loop {
            match receive_frame(&mut self.stream, &mut self.body) {
                Ok(FrameKind::Records) => {
                    let frame = RecordsBody::decode(&self.body).unwrap();
                    let kinds: Vec<_> =
                        frame.records().map(|record| record.unwrap().kind).collect();
                    if !kinds.is_empty() {
                        return Some((frame.header.prev_seq().0, kinds));
                    }
                }
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }
}

impl Connection {
    /// The next question of a comparison.
    fn question(&mut self, patience: Duration) -> Option<Compare> {
        self.stream.set_read_timeout(Some(patience)).unwrap();
        loop {
            if receive_frame(&mut self.stream, &mut self.body).ok()? == FrameKind::Compare {
                return Some(Compare::decode(&self.body).unwrap());
            }
        }
    }
}

struct Agent {
    shipper: Shipper,
    capture: Arc<Capture>,
    state: Arc<KeptState>,
    clock: Arc<dyn Clock>,
    connections: Receiver<UnixStream>,
    _dir: TempDir,
}

/// An agent whose volume was copied to the journal, with records 1 to 3 in its ring.
fn agent() -> Agent {
    agent_from(4)
}

/// The same; numbers before `first` are a predecessor's.
fn agent_from(first: u64) -> Agent {
    agent_with(first, |_| ())
}

/// The same, with another state.
fn agent_with(first: u64, change: impl FnOnce(&mut VolumeState)) -> Agent {
    let dir = tempfile::tempdir().unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let volume = VolumeId::from_bytes([7; 16]);
    let spec = RingSpec { volume, ring_bytes: 1 << 20, slots: 64, boot_id: [9; 16] };
    let ring = Ring::in_memory(&spec, Seq(1), Arc::clone(&clock)).unwrap();
    ring.set_seq_limit(Seq(1 << 40));
    let intent = Arc::new(IntentMap::volatile(DISK_BYTES));
    let capture = Arc::new(Capture::new("data".into(), ring, intent));
    capture.set_size(DISK_BYTES);
    let file = StateFile::new(dir.path(), "data");
    let mut state = VolumeState {
        volume,
        reserved_until: Seq(1 << 40),
        known: Seq(0),
        unsure_after: None,
        journal: JOURNAL,
        timeline: Timeline(1),
        epoch: Epoch(1),
        copied: true,
        covered: true,
        clean: false,
        released: Seq(0),
        paused: false,
        last_time: WallMicros(0),
        backing: None,
    };
    change(&mut state);
    file.store(&state).unwrap();
    let state = Arc::new(KeptState::new(file, state));
    flushes(&capture, 3);
    let (sender, connections) = channel();
    let random: Arc<dyn Random> = Arc::new(SystemSource::default());
    let parts = ShipperParts {
        facts: VolumeFacts { id: volume, block_bytes: 512 },
        capture: Arc::clone(&capture),
        state: Arc::clone(&state),
        agent: AgentId::from_bytes([1; 16]),
        clock: Arc::clone(&clock),
        random,
        run: AgentRun::default(),
        first: Seq(first),
    };
    let shipper = Shipper::start(parts, Box::new(ScriptDial(sender))).unwrap();
    Agent { shipper, capture, state, clock, connections, _dir: dir }
}

fn flushes(capture: &Capture, count: u64) {
    for _ in 0..count {
        capture.stamp(RecordKind::Flush, 0, &[]).unwrap();
    }
}

fn gap(capture: &Capture) -> Seq {
    capture.stamp(RecordKind::Gap, GapReason::SourceBehind as u64, &[]).unwrap()
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Agent {
    fn stop(self) -> (Drained, Duration) {
        let begin = Instant::now();
        drop(self.connections);
        (self.shipper.stop(Duration::ZERO, self.clock.as_ref()), begin.elapsed())
    }
}

#[test]
fn what_continues_nothing_stays_back_also_in_the_session_after_the_next() {
    let agent = agent();
    let mut first = Connection::accept(&agent.connections);
    // More than the agent has ever sent: its numbers go on behind, and a copy is wanted.
    first.welcome(300);
    wait_for("the numbers are raised", || agent.capture.ring().next_seq() > Seq(300));
    drop(first);
    let mut second = Connection::accept(&agent.connections);
    flushes(&agent.capture, 3);
    assert_eq!(second.hello.newest, Seq(300), "by its numbers alone the stream would fit");
    second.welcome(300);
    assert_eq!(second.records(QUIET), None, "they would be offered as states of the volume");
    flushes(&agent.capture, 1);
    gap(&agent.capture);
    let sent = second.records(PATIENCE);
    assert_eq!(sent, Some((300, vec![RecordKind::Gap])));
    agent.stop();
}

#[test]
fn what_is_dropped_does_not_count_as_acknowledged() {
    let agent = agent();
    let mut first = Connection::accept(&agent.connections);
    first.welcome(300);
    wait_for("the numbers are raised", || agent.capture.ring().next_seq() > Seq(300));
    flushes(&agent.capture, 3);
    wait_for("what continues nothing is dropped", || {
        agent.capture.ring().released_seq() > Seq(300)
    });
    drop(first);
    let mut second = Connection::accept(&agent.connections);
    assert_eq!(second.hello.released, Seq(300), "the collector would be told that it lost some");
    second.welcome(300);
    agent.stop();
}

#[test]
fn what_this_machine_may_not_remember_is_asked_for_once_and_compared() {
    let agent = agent();
    let first = Connection::accept(&agent.connections);
    assert_eq!(first.hello.unsure_after, None);
    drop(first);
    let agent = {
        agent.stop();
        agent_with(4, |state| state.unsure_after = Some(Seq(2)))
    };
    let mut first = Connection::accept(&agent.connections);
    assert_eq!(first.hello.unsure_after, Some(Seq(2)));
    first.unsure = vec![(4096, 512)];
    first.welcome(3);
    wait_for_doubt(&agent.capture);
    drop(first);
    let second = Connection::accept(&agent.connections);
    assert_eq!(second.hello.unsure_after, None, "it is marked by now");
    assert_eq!(agent.state.get().unsure_after, Some(Seq(2)), "a kill would lose that");
    drop(second);
    agent.stop();
}

#[test]
fn the_copy_counts_as_whole_until_its_gap_is_durable() {
    let agent = agent();
    let mut first = Connection::accept(&agent.connections);
    first.welcome(2);
    assert_eq!(first.records(PATIENCE), Some((2, vec![RecordKind::Flush])));
    let at = gap(&agent.capture);
    assert_eq!(first.records(PATIENCE), Some((3, vec![RecordKind::Gap])));
    assert!(agent.state.get().copied);
    drop(first);
    // The gap never arrived: what is before it continues the collector's copy and is not lost.
    let mut second = Connection::accept(&agent.connections);
    second.welcome(2);
    let sent = second.records(PATIENCE);
    assert_eq!(sent, Some((2, vec![RecordKind::Flush, RecordKind::Gap])));
    second.send(FrameKind::Ack, |body| Ack { durable: at.0.into() }.encode(body));
    wait_for("the gap counts", || !agent.state.get().copied);
    agent.stop();
}

/// A full ring misses one leaf of the region and wants a copy for that.
fn lose_a_leaf(capture: &Capture) {
    capture.intent().miss(ByteRange::new(0, 4096).unwrap());
    capture.lose(GapReason::RingFull);
    assert_eq!(capture.intent().differing_bytes(), LEAF_BYTES);
}

fn wait_for_doubt(capture: &Capture) {
    let differing = || capture.intent().differing_bytes();
    wait_for("all that has its bit is compared", || differing() == DISK_BYTES);
}

#[test]
fn what_a_predecessors_copy_had_left_is_compared_though_a_full_ring_wants_a_copy_already() {
    let agent = agent();
    let mut session = Connection::accept(&agent.connections);
    lose_a_leaf(&agent.capture);
    session.welcome_in_span(3, 2);
    wait_for_doubt(&agent.capture);
    agent.stop();
}

#[test]
fn the_same_when_the_begin_of_the_predecessors_copy_is_still_in_the_ring() {
    let agent = agent_from(5);
    let mut session = Connection::accept(&agent.connections);
    assert_eq!(gap(&agent.capture), Seq(4));
    lose_a_leaf(&agent.capture);
    session.welcome(2);
    let sent = session.records(PATIENCE);
    assert_eq!(sent, Some((2, vec![RecordKind::Flush, RecordKind::Gap])));
    wait_for_doubt(&agent.capture);
    agent.stop();
}

#[test]
fn an_agent_whose_stream_is_not_whole_still_says_that_it_is_there() {
    let agent = agent();
    agent.capture.pause();
    let mut session = Connection::accept(&agent.connections);
    session.welcome(3);
    // The collector takes an agent for gone, and lets a copy of it in, when it hears nothing for
    // five times this long.
    session.stream.set_read_timeout(Some(SIGN_OF_LIFE_EVERY * 5)).unwrap();
    let mut told = 0;
    while told < 3 {
        let kind = receive_frame(&mut session.stream, &mut session.body).unwrap();
        told += usize::from(kind == FrameKind::Standing);
    }
    agent.stop();
}

#[test]
fn a_collector_that_never_answers_does_not_hold_up_a_stop() {
    let agent = agent();
    let silent = Connection::accept(&agent.connections);
    let (drained, took) = agent.stop();
    assert_eq!(drained, Drained::No);
    assert!(took < Duration::from_millis(900), "{took:?}");
    drop(silent);
}

#[test]
fn sessions_that_are_ended_at_once_come_more_and_more_seldom() {
    let agent = agent();
    let until = Instant::now() + Duration::from_millis(1500);
    let mut sessions = 0;
    while Instant::now() < until {
        let Ok(stream) = agent.connections.recv_timeout(Duration::from_millis(20)) else {
            continue;
        };
        let (mut connection, text) = (stream, "no space left".to_owned());
        let mut body = Vec::new();
        receive_frame(&mut connection, &mut body).unwrap();
        let hello = Hello::decode(&body).unwrap();
        let mut connection = Connection { stream: connection, hello, body, unsure: Vec::new() };
        connection.welcome(0);
        let refuse = Refuse { reason: RefuseReason::Unavailable, text };
        connection.send(FrameKind::Refuse, |body| refuse.encode(body));
        connection.records(QUIET);
        sessions += 1;
    }
    assert!((2..=10).contains(&sessions), "{sessions} sessions");
    agent.stop();
}

#[test]
fn a_stop_waits_for_no_collector_when_nothing_is_left_to_send() {
    let agent = agent();
    let mut only = Connection::accept(&agent.connections);
    only.welcome(2);
    assert_eq!(only.records(PATIENCE), Some((2, vec![RecordKind::Flush])));
    only.send(FrameKind::Ack, |body| Ack { durable: 3.into() }.encode(body));
    wait_for("all is released", || agent.capture.ring().is_empty());
    drop(agent.connections);
    drop(only);
    let begin = Instant::now();
    let drained = agent.shipper.stop(PATIENCE, agent.clock.as_ref());
    assert_eq!(drained, Drained::Yes);
    assert!(begin.elapsed() < PATIENCE / 2, "{:?}", begin.elapsed());
}

#[test]
fn a_stop_without_a_collector_is_not_clean_while_a_record_is_left() {
    let agent = agent();
    let mut only = Connection::accept(&agent.connections);
    only.welcome(2);
    assert_eq!(only.records(PATIENCE), Some((2, vec![RecordKind::Flush])));
    drop(only);
    drop(agent.connections);
    let drained = agent.shipper.stop(QUIET, agent.clock.as_ref());
    assert_eq!(drained, Drained::No);
}

#[test]
fn questions_of_copies_that_were_given_up_do_not_pile_up_at_the_collector() {
    let agent = agent();
    let mut only = Connection::accept(&agent.connections);
    only.welcome(3);
    let node = |index| NodeRange::new(index * NODE_BYTES, NODE_BYTES).unwrap();
    let mut asked = Vec::new();
    for copy in 1..=4 {
        let desk = agent.capture.desk();
        desk.close([copy - 1; 16]);
        desk.open([copy; 16]);
        for index in 0..QUESTIONS_MAX as u64 / 2 {
            let nodes = vec![node_hash(&[LeafHash::ZERO])];
            let (id, min_seq, range) = ([copy; 16], Seq(1), node(index));
            desk.post(Compare { id, min_seq, exact: false, range, nodes });
        }
        agent.capture.ring().wake_consumer();
        while let Some(question) = only.question(QUIET) {
            asked.push(question);
        }
    }
    assert_eq!(asked.len(), QUESTIONS_MAX, "the collector answers none");
    let Compare { id, range, .. } = asked[0];
    only.send(FrameKind::Differ, |body| Differ { id, range, nodes: Vec::new() }.encode(body));
    assert_eq!(only.question(PATIENCE).expect("one more").id, [4; 16]);
    assert_eq!(only.question(QUIET), None);
    agent.stop();
}
