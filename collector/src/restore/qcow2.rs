//! A qcow2 image as a target, written through QEMU's own code.
//!
//! `qemu-img` makes the image, `qemu-nbd` serves it to this process alone: it gets a socket to
//! listen on that has one connection already, ours, and whose name is gone by then. It ends by
//! itself when the connection does, also when this process is killed, and closes the image
//! properly then. After a power cut the image may have lost track of some of its space, never of
//! what was flushed; that is repaired before it is gone on with.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tidemark_block::ByteRange;

use super::nbd::{NbdDisk, ZERO_BYTES_MAX};
use super::place::{Partial, partial_of, remove_if_there};
use super::target::Target;
use crate::error::{Failure, FailureKind, Result};

const STILL_CLOSING: &str = "an earlier restore is still closing it: try again in a moment";
/// How long the helper may take to close the image; everything was flushed by then.
const END_WAIT_MAX_MS: u16 = 60_000;
/// What is read of the helper's complaints.
const COMPLAINT_BYTES_MAX: u64 = 4096;
/// Hands the socket on as the number that systemd's convention for passed sockets wants.
const PASS_SOCKET: &str = "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"";
const PACKAGE_HINT: &str = "install QEMU's tools (on Debian: qemu-utils), or restore to a raw file";

/// The image, under its partial name.
pub(super) struct Qcow2 {
    partial: Partial,
    /// `None` once it was said good-bye to.
    disk: Option<NbdDisk>,
    helper: Helper,
    /// Made by this run, so that what was not written reads as zeroes.
    is_new: bool,
}

/// Whether QEMU's tools are there.
///
/// # Errors
/// `Unavailable` with what to install.
pub(super) fn check_tools() -> Result<()> {
    for tool in ["qemu-img", "qemu-nbd"] {
        let found = Command::new(tool)
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if let Err(source) = found {
            let message = format!("a qcow2 image is made with {tool}, which can't run: {source}");
            return Err(Failure::unavailable(message).with_hint(PACKAGE_HINT).because(source));
        }
    }
    Ok(())
}

impl Qcow2 {
    /// Makes the image for a disk of `size_bytes`, or opens the one of an earlier run.
    pub(super) fn open(
        target: &Path,
        run_dir: &Path,
        size_bytes: u64,
        kept_bytes: u64,
    ) -> Result<Self> {
        let (partial, is_new) = if kept_bytes > 0 {
            let partial = Partial::reopen(target)?;
            qemu_img(&["check", "-q", "-f", "qcow2", "-r", "leaks"], &partial.path, None)?;
            (partial, false)
        } else {
            let partial = Partial::create(target)?;
            let size = size_bytes.to_string();
            qemu_img(&["create", "-q", "-f", "qcow2"], &partial.path, Some(&size))?;
            (partial, true)
        };
        let (helper, stream) = Helper::start(&partial.path, run_dir)?;
        let mut image = Self { partial, disk: None, helper, is_new };
        match NbdDisk::open(stream, size_bytes) {
            Ok(disk) => image.disk = Some(disk),
            Err(source) => return Err(image.failed("open", source)),
        }
        Ok(image)
    }

    /// What went wrong. When the connection is lost the helper has ended, or is ended, and what
    /// it said tells more than the system's error.
    fn failed(&mut self, doing: &str, source: std::io::Error) -> Failure {
        use std::io::ErrorKind as Kind;
        let failure = Failure::io(doing, &self.partial.path, source);
        let kind = std::error::Error::source(&failure)
            .and_then(|source| source.downcast_ref::<std::io::Error>())
            .map(std::io::Error::kind);
        let lost = [Kind::UnexpectedEof, Kind::BrokenPipe, Kind::ConnectionReset];
        let lost = kind.is_some_and(|kind| {
            lost.contains(&kind) || [Kind::InvalidData, Kind::WouldBlock].contains(&kind)
        });
        if !lost {
            return failure;
        }
        self.disk = None;
        let complaint = self.helper.complaint();
        let message = format!("{}; qemu-nbd: {complaint}", failure.message);
        if complaint.contains("lock") {
            return Failure::new(FailureKind::Conflict, message).with_hint(STILL_CLOSING);
        }
        Failure::internal(message).because(failure)
    }

    fn with_disk<T>(
        &mut self,
        doing: &str,
        work: impl FnOnce(&mut NbdDisk) -> std::io::Result<T>,
    ) -> Result<T> {
        let Some(disk) = self.disk.as_mut() else {
            let path = self.partial.path.display();
            return Err(Failure::internal(format!("qemu-nbd serves {path} no longer")));
        };
        let done = work(disk);
        done.map_err(|source| self.failed(doing, source))
    }

    /// Lets the helper close the image.
    fn close(&mut self) -> Result<()> {
        let Some(disk) = self.disk.take() else { return Ok(()) };
        // One that does not hear it sees the end of the connection.
        let said = disk.disconnect();
        let ended = self.helper.end();
        ended.map_err(|complaint| {
            Failure::internal(format!(
                "qemu-nbd did not close {} well: {complaint}",
                self.partial.path.display()
            ))
        })?;
        said.map_err(|source| Failure::io("close", &self.partial.path, source))
    }
}

