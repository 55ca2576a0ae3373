//! A witness of its own: it writes to a protected disk, keeps a log outside, and later decides
//! whether what Tidemark gives back is what the log allows. It shares no code with Tidemark.
//!
//! [`writer`] does the writing, as [`plan`] says, with bytes that name their operation
//! ([`pattern`]), and keeps the [`log`]. [`verdict`] holds the reasoning: which bytes a state may
//! have. [`records`] holds the journal's records against the log, [`views`] the states that the
//! collector serves.

pub(crate) mod command;
mod log;
mod moment;
mod pattern;
mod plan;
mod records;
mod verdict;
mod views;
mod writer;
