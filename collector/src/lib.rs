//! The collector: journals change records and turns them into recovery points.

pub mod config;
pub mod control;
pub mod error;
pub mod seam;
