//! The NBD server: serves the disks of an [`ExportList`](crate::exports::ExportList) to any number
//! of clients.
//!
//! What enters: connections on unix and loopback TCP sockets. What leaves: calls on a
//! [`Device`](crate::device::Device), and the answers. It owns the connections and no data; a crash
//! loses what was not answered.
//!
//! From the outside in: `server` accepts and stops; `handshake` leads a client to an export,
//! with the answers of `negotiation`; `connection` holds what the tasks of one client share;
//! `reader` takes requests from the `inbox` and starts a task for each within the bounds of
//! the `gate`; `commands` and `long_read` are these tasks; `reply_queue` collects what they
//! answer for the one writer. `option`, `request` and `reply` are the codec: bytes in, typed
//! values or errors out, without I/O. `protocol` holds the numbers.
//! [`client`] is the other side of the handshake, for programs of ours.
//!
//! A client that breaks the protocol loses its connection and nothing else, with one line of log
//! that names the peer, the export and the reason.

pub mod client;
#[cfg(test)]
mod codec_tests;
mod commands;
mod connection;
mod error;
mod gate;
mod handshake;
mod inbox;
mod long_read;
mod negotiation;
mod option;
mod pieces;
mod protocol;
mod race;
mod read_buffers;
mod reader;
mod reply;
mod reply_queue;
mod request;
mod server;
mod stats;

pub use server::{Server, ServerConfig};
pub use stats::ServerStats;
