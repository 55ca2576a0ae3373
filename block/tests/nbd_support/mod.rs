//! What the tests of the NBD server share: a disk in memory with faults on demand, a server on a
//! unix socket in a temporary folder, and a client that says exactly what a test tells it.
//!
//! The client knows the protocol by numbers of its own, so a wrong number in the server shows.
#![allow(dead_code, unused_imports, unreachable_pub, reason = "each test binary uses a part")]

mod client;
mod memory_disk;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidemark_block::engine::socket::{Address, Listener};
use tidemark_block::engine::{ExecutorConfig, Workers};
use tidemark_block::nbd::{Server, ServerConfig, ServerStats};
use tidemark_block::{Device, Export, ExportList};

pub use client::{Chunk, Client, OptionReply, cmd, err, flag, opt, rep};
pub use memory_disk::{MemoryDisk, Shape};

/// A server with its workers, taken down when dropped.
pub struct Fixture<D: Device = MemoryDisk> {
    pub exports: Arc<ExportList<D>>,
    /// The second way in.
    pub tcp: SocketAddr,
    server: Option<Server<D>>,
    workers: Option<Workers>,
    folder: tempfile::TempDir,
}

impl<D: Device> Fixture<D> {
    /// Serves one disk under a name.
    pub fn with_disk(name: &str, disk: Arc<D>) -> Self {
        Self::with_config(name, disk, ServerConfig::default())
    }

    pub fn with_config(name: &str, disk: Arc<D>, config: ServerConfig) -> Self {
        Self::with_executors(name, disk, config, ExecutorConfig::default())
    }

    pub fn with_executors(
        name: &str,
        disk: Arc<D>,
        config: ServerConfig,
        executors: ExecutorConfig,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = folder.path().join("nbd.sock");
        let listener = Listener::bind(&Address::Unix(socket)).expect("a socket in a fresh folder");
        let any_port = "tcp:127.0.0.1:0".parse().expect("a valid address");
        let tcp_listener = Listener::bind(&any_port).expect("a free port");
        let Address::Tcp(tcp) = *tcp_listener.address() else { panic!("bound to TCP") };
        let exports = Arc::new(ExportList::new());
        let description = format!("the test's disk {name}");
        let export = Export { name: name.to_owned(), description, device: disk };
        exports.add(export).expect("a valid name");
        let workers = Workers::start("nbd-test", 2, executors).expect("io_uring works here");
        let server = Server::start(
            Arc::clone(&exports),
            vec![listener, tcp_listener],
            &workers.handle(),
            config,
        );
        Self { exports, tcp, server: Some(server), workers: Some(workers), folder }
    }

    pub fn add(&self, name: &str, description: &str, disk: Arc<D>) {
        let (name, description) = (name.to_owned(), description.to_owned());
        self.exports.add(Export { name, description, device: disk }).expect("a valid name");
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("nbd.sock")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The address as libnbd and QEMU write it.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    pub fn connect(&self) -> Client {
        Client::connect(&self.socket())
    }

    pub fn stats(&self) -> ServerStats {
        self.server.as_ref().expect("still running").stats()
    }

    /// Stops the server; the fixture then only keeps the folder.
    pub fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop();
        }
    }

    /// Waits for a condition on the server's figures.
    pub fn wait_for(&self, what: &str, condition: impl Fn(ServerStats) -> bool) {
        wait_for(what, || condition(self.stats()));
    }
}

impl<D: Device> Drop for Fixture<D> {
    fn drop(&mut self) {
        self.stop();
        if let Some(workers) = self.workers.take() {
            workers.shutdown();
        }
    }
}

/// Waits up to ten seconds.
pub fn wait_for(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{what} did not come about within ten seconds");
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(step).take(len).collect()
}
