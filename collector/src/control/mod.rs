//! The control API: HTTP and JSON on a unix socket.

pub mod api;
pub mod client;
