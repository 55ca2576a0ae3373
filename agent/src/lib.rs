//! The agent: serves protected disks, captures every write and ships it to a collector.

pub mod clock;
pub mod ring;
