//! What the kernel tells about a block device: for the question that a person is asked before it
//! is overwritten, and to keep the collector's own disks out of reach.
//!
//! Everything is read from sysfs and procfs. What can't be read is left out of descriptions; that
//! a device is in use is decided by the kernel (see [`super::device`]), these only give the names.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Failure, Result};

/// Devices below one another at most; deeper stacks are not followed.
const DEPTH_MAX: usize = 16;

/// A block device.
#[derive(Clone, Debug)]
pub(super) struct DeviceFacts {
    path: PathBuf,
    number: Number,
    pub(super) size_bytes: u64,
}

/// Major and minor number, as sysfs writes them.
type Number = String;

fn number(device: u64) -> Number {
    format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device))
}

fn sys(number: &str) -> PathBuf {
    Path::new("/sys/dev/block").join(number)
}

fn text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

impl DeviceFacts {
    /// The facts of the device at a path, through symbolic links.
    pub(super) fn of(path: &Path) -> Result<Self> {
        let failed = |source| Failure::io("look at", path, source);
        let found = fs::metadata(path).map_err(failed)?;
        if !found.file_type().is_block_device() {
            return Err(Failure::invalid(format!("{} is not a block device", path.display())));
        }
        let number = number(found.rdev());
        let sectors = text(&sys(&number).join("size")).and_then(|text| text.parse::<u64>().ok());
        let Some(sectors) = sectors else {
            let message = format!("the kernel does not know a size of {}", path.display());
            return Err(Failure::invalid(message).with_hint("choose another device"));
        };
        let path = fs::canonicalize(path).map_err(failed)?;
        // Sysfs counts in sectors of 512 bytes whatever the device's own are.
        Ok(Self { path, number, size_bytes: sectors.saturating_mul(512) })
    }

    /// The device in a few words: path, size, model, and what lies on it.
    pub(super) fn describe(&self) -> String {
        let dir = self.disk_dir();
        let mut words = vec![format!("{} bytes", self.size_bytes)];
        let model = text(&dir.join("device/model"));
        words.extend(model.map(|model| format!("model {model}")));
        let file = text(&dir.join("loop/backing_file"));
        words.extend(file.map(|file| format!("loop device of {file}")));
        words.extend(self.content());
        format!("{} ({})", self.path.display(), words.join(", "))
    }

    /// The file system or partition table on it, as blkid finds it; nothing without blkid.
    fn content(&self) -> Option<String> {
        let found = Command::new("blkid")
            .args(["-p", "-o", "export"])
            .arg(&self.path)
            .stdin(Stdio::null())
            .output()
            .ok()?;
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        let field = |name: &str| {
            let value =
                found.lines().find_map(|line| line.strip_prefix(name))?.strip_prefix('=')?;
            // Blkid writes it as a shell would need it.
            Some(value.replace('\\', ""))
        };
        if let Some(table) = field("PTTYPE") {
            return Some(format!("partition table {table}"));
        }
        let kind = field("TYPE")?;
        Some(match field("LABEL") {
            Some(label) => format!("{kind} labelled {label}"),
            None => kind,
        })
    }

    /// The directory of the whole disk in sysfs: for a partition the one above.
    fn disk_dir(&self) -> PathBuf {
        let dir = sys(&self.number);
        if dir.join("partition").exists() {
            let real = fs::canonicalize(&dir).ok();
            return real.and_then(|dir| dir.parent().map(Path::to_owned)).unwrap_or(dir);
        }
        dir
    }

