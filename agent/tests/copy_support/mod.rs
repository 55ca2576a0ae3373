//! A protected disk in this process, and a collector in memory that can be killed: it keeps what
//! it has acknowledged, and forgets the rest.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tidemark_agent::capture::Capture;
use tidemark_agent::capture::phase::Phase;
use tidemark_agent::clock::{Clock, SystemClock};
use tidemark_agent::copy;
use tidemark_agent::intent_log::IntentLog;
use tidemark_agent::intent_log::map::IntentMap;
use tidemark_agent::random::{Random, SystemSource};
use tidemark_agent::ring::{Mlock, Recovery, Ring, RingSpec};
use tidemark_agent::shipper::link::{Dial, Link, receive_frame};
use tidemark_agent::shipper::{Shipper, ShipperParts, VolumeFacts};
use tidemark_agent::state::{KeptState, StateFile, VolumeState};
use tidemark_agent::volume::Volume;
use tidemark_block::engine::{ExecutorConfig, Workers};
use tidemark_block::store::{OpenMode, UringStore};
use tidemark_wire::compare::{
    Compare, Differ, DifferNode, LEAF_BYTES, NodeHash, NodeRange, leaf_hash, node_hash,
};
use tidemark_wire::frame::{self, FrameKind, RecordsBody};
use tidemark_wire::instruct::{Instruct, InstructKind, Obeyed, Verified};
use tidemark_wire::session::{Ack, Hello, Lineage, Standing, Welcome};
use tidemark_wire::{
    AgentId, AgentRun, Epoch, JournalId, RecordKind, Seq, Timeline, VolumeId, WallMicros,
};

/// Several parts for each lane, and a short last node.
pub(crate) const DISK_BYTES: u64 = (160 << 20) + (70 << 10);
const JOURNAL: JournalId = JournalId::from_bytes([5; 16]);
const VOLUME: VolumeId = VolumeId::from_bytes([7; 16]);
const PATIENCE: Duration = Duration::from_secs(60);

/// What the collector holds and has seen.
pub(crate) struct Kept {
    pub(crate) image: Vec<u8>,
    pub(crate) durable: Seq,
    pub(crate) span_open: Seq,
    pub(crate) seeded: bool,
    pub(crate) last_time: WallMicros,
    epoch: Epoch,
    /// Bytes of payload that came for the disk, also those that were forgotten.
    pub(crate) data_bytes: u64,
    pub(crate) kinds: Vec<RecordKind>,
    pub(crate) times: Vec<WallMicros>,
    pub(crate) questions: usize,
    pub(crate) standings: Vec<Standing>,
    pub(crate) obeyed: Vec<[u8; 16]>,
    pub(crate) verified: Option<Verified>,
    /// What lay where a record went, since a test began to keep it: for states of before.
    pub(crate) before: Option<Vec<(Seq, usize, Vec<u8>)>>,
    /// The collector is killed once so many more bytes of data came.
    pub(crate) kill_after: Option<u64>,
    /// The collector is killed at the question after so many.
    pub(crate) kill_at_question: Option<usize>,
    stream: Option<UnixStream>,
}

/// See the module's documentation.
#[derive(Clone)]
pub(crate) struct Collector(Arc<Mutex<Kept>>);

