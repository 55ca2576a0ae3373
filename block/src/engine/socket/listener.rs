//! Listening sockets.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use io_uring::{opcode, squeue, types};
use nix::sys::socket::{getsockopt, sockopt};

use super::address::{Address, PeerName};
use super::stream::Stream;
use crate::engine::op::{Op, Operation};

/// A listening socket. A unix one takes its file away when it is dropped.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    address: Address,
    _socket_file: Option<SocketFile>,
}

/// The file of a unix socket and the inode that this listener made there.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another listener may have taken the path over; its file stays.
        let same = fs::symlink_metadata(&self.path)
            .is_ok_and(|now| (now.dev(), now.ino()) == self.device_and_inode);
        if same && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "socket file is left behind");
        }
    }
}

impl Listener {
    /// Binds and listens. The file of a unix socket on which nobody listens any more is replaced.
    /// TCP port 0 asks for a free port; see [`Listener::address`].
    ///
    /// # Errors
    /// `InvalidInput` for a TCP address that is not loopback, since there are no certificates
    /// yet; `AddrInUse` when somebody listens there; `AlreadyExists` when a file that is no socket is in
    /// the way; otherwise the operating system's, all with the address in the text.
    pub fn bind(address: &Address) -> io::Result<Self> {
        let bound = match address {
            Address::Unix(path) => bind_unix(path),
            Address::Tcp(at) if !at.ip().is_loopback() => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "only loopback addresses can be listened on; use 127.0.0.1, [::1] or unix:/path",
            )),
            Address::Tcp(at) => bind_tcp(*at),
        };
        bound.map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))
    }

    /// Where it listens, with the port that was found.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The next connection.
    ///
    /// # Errors
    /// The operating system's, such as too many open files; the listener stays usable, after a
    /// pause.
    pub async fn accept(&self) -> io::Result<(Stream, PeerName)> {
        let accept = Accept { listener: self.fd.as_fd() };
        let descriptor = Op::new(accept).await.0?;
        let fd = accepted(descriptor);
        match &self.address {
            Address::Unix(_) => {
                let peer = getsockopt(&fd, sockopt::PeerCredentials)?;
                Ok((Stream::from_fd(fd), PeerName::Unix { pid: peer.pid(), uid: peer.uid() }))
            }
            Address::Tcp(_) => {
                let socket = std::net::TcpStream::from(fd);
                socket.set_nodelay(true)?;
                let peer = socket.peer_addr()?;
                Ok((Stream::from_fd(socket.into()), PeerName::Tcp(peer)))
            }
        }
    }
}

/// For who accepts on a thread of its own instead of an executor.
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn bind_tcp(at: std::net::SocketAddr) -> io::Result<Listener> {
    let socket = TcpListener::bind(at)?;
    let address = Address::Tcp(socket.local_addr()?);
    Ok(Listener { fd: socket.into(), address, _socket_file: None })
}

fn bind_unix(path: &Path) -> io::Result<Listener> {
    let socket = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path)?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    let made = fs::symlink_metadata(path)?;
    let socket_file =
        SocketFile { path: path.to_owned(), device_and_inode: (made.dev(), made.ino()) };
    Ok(Listener {
        fd: socket.into(),
        address: Address::Unix(path.to_owned()),
        _socket_file: Some(socket_file),
    })
}

/// Removes a socket file on which nobody listens.
fn remove_stale(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is a file that is not a socket; remove it or choose another path",
        ));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process listens there; stop it or choose another path",
        )),
    }
}

struct Accept<'a> {
    listener: BorrowedFd<'a>,
}

// SAFETY: the entry points to no memory: the peer's address is not asked for.
unsafe impl Operation for Accept<'_> {
    fn entry(&mut self) -> squeue::Entry {
        opcode::Accept::new(
            types::Fd(self.listener.as_raw_fd()),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
        .flags(libc::SOCK_CLOEXEC)
        .build()
    }

    fn discard(&mut self, result: io::Result<u32>) {
        if let Ok(descriptor) = result {
            drop(accepted(descriptor));
        }
    }
}

fn accepted(descriptor: u32) -> OwnedFd {
    let raw = i32::try_from(descriptor).expect("the kernel's result was not negative");
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}
