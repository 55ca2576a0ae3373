//! The client's side of NBD's fixed newstyle handshake, for sockets that the kernel gets
//! afterwards.
//!
//! In: an address and an export's name. Out: a socket on which the next bytes are requests, and
//! what the server said of the export. Bounded by the number of replies, the length of each and
//! the time of each read. Only what the kernel's client understands is asked for: no structured
//! replies, no TLS.
//!
//! Source: `doc/proto.md` of the NetworkBlockDevice/nbd repository; network byte order.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tidemark_block::engine::socket::Address;

const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const FIXED_NEWSTYLE: u16 = 1 << 0;
const NO_ZEROES: u16 = 1 << 1;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;

/// Longest reply to an option that is read: a string of 4096 bytes with room around it.
const REPLY_BYTES_MAX: u32 = 8 * 1024;
/// Replies to one option that are read.
const REPLIES_MAX: usize = 64;
/// How long the server may take for each piece of the handshake.
const READ_PATIENCE: Duration = Duration::from_secs(20);

/// What the server said of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ServedExport {
    pub(super) size_bytes: u64,
    /// The transmission flags, as the kernel takes them.
    pub(super) flags: u16,
}

/// Connects, and leads the connection to the export.
///
/// # Errors
/// Those of the socket; `InvalidData` for a breach of the protocol, and `NotFound` with the
/// server's words when it refuses the export.
pub(super) fn connect(address: &Address, export: &str) -> io::Result<(OwnedFd, ServedExport)> {
    match address {
        Address::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(READ_PATIENCE))?;
            let served = negotiate(&stream, export)?;
            // The kernel would take this one's patience for its own.
            stream.set_read_timeout(None)?;
            Ok((stream.into(), served))
        }
        Address::Tcp(address) => {
            let stream = TcpStream::connect_timeout(address, READ_PATIENCE)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(READ_PATIENCE))?;
            let served = negotiate(&stream, export)?;
            stream.set_read_timeout(None)?;
            Ok((stream.into(), served))
        }
    }
}

fn negotiate<S: Read + Write>(mut stream: S, export: &str) -> io::Result<ServedExport> {
    if u64::from_be_bytes(array(&mut stream)?) != INIT_MAGIC
        || u64::from_be_bytes(array(&mut stream)?) != OPTION_MAGIC
    {
        return Err(breach("the other side is no NBD server of the newstyle kind"));
    }
    let flags = u16::from_be_bytes(array(&mut stream)?);
    if flags & FIXED_NEWSTYLE == 0 {
        return Err(breach("the server does not know the fixed newstyle handshake"));
    }
    let name_bytes = u32::try_from(export.len()).map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidInput, "the export's name is too long")
    })?;
    let mut wish = Vec::new();
    wish.extend_from_slice(&u32::from(flags & (FIXED_NEWSTYLE | NO_ZEROES)).to_be_bytes());
    wish.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    wish.extend_from_slice(&OPTION_GO.to_be_bytes());
    wish.extend_from_slice(&(name_bytes + 6).to_be_bytes());
    wish.extend_from_slice(&name_bytes.to_be_bytes());
    wish.extend_from_slice(export.as_bytes());
    // No kind of information beyond the export's own is asked for.
    wish.extend_from_slice(&0_u16.to_be_bytes());
    stream.write_all(&wish)?;
    let mut served = None;
    for _ in 0..REPLIES_MAX {
        let (kind, data) = reply(&mut stream)?;
        match kind {
            REPLY_ACK => return served.ok_or_else(|| breach("no word about the export's size")),
            REPLY_INFO => served = export_info(&data)?.or(served),
            kind if kind & REPLY_ERROR != 0 => {
                let words = String::from_utf8_lossy(&data).into_owned();
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    format!("the server refuses the export (error {:#x}): {words}", kind),
                ));
            }
            kind => return Err(breach(&format!("a reply of kind {kind}"))),
        }
    }
    Err(breach("too many replies"))
}

