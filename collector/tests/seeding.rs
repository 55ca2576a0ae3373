//! An image that a person brings becomes the beginning of a volume.
#![allow(clippy::unwrap_used, reason = "tests")]

mod ingest_support;

use std::path::{Path, PathBuf};

use ingest_support::{Agent, Daemon, Model, VOLUME_BYTES, hello, resync, write};
use tidemark_collector::control::api::{
    ErrorKind, Job, JobState, NewRestore, NewSeed, ProtectionState,
};
use tidemark_collector::control::client::{Client, ClientError};
use tidemark_wire::session::{Hello, RefuseReason};
use tidemark_wire::{RecordKind, Seq};

/// An image with data, holes and a last byte; also as the disk that it is.
fn image(dir: &Path) -> (PathBuf, Model) {
    let mut model = Model::new();
    model.apply_all(&[
        write(4096, vec![7; 200_000]),
        write(1_200_000, vec![9; 4096]),
        write(VOLUME_BYTES - 1, vec![3]),
    ]);
    let path = dir.join("brought.img");
    std::fs::write(&path, &model.0).unwrap();
    (path, model)
}

fn refused(answer: Result<Job, ClientError>) -> (ErrorKind, String) {
    match answer.unwrap_err() {
        ClientError::Refused(info) => {
            (info.kind, format!("{}; {}", info.message, info.hint.unwrap_or_default()))
        }
        other => panic!("{other}"),
    }
}

fn finished(client: &Client, mut job: Job) -> Job {
    while job.state == JobState::Running {
        std::thread::yield_now();
        job = client.job(job.id).unwrap();
    }
    job
}

fn seed(client: &Client, image: &Path) -> Result<Job, ClientError> {
    client.create_seed("disk1", &NewSeed { image: image.to_owned() })
}

fn reads_as(client: &Client, dir: &Path, at: &str) -> Vec<u8> {
    let target = dir.join("out.img");
    let new = NewRestore {
        volume: "disk1".into(),
        at: at.into(),
        target: target.clone(),
        format: None,
        overwrite: true,
        restart: false,
        erase: false,
    };
    let job = finished(client, client.create_restore(&new).unwrap());
    assert_eq!(job.state, JobState::Done, "{:?}", job.error);
    std::fs::read(target).unwrap()
}

#[test]
fn a_volume_begins_with_an_image_and_its_agent_sends_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let (image, mut model) = image(dir.path());
    let daemon = Daemon::start(dir.path());
    let client = daemon.client();
    // A copy that was begun the usual way; what it has sent is of no use.
    let mut first = Agent::open(&daemon.ingest, &hello(1));
    first.send_changes(&[resync(RecordKind::ResyncBegin), write(0, vec![1; 100_000])]);
    first.wait_durable();
    let before = first.welcome.clone().unwrap();
    assert!(!before.seeded);

    let job = finished(&client, seed(&client, &image).unwrap());
    assert_eq!(job.state, JobState::Done, "{:?}", job.error);
    assert_eq!((job.kind.as_str(), job.done_bytes), ("seed", VOLUME_BYTES));
    assert_eq!(first.wait_refusal().reason, RefuseReason::Unavailable);

    let known =
        Hello { journal: before.journal, released: first.last, newest: first.last, ..hello(1) };
    let mut agent = Agent::open(&daemon.ingest, &known);
    let welcome = agent.welcome.clone().unwrap();
    assert!(welcome.seeded && welcome.journal != before.journal);
    assert_eq!((welcome.durable, welcome.span_open), (Seq(0), Seq(0)));
    let changes = [
        resync(RecordKind::ResyncBegin),
        write(8192, vec![5; 4096]),
        resync(RecordKind::ResyncEnd),
    ];
    agent.send_changes(&changes);
    model.apply_all(&changes);
    agent.wait_durable();
    assert!(reads_as(&client, dir.path(), "latest") == model.0);

    let (kind, text) = refused(seed(&client, &image));
    assert_eq!(kind, ErrorKind::Conflict);
    assert!(text.contains("has states that can be opened"), "{text}");
    drop(agent);
    daemon.stop();
    let daemon = Daemon::start(dir.path());
    assert!(reads_as(&daemon.client(), dir.path(), "latest") == model.0);
    let agent = Agent::open(&daemon.ingest, &hello(1));
    assert!(!agent.welcome.clone().unwrap().seeded, "there are records now");
    daemon.stop();
}

#[test]
fn images_that_are_not_of_the_disk_are_refused_and_the_volume_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (image, _) = image(dir.path());
    let daemon = Daemon::start(dir.path());
    let client = daemon.client();
    let mut agent = Agent::open(&daemon.ingest, &hello(1));
    agent.send_changes(&[resync(RecordKind::ResyncBegin)]);
    agent.wait_durable();
    let (short, qcow2) = (dir.path().join("short.img"), dir.path().join("disk.qcow2"));
    std::fs::write(&short, b"short").unwrap();
    std::fs::write(&qcow2, b"QFI\xfb and so on").unwrap();
    for (path, kind, words) in [
        (short.as_path(), ErrorKind::Conflict, "has 5 bytes, volume disk1 has 2097152"),
        (&qcow2, ErrorKind::Invalid, "qemu-img convert -O raw"),
        (&dir.path().join("none.img"), ErrorKind::NotFound, "none.img"),
        (Path::new("relative.img"), ErrorKind::Invalid, "relative.img"),
        (dir.path(), ErrorKind::Invalid, "neither a file nor"),
    ] {
        let (got, text) = refused(seed(&client, path));
        assert_eq!(got, kind, "{text}");
        assert!(text.contains(words), "{text}");
    }
    // The session goes on.
    agent.send_changes(&[write(0, vec![4; 512]), resync(RecordKind::ResyncEnd)]);
    agent.wait_durable();
    assert_ne!(client.volume("disk1").unwrap().state, ProtectionState::Disconnected);
    assert!(std::fs::metadata(image).unwrap().len() == VOLUME_BYTES);
    daemon.stop();
}
