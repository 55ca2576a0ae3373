//! `tidemark-load witness …`.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};

use super::log::{Kind, Log, NEVER, Op};
use super::moment::Interval;
use super::pattern::{Base, Pattern, base_at};
use super::records::{self, Figures, Journal};
use super::verdict::{Check, History};
use super::views::{self, Sampling};
use super::writer::{self, Run};
use crate::nbd::Connection;

/// Read from an image at once.
const IMAGE_STEP_BYTES: usize = 1 << 20;

/// What the witness is to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make the disk of the beginning: holes, zeroes and data.
    Base {
        /// The file to make.
        #[arg(long)]
        file: PathBuf,
        /// Its size.
        #[arg(long)]
        size_mib: u64,
        #[command(flatten)]
        seed: Seed,
    },
    /// Write to an export and keep the log.
    Write(WriteArguments),
    /// Check that an image of the disk is the state at the end: all that was acknowledged is in.
    Image {
        #[command(flatten)]
        log: LogArgument,
        /// The image.
        #[arg(long)]
        file: PathBuf,
    },
    /// Check that the journal has every change once, in an order that the log allows.
    Journal {
        #[command(flatten)]
        log: LogArgument,
        #[command(flatten)]
        records: RecordsArgument,
    },
    /// Check states that the collector serves, and before that the journal.
    Views(ViewsArguments),
    /// Copy a log with one bit of it changed: a byte of the range of the write that was
    /// acknowledged last. No check may hold any more.
    Flip {
        #[command(flatten)]
        log: LogArgument,
        /// The copy.
        #[arg(long)]
        out: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Seed {
    /// What the bytes and the operations are made from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct LogArgument {
    /// The witness's log.
    #[arg(long)]
    log: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct RecordsArgument {
    /// Answers of `tidemark --json journal inspect VOLUME SEGMENT`, one for each segment.
    #[arg(long, num_args = 1.., required = true)]
    records: Vec<PathBuf>,
    /// More gaps in the stream are a failure.
    #[arg(long, default_value_t = 0)]
    gaps_max: usize,
}

#[derive(Debug, Args)]
pub(crate) struct WriteArguments {
    /// Unix socket of the NBD server.
    #[arg(long)]
    socket: PathBuf,
    /// Name of the export.
    #[arg(long)]
    export: String,
    #[command(flatten)]
    log: LogArgument,
    /// How long to write.
    #[arg(long)]
    seconds: u64,
    /// Connections.
    #[arg(long, default_value_t = 4)]
    connections: u32,
    /// Operations without an answer at once, on each connection.
    #[arg(long, default_value_t = 32)]
    depth: usize,
    /// Bytes written in the mean; they come in bursts.
    #[arg(long, default_value_t = 40)]
    mib_per_second: u64,
    /// Go on from a log that is there; its seed counts.
    #[arg(long)]
    resume: bool,
    /// The server may go away in the middle.
    #[arg(long)]
    may_lose: bool,
    #[command(flatten)]
    seed: Seed,
}

#[derive(Debug, Args)]
pub(crate) struct ViewsArguments {
    #[command(flatten)]
    log: LogArgument,
    #[command(flatten)]
    records: RecordsArgument,
    /// Name of the volume at the collector.
    #[arg(long)]
    volume: String,
    /// Folder for the sockets of the exports.
    #[arg(long)]
    sockets: PathBuf,
    /// How many states to open.
    #[arg(long, default_value_t = 1000)]
    states: usize,
    /// How many of them to read whole.
    #[arg(long, default_value_t = 5)]
    whole: usize,
    /// How many places of 64 KiB to read at random, for each state.
    #[arg(long, default_value_t = 200)]
    places: u64,
}

/// Does it, and prints the figures.
pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Base { file, size_mib, seed } => make_base(file, size_mib << 20, seed.seed),
        Command::Write(arguments) => write(arguments),
        Command::Image { log, file } => image(&Log::read(&log.log)?, file),
        Command::Journal { log, records } => {
            let log = Log::read(&log.log)?;
            journal(records, &log, &History::new(&log)).map(|_| ())
        }
        Command::Views(arguments) => views(arguments),
        Command::Flip { log, out } => flip(&log.log, out),
    }
}