    /// What uses the device or a partition of it, as far as this process can see.
    pub(super) fn users(&self) -> Vec<String> {
        let dir = sys(&self.number);
        let mut numbers = vec![self.number.clone()];
        let parts =
            names_in(&dir).into_iter().filter(|name| dir.join(name).join("partition").exists());
        numbers.extend(parts.filter_map(|name| text(&dir.join(name).join("dev"))));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        let mut users = Vec::new();
        for line in mounts.lines() {
            let mut fields = line.split(' ').skip(2);
            let (device, place) = (fields.next(), fields.nth(1));
            if let (Some(device), Some(place)) = (device, place)
                && numbers.iter().any(|number| number == device)
            {
                users.push(format!("mounted on {place}"));
            }
        }
        for line in swaps.lines().skip(1) {
            let swap = line.split_whitespace().next().unwrap_or_default();
            if DeviceFacts::of(Path::new(swap)).is_ok_and(|swap| numbers.contains(&swap.number)) {
                users.push(format!("swap space {swap}"));
            }
        }
        for number in &numbers {
            let holders = names_in(&sys(number).join("holders"));
            users.extend(holders.into_iter().map(|holder| format!("held by {holder}")));
        }
        users
    }

    /// Refuses a device on which the collector's own data lies, and one that is made of that
    /// data.
    ///
    /// # Errors
    /// `Conflict`.
    pub(super) fn check_not_ours(&self, data_dir: &Path) -> Result<()> {
        let found = fs::metadata(data_dir).map_err(|e| Failure::io("look at", data_dir, e))?;
        let mut below = BTreeSet::new();
        collect_below(&number(found.dev()), &mut below, DEPTH_MAX);
        // File systems with devices of their own, such as btrfs, are found by their mount.
        for source in mounted_sources(&number(found.dev())) {
            if let Ok(device) = DeviceFacts::of(Path::new(&source)) {
                collect_below(&device.number, &mut below, DEPTH_MAX);
            }
        }
        let refused = |how: &str| {
            let (path, data_dir) = (self.path.display(), data_dir.display());
            let message = format!("{path} {how} the collector's own data in {data_dir}");
            Err(Failure::conflict(message).with_hint("choose another device"))
        };
        let mut target = BTreeSet::from([self.number.clone()]);
        target.extend(text(&self.disk_dir().join("dev")));
        if target.iter().any(|number| below.contains(number)) {
            return refused("holds");
        }
        let real = fs::canonicalize(data_dir).map_err(|e| Failure::io("look at", data_dir, e))?;
        let mut stack = BTreeSet::new();
        collect_below(&self.number, &mut stack, DEPTH_MAX);
        let files = stack.iter().filter_map(|number| text(&sys(number).join("loop/backing_file")));
        if files.into_iter().any(|file| Path::new(&file).starts_with(&real)) {
            return refused("is made of a file of");
        }
        Ok(())
    }
}

/// A device and every one below it: its disk, what it is assembled from, and the disk on which
/// the file of a loop device lies.
fn collect_below(number: &str, found: &mut BTreeSet<Number>, depth_left: usize) {
    if depth_left == 0 || !sys(number).exists() || !found.insert(number.to_owned()) {
        return;
    }
    let dir = sys(number);
    let mut below: Vec<Number> = Vec::new();
    if dir.join("partition").exists()
        && let Some(disk) = fs::canonicalize(&dir).ok().as_deref().and_then(Path::parent)
    {
        below.extend(text(&disk.join("dev")));
    }
    let slaves = dir.join("slaves");
    below.extend(names_in(&slaves).iter().filter_map(|name| text(&slaves.join(name).join("dev"))));
    let file = text(&dir.join("loop/backing_file")).and_then(|file| fs::metadata(file).ok());
    below.extend(file.map(|file| self::number(file.dev())));
    below.iter().for_each(|number| collect_below(number, found, depth_left - 1));
}

/// The sources of the mounts of a file system.
fn mounted_sources(device: &str) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let of_device = mounts.lines().filter(|line| line.split(' ').nth(2) == Some(device));
    let source = |line: &str| {
        let (_, behind) = line.split_once(" - ")?;
        behind.split(' ').nth(1).map(ToOwned::to_owned)
    };
    of_device.filter_map(source).collect()
}
