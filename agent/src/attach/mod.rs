//! Volumes as block devices of this machine: the kernel's NBD client, ublk, or a loop device over
//! the FUSE directory.
//!
//! In: a volume that the daemon serves, and where. Out: the path of a device that has answered a
//! read, later its end. The state is the kernel's; what identifies a device is in [`Attached`],
//! which the caller keeps in a file. A crash of the agent leaves the device: one of NBD or ublk waits
//! for the next agent, which takes it over with [`reattach`]; a loop device loses its file and
//! has to be made anew. A restart of the machine leaves nothing.
//!
//! All calls block, and the daemon has to serve meanwhile. What may wait for the daemon's own
//! answer runs [`apart`], so that a kill of the agent can't leave it waiting for itself; each such
//! step is bounded in time.

mod apart;
mod device;
mod error;
mod genetlink;
mod loop_device;
mod module;
mod nbd_handshake;
mod nbd_kernel;
mod nbd_links;
mod ublk;
mod usage;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidemark_block::engine::socket::Address;
use tidemark_block::ublk::Shape;
use tidemark_wire::VolumeId;

use crate::clock::{Clock, SystemClock};
pub use error::{AttachError, AttachErrorKind};
pub use nbd_links::{LinkLoss, LinkWatch};
pub use ublk::Serve;

/// Most connections of one NBD device; more are cut to this.
pub const CONNECTIONS_MAX: u32 = 64;

/// How long a new device, or one that is taken over, may take for its first answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
/// How long the flush before the end may take.
const FLUSH_PATIENCE: Duration = Duration::from_secs(600);
/// How long programs that look at every device, as udev does, are waited for.
const OPENER_PATIENCE: Duration = Duration::from_secs(3);
const OPENER_PAUSE: Duration = Duration::from_millis(50);

/// A way to make a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// The kernel's NBD client.
    Nbd,
    /// User-space block devices over io_uring.
    Ublk,
    /// A loop device over a file of the FUSE directory.
    Loop,
}

/// A text that names no [`Via`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no way to attach a volume; there are nbd, ublk and loop")]
pub struct ViaError {
    text: String,
}

impl FromStr for Via {
    type Err = ViaError;

    fn from_str(text: &str) -> Result<Self, ViaError> {
        match text {
            "nbd" => Ok(Self::Nbd),
            "ublk" => Ok(Self::Ublk),
            "loop" => Ok(Self::Loop),
            _ => Err(ViaError { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nbd => "nbd",
            Self::Ublk => "ublk",
            Self::Loop => "loop",
        })
    }
}

/// The ways of this machine; where one is missing, why, for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ways {
    /// The kernel's NBD client.
    pub nbd: Result<(), String>,
    /// ublk.
    pub ublk: Result<(), String>,
    /// Loop devices.
    pub loop_: Result<(), String>,
}

/// Looks which ways this machine has. Changes nothing: a module that could be loaded is missing
/// until [`attach`] loads it.
#[must_use]
pub fn probe() -> Ways {
    Ways { nbd: nbd_kernel::probe(), ublk: ublk::probe(), loop_: loop_device::probe() }
}

/// A volume that the daemon serves.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Its name, which is also that of the NBD export.
    pub volume: &'a str,
    /// Its identity, by which a device is found again.
    pub id: VolumeId,
    /// Its size.
    pub size_bytes: u64,
    /// The block size that the device is to have.
    pub block_bytes: u32,
    /// Where the daemon serves NBD, if it does.
    pub nbd: Option<&'a Address>,
    /// Who serves a ublk device of it, if anybody can.
    pub ublk: Option<&'a dyn Serve>,
    /// The volume's file in the FUSE directory, if there is one.
    pub fuse_file: Option<&'a Path>,
}

/// How an NBD device behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Connections of one device, 1 to [`CONNECTIONS_MAX`].
    pub nbd_connections: u32,
    /// After this time the kernel gives a connection up and sends the request over another one.
    /// 0: never with one connection; with several the kernel does so after 30 s.
    pub request_seconds_max: u64,
    /// How long requests wait for a new agent when all connections are dead; then they fail.
    pub dead_connection_seconds: u64,
}

