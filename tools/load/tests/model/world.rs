//! Agent and collector of one case in this process: the parts that the daemons put together, with
//! sockets, files and threads of their own in a directory that goes when the case ends.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tidemark_agent::capture::Capture;
use tidemark_agent::capture::phase::Phase;
use tidemark_agent::clock::{Clock, SystemClock};
use tidemark_agent::copy;
use tidemark_agent::intent_log::IntentLog;
use tidemark_agent::random::{Random, SystemSource};
use tidemark_agent::ring::{Mlock, Ring, RingSpec, boot_id};
use tidemark_agent::shipper::link::SocketDial;
use tidemark_agent::shipper::{Drained, Shipper, ShipperParts, VolumeFacts};
use tidemark_agent::state::{KeptState, SEQ_RESERVATION, StateFile, VolumeState};
use tidemark_agent::volume::Volume;
use tidemark_block::engine::socket::{Address, Listener};
use tidemark_block::engine::{ExecutorConfig, Workers};
use tidemark_block::nbd::{Server, ServerConfig};
use tidemark_block::store::{OpenMode, Store, UringStore};
use tidemark_block::{Export, ExportList};
use tidemark_collector::config::settings::Settings;
use tidemark_collector::config::{Address as IngestAddress, Config};
use tidemark_collector::error::Severity;
use tidemark_collector::ingest::manifest::Manifest;
use tidemark_collector::ingest::observer::Observer;
use tidemark_collector::ingest::server::IngestServer;
use tidemark_collector::ingest::socket::Listener as IngestListener;
use tidemark_collector::ingest::volume::Held;
use tidemark_collector::ingest::volumes::{Ground, Volumes};
use tidemark_collector::journal::{JournalConfig, Mark};
use tidemark_collector::seam;
use tidemark_collector::storage::RealStorage;
use tidemark_wire::{AgentId, AgentRun, Epoch, JournalId, Seq, Timeline, VolumeId, WallMicros};

use super::link::WorseDial;
use super::plan::{Case, RingSort};

/// Name of the volume and of its export.
pub(crate) const NAME: &str = "disk";
/// How long the collector may take to have a whole copy, or everything.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(2);
const WORKERS: usize = 2;
/// Smallest payload memory of a ring.
const TINY_RING_BYTES: u64 = 1 << 20;
const ROOMY_SLOTS: u32 = 4096;

/// Collects what ingest reports as going wrong.
#[derive(Default)]
pub(crate) struct Reports(Mutex<Vec<(Severity, String)>>);

impl Observer for Reports {
    fn volume(&self, _: &Manifest) {}
    fn seen(&self, _: &Manifest) {}
    fn history(&self, _: VolumeId, _: &[Mark]) {}
    fn marks(&self, _: VolumeId, _: &[Mark]) {}
    fn trimmed(&self, _: VolumeId, _: Seq) {}
    fn event(&self, severity: Severity, _: Option<&str>, message: String) {
        if severity != Severity::Info {
            self.0.lock().expect("no holder panics").push((severity, message));
        }
    }
}

/// The collector of a case.
pub(crate) struct Collector {
    data_dir: PathBuf,
    id: VolumeId,
    segment_bytes_max: u64,
    reports: Arc<Reports>,
    volumes: Arc<Volumes<RealStorage>>,
}

impl Collector {
    fn open(dir: &Path, id: VolumeId, segment_bytes_max: u64, found: &[VolumeId]) -> Self {
        let data_dir = dir.join("collector");
        std::fs::create_dir_all(data_dir.join("volumes")).expect("a directory");
        let reports = Arc::<Reports>::default();
        let ground = Ground {
            storage: Arc::new(RealStorage),
            data_dir: data_dir.clone(),
            clock: Arc::new(seam::SystemClock::default()),
            random: Arc::new(seam::SystemRandom::default()),
            observer: Arc::clone(&reports) as Arc<dyn Observer>,
            journal: JournalConfig { segment_bytes_max },
            settings: Settings::new(
                Config::parse("volumes_max = 4", Path::new("model.toml")).expect("right"),
            ),
        };
        let volumes = Arc::new(Volumes::open(ground, found).expect("volumes"));
        Self { data_dir, id, segment_bytes_max, reports, volumes }
    }

    /// Journal and seed of the volume; `None` before its first session.
    pub(crate) fn held(&self) -> Option<Held<RealStorage>> {
        self.volumes.find(NAME).ok()?.held().ok()
    }

    /// Directory of the journal's segments.
    pub(crate) fn journal_dir(&self) -> PathBuf {
        self.volumes.find(NAME).expect("the volume is known").journal_dir()
    }

