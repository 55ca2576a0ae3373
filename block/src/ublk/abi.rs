//! What this process and the ublk driver tell each other: structures, numbers of commands, places.
//!
//! Source: `include/uapi/linux/ublk_cmd.h` of Linux 6.12. Everything here is in the machine's own
//! byte order, as the kernel reads it.

use std::mem::offset_of;

/// The file for commands about devices.
pub(super) const CONTROL_PATH: &str = "/dev/ublk-control";

// Sizes of the commands' structures, which are part of their numbers.
const CONTROL_BYTES: u32 = 32;
const QUEUE_BYTES: u32 = 16;

// Control commands, in the encoding that kernels from 6.4 on want.
pub(super) const GET_DEVICE_INFO: u32 = read(0x02, CONTROL_BYTES);
pub(super) const ADD_DEVICE: u32 = read_write(0x04, CONTROL_BYTES);
pub(super) const DELETE_DEVICE: u32 = read_write(0x05, CONTROL_BYTES);
pub(super) const START_DEVICE: u32 = read_write(0x06, CONTROL_BYTES);
pub(super) const STOP_DEVICE: u32 = read_write(0x07, CONTROL_BYTES);
pub(super) const SET_PARAMETERS: u32 = read_write(0x08, CONTROL_BYTES);
pub(super) const START_USER_RECOVERY: u32 = read_write(0x10, CONTROL_BYTES);
pub(super) const END_USER_RECOVERY: u32 = read_write(0x11, CONTROL_BYTES);
pub(super) const GET_FEATURES: u32 = read(0x13, CONTROL_BYTES);

// Commands of a queue.
pub(super) const FETCH_REQUEST: u32 = read_write(0x20, QUEUE_BYTES);
pub(super) const COMMIT_AND_FETCH_REQUEST: u32 = read_write(0x21, QUEUE_BYTES);

/// The device outlives the process that serves it.
pub(super) const FEATURE_USER_RECOVERY: u64 = 1 << 3;
/// What that process had not answered is asked of the next one.
pub(super) const FEATURE_USER_RECOVERY_REISSUE: u64 = 1 << 4;
/// Commands are encoded as above.
pub(super) const FEATURE_COMMAND_ENCODING: u64 = 1 << 6;
/// Payloads are read from, and written to, the queue's file.
pub(super) const FEATURE_USER_COPY: u64 = 1 << 7;

pub(super) const STATE_DEAD: u16 = 0;
pub(super) const STATE_LIVE: u16 = 1;
pub(super) const STATE_QUIESCED: u16 = 2;

pub(super) const ATTRIBUTE_VOLATILE_CACHE: u32 = 1 << 2;
pub(super) const ATTRIBUTE_FUA: u32 = 1 << 3;

pub(super) const PARAMETERS_BASIC: u32 = 1 << 0;
pub(super) const PARAMETERS_DISCARD: u32 = 1 << 1;

pub(super) const OPERATION_MASK: u32 = 0xff;
pub(super) const OPERATION_READ: u32 = 0;
pub(super) const OPERATION_WRITE: u32 = 1;
pub(super) const OPERATION_FLUSH: u32 = 2;
pub(super) const OPERATION_DISCARD: u32 = 3;
pub(super) const OPERATION_WRITE_ZEROES: u32 = 5;
pub(super) const REQUEST_FUA: u32 = 1 << 13;
pub(super) const REQUEST_NO_UNMAP: u32 = 1 << 15;

/// Unit of sizes and places in the interface, in bytes.
pub(super) const SECTOR_BYTES: u64 = 512;

/// Where payloads begin in a queue's file.
const PAYLOADS_START: u64 = 0x8000_0000;
/// Bits of a place within a payload; the tag of its request is above them.
const PAYLOAD_BITS: u32 = 25;