impl Collector {
    /// One that holds no record, and zeroes below.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Kept {
            image: vec![0; usize::try_from(DISK_BYTES).unwrap()],
            durable: Seq(0),
            span_open: Seq(0),
            seeded: false,
            last_time: WallMicros(0),
            epoch: Epoch(1),
            data_bytes: 0,
            kinds: Vec::new(),
            times: Vec::new(),
            questions: 0,
            standings: Vec::new(),
            obeyed: Vec::new(),
            verified: None,
            before: None,
            kill_after: None,
            kill_at_question: None,
            stream: None,
        })))
    }

    pub(crate) fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap()
    }

    /// Forgets what was counted so far.
    pub(crate) fn count_anew(&self) {
        let mut kept = self.kept();
        (kept.data_bytes, kept.questions) = (0, 0);
        kept.kinds.clear();
    }

    /// Hands a wish on; it is named by `id` 16 times.
    pub(crate) fn instruct_as(&self, id: u8, what: InstructKind, from_bytes: u64) {
        wait_for("a session", || self.kept().stream.is_some());
        let stream = self.kept().stream.as_ref().unwrap().try_clone().unwrap();
        let wanted = Instruct { id: [id; 16], what, from_bytes };
        send(&stream, FrameKind::Instruct, |body| wanted.encode(body)).unwrap();
    }

    pub(crate) fn instruct(&self, what: InstructKind) {
        self.instruct_as(1, what, 0);
    }

    fn serve(&self, mut stream: UnixStream) -> Option<()> {
        let mut body = Vec::new();
        receive_frame(&mut stream, &mut body).ok()?;
        let hello = Hello::decode(&body).unwrap();
        assert_eq!(hello.size_bytes, DISK_BYTES);
        let welcome = {
            let mut kept = self.kept();
            kept.epoch.0 += 1;
            kept.stream = Some(stream.try_clone().unwrap());
            Welcome {
                journal: JOURNAL,
                timeline: Timeline(1),
                epoch: kept.epoch,
                durable: kept.durable,
                span_open: kept.span_open,
                window_bytes: 4 << 20,
                seeded: kept.seeded,
                last_time: kept.last_time,
                size_bytes: DISK_BYTES,
                lineage: Lineage::Same,
                compare: false,
                unsure: Vec::new(),
            }
        };
        send(&stream, FrameKind::Welcome, |body| welcome.encode(body)).ok()?;
        loop {
            match receive_frame(&mut stream, &mut body).ok()? {
                FrameKind::Records => {
                    let durable = self.kept().append(&RecordsBody::decode(&body).unwrap())?;
                    let ack = Ack { durable: durable.0.into() };
                    send(&stream, FrameKind::Ack, |body| ack.encode(body)).ok()?;
                }
                FrameKind::Compare => {
                    let differ = self.kept().answer(&Compare::decode(&body).unwrap())?;
                    send(&stream, FrameKind::Differ, |body| differ.encode(body)).ok()?;
                }
                FrameKind::Standing => {
                    self.kept().standings.push(Standing::decode(&body).unwrap());
                }
                FrameKind::Obeyed => self.kept().obeyed.push(Obeyed::decode(&body).unwrap().id),
                FrameKind::Verified => {
                    self.kept().verified = Some(Verified::decode(&body).unwrap());
                }
                FrameKind::Progress => {}
                FrameKind::Goodbye => return None,
                other => panic!("{other:?}"),
            }
        }
    }
}

impl Kept {
    /// `None` when the collector is killed before the frame is durable.
    fn append(&mut self, frame: &RecordsBody<'_>) -> Option<Seq> {
        let records: Vec<_> = frame.records().map(Result::unwrap).collect();
        let data: u64 = records
            .iter()
            .filter(|one| one.kind.has_data())
            .map(|one| one.header.len_bytes.get())
            .sum();
        self.data_bytes += data;
        if let Some(left) = &mut self.kill_after {
            *left = left.saturating_sub(data);
            if *left == 0 {
                self.kill_after = None;
                return None;
            }
        }
        let mut scratch = Vec::new();
        for record in records {
            let seq = record.header.seq();
            assert!(seq > self.durable, "{seq} after {}", self.durable);
            let start = usize::try_from(record.header.offset_bytes.get()).unwrap();
            let end = start + usize::try_from(record.header.len_bytes.get()).unwrap();
            let payload = record.payload(&mut scratch).unwrap();
            if let Some(before) = &mut self.before {
                before.push((seq, start, self.image[start..end].to_vec()));
            }
            match record.kind {
                RecordKind::Write | RecordKind::ReadBack => {
                    self.image[start..end].copy_from_slice(payload);
                }
                RecordKind::WriteZeroes | RecordKind::Trim => self.image[start..end].fill(0),
                RecordKind::Gap | RecordKind::ResyncBegin => self.span_open = seq,
                RecordKind::ResyncEnd => self.span_open = Seq(0),
                _ => {}
            }
            self.durable = seq;
            self.kinds.push(record.kind);
            self.times.push(WallMicros(record.header.time_us.get()));
        }
        Some(self.durable)
    }

