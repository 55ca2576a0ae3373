//! A volume is seeded, and the power goes, or a call fails, at every write, sync, rename and
//! removal of it. Afterwards the volume holds what it held, or less of it, or the image: never a
//! mix, and the agent is never told to leave zeroes out of a copy into what is not zero.
#![allow(clippy::unwrap_used, reason = "tests")]

mod ingest_support;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};

use ingest_support::{Change, Model, VOLUME_BYTES, hello, resync, time_of, write};
use tidemark_collector::config::Config;
use tidemark_collector::config::settings::Settings;
use tidemark_collector::error::{Result, Severity};
use tidemark_collector::ingest::manifest::Manifest;
use tidemark_collector::ingest::observer::Observer;
use tidemark_collector::ingest::port::SessionPort;
use tidemark_collector::ingest::session::Batch;
use tidemark_collector::ingest::volume::{Command, Opening, Volume, volume_dir};
use tidemark_collector::ingest::volumes::{Ground, Volumes};
use tidemark_collector::ingest::writer::WriterQueue;
use tidemark_collector::journal::{JournalConfig, Mark};
use tidemark_collector::merge::{MergeLimits, merge_once};
use tidemark_collector::seam::{SystemClock, SystemRandom};
use tidemark_collector::storage::{Fault, MemoryStorage, Storage};
use tidemark_collector::view::View;
use tidemark_wire::body::Bookmark;
use tidemark_wire::frame::RecordsHeader;
use tidemark_wire::session::{Hello, InstructKind, Refuse, Welcome};
use tidemark_wire::{JournalId, RecordKind, Seq, VolumeId, WallMicros, record};
use zerocopy::IntoBytes;

const LIMITS: MergeLimits = MergeLimits { older_than: WallMicros(0), journal_bytes_max: None };

#[derive(Default)]
struct Events(Mutex<Vec<String>>);

impl Observer for Events {
    fn volume(&self, _: &Manifest) {}
    fn seen(&self, _: &Manifest) {}
    fn history(&self, _: VolumeId, _: &[Mark]) {}
    fn marks(&self, _: VolumeId, _: &[Mark]) {}
    fn trimmed(&self, _: VolumeId, _: Seq) {}
    fn event(&self, severity: Severity, _: Option<&str>, text: String) {
        if severity == Severity::Critical {
            self.0.lock().unwrap().push(text);
        }
    }
}

enum Said {
    Opened(std::result::Result<Welcome, Refuse>),
    Durable(Seq),
    Ended,
}

struct Port(mpsc::Sender<Said>);

impl SessionPort for Port {
    fn opened(&self, answer: std::result::Result<Welcome, Refuse>) {
        let _ = self.0.send(Said::Opened(answer));
    }
    fn durable(&self, seq: Seq) {
        let _ = self.0.send(Said::Durable(seq));
    }
    fn end(&self, _: Refuse) {
        let _ = self.0.send(Said::Ended);
    }
    fn bookmark(&self, _: Bookmark) -> bool {
        false
    }
    fn instruct(&self, _: InstructKind) -> bool {
        false
    }
}

/// The collector's volumes, and one of them.
struct Bench {
    events: Arc<Events>,
    volumes: Volumes<MemoryStorage>,
}

struct Session {
    queue: WriterQueue,
    said: mpsc::Receiver<Said>,
    welcome: Welcome,
}

impl Bench {
    fn start(storage: &MemoryStorage, found: &[VolumeId]) -> Self {
        let events = Arc::<Events>::default();
        let ground = Ground {
            storage: Arc::new(storage.clone()),
            data_dir: "/data".into(),
            clock: Arc::new(SystemClock::default()),
            random: Arc::new(SystemRandom::default()),
            observer: events.clone(),
            journal: JournalConfig { segment_bytes_max: 16 << 10 },
            settings: Settings::new(Config::parse("", Path::new("test.toml")).unwrap()),
        };
        Self { events, volumes: Volumes::open(ground, found).unwrap() }
    }

    fn volume(&self) -> Arc<Volume<MemoryStorage>> {
        self.volumes.find("disk1").unwrap()
    }

    fn open(&self, hello: &Hello) -> std::result::Result<Session, Refuse> {
        let (_, queue) = self.volumes.get_or_register(hello)?;
        let (sender, said) = mpsc::channel();
        let port = Arc::new(Port(sender));
        let opening = Opening { hello: hello.clone(), peer: "test".into(), port };
        queue.send(Command::Open(Box::new(opening))).unwrap();
        match said.recv().unwrap() {
            Said::Opened(Ok(welcome)) => Ok(Session { queue, said, welcome }),
            Said::Opened(Err(refusal)) => Err(refusal),
            _ => panic!("an answer to the opening comes first"),
        }
    }

