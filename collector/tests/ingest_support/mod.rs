//! A daemon of its own in this process, and an agent that does as it is told.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use tidemark_collector::config::{Address, Config};
use tidemark_collector::control::client::Client;
use tidemark_collector::daemon;
use tidemark_wire::body::Resync;
use tidemark_wire::frame::{self, FRAME_HEADER_BYTES, FrameHeader, FrameKind, RecordsHeader};
use tidemark_wire::record::{self, RecordSpec};
use tidemark_wire::session::{Ack, Hello, Refuse, RefuseReason, Welcome};
use tidemark_wire::{
    AgentId, AgentRun, Epoch, JournalId, RecordKind, Seq, SessionToken, Timeline, VolumeId,
    WallMicros,
};
use tokio::sync::oneshot;
use zerocopy::IntoBytes;

pub(crate) const VOLUME_BYTES: u64 = 2 << 20;

/// A daemon on a directory; what it keeps outlives it.
pub(crate) struct Daemon {
    pub(crate) ingest: PathBuf,
    pub(crate) control: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

pub(crate) fn config(dir: &Path) -> Config {
    let text = format!(
        "data_dir = '{0}/data'\nlisten = ['unix:{0}/ingest.sock']\n\
         control_socket = '{0}/control.sock'\nfree_bytes_min = 0\nsessions_max = 8\n",
        dir.display()
    );
    let file = dir.join("collector.toml");
    std::fs::write(&file, text).unwrap();
    Config::load(Some(&file)).unwrap()
}

impl Daemon {
    pub(crate) fn start(dir: &Path) -> Self {
        let config = config(dir);
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let control = config.control_socket.clone();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let ready = move |listen: &[Address]| ready.send(listen.to_vec()).unwrap();
            let stop = async move {
                let _ = stopped.await;
            };
            runtime.block_on(daemon::run(config, stop, ready)).unwrap();
        });
        let listen: Vec<Address> = is_ready.recv_timeout(Duration::from_secs(20)).unwrap();
        let Address::Unix(ingest) = listen[0].clone() else { panic!("a unix socket") };
        Self { ingest, control, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.control).unwrap()
    }

    pub(crate) fn stop(mut self) {
        self.end();
        assert!(!self.ingest.exists() && !self.control.exists(), "socket files are removed");
    }

    fn end(&mut self) {
        if let (Some(stop), Some(thread)) = (self.stop.take(), self.thread.take()) {
            let _ = stop.send(());
            thread.join().unwrap();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}

/// One write, zeroing or mark, as the test wants it.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) spec: RecordSpec,
    pub(crate) payload: Vec<u8>,
}

pub(crate) fn write(offset: u64, payload: Vec<u8>) -> Change {
    let len = payload.len() as u64;
    change(RecordKind::Write, offset, len, payload)
}

pub(crate) fn change(kind: RecordKind, offset: u64, len: u64, payload: Vec<u8>) -> Change {
    let payload_bytes = u32::try_from(payload.len()).unwrap();
    let spec =
        RecordSpec { kind, offset_bytes: offset, len_bytes: len, payload_bytes, flags: 0, aux: 0 };
    Change { spec, payload }
}

pub(crate) fn resync(kind: RecordKind) -> Change {
    let body = Resync {
        id: [7; 16],
        total_bytes: VOLUME_BYTES.into(),
        sent_bytes: 0.into(),
        initial: 1,
        reserved: [0; 7],
    };
    change(kind, 0, 0, body.as_bytes().to_vec())
}

/// What each agent of this process keeps of its last session, by collector and volume.
static EPOCHS: Mutex<BTreeMap<(PathBuf, VolumeId), Epoch>> = Mutex::new(BTreeMap::new());

/// An agent with one session.
pub(crate) struct Agent {
    stream: UnixStream,
    path: PathBuf,
    pub(crate) welcome: Option<Welcome>,
    pub(crate) last: Seq,
    token: u64,
}

pub(crate) fn hello(volume: u8) -> Hello {
    Hello {
        agent: AgentId::from_bytes([9; 16]),
        volume: VolumeId::from_bytes([volume; 16]),
        journal: JournalId::NIL,
        timeline: Timeline(1),
        epoch: Epoch(0),
        released: Seq(0),
        newest: Seq(0),
        size_bytes: VOLUME_BYTES,
        block_bytes: 512,
        name: format!("disk{volume}"),
        run: AgentRun::default(),
        unsure_after: None,
    }
}

