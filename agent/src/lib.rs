//! The agent: serves protected disks, captures every write and ships it to a collector.
//!
//! The way of a write: a frontend of `tidemark_block` calls the [`volume`], which puts a record
//! into the change [`ring`] while the backing store writes; the [`shipper`] takes it from there
//! to the collector. [`capture`] is the stream that they share: the ring, and whether every
//! change is in it. [`copy`] brings a collector level that has no copy, or a gap. [`state`] is
//! what is kept across restarts, [`backing_mark`] tells whether a backing store was changed in
//! between. [`attach`] makes block devices of served volumes. [`daemon`] puts it all together, and
//! [`control`] is how a person asks the running one.

pub mod attach;
pub mod backing_mark;
pub mod capture;
pub mod clock;
pub mod config;
pub mod control;
pub mod copy;
pub mod daemon;
pub mod inspect;
pub mod intent_log;
pub mod random;
pub mod ring;
pub mod shipper;
pub mod state;
pub mod volume;
