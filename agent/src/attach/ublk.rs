//! Block devices of the kernel's ublk driver, which this agent serves itself.
//!
//! A device keeps a number that its maker gave it, here one that follows from the volume's
//! identity: by it the device is found and told from those of others, also after this agent has
//! died. Then it waits, with all that was asked of it and not answered, for as long as it takes,
//! until another agent serves it. A machine that restarts has no such device any more.
//!
//! An agent that is killed while a thread of it waits for its own device can't end, and keeps the
//! memory by which the kernel knows its server: nobody can take the device over then, and only a
//! restart of the machine removes it. So nothing is read from a device to try it. What is left are
//! the milliseconds in which the kernel reads the partition table of a new device, and in which a
//! device that nobody uses any more is flushed to be detached.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidemark_block::ublk::{Control, Number, Shape, State, UblkError};
use tidemark_wire::VolumeId;

use super::error::{AttachError, AttachErrorKind};
use super::{ANSWER_PATIENCE, OPENER_PATIENCE, OPENER_PAUSE, apart, module, opened_late};
use crate::clock::{Clock, SystemClock};

const MODULE: &str = "ublk_drv";

/// How long the kernel may take to let go of a dead agent.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(50);

/// Serves the devices of one volume in this process.
pub trait Serve: std::fmt::Debug {
    /// Begins to serve a device that was just made, or whose recovery was just begun, and goes on
    /// until it is stopped.
    ///
    /// # Errors
    /// What kept it from that.
    fn serve(&self, number: Number) -> io::Result<()>;
}

/// Why this machine has no ublk devices.
pub(super) fn probe() -> Result<(), String> {
    let usable = Control::open().and_then(|mut control| control.check_features());
    usable.map_err(|error| match error {
        UblkError::Missing => format!("{error}; modprobe {MODULE} (Linux 6.5 or newer)"),
        UblkError::Closed { .. } => format!("{error}; run the agent as root"),
        UblkError::Ring { .. } | UblkError::Old | UblkError::Refused { .. } => error.to_string(),
    })
}

/// Loads the module where it is missing; whether that worked shows in [`probe`].
pub(super) fn load_module() {
    if matches!(Control::open(), Err(UblkError::Missing)) {
        module::load(MODULE);
    }
}

/// What tells the device of a volume from others.
pub(super) fn identifier(volume: VolumeId) -> String {
    let bits = u128::from_be_bytes(volume.to_bytes());
    // Both halves of the identity, in the space that the driver has for it.
    format!("{:016x}", (bits >> 64) ^ (bits & u128::from(u64::MAX)))
}

/// The number that a device keeps for its maker.
fn identity(identifier: &str) -> u64 {
    // A text that is no such number is nobody's identity.
    u64::from_str_radix(identifier, 16).unwrap_or(0)
}

/// True when `device` is there and carries `identifier`.
pub(super) fn is_ours(device: &Path, identifier: &str) -> bool {
    let Some(number) = Number::of_device(device) else { return false };
    Control::open().is_ok_and(|mut control| is_of(&mut control, number, identity(identifier)))
}

fn is_of(control: &mut Control, number: Number, identity: u64) -> bool {
    matches!(control.look(number), Ok(Some(found)) if found.identity == identity)
}

/// Makes a device, or takes over the one that an agent left which was killed before it kept a
/// record of it. What such an agent had not started is removed.
pub(super) fn make(
    volume: &str,
    identifier: &str,
    shape: Shape,
    serve: &dyn Serve,
) -> Result<PathBuf, AttachError> {
    let identity = identity(identifier);
    let mut control = open(volume)?;
    let left: Vec<_> =
        Number::all().into_iter().filter(|number| is_of(&mut control, *number, identity)).collect();
    for number in left {
        let device = number.device();
        match control.look(number).map_err(|error| failed(&device, &error))? {
            None => {}
            Some(found) if found.state == State::Dead => delete(&device)?,
            Some(_) => return take_over(&device, serve).map(|()| device),
        }
    }
    let number = control.add(identity).map_err(|error| failed_at(volume, &error))?;
    let device = number.device();
    start(&mut control, number, shape, serve).inspect_err(|_| {
        // It has no user yet: nothing can be lost with it.
        let removed = stop(&device).and_then(|()| delete(&device));
        if let Err(second) = removed {
            tracing::warn!("{second}");
        }
    })?;
    Ok(device)
}

fn start(
    control: &mut Control,
    number: Number,
    shape: Shape,
    serve: &dyn Serve,
) -> Result<(), AttachError> {
    let device = number.device();
    control.set_shape(number, &shape).map_err(|error| failed(&device, &error))?;
    begin_to_serve(number, serve)?;
    run_apart(&device, ANSWER_PATIENCE, move |control| control.start(number))
}

