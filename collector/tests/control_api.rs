//! The control API with a whole daemon: points, states, exports, restores, and errors that say
//! what to do.
#![allow(clippy::unwrap_used, reason = "tests")]

mod ingest_support;

use std::io::{Read, Seek, SeekFrom, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use ingest_support::{
    Agent, Daemon, Model, VOLUME_BYTES, change, config, hello, resync, time_of, write,
};
use tidemark_collector::control::api::{
    ErrorKind, Job, JobState, NewExport, NewPoint, NewRestore, PointFilter, PointKind, Severity,
};
use tidemark_collector::control::client::{Client, ClientError};
use tidemark_collector::daemon;
use tidemark_wire::body::Bookmark;
use tidemark_wire::frame::FrameKind;
use tidemark_wire::{RecordKind, Seq};

fn refused<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> (ErrorKind, String) {
    match answer.unwrap_err() {
        ClientError::Refused(info) => {
            (info.kind, format!("{}; {}", info.message, info.hint.unwrap_or_default()))
        }
        other => panic!("{other}"),
    }
}

/// A daemon with a copied volume and a few writes on top; the last state with what it reads as.
fn with_history(dir: &Path) -> (Daemon, Agent, Vec<(Seq, Model)>) {
    let daemon = Daemon::start(dir);
    let mut agent = Agent::open(&daemon.ingest, &hello(1));
    let mut model = Model::new();
    agent.copy(&mut model);
    let mut states = vec![(agent.last, model.clone())];
    for round in 1..4u8 {
        let changes = [
            write(300_000 * u64::from(round) + 100, vec![round; 70_000]),
            change(RecordKind::WriteZeroes, 10_000 * u64::from(round), 8192, Vec::new()),
        ];
        model.apply_all(&changes);
        states.push((agent.send_changes(&changes), model.clone()));
    }
    agent.wait_durable();
    (daemon, agent, states)
}

fn finished(client: &Client, mut job: Job) -> Job {
    while job.state == JobState::Running {
        std::thread::yield_now();
        job = client.job(job.id).unwrap();
    }
    job
}

/// Places the bookmark that the collector asks for.
fn place_bookmark(agent: &mut Agent) -> Bookmark {
    loop {
        let (kind, body) = agent.receive().unwrap();
        if kind == FrameKind::BookmarkRequest {
            agent.send_changes(&[change(RecordKind::Bookmark, 0, 0, body.clone())]);
            agent.wait_durable();
            return Bookmark::decode(&body).unwrap();
        }
    }
}

#[test]
fn a_point_is_listed_when_it_is_durable_and_found_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, mut agent, states) = with_history(dir.path());
    let client = daemon.client();
    let new = NewPoint { label: "before upgrade".into() };
    let point = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| daemon.client().create_point("disk1", &new).unwrap());
        place_bookmark(&mut agent);
        waiting.join().unwrap()
    });
    assert_eq!((point.seq, point.kind), (agent.last.0, PointKind::Bookmark));
    agent.send_changes(&[write(0, vec![9; 512])]);
    agent.wait_durable();

    let (kind, text) = refused(client.create_point("disk1", &new));
    assert_eq!(kind, ErrorKind::Conflict, "{text}");
    let bad = NewPoint { label: "5m".into() };
    assert_eq!(refused(client.create_point("disk1", &bad)).0, ErrorKind::Invalid);

    drop(agent);
    daemon.stop();
    // The catalog is written anew from the journal.
    std::fs::remove_file(dir.path().join("data/catalog.sqlite")).unwrap();
    let daemon = Daemon::start(dir.path());
    let client = daemon.client();
    let list = client.points("disk1", &PointFilter::default()).unwrap();
    assert_eq!(list.points, std::slice::from_ref(&point));
    assert_eq!(list.latest.unwrap().seq, point.seq + 3);
    assert_eq!(list.oldest.unwrap().seq, states[0].0.0);
    for at in ["before upgrade", point.id.as_str(), &format!("seq:{}", point.seq)] {
        assert_eq!(client.resolve("disk1", at).unwrap().seq, point.seq, "{at}");
    }
    let (kind, text) = refused(client.create_point("disk1", &NewPoint { label: "x".into() }));
    assert_eq!(kind, ErrorKind::Unavailable);
    assert!(text.contains("no agent of volume disk1 is connected"), "{text}");
    daemon.stop();
}

