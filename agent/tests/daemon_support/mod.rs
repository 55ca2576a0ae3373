//! The agent as a process, and a collector that takes everything and remembers what came.
#![allow(unreachable_pub, dead_code, reason = "shared by several test programs")]

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tidemark_agent::shipper::link::receive_frame;
use tidemark_wire::compare::{Compare, Differ};
use tidemark_wire::frame::{self, FrameKind, RecordsBody};
use tidemark_wire::session::{Ack, Hello, Lineage, Welcome};
use tidemark_wire::{Epoch, JournalId, RecordKind, Seq, Timeline, VolumeId, WallMicros};

pub const PATIENCE: Duration = Duration::from_secs(30);

/// Polls until `found` gives something.
pub fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a collector remembers of one volume.
#[derive(Default, Clone)]
pub struct Copy {
    durable: u64,
    span_open: u64,
    /// Copies and comparisons that began.
    pub copies: usize,
    /// Gaps, by their reason's number.
    pub gaps: Vec<u64>,
    pub writes: usize,
    /// Nodes whose hashes were compared.
    pub compared_nodes: usize,
}

type Copies = Arc<Mutex<HashMap<VolumeId, Copy>>>;

/// Acknowledges everything at once.
pub struct Collector {
    copies: Copies,
}

impl Collector {
    pub fn listen(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let copies = Copies::default();
        let kept = Arc::clone(&copies);
        // The thread ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, copies) = (stream.unwrap(), Arc::clone(&kept));
                // An agent that is killed ends its session at any place.
                std::thread::spawn(move || {
                    let _ended = session(stream, &copies);
                });
            }
        });
        Self { copies }
    }

    pub fn copy_of(&self, id: &str) -> Copy {
        self.copies.lock().unwrap().get(&id.parse().unwrap()).cloned().unwrap_or_default()
    }
}

fn session(mut stream: UnixStream, copies: &Copies) -> Option<()> {
    let mut body = Vec::new();
    if receive_frame(&mut stream, &mut body).ok()? != FrameKind::Hello {
        return None;
    }
    let hello = Hello::decode(&body).ok()?;
    let known = copies.lock().unwrap().entry(hello.volume).or_default().clone();
    let welcome = Welcome {
        journal: JournalId::from_bytes([5; 16]),
        timeline: Timeline(1),
        epoch: Epoch(hello.epoch.0 + 1),
        durable: Seq(known.durable),
        span_open: Seq(known.span_open),
        window_bytes: 1 << 20,
        seeded: false,
        last_time: WallMicros(0),
        size_bytes: hello.size_bytes,
        lineage: Lineage::Same,
        compare: false,
        unsure: Vec::new(),
    };
    send(&mut stream, FrameKind::Welcome, |out| welcome.encode(out))?;
    loop {
        match receive_frame(&mut stream, &mut body).ok()? {
            FrameKind::Records => {
                let durable = take(copies, hello.volume, &body)?;
                let ack = Ack { durable: durable.into() };
                send(&mut stream, FrameKind::Ack, |out| ack.encode(out))?;
            }
            FrameKind::Compare => {
                let asked = Compare::decode(&body).ok()?;
                let mut copies = copies.lock().unwrap();
                copies.entry(hello.volume).or_default().compared_nodes += asked.nodes.len();
                drop(copies);
                let equal = Differ { id: asked.id, range: asked.range, nodes: Vec::new() };
                send(&mut stream, FrameKind::Differ, |out| equal.encode(out))?;
            }
            FrameKind::Goodbye => return None,
            _ => {}
        }
    }
}

fn take(copies: &Copies, volume: VolumeId, body: &[u8]) -> Option<u64> {
    let mut copies = copies.lock().unwrap();
    let copy = copies.entry(volume).or_default();
    for record in RecordsBody::decode(body).ok()?.records() {
        let record = record.ok()?;
        copy.durable = record.header.seq().0;
        match record.kind {
            RecordKind::Gap => {
                copy.gaps.push(record.header.aux.get());
                copy.span_open = record.header.seq().0;
            }
            RecordKind::ResyncBegin => {
                copy.copies += 1;
                copy.span_open = record.header.seq().0;
            }
            RecordKind::ResyncEnd => copy.span_open = 0,
            RecordKind::Write => copy.writes += 1,
            _ => {}
        }
    }
    Some(copy.durable)
}

