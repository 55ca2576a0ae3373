//! What a request of the kernel means, and what its answer is.

use crate::device::{DeviceError, Durability};
use crate::range::ByteRange;

use super::PAYLOAD_BYTES_MAX;
use super::abi::{self, Descriptor};

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Read(ByteRange),
    Write(ByteRange, Durability),
    Flush,
    Trim(ByteRange, Durability),
    WriteZeroes { range: ByteRange, no_hole: bool, durability: Durability },
}

impl Request {
    /// Decodes what the driver wrote; the errno to refuse it with where it makes no sense.
    pub(super) fn decode(descriptor: &Descriptor) -> Result<Self, i32> {
        let flags = descriptor.operation;
        let durability =
            if flags & abi::REQUEST_FUA == 0 { Durability::Cached } else { Durability::Stable };
        let bytes = u64::from(descriptor.sectors) * abi::SECTOR_BYTES;
        let start = descriptor.start_sector.checked_mul(abi::SECTOR_BYTES);
        let range = || start.and_then(|start| ByteRange::new(start, bytes)).ok_or(libc::EINVAL);
        let with_payload = || {
            range().and_then(|range| {
                let fits = (1..=u64::from(PAYLOAD_BYTES_MAX)).contains(&range.len());
                if fits { Ok(range) } else { Err(libc::EINVAL) }
            })
        };
        Ok(match flags & abi::OPERATION_MASK {
            abi::OPERATION_READ => Self::Read(with_payload()?),
            abi::OPERATION_WRITE => Self::Write(with_payload()?, durability),
            abi::OPERATION_FLUSH => Self::Flush,
            abi::OPERATION_DISCARD => Self::Trim(range()?, durability),
            abi::OPERATION_WRITE_ZEROES => Self::WriteZeroes {
                range: range()?,
                no_hole: flags & abi::REQUEST_NO_UNMAP != 0,
                durability,
            },
            _ => return Err(libc::EOPNOTSUPP),
        })
    }

    /// What the driver wants to hear when all went well: the bytes that were moved.
    pub(super) fn answer(&self) -> i32 {
        match self {
            Self::Read(range) | Self::Write(range, _) => {
                i32::try_from(range.len()).expect("payloads are limited to 1 MiB")
            }
            Self::Flush | Self::Trim(..) | Self::WriteZeroes { .. } => 0,
        }
    }
}

/// The errno for an error of the device. Only numbers that the block layer has a status for: a
/// file system tells them apart.
pub(super) fn errno_of(error: &DeviceError) -> i32 {
    match error {
        DeviceError::Unsupported(_) => libc::EOPNOTSUPP,
        DeviceError::NoSpace => libc::ENOSPC,
        DeviceError::Damaged { .. } => libc::EILSEQ,
        DeviceError::OutOfRange { .. }
        | DeviceError::ReadOnly
        | DeviceError::ShuttingDown
        | DeviceError::Io { .. } => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(operation: u32, start_sector: u64, sectors: u32) -> Descriptor {
        Descriptor { operation, sectors, start_sector, address: 0 }
    }

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange::new(start, len).expect("a small range")
    }

    #[test]
    fn every_operation_is_decoded() {
        let here = range(8 * 512, 4096);
        let fua = abi::REQUEST_FUA;
        let table = [
            (0, Request::Read(here), 4096),
            (1, Request::Write(here, Durability::Cached), 4096),
            (1 | fua, Request::Write(here, Durability::Stable), 4096),
            (2, Request::Flush, 0),
            (3, Request::Trim(here, Durability::Cached), 0),
            (
                5,
                Request::WriteZeroes {
                    range: here,
                    no_hole: false,
                    durability: Durability::Cached,
                },
                0,
            ),
            (
                5 | abi::REQUEST_NO_UNMAP | fua,
                Request::WriteZeroes { range: here, no_hole: true, durability: Durability::Stable },
                0,
            ),
        ];
        for (operation, request, answer) in table {
            let decoded = Request::decode(&descriptor(operation, 8, 8));
            assert_eq!(decoded, Ok(request));
            assert_eq!(request.answer(), answer);
        }
    }

    #[test]
    fn what_can_be_long_may_be() {
        let sectors = (u32::MAX >> 9) & !7;
        let whole = range(0, u64::from(sectors) * 512);
        assert_eq!(
            Request::decode(&descriptor(3, 0, sectors)),
            Ok(Request::Trim(whole, Durability::Cached))
        );
        assert_eq!(Request::decode(&descriptor(0, 0, 2048)), Ok(Request::Read(range(0, 1 << 20))));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert_eq!(Request::decode(&descriptor(4, 0, 8)), Err(libc::EOPNOTSUPP), "write same");
        assert_eq!(Request::decode(&descriptor(13, 0, 8)), Err(libc::EOPNOTSUPP), "zone append");
        assert_eq!(Request::decode(&descriptor(0, u64::MAX, 8)), Err(libc::EINVAL));
        assert_eq!(Request::decode(&descriptor(1, u64::MAX / 512, 8)), Err(libc::EINVAL));
        assert_eq!(Request::decode(&descriptor(1, 0, 2049)), Err(libc::EINVAL), "over 1 MiB");
        assert_eq!(Request::decode(&descriptor(0, 0, 0)), Err(libc::EINVAL));
    }

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        let io = DeviceError::Io { range: range(0, 512), source: std::io::Error::other("x") };
        assert_eq!(errno_of(&io), libc::EIO);
        assert_eq!(errno_of(&DeviceError::NoSpace), libc::ENOSPC);
        assert_eq!(errno_of(&DeviceError::Unsupported("x")), libc::EOPNOTSUPP);
    }
}
