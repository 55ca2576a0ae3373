//! The control API: HTTP and JSON on a unix socket.
//!
//! What enters: requests of the operator's tool. What leaves: answers of [`api`], work that is
//! begun or ended. [`server`] decodes, calls and encodes; [`desk`] and its parts do what was
//! asked and are called without HTTP too. Exports and running jobs live here and end with the
//! daemon; what is to be remembered is in the catalog.

pub mod api;
pub mod client;
mod convert;
pub mod desk;
mod exports;
mod extract;
mod feed;
mod jobs;
mod listener;
mod restores;
pub mod server;
mod status;
mod volumes;

pub use feed::{Feed, FeedTask};
pub(crate) use jobs::interruption;
