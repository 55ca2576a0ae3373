//! Exports and clones over restarts of the daemon, and their end.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod ingest_support;

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use ingest_support::{Agent, Daemon, Model, VOLUME_BYTES, hello, write};
use tidemark_collector::control::api::{ErrorKind, ExportInfo, NewExport};
use tidemark_collector::control::client::{Client, ClientError};

fn refused<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> (ErrorKind, String) {
    match answer.unwrap_err() {
        ClientError::Refused(info) => {
            (info.kind, format!("{}; {}", info.message, info.hint.unwrap_or_default()))
        }
        other => panic!("{other}"),
    }
}

/// A daemon with a copied volume, as it then is, and a write behind that state.
fn with_state(dir: &Path) -> (Daemon, u64, Vec<u8>) {
    let daemon = Daemon::start(dir);
    let mut agent = Agent::open(&daemon.ingest, &hello(1));
    let mut model = Model::new();
    agent.copy(&mut model);
    let change = write(70_000, vec![7; 50_000]);
    model.apply_all(std::slice::from_ref(&change));
    let seq = agent.send_changes(&[change]);
    agent.send_changes(&[write(0, vec![0xee; 100_000])]);
    agent.wait_durable();
    (daemon, seq.0, model.0)
}

fn clone_at(dir: &Path, seq: u64, name: &str) -> NewExport {
    NewExport {
        volume: "disk1".into(),
        at: format!("seq:{seq}"),
        listen: Some(format!("unix:{}", dir.join(name).display())),
        writable: true,
        space_bytes: Some(1 << 20),
        ..NewExport::default()
    }
}

fn socket(export: &ExportInfo) -> PathBuf {
    export.listen.as_deref().unwrap().strip_prefix("unix:").unwrap().into()
}

/// Writes through NBD, where there is something to write, and gives the whole disk.
fn through_nbd(export: &ExportInfo, bytes: &[u8], at: u64) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket(export)).unwrap();
    let name = export.nbd_name.as_deref().unwrap();
    let known = nbd::client::handshake(&mut stream, name.as_bytes()).unwrap();
    let mut client = nbd::client::NbdClient::new(&mut stream, &known);
    if !bytes.is_empty() {
        client.seek(SeekFrom::Start(at)).unwrap();
        client.write_all(bytes).unwrap();
    }
    let mut disk = vec![0; usize::try_from(VOLUME_BYTES).unwrap()];
    client.seek(SeekFrom::Start(0)).unwrap();
    disk.chunks_mut(128 << 10).for_each(|chunk| client.read_exact(chunk).unwrap());
    disk
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..200 {
        if is_so() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("{what}: not within 20 s");
}

fn only_export(client: &Client) -> ExportInfo {
    let mut all = client.exports().unwrap();
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

#[test]
fn a_clone_and_an_export_come_back_with_number_place_and_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, seq, state) = with_state(dir.path());
    let client = daemon.client();
    let clone = client.create_export(&clone_at(dir.path(), seq, "clone.sock")).unwrap();
    let tcp = NewExport {
        listen: Some("tcp:127.0.0.1:0".into()),
        writable: false,
        space_bytes: None,
        ..clone_at(dir.path(), seq, "")
    };
    let tcp = client.create_export(&tcp).unwrap();
    assert_eq!(
        (clone.writable, clone.used_bytes, clone.space_bytes),
        (true, Some(0), Some(1 << 20))
    );
    assert!(through_nbd(&clone, &[], 0) == state);
    let mut wanted = state.clone();
    wanted[5000..15_000].fill(3);
    assert!(through_nbd(&clone, &[3; 10_000], 5000) == wanted);
    daemon.stop();
    assert!(!socket(&clone).exists());

    let daemon = Daemon::start(dir.path());
    let client = daemon.client();
    let all = client.exports().unwrap();
    assert_eq!(all.iter().map(|one| one.id).collect::<Vec<_>>(), [clone.id, tcp.id]);
    assert_eq!(all[0].used_bytes, Some(3 * 4096));
    let (before, after) = (&tcp, &all[1]);
    assert_eq!(
        (&before.listen, &before.uri, &before.state),
        (&after.listen, &after.uri, &after.state)
    );
    assert!(through_nbd(&all[0], &[], 0) == wanted);

    let (kind, text) = refused(client.delete_export(clone.id, false, false));
    assert_eq!(kind, ErrorKind::Conflict);
    assert!(text.contains("holds 12288 bytes of its own") && text.contains("--yes"), "{text}");
    let files = dir.path().join(format!("data/clones/{}", clone.id));
    assert!(files.join("overlay.data").exists());
    client.delete_export(clone.id, true, false).unwrap();
    client.delete_export(tcp.id, false, false).unwrap();
    assert_eq!(std::fs::read_dir(files.parent().unwrap()).unwrap().count(), 0, "space is back");
    daemon.stop();
    let daemon = Daemon::start(dir.path());
    assert_eq!(daemon.client().exports().unwrap(), []);
    daemon.stop();
}

