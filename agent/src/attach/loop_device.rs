//! Loop devices over a file of the FUSE directory.
//!
//! The kernel's loop driver reads and writes the file with direct I/O, so that a block is not
//! held in memory twice and a write that the device acknowledged has reached the agent. A device
//! is told from others by the path of its file and by the number that the kernel gives a disk
//! each time it is set up: once the mount of a killed agent is gone, only the end of the path is
//! left to be seen.
//!
//! Source: loop(4), `include/uapi/linux/loop.h` and `drivers/block/loop.c` of the kernel.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use super::device;
use super::error::{AttachError, AttachErrorKind};

const BACKING_FILE: &str = "loop/backing_file";
/// For kernels before Linux 5.15, which do not number disks.
const NO_SEQUENCE: &str = "0";
const CONTROL: &str = "/dev/loop-control";
const FLAG_PARTITIONS: u32 = 8;
const FLAG_DIRECT_IO: u32 = 16;
const NAME_BYTES: usize = 64;

/// Free devices that others took in the moment between asking and configuring.
const RACES_MAX: usize = 64;

/// `struct loop_info64`.
#[derive(Clone, Copy)]
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    real_device: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_bytes: u32,
    flags: u32,
    file_name: [u8; NAME_BYTES],
    crypt_name: [u8; NAME_BYTES],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    file: u32,
    block_bytes: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

nix::ioctl_none_bad!(loop_get_free, 0x4C82);
nix::ioctl_none_bad!(loop_clear, 0x4C01);
nix::ioctl_none_bad!(loop_set_capacity, 0x4C07);
nix::ioctl_write_ptr_bad!(loop_configure, 0x4C0A, LoopConfig);

/// A device that was made.
pub(super) struct Made {
    pub(super) device: PathBuf,
    /// What could not be had.
    pub(super) notes: Vec<String>,
}

/// Why this machine has no loop devices.
pub(super) fn probe() -> Result<(), String> {
    match OpenOptions::new().read(true).write(true).open(CONTROL) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(format!("this kernel has no loop devices ({CONTROL} is missing); modprobe loop"))
        }
        Err(error) => Err(format!("can't open {CONTROL}: {error}; run the agent as root")),
    }
}

/// The loop device over `file`, when there is one.
pub(super) fn find(file: &Path) -> Option<PathBuf> {
    let file = file.display().to_string();
    let entries = fs::read_dir("/sys/block").ok()?.flatten();
    entries
        .map(|entry| Path::new("/dev").join(entry.file_name()))
        .find(|path| device::attribute(path, BACKING_FILE).is_some_and(|found| found == file))
}

/// What tells the device over `file` from others.
pub(super) fn identifier(device: &Path, file: &Path) -> String {
    format!("{}:{}", sequence(device), file.display())
}

/// True when `device` is the one that [`identifier`] named, its file alive or dead.
pub(super) fn is_ours(device: &Path, identifier: &str) -> bool {
    let Some((number, file)) = identifier.split_once(':') else { return false };
    let number_fits = number == sequence(device);
    device::attribute(device, BACKING_FILE).is_some_and(|found| {
        number_fits
            && (file == found
                || (number != NO_SEQUENCE && found.starts_with('/') && file.ends_with(&found)))
    })
}

/// The number of the disk, which no other one gets until the machine restarts.
fn sequence(device: &Path) -> String {
    device::attribute(device, "diskseq").unwrap_or_else(|| NO_SEQUENCE.to_owned())
}

