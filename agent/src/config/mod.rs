//! The agent's configuration file.
//!
//! A key that does not exist or a value that makes no sense is an error that names file, line
//! and, for a key, the nearest right one.

mod explain;
#[cfg(test)]
mod tests;
mod values;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tidemark_block::engine::socket::Address;

use explain::explain;
pub use values::CONTROL_SOCKET_DEFAULT;

/// Why a configuration is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read the configuration {path}: {source}; name another one with --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A line of the file is not understood, or its value can't be.
    #[error("{path}:{line}: {detail}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from one.
        line: usize,
        /// Which key, what is wrong and what is right.
        detail: String,
    },
    /// The lines contradict each other, or one is missing.
    #[error("{path}: {detail}")]
    Whole {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        detail: String,
    },
}

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the agent keeps the state of its volumes; never on a disk that it protects.
    #[serde(default = "values::default_state_dir", deserialize_with = "values::absolute")]
    pub state_dir: PathBuf,
    /// Where the change rings live; has to be on tmpfs.
    #[serde(default = "values::default_ring_dir", deserialize_with = "values::absolute")]
    pub ring_dir: PathBuf,
    /// The collector's ingest address: `unix:/path` or `tcp:127.0.0.1:port`.
    #[serde(deserialize_with = "values::address")]
    pub collector: Address,
    /// Executor threads that serve the disks.
    #[serde(default = "values::default_workers", deserialize_with = "values::workers")]
    pub workers: usize,
    /// The unix socket for `tidemark-agent attach`, `list` and the like.
    #[serde(default = "values::default_control_socket", deserialize_with = "values::absolute")]
    pub control_socket: PathBuf,
    /// The agent's memory is locked, so that a disk served here can be swapped to.
    #[serde(default = "values::default_lock_memory")]
    pub lock_memory: bool,
    /// Most that all change rings together may take, in MiB.
    #[serde(
        default = "values::default_ring_total_mib",
        deserialize_with = "values::ring_total_mib"
    )]
    pub ring_total_mib: u64,
    /// The NBD server.
    #[serde(default)]
    pub nbd: Nbd,
    /// The FUSE directory; absent: none.
    pub fuse: Option<Fuse>,
    /// How disks become block devices of this machine.
    #[serde(default)]
    pub attach: Attach,
    /// The protected disks.
    #[serde(default, rename = "volume")]
    pub volumes: Vec<VolumeConfig>,
}

/// The NBD server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nbd {
    /// Where it listens; empty: nowhere.
    #[serde(default, deserialize_with = "values::addresses")]
    pub listen: Vec<Address>,
}

/// The FUSE directory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fuse {
    /// Where it is mounted.
    #[serde(deserialize_with = "values::absolute")]
    pub mount: PathBuf,
}

/// How disks become block devices of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Attach {
    /// Connections of one kernel NBD device.
    #[serde(deserialize_with = "values::nbd_connections")]
    pub nbd_connections: u32,
    /// After this many seconds without an answer the kernel gives a connection up and sends the
    /// request over another one; 0: never with one connection, after 30 s with several.
    pub request_seconds_max: u32,
    /// For so many seconds the kernel keeps a device whose connections are gone.
    pub dead_connection_seconds: u32,
}

impl Default for Attach {
    fn default() -> Self {
        Self { nbd_connections: 4, request_seconds_max: 0, dead_connection_seconds: 300 }
    }
}

/// One protected disk.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeConfig {
    /// The name that clients and people use.
    #[serde(deserialize_with = "values::volume_name")]
    pub name: String,
    /// The file or block device that holds the volume's bytes.
    #[serde(deserialize_with = "values::absolute")]
    pub backing: PathBuf,
    /// Size of the change ring in MiB.
    #[serde(default = "values::default_ring_mib", deserialize_with = "values::ring_mib")]
    pub ring_mib: u64,
    /// Most that a copy or comparison of the whole disk reads, in MiB a second; 0: no limit.
    #[serde(default)]
    pub copy_mib_per_second: u32,
}

impl VolumeConfig {
    /// Most that a copy reads in a second, in bytes; `None` without a limit.
    #[must_use]
    pub fn copy_bytes_per_second(&self) -> Option<u64> {
        let mib = u64::from(self.copy_mib_per_second);
        (mib > 0).then_some(mib * 1024 * 1024)
    }
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`], which names file, line and key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| explain(&error, text, path))?;
        match config.check() {
            Ok(()) => Ok(config),
            Err(detail) => Err(ConfigError::Whole { path: path.into(), detail }),
        }
    }

    /// Checks what no single line shows.
    ///
    /// # Errors
    /// What contradicts what, and what to do.
    pub fn check(&self) -> Result<(), String> {
        if self.nbd.listen.is_empty() && self.fuse.is_none() {
            return Err("neither [nbd] listen nor [fuse] mount is set: nobody could reach a \
                        disk; set one of them"
                .into());
        }
        for (index, volume) in self.volumes.iter().enumerate() {
            if self.volumes[..index].iter().any(|earlier| earlier.name == volume.name) {
                return Err(format!(
                    "two volumes are called {:?}; give each a name of its own",
                    volume.name
                ));
            }
        }
        let rings_mib: u64 = self.volumes.iter().map(|volume| volume.ring_mib).sum();
        if rings_mib > self.ring_total_mib {
            return Err(format!(
                "the change rings of {} volume(s) take {rings_mib} MiB together, ring_total_mib \
                 allows {}; make ring_mib of some smaller, or ring_total_mib larger where the \
                 memory is there",
                self.volumes.len(),
                self.ring_total_mib
            ));
        }
        self.check_sockets()
    }

    /// Two listeners can't have one address.
    fn check_sockets(&self) -> Result<(), String> {
        let control = Address::Unix(self.control_socket.clone());
        for (index, address) in self.nbd.listen.iter().enumerate() {
            if *address == control {
                return Err(format!(
                    "control_socket and [nbd] listen are both {address}; give each its own"
                ));
            }
            if self.nbd.listen[..index].contains(address) && !is_any_port(address) {
                return Err(format!("[nbd] listen names {address} twice; remove one"));
            }
        }
        Ok(())
    }
}

/// Port 0 asks for a free one, every time another.
fn is_any_port(address: &Address) -> bool {
    matches!(address, Address::Tcp(at) if at.port() == 0)
}
