//! The connection to the collector behind a seam: real sockets here, a simulated network in the
//! simulator.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use tidemark_block::engine::socket::Address;
use tidemark_wire::DecodeError;
use tidemark_wire::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest silence of a collector, which sends a token every second; then the connection counts
/// as lost.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a send may make no progress before the connection counts as lost.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Opens connections to one collector.
pub trait Dial: Send {
    /// Connects once.
    ///
    /// # Errors
    /// As the operating system says.
    fn dial(&self) -> io::Result<Link>;

    /// The collector's address, for messages.
    fn peer(&self) -> String;
}

/// One connection: its halves are used by two threads.
pub struct Link {
    /// Bytes from the collector.
    pub reader: Box<dyn Read + Send>,
    /// Bytes to the collector.
    pub writer: Box<dyn Write + Send>,
    /// Ends both directions, also from another thread.
    pub closer: Box<dyn Fn() + Send>,
}

/// Dials a unix socket or a loopback TCP port.
pub struct SocketDial {
    address: Address,
}

impl SocketDial {
    /// For the collector at `address`.
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self { address }
    }

    fn unix(path: &PathBuf) -> io::Result<Link> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let (reader, closer) = (stream.try_clone()?, stream.try_clone()?);
        Ok(Link {
            reader: Box::new(reader),
            writer: Box::new(stream),
            closer: Box::new(move || drop(closer.shutdown(Shutdown::Both))),
        })
    }

    fn tcp(address: &SocketAddr) -> io::Result<Link> {
        let stream = TcpStream::connect_timeout(address, CONNECT_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let (reader, closer) = (stream.try_clone()?, stream.try_clone()?);
        Ok(Link {
            reader: Box::new(reader),
            writer: Box::new(stream),
            closer: Box::new(move || drop(closer.shutdown(Shutdown::Both))),
        })
    }
}

impl Dial for SocketDial {
    fn dial(&self) -> io::Result<Link> {
        match &self.address {
            Address::Unix(path) => Self::unix(path),
            Address::Tcp(address) => Self::tcp(address),
        }
    }

    fn peer(&self) -> String {
        self.address.to_string()
    }
}

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The connection ended or failed.
    #[error("connection lost: {0}")]
    Lost(#[from] io::Error),
    /// The collector sent something that is no frame.
    #[error("the collector broke the protocol: {0}")]
    Protocol(#[from] DecodeError),
}

/// Reads one frame; its body replaces what is in `body`.
///
/// # Errors
/// [`ReceiveError`].
pub fn receive_frame(reader: &mut dyn Read, body: &mut Vec<u8>) -> Result<FrameKind, ReceiveError> {
    let mut head = [0; FRAME_HEADER_BYTES];
    reader.read_exact(&mut head).map_err(silence)?;
    let (header, kind) = FrameHeader::decode(&head)?;
    body.clear();
    body.resize(header.body_bytes.get() as usize, 0);
    reader.read_exact(body).map_err(silence)?;
    header.check_body(body)?;
    Ok(kind)
}

/// Says what the operating system means by a read that would block.
fn silence(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => io::Error::new(
            io::ErrorKind::TimedOut,
            "it has said nothing for too long; is it stopped, or its disk stuck?",
        ),
        io::ErrorKind::UnexpectedEof => {
            io::Error::new(io::ErrorKind::UnexpectedEof, "it has closed the connection")
        }
        _ => error,
    }
}