/// Makes a device over `file`. Runs apart: the kernel looks for partitions on the new device.
pub(super) fn make(file: &Path, block_bytes: u32) -> Result<Made, AttachError> {
    let failed = |path: &Path, doing: &str, source| {
        AttachError::io(AttachErrorKind::Kernel, path, doing.to_owned(), source)
    };
    let backing = OpenOptions::new().read(true).write(true).open(file).map_err(|source| {
        let doing = "can't be opened in the FUSE directory";
        AttachError::io(AttachErrorKind::Server, file, doing, source)
    })?;
    let control_path = Path::new(CONTROL);
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open(control_path)
        .map_err(|source| failed(control_path, "can't be opened", source))?;
    for _ in 0..RACES_MAX {
        // SAFETY: the request has no argument; it gives a number or an error.
        let number = unsafe { loop_get_free(control.as_raw_fd()) }
            .map_err(|errno| failed(control_path, "gives no free loop device", errno.into()))?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(device) => device,
            // Somebody removed it again.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => {
                continue;
            }
            Err(error) => return Err(failed(&path, "can't be opened", error)),
        };
        match configure(&device, &backing, file, block_bytes) {
            Ok(()) => return Ok(Made { notes: notes(&path, block_bytes), device: path }),
            // Somebody took it first.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(failed(&path, "can't be set up (needs Linux 5.8)", error)),
        }
    }
    let lost = io::Error::from_raw_os_error(libc::EBUSY);
    Err(failed(control_path, "others took each free device first; try again", lost))
}

fn configure(device: &File, backing: &File, path: &Path, block_bytes: u32) -> io::Result<()> {
    let mut info = LoopInfo {
        device: 0,
        inode: 0,
        real_device: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_bytes: 0,
        // Without "autoclear" the device stays until it is detached.
        flags: FLAG_DIRECT_IO | FLAG_PARTITIONS,
        file_name: [0; NAME_BYTES],
        crypt_name: [0; NAME_BYTES],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    // What older tools show; a longer path is cut, with its NUL.
    let name = path.as_os_str().as_encoded_bytes();
    let len = name.len().min(NAME_BYTES - 1);
    info.file_name[..len].copy_from_slice(&name[..len]);
    let file = u32::try_from(backing.as_raw_fd()).expect("an open descriptor is not negative");
    let config = LoopConfig { file, block_bytes, info, reserved: [0; 8] };
    // SAFETY: `config` has the kernel's layout, which the sizes asserted above pin, and outlives
    // the call; both descriptors are open.
    unsafe { loop_configure(device.as_raw_fd(), &raw const config) }?;
    Ok(())
}

/// What could not be had.
fn notes(device: &Path, block_bytes: u32) -> Vec<String> {
    let mut notes = Vec::new();
    if device::attribute(device, "loop/dio").as_deref() != Some("1") {
        notes.push(
            "the kernel gives no direct I/O for this loop device: every block is in memory twice, \
             and a write may wait for memory that only a write can free"
                .to_owned(),
        );
    }
    let shown = device::attribute(device, "queue/logical_block_size");
    if shown.as_deref() != Some(block_bytes.to_string().as_str()) {
        let shown = shown.as_deref().unwrap_or("an unknown number of");
        notes.push(format!("its blocks have {shown} bytes, those of the volume {block_bytes}"));
    }
    notes
}

/// Gives the device the size of its file, `file`.
pub(super) fn resize(path: &Path, file: &Path) -> Result<(), AttachError> {
    let failed = |doing: &str, source| {
        AttachError::io(AttachErrorKind::Kernel, path, doing.to_owned(), source)
    };
    // The driver believes what the kernel last saw of the file; this look lets it see the new size.
    fs::metadata(file).map_err(|source| failed("its file can't be looked at", source))?;
    let device = File::open(path).map_err(|source| failed("can't be opened", source))?;
    // SAFETY: the request has no argument and the descriptor is open.
    unsafe { loop_set_capacity(device.as_raw_fd()) }
        .map_err(|errno| failed("can't take the new size of its file", errno.into()))?;
    Ok(())
}

/// Takes the device from its file. It is free when the last one who has it open lets go.
pub(super) fn clear(path: &Path, device: &File) -> Result<(), AttachError> {
    // SAFETY: the request has no argument and the descriptor is open.
    match unsafe { loop_clear(device.as_raw_fd()) } {
        // Somebody else took it down already.
        Ok(_) | Err(nix::errno::Errno::ENXIO) => Ok(()),
        Err(errno) => {
            Err(AttachError::io(AttachErrorKind::Kernel, path, "can't be detached", errno.into()))
        }
    }
}
