//! A block device and the ways to serve one. This crate knows nothing of protection.
//!
//! - [`device`]: the trait that every disk implements and every frontend calls;
//! - [`engine`]: one-threaded executors on io_uring, files and sockets on them;
//! - [`store`]: the file or block device behind a disk; [`file_device`]: a disk that is just that;
//! - [`range_lock`]: overlapping changes one after the other;
//! - [`exports`]: the disks served, by name;
//! - [`nbd`]: the NBD server; [`fuse`]: the directory with one file per disk; [`ublk`]: block
//!   devices of this machine.

#![allow(
    clippy::disallowed_methods,
    reason = "engine and frontends stand before the kernel, outside of what is simulated: the \
              simulator replaces them at the traits Store and Device"
)]

pub mod chunk;
pub mod device;
pub mod engine;
pub mod exports;
pub mod file_device;
pub mod fuse;
pub mod nbd;
pub mod range;
pub mod range_lock;
pub mod store;
pub mod ublk;

pub use chunk::{Chunk, ChunkOwner};
pub use device::{
    Device, DeviceError, Durability, Geometry, PAYLOAD_BYTES_MAX, Payload, StatusExtent,
    ZeroOptions, check_range, check_read, check_write,
};
pub use exports::{Export, ExportError, ExportList};
pub use range::ByteRange;
