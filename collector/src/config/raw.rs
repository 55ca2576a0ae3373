//! The keys of the file, their defaults, and the checks of their values.

use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::{Address, CONTROL_SOCKET_DEFAULT, Config};
use crate::error::{Failure, Result, nearest};
use crate::policy::{DAYS_MAX, Policy, SECONDS_MAX};

/// Keys above all tables.
const KEYS: [&str; 13] = [
    "data_dir",
    "listen",
    "control_socket",
    "sessions_max",
    "volumes_max",
    "exports_max",
    "free_bytes_min",
    "behind_after_seconds",
    "merge_mib_per_second",
    "fuse_mount",
    "clone_mib_max",
    "erase_grace_seconds",
    "policy",
];

/// Keys of the table `[policy]`.
const POLICY_KEYS: [&str; 6] = [
    "window_seconds",
    "journal_mib_max",
    "point_interval_seconds",
    "compare_window",
    "verify_days",
    "resync_days",
];

/// Upper bound of everything that is counted.
const COUNT_MAX: u64 = 65_536;
/// Upper bound of everything in MiB, so that it has a number of bytes.
const MIB_MAX: u64 = 1 << 40;
const MIB: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    data_dir: PathBuf,
    listen: Vec<Spanned<String>>,
    control_socket: PathBuf,
    sessions_max: Spanned<u64>,
    volumes_max: Spanned<u64>,
    exports_max: Spanned<u64>,
    free_bytes_min: u64,
    behind_after_seconds: Spanned<u64>,
    merge_mib_per_second: Spanned<u64>,
    fuse_mount: Option<PathBuf>,
    clone_mib_max: Spanned<u64>,
    erase_grace_seconds: Spanned<u64>,
    policy: RawPolicy,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawPolicy {
    window_seconds: Spanned<u64>,
    journal_mib_max: Spanned<u64>,
    point_interval_seconds: Spanned<u64>,
    compare_window: Spanned<String>,
    verify_days: Spanned<u64>,
    resync_days: Spanned<u64>,
}

fn unset<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/tidemark/collector".into(),
            listen: vec![unset("unix:/run/tidemark/ingest.sock".to_owned())],
            control_socket: CONTROL_SOCKET_DEFAULT.into(),
            sessions_max: unset(256),
            volumes_max: unset(1024),
            exports_max: unset(16),
            free_bytes_min: 64 * MIB,
            behind_after_seconds: unset(10),
            merge_mib_per_second: unset(256),
            fuse_mount: None,
            clone_mib_max: unset(10_240),
            erase_grace_seconds: unset(7 * 86_400),
            policy: RawPolicy::default(),
        }
    }
}

impl Default for RawPolicy {
    fn default() -> Self {
        let policy = Policy::default();
        Self {
            window_seconds: unset(policy.window.as_secs()),
            journal_mib_max: unset(policy.journal_bytes_max.map_or(0, |bytes| bytes / MIB)),
            point_interval_seconds: unset(policy.point_interval.map_or(0, |time| time.as_secs())),
            compare_window: unset(policy.compare_window.to_string()),
            verify_days: unset(policy.verify_days.unwrap_or(0).into()),
            resync_days: unset(policy.resync_days.unwrap_or(0).into()),
        }
    }
}

/// The text, with what messages about it need.
struct Source<'a> {
    text: &'a str,
    file: &'a Path,
}

pub(super) fn parse(text: &str, file: &Path) -> Result<Config> {
    let source = Source { text, file };
    let raw: Raw = toml::from_str(text).map_err(|error| source.explain(&error))?;
    let count = |key, value: &Spanned<u64>| {
        let number = source.within(key, value, 1..=COUNT_MAX)?;
        Ok::<_, Failure>(usize::try_from(number).expect("the bound of a count fits everywhere"))
    };
    let config = Config {
        file: Some(file.to_owned()),
        listen: source.listen(&raw.listen)?,
        sessions_max: count("sessions_max", &raw.sessions_max)?,
        volumes_max: count("volumes_max", &raw.volumes_max)?,
        exports_max: count("exports_max", &raw.exports_max)?,
        free_bytes_min: raw.free_bytes_min,
        behind_after_seconds: source.within(
            "behind_after_seconds",
            &raw.behind_after_seconds,
            1..=SECONDS_MAX,
        )?,
        policy: source.policy(&raw.policy)?,
        merge_bytes_per_second: source
            .maybe_mib("merge_mib_per_second", &raw.merge_mib_per_second)?,
        clone_bytes_max: source.within("clone_mib_max", &raw.clone_mib_max, 1..=MIB_MAX)? * MIB,
        erase_grace: Duration::from_secs(source.within(
            "erase_grace_seconds",
            &raw.erase_grace_seconds,
            1..=SECONDS_MAX,
        )?),
        data_dir: source.absolute("data_dir", raw.data_dir)?,
        control_socket: source.absolute("control_socket", raw.control_socket)?,
        fuse_mount: raw.fuse_mount.map(|path| source.absolute("fuse_mount", path)).transpose()?,
    };
    Ok(config)
}