#[test]
fn states_and_volumes_that_do_not_exist_name_the_nearest() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, _agent, states) = with_history(dir.path());
    let client = daemon.client();
    let last = states.last().unwrap().0;
    let time = jiff::Timestamp::from_microsecond(i64::try_from(time_of(last).0).unwrap()).unwrap();
    assert_eq!(client.resolve("disk1", &time.to_string()).unwrap().seq, last.0);
    for (volume, at, words) in [
        ("disk2", "latest", "did you mean disk1?"),
        ("disk1", "seq:999999", "the newest state is seq:27"),
        ("disk1", "seq:4", "after it seq:9"),
        ("disk1", "lates", "did you mean latest?"),
        ("disk1", "2020-01-01T00:00:00Z", "the oldest state is seq:9"),
    ] {
        let (kind, text) = refused(client.resolve(volume, at));
        assert_eq!(kind, ErrorKind::NotFound, "{text}");
        assert!(text.contains(words), "{text}");
    }
    let segments = client.segments("disk1").unwrap();
    assert_eq!((segments.len(), segments[0].records, segments[0].sealed), (1, 9, false));
    let page = client.records("disk1", &segments[0].name, 0, 4).unwrap();
    assert_eq!((page.records.len(), page.next_after, page.damage), (4, Some(12), None));
    let page = client.records("disk1", &segments[0].name, 12, 1000).unwrap();
    assert_eq!((page.records.len(), page.next_after), (5, None));
    assert_eq!(refused(client.records("disk1", "../manifest.json", 0, 1)).0, ErrorKind::NotFound);
    daemon.stop();
}

#[test]
fn a_restore_is_the_state_sparse_and_never_by_halves() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, _agent, states) = with_history(dir.path());
    let client = daemon.client();
    let target = dir.path().join("out.img");
    for (seq, model) in &states {
        let new = NewRestore {
            volume: "disk1".into(),
            at: format!("seq:{seq}"),
            target: target.clone(),
            format: None,
            overwrite: true,
            restart: false,
            erase: false,
        };
        let job = finished(&client, client.create_restore(&new).unwrap());
        assert_eq!(job.state, JobState::Done, "{:?}", job.error);
        assert!(std::fs::read(&target).unwrap() == model.0, "state {seq}");
    }
    assert!(std::fs::metadata(&target).unwrap().blocks() * 512 < VOLUME_BYTES / 2, "sparse");
    assert!(!dir.path().join("out.img.partial").exists());

    let new = |target: &Path, overwrite| NewRestore {
        volume: "disk1".into(),
        at: "latest".into(),
        target: target.to_owned(),
        format: None,
        overwrite,
        restart: false,
        erase: false,
    };
    let plan = client.plan_restore(&new(&dir.path().join("disk.img"), false)).unwrap();
    assert_eq!((plan.destroys, plan.resumes_at_bytes, plan.total_bytes), (None, 0, VOLUME_BYTES));
    for (path, kind, words) in [
        (target.as_path(), ErrorKind::Conflict, "exists"),
        (&dir.path().join("none/out.img"), ErrorKind::NotFound, "none"),
        (Path::new("relative.img"), ErrorKind::Invalid, "relative.img"),
        (dir.path(), ErrorKind::Conflict, "not a plain file"),
    ] {
        let (got, text) = refused(client.create_restore(&new(path, false)));
        assert_eq!(got, kind, "{text}");
        assert!(text.contains(words), "{text}");
    }
    let job = client.jobs().unwrap().pop().unwrap();
    assert_eq!(refused(client.cancel_job(job.id)).0, ErrorKind::Conflict);
    assert_eq!(refused(client.job(999)).0, ErrorKind::NotFound);
    let events = client.events(0).unwrap();
    assert!(events.iter().any(|event| event.message.contains("was restored to")), "{events:?}");
    assert!(events.iter().all(|event| event.severity == Severity::Info), "{events:?}");
    daemon.stop();
}

fn read_all<IO: Read + Write>(mut stream: IO, name: &str) -> Vec<u8> {
    let export = nbd::client::handshake(&mut stream, name.as_bytes()).unwrap();
    let mut client = nbd::client::NbdClient::new(&mut stream, &export);
    let mut bytes = vec![0; usize::try_from(export.size).unwrap()];
    client.seek(SeekFrom::Start(0)).unwrap();
    for chunk in bytes.chunks_mut(128 << 10) {
        client.read_exact(chunk).unwrap();
    }
    assert!(client.seek(SeekFrom::Start(0)).is_ok() && client.write(&[1; 512]).is_err());
    bytes
}

#[test]
fn an_export_is_the_state_while_the_journal_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, mut agent, states) = with_history(dir.path());
    let client = daemon.client();
    let (seq, model) = &states[1];
    let socket = dir.path().join("export.sock");
    let new = |listen: String| NewExport {
        volume: "disk1".into(),
        at: format!("seq:{seq}"),
        listen: Some(listen),
        ..NewExport::default()
    };
    let unix = client.create_export(&new(format!("unix:{}", socket.display()))).unwrap();
    let tcp = client.create_export(&new("tcp:127.0.0.1:0".into())).unwrap();
    agent.send_changes(&[write(0, vec![0xee; 100_000])]);
    agent.wait_durable();
    assert_eq!((unix.state.seq, unix.size_bytes), (seq.0, VOLUME_BYTES));
    assert!(
        read_all(UnixStream::connect(&socket).unwrap(), unix.nbd_name.as_deref().unwrap())
            == model.0
    );
    let address = tcp.listen.as_deref().unwrap().strip_prefix("tcp:").unwrap();
    assert!(read_all(TcpStream::connect(address).unwrap(), "") == model.0);
    copied_by_nbdcopy(unix.uri.as_deref().unwrap(), &dir.path().join("copied.img"), model);
    assert_eq!(client.exports().unwrap().len(), 2);

    for (listen, kind) in [
        ("tcp:0.0.0.0:0".to_owned(), ErrorKind::Invalid),
        (format!("unix:{}", socket.display()), ErrorKind::Conflict),
        ("unix:relative".to_owned(), ErrorKind::Invalid),
        ("nonsense".to_owned(), ErrorKind::Invalid),
    ] {
        let (got, text) = refused(client.create_export(&new(listen)));
        assert_eq!(got, kind, "{text}");
    }
    client.delete_export(unix.id, false, false).unwrap();
    assert!(!socket.exists());
    assert_eq!(refused(client.delete_export(unix.id, false, false)).0, ErrorKind::NotFound);
    // The other one goes away with the daemon, until the next one.
    daemon.stop();
    assert!(TcpStream::connect(address).is_err());
}

