//! The owner of a volume over storage that fails and loses: what was acknowledged stays, an
//! epoch never comes twice, and a volume whose disk was full takes records again by itself.
#![allow(clippy::unwrap_used, reason = "tests")]

mod ingest_support;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ingest_support::{hello, resync, time_of, write};
use tidemark_collector::config::Config;
use tidemark_collector::config::settings::Settings;
use tidemark_collector::error::Severity;
use tidemark_collector::ingest::manifest::Manifest;
use tidemark_collector::ingest::observer::Observer;
use tidemark_collector::ingest::owner::{Command, Opening, VolumeCore};
use tidemark_collector::ingest::port::SessionPort;
use tidemark_collector::ingest::session::Batch;
use tidemark_collector::ingest::volume::{Volume, volume_dir};
use tidemark_collector::journal::format::HEADER_BYTES;
use tidemark_collector::journal::{JournalConfig, Mark};
use tidemark_collector::policy::Overrides;
use tidemark_collector::storage::{Fault, MemoryStorage, Storage};
use tidemark_wire::body::Bookmark;
use tidemark_wire::frame::RecordsHeader;
use tidemark_wire::instruct::Instruct;
use tidemark_wire::session::{Refuse, RefuseReason, Welcome};
use tidemark_wire::{Epoch, JournalId, RecordKind, Seq, Timeline, VolumeId, WallMicros, record};
use zerocopy::IntoBytes;

/// Keeps what people are told.
#[derive(Default)]
struct Events(Mutex<Vec<(Severity, String)>>);

impl Observer for Events {
    fn volume(&self, _: &Manifest) {}
    fn seen(&self, _: &Manifest) {}
    fn history(&self, _: VolumeId, _: &[Mark]) {}
    fn marks(&self, _: VolumeId, _: &[Mark]) {}
    fn trimmed(&self, _: VolumeId, _: Seq) {}
    fn event(&self, severity: Severity, _: Option<&str>, text: String) {
        self.0.lock().unwrap().push((severity, text));
    }
}

#[derive(Default)]
struct Port {
    opened: Mutex<Option<Result<Welcome, Refuse>>>,
    durable: Mutex<Seq>,
    ended: Mutex<Option<Refuse>>,
}

