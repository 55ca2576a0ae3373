//! The daemon as a process: signals, exit status, the service manager, a kill in the middle.
#![allow(clippy::unwrap_used, reason = "tests")]

mod ingest_support;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use ingest_support::{Agent, Model, hello, write};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tidemark_collector::control::client::Client;
use tidemark_wire::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidemark-collector");

struct Process {
    child: Child,
    notify: UnixDatagram,
}

impl Process {
    fn start(dir: &Path) -> Self {
        let text = format!(
            "data_dir = '{0}/data'\nlisten = ['unix:{0}/run/ingest.sock', 'tcp:127.0.0.1:0']\n\
             control_socket = '{0}/run/control.sock'\nfree_bytes_min = 0\n",
            dir.display()
        );
        std::fs::write(dir.join("collector.toml"), text).unwrap();
        let socket = dir.join("notify.sock");
        let _ = std::fs::remove_file(&socket);
        let notify = UnixDatagram::bind(&socket).unwrap();
        notify.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let child = Command::new(PROGRAM)
            .arg("--config")
            .arg(dir.join("collector.toml"))
            .env("NOTIFY_SOCKET", &socket)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let process = Self { child, notify };
        assert_eq!(process.told(), "READY=1");
        process
    }

    fn told(&self) -> String {
        let mut bytes = [0; 64];
        loop {
            match self.notify.recv(&mut bytes) {
                Ok(len) => return String::from_utf8_lossy(&bytes[..len]).into_owned(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("the daemon has said nothing: {error}"),
            }
        }
    }

    /// Ends it by a signal; returns its status and what it has logged.
    fn end(mut self, signal: Signal) -> (Option<i32>, String) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
        if signal != Signal::SIGKILL {
            assert_eq!(self.told(), "STOPPING=1");
        }
        let mut log = String::new();
        let lines = BufReader::new(self.child.stderr.take().unwrap()).lines();
        lines.for_each(|line| log.push_str(&(line.unwrap() + "\n")));
        (self.child.wait().unwrap().code(), log)
    }
}

impl Drop for Process {
    /// A test that fails leaves no daemon behind.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[test]
fn a_kill_loses_nothing_that_was_acknowledged_and_a_stop_is_clean() {
    let dir = tempfile::tempdir().unwrap();
    let ingest = dir.path().join("run/ingest.sock");
    let mut model = Model::new();
    let mut durable = None;
    for round in 0..3 {
        let process = Process::start(dir.path());
        let mut agent = Agent::open(&ingest, &hello(1));
        if let Some(durable) = durable {
            assert!(agent.welcome.clone().unwrap().durable >= durable);
        } else {
            agent.copy(&mut model);
        }
        for _ in 0..20 {
            agent.send_changes(&[write(round * 4096, vec![1; 20_000])]);
        }
        agent.wait_durable();
        durable = Some(agent.last);
        agent.send_changes(&[write(0, vec![2; 20_000])]);
        process.end(Signal::SIGKILL);
    }
    let process = Process::start(dir.path());
    let agent = Agent::open(&ingest, &hello(1));
    assert!(agent.welcome.clone().unwrap().durable >= durable.unwrap());
    let (status, log) = process.end(Signal::SIGTERM);
    assert_eq!(status, Some(0), "{log}");
    assert!(log.contains("stopped") && !log.contains('\x1b'), "{log}");
    assert_eq!(std::fs::read_dir(dir.path().join("run")).unwrap().count(), 0, "no socket is left");
    inspected(&dir.path().join("data/volumes").join(hello(1).volume.to_string()).join("journal"));
}

fn inspected(journal: &Path) {
    let segments: Vec<_> = std::fs::read_dir(journal).unwrap().collect();
    assert!(!segments.is_empty());
    for segment in segments {
        let path = segment.unwrap().path();
        let Output { status, stdout, stderr } =
            Command::new(PROGRAM).arg("inspect").arg(&path).output().unwrap();
        let text = String::from_utf8_lossy(&stdout);
        assert!(status.success(), "{text}{}", String::from_utf8_lossy(&stderr));
        assert!(text.contains("write") && text.contains("records"), "{text}");
    }
}

#[test]
fn a_peer_on_tcp_that_speaks_nonsense_is_told_and_logged_once() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path());
    let client = Client::new(dir.path().join("run/control.sock")).unwrap();
    let listen = client.status().unwrap().listen;
    let address = listen.iter().find_map(|one| one.strip_prefix("tcp:")).unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(&[b'x'; 4096]).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let (_, kind) = FrameHeader::decode(&answer[..FRAME_HEADER_BYTES]).unwrap();
    assert_eq!(kind, FrameKind::Refuse);
    let (status, log) = process.end(Signal::SIGINT);
    assert_eq!(status, Some(0), "{log}");
    let lines = log.lines().filter(|line| line.contains("does not speak this protocol"));
    let lines: Vec<_> = lines.collect();
    assert!(lines.len() == 1 && lines[0].contains("127.0.0.1:"), "{log}");
}

#[test]
fn wrong_usage_is_status_two_and_failure_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let run = |text: &str| {
        let path = dir.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        let run = Command::new(PROGRAM).arg("--config").arg(&path).output().unwrap();
        (run.status.code(), String::from_utf8_lossy(&run.stderr).into_owned())
    };
    let (status, text) = run("\nlisten = ['tcp:0.0.0.0:7440']");
    assert_eq!(status, Some(2));
    assert!(text.contains("c.toml:2: listen: tcp:0.0.0.0:7440 can be reached"), "{text}");
    let (status, text) = run("data_dri = '/x'");
    assert_eq!(status, Some(2));
    assert!(text.contains("did you mean data_dir?"), "{text}");
    let (status, text) = run(&format!(
        "data_dir = '/proc/nothing'\ncontrol_socket = '{0}/c'\nlisten = ['unix:{0}/i']",
        dir.path().display()
    ));
    assert_eq!(status, Some(1));
    assert!(text.contains("/proc/nothing"), "{text}");
    let status =
        |arguments: &[&str]| Command::new(PROGRAM).args(arguments).output().unwrap().status.code();
    assert_eq!(status(&["walk"]), Some(2));
    assert_eq!(status(&["--config", "/nothing.toml"]), Some(2));
    assert_eq!(status(&["inspect", "/nothing.seg"]), Some(1));
}
