//! The collector: journals change records and turns them into recovery points.
//!
//! Change records enter from agents, are appended to a journal per volume, and are acknowledged
//! when they are on stable storage. Any state of a volume outside a span is read back through a
//! view: the journal's segments over the seed disk.

pub mod catalog;
pub mod config;
pub mod control;
pub mod daemon;
pub mod error;
pub mod export;
pub mod ingest;
pub mod journal;
pub mod merge;
pub mod points;
pub mod policy;
pub mod restore;
pub mod seam;
pub mod seed;
pub mod storage;
pub mod view;
