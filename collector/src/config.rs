//! The daemon's configuration: one TOML file, every key with a default.
//!
//! A key that does not exist or a value that makes no sense is an error that names file, line
//! and, for a key, the nearest right one.

use std::path::{Path, PathBuf};

use serde::Deserialize;
pub use tidemark_block::engine::socket::Address;

use crate::error::{Failure, Result, nearest};

/// Where the file is when nobody says otherwise; it may be missing there.
pub const CONFIG_PATH_DEFAULT: &str = "/etc/tidemark/collector.toml";

const KEYS: [&str; 8] = [
    "data_dir",
    "listen",
    "control_socket",
    "sessions_max",
    "volumes_max",
    "exports_max",
    "free_bytes_min",
    "behind_after_seconds",
];

/// What the daemon runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
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
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    data_dir: PathBuf,
    listen: Vec<toml::Spanned<String>>,
    control_socket: PathBuf,
    sessions_max: toml::Spanned<usize>,
    volumes_max: toml::Spanned<usize>,
    exports_max: toml::Spanned<usize>,
    free_bytes_min: u64,
    behind_after_seconds: toml::Spanned<u64>,
}

impl Default for Raw {
    fn default() -> Self {
        let listen = "unix:/run/tidemark/ingest.sock".to_owned();
        Self {
            data_dir: "/var/lib/tidemark/collector".into(),
            listen: vec![toml::Spanned::new(0..0, listen)],
            control_socket: CONTROL_SOCKET_DEFAULT.into(),
            sessions_max: toml::Spanned::new(0..0, 256),
            volumes_max: toml::Spanned::new(0..0, 1024),
            exports_max: toml::Spanned::new(0..0, 16),
            free_bytes_min: 64 << 20,
            behind_after_seconds: toml::Spanned::new(0..0, 10),
        }
    }
}

/// Where the control socket is when nobody says otherwise.
pub const CONTROL_SOCKET_DEFAULT: &str = "/run/tidemark/collector.sock";

impl Config {
    /// Reads the file at `path`, or takes all defaults when no path was given and the file at
    /// [`CONFIG_PATH_DEFAULT`] does not exist.
    ///
    /// # Errors
    /// `Invalid` or `NotFound`, with file and line.
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let file = path.unwrap_or(Path::new(CONFIG_PATH_DEFAULT));
        match std::fs::read_to_string(file) {
            Ok(text) => Self::parse(&text, file),
            Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                Self::parse("", file)
            }
            Err(error) => Err(Failure::invalid(format!(
                "can't read the configuration {}: {error}",
                file.display()
            ))
            .with_hint("give its path with --config")),
        }
    }

    /// Reads a configuration from text; `file` is for messages.
    ///
    /// # Errors
    /// `Invalid`, with file and line.
    pub fn parse(text: &str, file: &Path) -> Result<Self> {
        let raw: Raw = toml::from_str(text).map_err(|error| explain(&error, text, file))?;
        let at = |span: std::ops::Range<usize>, message: String| {
            Failure::invalid(format!("{}:{}: {message}", file.display(), line_of(text, span.start)))
        };
        let mut listen = Vec::new();
        for address in &raw.listen {
            let parsed: Address = address
                .get_ref()
                .parse()
                .map_err(|e| at(address.span(), format!("listen: {e}")))?;
            check_listen(&parsed).map_err(|message| at(address.span(), message))?;
            listen.push(parsed);
        }
        if listen.is_empty() {
            return Err(at(0..0, "listen names no address, so no agent could connect".into()));
        }
        for (key, value) in [
            ("sessions_max", &raw.sessions_max),
            ("volumes_max", &raw.volumes_max),
            ("exports_max", &raw.exports_max),
        ] {
            if *value.get_ref() == 0 || *value.get_ref() > COUNT_MAX {
                let message = format!("{key} is {}, allowed are 1 to {COUNT_MAX}", value.get_ref());
                return Err(at(value.span(), message));
            }
        }
        if *raw.behind_after_seconds.get_ref() == 0 {
            let span = raw.behind_after_seconds.span();
            return Err(at(span, "behind_after_seconds is 0, at least 1 is needed".into()));
        }
        for (key, path) in [("data_dir", &raw.data_dir), ("control_socket", &raw.control_socket)] {
            if !path.is_absolute() {
                let line = key_line(text, key);
                return Err(Failure::invalid(format!(
                    "{}:{line}: {key} is {:?}, an absolute path is needed",
                    file.display(),
                    path
                )));
            }
        }
        Ok(Self {
            data_dir: raw.data_dir,
            listen,
            control_socket: raw.control_socket,
            sessions_max: raw.sessions_max.into_inner(),
            volumes_max: raw.volumes_max.into_inner(),
            exports_max: raw.exports_max.into_inner(),
            free_bytes_min: raw.free_bytes_min,
            behind_after_seconds: raw.behind_after_seconds.into_inner(),
        })
    }
}

