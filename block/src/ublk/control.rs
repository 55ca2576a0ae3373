//! Commands about devices.
//!
//! They go to the driver over a small ring of their own, whose entries are twice as large as those
//! of an executor, one at a time. A call returns when the driver has done it, which for some may
//! take until a server has answered; they are not for an executor's thread.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::abi::{self, ControlCommand, DeviceInfo, Parameters};
use super::{Doing, Number, PAYLOAD_BYTES_MAX, REQUESTS_MAX, UblkError};

/// All that a device needs.
const FEATURES: u64 = abi::FEATURE_USER_RECOVERY
    | abi::FEATURE_USER_RECOVERY_REISSUE
    | abi::FEATURE_COMMAND_ENCODING
    | abi::FEATURE_USER_COPY;

/// Smallest unit in which a disk is asked to write, in bytes, where its blocks are smaller.
const PHYSICAL_BLOCK_BYTES: u32 = 4096;

/// Longest discard and zeroing: as long as a request can be. They carry no payload.
const RANGE_SECTORS_MAX: u32 = (u32::MAX >> 9) & !7;

/// What the driver has to know of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its size; what is behind the last whole block can't be reached.
    pub size_bytes: u64,
    /// Its block size, a power of two from 512 to 4096.
    pub block_bytes: u32,
}

/// What a device does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is not started yet, or stopped.
    Dead,
    /// It is served, or its server has died a moment ago.
    Live,
    /// It has no server; what is asked of it waits.
    Waiting,
    /// Something that this process never lets a device come to.
    Other(u16),
}

/// How a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What it does.
    pub state: State,
    /// What [`Control::add`] gave it.
    pub identity: u64,
}

/// The way to the driver.
pub struct Control {
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    file: File,
}