impl SessionPort for Port {
    fn opened(&self, answer: Result<Welcome, Refuse>) {
        *self.opened.lock().unwrap() = Some(answer);
    }
    fn durable(&self, seq: Seq) {
        *self.durable.lock().unwrap() = seq;
    }
    fn end(&self, refusal: Refuse) {
        *self.ended.lock().unwrap() = Some(refusal);
    }
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

struct Bench {
    storage: Arc<MemoryStorage>,
    volume: Arc<Volume<MemoryStorage>>,
    core: VolumeCore<MemoryStorage>,
    events: Arc<Events>,
}

fn dir() -> std::path::PathBuf {
    volume_dir(Path::new("/data"), hello(1).volume)
}

/// Makes the volume where it is missing, as registering it does, and takes charge of it.
fn bench(storage: MemoryStorage) -> Option<Bench> {
    let storage = Arc::new(storage);
    let manifest = match Manifest::load(&storage, &dir()) {
        Ok(manifest) => manifest,
        Err(_) => {
            let hello = hello(1);
            let manifest = Manifest {
                volume: hello.volume,
                name: hello.name,
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
            storage.create_dir(&dir()).ok()?;
            manifest.store(&storage, &dir()).ok()?;
            manifest
        }
    };
    let settings = Settings::new(Config::parse("", Path::new("test.toml")).unwrap());
    let volume = Arc::new(Volume::new(dir(), manifest, settings));
    let config = JournalConfig { segment_bytes_max: 16 << 10 };
    let events = Arc::<Events>::default();
    let core = VolumeCore::start(Arc::clone(&storage), Arc::clone(&volume), events.clone(), config);
    Some(Bench { storage, volume, core, events })
}

impl Bench {
    fn open(&mut self) -> (Arc<Port>, Result<Welcome, Refuse>) {
        let port = Arc::<Port>::default();
        let opening = Opening {
            hello: hello(1),
            peer: "test".into(),
            now: Duration::from_secs(1000),
            port: port.clone(),
        };
        self.core.handle(Command::Open(Box::new(opening)));
        let answer = port.opened.lock().unwrap().take().expect("an answer at once");
        (port, answer)
    }

    /// Appends a write (after the begin and end of a copy, when the journal is empty).
    fn append(&mut self, welcome: &Welcome, prev: Seq, token: Option<Duration>) -> Seq {
        let mut changes = Vec::new();
        if prev == Seq(0) {
            changes.extend([resync(RecordKind::ResyncBegin), resync(RecordKind::ResyncEnd)]);
        }
        changes.push(write(prev.0 % 100 * 512, vec![7; 3000]));
        let (mut bytes, mut last) = (Vec::new(), prev);
        for change in &changes {
            last = Seq(last.0 + 1);
            record::encode(&change.spec, last, time_of(last), &change.payload, &mut bytes);
        }
        let count = u32::try_from(changes.len()).unwrap();
        let header = RecordsHeader {
            timeline: 1.into(),
            count: count.into(),
            epoch: welcome.epoch.0.into(),
            prev_seq: prev.0.into(),
            first_seq: (prev.0 + 1).into(),
            last_seq: last.0.into(),
            token: 0.into(),
        };
        let mut body = header.as_bytes().to_vec();
        body.extend_from_slice(&bytes);
        let batch = Batch { epoch: welcome.epoch, body, count, token_sent_at: token };
        self.core.handle(Command::Append(batch));
        last
    }
}

#[test]
fn a_failed_sync_ends_the_session_and_the_next_one_goes_on() {
    for fault in 0..12 {
        let mut bench = bench(MemoryStorage::default()).unwrap();
        let (port, welcome) = bench.open();
        let welcome = welcome.unwrap();
        let first = bench.append(&welcome, Seq(0), None);
        bench.core.finish();
        assert_eq!(*port.durable.lock().unwrap(), first);
        bench.storage.fail_after(fault, Fault::Once);
        let (mut last, mut ended) = (first, None);
        for _ in 0..12 {
            last = bench.append(&welcome, last, Some(Duration::from_secs(9)));
            bench.core.finish();
            ended = port.ended.lock().unwrap().take();
            if ended.is_some() {
                break;
            }
        }
        let refusal = ended.expect("the fault is met");
        assert_eq!(refusal.reason, RefuseReason::Unavailable);
        assert!(bench.volume.facts().problem.is_some());
        let acknowledged = *port.durable.lock().unwrap();
        assert!(acknowledged < last, "what failed is not acknowledged");

        let (port, again) = bench.open();
        let again = again.unwrap();
        assert!(again.epoch > welcome.epoch && again.durable >= acknowledged);
        assert_eq!(bench.volume.facts().problem, None);
        let last = bench.append(&again, again.durable, None);
        bench.core.finish();
        assert_eq!(*port.durable.lock().unwrap(), last);
    }
}

#[test]
fn people_are_told_once_of_a_disk_that_stays_full_and_once_of_its_end() {
    let mut bench = bench(MemoryStorage::default()).unwrap();
    for _ in 0..20 {
        let (port, welcome) = bench.open();
        let welcome = welcome.unwrap();
        bench.storage.fail_after(0, Fault::Once);
        bench.append(&welcome, Seq(0), None);
        bench.core.finish();
        assert!(port.ended.lock().unwrap().is_some());
    }
    let (_, welcome) = bench.open();
    bench.append(&welcome.unwrap(), Seq(0), None);
    bench.core.finish();
    let events = std::mem::take(&mut *bench.events.0.lock().unwrap());
    let told = |wanted: &str| events.iter().filter(|(_, text)| text.contains(wanted)).count();
    assert_eq!(events.iter().filter(|(sort, _)| *sort == Severity::Critical).count(), 1);
    assert_eq!(told("takes records again"), 1);
    assert_eq!(told("the agent is connected"), 1, "{events:#?}");
}

#[test]
fn an_older_session_gets_nothing_in_behind_a_newer_one() {
    let mut bench = bench(MemoryStorage::default()).unwrap();
    let (old, old_welcome) = bench.open();
    let old_welcome = old_welcome.unwrap();
    let last = bench.append(&old_welcome, Seq(0), None);
    // What waits when the new session is opened is made durable first, and counted.
    let (new, new_welcome) = bench.open();
    assert_eq!(new_welcome.as_ref().unwrap().durable, last);
    assert_eq!(old.ended.lock().unwrap().as_ref().unwrap().reason, RefuseReason::Fenced);
    bench.append(&old_welcome, last, None);
    bench.core.finish();
    assert_eq!(bench.volume.held().unwrap().reader.durable(), last);
    bench.core.handle(Command::Closed(old));
    assert!(bench.volume.facts().live.is_some(), "only its own session takes it away");
    bench.core.handle(Command::Closed(new));
    assert!(bench.volume.facts().live.is_none());
}

#[test]
fn tokens_count_only_when_durable_and_outside_of_spans() {
    let mut bench = bench(MemoryStorage::default()).unwrap();
    let (_, welcome) = bench.open();
    let welcome = welcome.unwrap();
    let last = bench.append(&welcome, Seq(0), Some(Duration::from_secs(3)));
    assert_eq!(bench.volume.facts().recoverable_at, None, "not before the sync");
    bench.core.finish();
    assert_eq!(bench.volume.facts().recoverable_at, Some(Duration::from_secs(3)));
    bench.append(&welcome, last, Some(Duration::from_secs(2)));
    bench.core.finish();
    assert_eq!(bench.volume.facts().recoverable_at, Some(Duration::from_secs(3)));
}

/// The power goes at every call that changes something, in turn.
#[test]
fn after_a_crash_at_any_call_nothing_acknowledged_is_missing_and_no_epoch_comes_twice() {
    for calls in 0..160 {
        let storage = MemoryStorage::default();
        storage.fail_after(calls, Fault::Crash);
        let (mut acknowledged, mut epoch) = (Seq(0), Epoch(0));
        if let Some(mut bench) = bench(storage.clone()) {
            for _ in 0..3 {
                let (port, Ok(welcome)) = bench.open() else { break };
                assert!(welcome.epoch > epoch);
                epoch = welcome.epoch;
                let mut last = welcome.durable;
                for _ in 0..3 {
                    last = bench.append(&welcome, last, None);
                    bench.core.finish();
                }
                acknowledged = acknowledged.max(*port.durable.lock().unwrap());
            }
        }
        let mut bench = bench(storage.after_crash(calls)).unwrap();
        let (_, welcome) = bench.open();
        let welcome = welcome.unwrap();
        assert!(welcome.durable >= acknowledged, "crash at call {calls}");
        assert!(welcome.epoch > epoch, "crash at call {calls}");
    }
}

#[test]
fn a_mark_that_rots_in_a_sealed_segment_costs_the_mark_and_not_the_volume() {
    let mut first = bench(MemoryStorage::default()).unwrap();
    let (_, welcome) = first.open();
    let (welcome, mut last) = (welcome.unwrap(), Seq(0));
    for _ in 0..12 {
        last = first.append(&welcome, last, None);
        first.core.finish();
    }
    let held = first.volume.held().unwrap();
    let sealed = held.reader.segments().into_iter().find(|segment| segment.sealed).unwrap();
    let path = first.volume.journal_dir().join(&sealed.name);
    let storage = MemoryStorage::clone(&first.storage);
    // A byte of the body of the first record, which begins the copy.
    let at = usize::try_from(HEADER_BYTES).unwrap() + 64 + 8 + 3;
    storage.edit(&path, |bytes| bytes[at] ^= 1).unwrap();

    let mut bench = bench(storage).unwrap();
    let told = bench.events.0.lock().unwrap().clone();
    assert!(
        told.iter().any(|(severity, text)| {
            *severity == Severity::Critical && text.contains(&sealed.name)
        }),
        "{told:?}"
    );
    assert_eq!(bench.open().1.unwrap().durable, last);
    assert!(bench.volume.held().unwrap().reader.offerable(last).is_ok());
}
