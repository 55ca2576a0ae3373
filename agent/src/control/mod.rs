//! The running agent's control socket: what a person asks of it, and what it answers.
//!
//! One line of JSON goes in and one comes back ([`api`]). [`server`] takes lines from a unix socket
//! that only its owner can open and hands them to whoever answers; [`client`] asks, [`render`]
//! shows a list. None of them knows what a request means, that is the daemon's. Nothing is kept,
//! so a crash loses an answer and no more.

pub mod api;
pub mod client;
pub mod render;
pub mod server;