impl Control {
    /// Opens it.
    ///
    /// # Errors
    /// What is missing.
    pub fn open() -> Result<Self, UblkError> {
        let file = OpenOptions::new().read(true).write(true).open(abi::CONTROL_PATH);
        let file = file.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => UblkError::Missing,
            _ => UblkError::Closed { source },
        })?;
        let ring = IoUring::builder().dontfork().build(1);
        let ring = ring.map_err(|source| UblkError::Ring { source })?;
        Ok(Self { ring, file })
    }

    /// Refuses a driver that can't do what a device needs.
    ///
    /// # Errors
    /// [`UblkError::Old`], or what the driver said.
    pub fn check_features(&mut self) -> Result<(), UblkError> {
        let mut features = 0_u64;
        let asked = self.with_buffer(abi::GET_FEATURES, abi::ANY_DEVICE, &mut features);
        match asked {
            Ok(()) if features & FEATURES == FEATURES => Ok(()),
            Ok(()) => Err(UblkError::Old),
            Err(error) => match error.raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENODEV) => Err(UblkError::Old),
                _ => Err(refused(Doing::Features)(error)),
            },
        }
    }

    /// Makes a device that is not started; `identity` is for its maker to know it again.
    ///
    /// # Errors
    /// The driver's.
    pub fn add(&mut self, identity: u64) -> Result<Number, UblkError> {
        let mut info = DeviceInfo {
            queues: 1,
            queue_depth: REQUESTS_MAX,
            payload_bytes_max: PAYLOAD_BYTES_MAX,
            device: abi::ANY_DEVICE,
            features: FEATURES,
            identity,
            ..DeviceInfo::default()
        };
        self.with_buffer(abi::ADD_DEVICE, abi::ANY_DEVICE, &mut info)
            .map_err(refused(Doing::Add))?;
        Ok(Number(info.device))
    }

    /// Tells size and limits of a device that is not started.
    ///
    /// # Errors
    /// The driver's.
    pub fn set_shape(&mut self, number: Number, shape: &Shape) -> Result<(), UblkError> {
        self.with_buffer(abi::SET_PARAMETERS, number.0, &mut parameters(shape))
            .map_err(refused(Doing::SetShape))
    }

    /// How a device is; `None` when there is none of this number.
    ///
    /// # Errors
    /// The driver's.
    pub fn look(&mut self, number: Number) -> Result<Option<Standing>, UblkError> {
        let mut info = DeviceInfo::default();
        match self.with_buffer(abi::GET_DEVICE_INFO, number.0, &mut info) {
            Ok(()) => Ok(Some(Standing { state: state(info.state), identity: info.identity })),
            // The kernel has had either for a number that nobody has.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => {
                Ok(None)
            }
            Err(error) => Err(refused(Doing::Look)(error)),
        }
    }

    /// Starts a device. Returns when the kernel has looked for partitions on it, which its server
    /// has to answer.
    ///
    /// # Errors
    /// The driver's.
    pub fn start(&mut self, number: Number) -> Result<(), UblkError> {
        self.plain(abi::START_DEVICE, number, process()).map_err(refused(Doing::Start))
    }

    /// Begins to give a device whose server has died to another one, which may serve it then;
    /// false while the kernel is not done with the old one.
    ///
    /// # Errors
    /// The driver's.
    pub fn begin_recovery(&mut self, number: Number) -> Result<bool, UblkError> {
        match self.plain(abi::START_USER_RECOVERY, number, 0) {
            Ok(()) => Ok(true),
            Err(error) => match error.raw_os_error() {
                Some(libc::EBUSY) => Ok(false),
                // It was begun already, by one that was killed in the middle of it.
                Some(libc::EINVAL) if self.waits(number) => Ok(true),
                _ => Err(refused(Doing::Recover)(error)),
            },
        }
    }

    /// Ends it: returns when the new server serves, and the kernel asks it what has waited.
    ///
    /// # Errors
    /// The driver's.
    pub fn end_recovery(&mut self, number: Number) -> Result<(), UblkError> {
        self.plain(abi::END_USER_RECOVERY, number, process()).map_err(refused(Doing::Recover))
    }

    /// Stops a device: what is still asked of it fails, and its server ends.
    ///
    /// # Errors
    /// The driver's.
    pub fn stop(&mut self, number: Number) -> Result<(), UblkError> {
        self.plain(abi::STOP_DEVICE, number, 0).map_err(refused(Doing::Stop))
    }

    /// Deletes a device. Returns when nobody has it open any more and its server has ended.
    ///
    /// # Errors
    /// The driver's.
    pub fn delete(&mut self, number: Number) -> Result<(), UblkError> {
        self.plain(abi::DELETE_DEVICE, number, 0).map_err(refused(Doing::Delete))
    }

    fn waits(&mut self, number: Number) -> bool {
        self.look(number).is_ok_and(|found| found.is_some_and(|it| it.state == State::Waiting))
    }

    /// A command with a buffer that the driver reads or fills.
    fn with_buffer<T>(&mut self, number: u32, device: u32, buffer: &mut T) -> io::Result<()> {
        let address = std::ptr::from_mut(buffer).expose_provenance() as u64;
        let bytes = u16::try_from(size_of::<T>()).expect("buffers are small");
        self.run(
            number,
            &ControlCommand { buffer_bytes: bytes, buffer: address, ..command(device) },
        )
    }

    /// A command with a number.
    fn plain(&mut self, number: u32, device: Number, data: u64) -> io::Result<()> {
        self.run(number, &ControlCommand { data, ..command(device.0) })
    }

    /// Gives a command to the driver and waits for its end, however often that is interrupted: the
    /// driver may still use the command's buffer until then.
    fn run(&mut self, number: u32, command: &ControlCommand) -> io::Result<()> {
        let entry = opcode::UringCmd80::new(types::Fd(self.file.as_raw_fd()), number)
            .cmd(command.to_bytes())
            .build();
        // SAFETY: the buffer that the entry names, if any, is a `&mut` of the caller, which this
        // function outlasts no completion of: it returns only after that. The queue is empty.
        unsafe { self.ring.submission().push(&entry) }.expect("one command at a time");
        loop {
            let waited = self.ring.submit_and_wait(1);
            if let Some(completion) = self.ring.completion().next() {
                let result = completion.result();
                return if result < 0 {
                    Err(io::Error::from_raw_os_error(-result))
                } else {
                    Ok(())
                };
            }
            if let Err(error) = waited {
                let is_passing =
                    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY));
                assert!(is_passing, "io_uring_enter on a ring of this thread: {error}");
            }
        }
    }
}

