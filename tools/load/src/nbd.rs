//! A small NBD client over a unix socket, of the tests' own: it shares nothing with the server
//! that it looks at.
//!
//! Fixed newstyle, `NBD_OPT_GO`, simple replies (NBD protocol, `doc/proto.md` of the nbd
//! project). Requests and replies are separate calls, so that one thread may send while another
//! receives; a reply is matched to its request by the cookie.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

const GREETING_MAGIC: &[u8; 16] = b"NBDMAGICIHAVEOPT";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const FIXED_NEWSTYLE: u16 = 1;
const FIXED_NEWSTYLE_NO_ZEROES: u32 = 3;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_ERROR_BIT: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
/// Longest answer to an option that is read.
const OPTION_REPLY_BYTES_MAX: u32 = 64 * 1024;
/// Longest wait for the server, in either direction.
const PATIENCE: Duration = Duration::from_secs(60);

/// Error of an answer: the server is stopping.
pub(crate) const ERROR_SHUTTING_DOWN: u32 = 108;
/// Flag of a request: on stable storage before the answer.
pub(crate) const FLAG_FUA: u16 = 1;
/// Flag of write-zeroes: keep the range allocated.
pub(crate) const FLAG_NO_HOLE: u16 = 2;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
    Trim = 4,
    WriteZeroes = 6,
}

/// One request without its payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) command: Command,
    pub(crate) flags: u16,
    pub(crate) cookie: u64,
    pub(crate) offset_bytes: u64,
    pub(crate) len_bytes: u32,
}

/// Head of one answer; the payload of a read that went well follows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reply {
    pub(crate) cookie: u64,
    /// 0 or an errno.
    pub(crate) error: u32,
}

/// An open connection to one export.
pub(crate) struct Connection {
    stream: UnixStream,
    size_bytes: u64,
}