/// A device, as the caller keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// How it was made.
    pub via: Via,
    /// Its path, as `/dev/nbd0`.
    pub device: PathBuf,
    /// What tells it from other devices: the NBD device's backend identifier; the number that a
    /// ublk device keeps for its maker; number and file of the loop device.
    pub identifier: String,
    /// What could not be had, for a person.
    pub notes: Vec<String>,
}

/// What became of a device while no agent ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reattached {
    /// It answers, with nothing lost.
    Answers,
    /// It is there, but what it had has ended with the old agent: every request fails. What to do
    /// is in the text.
    Dead(String),
    /// There is no such device any more, and its record can go; why is in the text.
    Gone(String),
}

/// Makes a block device of a volume; without `via` the best way that this machine and the
/// configuration have. Returns when the device has answered a read. A device of NBD or ublk that
/// carries the volume's identity already is taken over.
///
/// # Errors
/// [`AttachErrorKind::Unavailable`] when the way is not there, [`AttachErrorKind::InUse`] when
/// somebody made a loop device of the volume by other means, and what the server or the kernel
/// refused. Nothing stays attached then.
pub fn attach(
    source: &Source<'_>,
    options: &Options,
    via: Option<Via>,
) -> Result<Attached, AttachError> {
    let attached = match choose(source, via)? {
        Via::Nbd => attach_nbd(source, options)?,
        Via::Ublk => attach_ublk(source)?,
        Via::Loop => attach_loop(source)?,
    };
    // A ublk device has answered already: the kernel has looked for partitions on it.
    if attached.via != Via::Ublk
        && let Err(error) = try_read(&attached.device)
    {
        if let Err(second) = take_down(&attached, ANSWER_PATIENCE, false) {
            tracing::warn!("{second}; take {} down by hand", attached.device.display());
        }
        return Err(error);
    }
    for note in &attached.notes {
        tracing::warn!(volume = source.volume, "{}: {note}", attached.device.display());
    }
    Ok(attached)
}

/// Flushes a device and takes it down.
///
/// # Errors
/// [`AttachErrorKind::InUse`] with its users while it is mounted, in use as swap, held by another
/// device or opened by another process; [`AttachErrorKind::Flush`]; [`AttachErrorKind::Gone`] when
/// the device is not there any more or is another one by now. It stays as it is in all of them.
pub fn detach(attached: &Attached) -> Result<(), AttachError> {
    if !is_there(attached) {
        return Err(gone(attached));
    }
    refuse_users(&attached.device)?;
    let is_dead = try_read(&attached.device).is_err();
    if is_dead {
        // Nothing can be brought onto the volume any more, and nothing is kept by leaving it.
        tracing::warn!(
            "{} does not answer; it is taken down without a flush",
            attached.device.display()
        );
    }
    take_down(attached, FLUSH_PATIENCE, !is_dead)?;
    let clock = SystemClock::default();
    let deadline = clock.monotonic() + OPENER_PATIENCE;
    while is_there(attached) {
        if clock.monotonic() > deadline {
            return Err(opened_late(&attached.device));
        }
        clock.sleep(OPENER_PAUSE);
    }
    Ok(())
}

/// Takes over a device that an earlier agent made.
///
/// # Errors
/// What the server or the kernel refused; the device then still waits for an agent, and the call
/// can be made again.
pub fn reattach(
    attached: &Attached,
    source: &Source<'_>,
    options: &Options,
) -> Result<Reattached, AttachError> {
    if !is_there(attached) {
        return Ok(Reattached::Gone(gone(attached).to_string()));
    }
    match attached.via {
        Via::Nbd => {
            let target = nbd_target(source, options)?;
            let device = attached.device.clone();
            apart::run(&attached.device, ANSWER_PATIENCE, move || {
                nbd_kernel::reconnect(&device, &target)
            })?;
            try_read(&attached.device)?;
            Ok(Reattached::Answers)
        }
        Via::Ublk if ublk::is_stopped(&attached.device)? => {
            // An agent was killed between the two steps of taking it down.
            ublk::delete(&attached.device)?;
            Ok(Reattached::Gone(gone(attached).to_string()))
        }
        Via::Ublk => {
            ublk::take_over(&attached.device, ublk_server(source)?)?;
            Ok(Reattached::Answers)
        }
        Via::Loop => match try_read(&attached.device) {
            Ok(()) => Ok(Reattached::Answers),
            Err(error) => Ok(Reattached::Dead(format!(
                "{error}; the agent that served it has ended. Unmount what is on it, then \
                 'tidemark-agent detach {0}' and 'tidemark-agent attach {0}'",
                source.volume
            ))),
        },
    }
}

