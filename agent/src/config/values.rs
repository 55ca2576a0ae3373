//! Defaults and single values of the configuration: each reader turns a wrong value away with a
//! text that says what is right.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use tidemark_block::engine::socket::Address;

/// Where the control socket is when nobody says otherwise.
pub const CONTROL_SOCKET_DEFAULT: &str = "/run/tidemark/agent.sock";

/// Smallest and largest change ring of one volume.
const RING_MIB: RangeInclusive<u64> = 1..=64 * 1024;
/// Smallest and largest sum of all of them.
const RING_TOTAL_MIB: RangeInclusive<u64> = 1..=1024 * 1024;
/// Fewest and most executor threads.
const WORKERS: RangeInclusive<u64> = 1..=64;
/// Fewest and most connections of a kernel NBD device.
const NBD_CONNECTIONS: RangeInclusive<u64> = 1..=16;

pub(super) fn default_state_dir() -> PathBuf {
    "/var/lib/tidemark/agent".into()
}

pub(super) fn default_ring_dir() -> PathBuf {
    "/dev/shm/tidemark".into()
}

pub(super) fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get().min(4))
}

pub(super) fn default_ring_mib() -> u64 {
    256
}

pub(super) fn default_ring_total_mib() -> u64 {
    4096
}

pub(super) fn default_control_socket() -> PathBuf {
    CONTROL_SOCKET_DEFAULT.into()
}

pub(super) fn default_lock_memory() -> bool {
    true
}

pub(super) fn absolute<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    if path.is_absolute() {
        return Ok(path);
    }
    Err(D::Error::custom(format_args!("{path:?} is not an absolute path; begin it with '/'")))
}

pub(super) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
    local(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

pub(super) fn addresses<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Address>, D::Error> {
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

pub(super) fn workers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let count = within(u64::deserialize(deserializer)?, &WORKERS)?;
    usize::try_from(count).map_err(D::Error::custom)
}

pub(super) fn ring_mib<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    within(u64::deserialize(deserializer)?, &RING_MIB)
}

pub(super) fn ring_total_mib<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    within(u64::deserialize(deserializer)?, &RING_TOTAL_MIB)
}

pub(super) fn nbd_connections<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let count = within(u64::deserialize(deserializer)?, &NBD_CONNECTIONS)?;
    u32::try_from(count).map_err(D::Error::custom)
}

fn within<E: serde::de::Error>(number: u64, allowed: &RangeInclusive<u64>) -> Result<u64, E> {
    if allowed.contains(&number) {
        return Ok(number);
    }
    let (least, most) = (allowed.start(), allowed.end());
    Err(E::custom(format_args!("{number} can't be; give a number from {least} to {most}")))
}

pub(super) fn volume_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
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
