//! Who holds the lock on a file: for messages that tell a person which process to stop.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The process that has locked `path` as `flock(2)` does, as `proc_locks(5)` tells it: its id and
/// name. `None` where that can't be found out: another namespace of processes, or a file system
/// whose files name another device than their lock does.
pub(super) fn of(path: &Path) -> Option<String> {
    let file = fs::metadata(path).ok()?;
    let (device, inode) = (file.dev(), file.ino());
    let place = format!("{:02x}:{:02x}:{inode}", libc::major(device), libc::minor(device));
    let pid = find(&fs::read_to_string("/proc/locks").ok()?, &place)?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    Some(match name.as_deref().map(str::trim) {
        Some(name) => format!("process {pid} ({name})"),
        None => format!("process {pid}"),
    })
}

/// The holder of the lock on the file `place` in a text like that of `/proc/locks`.
fn find(locks: &str, place: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        // A line with an arrow is of somebody who waits.
        if words.next()? != "FLOCK" {
            return None;
        }
        let mut words = words.skip(2);
        let pid = words.next()?;
        (words.next()? == place).then(|| pid.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_and_not_a_waiter_is_named() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 08:02:11 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 8 08:02:11 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 9 08:02:11 0 EOF\n";
        assert_eq!(find(locks, "08:02:11"), Some(9));
        assert_eq!(find(locks, "08:02:12"), None);
    }

    #[test]
    fn a_lock_of_this_process_is_found() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        assert_eq!(of(file.path()), None);
        let lock = nix::fcntl::Flock::lock(
            file.reopen().expect("opened"),
            nix::fcntl::FlockArg::LockExclusiveNonblock,
        );
        let _lock = lock.expect("locked");
        let holder = of(file.path()).expect("the file system tells");
        assert!(holder.starts_with(&format!("process {}", std::process::id())), "{holder}");
    }
}
