//! Loop devices over the FUSE directory of another process: made, refused while they are in use,
//! taken down, and what is left of them when that process is killed.

#![allow(clippy::disallowed_methods, reason = "a test waits in real time")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tidemark_agent::attach::{self, AttachErrorKind, Attached, Options, Reattached, Source, Via};
use tidemark_block::engine::{ExecutorConfig, Workers};
use tidemark_block::file_device::FileDevice;
use tidemark_block::fuse::{Directory, FuseConfig};
use tidemark_block::store::{OpenMode, UringStore};
use tidemark_block::{Export, ExportList};
use tidemark_wire::VolumeId;

const DISK_BYTES: u64 = 64 << 20;
const OPTIONS: Options =
    Options { nbd_connections: 1, request_seconds_max: 0, dead_connection_seconds: 0 };
/// The variable that tells a copy of this program to be the process that serves.
const SERVER: &str = "TIDEMARK_ATTACH_TEST_SERVER";

/// A process that serves `disk.img` of a directory as `disks/disk`; dropping it ends it and takes
/// away what was attached and mounted.
struct Served {
    dir: TempDir,
    server: Child,
    attached: Vec<Attached>,
}

impl Served {
    fn start() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            eprintln!("skipped: needs root and /dev/fuse");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        File::create(dir.path().join("disk.img")).unwrap().set_len(DISK_BYTES).unwrap();
        let server = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "serve"])
            .env(SERVER, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let served = Self { dir, server, attached: Vec::new() };
        let until = Instant::now() + Duration::from_secs(20);
        while !served.file().exists() {
            assert!(Instant::now() < until, "the other process serves");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(served)
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("disks/disk")
    }

    fn attach(&mut self) -> Result<Attached, attach::AttachError> {
        let file = self.file();
        let made = attach::attach(&source(&file), &OPTIONS, Some(Via::Loop))?;
        self.attached.push(made.clone());
        Ok(made)
    }

    fn mount_point(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Also while a panic unwinds, so nothing here may panic.
        let _best_effort = umount(&self.mount_point());
        for made in &self.attached {
            let _best_effort = attach::detach(made);
        }
        let _ended_before = self.server.kill();
        let _reaped_before = self.server.wait();
        let _best_effort = umount(&self.dir.path().join("disks"));
    }
}

fn source(file: &Path) -> Source<'_> {
    Source {
        volume: "disk",
        id: VolumeId::from_bytes([7; 16]),
        size_bytes: DISK_BYTES,
        block_bytes: 4096,
        nbd: None,
        ublk: None,
        fuse_file: Some(file),
    }
}