/// The connections of an NBD device.
#[derive(Debug)]
pub enum Links {
    /// It has all, or needs none any more.
    Whole,
    /// It has got some of those that it may lack; why not all.
    Some(AttachError),
}

/// Gives an NBD device connections for those that the kernel gave up. Nothing is done to a device
/// that lacks none, is of another kind, or is not there any more.
///
/// # Errors
/// What the server or the kernel refused; the device then has got none.
pub fn mend_links(
    attached: &Attached,
    source: &Source<'_>,
    options: &Options,
) -> Result<Links, AttachError> {
    if attached.via != Via::Nbd || !is_there(attached) {
        return Ok(Links::Whole);
    }
    let target = nbd_target(source, options)?;
    let device = attached.device.clone();
    apart::run(&attached.device, ANSWER_PATIENCE, move || nbd_kernel::mend(&device, &target))
}

/// Gives a device the size that its volume has by now. Gives what could not be had.
///
/// # Errors
/// What the kernel refused; the device then keeps its size.
pub fn resize(
    attached: &Attached,
    source: &Source<'_>,
    options: &Options,
) -> Result<Vec<String>, AttachError> {
    if !is_there(attached) {
        return Err(gone(attached));
    }
    let device = attached.device.clone();
    match attached.via {
        Via::Nbd => {
            let target = nbd_target(source, options)?;
            apart::run(&attached.device, ANSWER_PATIENCE, move || {
                nbd_kernel::resize(&device, &target)
            })?;
        }
        Via::Ublk => {
            let why =
                "a ublk device keeps its size while it is attached; detach and attach it anew";
            return Err(unavailable(source.volume, why));
        }
        Via::Loop => {
            let no_file = || unavailable(source.volume, "no FUSE directory");
            let file = source.fuse_file.ok_or_else(no_file)?.to_owned();
            apart::run(&attached.device, ANSWER_PATIENCE, move || {
                loop_device::resize(&device, &file)
            })?;
        }
    }
    let wanted = source.size_bytes - source.size_bytes % u64::from(source.block_bytes.max(1));
    match device::size_bytes(&attached.device) {
        Some(found) if found != wanted => Err(AttachError::new(
            AttachErrorKind::Kernel,
            attached.device.display().to_string(),
            format!("has {found} bytes and not the volume's {wanted}; detach and attach it anew"),
        )),
        _ => Ok(unreachable_tail(source).into_iter().collect()),
    }
}

/// The way to go: the one asked for, or the first that is there.
fn choose(source: &Source<'_>, via: Option<Via>) -> Result<Via, AttachError> {
    let way = |via| match via {
        Via::Nbd => {
            source
                .nbd
                .ok_or("the agent serves no NBD; set listen in [nbd] of its configuration")?;
            nbd_kernel::load_module();
            nbd_kernel::probe()
        }
        Via::Ublk => {
            source.ublk.ok_or("there is nobody to serve a device")?;
            ublk::load_module();
            ublk::probe()
        }
        Via::Loop => {
            source.fuse_file.ok_or("there is no FUSE directory; set mount in [fuse]")?;
            loop_device::probe()
        }
    };
    pick(via, way).map_err(|why| unavailable(source.volume, &why))
}

