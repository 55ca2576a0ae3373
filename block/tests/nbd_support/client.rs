//! A client that sends what it is told and checks nothing but magic numbers.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub mod opt {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED: u32 = 8;
    pub const LIST_META: u32 = 9;
    pub const SET_META: u32 = 10;
}

pub mod rep {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META: u32 = 4;
    pub const ERR_UNSUP: u32 = 0x8000_0001;
    pub const ERR_POLICY: u32 = 0x8000_0002;
    pub const ERR_INVALID: u32 = 0x8000_0003;
    pub const ERR_UNKNOWN: u32 = 0x8000_0006;
    pub const ERR_TOO_BIG: u32 = 0x8000_0009;
}

pub mod cmd {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const ZEROES: u16 = 6;
    pub const STATUS: u16 = 7;
}

pub mod flag {
    pub const NONE: u16 = 0;
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 2;
    pub const DF: u16 = 4;
    pub const REQ_ONE: u16 = 8;
    pub const FAST_ZERO: u16 = 16;
}

pub mod err {
    pub const EPERM: u32 = 1;
    pub const EIO: u32 = 5;
    pub const EINVAL: u32 = 22;
    pub const ENOSPC: u32 = 28;
    pub const EOVERFLOW: u32 = 75;
    pub const ENOTSUP: u32 = 95;
    pub const ESHUTDOWN: u32 = 108;
}

/// One reply to an option.
#[derive(Debug, PartialEq, Eq)]
pub struct OptionReply {
    pub option: u32,
    pub kind: u32,
    pub data: Vec<u8>,
}

/// One chunk of a structured reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    pub done: bool,
    pub kind: u16,
    pub cookie: u64,
    pub data: Vec<u8>,
}

impl Chunk {
    /// Offset and bytes of a content chunk.
    pub fn content(&self) -> (u64, &[u8]) {
        assert_eq!(self.kind, 1, "{self:?}");
        (u64::from_be_bytes(self.data[..8].try_into().expect("8 bytes")), &self.data[8..])
    }

    /// Offset and length of a hole.
    pub fn hole(&self) -> (u64, u32) {
        assert_eq!((self.kind, self.data.len()), (2, 12), "{self:?}");
        let offset = u64::from_be_bytes(self.data[..8].try_into().expect("8 bytes"));
        (offset, u32::from_be_bytes(self.data[8..].try_into().expect("4 bytes")))
    }

    /// Error value and message of an error chunk, and its offset if it has one.
    pub fn error(&self) -> (u32, String, Option<u64>) {
        let code = u32::from_be_bytes(self.data[..4].try_into().expect("4 bytes"));
        let len = usize::from(u16::from_be_bytes(self.data[4..6].try_into().expect("2 bytes")));
        let message = String::from_utf8(self.data[6..6 + len].to_vec()).expect("UTF-8");
        let tail = &self.data[6 + len..];
        match self.kind {
            0x8001 if tail.is_empty() => (code, message, None),
            0x8002 => (code, message, Some(u64::from_be_bytes(tail.try_into().expect("8 bytes")))),
            _ => panic!("{self:?}"),
        }
    }

    /// Lengths and states of a block status.
    pub fn extents(&self) -> Vec<(u32, u32)> {
        assert_eq!((self.kind, &self.data[..4]), (5, &[0, 0, 0, 1][..]), "{self:?}");
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("4 bytes"));
        self.data[4..].chunks_exact(8).map(|e| (number(&e[..4]), number(&e[4..]))).collect()
    }
}

/// See the module's text.
pub struct Client {
    pub socket: UnixStream,
}

impl Client {
    /// Connects and reads the greeting.
    pub fn connect(path: &Path) -> Self {
        let socket = UnixStream::connect(path).expect("the server listens");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        let mut client = Self { socket };
        let greeting: [u8; 18] = client.take();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        assert_eq!(&greeting[16..], &[0, 3], "fixed newstyle and no zeroes are offered");
        client
    }