impl Source<'_> {
    fn policy(&self, raw: &RawPolicy) -> Result<Policy> {
        let seconds = |key, value, allowed| self.within(key, value, allowed);
        let window = seconds("window_seconds", &raw.window_seconds, 1..=SECONDS_MAX)?;
        let interval =
            seconds("point_interval_seconds", &raw.point_interval_seconds, 0..=SECONDS_MAX)?;
        Ok(Policy {
            window: Duration::from_secs(window),
            journal_bytes_max: self.maybe_mib("journal_mib_max", &raw.journal_mib_max)?,
            point_interval: (interval != 0).then(|| Duration::from_secs(interval)),
            compare_window: raw.compare_window.get_ref().parse().map_err(|error| {
                self.at(raw.compare_window.span(), format!("compare_window: {error}"))
            })?,
            verify_days: self.maybe_days("verify_days", &raw.verify_days)?,
            resync_days: self.maybe_days("resync_days", &raw.resync_days)?,
        })
    }

    /// Days; none for 0, which stands for "never".
    fn maybe_days(&self, key: &str, value: &Spanned<u64>) -> Result<Option<u32>> {
        let days = self.within(key, value, 0..=DAYS_MAX.into())?;
        Ok(u32::try_from(days).ok().filter(|days| *days != 0))
    }

    fn listen(&self, addresses: &[Spanned<String>]) -> Result<Vec<Address>> {
        if addresses.is_empty() {
            let line = self.key_line("listen");
            let message = "listen names no address, so no agent could connect";
            return Err(self.at_line(line, message));
        }
        let parsed = addresses.iter().map(|address| {
            let parsed: Address = address
                .get_ref()
                .parse()
                .map_err(|error| self.at(address.span(), format!("listen: {error}")))?;
            check_listen(&parsed).map_err(|message| self.at(address.span(), message))?;
            Ok(parsed)
        });
        parsed.collect()
    }

    /// The value, when it is an allowed one.
    fn within(&self, key: &str, value: &Spanned<u64>, allowed: RangeInclusive<u64>) -> Result<u64> {
        let number = *value.get_ref();
        if allowed.contains(&number) {
            return Ok(number);
        }
        let (min, max) = allowed.into_inner();
        Err(self.at(value.span(), format!("{key} is {number}, allowed are {min} to {max}")))
    }

    /// Bytes; none for 0, which stands for "no limit".
    fn maybe_mib(&self, key: &str, value: &Spanned<u64>) -> Result<Option<u64>> {
        let mib = self.within(key, value, 0..=MIB_MAX)?;
        Ok((mib != 0).then_some(mib * MIB))
    }

    fn absolute(&self, key: &str, path: PathBuf) -> Result<PathBuf> {
        if path.is_absolute() {
            return Ok(path);
        }
        let message = format!("{key} is {path:?}, an absolute path is needed");
        Err(self.at_line(self.key_line(key), message))
    }

    fn at(&self, span: Range<usize>, message: impl std::fmt::Display) -> Failure {
        self.at_line(self.line_of(span.start), message)
    }

    fn at_line(&self, line: usize, message: impl std::fmt::Display) -> Failure {
        Failure::invalid(format!("{}:{line}: {message}", self.file.display()))
    }

    fn explain(&self, error: &toml::de::Error) -> Failure {
        let span = error.span().unwrap_or(0..0);
        let key = self.text.get(span.clone()).unwrap_or("").trim();
        if !error.message().starts_with("unknown field") {
            return self.at(span, error.message());
        }
        let near = nearest(key, KEYS.into_iter().chain(POLICY_KEYS));
        self.at(span, format!("there is no key {key:?} here")).with_hint(match near {
            Some(right) if POLICY_KEYS.contains(&right) => {
                format!("did you mean {right} in the table [policy]?")
            }
            Some("policy") => "did you mean the table [policy]?".to_owned(),
            Some(right) => format!("did you mean {right}?"),
            None => format!(
                "the keys are {}; in the table [policy] {}",
                KEYS[..KEYS.len() - 1].join(", "),
                POLICY_KEYS.join(", ")
            ),
        })
    }

    /// One-based line of a byte of the text.
    fn line_of(&self, byte: usize) -> usize {
        self.text.bytes().take(byte).filter(|byte| *byte == b'\n').count() + 1
    }

    /// One-based line on which a key is set.
    fn key_line(&self, key: &str) -> usize {
        let sets = |line: &str| {
            line.trim_start()
                .strip_prefix(key)
                .is_some_and(|rest| rest.trim_start().starts_with('='))
        };
        self.text.lines().position(sets).map_or(1, |index| index + 1)
    }
}

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

/// The names that a text must have to set every key.
#[cfg(test)]
pub(super) fn all_keys() -> impl Iterator<Item = &'static str> {
    KEYS.into_iter().chain(POLICY_KEYS)
}
