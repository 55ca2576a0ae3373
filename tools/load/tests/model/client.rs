//! A small NBD client: newstyle, simple replies, several requests in flight on a connection.
//!
//! One thread sends and one receives, so that neither side ever waits for the other to read.
//! Source of the numbers: `doc/proto.md` of the NetworkBlockDevice/nbd repository.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use super::log::{Answer, Log};
use super::plan::{Op, Sort};

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const OPTION_EXPORT_NAME: u32 = 1;
/// Fixed newstyle, and no padding behind the answer to the option.
const CLIENT_FLAGS: u32 = 3;
const FLAG_FUA: u16 = 1;
const FLAG_NO_HOLE: u16 = 2;
const FLAG_FAST_ZERO: u16 = 16;
const DISCONNECT: u16 = 2;
/// A server that is silent for so long has lost a request.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Connects to an export and checks its size.
pub(crate) fn connect(socket: &Path, export: &str, size_bytes: u64) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.set_write_timeout(Some(SILENCE_MAX))?;
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    let mut hello = CLIENT_FLAGS.to_be_bytes().to_vec();
    hello.extend_from_slice(b"IHAVEOPT");
    hello.extend_from_slice(&OPTION_EXPORT_NAME.to_be_bytes());
    hello.extend_from_slice(&u32::try_from(export.len()).expect("short").to_be_bytes());
    hello.extend_from_slice(export.as_bytes());
    stream.write_all(&hello)?;
    let mut answer = [0; 10];
    stream.read_exact(&mut answer)?;
    let size = u64::from_be_bytes(answer[..8].try_into().expect("eight bytes"));
    assert_eq!(size, size_bytes, "size of the export");
    Ok(stream)
}

/// Sends the operations `mine`, at most `depth` of them unanswered at a time, and takes all the
/// answers.
pub(crate) fn run(
    stream: &UnixStream,
    ops: &[Op],
    mine: &[usize],
    depth: usize,
    log: &Log,
) -> io::Result<()> {
    let (permits, taken) = sync_channel(depth);
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || send_all(stream, ops, mine, &permits, log));
        let received = receive_all(stream, ops, mine.len(), &taken, log);
        // A receiver that gave up lets the sender go on; its own error is the one to tell.
        drop(taken);
        let sent = sender.join().expect("the sender does not panic");
        received.and(sent)
    })
}

fn send_all(
    mut stream: &UnixStream,
    ops: &[Op],
    mine: &[usize],
    permits: &SyncSender<()>,
    log: &Log,
) -> io::Result<()> {
    for &number in mine {
        if permits.send(()).is_err() {
            return Ok(());
        }
        let mut request = request(number, &ops[number]);
        request.extend_from_slice(&ops[number].data);
        log.sent(number);
        stream.write_all(&request)?;
    }
    Ok(())
}

fn request(number: usize, op: &Op) -> Vec<u8> {
    let mut flags = 0;
    let asked = [(op.fua, FLAG_FUA), (op.no_hole, FLAG_NO_HOLE), (op.fast, FLAG_FAST_ZERO)];
    for (is_set, flag) in asked {
        flags |= if is_set { flag } else { 0 };
    }
    let command: u16 = match op.sort {
        Sort::Read => 0,
        Sort::Write => 1,
        Sort::Flush => 3,
        Sort::Trim => 4,
        Sort::Zero => 6,
    };
    header(flags, command, number as u64, op.range.start(), op.range.len())
}

fn header(flags: u16, command: u16, cookie: u64, start: u64, len: u64) -> Vec<u8> {
    let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&start.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(len).expect("a short request").to_be_bytes());
    bytes
}

fn receive_all(
    mut stream: &UnixStream,
    ops: &[Op],
    count: usize,
    taken: &Receiver<()>,
    log: &Log,
) -> io::Result<()> {
    for _ in 0..count {
        let mut head = [0; 16];
        stream.read_exact(&mut head)?;
        let (magic, rest) = head.split_at(4);
        assert_eq!(magic, SIMPLE_REPLY_MAGIC.to_be_bytes(), "a simple reply");
        let error = u32::from_be_bytes(rest[..4].try_into().expect("four bytes"));
        let cookie = u64::from_be_bytes(rest[4..].try_into().expect("eight bytes"));
        let number = usize::try_from(cookie).expect("a cookie of ours");
        let op = ops.get(number).expect("a cookie of ours");
        let mut data = Vec::new();
        if op.sort == Sort::Read && error == 0 {
            data.resize(usize::try_from(op.range.len()).expect("short"), 0);
            stream.read_exact(&mut data)?;
        }
        log.answered(number, Answer { error, data });
        // Taken only now, so that what is in flight is never more than the depth.
        let _ = taken.recv();
    }
    Ok(())
}

/// Leaves in order.
pub(crate) fn leave(mut stream: UnixStream) -> io::Result<()> {
    stream.write_all(&header(0, DISCONNECT, 0, 0, 0))
}
