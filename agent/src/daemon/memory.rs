//! What the kernel can do for a process that serves disks to the machine that it runs on: keep its
//! memory in place, and let it allocate without waiting for the very disks that it serves. What
//! could not be had is said, once, at the start.

use std::fs;
use std::io;

use nix::sys::mman::{MlockAllFlags, mlockall};

/// `PR_SET_IO_FLUSHER` of `linux/prctl.h`, which the crate libc lacks.
const PR_SET_IO_FLUSHER: libc::c_int = 57;
/// The bit of `CAP_IPC_LOCK` in a set of capabilities.
const CAP_IPC_LOCK: u64 = 1 << 14;

/// Locks the memory where `lock` asks for it, and asks for the kernel's help under memory
/// pressure. To be called before the process has other threads, which inherit the second.
pub(super) fn settle(lock: bool) {
    if !lock {
        tracing::warn!(
            "lock_memory is false: where the machine swaps to a disk served here, it may hang"
        );
    } else if let Err(error) = lock_all() {
        tracing::warn!(
            "the agent's memory can't be locked ({error}): where the machine swaps, clients may \
             wait, and for ever where it swaps to a disk served here; run as root or set \
             LimitMEMLOCK=infinity"
        );
    } else {
        tracing::info!("the agent's memory is locked");
    }
    match be_io_flusher() {
        Ok(()) => tracing::info!("the kernel knows the agent as one that writes its pages out"),
        Err(error) => tracing::warn!(
            "the kernel does not take the agent for an IO flusher ({error}): under memory \
             pressure it may wait for a disk that it serves; run it with CAP_SYS_RESOURCE"
        ),
    }
}

/// Locks every page from its first use on. With a limit on locked memory this is not even tried:
/// it would succeed, and let allocations fail later.
fn lock_all() -> io::Result<()> {
    if !may_lock_without_limit() {
        return Err(io::Error::other("there is a limit on it, RLIMIT_MEMLOCK"));
    }
    let all = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE;
    let at_first_use = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    // Kernels before 4.4 do not know the flag.
    mlockall(all | at_first_use).or_else(|_| mlockall(all)).map_err(io::Error::from)
}

fn may_lock_without_limit() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities =
        effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    let unlimited = limit.is_some_and(|limit| limit.trim_start().starts_with("unlimited"));
    capabilities & CAP_IPC_LOCK != 0 || unlimited
}

/// As `prctl(2)` has it.
fn be_io_flusher() -> io::Result<()> {
    // SAFETY: this call takes integers only.
    let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