fn command(device: u32) -> ControlCommand {
    ControlCommand {
        device,
        queue: abi::NO_QUEUE,
        buffer_bytes: 0,
        buffer: 0,
        data: 0,
        path_bytes: 0,
        padding: 0,
        reserved: 0,
    }
}

fn process() -> u64 {
    u64::from(std::process::id())
}

fn refused(doing: Doing) -> impl Fn(io::Error) -> UblkError {
    move |source| UblkError::Refused { doing, source }
}

fn state(number: u16) -> State {
    match number {
        abi::STATE_DEAD => State::Dead,
        abi::STATE_LIVE => State::Live,
        abi::STATE_QUIESCED => State::Waiting,
        other => State::Other(other),
    }
}

fn parameters(shape: &Shape) -> Parameters {
    let physical = shape.block_bytes.max(PHYSICAL_BLOCK_BYTES);
    let shift = |bytes: u32| u8::try_from(bytes.ilog2()).expect("at most 31");
    let sectors = |bytes: u64| bytes / abi::SECTOR_BYTES;
    let whole_blocks = shape.size_bytes - shape.size_bytes % u64::from(shape.block_bytes);
    Parameters {
        bytes: u32::try_from(size_of::<Parameters>()).expect("a small structure"),
        kinds: abi::PARAMETERS_BASIC | abi::PARAMETERS_DISCARD,
        attributes: abi::ATTRIBUTE_VOLATILE_CACHE | abi::ATTRIBUTE_FUA,
        logical_block_shift: shift(shape.block_bytes),
        physical_block_shift: shift(physical),
        io_best_shift: shift(physical),
        io_min_shift: shift(physical),
        sectors_max: PAYLOAD_BYTES_MAX >> 9,
        device_sectors: sectors(whole_blocks),
        discard_granularity: shape.block_bytes,
        discard_sectors_max: RANGE_SECTORS_MAX,
        zero_sectors_max: RANGE_SECTORS_MAX,
        discard_segments_max: 1,
        ..Parameters::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_its_blocks_its_cache_and_its_whole_size() {
        let made = parameters(&Shape { size_bytes: (1 << 30) + 700, block_bytes: 512 });
        assert_eq!((made.logical_block_shift, made.physical_block_shift), (9, 12));
        assert_eq!(made.device_sectors, (1 << 21) + 1);
        assert_eq!(made.attributes, 0b1100, "volatile cache and FUA, not read-only");
        assert_eq!(made.sectors_max, 2048);
        assert_eq!((made.bytes, made.kinds), (64, 3));
        assert_eq!(made.discard_segments_max, 1);
        assert!(u64::from(made.discard_sectors_max) << 9 < 1 << 32, "a request has 32 bits of it");
        assert_eq!(made.discard_sectors_max, 0x7f_fff8, "whole blocks, 4 GiB less one");

        let made = parameters(&Shape { size_bytes: (1 << 20) + 700, block_bytes: 4096 });
        assert_eq!((made.logical_block_shift, made.physical_block_shift), (12, 12));
        assert_eq!(made.device_sectors, 1 << 11);
    }

    #[test]
    fn a_machine_without_the_driver_says_so() {
        if std::path::Path::new(abi::CONTROL_PATH).exists() {
            return;
        }
        let error = Control::open().err().expect("no driver");
        assert!(error.to_string().contains("/dev/ublk-control is missing"), "{error}");
    }
}
