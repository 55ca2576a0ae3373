//! Sockets that lead to an export, for the kernel to take over.
//!
//! In: an address and an export's name. Out: a socket on which the next bytes are requests, and
//! what the server said of the export. Bounded by [`tidemark_block::nbd::client`] and the time of
//! each read.

use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tidemark_block::engine::socket::Address;
use tidemark_block::nbd::client::{ServedExport, negotiate};

/// How long the server may take for each piece of the handshake.
const READ_PATIENCE: Duration = Duration::from_secs(20);

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