    /// Some nodes as they were at a number.
    fn state(&self, nodes: NodeRange, at: Seq) -> Vec<u8> {
        let place = |at: u64| usize::try_from(at).unwrap();
        let (first, end) = (place(nodes.offset_bytes()), place(nodes.end_bytes()));
        let mut image = self.image[first..end].to_vec();
        let later = self.before.iter().flatten().rev().take_while(|(seq, ..)| *seq > at);
        for (_, start, bytes) in later {
            let (from, to) = ((*start).clamp(first, end), (start + bytes.len()).clamp(first, end));
            if from < to {
                image[from - first..to - first].copy_from_slice(&bytes[from - start..to - start]);
            }
        }
        image
    }

    fn answer(&mut self, question: &Compare) -> Option<Differ> {
        assert!(question.min_seq <= self.durable, "asked before the begin is durable");
        self.questions += 1;
        if self.kill_at_question.take_if(|at| *at < self.questions).is_some() {
            return None;
        }
        let at = if question.exact { question.min_seq } else { self.durable };
        let (image, first) = (self.state(question.range, at), question.range.offset_bytes());
        let differs = |(index, hash): (usize, &NodeHash)| {
            let (start, len) = question.range.node(index);
            let start = usize::try_from(start - first).unwrap();
            let len = usize::try_from(len).unwrap();
            let leaf_bytes = usize::try_from(LEAF_BYTES).unwrap();
            let leaves: Vec<_> =
                image[start..start + len].chunks(leaf_bytes).map(leaf_hash).collect();
            (!node_hash(&leaves).matches(*hash)).then_some(DifferNode { index, leaves })
        };
        let nodes = question.nodes.iter().enumerate().filter_map(differs).collect();
        Some(Differ { id: question.id, range: question.range, nodes })
    }
}

fn send(
    mut stream: &UnixStream,
    kind: FrameKind,
    encode: impl FnOnce(&mut Vec<u8>),
) -> io::Result<()> {
    let (mut body, mut out) = (Vec::new(), Vec::new());
    encode(&mut body);
    frame::encode(kind, &body, &mut out);
    stream.write_all(&out)
}

impl Dial for Collector {
    fn dial(&self) -> io::Result<Link> {
        let (ours, theirs) = UnixStream::pair()?;
        let collector = self.clone();
        std::thread::spawn(move || {
            let closer = theirs.try_clone().unwrap();
            collector.serve(theirs);
            let _ = closer.shutdown(Shutdown::Both);
        });
        let (reader, closer) = (ours.try_clone()?, ours.try_clone()?);
        Ok(Link {
            reader: Box::new(reader),
            writer: Box::new(ours),
            closer: Box::new(move || drop(closer.shutdown(Shutdown::Both))),
        })
    }

    fn peer(&self) -> String {
        "the collector in memory".into()
    }
}

/// What outlives an agent that is killed.
pub(crate) struct Ground {
    pub(crate) backing: PathBuf,
    ring: PathBuf,
    map: Arc<IntentMap>,
    dir: TempDir,
    _ring_dir: TempDir,
}

/// A running agent.
pub(crate) struct Agent {
    pub(crate) volume: Arc<Volume<UringStore>>,
    pub(crate) state: Arc<KeptState>,
    shipper: Shipper,
    workers: Workers,
    clock: Arc<dyn Clock>,
}

impl Ground {
    /// A disk that is one hole.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ring_dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (backing, ring) = (dir.path().join("disk"), ring_dir.path().join("ring"));
        std::fs::File::create(&backing).unwrap().set_len(DISK_BYTES).unwrap();
        let state = VolumeState {
            volume: VOLUME,
            reserved_until: Seq(1 << 20),
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
        StateFile::new(dir.path(), "data").store(&state).unwrap();
        let map = Arc::new(IntentMap::volatile(DISK_BYTES));
        Self { backing, ring, map, dir, _ring_dir: ring_dir }
    }

    /// Writes to the backing file, past any agent: noise of `len` bytes that follows from `seed`.
    pub(crate) fn fill(&self, at: u64, len: usize, seed: u64) {
        let file = std::fs::OpenOptions::new().write(true).open(&self.backing).unwrap();
        file.write_all_at(&noise(len, seed), at).unwrap();
    }