fn send(stream: &mut UnixStream, kind: FrameKind, encode: impl FnOnce(&mut Vec<u8>)) -> Option<()> {
    let (mut body, mut out) = (Vec::new(), Vec::new());
    encode(&mut body);
    frame::encode(kind, &body, &mut out);
    stream.write_all(&out).ok()
}

/// A place for an agent, and its configuration.
pub struct Place {
    dir: TempDir,
    rings: TempDir,
    pub volumes: Vec<String>,
    /// A table of the configuration, or none.
    pub table: String,
}

impl Place {
    pub fn new(volumes: &[&str]) -> Self {
        let place = Self {
            dir: tempfile::tempdir().unwrap(),
            rings: tempfile::tempdir_in("/dev/shm").unwrap(),
            volumes: volumes.iter().map(|&name| name.into()).collect(),
            table: String::new(),
        };
        for name in volumes {
            place.make_backing(name);
        }
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn backing(&self, volume: &str) -> PathBuf {
        self.path(&format!("{volume}.disk"))
    }

    /// The change ring of the volume with this identity.
    pub fn ring(&self, id: &str) -> PathBuf {
        self.rings.path().join(format!("{id}.ring"))
    }

    pub fn make_backing(&self, volume: &str) {
        File::create(self.backing(volume)).unwrap().set_len(8 << 20).unwrap();
    }

    pub fn write_config(&self) -> PathBuf {
        let dir = self.dir.path().display();
        let mut text = format!(
            "state_dir = '{dir}/state'\nring_dir = '{}'\ncollector = 'unix:{dir}/collector'\n\
             control_socket = '{dir}/agent.sock'\nworkers = 1\n[nbd]\n\
             listen = ['unix:{dir}/nbd']\n{}\n",
            self.rings.path().display(),
            self.table
        );
        for name in &self.volumes {
            let backing = self.backing(name);
            text += &format!(
                "[[volume]]\nname = '{name}'\nbacking = '{}'\nring_mib = 4\n",
                backing.display()
            );
        }
        let path = self.path("agent.toml");
        fs::write(&path, text).unwrap();
        path
    }

    /// The agent's program with these arguments, to its end.
    pub fn ask(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark-agent"));
        command.args(arguments).env("TIDEMARK_AGENT_SOCKET", self.path("agent.sock"));
        command.output().unwrap()
    }

    /// The volume, as the running agent lists it.
    pub fn status(&self, volume: &str) -> Option<Value> {
        let listed = self.ask(&["list", "--json"]);
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        let volumes: Vec<Value> = serde_json::from_slice(&listed.stdout).unwrap();
        volumes.into_iter().find(|found| found["name"] == volume)
    }

    pub fn wait_whole(&self, volume: &str) -> Value {
        wait_for(&format!("{volume} whole"), || {
            self.status(volume).filter(|found| found["standing"]["state"] == "whole")
        })
    }

    /// A client of the volume's disk.
    pub fn client(&self, volume: &str) -> nbd::client::NbdClient<UnixStream> {
        let mut socket = UnixStream::connect(self.path("nbd")).unwrap();
        let export = nbd::client::handshake(&mut socket, volume.as_bytes()).unwrap();
        nbd::client::NbdClient::new(socket, &export)
    }
}

/// A running agent.
pub struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    /// Starts one and waits until it says that it is ready.
    pub fn start(place: &Place) -> Self {
        let mut agent = Self::spawn(place, "agent.log");
        wait_for("ready", || {
            assert!(agent.child.try_wait().unwrap().is_none(), "it ended: {}", agent.log());
            agent.log().contains("ready:").then_some(())
        });
        agent
    }

    pub fn spawn(place: &Place, log: &str) -> Self {
        Self::spawn_with(place, log, |_| ())
    }

    pub fn spawn_with(place: &Place, log: &str, prepare: impl FnOnce(&mut Command)) -> Self {
        let log = place.path(log);
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark-agent"));
        command.arg("--config").arg(place.write_config());
        command.stderr(File::create(&log).unwrap()).stdin(Stdio::null());
        prepare(&mut command);
        Self { child: command.spawn().unwrap(), log }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
    }

    /// Waits for its end; true when it was a success.
    pub fn ended(&mut self) -> bool {
        wait_for("the agent's end", || self.child.try_wait().unwrap()).success()
    }

    pub fn stop(mut self) -> String {
        self.signal(Signal::SIGTERM);
        assert!(self.ended(), "{}", self.log());
        self.log()
    }

    pub fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        assert!(!self.ended());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