/// One reply to the option.
fn reply(stream: &mut impl Read) -> io::Result<(u32, Vec<u8>)> {
    if u64::from_be_bytes(array(stream)?) != REPLY_MAGIC {
        return Err(breach("a reply without its magic number"));
    }
    if u32::from_be_bytes(array(stream)?) != OPTION_GO {
        return Err(breach("a reply to another option"));
    }
    let kind = u32::from_be_bytes(array(stream)?);
    let len = u32::from_be_bytes(array(stream)?);
    if len > REPLY_BYTES_MAX {
        return Err(breach(&format!("a reply of {len} bytes")));
    }
    let mut data = vec![0; usize::try_from(len).map_err(|_| breach("a reply's length"))?];
    stream.read_exact(&mut data)?;
    Ok((kind, data))
}

/// `None` for information of another kind.
fn export_info(data: &[u8]) -> io::Result<Option<ServedExport>> {
    let kind = data.first_chunk().map(|kind| u16::from_be_bytes(*kind));
    if kind != Some(INFO_EXPORT) {
        return kind.map(|_| None).ok_or_else(|| breach("information without its kind"));
    }
    let &[_, _, s0, s1, s2, s3, s4, s5, s6, s7, f0, f1] = data else {
        return Err(breach("information on the export of a wrong length"));
    };
    let size_bytes = u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    Ok(Some(ServedExport { size_bytes, flags: u16::from_be_bytes([f0, f1]) }))
}

fn array<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn breach(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("NBD handshake: {what}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A server whose words are fixed, and what was said to it.
    struct Scripted<'a> {
        says: &'a [u8],
        heard: Vec<u8>,
    }

    impl Read for Scripted<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.says.read(buffer)
        }
    }

    impl Write for Scripted<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.heard.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn greeting() -> Vec<u8> {
        let mut bytes = b"NBDMAGICIHAVEOPT".to_vec();
        bytes.extend_from_slice(&[0, 3]);
        bytes
    }

    fn push_reply(bytes: &mut Vec<u8>, kind: u32, data: &[u8]) {
        bytes.extend_from_slice(&REPLY_MAGIC.to_be_bytes());
        bytes.extend_from_slice(&OPTION_GO.to_be_bytes());
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(data);
    }

    #[test]
    fn size_and_flags_are_what_the_server_says() {
        let mut says = greeting();
        push_reply(&mut says, REPLY_INFO, &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0x01, 0x2d]);
        push_reply(&mut says, REPLY_INFO, &[0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 2, 0, 0, 0]);
        push_reply(&mut says, REPLY_ACK, &[]);
        let mut server = Scripted { says: &says, heard: Vec::new() };
        let served = negotiate(&mut server, "data").unwrap();
        assert_eq!(served, ServedExport { size_bytes: 65_536, flags: 0x12d });
        let heard = [
            &[0, 0, 0, 3][..],
            b"IHAVEOPT",
            &[0, 0, 0, 7, 0, 0, 0, 10, 0, 0, 0, 4],
            b"data",
            &[0, 0],
        ];
        assert_eq!(server.heard, heard.concat());
    }

    #[test]
    fn a_refusal_carries_the_servers_words() {
        let mut says = greeting();
        push_reply(&mut says, REPLY_ERROR + 6, b"there is no export named \"x\"");
        let error = negotiate(Scripted { says: &says, heard: Vec::new() }, "x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("no export named"), "{error}");
    }

    #[test]
    fn breaches_are_errors() {
        let mut without_size = greeting();
        push_reply(&mut without_size, REPLY_ACK, &[]);
        let mut too_long = greeting();
        push_reply(&mut too_long, REPLY_INFO, &[0; 9000]);
        let oldstyle = b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\0\0".to_vec();
        for says in [without_size, too_long, oldstyle, b"NBDMAGICIHAVEOPT\0\0".to_vec()] {
            let error = negotiate(Scripted { says: &says, heard: Vec::new() }, "x").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_server_is_survived(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
            let says = [greeting(), tail].concat();
            let _any = negotiate(Scripted { says: &says, heard: Vec::new() }, "x");
        }
    }
}