    /// Closes the journal and opens it again.
    pub(crate) fn reopen(self) -> Self {
        self.volumes.stop();
        let dir = self.data_dir.parent().expect("below the case's directory");
        Self::open(dir, self.id, self.segment_bytes_max, &[self.id])
    }

    /// Ends the threads, and fails when anything critical was reported, or a warning in a case
    /// without gaps.
    pub(crate) fn stop(self, is_gapless: bool) -> Result<(), String> {
        self.volumes.stop();
        let reports = self.reports.0.lock().expect("no holder panics");
        let bad =
            |(severity, _): &&(Severity, String)| is_gapless || *severity == Severity::Critical;
        match reports.iter().find(bad) {
            None => Ok(()),
            Some((_, message)) => Err(format!("the collector says: {message}")),
        }
    }
}

/// The agent of a case.
pub(crate) struct Agent {
    workers: Workers,
    server: Server<Volume<UringStore>>,
    shipper: Shipper,
    volume: Arc<Volume<UringStore>>,
    state: Arc<KeptState>,
    clock: Arc<dyn Clock>,
}

/// Both, and where everything is.
pub(crate) struct World {
    pub(crate) collector: Collector,
    pub(crate) agent: Agent,
    pub(crate) nbd_socket: PathBuf,
    pub(crate) backing: PathBuf,
    /// Connections to the collector that were lost on purpose.
    pub(crate) cuts: Arc<AtomicU64>,
    ingest: IngestServer<RealStorage>,
    ring_dir: TempDir,
    dir: TempDir,
}

/// What is left when the agent is gone.
pub(crate) struct Stopped {
    pub(crate) collector: Collector,
    pub(crate) backing: PathBuf,
    pub(crate) cuts: Arc<AtomicU64>,
    /// Dropped last: everything lies in it.
    _dir: TempDir,
}

/// Unit in which the backing store of a case is trimmed, in bytes.
pub(crate) fn unit_bytes() -> u64 {
    let dir = TempDir::new().expect("a temporary directory");
    let path = dir.path().join("probe");
    std::fs::write(&path, [0; 8192]).expect("a file");
    let store = UringStore::open(&path, OpenMode::ReadWrite).expect("a store");
    store.geometry().io_align_bytes.into()
}

impl World {
    /// Starts the collector, and an agent that protects a disk with the contents `base`.
    /// `payload_bytes` is what all clients together will write.
    pub(crate) fn start(case: &Case, base: &[u8], payload_bytes: u64) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let ring_dir = std::env::var("TIDEMARK_MODEL_RING_DIR");
        let ring_dir = TempDir::new_in(ring_dir.as_deref().unwrap_or("/dev/shm"));
        let ring_dir = ring_dir.expect("a directory in memory");
        let id = VolumeId::from_random(SystemSource::default().bytes());
        let collector = Collector::open(dir.path(), id, case.segment_bytes_max, &[]);
        let ingest_socket = dir.path().join("ingest.sock");
        let listener = IngestListener::bind(&IngestAddress::Unix(ingest_socket.clone()))
            .expect("a listening socket");
        let ingest = IngestServer::start(
            vec![listener],
            Arc::clone(&collector.volumes),
            Arc::new(seam::SystemClock::default()),
            8,
        )
        .expect("the ingest server");
        let backing = dir.path().join("backing");
        make_backing(&backing, base);
        let nbd_socket = dir.path().join("nbd.sock");
        let cuts = Arc::default();
        let dial = WorseDial {
            dial: SocketDial::new(Address::Unix(ingest_socket)),
            sort: case.link,
            cuts: Arc::clone(&cuts),
        };
        let ring = ring_spec(case, id, payload_bytes);
        let places = Places {
            dir: dir.path(),
            ring: &ring_dir.path().join("ring"),
            backing: &backing,
            nbd_socket: &nbd_socket,
        };
        let agent = Agent::start(&places, &ring, dial);
        Self { collector, agent, nbd_socket, backing, cuts, ingest, ring_dir, dir }
    }

    /// Waits until the collector has acknowledged everything, then stops the agent and the
    /// sessions.
    pub(crate) fn stop(self) -> Result<Stopped, String> {
        let Self { collector, agent, nbd_socket: _, backing, cuts, ingest, ring_dir, dir } = self;
        let stopped = agent.stop();
        ingest.stop();
        drop(ring_dir);
        stopped?;
        Ok(Stopped { collector, backing, cuts, _dir: dir })
    }
}

/// Data where the contents are not zero, holes elsewhere.
fn make_backing(path: &Path, base: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create_new(path).expect("a new file");
    file.set_len(base.len() as u64).expect("a size");
    for (number, block) in base.chunks(4096).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, number as u64 * 4096).expect("written");
        }
    }
    file.sync_all().expect("synced");
}

