//! The agent's configuration file.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tidemark_block::engine::socket::Address;

/// Smallest and largest change ring of one volume.
const RING_MIB: std::ops::RangeInclusive<u64> = 1..=64 * 1024;

/// Why a configuration is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("configuration {path} can't be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The file is not what is expected; the text names line and key.
    #[error("configuration {path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// With line, column and key.
        source: Box<toml::de::Error>,
    },
    /// A value can't be.
    #[error("configuration {path}: {detail}")]
    Value {
        /// The file.
        path: PathBuf,
        /// Which key, what is wrong and what is right.
        detail: String,
    },
}

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the agent keeps the state of its volumes; never on a disk that it protects.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Where the change rings live; has to be on tmpfs.
    #[serde(default = "default_ring_dir")]
    pub ring_dir: PathBuf,
    /// The collector's ingest address: `unix:/path` or `tcp:127.0.0.1:port`.
    #[serde(deserialize_with = "address")]
    pub collector: Address,
    /// Executor threads that serve the disks.
    #[serde(default = "default_workers")]
    pub workers: usize,
    /// The NBD server.
    #[serde(default)]
    pub nbd: Nbd,
    /// The FUSE directory; absent: none.
    pub fuse: Option<Fuse>,
    /// The protected disks.
    #[serde(default, rename = "volume")]
    pub volumes: Vec<VolumeConfig>,
}

/// The NBD server.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nbd {
    /// Where it listens; empty: nowhere.
    #[serde(default, deserialize_with = "addresses")]
    pub listen: Vec<Address>,
}

/// The FUSE directory.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fuse {
    /// Where it is mounted.
    pub mount: PathBuf,
}

/// One protected disk.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeConfig {
    /// The name that clients and people use.
    pub name: String,
    /// The file or block device that holds the volume's bytes.
    pub backing: PathBuf,
    /// Size of the change ring in MiB.
    #[serde(default = "default_ring_mib")]
    pub ring_mib: u64,
}

fn default_state_dir() -> PathBuf {
    "/var/lib/tidemark/agent".into()
}

fn default_ring_dir() -> PathBuf {
    "/dev/shm/tidemark".into()
}

fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get().min(4))
}

fn default_ring_mib() -> u64 {
    256
}

fn address<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

fn addresses<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Address>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| text.parse().map_err(serde::de::Error::custom)).collect()
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`], which names file, line and key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        let config: Self = toml::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.into(), source: Box::new(source) })?;
        match config.check() {
            Ok(()) => Ok(config),
            Err(detail) => Err(ConfigError::Value { path: path.into(), detail }),
        }
    }

    fn check(&self) -> Result<(), String> {
        if self.workers == 0 || self.workers > 64 {
            return Err(format!("workers = {}: give a number from 1 to 64", self.workers));
        }
        if self.nbd.listen.is_empty() && self.fuse.is_none() {
            return Err("neither [nbd] listen nor [fuse] mount is set: nobody could reach a \
                        disk; set one of them"
                .into());
        }
        for (index, volume) in self.volumes.iter().enumerate() {
            volume.check()?;
            if self.volumes[..index].iter().any(|earlier| earlier.name == volume.name) {
                return Err(format!("two volumes are called {:?}", volume.name));
            }
        }
        Ok(())
    }
}

impl VolumeConfig {
    fn check(&self) -> Result<(), String> {
        let name_is_good = !self.name.is_empty()
            && self.name.len() <= 128
            && !self.name.starts_with('.')
            && self.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if !name_is_good {
            return Err(format!(
                "volume name {:?}: use 1 to 128 letters, digits, '-', '_' and '.', not beginning \
                 with '.'",
                self.name
            ));
        }
        if !RING_MIB.contains(&self.ring_mib) {
            return Err(format!(
                "volume {:?}: ring_mib = {}: give a number from {} to {}",
                self.name,
                self.ring_mib,
                RING_MIB.start(),
                RING_MIB.end()
            ));
        }
        Ok(())
    }
}
