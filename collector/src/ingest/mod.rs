//! Takes change records from agents and makes them durable.
pub mod session;
