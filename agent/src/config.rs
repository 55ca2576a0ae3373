//! The agent's configuration file.
//!
//! A key that does not exist or a value that makes no sense is an error that names file, line
//! and, for a key, the nearest right one.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use tidemark_block::engine::socket::Address;

/// Smallest and largest change ring of one volume.
const RING_MIB: RangeInclusive<u64> = 1..=64 * 1024;
/// Fewest and most executor threads.
const WORKERS: RangeInclusive<u64> = 1..=64;

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
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the agent keeps the state of its volumes; never on a disk that it protects.
    #[serde(default = "default_state_dir", deserialize_with = "absolute")]
    pub state_dir: PathBuf,
    /// Where the change rings live; has to be on tmpfs.
    #[serde(default = "default_ring_dir", deserialize_with = "absolute")]
    pub ring_dir: PathBuf,
    /// The collector's ingest address: `unix:/path` or `tcp:127.0.0.1:port`.
    #[serde(deserialize_with = "address")]
    pub collector: Address,
    /// Executor threads that serve the disks.
    #[serde(default = "default_workers", deserialize_with = "workers")]
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
    #[serde(deserialize_with = "absolute")]
    pub mount: PathBuf,
}

/// One protected disk.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeConfig {
    /// The name that clients and people use.
    #[serde(deserialize_with = "volume_name")]
    pub name: String,
    /// The file or block device that holds the volume's bytes.
    #[serde(deserialize_with = "absolute")]
    pub backing: PathBuf,
    /// Size of the change ring in MiB.
    #[serde(default = "default_ring_mib", deserialize_with = "ring_mib")]
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

fn absolute<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    if path.is_absolute() {
        return Ok(path);
    }
    Err(D::Error::custom(format_args!("{path:?} is not an absolute path; begin it with '/'")))
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
    local(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Address>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| local(text).map_err(D::Error::custom)).collect()
}

/// An address that other machines can't reach: there are no certificates yet.
fn local(text: &str) -> Result<Address, String> {
    let address: Address = text.parse().map_err(|error| format!("{error}"))?;
    match &address {
        Address::Unix(path) if !path.is_absolute() => {
            Err(format!("{address} needs an absolute path"))
        }
        Address::Tcp(at) if !at.ip().is_loopback() => Err(format!(
            "{address} is not on this machine, and nobody is asked for a certificate yet; use a \
             loopback address or a unix socket"
        )),
        _ => Ok(address),
    }
}

fn workers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let count = within(u64::deserialize(deserializer)?, &WORKERS)?;
    usize::try_from(count).map_err(D::Error::custom)
}

fn ring_mib<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    within(u64::deserialize(deserializer)?, &RING_MIB)
}

fn within<E: serde::de::Error>(number: u64, allowed: &RangeInclusive<u64>) -> Result<u64, E> {
    if allowed.contains(&number) {
        return Ok(number);
    }
    let (least, most) = (allowed.start(), allowed.end());
    Err(E::custom(format_args!("{number} can't be; give a number from {least} to {most}")))
}

fn volume_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    let is_good = !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if is_good {
        return Ok(name);
    }
    Err(D::Error::custom(format_args!(
        "volume name {name:?}: use 1 to 128 letters, digits, '-', '_' and '.', not beginning \
         with '.'"
    )))
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

    fn check(&self) -> Result<(), String> {
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
        Ok(())
    }
}

fn explain(error: &toml::de::Error, text: &str, path: &Path) -> ConfigError {
    let start = error.span().map_or(0, |span| span.start);
    let line = text.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1;
    let message = error.message();
    // An unknown key's message quotes that key, then the right ones.
    let mut quoted = message.split('`').skip(1).step_by(2);
    let detail = match quoted.next() {
        Some(key) if message.starts_with("unknown field") => {
            let keys: Vec<&str> = quoted.collect();
            let advice = match nearest(key, &keys) {
                Some(right) => format!("did you mean {right}?"),
                None => format!("the keys here are {}", keys.join(", ")),
            };
            format!("there is no key {key:?}; {advice}")
        }
        _ => message.to_owned(),
    };
    ConfigError::Line { path: path.into(), line, detail }
}

/// The key that was probably meant: the one with the fewest edits, at most a third of it.
fn nearest<'a>(typed: &str, keys: &[&'a str]) -> Option<&'a str> {
    let edits = |key: &&str| strsim::levenshtein(typed, key);
    let best = keys.iter().copied().min_by_key(edits)?;
    (edits(&best) <= (typed.len().max(best.len()) / 3).max(1)).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_named_and_not_the_first_that_is_near() {
        assert_eq!(nearest("ring_dr", &["king_dir", "ring_dir"]), Some("ring_dir"));
        assert_eq!(nearest("retention", &["name", "backing"]), None);
    }

    const GOOD: &str = "state_dir = '/s'\ncollector = 'unix:/c'\nworkers = 2\n[nbd]\n\
                        listen = ['unix:/n']\n[[volume]]\nname = 'data'\nbacking = '/b'\n\
                        ring_mib = 16\n";

    #[test]
    fn mistakes_name_file_line_and_the_nearest_key() {
        Config::parse(GOOD, Path::new("a.toml")).expect("a good configuration");
        for (from, to, wanted) in [
            (
                "state_dir",
                "statedir",
                "a.toml:1: there is no key \"statedir\"; did you mean state_dir?",
            ),
            ("backing", "baking", "a.toml:8: there is no key \"baking\"; did you mean backing?"),
            ("[nbd]", "[nbds]", "a.toml:4: there is no key \"nbds\"; did you mean nbd?"),
            (
                "workers",
                "colour",
                "a.toml:3: there is no key \"colour\"; the keys here are state_dir,",
            ),
            ("unix:/c", "tcp:10.0.0.1:7", "a.toml:2: tcp:10.0.0.1:7 is not on this machine"),
            ("unix:/n", "tcp:0.0.0.0:7", "a.toml:5: tcp:0.0.0.0:7 is not on this machine"),
            ("unix:/c", "nowhere", "a.toml:2: \"nowhere\" is not an address"),
            ("'/s'", "'s'", "a.toml:1: \"s\" is not an absolute path"),
            ("= 2", "= 0", "a.toml:3: 0 can't be; give a number from 1 to 64"),
            ("= 16", "= 0", "a.toml:9: 0 can't be; give a number from 1 to 65536"),
            ("'data'", "'a b'", "a.toml:7: volume name \"a b\""),
            ("collector = 'unix:/c'\n", "", "missing field `collector`"),
            ("listen = ['unix:/n']", "", "a.toml: neither [nbd] listen nor"),
        ] {
            let text = GOOD.replacen(from, to, 1);
            let error = Config::parse(&text, Path::new("a.toml")).expect_err(to).to_string();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }
}
