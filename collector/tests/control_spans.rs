//! What lies between a gap or the begin of a copy and its end is offered by no command: not as an
//! export, a clone, a restore, a resolved state or a point, and no merge ends in it.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "tests wait in real time")]

mod ingest_support;

use std::path::Path;
use std::time::{Duration, Instant};

use ingest_support::{Agent, Daemon, Model, change, hello, resync, time_of, write};
use tidemark_collector::control::api::{NewExport, NewPoint, NewPolicy, NewRestore, PointFilter};
use tidemark_collector::control::client::Client;
use tidemark_wire::body::{Bookmark, GapReason, PointKind};
use tidemark_wire::record::RecordSpec;
use tidemark_wire::{PointId, RecordKind, Seq};

fn gap() -> ingest_support::Change {
    let mut gap = change(RecordKind::Gap, 0, 0, Vec::new());
    gap.spec = RecordSpec { aux: GapReason::RingFull as u64, ..gap.spec };
    gap
}

fn bookmark(label: &str) -> ingest_support::Change {
    let bookmark = Bookmark {
        id: PointId::from_bytes([0x77; 16]),
        kind: PointKind::Person,
        label: label.into(),
        reason: String::new(),
    };
    let mut body = Vec::new();
    bookmark.encode(&mut body);
    change(RecordKind::Bookmark, 0, 0, body)
}

/// Every command that opens a state; the words of each refusal.
fn refused(client: &Client, dir: &Path, at: &str) {
    let socket = format!("unix:{}/none.sock", dir.display());
    for writable in [false, true] {
        let new = NewExport {
            volume: "disk1".into(),
            at: at.into(),
            listen: Some(socket.clone()),
            writable,
            ..NewExport::default()
        };
        client.create_export(&new).expect_err(at);
    }
    let restore = NewRestore {
        volume: "disk1".into(),
        at: at.into(),
        target: dir.join("none.img"),
        format: None,
        overwrite: false,
        restart: false,
        erase: false,
    };
    client.plan_restore(&restore).expect_err(at);
    client.create_restore(&restore).expect_err(at);
    client.resolve("disk1", at).expect_err(at);
    assert!(!dir.join("none.img").exists());
}

#[test]
fn no_command_offers_what_lies_in_a_span() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let client = daemon.client();
    let mut agent = Agent::open(&daemon.ingest, &hello(1));
    agent.copy(&mut Model::new());
    let before = agent.send_changes(&[write(0, vec![1; 4096])]);
    let begin = agent.send_changes(&[gap()]);
    agent.send_changes(&[resync(RecordKind::ResyncBegin), write(4096, vec![2; 4096])]);
    let marked = agent.send_changes(&[bookmark("in the middle")]);
    agent.wait_durable();

    // While it is open.
    for seq in begin.0..=agent.last.0 {
        refused(&client, dir.path(), &format!("seq:{seq}"));
    }
    refused(&client, dir.path(), "in the middle");
    assert_eq!(client.resolve("disk1", "latest").unwrap().seq, before.0);
    let error = client.create_point("disk1", &NewPoint { label: "now".into() }).unwrap_err();
    assert!(error.to_string().contains("is being copied"), "{error}");
    let points = client.points("disk1", &PointFilter::default()).unwrap().points;
    assert_eq!((points[0].seq, points[0].offered), (marked.0, false));

    // After it.
    let end = agent.send_changes(&[resync(RecordKind::ResyncEnd)]);
    agent.send_changes(&[write(8192, vec![3; 4096])]);
    agent.wait_durable();
    for seq in begin.0..end.0 {
        refused(&client, dir.path(), &format!("seq:{seq}"));
        let time = jiff::Timestamp::from_microsecond(time_of(Seq(seq)).0.cast_signed()).unwrap();
        refused(&client, dir.path(), &time.to_string());
    }
    refused(&client, dir.path(), "in the middle");
    assert_eq!(client.resolve("disk1", &format!("seq:{}", end.0)).unwrap().seq, end.0);

    // A merge stops before it or goes past it.
    let policy = NewPolicy { window_seconds: Some(1), ..NewPolicy::default() };
    client.set_policy("disk1", &policy).unwrap();
    let patience = Instant::now() + Duration::from_secs(5);
    while Instant::now() < patience {
        let first = client.volume("disk1").unwrap().first_seq.unwrap();
        assert!(!(begin.0..end.0).contains(&first), "the oldest state {first} lies in a span");
        std::thread::sleep(Duration::from_millis(50));
    }
    daemon.stop();
}
