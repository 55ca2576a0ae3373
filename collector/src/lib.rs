//! The collector: journals change records and turns them into recovery points.

pub mod control;
