//! The collector's volumes over storage in memory, one of them, and its agent's session.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use tidemark_collector::config::Config;
use tidemark_collector::config::settings::Settings;
use tidemark_collector::error::{Result, Severity};
use tidemark_collector::ingest::manifest::Manifest;
use tidemark_collector::ingest::observer::Observer;
use tidemark_collector::ingest::owner::{Command, Opening};
use tidemark_collector::ingest::port::SessionPort;
use tidemark_collector::ingest::session::Batch;
use tidemark_collector::ingest::volume::Volume;
use tidemark_collector::ingest::volumes::{Ground, Volumes};
use tidemark_collector::ingest::writer::WriterQueue;
use tidemark_collector::journal::{JournalConfig, Mark};
use tidemark_collector::merge::{MergeLimits, merge_once};
use tidemark_collector::seam::{SystemClock, SystemRandom};
use tidemark_collector::storage::MemoryStorage;
use tidemark_collector::view::View;
use tidemark_wire::body::Bookmark;
use tidemark_wire::frame::RecordsHeader;
use tidemark_wire::instruct::Instruct;
use tidemark_wire::session::{Hello, Refuse, Welcome};
use tidemark_wire::{Seq, VolumeId, WallMicros, record};
use zerocopy::IntoBytes;

use crate::ingest_support::{Change, VOLUME_BYTES, time_of};

const LIMITS: MergeLimits = MergeLimits { older_than: WallMicros(0), journal_bytes_max: None };

#[derive(Default)]
pub(crate) struct Events(pub(crate) Mutex<Vec<(Severity, String)>>);

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

impl Events {
    pub(crate) fn critical(&self) -> Vec<String> {
        let all = self.0.lock().unwrap();
        let critical = all.iter().filter(|(severity, _)| *severity == Severity::Critical);
        critical.map(|(_, text)| text.clone()).collect()
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
    fn instruct(&self, _: Instruct) -> bool {
        false
    }
    fn heard_at(&self) -> Duration {
        Duration::ZERO
    }
}

/// The collector's volumes, and one of them.
pub(crate) struct Bench {
    pub(crate) events: Arc<Events>,
    pub(crate) volumes: Arc<Volumes<MemoryStorage>>,
    pub(crate) settings: Arc<Settings>,
}

pub(crate) struct Session {
    queue: WriterQueue,
    said: mpsc::Receiver<Said>,
    pub(crate) welcome: Welcome,
}

impl Bench {
    pub(crate) fn start(storage: &MemoryStorage, found: &[VolumeId], config: &str) -> Self {
        let settings = Settings::new(Config::parse(config, Path::new("test.toml")).unwrap());
        let events = Arc::<Events>::default();
        let ground = Ground {
            storage: Arc::new(storage.clone()),
            data_dir: "/data".into(),
            clock: Arc::new(SystemClock::default()),
            random: Arc::new(SystemRandom::default()),
            observer: events.clone(),
            journal: JournalConfig { segment_bytes_max: 16 << 10 },
            settings: Arc::clone(&settings),
        };
        Self { events, volumes: Arc::new(Volumes::open(ground, found).unwrap()), settings }
    }

    pub(crate) fn volume(&self) -> Arc<Volume<MemoryStorage>> {
        self.volumes.find("disk1").unwrap()
    }

    pub(crate) fn open(&self, hello: &Hello) -> std::result::Result<Session, Refuse> {
        let (_, queue) = self.volumes.get_or_register(hello)?;
        let (sender, said) = mpsc::channel();
        let port = Arc::new(Port(sender));
        let opening = Opening {
            hello: hello.clone(),
            peer: "test".into(),
            now: Duration::from_secs(1000),
            port,
        };
        queue.send(Command::Open(Box::new(opening))).unwrap();
        match said.recv().unwrap() {
            Said::Opened(Ok(welcome)) => Ok(Session { queue, said, welcome }),
            Said::Opened(Err(refusal)) => Err(refusal),
            _ => panic!("an answer to the opening comes first"),
        }
    }

    /// All bytes that are held, as a comparison sees them.
    pub(crate) fn held(&self) -> Option<(Seq, Vec<u8>)> {
        let held = self.volume().held().ok()?;
        let view = View::open_inside_span(&held.reader, Arc::clone(&held.seed)).unwrap();
        let mut bytes = vec![0; usize::try_from(VOLUME_BYTES).unwrap()];
        view.read_at(&mut bytes, 0).unwrap();
        Some((view.at(), bytes))
    }

    pub(crate) fn merge(&self, calls: u32) {
        let (mut left, held) = (calls, self.volume().held().unwrap());
        let mut pace = |bytes| {
            left -= u32::from(bytes > 0 && left > 0);
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        merge_once(&held, &LIMITS, &mut pace).unwrap();
    }

    pub(crate) fn seed(&self, image: &[u8]) -> Result<()> {
        let seeding = self.volumes.begin_seeding(&self.volume())?;
        for (number, part) in (0..).zip(image.chunks(1 << 20)) {
            seeding.write(number << 20, part)?;
        }
        self.volumes.finish_seeding(seeding)
    }
}

impl Session {
    /// Appends changes behind `prev`, from number `first` on, one commit for each; waits until
    /// they are durable.
    pub(crate) fn send(
        &self,
        changes: &[Change],
        mut prev: Seq,
        first: Seq,
        mut note: impl FnMut(Seq, &Change),
    ) -> Seq {
        for (change, seq) in changes.iter().zip((first.0..).map(Seq)) {
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