impl Connection {
    /// Connects and chooses the export.
    pub(crate) fn open(socket: &Path, export: &str) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut connection = Self { stream, size_bytes: 0 };
        connection
            .negotiate(export)
            .with_context(|| format!("export {export:?} at {}", socket.display()))?;
        Ok(connection)
    }

    /// A second handle, so that two threads can each do one direction.
    pub(crate) fn second_handle(&self) -> anyhow::Result<Self> {
        Ok(Self { stream: self.stream.try_clone()?, size_bytes: self.size_bytes })
    }

    /// Size of the export.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Sends a request; `payload` is empty for all but writes.
    pub(crate) fn send(&mut self, request: &Request, payload: &[u8]) -> anyhow::Result<()> {
        let mut head = [0; 28];
        head[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        head[4..6].copy_from_slice(&request.flags.to_be_bytes());
        head[6..8].copy_from_slice(&(request.command as u16).to_be_bytes());
        head[8..16].copy_from_slice(&request.cookie.to_be_bytes());
        head[16..24].copy_from_slice(&request.offset_bytes.to_be_bytes());
        head[24..28].copy_from_slice(&request.len_bytes.to_be_bytes());
        self.stream.write_all(&head)?;
        self.stream.write_all(payload)?;
        Ok(())
    }

    /// Waits for the head of the next answer.
    pub(crate) fn receive(&mut self) -> anyhow::Result<Reply> {
        ensure!(self.read_u32()? == SIMPLE_REPLY_MAGIC, "the server sent no simple reply");
        Ok(Reply { error: self.read_u32()?, cookie: self.read_u64()? })
    }

    /// Reads the payload that follows the head of an answer.
    pub(crate) fn receive_payload(&mut self, into: &mut [u8]) -> anyhow::Result<()> {
        Ok(self.stream.read_exact(into)?)
    }

    /// Ends both directions, so that a thread that waits for an answer wakes up.
    pub(crate) fn shut_down(&self) {
        // It fails only when the other side was faster.
        drop(self.stream.shutdown(Shutdown::Both));
    }

    fn negotiate(&mut self, export: &str) -> anyhow::Result<()> {
        let mut greeting = [0; 16];
        self.stream.read_exact(&mut greeting)?;
        ensure!(&greeting == GREETING_MAGIC, "the server speaks no newstyle NBD");
        ensure!(self.read_u16()? & FIXED_NEWSTYLE != 0, "the server is not fixed newstyle");
        let name_bytes = u32::try_from(export.len()).context("length of the name")?;
        let mut out = FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes().to_vec();
        out.extend_from_slice(OPTION_MAGIC);
        out.extend_from_slice(&OPTION_GO.to_be_bytes());
        out.extend_from_slice(&(name_bytes + 6).to_be_bytes());
        out.extend_from_slice(&name_bytes.to_be_bytes());
        out.extend_from_slice(export.as_bytes());
        out.extend_from_slice(&0_u16.to_be_bytes());
        self.stream.write_all(&out)?;
        loop {
            ensure!(self.read_u64()? == OPTION_REPLY_MAGIC, "the server sent no option reply");
            ensure!(self.read_u32()? == OPTION_GO, "the server answers what was not asked");
            let (kind, len_bytes) = (self.read_u32()?, self.read_u32()?);
            ensure!(len_bytes <= OPTION_REPLY_BYTES_MAX, "an option reply of {len_bytes} bytes");
            let mut data = vec![0; len_bytes as usize];
            self.stream.read_exact(&mut data)?;
            match kind {
                REPLY_ACK => return Ok(()),
                REPLY_INFO if data.len() == 12 && data[..2] == INFO_EXPORT.to_be_bytes() => {
                    let size = data[2..10].try_into().expect("eight bytes");
                    self.size_bytes = u64::from_be_bytes(size);
                }
                REPLY_INFO => {}
                kind if kind & REPLY_ERROR_BIT != 0 => {
                    bail!("refused ({kind:#x}): {}", String::from_utf8_lossy(&data))
                }
                kind => bail!("option reply of unknown type {kind}"),
            }
        }
    }

    fn read_u16(&mut self) -> anyhow::Result<u16> {
        let mut bytes = [0; 2];
        self.stream.read_exact(&mut bytes)?;
        Ok(u16::from_be_bytes(bytes))
    }

    fn read_u32(&mut self) -> anyhow::Result<u32> {
        let mut bytes = [0; 4];
        self.stream.read_exact(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn read_u64(&mut self) -> anyhow::Result<u64> {
        let mut bytes = [0; 8];
        self.stream.read_exact(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }
}

/// Reads whole ranges, several at once on the way.
pub(crate) struct Reader {
    connection: Connection,
}

/// Reads on the way at once.
const READS_MAX: usize = 16;

impl Reader {
    pub(crate) fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// Reads the ranges (start, length) and hands each to `got` with its place in the list, in
    /// the order in which the answers come.
    pub(crate) fn read(
        &mut self,
        ranges: &[(u64, u32)],
        mut got: impl FnMut(usize, &[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut buffer = Vec::new();
        let mut sent = 0;
        for done in 0..ranges.len() {
            while sent < ranges.len() && sent < done + READS_MAX {
                let (offset_bytes, len_bytes) = ranges[sent];
                let (command, cookie) = (Command::Read, sent as u64);
                let request = Request { command, flags: 0, cookie, offset_bytes, len_bytes };
                self.connection.send(&request, &[])?;
                sent += 1;
            }
            let reply = self.connection.receive()?;
            let place = usize::try_from(reply.cookie).context("cookie")?;
            let &(offset, len) = ranges.get(place).context("an answer to no request")?;
            ensure!(reply.error == 0, "reading {len} bytes at {offset}: error {}", reply.error);
            buffer.resize(len as usize, 0);
            self.connection.receive_payload(&mut buffer)?;
            got(place, &buffer)?;
        }
        Ok(())
    }
}