fn run(program: &str, arguments: &[&Path]) {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

fn umount(path: &Path) -> bool {
    let words = [Path::new("-l"), path];
    let quiet = Command::new("umount").args(words).stderr(Stdio::null()).status();
    quiet.is_ok_and(|status| status.success())
}

/// What the other process does until it is killed; without the variable there is nothing to do.
#[test]
fn serve() {
    let Some(dir) = std::env::var_os(SERVER) else { return };
    let dir = PathBuf::from(dir);
    let workers = Workers::start("serve", 1, ExecutorConfig::default()).unwrap();
    let exports = Arc::new(ExportList::new());
    let store = UringStore::open(&dir.join("disk.img"), OpenMode::ReadWrite).unwrap();
    let device = Arc::new(FileDevice::new(store));
    exports.add(Export { name: "disk".to_owned(), description: String::new(), device }).unwrap();
    let _mounted =
        Directory::mount(&dir.join("disks"), exports, &workers.handle(), FuseConfig::default())
            .unwrap();
    std::thread::sleep(Duration::from_secs(300));
}

#[test]
fn a_device_is_made_refused_while_in_use_and_taken_down() {
    let Some(mut served) = Served::start() else { return };
    let made = served.attach().unwrap();
    assert_eq!(made.notes, Vec::<String>::new(), "direct I/O and the block size were had");
    let again = served.attach().unwrap_err();
    assert_eq!(again.kind, AttachErrorKind::InUse);
    assert!(again.to_string().contains(made.device.to_str().unwrap()), "{again}");
    let file = served.file();
    let state = attach::reattach(&made, &source(&file), &OPTIONS).unwrap();
    assert_eq!(state, Reattached::Answers);

    run("mkfs.ext4", &[Path::new("-q"), &made.device]);
    let point = served.mount_point();
    fs::create_dir(&point).unwrap();
    run("mount", &[&made.device, &point]);
    let mounted = attach::detach(&made).unwrap_err();
    assert_eq!(mounted.kind, AttachErrorKind::InUse);
    assert!(mounted.to_string().contains(point.to_str().unwrap()), "{mounted}");
    assert!(umount(&point));

    let mut opener =
        Command::new("sleep").arg("60").stdin(File::open(&made.device).unwrap()).spawn().unwrap();
    let opened = attach::detach(&made).unwrap_err();
    opener.kill().unwrap();
    opener.wait().unwrap();
    assert_eq!(opened.kind, AttachErrorKind::InUse);
    let text = format!("process {} (sleep)", opener.id());
    assert!(opened.to_string().contains(&text), "{opened}");

    attach::detach(&made).unwrap();
    assert_eq!(attach::detach(&made).unwrap_err().kind, AttachErrorKind::Gone);
    let state = attach::reattach(&made, &source(&file), &OPTIONS).unwrap();
    assert!(matches!(state, Reattached::Gone(_)), "{state:?}");
}

#[test]
fn a_mount_of_another_namespace_is_in_the_way() {
    let Some(mut served) = Served::start() else { return };
    let made = served.attach().unwrap();
    run("mkfs.ext4", &[Path::new("-q"), &made.device]);
    let point = served.mount_point();
    fs::create_dir(&point).unwrap();
    let mut holder = Command::new("unshare")
        .args(["-m", "sh", "-c", "mount \"$0\" \"$1\" && echo mounted && read line"])
        .args([&made.device, &point])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 8];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut said).unwrap();
    let error = attach::detach(&made);
    holder.stdin.take().unwrap().write_all(b"\n").unwrap();
    holder.wait().unwrap();
    let error = error.unwrap_err();
    assert_eq!(error.kind, AttachErrorKind::InUse);
    assert!(error.to_string().contains("namespace"), "{error}");
    // The file system leaves shortly after the namespace's last process.
    let until = Instant::now() + Duration::from_secs(10);
    while attach::detach(&made).is_err() {
        assert!(Instant::now() < until, "nobody uses it any more");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn partitions_count_as_use() {
    let Some(mut served) = Served::start() else { return };
    let made = served.attach().unwrap();
    // In sectors; kernels of test machines read no partition tables.
    run("addpart", &[&made.device, Path::new("1"), Path::new("2048"), Path::new("100352")]);
    let partition = PathBuf::from(format!("{}p1", made.device.display()));
    assert!(partition.exists(), "the device takes partitions");
    run("mkfs.ext4", &[Path::new("-q"), &partition]);
    let point = served.mount_point();
    fs::create_dir(&point).unwrap();
    run("mount", &[&partition, &point]);
    let error = attach::detach(&made).unwrap_err();
    assert!(error.to_string().contains(point.to_str().unwrap()), "{error}");
    assert!(umount(&point));
    attach::detach(&made).unwrap();
}

#[test]
fn the_flush_brings_what_was_written_to_the_backing_store() {
    let Some(mut served) = Served::start() else { return };
    let made = served.attach().unwrap();
    let device = OpenOptions::new().write(true).open(&made.device).unwrap();
    device.write_all_at(&[0x5a; 8192], 1 << 20).unwrap();
    drop(device);
    attach::detach(&made).unwrap();
    let image = File::open(served.dir.path().join("disk.img")).unwrap();
    let mut bytes = [0; 8192];
    image.read_exact_at(&mut bytes, 1 << 20).unwrap();
    assert_eq!(bytes, [0x5a; 8192]);
}

#[test]
fn after_a_kill_a_loop_device_is_dead_and_can_be_taken_down() {
    let Some(mut served) = Served::start() else { return };
    let made = served.attach().unwrap();
    served.server.kill().unwrap();
    served.server.wait().unwrap();
    let file = served.file();
    let state = attach::reattach(&made, &source(&file), &OPTIONS).unwrap();
    assert!(matches!(state, Reattached::Dead(_)), "{state:?}");
    // The next agent takes the dead mount away, and with it the file's path.
    assert!(umount(&served.dir.path().join("disks")));
    let state = attach::reattach(&made, &source(&file), &OPTIONS).unwrap();
    assert!(matches!(state, Reattached::Dead(_)), "{state:?}");
    attach::detach(&made).unwrap();
}
