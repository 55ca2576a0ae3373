//! The kernel's own NBD client, set up over generic netlink.
//!
//! The kernel gets sockets on which the handshake is done, and speaks the protocol itself from
//! then on. A device carries the volume's identity as its backend identifier, by which it is
//! found and told from those of others, also after this agent has died: then its sockets are
//! dead, what the guests ask for waits as long as `dead_connection_seconds` allows, and a new
//! agent gives the kernel new sockets.
//!
//! Source: `include/uapi/linux/nbd-netlink.h` and `drivers/block/nbd.c` of the kernel.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use tidemark_block::engine::socket::Address;
use tidemark_block::nbd::client::ServedExport;

use super::device;
use super::error::{AttachError, AttachErrorKind};
use super::genetlink::{Attributes, Family};
use super::nbd_handshake;
use super::{CONNECTIONS_MAX, Links, Options, module};

pub(super) const FAMILY: &str = "nbd";
pub(super) const FAMILY_VERSION: u8 = 1;

const CONNECT: u8 = 1;
const DISCONNECT: u8 = 2;
const RECONFIGURE: u8 = 3;

pub(super) const INDEX: u16 = 1;
const SIZE_BYTES: u16 = 2;
const BLOCK_BYTES: u16 = 3;
const TIMEOUT_SECONDS: u16 = 4;
const SERVER_FLAGS: u16 = 5;
const SOCKETS: u16 = 7;
const DEAD_CONNECTION_SECONDS: u16 = 8;
const BACKEND_IDENTIFIER: u16 = 10;
const SOCKET_ITEM: u16 = 1;
const SOCKET_FD: u16 = 1;

/// The transmission flag by which a server says that a flush covers all connections.
const CAN_MULTI_CONN: u16 = 1 << 8;

/// What the kernel is to serve.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) address: Address,
    pub(super) export: String,
    pub(super) identifier: String,
    pub(super) size_bytes: u64,
    pub(super) block_bytes: u32,
    pub(super) options: Options,
}

/// Why this kernel has no NBD client.
pub(super) fn probe() -> Result<(), String> {
    match Family::open(FAMILY, FAMILY_VERSION) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err("the kernel's NBD client is not there; modprobe nbd".to_owned()),
        Err(error) => Err(format!("can't ask the kernel over generic netlink: {error}")),
    }
}

/// Loads the module where it is missing; whether that worked shows in [`probe`].
pub(super) fn load_module() {
    if probe().is_err() {
        module::load(FAMILY);
    }
}

/// The device that carries `identifier`, when there is one.
pub(super) fn find(identifier: &str) -> Option<PathBuf> {
    let entries = fs::read_dir("/sys/block").ok()?.flatten();
    entries
        .map(|entry| Path::new("/dev").join(entry.file_name()))
        .find(|path| is_ours(path, identifier))
}

/// True when `device` is set up and carries `identifier`.
pub(super) fn is_ours(device: &Path, identifier: &str) -> bool {
    device::attribute(device, "backend").is_some_and(|found| found == identifier)
}

/// Sets up the next free device; gives its path and what could not be had.
pub(super) fn connect(target: &Target) -> Result<(PathBuf, Vec<String>), AttachError> {
    let mut family = family(&target.export)?;
    let (sockets, served) = all_sockets(target)?;
    let attributes = common(target, &sockets).u64(SERVER_FLAGS, served.flags.into());
    let refused = |source| AttachError {
        kind: AttachErrorKind::Kernel,
        subject: target.export.clone(),
        detail: "the kernel's NBD client refuses the connection".to_owned(),
        source: Some(source),
    };
    let answer = family.request(CONNECT, &attributes).map_err(refused)?;
    let index = answer.u32(INDEX).ok_or_else(|| refused(io::Error::other("no device number")))?;
    let device = PathBuf::from(format!("/dev/nbd{index}"));
    if !is_ours(&device, &target.identifier) {
        // Nobody could find it again, neither to take it down nor to take it over.
        disconnect(&device)?;
        let text = "this kernel keeps no identity of NBD devices; that needs Linux 5.14";
        return Err(AttachError::new(AttachErrorKind::Unavailable, target.export.clone(), text));
    }
    let mut notes = Vec::new();
    if sockets.len() < connections(&target.options) {
        notes.push(format!(
            "the server allows one connection only; {} were wanted",
            connections(&target.options)
        ));
    }
    if target.options.request_seconds_max == 0 && sockets.len() > 1 {
        notes.push(
            "with several connections Linux sends a request again over another one when it takes \
             longer than 30 s, also with request_seconds_max = 0"
                .to_owned(),
        );
    }
    Ok((device, notes))
}

/// Gives the kernel new sockets for those that died. It takes as many as it lacks.
pub(super) fn reconnect(device: &Path, target: &Target) -> Result<(), AttachError> {
    let (sockets, _) = all_sockets(target)?;
    give_sockets(device, target, common(target, &sockets))
}