    /// All bytes that are held, as a comparison sees them.
    fn held(&self) -> Option<(Seq, Vec<u8>)> {
        let held = self.volume().held().ok()?;
        let view = View::open_inside_span(&held.reader, Arc::clone(&held.seed)).unwrap();
        let mut bytes = vec![0; usize::try_from(VOLUME_BYTES).unwrap()];
        view.read_at(&mut bytes, 0).unwrap();
        Some((view.at(), bytes))
    }

    fn merge(&self, calls: u32) {
        let (mut left, held) = (calls, self.volume().held().unwrap());
        let mut pace = |bytes| {
            left -= u32::from(bytes > 0 && left > 0);
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        merge_once(&held, &LIMITS, &mut pace).unwrap();
    }

    fn seed(&self, image: &[u8]) -> Result<()> {
        let seeding = self.volumes.begin_seeding(&self.volume())?;
        for (number, part) in (0..).zip(image.chunks(1 << 20)) {
            seeding.write(number << 20, part)?;
        }
        self.volumes.finish_seeding(seeding)
    }
}

impl Session {
    /// Appends changes, one commit for each; waits until they are durable.
    fn send(&self, changes: &[Change], mut prev: Seq, mut note: impl FnMut(Seq, &Change)) -> Seq {
        for change in changes {
            let seq = Seq(prev.0 + 1);
            let mut body = RecordsHeader {
                timeline: 1.into(),
                count: 1.into(),
                epoch: self.welcome.epoch.0.into(),
                prev_seq: prev.0.into(),
                first_seq: seq.0.into(),
                last_seq: seq.0.into(),
                token: 0.into(),
            }
            .as_bytes()
            .to_vec();
            record::encode(&change.spec, seq, time_of(seq), &change.payload, &mut body);
            let epoch = self.welcome.epoch;
            let batch = Batch { epoch, body, count: 1, token_sent_at: None };
            self.queue.send(Command::Append(batch)).unwrap();
            loop {
                match self.said.recv().unwrap() {
                    Said::Durable(durable) if durable >= seq => break,
                    Said::Durable(_) => {}
                    _ => panic!("the session has ended"),
                }
            }
            note(seq, change);
            prev = seq;
        }
        prev
    }
}

/// A volume in its first copy, a part of which is merged.
struct Past {
    storage: MemoryStorage,
    journal: JournalId,
    /// What is held after each record.
    states: Vec<Vec<u8>>,
}

fn past() -> Past {
    let storage = MemoryStorage::default();
    storage.create_dir(Path::new("/data/volumes")).unwrap();
    let bench = Bench::start(&storage, &[]);
    let session = bench.open(&hello(1)).unwrap_or_else(|refusal| panic!("{}", refusal.text));
    let (mut model, mut changes) = (Model::new(), vec![resync(RecordKind::ResyncBegin)]);
    changes.extend((0u8..24).map(|at| write(u64::from(at) * 60_000, vec![at + 1; 5000])));
    let mut states = vec![model.0.clone()];
    let mut note = |_, change: &Change| {
        model.apply_all(std::slice::from_ref(change));
        states.push(model.0.clone());
    };
    let last = session.send(&changes[..13], Seq(0), &mut note);
    bench.merge(u32::MAX);
    session.send(&changes[13..], last, &mut note);
    let held = bench.volume().held().unwrap();
    assert!(held.seed.at() > Seq(0) && held.reader.segments().len() > 2);
    drop(held);
    bench.volumes.stop();
    assert!(bench.events.0.lock().unwrap().is_empty());
    Past { journal: session.welcome.journal, storage: storage.after_crash(0), states }
}

fn image() -> Vec<u8> {
    let mut model = Model::new();
    model.apply_all(&[write(20_480, vec![0xAA; 90_000]), write(1_000_000, vec![0xBB; 4096])]);
    model.0
}

impl Past {
    /// What the volume is afterwards, and that its agent is told what fits.
    fn check(&self, bench: &Bench, image: &[u8], what: &str) -> bool {
        // An agent comes back until it is let in.
        let last = Seq(self.states.len() as u64 - 1);
        let known = Hello { journal: self.journal, released: last, newest: last, ..hello(1) };
        let session = (0..2).find_map(|_| bench.open(&known).ok());
        let session = session.unwrap_or_else(|| panic!("{what}: it is not let in"));
        let (at, bytes) = bench.held().unwrap();
        let welcome = &session.welcome;
        assert_eq!(welcome.durable, at, "{what}");
        let seeded = bytes == image;
        let old = self.states.get(usize::try_from(at.0).unwrap()).is_some_and(|old| *old == bytes);
        assert!(old || (seeded && at == Seq(0)), "{what}: a mix at {at}");
        if seeded {
            assert!(welcome.seeded && welcome.journal != self.journal, "{what}");
        } else if at == Seq(0) && !welcome.seeded {
            assert!(bytes.iter().all(|byte| *byte == 0), "{what}");
        } else if welcome.journal == self.journal && at == last {
            assert!(welcome.span_open > Seq(0), "{what}");
        }
        let mut model = Model(bytes);
        let changes = [
            resync(RecordKind::ResyncBegin),
            write(300_000, vec![9; 9000]),
            resync(RecordKind::ResyncEnd),
        ];
        let prev = Seq(last.0 + 1000);
        let first = self.send_first(&session, &changes[0], at, prev);
        let newest = session.send(&changes[1..], first, |_, _| ());
        model.apply_all(&changes);
        let held = bench.volume().held().unwrap();
        let view = View::open(Arc::clone(&held.reader), Arc::clone(&held.seed), newest).unwrap();
        let mut bytes = vec![0; model.0.len()];
        view.read_at(&mut bytes, 0).unwrap();
        assert!(bytes == model.0, "{what}: after a comparison");
        drop(view);
        bench.merge(u32::MAX);
        assert_eq!(held.seed.merging_to(), None, "{what}: merges go on");
        seeded
    }