fn make_base(path: &Path, size_bytes: u64, seed: u64) -> anyhow::Result<()> {
    let pattern = Pattern { seed };
    let file = File::create_new(path).with_context(|| format!("create {}", path.display()))?;
    file.set_len(size_bytes)?;
    let mut at = 0;
    while at < size_bytes {
        let (base, end) = base_at(at);
        let end = end.min(size_bytes);
        let mut bytes = vec![0; usize::try_from(end - at).context("address space")?];
        if base != Base::Hole {
            pattern.fill_base(at, &mut bytes);
            file.write_all_at(&bytes, at)?;
        }
        at = end;
    }
    file.sync_all().with_context(|| format!("sync {}", path.display()))
}

fn write(arguments: &WriteArguments) -> anyhow::Result<()> {
    let run = Run {
        socket: arguments.socket.clone(),
        export: arguments.export.clone(),
        seconds: arguments.seconds,
        connections: arguments.connections,
        depth: arguments.depth,
        mib_per_second: arguments.mib_per_second,
    };
    let path = &arguments.log.log;
    let mut log = if arguments.resume {
        Log::read(path)?
    } else {
        let size_bytes = Connection::open(&run.socket, &run.export)?.size_bytes();
        Log { pattern: Pattern { seed: arguments.seed.seed }, size_bytes, ops: Vec::new() }
    };
    ensure!(log.size_bytes >= 1 << 20, "the disk has {} bytes; 1 MiB is least", log.size_bytes);
    let before = log.ops.len();
    let done = writer::run(&run, &mut log)?;
    log.write(path)?;
    let of =
        |wanted: fn(Kind) -> bool| log.ops[before..].iter().filter(|op| wanted(op.kind)).count();
    println!(
        "written: {} operations ({} writes, {} zeroes, {} trims, {} flushes), {} acknowledged, \
         {} errors, {} refused at the server's stop, {} connections lost, up to {} in flight on each of {} connections; {} met \
         another one in flight",
        done.ops,
        of(|kind| matches!(kind, Kind::Write { .. })),
        of(|kind| matches!(kind, Kind::Zeroes { .. })),
        of(|kind| kind == Kind::Trim),
        of(|kind| kind == Kind::Flush),
        done.acknowledged,
        done.errors,
        done.refused,
        done.lost,
        done.in_flight_max,
        run.connections,
        overlapping(&log.ops[before..])
    );
    ensure!(done.errors == 0, "{} operations were answered with an error", done.errors);
    let lost = done.lost + done.refused;
    ensure!(arguments.may_lose || lost == 0, "the server went away");
    Ok(())
}

/// How many operations share bytes with one that was in flight when they were submitted.
fn overlapping(ops: &[Op]) -> usize {
    let mut open: Vec<&Op> = Vec::new();
    let mut count = 0;
    for op in ops.iter().filter(|op| op.len > 0) {
        open.retain(|other| other.acknowledged > op.submitted);
        let meets = |other: &&Op| other.offset < op.end() && op.offset < other.end();
        count += usize::from(open.iter().any(meets));
        open.push(op);
    }
    count
}

fn image(log: &Log, path: &Path) -> anyhow::Result<()> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let len = file.metadata()?.len();
    ensure!(
        len == log.size_bytes,
        "{} has {len} bytes, the disk {}",
        path.display(),
        log.size_bytes
    );
    let history = History::new(log);
    let end = Interval::new(NEVER - 1, NEVER - 1);
    let mut check = Check::new(&history, end);
    let mut bytes = vec![0; IMAGE_STEP_BYTES];
    let mut at = 0;
    while at < len {
        let step = usize::try_from(len - at).unwrap_or(usize::MAX).min(bytes.len());
        file.read_exact(&mut bytes[..step])?;
        check.bytes(at, &bytes[..step]).with_context(|| format!("{}", path.display()))?;
        at += step as u64;
    }
    println!("image: {len} bytes are the state with all that was acknowledged");
    Ok(())
}