/// `struct ublksrv_ctrl_cmd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct ControlCommand {
    pub(super) device: u32,
    /// [`NO_QUEUE`] in every command used here.
    pub(super) queue: u16,
    pub(super) buffer_bytes: u16,
    pub(super) buffer: u64,
    pub(super) data: u64,
    pub(super) path_bytes: u16,
    pub(super) padding: u16,
    pub(super) reserved: u32,
}

pub(super) const NO_QUEUE: u16 = u16::MAX;
/// In [`ADD_DEVICE`]: the next free number.
pub(super) const ANY_DEVICE: u32 = u32::MAX;

/// `struct ublksrv_ctrl_dev_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct DeviceInfo {
    pub(super) queues: u16,
    pub(super) queue_depth: u16,
    pub(super) state: u16,
    pub(super) padding: u16,
    pub(super) payload_bytes_max: u32,
    pub(super) device: u32,
    pub(super) server: i32,
    pub(super) padding_more: u32,
    pub(super) features: u64,
    /// The driver keeps it and makes no use of it.
    pub(super) identity: u64,
    pub(super) owner_uid: u32,
    pub(super) owner_gid: u32,
    pub(super) reserved: [u64; 2],
}

/// `struct ublk_params` up to `ublk_param_discard`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Parameters {
    pub(super) bytes: u32,
    pub(super) kinds: u32,
    pub(super) attributes: u32,
    pub(super) logical_block_shift: u8,
    pub(super) physical_block_shift: u8,
    pub(super) io_best_shift: u8,
    pub(super) io_min_shift: u8,
    pub(super) sectors_max: u32,
    pub(super) chunk_sectors: u32,
    pub(super) device_sectors: u64,
    pub(super) virtual_boundary_mask: u64,
    pub(super) discard_alignment: u32,
    pub(super) discard_granularity: u32,
    pub(super) discard_sectors_max: u32,
    pub(super) zero_sectors_max: u32,
    pub(super) discard_segments_max: u16,
    pub(super) discard_reserved: u16,
    pub(super) reserved: u32,
}

/// `struct ublksrv_io_desc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Descriptor {
    /// The operation in the lowest byte, flags above.
    pub(super) operation: u32,
    pub(super) sectors: u32,
    pub(super) start_sector: u64,
    pub(super) address: u64,
}

/// `struct ublksrv_io_cmd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct QueueCommand {
    pub(super) queue: u16,
    pub(super) tag: u16,
    /// Bytes done, or a negated errno.
    pub(super) result: i32,
    /// Not used with [`FEATURE_USER_COPY`].
    pub(super) address: u64,
}

const _: () = {
    assert!(size_of::<ControlCommand>() == CONTROL_BYTES as usize);
    assert!(offset_of!(ControlCommand, buffer) == 8 && offset_of!(ControlCommand, data) == 16);
    assert!(offset_of!(ControlCommand, path_bytes) == 24);
    assert!(size_of::<DeviceInfo>() == 64);
    assert!(offset_of!(DeviceInfo, payload_bytes_max) == 8 && offset_of!(DeviceInfo, server) == 16);
    assert!(offset_of!(DeviceInfo, features) == 24 && offset_of!(DeviceInfo, identity) == 32);
    assert!(size_of::<Parameters>() == 64);
    assert!(offset_of!(Parameters, attributes) == 8 && offset_of!(Parameters, sectors_max) == 16);
    assert!(offset_of!(Parameters, device_sectors) == 24);
    assert!(offset_of!(Parameters, discard_alignment) == 40);
    assert!(offset_of!(Parameters, discard_segments_max) == 56);
    assert!(size_of::<Descriptor>() == 24 && offset_of!(Descriptor, start_sector) == 8);
    assert!(size_of::<QueueCommand>() == QUEUE_BYTES as usize);
    assert!(offset_of!(QueueCommand, tag) == 2 && offset_of!(QueueCommand, result) == 4);
};