    /// The begin of a copy leaves a space in the numbering.
    fn send_first(&self, session: &Session, begin: &Change, prev: Seq, seq: Seq) -> Seq {
        let mut body = RecordsHeader {
            timeline: 1.into(),
            count: 1.into(),
            epoch: session.welcome.epoch.0.into(),
            prev_seq: prev.0.into(),
            first_seq: seq.0.into(),
            last_seq: seq.0.into(),
            token: 0.into(),
        }
        .as_bytes()
        .to_vec();
        record::encode(&begin.spec, seq, time_of(seq), &begin.payload, &mut body);
        let epoch = session.welcome.epoch;
        let batch = Batch { epoch, body, count: 1, token_sent_at: None };
        session.queue.send(Command::Append(batch)).unwrap();
        seq
    }
}

#[test]
fn a_seeding_that_is_cut_off_anywhere_leaves_one_or_the_other() {
    let (past, image, id) = (past(), image(), hello(1).volume);
    let new = volume_dir(Path::new("/data"), id).join("seed.img.new");
    // With a merge that was cut off before, and without.
    for interrupted in [false, true] {
        for fault in [Fault::Crash, Fault::Once] {
            let (mut call, mut seen) = (0, [0; 2]);
            loop {
                let what = format!("{fault:?} at call {call}, interrupted {interrupted}");
                let storage = past.storage.after_kill();
                let bench = Bench::start(&storage, &[id]);
                if interrupted {
                    bench.merge(2);
                    let held = bench.volume().held().unwrap();
                    assert!(held.seed.merging_to().is_some());
                }
                let before = storage.calls();
                storage.fail_after(call, fault);
                let done = bench.seed(&image).is_ok();
                let calls = storage.calls() - before;
                let storage = match fault {
                    Fault::Crash => {
                        bench.volumes.stop();
                        storage.after_crash(call)
                    }
                    Fault::Once => {
                        seen[usize::from(past.check(&bench, &image, &what))] += 1;
                        bench.volumes.stop();
                        storage.after_kill()
                    }
                };
                if fault == Fault::Crash {
                    let bench = Bench::start(&storage, &[id]);
                    let events = bench.events.0.lock().unwrap().clone();
                    assert!(events.is_empty(), "{what}: {events:?}");
                    seen[usize::from(past.check(&bench, &image, &what))] += 1;
                    bench.volumes.stop();
                }
                assert!(storage.open(&new).is_err(), "{what}: the half import stays");
                if done && calls <= call {
                    break;
                }
                call += 1;
            }
            assert!(call > 20 && seen[0] > 5 && seen[1] > 0, "{call} calls: {seen:?}");
        }
    }
}