fn journal<'a>(
    arguments: &RecordsArgument,
    log: &'a Log,
    history: &History<'a>,
) -> anyhow::Result<Journal<'a>> {
    let journal = Journal::check(records::read(&arguments.records)?, log, history)?;
    let Figures { records, matched, ambiguous, zeroes_read_back, copies, gaps } = journal.figures;
    println!(
        "journal: {records} records with rising numbers; {matched} are matched to one operation, \
         each of which is there once, wholly, and in an allowed order; {ambiguous} fit several; \
         {zeroes_read_back} zeroed ranges were read back; {copies} copies, {gaps} gaps"
    );
    ensure!(gaps <= arguments.gaps_max, "{gaps} gaps in the stream");
    ensure!(copies <= 1 + arguments.gaps_max, "{copies} copies of the volume");
    Ok(journal)
}

fn views(arguments: &ViewsArguments) -> anyhow::Result<()> {
    let log = Log::read(&arguments.log.log)?;
    let history = History::new(&log);
    let journal = journal(&arguments.records, &log, &history)?;
    let sampling = Sampling {
        volume: arguments.volume.clone(),
        sockets: arguments.sockets.clone(),
        states: arguments.states,
        whole: arguments.whole,
        places: arguments.places,
        seed: log.pattern.seed,
    };
    let looked = views::check(&sampling, &journal, &history, log.size_bytes)?;
    println!(
        "views: {} states are ones that the log allows, {} of them read whole, the others at {} \
         places of 64 KiB and where they changed last; {} MiB looked at; in {} the newest change \
         is there exactly",
        looked.states,
        looked.whole,
        sampling.places,
        looked.bytes >> 20,
        looked.exact
    );
    Ok(())
}

/// True when no operation that was on its way with a write, or came later, touches its bytes or
/// those beside them: only then does every state after it show where it was.
fn is_last(write: &Op, ops: &[Op]) -> bool {
    let beside = |op: &Op| op.offset <= write.end() && write.offset <= op.end();
    let others = ops.iter().filter(|op| op.number != write.number && op.kind != Kind::Flush);
    !others.filter(|op| op.acknowledged > write.submitted).any(beside)
}

fn flip(from: &Path, to: &Path) -> anyhow::Result<()> {
    let log = Log::read(from)?;
    let writes = log.ops.iter().filter(|op| matches!(op.kind, Kind::Write { .. }));
    let acknowledged = writes.filter(|op| op.acknowledged != NEVER && is_last(op, &log.ops));
    let last = acknowledged.max_by_key(|op| op.acknowledged).context("no write in the log")?;
    let mut text = fs::read_to_string(from)?.into_bytes();
    let lines = text.split(|byte| *byte == b'\n');
    let head = format!("{} ", last.number).into_bytes();
    let mut line_at = 0;
    for line in lines {
        if line_at > 0 && line.starts_with(&head) {
            break;
        }
        line_at += line.len() + 1;
    }
    // Number, connection, kind, offset: the flipped digit is the last one of the offset.
    let spaces = text[line_at..].iter().enumerate().filter(|(_, byte)| **byte == b' ');
    let (end, _) = spaces.map(|(at, byte)| (at, *byte)).nth(3).context("a line of the log")?;
    let at = line_at + end - 1;
    text[at] ^= 1;
    fs::write(to, &text).with_context(|| format!("write {}", to.display()))?;
    println!(
        "flipped: one bit of byte {at} of the log, in the offset of operation {}",
        last.number
    );
    Ok(())
}
