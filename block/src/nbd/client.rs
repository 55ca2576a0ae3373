//! The client's side of the fixed newstyle handshake, for programs of ours that use a disk of
//! another server: the kernel's NBD client gets such a socket, a restore writes to a helper's.
//!
//! In: a stream on which nothing was said yet, and an export's name. Out: what the server said of
//! it. Bounded by the number of replies and the length of each; the time of each read is the
//! stream's. No structured replies and no TLS are asked for.
//!
//! Source: `doc/proto.md` of the NetworkBlockDevice/nbd repository; network byte order.

use std::io::{self, Read, Write};

use super::protocol::{
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, INIT_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, info,
    option, option_reply, transmission,
};

/// Longest reply to an option that is read: a string of 4096 bytes with room around it.
const REPLY_BYTES_MAX: u32 = 8 * 1024;
/// Replies to one option that are read.
const REPLIES_MAX: usize = 64;

/// What a server said of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServedExport {
    /// Its size.
    pub size_bytes: u64,
    /// The transmission flags, as the protocol has them.
    pub flags: u16,
}

impl ServedExport {
    /// True when it takes writes, zeroes and flushes.
    #[must_use]
    pub fn takes_changes(&self) -> bool {
        let needed = transmission::SEND_FLUSH | transmission::SEND_WRITE_ZEROES;
        self.flags & (needed | transmission::READ_ONLY) == needed
    }
}

/// Leads a connection to an export: the handshake from the server's first byte on. The next bytes
/// on `stream` are requests.
///
/// # Errors
/// Those of the stream; `InvalidData` for a breach of the protocol, and `NotFound` with the
/// server's words when it refuses the export.
pub fn negotiate<S: Read + Write>(mut stream: S, export: &str) -> io::Result<ServedExport> {
    if u64::from_be_bytes(array(&mut stream)?) != INIT_MAGIC
        || u64::from_be_bytes(array(&mut stream)?) != OPTION_MAGIC
    {
        return Err(breach("the other side is no NBD server of the newstyle kind"));
    }
    let flags = u16::from_be_bytes(array(&mut stream)?);
    if flags & FLAG_FIXED_NEWSTYLE == 0 {
        return Err(breach("the server does not know the fixed newstyle handshake"));
    }
    let name_bytes = u32::try_from(export.len()).map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidInput, "the export's name is too long")
    })?;
    let mut wish = Vec::new();
    wish.extend_from_slice(
        &u32::from(flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)).to_be_bytes(),
    );
    wish.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    wish.extend_from_slice(&option::GO.to_be_bytes());
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
            option_reply::ACK => {
                return served.ok_or_else(|| breach("no word about the export's size"));
            }
            option_reply::INFO => served = export_info(&data)?.or(served),
            kind if kind & option_reply::ERROR != 0 => {
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
    if u64::from_be_bytes(array(stream)?) != OPTION_REPLY_MAGIC {
        return Err(breach("a reply without its magic number"));
    }
    if u32::from_be_bytes(array(stream)?) != option::GO {
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
    if kind != Some(info::EXPORT) {
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
        bytes.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        bytes.extend_from_slice(&option::GO.to_be_bytes());
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(data);
    }

    #[test]
    fn size_and_flags_are_what_the_server_says() {
        let mut says = greeting();
        push_reply(&mut says, option_reply::INFO, &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0x01, 0x2d]);
        push_reply(&mut says, option_reply::INFO, &[0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 2, 0, 0, 0]);
        push_reply(&mut says, option_reply::ACK, &[]);
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
        push_reply(&mut says, option_reply::ERROR + 6, b"there is no export named \"x\"");
        let error = negotiate(Scripted { says: &says, heard: Vec::new() }, "x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("no export named"), "{error}");
    }

    #[test]
    fn breaches_are_errors() {
        let mut without_size = greeting();
        push_reply(&mut without_size, option_reply::ACK, &[]);
        let mut too_long = greeting();
        push_reply(&mut too_long, option_reply::INFO, &[0; 9000]);
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
