//! Takes change records from agents and makes them durable.
//!
//! What enters: connections of agents. What leaves: records appended to the volumes' journals,
//! and acknowledgements of what was synced, never of what was received.
//!
//! - [`session`]: the state machine of one session, pure;
//! - [`owner`]: the one owner of a volume's journal and manifest, without threads;
//!   [`admission`]: how it lets an agent in; [`contest`]: when two say that they are the same;
//!   [`unsure`]: what one that was put back may not remember; [`volume`]: what everybody may see of
//!   it;
//! - [`spans`]: what people are told of gaps and copies;
//! - [`change`]: what a person decides of a volume, and how that takes effect;
//! - [`erase`]: the end of a retired volume;
//! - [`writer`]: its thread, and the group commit; [`volumes`]: all of them;
//! - [`compare`]: what differs from an agent's disk, and the thread that looks;
//! - [`server`]: sockets and threads; [`port`]: the way back to a session;
//! - [`manifest`]: what is known of a volume for good; [`observer`]: who is told.

mod admission;
pub mod change;
pub mod compare;
pub mod connection;
mod contest;
mod early;
pub mod erase;
pub mod manifest;
pub mod observer;
pub mod owner;
pub mod port;
pub mod seeding;
pub mod server;
pub mod session;
pub mod socket;
mod spans;
mod unsure;
pub mod volume;
pub mod volumes;
pub mod writer;
