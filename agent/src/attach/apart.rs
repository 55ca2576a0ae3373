//! Work on a device whose server is this very process.
//!
//! A thread that waits for such a device can't be killed before the device answers, and while it
//! lives it holds every descriptor of the process open: a killed agent would keep its own sockets
//! and its FUSE connection, nobody would ever answer, and the process would hang for good. So the
//! work is done on a thread of its own that first takes a table of descriptors for itself and
//! closes what was in it. When the rest of the agent dies, its descriptors close, the kernel fails
//! or keeps what waits, and the thread ends.

use std::io;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use super::error::{AttachError, AttachErrorKind};

/// The first descriptor that is closed: standard input, output and error stay, for log lines.
const FIRST_CLOSED: libc::c_uint = 3;

/// Runs `work` apart from the process's descriptors, and waits for it at most `patience`.
///
/// `work` opens what it needs itself; a descriptor that was opened before is closed there. When
/// the patience ends the thread is left to itself, and whatever it does afterwards is lost.
///
/// # Errors
/// What `work` returned; [`AttachErrorKind::NotAnswering`] when it took too long.
pub(super) fn run<T: Send + 'static>(
    device: &Path,
    patience: Duration,
    work: impl FnOnce() -> Result<T, AttachError> + Send + 'static,
) -> Result<T, AttachError> {
    let (sender, receiver) = sync_channel(1);
    let failed = |doing: &str, source| {
        AttachError::io(AttachErrorKind::Kernel, device, doing.to_owned(), source)
    };
    let place = device.to_owned();
    std::thread::Builder::new()
        .name("attach".to_owned())
        .spawn(move || {
            let result = match leave_descriptors() {
                Ok(()) => work(),
                Err(source) => Err(AttachError::io(
                    AttachErrorKind::Kernel,
                    &place,
                    "can't give a thread descriptors of its own (needs Linux 5.9)",
                    source,
                )),
            };
            // The one who asked may have lost patience.
            let _nobody_waits = sender.send(result);
        })
        .map_err(|source| failed("start a thread", source))?;
    match receiver.recv_timeout(patience) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(AttachError::new(
            AttachErrorKind::NotAnswering,
            device.display().to_string(),
            format!("no answer within {} s; see the log for what holds it up", patience.as_secs()),
        )),
        Err(RecvTimeoutError::Disconnected) => {
            Err(failed("wait for the thread", io::Error::other("it ended without an answer")))
        }
    }
}

/// Gives the calling thread a table of descriptors of its own, with the standard ones in it.
fn leave_descriptors() -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_UNSHARE.cast_signed();
    // SAFETY: with UNSHARE the call closes descriptors of a private copy only, which no other
    // thread sees; this thread has just begun and owns none.
    if unsafe { libc::close_range(FIRST_CLOSED, libc::c_uint::MAX, flags) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn device() -> &'static Path {
        Path::new("/dev/test")
    }

    #[test]
    fn the_thread_has_no_descriptor_of_the_process_and_closes_none() {
        let file = tempfile::tempfile().expect("a temporary file");
        let number = file.as_raw_fd();
        let is_open =
            move || std::path::Path::new(&format!("/proc/thread-self/fd/{number}")).exists();
        let seen =
            run(device(), Duration::from_secs(10), move || Ok(is_open())).expect("it answers");
        assert!(!seen, "the thread sees descriptor {number}");
        assert!(is_open(), "this thread has it still");
    }

    #[test]
    fn patience_ends() {
        let (keep, hold) = sync_channel::<()>(0);
        let error = run(device(), Duration::from_millis(20), move || {
            let _ended = hold.recv();
            Ok(())
        })
        .expect_err("nobody answers");
        assert_eq!(error.kind, AttachErrorKind::NotAnswering);
        drop(keep);
    }
}