/// Serves a device whose agent has died, or has stopped without detaching it.
pub(super) fn take_over(device: &Path, serve: &dyn Serve) -> Result<(), AttachError> {
    let number = number(device)?;
    let clock = SystemClock::default();
    let deadline = clock.monotonic() + RECOVERY_PATIENCE;
    while !run_apart(device, ANSWER_PATIENCE, move |control| control.begin_recovery(number))? {
        if clock.monotonic() > deadline {
            return Err(AttachError::new(
                AttachErrorKind::NotAnswering,
                device.display().to_string(),
                "another process serves it, or one that was killed does not end; see what has \
                 its file open (lsof /dev/ublkc*), end that, and start the agent anew",
            ));
        }
        clock.sleep(OPENER_PAUSE);
    }
    begin_to_serve(number, serve)?;
    run_apart(device, ANSWER_PATIENCE, move |control| control.end_recovery(number))
}

/// What is left of a device that is there: nothing, when it was stopped before it was deleted.
pub(super) fn is_stopped(device: &Path) -> Result<bool, AttachError> {
    let number = number(device)?;
    let found = run_apart(device, ANSWER_PATIENCE, move |control| control.look(number))?;
    Ok(found.is_none_or(|found| found.state == State::Dead))
}

/// Stops a device: it is no block device any more, and its server ends.
pub(super) fn stop(device: &Path) -> Result<(), AttachError> {
    let number = number(device)?;
    open(&device.display().to_string())?.stop(number).map_err(|error| failed(device, &error))
}

/// Deletes a device that was stopped.
///
/// # Errors
/// [`AttachErrorKind::InUse`] when somebody has it open still; it goes when they let go of it.
pub(super) fn delete(device: &Path) -> Result<(), AttachError> {
    let number = number(device)?;
    let deleted = run_apart(device, OPENER_PATIENCE, move |control| control.delete(number));
    deleted.map_err(|error| match error.kind {
        AttachErrorKind::NotAnswering => opened_late(device),
        _ => error,
    })
}

/// Gives the driver a command that may last until somebody has answered.
fn run_apart<T: Send + 'static>(
    device: &Path,
    patience: Duration,
    command: impl FnOnce(&mut Control) -> Result<T, UblkError> + Send + 'static,
) -> Result<T, AttachError> {
    let place = device.to_owned();
    apart::run(device, patience, move || {
        let mut control = open(&place.display().to_string())?;
        command(&mut control).map_err(|error| failed(&place, &error))
    })
}

fn begin_to_serve(number: Number, serve: &dyn Serve) -> Result<(), AttachError> {
    serve.serve(number).map_err(|source| {
        let doing = "the agent can't serve it";
        AttachError::io(AttachErrorKind::Server, &number.device(), doing, source)
    })
}

fn open(subject: &str) -> Result<Control, AttachError> {
    Control::open()
        .map_err(|error| AttachError::new(AttachErrorKind::Unavailable, subject, error.to_string()))
}

fn failed(device: &Path, error: &UblkError) -> AttachError {
    failed_at(&device.display().to_string(), error)
}

fn failed_at(subject: &str, error: &UblkError) -> AttachError {
    AttachError::new(AttachErrorKind::Kernel, subject, error.to_string())
}

fn number(device: &Path) -> Result<Number, AttachError> {
    Number::of_device(device).ok_or_else(|| {
        let text = "is not the path of a ublk device";
        AttachError::new(AttachErrorKind::Gone, device.display().to_string(), text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_have_different_identities_that_are_read_back() {
        let one = VolumeId::from_bytes([7; 16]);
        let mut bytes: [u8; 16] = std::array::from_fn(|at| u8::try_from(at).expect("small"));
        let two = VolumeId::from_bytes(bytes);
        bytes[15] ^= 1;
        let three = VolumeId::from_bytes(bytes);
        assert_eq!(identifier(one), "0000000000000000");
        assert_eq!(identifier(two), "0808080808080808");
        assert_eq!(identifier(three), "0808080808080809");
        assert_eq!(identity(&identifier(three)), 0x0808_0808_0808_0809);
    }

    #[test]
    fn what_is_no_ublk_device_is_nobodys() {
        assert!(!is_ours(Path::new("/dev/nbd0"), "0808080808080808"));
        assert_eq!(
            stop(Path::new("/dev/loop0")).expect_err("a loop device").kind,
            AttachErrorKind::Gone
        );
    }

    #[test]
    fn a_kernel_without_the_driver_is_told_with_what_to_do() {
        if Path::new("/dev/ublk-control").exists() {
            return;
        }
        let why = probe().expect_err("no driver");
        assert!(why.contains("modprobe ublk_drv"), "{why}");
    }
}
