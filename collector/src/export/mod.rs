//! A state of a volume as a read-only disk over NBD.
//!
//! What enters: a view and an address. What leaves: its bytes, to any NBD client. An export owns
//! its socket, one executor thread and a few reading threads, and ends with the daemon. Nothing
//! here is persistent, so a crash loses connections and nothing else.

mod device;
mod readers;

use std::sync::Arc;

use tidemark_block::engine::socket::{Address, Listener};
use tidemark_block::engine::{ExecutorConfig, Workers};
use tidemark_block::exports::{Export, ExportList};
use tidemark_block::nbd::{Server, ServerConfig};

pub use device::{DamageListener, ViewDevice};

use crate::error::{Failure, Result};
use crate::storage::Storage;
use crate::view::View;

/// Clients of one export at a time.
pub const CONNECTIONS_MAX: usize = 8;
/// Requests of one client in flight.
const IN_FLIGHT_MAX: usize = 64;
/// How long requests in flight may take to end when the export does.
const STOP_SECONDS_MAX: u64 = 3;

/// An export that is being served.
pub struct Running<S: Storage> {
    server: Server<ViewDevice<S>>,
    workers: Workers,
    address: Address,
    uri: String,
}

impl<S: Storage> Running<S> {
    /// Serves a view under a name at an address of this machine.
    ///
    /// # Errors
    /// `Invalid` for an address that others can reach or a name that NBD does not allow,
    /// `Conflict` when somebody listens there, `Unavailable` when threads can't be made.
    pub fn start(
        view: View<S>,
        name: &str,
        listen: &Address,
        damage: Arc<dyn DamageListener>,
    ) -> Result<Self> {
        let listener = Listener::bind(listen).map_err(|source| bind_failure(listen, source))?;
        let address = listener.address().clone();
        let at = view.at();
        let no_threads = |source: std::io::Error| {
            Failure::unavailable(format!("no threads for the export: {source}")).because(source)
        };
        let device =
            ViewDevice::start(view, IN_FLIGHT_MAX * CONNECTIONS_MAX, damage).map_err(no_threads)?;
        let exports = Arc::new(ExportList::new());
        exports
            .add(Export {
                name: name.to_owned(),
                description: format!("{name} at seq:{at}, read-only"),
                device: Arc::new(device),
            })
            .map_err(|error| {
                Failure::invalid(format!("{name:?} can't be served over NBD: {error}"))
                    .because(error)
            })?;
        let tasks_max = (IN_FLIGHT_MAX + 4) * CONNECTIONS_MAX + 16;
        let config = ExecutorConfig { tasks_max, ..ExecutorConfig::default() };
        let workers = Workers::start("export", 1, config).map_err(no_threads)?;
        let config = ServerConfig {
            in_flight_max: IN_FLIGHT_MAX,
            connections_max: CONNECTIONS_MAX,
            stop_seconds_max: STOP_SECONDS_MAX,
            ..ServerConfig::default()
        };
        let server = Server::start(exports, vec![listener], &workers.handle(), config);
        let uri = uri(&address, name);
        Ok(Self { server, workers, address, uri })
    }

    /// Where it is served, with the port that was chosen.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What to give to NBD clients.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Ends it: clients are disconnected, the socket file is removed, the view is let go. Blocks
    /// for a bounded time.
    pub fn stop(self) {
        self.server.stop();
        self.workers.shutdown();
    }
}

fn bind_failure(listen: &Address, source: std::io::Error) -> Failure {
    let message = format!("can't serve on {listen}: {source}");
    match source.kind() {
        std::io::ErrorKind::InvalidInput => Failure::invalid(message),
        std::io::ErrorKind::AddrInUse | std::io::ErrorKind::AlreadyExists => {
            Failure::conflict(message)
        }
        std::io::ErrorKind::NotFound => {
            Failure::invalid(message).with_hint("make the directory first")
        }
        _ => Failure::unavailable(message),
    }
    .because(source)
}

/// As in the NBD project's `doc/uri.md`.
fn uri(address: &Address, name: &str) -> String {
    let name = escape(name);
    match address {
        Address::Unix(path) => {
            format!("nbd+unix:///{name}?socket={}", escape(&path.to_string_lossy()))
        }
        Address::Tcp(address) => format!("nbd://{address}/{name}"),
    }
}

/// Percent-encodes everything that is neither unreserved in a URI (RFC 3986, section 2.3) nor a
/// slash.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_what_clients_take() {
        let unix = Address::Unix("/run/a b.sock".into());
        assert_eq!(uri(&unix, "db/1"), "nbd+unix:///db/1?socket=/run/a%20b.sock");
        let tcp = Address::Tcp("127.0.0.1:10809".parse().expect("an address"));
        assert_eq!(uri(&tcp, "db?"), "nbd://127.0.0.1:10809/db%3F");
    }
}