impl Target for Qcow2 {
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.with_disk("write", |disk| disk.write(at, bytes))
    }

    fn zero(&mut self, range: ByteRange) -> Result<()> {
        if self.is_new {
            return Ok(());
        }
        let mut at = range.start();
        while at < range.end() {
            let len = (range.end() - at).min(ZERO_BYTES_MAX);
            self.with_disk("write", |disk| disk.write_zeroes(at, len))?;
            at += len;
        }
        Ok(())
    }

    fn read(&mut self, at: u64, bytes: &mut [u8]) -> Result<()> {
        self.with_disk("read", |disk| disk.read(at, bytes))
    }

    fn is_hole(&mut self, _: ByteRange) -> Result<bool> {
        Ok(false)
    }

    fn sync(&mut self) -> Result<()> {
        self.with_disk("sync", NbdDisk::flush)
    }

    fn finish(mut self: Box<Self>, overwrite: bool) -> Result<()> {
        self.sync()?;
        self.close()?;
        let Self { partial, helper, .. } = *self;
        drop(helper);
        let synced = partial.file.sync_all();
        synced.map_err(|source| Failure::io("sync", &partial.path, source))?;
        partial.publish(overwrite)
    }

    fn leave(mut self: Box<Self>, keep: bool) {
        if let Err(error) = self.close() {
            tracing::warn!(%error, "an unfinished image");
        }
        let Self { partial, helper, .. } = *self;
        drop(helper);
        partial.leave(keep);
    }
}

fn qemu_img(arguments: &[&str], image: &Path, size: Option<&str>) -> Result<()> {
    let run = Command::new("qemu-img")
        .args(arguments)
        .arg(image)
        .args(size)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output();
    let run = run.map_err(|source| {
        Failure::unavailable(format!("qemu-img can't run: {source}"))
            .with_hint(PACKAGE_HINT)
            .because(source)
    })?;
    if run.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&run.stderr).trim().replace('\n', "; ");
    let what = arguments.first().copied().unwrap_or_default();
    let message = format!("qemu-img {what} {} has failed: {said}", image.display());
    Err(if said.contains("lock") {
        Failure::conflict(message).with_hint(STILL_CLOSING)
    } else {
        Failure::internal(message)
    })
}

/// The running `qemu-nbd`. It does not outlive this value.
struct Helper {
    child: Child,
    stderr: Option<ChildStderr>,
    ended: bool,
}

impl Helper {
    /// Starts it; the stream is the only connection that it will ever have.
    fn start(image: &Path, run_dir: &Path) -> Result<(Self, UnixStream)> {
        let (listener, stream) = private_socket(run_dir)?;
        let child = Command::new("/bin/sh")
            .args(["-c", PASS_SOCKET, "sh", "qemu-nbd"])
            .args(["--format=qcow2", "--cache=writeback", "--discard=unmap", "--shared=1"])
            .arg("--")
            .arg(image)
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = child.map_err(|source| {
            Failure::unavailable(format!("qemu-nbd can't run: {source}"))
                .with_hint(PACKAGE_HINT)
                .because(source)
        })?;
        let stderr = child.stderr.take();
        Ok((Self { child, stderr, ended: false }, stream))
    }

    /// Waits a bounded time until it has ended by itself; kills it otherwise. The error is what
    /// it said.
    fn end(&mut self) -> std::result::Result<(), String> {
        let complaint = self.complaint();
        let status = self.reap();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("{status}; {complaint}")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// What it has written to its standard error until it ended, on one line. One that does not
    /// end in time is killed.
    fn complaint(&mut self) -> String {
        let Some(stderr) = self.stderr.take() else { return String::new() };
        let mut text = Vec::new();
        let mut limited = stderr.take(COMPLAINT_BYTES_MAX);
        loop {
            let mut ready = [PollFd::new(limited.get_ref().as_fd(), PollFlags::POLLIN)];
            let waited = poll(&mut ready, PollTimeout::from(END_WAIT_MAX_MS));
            if waited == Err(nix::errno::Errno::EINTR) {
                continue;
            }
            if waited != Ok(1) {
                // Its end is what matters; the reap below says how it was.
                let _ = self.child.kill();
                break;
            }
            let mut bytes = [0; 512];
            match limited.read(&mut bytes) {
                Ok(0) | Err(_) => break,
                Ok(len) => text.extend_from_slice(&bytes[..len]),
            }
        }
        String::from_utf8_lossy(&text).trim().replace('\n', "; ")
    }

    fn reap(&mut self) -> std::io::Result<std::process::ExitStatus> {
        let status = self.child.wait();
        self.ended |= status.is_ok();
        status
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if !self.ended {
            // It may have ended on its own; either way it is reaped.
            let _ = self.child.kill();
            let _ = self.reap();
        }
    }
}

/// A listening socket with one connection that waits, and that connection. The name exists only
/// within this function, in a directory of the collector's own; it is reached through the
/// directory's descriptor because a socket's path may have 108 bytes only.
fn private_socket(run_dir: &Path) -> Result<(UnixListener, UnixStream)> {
    let failed = |source| Failure::io("make a socket in", run_dir, source);
    let dir = File::open(run_dir).map_err(failed)?;
    let name = partial_of(Path::new(&format!("restore-{}", fresh_number())));
    let number = std::os::fd::AsRawFd::as_raw_fd(&dir);
    let path = Path::new("/proc/self/fd").join(number.to_string()).join(name);
    remove_if_there(&path).map_err(failed)?;
    let listener = UnixListener::bind(&path).map_err(failed)?;
    let stream = UnixStream::connect(&path);
    let removed = fs::remove_file(&path);
    removed.map_err(failed)?;
    Ok((listener, stream.map_err(failed)?))
}

/// A number that no other restore of this process has.
fn fresh_number() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // Relaxed: only that no two get the same matters.
    NEXT.fetch_add(1, Ordering::Relaxed)
}
