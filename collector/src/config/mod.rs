//! The daemon's configuration: one TOML file, every key with a default.
//!
//! What enters: the file. What leaves: a [`Config`] in which every value was checked. A key that
//! does not exist or a value that makes no sense is an error that names file, line and, for a
//! key, the nearest right one. The keys and their checks are in `raw`; what a daemon does when
//! the file has changed is in [`settings`].

mod raw;
pub mod settings;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use tidemark_block::engine::socket::Address;

use crate::error::{Failure, Result};
use crate::policy::Policy;

/// Where the file is when nobody says otherwise; it may be missing there.
pub const CONFIG_PATH_DEFAULT: &str = "/etc/tidemark/collector.toml";
/// Where the control socket is when nobody says otherwise.
pub const CONTROL_SOCKET_DEFAULT: &str = "/run/tidemark/collector.sock";

/// What the daemon runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file that was named; none when the one at [`CONFIG_PATH_DEFAULT`] is used if it is
    /// there.
    pub file: Option<PathBuf>,
    /// Everything that the collector keeps is below this directory.
    pub data_dir: PathBuf,
    /// Where agents connect: unix sockets and loopback addresses.
    pub listen: Vec<Address>,
    /// The socket of the control API.
    pub control_socket: PathBuf,
    /// Sessions of agents at one time; more are refused.
    pub sessions_max: usize,
    /// Volumes that are known; a new one beyond them is refused.
    pub volumes_max: usize,
    /// Exports at one time; more are refused.
    pub exports_max: usize,
    /// With less free space below the data directory than this the daemon does not start.
    pub free_bytes_min: u64,
    /// A volume whose newest recoverable state is older than this is "behind".
    pub behind_after_seconds: u64,
    /// What holds for every volume that has no policy of its own.
    pub policy: Policy,
    /// Bytes that all merges together read per second at most; none: no limit.
    pub merge_bytes_per_second: Option<u64>,
    /// The empty directory that shows FUSE exports; none: there are no FUSE exports.
    pub fuse_mount: Option<PathBuf>,
    /// Bytes of its own that a writable clone may hold when nobody says otherwise.
    pub clone_bytes_max: u64,
    /// How long a retired volume is kept when nobody says otherwise.
    pub erase_grace: Duration,
}

impl Config {
    /// Reads the file at `path`, or takes all defaults when no path was given and the file at
    /// [`CONFIG_PATH_DEFAULT`] does not exist.
    ///
    /// # Errors
    /// `Invalid` or `NotFound`, with file and line.
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let file = path.unwrap_or(Path::new(CONFIG_PATH_DEFAULT));
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                String::new()
            }
            Err(error) => {
                let message = format!("can't read the configuration {}: {error}", file.display());
                return Err(Failure::invalid(message).with_hint("give its path with --config"));
            }
        };
        let config = raw::parse(&text, file)?;
        Ok(Self { file: path.map(Path::to_owned), ..config })
    }

    /// Reads a configuration from text; `file` is for messages, and read at a reload.
    ///
    /// # Errors
    /// `Invalid`, with file and line.
    pub fn parse(text: &str, file: &Path) -> Result<Self> {
        raw::parse(text, file)
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