#[test]
fn a_full_clone_says_so_to_its_client_and_to_people() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, seq, state) = with_state(dir.path());
    let client = daemon.client();
    let small = NewExport { space_bytes: Some(8192), ..clone_at(dir.path(), seq, "small.sock") };
    let clone = client.create_export(&small).unwrap();
    let mut stream = UnixStream::connect(socket(&clone)).unwrap();
    let known = nbd::client::handshake(&mut stream, b"disk1").unwrap();
    let mut nbd = nbd::client::NbdClient::new(&mut stream, &known);
    nbd.write_all(&[1; 8192]).unwrap();
    nbd.write_all(&[2; 4096]).unwrap_err();
    // The catalog hears of it in its own time; a second event would come right behind.
    let told = || {
        let events = client.events(0).unwrap();
        events.iter().filter(|event| event.message.contains("may hold 8192")).count()
    };
    wait_until("an event", || told() > 0);
    nbd.write_all(&[2; 4096]).unwrap_err();
    assert_eq!(told(), 1);
    let mut wanted = state;
    wanted[..8192].fill(1);
    assert!(through_nbd(&clone, &[], 0) == wanted);
    for wrong in [
        NewExport { writable: false, ..small.clone() },
        NewExport { fuse: true, ..small.clone() },
        NewExport { listen: None, ..small.clone() },
    ] {
        assert_eq!(refused(client.create_export(&wrong)).0, ErrorKind::Invalid);
    }
    let file = NewExport { listen: None, fuse: true, ..small };
    let (kind, text) = refused(client.create_export(&file));
    assert_eq!(kind, ErrorKind::Unavailable);
    assert!(text.contains("set fuse_mount"), "{text}");
    assert_eq!(only_export(&client).id, clone.id, "nothing is left of what was refused");
    daemon.stop();
}

#[test]
fn what_can_t_be_served_again_stays_listed_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, seq, state) = with_state(dir.path());
    let clone = daemon.client().create_export(&clone_at(dir.path(), seq, "clone.sock")).unwrap();
    let mut wanted = state;
    wanted[..10].fill(9);
    assert!(through_nbd(&clone, &[9; 10], 0) == wanted);
    daemon.stop();
    // Somebody else has taken the place meanwhile.
    let taken = std::os::unix::net::UnixListener::bind(socket(&clone)).unwrap();
    let daemon = Daemon::start(dir.path());
    let client = daemon.client();
    let broken = only_export(&client);
    assert_eq!((broken.id, broken.used_bytes), (clone.id, None));
    assert!(broken.problem.unwrap().contains("another process listens there"));
    let (kind, text) = refused(client.delete_export(clone.id, false, false));
    assert!(kind == ErrorKind::Conflict && text.contains("may hold writes"), "{text}");
    drop(taken);
    wait_until("another try", || only_export(&client).problem.is_none());
    assert!(through_nbd(&clone, &[], 0) == wanted);
    daemon.stop();

    // What an ended clone left behind when the daemon died goes at the next start.
    let clones = dir.path().join("data/clones");
    std::fs::rename(clones.join(clone.id.to_string()), clones.join(format!("{}.ended", clone.id)))
        .unwrap();
    std::fs::create_dir(clones.join("77")).unwrap();
    let daemon = Daemon::start(dir.path());
    assert_eq!(daemon.client().exports().unwrap(), []);
    let left: Vec<_> =
        std::fs::read_dir(&clones).unwrap().map(|one| one.unwrap().file_name()).collect();
    assert_eq!(left, ["77"], "a clone that nobody knows is left alone");
    let client = daemon.client();
    wait_until("an event", || {
        let events = client.events(0).unwrap();
        events.iter().any(|event| event.message.contains("the catalog does not know"))
    });
    daemon.stop();
}

#[test]
fn clones_that_a_lost_catalog_does_not_know_stay_beside_new_ones() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, seq, state) = with_state(dir.path());
    let lost = daemon.client().create_export(&clone_at(dir.path(), seq, "lost.sock")).unwrap();
    through_nbd(&lost, &[9; 8192], 0);
    daemon.stop();
    for ending in ["", "-wal", "-shm"] {
        let file = dir.path().join(format!("data/catalog.sqlite{ending}"));
        assert!(!file.exists() || std::fs::remove_file(file).is_ok());
    }

    let daemon = Daemon::start(dir.path());
    let client = daemon.client();
    assert_eq!(client.exports().unwrap(), []);
    let new = client.create_export(&clone_at(dir.path(), seq, "new.sock")).unwrap();
    assert!(new.id > lost.id, "{} is taken", lost.id);
    assert!(through_nbd(&new, &[], 0) == state);
    client.delete_export(new.id, true, false).unwrap();
    assert!(dir.path().join(format!("data/clones/{}/overlay.data", lost.id)).exists());
    daemon.stop();
}
