//! A state of a volume as a disk, or a writable clone of it, over NBD or as a file over FUSE.
//!
//! What enters: a view or an overlay over one, and where to serve it. What leaves: its bytes, to
//! any client. An export owns its socket or its file's name, its threads, and for a clone the
//! files in [`overlay`], which say what a crash may lose of them; of everything else a crash
//! loses connections and nothing more. Who remembers that there is an export is the catalog.
//!
//! - [`content`](Content): what is shown; [`overlay`]: a clone's own bytes;
//! - `device`, `readers`: the block device, and the threads that do its blocking work;
//! - `directory`: the FUSE directory of all exports; `users`: who has a file of it open.

mod content;
mod device;
mod directory;
mod error;
pub mod overlay;
mod readers;
mod users;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidemark_block::engine::socket::{Address, Listener};
use tidemark_block::engine::{ExecutorConfig, Workers};
use tidemark_block::exports::{Export, ExportError, ExportList};
use tidemark_block::nbd::{Server, ServerConfig};

pub use content::Content;
pub use device::{ExportDevice, ExportListener};
pub use directory::ExportDirectory;
pub use error::DiskError;

use crate::error::{Failure, Result};
use crate::storage::Storage;

/// Clients of one export at a time.
pub const CONNECTIONS_MAX: usize = 8;
/// Requests of one client in flight.
const IN_FLIGHT_MAX: usize = 64;
/// How long requests in flight may take to end when the export does.
const STOP_SECONDS_MAX: u64 = 3;

/// What is served, and how it is shown.
pub struct Served<S: Storage> {
    /// The state or clone.
    pub content: Content<S>,
    /// Its name for NBD clients, or the name of its file.
    pub name: String,
    /// A line for people.
    pub description: String,
    /// Who hears of what goes wrong.
    pub listener: Arc<dyn ExportListener>,
}

/// An export that is being served.
pub struct Running<S: Storage> {
    content: Arc<Content<S>>,
    device: Arc<ExportDevice<S>>,
    front: Front<S>,
}

enum Front<S: Storage> {
    Nbd { server: Server<ExportDevice<S>>, workers: Workers, address: Address, uri: String },
    File { list: Arc<ExportList<ExportDevice<S>>>, name: String, path: PathBuf },
}

/// What becomes of a clone when its serving stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    /// It is served again later: what was written becomes durable.
    Kept,
    /// It is removed.
    Removed,
}

/// Holders of a device that are no clients: the list and the export itself.
const OWN_HOLDERS: usize = 2;

impl<S: Storage> Running<S> {
    /// Serves over NBD at an address of this machine.
    ///
    /// # Errors
    /// `Invalid` for an address that others can reach or a name that NBD does not allow,
    /// `Conflict` when somebody listens there, `Unavailable` when threads can't be made.
    pub fn over_nbd(served: Served<S>, listen: &Address) -> Result<Self> {
        let listener = Listener::bind(listen).map_err(|source| bind_failure(listen, source))?;
        let address = listener.address().clone();
        let uri = uri(&address, &served.name);
        let exports = Arc::new(ExportList::new());
        let (content, device) = add(served, &exports, IN_FLIGHT_MAX * CONNECTIONS_MAX)?;
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
        Ok(Self { content, device, front: Front::Nbd { server, workers, address, uri } })
    }

    /// Serves as a file of a directory.
    ///
    /// # Errors
    /// `Invalid` for a name that can't be a file's, `Unavailable` when threads can't be made.
    pub fn as_file(served: Served<S>, directory: &ExportDirectory<S>) -> Result<Self> {
        let (name, list) = (served.name.clone(), directory.list());
        let path = directory.path().join(&name);
        let (content, device) = add(served, &list, directory::IN_FLIGHT_MAX.into())?;
        Ok(Self { content, device, front: Front::File { list, name, path } })
    }

    /// Where it is served over NBD, with the port that was chosen.
    #[must_use]
    pub fn address(&self) -> Option<&Address> {
        match &self.front {
            Front::Nbd { address, .. } => Some(address),
            Front::File { .. } => None,
        }
    }

    /// What to give to NBD clients.
    #[must_use]
    pub fn uri(&self) -> Option<&str> {
        match &self.front {
            Front::Nbd { uri, .. } => Some(uri),
            Front::File { .. } => None,
        }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match &self.front {
            Front::Nbd { .. } => None,
            Front::File { path, .. } => Some(path),
        }
    }

    /// What is served.
    #[must_use]
    pub fn content(&self) -> &Content<S> {
        &self.content
    }

    /// Connections, or open files.
    #[must_use]
    pub fn clients(&self) -> usize {
        match &self.front {
            Front::Nbd { server, .. } => server.stats().connections_open,
            Front::File { .. } => Arc::strong_count(&self.device).saturating_sub(OWN_HOLDERS),
        }
    }

    /// Who has the file open, as far as it can be seen from here. Looks at every process; empty
    /// for NBD.
    #[must_use]
    pub fn users(&self) -> Vec<String> {
        self.path().map(users::of_file).unwrap_or_default()
    }

    /// Ends it: clients are disconnected, the socket file or the file's name is removed, what a
    /// client that has the file open still asks fails, the state is let go. Blocks for a bounded
    /// time, and for a clone that is kept as long as its last flush takes.
    ///
    /// # Errors
    /// When a clone that is kept could not be flushed.
    pub fn stop(self, afterwards: Afterwards) -> Result<(), DiskError> {
        match self.front {
            Front::Nbd { server, workers, .. } => {
                server.stop();
                workers.shutdown();
            }
            Front::File { list, name, .. } => drop(list.remove(&name)),
        }
        self.device.end();
        match afterwards {
            Afterwards::Kept => self.content.flush(),
            Afterwards::Removed => Ok(()),
        }
    }
}

type Added<S> = (Arc<Content<S>>, Arc<ExportDevice<S>>);

/// Makes the device and puts it on the list.
fn add<S: Storage>(
    served: Served<S>,
    list: &ExportList<ExportDevice<S>>,
    requests_max: usize,
) -> Result<Added<S>> {
    let Served { content, name, description, listener } = served;
    let content = Arc::new(content);
    let device = ExportDevice::start(&content, requests_max, listener).map_err(no_threads)?;
    let device = Arc::new(device);
    list.add(Export { name: name.clone(), description, device: Arc::clone(&device) }).map_err(
        |error| {
            let message = format!("{name:?} can't be served: {error}");
            match error {
                ExportError::Taken { .. } => Failure::conflict(message),
                _ => Failure::invalid(message),
            }
            .because(error)
        },
    )?;
    Ok((content, device))
}

fn no_threads(source: std::io::Error) -> Failure {
    Failure::unavailable(format!("no threads for the export: {source}")).because(source)
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
