//! The catalog in files of its own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use tidemark_wire::body::PointKind;
use tidemark_wire::{AgentId, Epoch, JournalId, PointId, Seq, Timeline, VolumeId};

use super::*;
use crate::error::{FailureKind, Severity};
use crate::points::Point;

fn run<T>(test: impl AsyncFnOnce(Catalog) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let catalog = Catalog::open(&dir.path().join(CATALOG_FILE)).await.unwrap();
        let result = test(catalog.clone()).await;
        catalog.close().await;
        result
    })
}

fn point(id: u8, seq: u64) -> Point {
    Point {
        id: PointId::from_bytes([id; 16]),
        kind: PointKind::Person,
        label: format!("p{id}"),
        reason: String::new(),
        seq: Seq(seq),
        time: WallMicros(seq),
    }
}

#[test]
fn points_are_kept_once() {
    run(async |catalog| {
        let (one, other) = (VolumeId::from_bytes([1; 16]), VolumeId::from_bytes([2; 16]));
        catalog.add_points(one, &[point(2, u64::MAX), point(1, 5)]).await.unwrap();
        catalog.add_points(one, &[point(1, 5)]).await.unwrap();
        catalog.add_points(other, &[point(1, 7)]).await.unwrap();
        let seqs: Vec<_> =
            catalog.points(one).await.unwrap().iter().map(|point| point.seq).collect();
        assert_eq!(seqs.len(), 2);
        assert!(seqs.contains(&Seq(u64::MAX)), "all 64 bits come back");
        catalog.replace_points(one, &[point(3, 9)]).await.unwrap();
        assert_eq!(catalog.points(one).await.unwrap(), [point(3, 9)]);
        assert_eq!(catalog.points(other).await.unwrap(), [point(1, 7)]);
    });
}

#[test]
fn points_that_are_no_longer_kept_go() {
    run(async |catalog| {
        let volume = VolumeId::from_bytes([1; 16]);
        let other = VolumeId::from_bytes([2; 16]);
        // The clock has jumped back at the second one.
        let mut points = [point(1, 5), point(2, 7), point(3, 9)];
        points[1].time = WallMicros(1);
        catalog.add_points(volume, &points).await.unwrap();
        catalog.add_points(other, &points).await.unwrap();
        assert_eq!(catalog.points(volume).await.unwrap(), points, "in the order of the stream");
        catalog.trim_points(volume, Seq(7)).await.unwrap();
        assert_eq!(catalog.points(volume).await.unwrap(), points[1..]);
        catalog.forget_volume(volume).await.unwrap();
        assert!(catalog.points(volume).await.unwrap().is_empty());
        assert_eq!(catalog.points(other).await.unwrap(), points);
    });
}

#[test]
fn an_agent_is_forgotten_until_it_comes_again() {
    run(async |catalog| {
        let agent = AgentId::from_bytes([3; 16]);
        let row = VolumeRow {
            id: VolumeId::from_bytes([1; 16]),
            name: "db".into(),
            size_bytes: 1,
            block_bytes: 512,
            journal: JournalId::from_bytes([2; 16]),
            timeline: Timeline(1),
            epoch: Epoch(1),
            agent,
        };
        catalog.put_volume(&row, WallMicros(1)).await.unwrap();
        catalog.agent_seen(agent, WallMicros(2)).await.unwrap();
        let seen = AgentRow { id: agent, first_seen: WallMicros(1), last_seen: WallMicros(2) };
        assert_eq!(catalog.agents().await.unwrap(), std::slice::from_ref(&seen));
        catalog.forget_agent(agent, WallMicros(3)).await.unwrap();
        // A restart of the collector finds the volume, and that is no sign of life.
        catalog.put_volume(&row, WallMicros(4)).await.unwrap();
        assert!(catalog.agents().await.unwrap().is_empty());
        catalog.agent_seen(agent, WallMicros(5)).await.unwrap();
        assert_eq!(
            catalog.agents().await.unwrap(),
            [AgentRow { last_seen: WallMicros(5), ..seen }]
        );
        catalog.forget_agent(agent, WallMicros(6)).await.unwrap();
        catalog.forget_volume(row.id).await.unwrap();
        catalog.agent_seen(agent, WallMicros(7)).await.unwrap();
        let first_seen = catalog.agents().await.unwrap()[0].first_seen;
        assert_eq!(first_seen, WallMicros(7), "its row went with its last volume");
    });
}

