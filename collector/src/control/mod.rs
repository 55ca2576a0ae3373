//! The control API: HTTP and JSON on a unix socket.
//!
//! What enters: requests of the operator's tool. What leaves: answers of [`api`], work that is
//! begun or ended. [`server`] decodes, calls and encodes; [`desk`] and its parts do what was
//! asked and are called without HTTP too. Running jobs live here and end with the daemon, exports
//! come back with the next one; what is to be remembered is in the catalog. [`upkeep`] does what
//! nobody asks for.

mod agents;
pub mod api;
pub mod client;
mod comparisons;
mod convert;
pub mod desk;
mod exports;
mod extract;
mod feed;
mod jobs;
mod life;
mod listener;
mod points;
mod restores;
mod schedule;
mod seeding;
mod segments;
pub mod server;
mod status;
pub mod upkeep;

pub use feed::{Feed, FeedTask};
pub(crate) use jobs::interruption;
