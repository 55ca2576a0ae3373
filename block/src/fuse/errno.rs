//! Which errno a FUSE client gets for a device's error.
//!
//! Only numbers of this table ever reach the kernel: some have a meaning of their own in the
//! protocol (`ENOSYS` switches an operation off for good), and one above 511 would be refused, so
//! that the request would never be answered. An error number from below the device is therefore
//! never passed on as it is.

use std::io::ErrorKind;

use fuser::Errno;

use crate::device::DeviceError;

/// The errno for a failed request.
pub(super) fn errno_of(error: &DeviceError) -> Errno {
    match error {
        // The frontend cut the range to the disk before, so this is a range that does not lie on
        // the device's smallest unit, or a disk that shrank meanwhile.
        DeviceError::OutOfRange { .. } => Errno::EINVAL,
        DeviceError::ReadOnly => Errno::EROFS,
        DeviceError::Unsupported(_) => Errno::EOPNOTSUPP,
        DeviceError::NoSpace => Errno::ENOSPC,
        DeviceError::ShuttingDown => Errno::ESHUTDOWN,
        DeviceError::Io { source, .. } => match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Errno::ENOSPC,
            _ => Errno::EIO,
        },
        DeviceError::Damaged { .. } => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::range::ByteRange;

    fn io_error(raw: i32) -> DeviceError {
        let range = ByteRange::new(0, 512).expect("a small range");
        DeviceError::Io { range, source: io::Error::from_raw_os_error(raw) }
    }

    #[test]
    fn numbers_with_a_meaning_for_the_kernel_never_get_through() {
        for raw in [libc::ENOSYS, libc::EINTR, libc::EAGAIN, libc::ENOENT, libc::EIO, 512, 100_000]
        {
            assert_eq!(errno_of(&io_error(raw)), Errno::EIO, "errno {raw}");
        }
    }

    #[test]
    fn each_kind_has_its_number() {
        let range = ByteRange::new(0, 512).expect("a small range");
        let table = [
            (DeviceError::OutOfRange { range, size_bytes: 256 }, Errno::EINVAL),
            (DeviceError::ReadOnly, Errno::EROFS),
            (DeviceError::Unsupported("x"), Errno::EOPNOTSUPP),
            (DeviceError::NoSpace, Errno::ENOSPC),
            (DeviceError::ShuttingDown, Errno::ESHUTDOWN),
            (io_error(libc::ENOSPC), Errno::ENOSPC),
            (io_error(libc::EDQUOT), Errno::ENOSPC),
            (DeviceError::Damaged { range, detail: String::new() }, Errno::EIO),
        ];
        for (error, errno) in table {
            assert_eq!(errno_of(&error), errno, "{error}");
        }
    }
}