/// The way asked for, or the first of all of which `way` says that it is there; otherwise why not.
fn pick(via: Option<Via>, way: impl Fn(Via) -> Result<(), String>) -> Result<Via, String> {
    if let Some(via) = via {
        return way(via).map(|()| via);
    }
    let mut missing = Vec::new();
    for via in [Via::Nbd, Via::Ublk, Via::Loop] {
        match way(via) {
            Ok(()) => return Ok(via),
            Err(why) => missing.push(format!("{via}: {why}")),
        }
    }
    Err(missing.join("; "))
}

fn attach_nbd(source: &Source<'_>, options: &Options) -> Result<Attached, AttachError> {
    let target = nbd_target(source, options)?;
    let identifier = target.identifier.clone();
    let volume = PathBuf::from(source.volume);
    let (device, mut notes) = match nbd_kernel::find(&identifier) {
        // An agent was killed before it kept the record of the device that it had made.
        Some(device) => {
            let found = device.clone();
            apart::run(&volume, ANSWER_PATIENCE, move || nbd_kernel::reconnect(&found, &target))?;
            (device, Vec::new())
        }
        None => apart::run(&volume, ANSWER_PATIENCE, move || nbd_kernel::connect(&target))?,
    };
    notes.extend(unreachable_tail(source));
    Ok(Attached { via: Via::Nbd, device, identifier, notes })
}

fn nbd_target(source: &Source<'_>, options: &Options) -> Result<nbd_kernel::Target, AttachError> {
    let address =
        source.nbd.ok_or_else(|| unavailable(source.volume, "the agent serves no NBD"))?;
    Ok(nbd_kernel::Target {
        address: address.clone(),
        export: source.volume.to_owned(),
        identifier: format!("tidemark-{}", source.id),
        size_bytes: source.size_bytes,
        block_bytes: source.block_bytes,
        options: *options,
    })
}

fn attach_ublk(source: &Source<'_>) -> Result<Attached, AttachError> {
    let identifier = ublk::identifier(source.id);
    let shape = Shape { size_bytes: source.size_bytes, block_bytes: source.block_bytes };
    let device = ublk::make(source.volume, &identifier, shape, ublk_server(source)?)?;
    let notes = unreachable_tail(source).into_iter().collect();
    Ok(Attached { via: Via::Ublk, device, identifier, notes })
}

fn ublk_server<'a>(source: &Source<'a>) -> Result<&'a dyn Serve, AttachError> {
    source.ublk.ok_or_else(|| unavailable(source.volume, "there is nobody to serve a device"))
}

fn attach_loop(source: &Source<'_>) -> Result<Attached, AttachError> {
    let file = source.fuse_file.ok_or_else(|| unavailable(source.volume, "no FUSE directory"))?;
    let file = std::fs::canonicalize(file).map_err(|error| {
        AttachError::io(AttachErrorKind::Server, file, "is not in the FUSE directory", error)
    })?;
    if let Some(device) = loop_device::find(&file) {
        // Not this agent's: those of one that was killed are dead, and found no more.
        let device = device.display();
        let text =
            format!("has a device already, {device}; take it down with 'losetup -d {device}'");
        return Err(AttachError::new(AttachErrorKind::InUse, source.volume, text));
    }
    let (made_over, block_bytes) = (file.clone(), source.block_bytes);
    let loop_device::Made { device, mut notes } =
        apart::run(&file, ANSWER_PATIENCE, move || loop_device::make(&made_over, block_bytes))?;
    notes.extend(unreachable_tail(source));
    let identifier = loop_device::identifier(&device, &file);
    Ok(Attached { via: Via::Loop, device, identifier, notes })
}

/// A device has whole blocks only.
fn unreachable_tail(source: &Source<'_>) -> Option<String> {
    let tail = source.size_bytes % u64::from(source.block_bytes.max(1));
    (tail != 0).then(|| {
        format!("the volume's last {tail} bytes are less than a block and can't be reached on it")
    })
}

fn try_read(device: &Path) -> Result<(), AttachError> {
    let path = device.to_owned();
    apart::run(device, ANSWER_PATIENCE, move || device::answers(&path))
}

