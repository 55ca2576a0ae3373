//! A file system on a loop device on a file of the FUSE directory, and what a killed process
//! leaves behind.
//!
//! The disk is served by threads of this process, while everything that could wait for it (making,
//! mounting and checking the file system) is done by child processes.

#![allow(clippy::disallowed_methods, reason = "a test waits in real time")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod fuse_support;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fuse_support::{Fixture, MemDisk, Random};

const DISK_BYTES: usize = 96 << 20;

/// Runs a command; its standard output, or a panic with all it said.
fn run(program: &str, arguments: &[&OsStr]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

fn arguments<'a>(words: &'a [&'a str]) -> Vec<&'a OsStr> {
    words.iter().map(|word| OsStr::new(*word)).collect()
}

fn has_tools(tools: &[&str]) -> bool {
    let missing: Vec<_> = (tools.iter())
        .filter(|tool| {
            let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).output();
            !found.is_ok_and(|output| output.status.success())
        })
        .collect();
    if !missing.is_empty() {
        eprintln!("skipped: {missing:?} not found");
    }
    missing.is_empty()
}

/// A loop device with direct I/O; dropping it detaches it.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Self {
        let mut words = arguments(&["--direct-io=on", "-f", "--show"]);
        words.push(file.as_os_str());
        Self(run("losetup", &words).trim().to_owned())
    }

    fn figure(&self, column: &str) -> String {
        run("losetup", &arguments(&["-n", "-O", column, &self.0])).trim().to_owned()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Also while a panic unwinds, so nothing here may panic.
        let _best_effort = Command::new("losetup").args(["-d", &self.0]).status();
        let until = Instant::now() + Duration::from_secs(5);
        let backing =
            format!("/sys/block/{}/loop/backing_file", self.0.trim_start_matches("/dev/"));
        while Path::new(&backing).exists() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A mounted file system; dropping it unmounts.
struct Mounted(PathBuf);

impl Mounted {
    fn new(device: &str, path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        run("mount", &[OsStr::new(device), path.as_os_str()]);
        Self(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            let _best_effort = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
}

/// Makes a file system, writes to it, freezes and thaws it, mounts it again and checks it.
fn file_system_on_loop(make: &str, make_options: &[&str], check: &[&str]) {
    if !has_tools(&[make, check[0], "losetup", "mount", "umount", "fsfreeze", "blkdiscard"]) {
        return;
    }
    let Some(fixture) = Fixture::new() else { return };
    let disk = fixture.add("disk", MemDisk::new(DISK_BYTES));
    let device = Loop::new(&fixture.path.join("disk"));
    assert_eq!(device.figure("DIO"), "1", "direct I/O");

    let mut words = arguments(make_options);
    words.push(OsStr::new(&device.0));
    run(make, &words);
    let mut check_words = arguments(&check[1..]);
    check_words.push(OsStr::new(&device.0));
    run(check[0], &check_words);

    let place = fixture.parent.path().join("mounted");
    let bytes = Random(11).bytes(300_000);
    let before = disk.seen();
    {
        let mounted = Mounted::new(&device.0, place.clone());
        let source = fixture.parent.path().join("source");
        fs::write(&source, &bytes).unwrap();
        for i in 0..20 {
            let copy = mounted.0.join(format!("file-{i}"));
            run("cp", &[source.as_os_str(), copy.as_os_str()]);
        }
        run("sync", &[OsStr::new("-f"), mounted.0.as_os_str()]);
        run("fsfreeze", &[OsStr::new("-f"), mounted.0.as_os_str()]);
        let frozen = disk.seen();
        run("fsfreeze", &[OsStr::new("-u"), mounted.0.as_os_str()]);
        assert!(frozen.flushes > before.flushes, "a flush reached the disk: {frozen:?}");
        assert!(frozen.writes > before.writes);
    }
    run(check[0], &check_words);
    {
        let mounted = Mounted::new(&device.0, place);
        let source = fixture.parent.path().join("source");
        for i in 0..20 {
            let copy = mounted.0.join(format!("file-{i}"));
            run("cmp", &[source.as_os_str(), copy.as_os_str()]);
        }
    }

    run("blkdiscard", &arguments(&["-f", &device.0]));
    assert!(disk.contents().iter().all(|byte| *byte == 0), "a discard reads as zeroes");
    assert_eq!(disk.seen().trims, 0);
}

#[test]
fn ext4_on_loop() {
    file_system_on_loop("mkfs.ext4", &["-q", "-F"], &["e2fsck", "-f", "-n"]);
}

#[test]
fn xfs_on_loop() {
    // The disk is smaller than the 300 MB that mkfs.xfs otherwise asks for.
    let unsupported = ["-q", "-f", "--unsupported"];
    file_system_on_loop("mkfs.xfs", &unsupported, &["xfs_repair", "-n"]);
}

/// The variable that tells a copy of this test to be the process that is killed.
const CHILD: &str = "TIDEMARK_FUSE_TEST_CHILD";

/// The process that will be killed; also ended, with its mount, when the test panics.
struct Victim(Child, PathBuf);

impl Drop for Victim {
    fn drop(&mut self) {
        let _ended_before = self.0.kill();
        let _reaped_before = self.0.wait();
        let is_mounted = fs::read_to_string("/proc/self/mounts")
            .is_ok_and(|mounts| self.1.to_str().is_some_and(|path| mounts.contains(path)));
        if is_mounted {
            let _best_effort = Command::new("umount").arg("-l").arg(&self.1).status();
        }
    }
}

#[test]
fn a_killed_process_does_not_stand_in_the_way() {
    let Some(mut fixture) = Fixture::new() else { return };
    if let Some(path) = std::env::var_os(CHILD) {
        fixture.unmount();
        fixture.path = path.into();
        let _mounted = fixture.mount_again().unwrap();
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    fixture.add("disk", MemDisk::new(65_536));
    fixture.unmount();
    let path = fixture.path.clone();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_process_does_not_stand_in_the_way"])
        .env(CHILD, &path)
        // Its own temporary directory is not removed when it is killed, ours is.
        .env("TMPDIR", fixture.parent.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut victim = Victim(child, path.clone());
    let until = Instant::now() + Duration::from_secs(20);
    while !fs::read_to_string("/proc/self/mounts").unwrap().contains(path.to_str().unwrap()) {
        assert!(Instant::now() < until, "the other process mounts");
        std::thread::sleep(Duration::from_millis(20));
    }
    victim.0.kill().unwrap();
    victim.0.wait().unwrap();
    assert_eq!(fs::metadata(&path).unwrap_err().raw_os_error(), Some(libc::ENOTCONN));

    let again = fixture.mount_again().expect("the dead mount is taken away first");
    assert_eq!(fs::metadata(path.join("disk")).unwrap().len(), 65_536);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert_eq!(mounts.matches(path.to_str().unwrap()).count(), 1, "one mount, not two");
    again.unmount();
    assert!(fs::metadata(&path).is_ok(), "the directory was there before the second mount");
}
