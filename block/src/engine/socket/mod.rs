//! Stream sockets, unix and TCP, on the ring.
//!
//! A [`Listener`] gives [`Stream`]s; a stream is received from by one task and sent to by one
//! task at a time, which may be different ones. Nothing is buffered here.

mod address;
mod listener;
mod stream;
#[cfg(test)]
mod tests;

pub use address::{Address, AddressError, PeerName};
pub use listener::Listener;
pub use stream::{PARTS_MAX, Parts, Stream};
