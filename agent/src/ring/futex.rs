//! The kernel's way to sleep on a word, for the threads of this process.

use std::ptr;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use super::bell::Parking;

/// A futex operation with its longest sleep.
pub(super) struct Futex {
    timeout: Duration,
}

impl Futex {
    /// For who only wakes.
    pub(super) const WAKE_ONLY: Self = Self { timeout: Duration::ZERO };

    /// For who sleeps no longer than `timeout`.
    pub(super) const fn sleeping(timeout: Duration) -> Self {
        Self { timeout }
    }
}

impl Parking<AtomicU32> for Futex {
    fn sleep(&self, flag: &AtomicU32, expected: u32) {
        let timeout = libc::timespec {
            tv_sec: libc::time_t::try_from(self.timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: self.timeout.subsec_nanos().into(),
        };
        // SAFETY: the flag and the timeout outlive the call, which only reads them. It returns
        // early on a changed flag, a signal or the timeout, all of which the caller allows.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                flag.as_ptr(),
                libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                expected,
                ptr::from_ref(&timeout),
            );
        }
    }

    fn wake(&self, flag: &AtomicU32) {
        // SAFETY: the kernel takes the address only as the name of a queue of sleepers.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                flag.as_ptr(),
                libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                1,
            );
        }
    }
}