/// As [`reconnect`], and nothing else about the device is said anew: its size may change meanwhile.
pub(super) fn mend(device: &Path, target: &Target) -> Result<Links, AttachError> {
    let Sockets { list, missing, .. } = sockets(target)?;
    let attributes = Attributes::default()
        .text(BACKEND_IDENTIFIER, &target.identifier)
        .nested(SOCKETS, &listed(&list));
    give_sockets(device, target, attributes)?;
    Ok(missing.map_or(Links::Whole, Links::Some))
}

fn give_sockets(device: &Path, target: &Target, attributes: Attributes) -> Result<(), AttachError> {
    let attributes = attributes.u32(INDEX, index(device)?);
    family(&target.export)?.request(RECONFIGURE, &attributes).map_err(|source| {
        let doing = "the kernel's NBD client does not take new connections";
        AttachError::io(AttachErrorKind::Kernel, device, doing, source)
    })?;
    Ok(())
}

/// Tells the kernel the size that the target has by now.
pub(super) fn resize(device: &Path, target: &Target) -> Result<(), AttachError> {
    let attributes = described(target).u32(INDEX, index(device)?);
    family(&target.export)?.request(RECONFIGURE, &attributes).map_err(|source| {
        let doing = "the kernel's NBD client does not take another size";
        AttachError::io(AttachErrorKind::Kernel, device, doing, source)
    })?;
    Ok(())
}

/// Ends the connections. The device is free when the last one who has it open lets go.
pub(super) fn disconnect(device: &Path) -> Result<(), AttachError> {
    let attributes = Attributes::default().u32(INDEX, index(device)?);
    let subject = device.display().to_string();
    family(&subject)?.request(DISCONNECT, &attributes).map_err(|source| {
        AttachError::io(AttachErrorKind::Kernel, device, "can't be disconnected", source)
    })?;
    Ok(())
}

fn family(subject: &str) -> Result<Family, AttachError> {
    let missing = |text| AttachError::new(AttachErrorKind::Unavailable, subject, text);
    match Family::open(FAMILY, FAMILY_VERSION) {
        Ok(Some(family)) => Ok(family),
        Ok(None) => Err(missing("the kernel's NBD client is not there; modprobe nbd".to_owned())),
        Err(error) => Err(missing(format!("generic netlink: {error}"))),
    }
}

/// What connecting and reconnecting have in common.
fn common(target: &Target, sockets: &[OwnedFd]) -> Attributes {
    described(target)
        .u64(TIMEOUT_SECONDS, target.options.request_seconds_max)
        .u64(DEAD_CONNECTION_SECONDS, target.options.dead_connection_seconds)
        .nested(SOCKETS, &listed(sockets))
}

fn listed(sockets: &[OwnedFd]) -> Attributes {
    sockets.iter().fold(Attributes::default(), |list, socket| {
        let number = u32::try_from(socket.as_raw_fd()).expect("an open descriptor is positive");
        list.nested(SOCKET_ITEM, &Attributes::default().u32(SOCKET_FD, number))
    })
}

/// Which disk it is, and how large.
fn described(target: &Target) -> Attributes {
    Attributes::default()
        .u64(SIZE_BYTES, target.size_bytes)
        .u64(BLOCK_BYTES, target.block_bytes.into())
        .text(BACKEND_IDENTIFIER, &target.identifier)
}

/// Negotiated sockets.
struct Sockets {
    list: Vec<OwnedFd>,
    served: ServedExport,
    /// Why there are not as many as wanted.
    missing: Option<AttachError>,
}

fn all_sockets(target: &Target) -> Result<(Vec<OwnedFd>, ServedExport), AttachError> {
    let Sockets { list, served, missing } = sockets(target)?;
    missing.map_or(Ok((list, served)), Err)
}

/// At least one and as many as wanted; one, when the server's flush covers only one.
fn sockets(target: &Target) -> Result<Sockets, AttachError> {
    let connect = || {
        nbd_handshake::connect(&target.address, &target.export).map_err(|source| AttachError {
            kind: AttachErrorKind::Server,
            subject: target.export.clone(),
            detail: format!("the agent's NBD server at {} gave no connection", target.address),
            source: Some(source),
        })
    };
    let (first, served) = connect()?;
    if served.size_bytes != target.size_bytes {
        return Err(AttachError::new(
            AttachErrorKind::Server,
            target.export.clone(),
            format!(
                "the NBD server at {} serves {} bytes and not the volume's {}; is it this agent's?",
                target.address, served.size_bytes, target.size_bytes
            ),
        ));
    }
    let mut list = vec![first];
    let mut missing = None;
    if served.flags & CAN_MULTI_CONN != 0 {
        while missing.is_none() && list.len() < connections(&target.options) {
            match connect() {
                Ok((socket, _)) => list.push(socket),
                Err(error) => missing = Some(error),
            }
        }
    }
    Ok(Sockets { list, served, missing })
}

fn connections(options: &Options) -> usize {
    let wanted = options.nbd_connections.clamp(1, CONNECTIONS_MAX);
    usize::try_from(wanted).expect("a small number")
}

fn index(device: &Path) -> Result<u32, AttachError> {
    let name = device.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.strip_prefix("nbd")?.parse().ok()).ok_or_else(|| {
        let text = "is not the path of an NBD device";
        AttachError::new(AttachErrorKind::Gone, device.display().to_string(), text)
    })
}