impl ControlCommand {
    /// As the body of an entry of 128 bytes.
    pub(super) fn to_bytes(self) -> [u8; 80] {
        let mut bytes = [0; 80];
        bytes[..4].copy_from_slice(&self.device.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.queue.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.buffer_bytes.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.buffer.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.data.to_ne_bytes());
        bytes[24..26].copy_from_slice(&self.path_bytes.to_ne_bytes());
        bytes
    }
}

impl QueueCommand {
    /// As the body of an entry of 64 bytes.
    pub(super) fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&self.queue.to_ne_bytes());
        bytes[2..4].copy_from_slice(&self.tag.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.result.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.address.to_ne_bytes());
        bytes
    }
}

/// Where the payload of the request `tag` of the first queue has its byte `at`.
pub(super) fn payload_place(tag: u16, at: u64) -> u64 {
    debug_assert!(at >> PAYLOAD_BITS == 0, "a payload has at most 32 MiB");
    PAYLOADS_START + (u64::from(tag) << PAYLOAD_BITS) + at
}

const fn read(number: u32, bytes: u32) -> u32 {
    encoded(2, number, bytes)
}

const fn read_write(number: u32, bytes: u32) -> u32 {
    encoded(3, number, bytes)
}

/// As the macros `_IOR` and `_IOWR` with the type `u`.
const fn encoded(direction: u32, number: u32, bytes: u32) -> u32 {
    assert!(bytes < 1 << 14 && number < 1 << 8);
    direction << 30 | bytes << 16 | (b'u' as u32) << 8 | number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_numbers_of_the_kernels_header() {
        let control = [
            (GET_DEVICE_INFO, 0x8020_7502),
            (ADD_DEVICE, 0xc020_7504),
            (DELETE_DEVICE, 0xc020_7505),
            (START_DEVICE, 0xc020_7506),
            (STOP_DEVICE, 0xc020_7507),
            (SET_PARAMETERS, 0xc020_7508),
            (START_USER_RECOVERY, 0xc020_7510),
            (END_USER_RECOVERY, 0xc020_7511),
            (GET_FEATURES, 0x8020_7513),
        ];
        for (ours, kernels) in control {
            assert_eq!(ours, kernels, "{ours:#x} {kernels:#x}");
        }
        assert_eq!(FETCH_REQUEST, 0xc010_7520);
        assert_eq!(COMMIT_AND_FETCH_REQUEST, 0xc010_7521);
    }

    #[test]
    fn bodies_hold_the_fields_at_the_places_of_the_structures() {
        let command = QueueCommand { queue: 0, tag: 0x1234, result: -5, address: 0 };
        let mut expected = [0; 16];
        expected[2..4].copy_from_slice(&0x1234_u16.to_ne_bytes());
        expected[4..8].copy_from_slice(&(-5_i32).to_ne_bytes());
        assert_eq!(command.to_bytes(), expected);

        let command = ControlCommand {
            device: 7,
            queue: NO_QUEUE,
            buffer_bytes: 64,
            buffer: 0x1122_3344_5566_7788,
            data: 99,
            path_bytes: 0,
            padding: 0,
            reserved: 0,
        };
        let bytes = command.to_bytes();
        assert_eq!(bytes[..4], 7_u32.to_ne_bytes());
        assert_eq!(bytes[4..6], [0xff, 0xff]);
        assert_eq!(bytes[6..8], 64_u16.to_ne_bytes());
        assert_eq!(bytes[8..16], 0x1122_3344_5566_7788_u64.to_ne_bytes());
        assert_eq!(bytes[16..24], 99_u64.to_ne_bytes());
        assert!(bytes[24..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn payloads_lie_32_mib_apart() {
        assert_eq!(payload_place(0, 0), 0x8000_0000);
        assert_eq!(payload_place(0, 4096), 0x8000_1000);
        assert_eq!(payload_place(3, 512), 0x8000_0000 + 3 * (32 << 20) + 512);
    }
}