impl Agent {
    /// A connection on which nothing was said.
    pub(crate) fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let path = path.to_owned();
        Self { stream, path, welcome: None, last: Seq(0), token: 0 }
    }

    /// A session that was welcomed.
    pub(crate) fn open(path: &Path, hello: &Hello) -> Self {
        let mut agent = Self::connect(path);
        agent.say_hello(hello);
        let (kind, body) = agent.receive().unwrap();
        assert_eq!(kind, FrameKind::Welcome, "{:?}", Refuse::decode(&body));
        let welcome = Welcome::decode(&body).unwrap();
        agent.last = welcome.durable;
        let key = (agent.path.clone(), hello.volume);
        EPOCHS.lock().unwrap().insert(key, welcome.epoch);
        agent.welcome = Some(welcome);
        agent
    }

    /// As an agent that remembers its last session.
    pub(crate) fn say_hello(&mut self, hello: &Hello) {
        let key = (self.path.clone(), hello.volume);
        let epoch = EPOCHS.lock().unwrap().get(&key).copied().unwrap_or_default();
        self.say_exactly(&Hello { epoch: hello.epoch.max(epoch), ..hello.clone() });
    }

    pub(crate) fn say_exactly(&mut self, hello: &Hello) {
        let mut body = Vec::new();
        hello.encode(&mut body);
        self.send(FrameKind::Hello, &body);
    }

    pub(crate) fn send(&mut self, kind: FrameKind, body: &[u8]) {
        let mut bytes = Vec::new();
        frame::encode(kind, body, &mut bytes);
        self.send_bytes(&bytes);
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next frame; `None` when the connection is closed.
    pub(crate) fn receive(&mut self) -> Option<(FrameKind, Vec<u8>)> {
        let mut header = [0; FRAME_HEADER_BYTES];
        self.stream.read_exact(&mut header).ok()?;
        let (header, kind) = FrameHeader::decode(&header).unwrap();
        let mut body = vec![0; header.body_bytes.get() as usize];
        self.stream.read_exact(&mut body).ok()?;
        header.check_body(&body).unwrap();
        if kind == FrameKind::Token {
            self.token = u64::from_le_bytes(body[..8].try_into().unwrap());
        }
        Some((kind, body))
    }

    /// The body of a frame of records that continues the stream, numbers rising by `step`.
    pub(crate) fn body(&self, changes: &[Change], step: u64) -> (Vec<u8>, Seq) {
        let welcome = self.welcome.clone().unwrap();
        let (mut records, mut last) = (Vec::new(), self.last);
        for change in changes {
            last = Seq(last.0 + step);
            record::encode(&change.spec, last, time_of(last), &change.payload, &mut records);
        }
        let first = if changes.is_empty() { last } else { Seq(self.last.0 + step) };
        let header = RecordsHeader {
            timeline: welcome.timeline.0.into(),
            count: u32::try_from(changes.len()).unwrap().into(),
            epoch: welcome.epoch.0.into(),
            prev_seq: self.last.0.into(),
            first_seq: first.0.into(),
            last_seq: last.0.into(),
            token: self.token.into(),
        };
        let mut body = header.as_bytes().to_vec();
        body.extend_from_slice(&records);
        (body, last)
    }

    pub(crate) fn send_changes(&mut self, changes: &[Change]) -> Seq {
        let (body, last) = self.body(changes, 3);
        self.send(FrameKind::Records, &body);
        self.last = last;
        last
    }

    /// Reads until everything that was sent is durable.
    pub(crate) fn wait_durable(&mut self) {
        let wanted = self.last;
        loop {
            let (kind, body) = self.receive().unwrap();
            match kind {
                FrameKind::Ack if Ack::decode(&body).unwrap().durable.get() >= wanted.0 => return,
                FrameKind::Ack | FrameKind::Token | FrameKind::Welcome => {}
                _ => panic!("{kind:?} {:?}", Refuse::decode(&body)),
            }
        }
    }

    /// Reads until the collector has refused and closed.
    pub(crate) fn wait_refusal(&mut self) -> Refuse {
        loop {
            let (kind, body) = self.receive().expect("a refusal before the end");
            if kind == FrameKind::Refuse {
                assert!(self.receive().is_none(), "nothing follows a refusal");
                return Refuse::decode(&body).unwrap();
            }
        }
    }

    /// Waits for a token and sends it back.
    pub(crate) fn answer_token(&mut self) -> SessionToken {
        let before = self.token;
        while self.token == before {
            self.receive().unwrap();
        }
        self.send_changes(&[]);
        SessionToken(self.token)
    }

    /// A volume that was copied whole: a span that begins and ends.
    pub(crate) fn copy(&mut self, model: &mut Model) {
        let mut changes = vec![resync(RecordKind::ResyncBegin)];
        changes.push(write(0, vec![0x11; 64 << 10]));
        changes.push(resync(RecordKind::ResyncEnd));
        model.apply_all(&changes);
        self.send_changes(&changes);
        self.wait_durable();
    }
}

pub(crate) fn time_of(seq: Seq) -> WallMicros {
    WallMicros(1_700_000_000_000_000 + seq.0 * 1_000_000)
}

pub(crate) fn expect_refusal(agent: &mut Agent, reason: RefuseReason, words: &str) {
    let refusal = agent.wait_refusal();
    assert_eq!(refusal.reason, reason, "{}", refusal.text);
    assert!(refusal.text.contains(words), "{}", refusal.text);
}

/// What the disk should read as.
#[derive(Clone)]
pub(crate) struct Model(pub(crate) Vec<u8>);

impl Model {
    pub(crate) fn new() -> Self {
        Self(vec![0; usize::try_from(VOLUME_BYTES).unwrap()])
    }

    pub(crate) fn apply_all(&mut self, changes: &[Change]) {
        for change in changes {
            let start = usize::try_from(change.spec.offset_bytes).unwrap();
            let end = start + usize::try_from(change.spec.len_bytes).unwrap();
            if change.spec.kind.has_data() {
                self.0[start..end].copy_from_slice(&change.payload);
            } else if change.spec.kind.zeroes() {
                self.0[start..end].fill(0);
            }
        }
    }
}
