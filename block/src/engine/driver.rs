//! Commands to a driver through a file of its own (`IORING_OP_URING_CMD`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{opcode, squeue, types};

use super::op::{Op, Operation};

/// Gives `body`, whose meaning is the driver's own and which names no memory, as command `number`
/// to the driver behind `device`, and waits until the driver ends it: it may keep the command
/// until it has something to tell.
///
/// The kernel has no way to take such a command back. Dropping the future leaves it with the
/// driver, until that ends it or the ring goes, with the executor or with who holds it
/// ([`super::Executor::hold_ring`]); `device` must stay open as long as the executor.
///
/// # Errors
/// The driver's.
pub(crate) async fn driver_command(
    device: BorrowedFd<'_>,
    number: u32,
    body: [u8; 16],
) -> io::Result<u32> {
    Op::new(DriverCommand { device, number, body }).await.0
}

struct DriverCommand<'a> {
    device: BorrowedFd<'a>,
    number: u32,
    body: [u8; 16],
}

// SAFETY: the entry points to no memory; the body lies in the entry itself.
unsafe impl Operation for DriverCommand<'_> {
    const WAITS_AT_DROP: bool = false;

    fn entry(&mut self) -> squeue::Entry {
        opcode::UringCmd16::new(types::Fd(self.device.as_raw_fd()), self.number)
            .cmd(self.body)
            .build()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::future::{Future, poll_fn};
    use std::os::fd::AsFd;
    use std::pin::pin;
    use std::task::Poll;

    use super::*;
    use crate::engine::{Executor, ExecutorConfig};

    fn null() -> std::fs::File {
        OpenOptions::new().read(true).write(true).open("/dev/null").expect("there always is one")
    }

    #[test]
    fn a_driver_answers_and_one_without_commands_refuses() {
        let executor = Executor::new(&ExecutorConfig::default()).expect("an executor");
        let file = tempfile::tempfile().expect("a file");
        executor.block_on(async {
            // Linux 6.0 and newer: the null device takes any command.
            let null = null();
            let answer = driver_command(null.as_fd(), 7, [9; 16]).await;
            assert_eq!(answer.expect("the null device takes commands"), 0);
            let refused = driver_command(file.as_fd(), 7, [9; 16]).await;
            assert_eq!(refused.expect_err("no driver").raw_os_error(), Some(libc::EOPNOTSUPP));
        });
    }

    #[test]
    fn a_command_that_is_given_up_frees_its_place_and_wakes_nobody() {
        let null = null();
        let executor = Executor::new(&ExecutorConfig::default()).expect("an executor");
        executor.block_on(async {
            for _ in 0..1000 {
                let mut given_up = pin!(driver_command(null.as_fd(), 1, [0; 16]));
                poll_fn(|cx| {
                    assert!(given_up.as_mut().poll(cx).is_pending());
                    Poll::Ready(())
                })
                .await;
            }
            assert_eq!(driver_command(null.as_fd(), 1, [0; 16]).await.expect("answered"), 0);
        });
    }
}
