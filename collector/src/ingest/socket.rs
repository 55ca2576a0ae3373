//! Stream sockets of both sorts that agents connect by, behind one face.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::Address;
use crate::error::{Failure, Result};

/// A listening socket. A unix socket's file is removed when it is dropped.
pub struct Listener {
    sort: Sort<UnixListener, TcpListener>,
    address: Address,
}

/// A connection.
pub struct Stream(Sort<UnixStream, TcpStream>);

enum Sort<U, T> {
    Unix(U),
    Tcp(T),
}

impl Listener {
    /// Listens at an address of this machine.
    ///
    /// # Errors
    /// `Invalid` for an address that others can reach, `Conflict` when somebody listens there.
    pub fn bind(address: &Address) -> Result<Self> {
        let failed = |source: io::Error| {
            let kind = source.kind();
            let failure = Failure::unavailable(format!("can't listen on {address}: {source}"));
            match kind {
                io::ErrorKind::AddrInUse => {
                    failure.with_hint("another program listens there; stop it or choose another")
                }
                io::ErrorKind::AlreadyExists => failure.with_hint(
                    "a file that is not a socket is there; remove it or choose another path",
                ),
                io::ErrorKind::NotFound => failure.with_hint("make the directory first"),
                _ => failure,
            }
            .because(source)
        };
        match address {
            Address::Unix(path) => {
                let sort = Sort::Unix(bind_unix(path).map_err(failed)?);
                Ok(Self { sort, address: address.clone() })
            }
            Address::Tcp(wanted) if wanted.ip().is_loopback() => {
                let listener = TcpListener::bind(wanted).map_err(failed)?;
                let address = Address::Tcp(listener.local_addr().map_err(failed)?);
                Ok(Self { sort: Sort::Tcp(listener), address })
            }
            Address::Tcp(_) => Err(Failure::invalid(format!(
                "{address} can be reached from other machines, and agents are not yet asked for \
                 a certificate"
            ))
            .with_hint("use a loopback address or a unix socket")),
        }
    }

    /// Where it listens, with the port that was chosen.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Waits for a connection; returns it with the name of the peer.
    ///
    /// # Errors
    /// The operating system's; always after [`Listener::wake`].
    pub fn accept(&self) -> io::Result<(Stream, String)> {
        match &self.sort {
            Sort::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                let who = nix::sys::socket::getsockopt(
                    &stream,
                    nix::sys::socket::sockopt::PeerCredentials,
                )?;
                let name = format!("process {} of user {}", who.pid(), who.uid());
                Ok((Stream(Sort::Unix(stream)), name))
            }
            Sort::Tcp(listener) => {
                let (stream, address) = listener.accept()?;
                stream.set_nodelay(true)?;
                Ok((Stream(Sort::Tcp(stream)), address.to_string()))
            }
        }
    }

    /// Makes a waiting and every later [`Listener::accept`] fail.
    ///
    /// # Errors
    /// The operating system's.
    pub fn wake(&self) -> io::Result<()> {
        let fd: RawFd = match &self.sort {
            Sort::Unix(listener) => listener.as_raw_fd(),
            Sort::Tcp(listener) => listener.as_raw_fd(),
        };
        Ok(nix::sys::socket::shutdown(fd, nix::sys::socket::Shutdown::Both)?)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Binds a unix socket that only this user can connect to. A file left by a dead program is
/// replaced, one that somebody listens on is not.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    use nix::sys::socket as sys;

    remove_stale(path)?;
    let fd = sys::socket(
        sys::AddressFamily::Unix,
        sys::SockType::Stream,
        sys::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    sys::bind(fd.as_raw_fd(), &sys::UnixAddr::new(path)?)?;
    // Nobody can connect before `listen`, so the mode is right from the first connection on.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    sys::listen(&fd, sys::Backlog::new(64)?)?;
    Ok(fd.into())
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => return Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(PathBuf::from(path))
        }
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

impl Stream {
    /// A second handle of the same connection.
    ///
    /// # Errors
    /// The operating system's.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(match &self.0 {
            Sort::Unix(stream) => Sort::Unix(stream.try_clone()?),
            Sort::Tcp(stream) => Sort::Tcp(stream.try_clone()?),
        }))
    }

    /// Bounds the wait of one write.
    ///
    /// # Errors
    /// The operating system's.
    pub fn set_write_timeout(&self, limit: Duration) -> io::Result<()> {
        match &self.0 {
            Sort::Unix(stream) => stream.set_write_timeout(Some(limit)),
            Sort::Tcp(stream) => stream.set_write_timeout(Some(limit)),
        }
    }

    /// Ends one or both directions; wakes whoever waits in a read. A connection that is gone
    /// already stays so.
    pub fn shutdown(&self, how: Shutdown) {
        let _ = match &self.0 {
            Sort::Unix(stream) => stream.shutdown(how),
            Sort::Tcp(stream) => stream.shutdown(how),
        };
    }
}

impl Read for &Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match &self.0 {
            Sort::Unix(stream) => {
                let mut stream = stream;
                stream.read(bytes)
            }
            Sort::Tcp(stream) => {
                let mut stream = stream;
                stream.read(bytes)
            }
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.0 {
            Sort::Unix(stream) => {
                let mut stream = stream;
                stream.write(bytes)
            }
            Sort::Tcp(stream) => {
                let mut stream = stream;
                stream.write(bytes)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