fn ring_spec(case: &Case, volume: VolumeId, payload_bytes: u64) -> RingSpec {
    let (ring_bytes, slots) = match case.ring {
        // Every payload may take two pages more than it has, and the first copy half of the ring.
        RingSort::Roomy => {
            let pages = payload_bytes + case.draws.len() as u64 * 8192;
            ((pages * 2 + case.sectors * 1024).next_multiple_of(TINY_RING_BYTES), ROOMY_SLOTS)
        }
        RingSort::Tiny { slots } => (TINY_RING_BYTES, slots),
    };
    RingSpec { volume, ring_bytes, slots, boot_id: boot_id().expect("the boot id") }
}

struct Places<'a> {
    dir: &'a Path,
    ring: &'a Path,
    backing: &'a Path,
    nbd_socket: &'a Path,
}

impl Agent {
    fn start(places: &Places<'_>, spec: &RingSpec, dial: WorseDial) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let random: Arc<dyn Random> = Arc::new(SystemSource::default());
        let state = Arc::new(new_state(places.dir, spec.volume));
        let store = UringStore::open(places.backing, OpenMode::ReadWrite).expect("a store");
        let ring =
            Ring::create(places.ring, spec, Seq(1), Mlock::WherePermitted, Arc::clone(&clock))
                .expect("a ring");
        ring.set_seq_limit(state.get().reserved_until);
        ring.turn_capture_on();
        let intent = IntentLog::volatile(store.geometry().size_bytes);
        let capture = Arc::new(Capture::new(NAME.to_owned(), ring, Arc::clone(intent.map())));
        let volume = Arc::new(Volume::new(spec.volume, store, capture, intent));
        let workers =
            Workers::start("serve", WORKERS, ExecutorConfig::default()).expect("executors");
        let (copied, source) = (Arc::clone(&volume), Arc::clone(&random));
        let timer = copy::EngineTimer::new(Arc::clone(&clock));
        workers.spawn_on(0, move || copy::run(copied, source, timer));
        let parts = ShipperParts {
            facts: VolumeFacts {
                id: volume.id(),
                block_bytes: u32::try_from(volume.unit_bytes()).expect("a small unit"),
            },
            capture: Arc::clone(volume.capture()),
            state: Arc::clone(&state),
            agent: AgentId::from_random(random.bytes()),
            run: AgentRun::from_random(random.bytes()),
            first: Seq(1),
            clock: Arc::clone(&clock),
            random,
        };
        let shipper = Shipper::start(parts, Box::new(dial)).expect("a thread");
        let exports = Arc::new(ExportList::new());
        let export = Export {
            name: NAME.to_owned(),
            description: String::new(),
            device: Arc::clone(&volume),
        };
        exports.add(export).expect("the only export");
        let address = Address::Unix(places.nbd_socket.to_owned());
        let listener = Listener::bind(&address).expect("a listening socket");
        let server =
            Server::start(exports, vec![listener], &workers.handle(), ServerConfig::default());
        Self { workers, server, shipper, volume, state, clock }
    }

    fn is_whole(&self) -> bool {
        let capture = self.volume.capture();
        let whole = matches!(capture.phases().phase(), Phase::Whole { .. });
        whole && capture.is_on() && self.state.get().copied
    }

    /// Waits until the collector has a whole copy of the volume.
    pub(crate) fn wait_whole(&self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_whole() {
            if Instant::now() > deadline {
                let phase = self.volume.capture().phases().phase();
                let used = self.volume.capture().ring().used();
                return Err(format!("the volume is not whole in time: {phase:?}, {used:?}"));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn stop(self) -> Result<(), String> {
        let whole = self.wait_whole();
        self.server.stop();
        self.volume.capture().close();
        let drained = self.shipper.stop(PATIENCE, self.clock.as_ref());
        self.workers.shutdown();
        whole?;
        match drained {
            Drained::Yes => Ok(()),
            Drained::No => Err("the shipper left records in the ring".into()),
        }
    }
}

fn new_state(dir: &Path, volume: VolumeId) -> KeptState {
    let state = VolumeState {
        volume,
        reserved_until: Seq(SEQ_RESERVATION),
        known: Seq(0),
        unsure_after: None,
        journal: JournalId::NIL,
        timeline: Timeline(1),
        epoch: Epoch(0),
        copied: false,
        covered: true,
        clean: false,
        released: Seq(0),
        paused: false,
        last_time: WallMicros(0),
        backing: None,
    };
    let file = StateFile::new(dir, NAME);
    file.store(&state).expect("stored");
    KeptState::new(file, state)
}