/// Takes the device down while it is held exclusively, so that nobody begins to use it.
fn take_down(attached: &Attached, patience: Duration, flush: bool) -> Result<(), AttachError> {
    let Attached { via, device: path, .. } = attached.clone();
    apart::run(&attached.device, patience, move || {
        let file = device::open_exclusively(&path)?;
        if flush {
            device::flush(&path, &file)?;
        }
        match via {
            Via::Nbd => nbd_kernel::disconnect(&path),
            Via::Ublk => ublk::stop(&path),
            Via::Loop => loop_device::clear(&path, &file),
        }
    })?;
    match via {
        // Behind the end of this process's own use of it.
        Via::Ublk => ublk::delete(&attached.device),
        Via::Nbd | Via::Loop => Ok(()),
    }
}

/// Refuses when somebody uses the device; who only has it open gets a moment to let go.
fn refuse_users(device: &Path) -> Result<(), AttachError> {
    let clock = SystemClock::default();
    let deadline = clock.monotonic() + OPENER_PATIENCE;
    loop {
        let users = usage::users(device).map_err(|source| {
            let doing = "can't see who uses it";
            AttachError::io(AttachErrorKind::Kernel, device, doing, source)
        })?;
        if users.is_empty() {
            return Ok(());
        }
        if !users.holders.is_empty() || clock.monotonic() > deadline {
            let text = format!("is in use: {}; end that first", users.text());
            let device = device.display().to_string();
            return Err(AttachError::new(AttachErrorKind::InUse, device, text));
        }
        clock.sleep(OPENER_PAUSE);
    }
}

fn is_there(attached: &Attached) -> bool {
    match attached.via {
        Via::Nbd => nbd_kernel::is_ours(&attached.device, &attached.identifier),
        Via::Ublk => ublk::is_ours(&attached.device, &attached.identifier),
        Via::Loop => loop_device::is_ours(&attached.device, &attached.identifier),
    }
}

fn opened_late(device: &Path) -> AttachError {
    AttachError::new(
        AttachErrorKind::InUse,
        device.display().to_string(),
        "was opened by somebody at the last moment; it goes when they let go of it",
    )
}

fn gone(attached: &Attached) -> AttachError {
    AttachError::new(
        AttachErrorKind::Gone,
        attached.device.display().to_string(),
        format!("does not belong to {} any more", attached.identifier),
    )
}

fn unavailable(subject: &str, why: &str) -> AttachError {
    AttachError::new(AttachErrorKind::Unavailable, subject, why)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn the_first_way_that_is_there_is_taken_and_no_later_one_is_tried() {
        for (first, tried) in [
            (Via::Nbd, vec![Via::Nbd]),
            (Via::Ublk, vec![Via::Nbd, Via::Ublk]),
            (Via::Loop, vec![Via::Nbd, Via::Ublk, Via::Loop]),
        ] {
            let asked = RefCell::new(Vec::new());
            let picked = pick(None, |via| {
                asked.borrow_mut().push(via);
                if via == first { Ok(()) } else { Err("not here".to_owned()) }
            });
            assert_eq!(picked, Ok(first));
            assert_eq!(asked.into_inner(), tried);
        }
    }

    #[test]
    fn the_way_asked_for_is_the_only_one_tried() {
        let only_nbd = |via| if via == Via::Nbd { Ok(()) } else { Err(format!("no {via}")) };
        assert_eq!(pick(Some(Via::Nbd), only_nbd), Ok(Via::Nbd));
        assert_eq!(pick(Some(Via::Ublk), only_nbd), Err("no ublk".to_owned()));
        let none = pick(None, |via| Err(format!("no {via}")));
        assert_eq!(none, Err("nbd: no nbd; ublk: no ublk; loop: no loop".to_owned()));
    }

    #[test]
    fn names_of_ways_are_read_back() {
        for via in [Via::Nbd, Via::Ublk, Via::Loop] {
            assert_eq!(via.to_string().parse(), Ok(via));
        }
        assert!("floppy".parse::<Via>().is_err());
    }
}