/// Upper bound of everything that is counted.
const COUNT_MAX: usize = 65_536;

/// Refuses addresses that others could reach: there are no certificates yet, so whoever can
/// connect can write to every volume.
fn check_listen(address: &Address) -> std::result::Result<(), String> {
    match address {
        Address::Unix(path) if !path.is_absolute() => {
            Err(format!("listen: {address} needs an absolute path"))
        }
        Address::Tcp(tcp) if !tcp.ip().is_loopback() => Err(format!(
            "listen: {address} can be reached from other machines, and agents are not yet asked \
             for a certificate; use a loopback address or a unix socket"
        )),
        _ => Ok(()),
    }
}

fn explain(error: &toml::de::Error, text: &str, file: &Path) -> Failure {
    let span = error.span().unwrap_or(0..0);
    let line = line_of(text, span.start);
    let message = format!("{}:{line}: {}", file.display(), error.message());
    let key = text.get(span).unwrap_or("").trim();
    if !error.message().starts_with("unknown field") {
        return Failure::invalid(message);
    }
    let message = format!("{}:{line}: there is no key {key:?}", file.display());
    Failure::invalid(message).with_hint(match nearest(key, KEYS) {
        Some(right) => format!("did you mean {right}?"),
        None => format!("the keys are {}", KEYS.join(", ")),
    })
}

/// One-based line of a byte of the text.
fn line_of(text: &str, byte: usize) -> usize {
    text.bytes().take(byte).filter(|byte| *byte == b'\n').count() + 1
}

/// One-based line on which a key is set.
fn key_line(text: &str, key: &str) -> usize {
    let sets = |line: &str| {
        line.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    text.lines().position(sets).map_or(1, |index| index + 1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config> {
        Config::parse(text, Path::new("collector.toml"))
    }

    #[test]
    fn an_empty_file_is_a_whole_configuration() {
        let config = parse("").unwrap();
        assert_eq!(config.data_dir, Path::new("/var/lib/tidemark/collector"));
        assert_eq!(config.listen[0].to_string(), "unix:/run/tidemark/ingest.sock");
    }

    #[test]
    fn every_key_is_known_by_the_table_of_keys() {
        let text = "data_dir = '/d'\nlisten = ['tcp:127.0.0.1:7440']\ncontrol_socket = '/s'\n\
                    sessions_max = 1\nvolumes_max = 2\nexports_max = 3\nfree_bytes_min = 4\n\
                    behind_after_seconds = 5\n";
        for key in KEYS {
            assert!(text.contains(key), "{key}");
        }
        assert_eq!(parse(text).unwrap().exports_max, 3);
    }

    #[test]
    fn mistakes_name_file_line_and_the_nearest_key() {
        for (text, wanted) in [
            (
                "\ndatadir = '/d'",
                "collector.toml:2: there is no key \"datadir\"; did you mean data_dir?",
            ),
            ("colour = 1", "collector.toml:1: there is no key \"colour\"; the keys are"),
            ("listen = [\n'udp:1'\n]", "collector.toml:2: listen:"),
            ("listen = ['tcp:0.0.0.0:1']", "can be reached from other machines"),
            ("\n\nsessions_max = 'x'", "collector.toml:3:"),
            ("sessions_max = 0", "collector.toml:1: sessions_max is 0"),
            ("\ndata_dir = 'relative'", "collector.toml:2: data_dir"),
            ("listen = []", "names no address"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{text:?}: {error}");
        }
    }
}