    /// Starts an agent on what is there, as the daemon does.
    pub(crate) fn start(&self, collector: &Collector) -> Agent {
        collector.kept().stream = None;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let random: Arc<dyn Random> = Arc::new(SystemSource::default());
        let file = StateFile::new(self.dir.path(), "data");
        let mut state = file.load().unwrap().unwrap();
        let first = state.reserved_until;
        state.reserved_until.0 += 1 << 20;
        file.store(&state).unwrap();
        let spec = RingSpec { volume: VOLUME, ring_bytes: 8 << 20, slots: 2048, boot_id: [9; 16] };
        let (ring, recovery) = self.ring(&spec, first, &clock);
        ring.set_seq_limit(state.reserved_until);
        let store = open_store(&self.backing);
        // No file: who is killed leaves the map, of which a successor believes the bits.
        let intent = IntentLog::failed(Arc::clone(&self.map));
        let capture = Arc::new(Capture::new("data".into(), ring, Arc::clone(intent.map())));
        if let Some(recovery) = recovery {
            assert!(!recovery.capture_was_off && recovery.in_flight.is_empty());
            capture.ring().settle(recovery);
        }
        let state = Arc::new(KeptState::new(file, state));
        let volume = Arc::new(Volume::new(VOLUME, store, Arc::clone(&capture), intent));
        let workers = Workers::start("serve", 2, ExecutorConfig::default()).unwrap();
        let (copied, source) = (Arc::clone(&volume), Arc::clone(&random));
        let timer = copy::EngineTimer::new(Arc::clone(&clock));
        workers.spawn_on(0, move || copy::run(copied, source, timer));
        let verified = Arc::clone(&volume);
        let timer = copy::EngineTimer::new(Arc::clone(&clock));
        workers.spawn_on(0, move || copy::verify::run(verified, timer));
        let parts = ShipperParts {
            facts: VolumeFacts { id: VOLUME, block_bytes: 512 },
            capture,
            state: Arc::clone(&state),
            agent: AgentId::from_bytes([1; 16]),
            clock: Arc::clone(&clock),
            random,
            run: AgentRun::default(),
            first,
        };
        let shipper = Shipper::start(parts, Box::new(collector.clone())).unwrap();
        Agent { volume, state, shipper, workers, clock }
    }

    fn ring(
        &self,
        spec: &RingSpec,
        first: Seq,
        clock: &Arc<dyn Clock>,
    ) -> (Ring, Option<Recovery>) {
        let mlock = Mlock::WherePermitted;
        if self.ring.exists() {
            let opened = Ring::open(&self.ring, spec, first, mlock, Arc::clone(clock)).unwrap();
            return (opened.0, Some(opened.1));
        }
        let ring = Ring::create(&self.ring, spec, first, mlock, Arc::clone(clock)).unwrap();
        ring.turn_capture_on();
        (ring, None)
    }
}

/// The predecessor's last I/O may hold the lock for a moment.
fn open_store(path: &std::path::Path) -> UringStore {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UringStore::open(path, OpenMode::ReadWrite) {
            Ok(store) => return store,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Agent {
    pub(crate) fn capture(&self) -> &Arc<Capture> {
        self.volume.capture()
    }

    pub(crate) fn is_whole(&self) -> bool {
        let ended = matches!(self.capture().phases().phase(), Phase::Whole { .. });
        ended && self.capture().is_on() && self.state.get().copied
    }

    pub(crate) fn wait_whole(&self) {
        wait_for("the collector has a whole copy", || self.is_whole());
    }

    /// Runs a task on the second executor; the copy is on the first.
    pub(crate) fn spawn<F: Future<Output = ()> + 'static>(
        &self,
        make: impl FnOnce() -> F + Send + 'static,
    ) {
        self.workers.spawn_on(1, make);
    }

    /// Ends it in the middle of what it does; what it had not sent stays in the ring.
    pub(crate) fn kill(self) {
        self.capture().close();
        self.shipper.stop(Duration::ZERO, self.clock.as_ref());
        self.workers.shutdown();
    }
}

pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Bytes that do not shrink and are not zero (SplitMix64; Steele, Lea, Flood 2014).
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) | 1
    });
    words.take(len.div_ceil(8)).flat_map(u64::to_le_bytes).take(len).collect()
}
