//! The ublk devices that this agent serves.
//!
//! In: a device of a volume that the kernel is about to ask. Out: a server for each, on a thread of
//! its own, which has the volume as every client of a frontend does. It ends with the device, or
//! with the agent; then the device waits for the next agent.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidemark_block::ExportList;
use tidemark_block::ublk::{Number, Server};

use super::served::Served;
use crate::attach::Serve;

/// See the module's documentation.
pub(super) struct Devices {
    exports: Arc<ExportList<Served>>,
    servers: Mutex<Vec<Server>>,
}

impl Devices {
    /// None yet, of the volumes that are served as `exports`.
    pub(super) fn new(exports: Arc<ExportList<Served>>) -> Self {
        Self { exports, servers: Mutex::new(Vec::new()) }
    }

    /// Ends all servers; see [`Server::stop`].
    pub(super) fn stop(&self) {
        let servers = std::mem::take(&mut *self.lock());
        servers.into_iter().for_each(Server::stop);
    }

    /// Lets go of those that have ended, with what the kernel may still wait for of one that failed.
    pub(super) fn reap(&self) {
        let ended: Vec<_> = self.lock().extract_if(.., |server| server.has_ended()).collect();
        ended.into_iter().for_each(Server::stop);
    }

    fn serve(&self, volume: &str, number: Number) -> io::Result<()> {
        let export = self.exports.get(volume).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("volume {volume:?} is not served"))
        })?;
        let server = Server::start(number, export.device)?;
        self.lock().push(server);
        Ok(())
    }

    // The list is whole between any two statements, so a poisoned lock is usable.
    fn lock(&self) -> MutexGuard<'_, Vec<Server>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The devices of one volume.
pub(super) struct OfVolume<'a> {
    pub(super) devices: &'a Devices,
    pub(super) volume: &'a str,
}

impl std::fmt::Debug for OfVolume<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("OfVolume").field(&self.volume).finish()
    }
}

impl Serve for OfVolume<'_> {
    fn serve(&self, number: Number) -> io::Result<()> {
        self.devices.serve(self.volume, number)
    }
}