    /// Sends the client flags: fixed newstyle and no zeroes.
    pub fn flags(mut self) -> Self {
        self.send(&3_u32.to_be_bytes());
        self
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).expect("the server takes it");
    }

    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.socket.read_exact(&mut bytes).expect("the server answers");
        bytes
    }

    pub fn take_vec(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.socket.read_exact(&mut bytes).expect("the server answers");
        bytes
    }

    /// True when the server has hung up and sent nothing before.
    pub fn is_cut_off(&mut self) -> bool {
        match self.socket.read(&mut [0]) {
            Ok(bytes) => bytes == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    pub fn send_option(&mut self, option: u32, data: &[u8]) {
        self.send(b"IHAVEOPT");
        self.send(&option.to_be_bytes());
        self.send(&u32::try_from(data.len()).expect("short").to_be_bytes());
        self.send(data);
    }

    pub fn option_reply(&mut self) -> OptionReply {
        assert_eq!(self.take::<8>(), 0x0003_e889_0455_65a9_u64.to_be_bytes());
        let option = u32::from_be_bytes(self.take());
        let kind = u32::from_be_bytes(self.take());
        let len = u32::from_be_bytes(self.take());
        OptionReply { option, kind, data: self.take_vec(len as usize) }
    }

    /// Sends an option and takes all its replies.
    pub fn option(&mut self, option: u32, data: &[u8]) -> Vec<OptionReply> {
        self.send_option(option, data);
        let mut replies = Vec::new();
        loop {
            let reply = self.option_reply();
            assert_eq!(reply.option, option);
            let last = reply.kind == rep::ACK || reply.kind >= 0x8000_0000;
            replies.push(reply);
            if last {
                return replies;
            }
        }
    }

    /// Data of INFO and GO.
    pub fn info_data(name: &str, infos: &[u16]) -> Vec<u8> {
        let mut data = u32::try_from(name.len()).expect("short").to_be_bytes().to_vec();
        data.extend_from_slice(name.as_bytes());
        data.extend_from_slice(&u16::try_from(infos.len()).expect("few").to_be_bytes());
        for info in infos {
            data.extend_from_slice(&info.to_be_bytes());
        }
        data
    }

    /// Data of the two metadata options.
    pub fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
        let mut data = u32::try_from(name.len()).expect("short").to_be_bytes().to_vec();
        data.extend_from_slice(name.as_bytes());
        data.extend_from_slice(&u32::try_from(queries.len()).expect("few").to_be_bytes());
        for query in queries {
            data.extend_from_slice(&u32::try_from(query.len()).expect("short").to_be_bytes());
            data.extend_from_slice(query.as_bytes());
        }
        data
    }

    /// A whole handshake; structured replies and `base:allocation` when asked for.
    pub fn go(mut self, name: &str, structured: bool) -> Self {
        if structured {
            assert_eq!(self.option(opt::STRUCTURED, b"")[0].kind, rep::ACK);
            let replies = self.option(opt::SET_META, &Self::meta_data(name, &["base:allocation"]));
            assert_eq!(replies.len(), 2, "{replies:?}");
        }
        let replies = self.option(opt::GO, &Self::info_data(name, &[]));
        assert_eq!(replies.last().map(|reply| reply.kind), Some(rep::ACK), "{replies:?}");
        self
    }

    pub fn request(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, len: u32) {
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&command.to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&len.to_be_bytes());
        self.send(&bytes);
    }

    pub fn write(&mut self, flags: u16, cookie: u64, offset: u64, data: &[u8]) {
        let len = u32::try_from(data.len()).expect("a payload of 32 bits");
        self.request(flags, cmd::WRITE, cookie, offset, len);
        self.send(data);
    }

    /// A simple reply's head: error and cookie.
    pub fn simple(&mut self) -> (u32, u64) {
        assert_eq!(self.take::<4>(), 0x6744_6698_u32.to_be_bytes());
        let error = u32::from_be_bytes(self.take());
        (error, u64::from_be_bytes(self.take()))
    }

    pub fn chunk(&mut self) -> Chunk {
        assert_eq!(self.take::<4>(), 0x668e_33ef_u32.to_be_bytes());
        let flags = u16::from_be_bytes(self.take());
        assert!(flags <= 1, "unknown reply flags {flags:#x}");
        let kind = u16::from_be_bytes(self.take());
        let cookie = u64::from_be_bytes(self.take());
        let len = u32::from_be_bytes(self.take());
        Chunk { done: flags == 1, kind, cookie, data: self.take_vec(len as usize) }
    }

    /// All chunks of one structured reply.
    pub fn chunks(&mut self) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        loop {
            let chunk = self.chunk();
            let done = chunk.done;
            chunks.push(chunk);
            if done {
                return chunks;
            }
        }
    }

    /// Error value of a structured reply that is nothing but an error with a message.
    pub fn refusal(&mut self, cookie: u64) -> u32 {
        let chunk = self.chunk();
        assert_eq!((chunk.done, chunk.cookie), (true, cookie), "{chunk:?}");
        let (code, message, _) = chunk.error();
        assert!(!message.is_empty());
        code
    }
}