fn copied_by_nbdcopy(uri: &str, to: &Path, model: &Model) {
    match std::process::Command::new("nbdcopy").arg(uri).arg(to).status() {
        Ok(status) => {
            assert!(status.success());
            assert!(std::fs::read(to).unwrap() == model.0, "nbdcopy");
        }
        Err(error) => eprintln!("SKIPPED: nbdcopy: {error}"),
    }
}

#[test]
fn wrong_requests_are_answered_in_the_api_s_own_form() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let mode = std::fs::metadata(&daemon.control).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for (request, status) in [
        ("GET /v1/nothing HTTP/1.1\r\n", "404"),
        ("DELETE /v1/status HTTP/1.1\r\n", "400"),
        ("GET /v1/volumes/x HTTP/1.1\r\n", "404"),
        ("GET /v1/jobs/x HTTP/1.1\r\n", "400"),
        ("GET /v1/events?before=1 HTTP/1.1\r\n", "400"),
        (
            "POST /v1/exports HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 2\r\n",
            "400",
        ),
    ] {
        let mut stream = UnixStream::connect(&daemon.control).unwrap();
        let body = if request.starts_with("POST") { "{}" } else { "" };
        let text = format!("{request}host: x\r\nconnection: close\r\n\r\n{body}");
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        let body = answer.split("\r\n\r\n").nth(1).unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert!(body["error"]["message"].is_string(), "{answer}");
    }
    daemon.stop();
}

#[test]
fn what_is_wrong_outside_is_said_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let start = |config| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let run = daemon::run(config, std::future::pending(), |_| panic!("it must not start"));
        runtime.block_on(run).unwrap_err().to_string()
    };
    let text = start(config(dir.path()));
    assert!(
        text.contains(&format!("another collector (process {})", std::process::id())),
        "{text}"
    );

    let mut other = config(dir.path());
    other.data_dir = dir.path().join("other");
    let text = start(other.clone());
    assert!(text.contains("control.sock"), "{text}");
    other.control_socket = dir.path().join("other.sock");
    let text = start(other.clone());
    assert!(text.contains("another program listens there"), "{text}");
    other.free_bytes_min = u64::MAX;
    assert!(start(other.clone()).contains("free_bytes_min"));
    other.data_dir = dir.path().join("file");
    std::fs::write(&other.data_dir, b"x").unwrap();
    assert!(start(other).contains("file"));
    assert!(!dir.path().join("other.sock").exists());
    daemon.stop();
}

#[test]
fn a_volume_that_is_damaged_or_gone_is_named_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    for volume in 1..=3 {
        let mut agent = Agent::open(&daemon.ingest, &hello(volume));
        agent.send_changes(&[resync(RecordKind::ResyncBegin), resync(RecordKind::ResyncEnd)]);
        agent.wait_durable();
    }
    daemon.stop();
    let volumes = dir.path().join("data/volumes");
    let of = |volume: u8| volumes.join(hello(volume).volume.to_string());
    let manifest = of(2).join("manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap().replace("disk2", "disk4");
    std::fs::write(&manifest, text).unwrap();
    std::fs::remove_dir_all(of(3)).unwrap();

    let daemon = Daemon::start(dir.path());
    let client = daemon.client();
    let mut agent = Agent::connect(&daemon.ingest);
    agent.say_hello(&hello(2));
    assert!(agent.wait_refusal().text.contains("checksum"));
    let mut agent = Agent::open(&daemon.ingest, &hello(1));
    agent.send_changes(&[write(0, vec![1; 512])]);
    agent.wait_durable();
    let names: Vec<_> = client.volumes().unwrap().into_iter().map(|one| one.name).collect();
    assert_eq!(names, ["disk1"]);
    let critical: Vec<String> = client
        .events(0)
        .unwrap()
        .into_iter()
        .filter(|event| event.severity == Severity::Critical)
        .map(|event| event.message)
        .collect();
    assert!(critical.iter().any(|text| text.contains("is damaged: checksum")), "{critical:?}");
    assert!(critical.iter().any(|text| text.contains("not in the data directory")), "{critical:?}");
    daemon.stop();
}