#[test]
fn jobs_end_once_and_stale_ones_are_named() {
    run(async |catalog| {
        let new = JobRow {
            id: 0,
            kind: "restore".into(),
            volume: "db".into(),
            at: "latest".into(),
            seq: Seq(9),
            time: Some(WallMicros(1)),
            target: "/tmp/x".into(),
            status: JobStatus::Running,
            done_bytes: 0,
            total_bytes: 100,
            started: WallMicros(2),
            finished: None,
            written_bytes: None,
            checksums_verified: None,
            comparison: None,
            error: None,
        };
        let first = catalog.add_job(&new).await.unwrap();
        let second = catalog.add_job(&new).await.unwrap();
        let third = catalog.add_job(&new).await.unwrap();
        let done = JobOutcome::Done { written_bytes: 3, checksums_verified: 4 };
        catalog.end_job(first, 100, &done, None, WallMicros(5)).await.unwrap();
        let failed = JobOutcome::Failed(Failure::invalid("no").with_hint("yes"));
        let found = Comparison {
            compared_bytes: 1 << 40,
            differing_bytes: 65_536,
            unreadable_bytes: 0,
            sent_bytes: 0,
            seconds: 1.5,
        };
        catalog.end_job(second, 7, &failed, Some(&found), WallMicros(5)).await.unwrap();
        assert_eq!(catalog.job(second).await.unwrap().comparison, Some(found));
        let left = catalog.end_stale_jobs(WallMicros(6)).await.unwrap();
        assert_eq!(left.len(), 1);
        let jobs = catalog.jobs().await.unwrap();
        assert_eq!((jobs[0].status, jobs[0].written_bytes), (JobStatus::Done, Some(3)));
        let error = (FailureKind::Invalid, "no".to_owned(), Some("yes".to_owned()));
        assert_eq!(jobs[1].error, Some(error));
        let stale = catalog.job(third).await.unwrap();
        assert_eq!((stale.status, stale.finished), (JobStatus::Interrupted, Some(WallMicros(6))));
        assert_eq!(catalog.job(99).await.unwrap_err().kind, FailureKind::NotFound);
    });
}

#[test]
fn events_and_volumes_are_remembered() {
    run(async |catalog| {
        for text in ["one", "two"] {
            catalog.add_event(WallMicros(1), Severity::Warning, Some("db"), text).await.unwrap();
        }
        let events = catalog.events(1, 10).await.unwrap();
        assert_eq!((events.len(), events[0].message.as_str()), (1, "two"));

        let mut row = VolumeRow {
            id: VolumeId::from_bytes([1; 16]),
            name: "db".into(),
            size_bytes: 1,
            block_bytes: 512,
            journal: JournalId::from_bytes([2; 16]),
            timeline: Timeline(1),
            epoch: Epoch(1),
            agent: AgentId::from_bytes([3; 16]),
        };
        catalog.put_volume(&row, WallMicros(1)).await.unwrap();
        row.name = "db2".into();
        catalog.put_volume(&row, WallMicros(2)).await.unwrap();
        let known = catalog.known_volumes().await.unwrap();
        assert_eq!(known, [(row.id, "db2".to_owned(), WallMicros(1))], "no session was opened");
        catalog.agent_seen(row.agent, WallMicros(3)).await.unwrap();
        let known = catalog.known_volumes().await.unwrap();
        assert_eq!(known, [(row.id, "db2".to_owned(), WallMicros(3))]);
    });
}

#[test]
fn exports_are_remembered_until_they_end() {
    run(async |catalog| {
        let new = ExportRow {
            id: 0,
            volume: VolumeId::from_bytes([1; 16]),
            name: "db".into(),
            at: "5m".into(),
            seq: Seq(7),
            size_bytes: 1 << 30,
            time: Some(WallMicros(5)),
            point: Some(PointId::from_bytes([9; 16])),
            front: Front::Nbd,
            listen: "tcp:127.0.0.1:0".into(),
            space_bytes: Some(1 << 20),
            created: WallMicros(6),
            ready: false,
        };
        let file = ExportRow {
            point: None,
            time: None,
            front: Front::File,
            listen: String::new(),
            space_bytes: None,
            ..new.clone()
        };
        let id = catalog.add_export(&new).await.unwrap();
        let other = catalog.add_export(&file).await.unwrap();
        catalog.export_is_ready(id, "tcp:127.0.0.1:9").await.unwrap();
        let served = ExportRow { id, listen: "tcp:127.0.0.1:9".into(), ready: true, ..new };
        let file = ExportRow { id: other, ..file };
        assert_eq!(catalog.exports().await.unwrap(), [served, file.clone()]);
        catalog.end_export(id, WallMicros(8)).await.unwrap();
        assert_eq!(catalog.exports().await.unwrap(), [file]);
    });
}

#[test]
fn a_file_of_the_first_version_is_brought_up_and_its_exports_have_ended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(CATALOG_FILE);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let old = SqlitePool::connect_with(options).await.unwrap();
        sqlx::raw_sql(SCHEMA).execute(&old).await.unwrap();
        sqlx::raw_sql(
            "PRAGMA user_version = 1;
             INSERT INTO exports (volume, at, seq, listen, created_us) VALUES ('v', 'x', 1, 'y', 2);
             INSERT INTO agents VALUES ('03030303-0303-0303-0303-030303030303', 1, 2)",
        )
        .execute(&old)
        .await
        .unwrap();
        old.close().await;
        for _ in 0..2 {
            let catalog = Catalog::open(&path).await.unwrap();
            assert_eq!(catalog.exports().await.unwrap(), []);
            assert_eq!(catalog.agents().await.unwrap()[0].last_seen, WallMicros(2));
            catalog.close().await;
        }
    });
}

#[test]
fn a_foreign_or_newer_file_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(CATALOG_FILE);
    std::fs::write(&path, b"this is no database, whatever it is named, and it is long").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let error = Catalog::open(&path).await.err().unwrap().to_string();
        assert!(error.contains("catalog.sqlite") && error.contains("move it away"), "{error}");
        std::fs::remove_file(&path).unwrap();
        let catalog = Catalog::open(&path).await.unwrap();
        sqlx::raw_sql("PRAGMA user_version = 7").execute(&catalog.pool).await.unwrap();
        catalog.close().await;
        let error = Catalog::open(&path).await.err().unwrap().to_string();
        assert!(error.contains("version 7"), "{error}");
    });
}
