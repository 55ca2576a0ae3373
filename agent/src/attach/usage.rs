//! Who uses a block device.
//!
//! In: the path of a whole device. Out: its users, each named for a person: mount points, swap,
//! devices on top (device mapper, md, loop), of the disk itself and of its partitions, and the
//! processes that have it open. Only what this mount and process namespace shows can be named;
//! an exclusive open ([`super::device`]) finds the rest.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Users that are named; the text says when there are more.
const NAMED_MAX: usize = 8;

/// The users of a device.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Users {
    /// Those that hold it for good: mounts, swap, devices on top.
    pub(super) holders: Vec<String>,
    /// Processes that have it open; some programs do so for a moment only.
    pub(super) openers: Vec<String>,
}

impl Users {
    pub(super) fn is_empty(&self) -> bool {
        self.holders.is_empty() && self.openers.is_empty()
    }

    /// One text that names them.
    pub(super) fn text(&self) -> String {
        let all: Vec<_> = self.holders.iter().chain(&self.openers).map(String::as_str).collect();
        let named = all[..all.len().min(NAMED_MAX)].join(", ");
        match all.len().checked_sub(NAMED_MAX) {
            None | Some(0) => named,
            Some(more) => format!("{named} and {more} more"),
        }
    }
}

/// A disk or partition.
struct Node {
    name: String,
    number: u64,
    sysfs: PathBuf,
}

/// Looks for users of `device` and its partitions.
///
/// # Errors
/// `/sys` or `/proc` can't be read, or `device` is no block device.
pub(super) fn users(device: &Path) -> io::Result<Users> {
    let nodes = nodes(device)?;
    let numbers: BTreeSet<_> = nodes.iter().map(|node| node.number).collect();
    let mut holders = Vec::new();
    for mount in mounts(&fs::read_to_string("/proc/self/mountinfo")?) {
        // btrfs shows numbers of its own, so the source counts too.
        if numbers.contains(&mount.number) || numbers.contains(&number_of(&mount.source)) {
            holders.push(format!("mounted at {}", mount.point));
        }
    }
    // A kernel without swap has no such file.
    for area in swaps(&fs::read_to_string("/proc/swaps").unwrap_or_default()) {
        if numbers.contains(&number_of(&area)) {
            holders.push(format!("in use as swap ({area})"));
        }
    }
    for node in &nodes {
        for holder in names_in(&node.sysfs.join("holders")) {
            holders.push(format!("held by /dev/{holder}"));
        }
    }
    let paths: BTreeSet<_> = nodes.iter().map(|node| format!("/dev/{}", node.name)).collect();
    for name in names_in(Path::new("/sys/block")) {
        let file = format!("/sys/block/{name}/loop/backing_file");
        if fs::read_to_string(file).is_ok_and(|path| paths.contains(path.trim_end())) {
            holders.push(format!("held by /dev/{name}"));
        }
    }
    Ok(Users { holders, openers: openers(&paths) })
}

fn nodes(device: &Path) -> io::Result<Vec<Node>> {
    let metadata = fs::metadata(device)?;
    if !metadata.file_type().is_block_device() {
        let text = format!("{} is not a block device", device.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let number = metadata.rdev();
    let (major, minor) = (libc::major(number), libc::minor(number));
    let sysfs = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"))?;
    let mut nodes = Vec::new();
    for name in names_in(&sysfs) {
        let part = sysfs.join(&name);
        if part.join("partition").exists() {
            let number = parse_number(fs::read_to_string(part.join("dev"))?.trim());
            nodes.push(Node { name, number, sysfs: part });
        }
    }
    let name = sysfs.file_name().unwrap_or_default().to_string_lossy().into_owned();
    nodes.push(Node { name, number, sysfs });
    Ok(nodes)
}

/// The names in a directory, in order; none when it is not there.
fn names_in(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The number of a block device below `/dev`; 0, which no device has, for anything else.
fn number_of(path: &str) -> u64 {
    if !path.starts_with("/dev/") {
        return 0;
    }
    fs::metadata(path)
        .ok()
        .filter(|metadata| metadata.file_type().is_block_device())
        .map_or(0, |metadata| metadata.rdev())
}

/// `major:minor`; 0 for anything else.
fn parse_number(text: &str) -> u64 {
    text.split_once(':')
        .and_then(|(major, minor)| Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?)))
        .unwrap_or(0)
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    number: u64,
    point: String,
    source: String,
}

/// Lines of `/proc/self/mountinfo`, see proc(5).
fn mounts(text: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let mut fields = line.split(' ');
        let number = parse_number(fields.nth(2)?);
        let point = unescape(fields.nth(1)?);
        // Optional fields end with a dash; type and source follow.
        let source = unescape(fields.skip_while(|field| *field != "-").nth(2)?);
        Some(Mount { number, point, source })
    };
    text.lines().filter_map(mount).collect()
}

/// The files and devices in `/proc/swaps`, below its heading.
fn swaps(text: &str) -> Vec<String> {
    let paths = text.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    paths.map(unescape).collect()
}

/// The kernel writes white space and backslashes in paths as `\ooo`.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.first_chunk::<3>().and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Processes that have one of `paths` open; this one as well, since one of its volumes may lie on
/// the device of another. Links are read and not followed, so no file system that hangs can hold
/// this up.
fn openers(paths: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    for pid in names_in(Path::new("/proc")) {
        if !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut targets = fds.filter_map(|entry| fs::read_link(entry.path()).ok());
        if targets.any(|target| target.to_str().is_some_and(|path| paths.contains(path))) {
            let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            found.push(format!("opened by process {pid} ({})", command.trim_end()));
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_with_and_without_optional_fields() {
        let text = "36 35 98:2 /sub /mnt/a\\040b rw,noatime shared:1 master:2 - ext4 /dev/x rw\n\
                    37 35 0:44 / /mnt/c rw - btrfs /dev/loop3 rw\n\
                    broken line\n";
        let expected = [
            (libc::makedev(98, 2), "/mnt/a b", "/dev/x"),
            (libc::makedev(0, 44), "/mnt/c", "/dev/loop3"),
        ];
        let expected = expected.map(|(number, point, source)| Mount {
            number,
            point: point.to_owned(),
            source: source.to_owned(),
        });
        assert_eq!(mounts(text), expected);
    }

    #[test]
    fn swap_areas_are_read() {
        let text = "Filename\t\t\tType\t\tSize\nx\\040y file 1 2 3\n/dev/vda2   partition 5 0 -2\n";
        assert_eq!(swaps(text), ["x y", "/dev/vda2"]);
        assert!(swaps("").is_empty());
    }

    #[test]
    fn escapes_are_undone_and_others_left() {
        assert_eq!(unescape("a\\134b\\011c\\"), "a\\b\tc\\");
        assert_eq!(unescape("\\9"), "\\9");
    }

    #[test]
    fn a_long_list_is_cut() {
        let holders = (0..10).map(|i| format!("mounted at /{i}")).collect();
        let text = Users { holders, openers: Vec::new() }.text();
        assert!(text.ends_with("/7 and 2 more"), "{text}");
    }

    #[test]
    fn what_is_no_block_device_is_refused() {
        assert_eq!(users(Path::new("/dev/null")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
