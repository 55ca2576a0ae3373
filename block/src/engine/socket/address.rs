//! Where to listen, and who called.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a [`super::Listener`] listens: `unix:/path` or `tcp:127.0.0.1:10809`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix stream socket at an absolute or relative path.
    Unix(PathBuf),
    /// TCP.
    Tcp(SocketAddr),
}

/// A text that is not an [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an address; write unix:/path/of/socket or tcp:127.0.0.1:10809")]
pub struct AddressError {
    text: String,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let parsed = if let Some(path) = text.strip_prefix("unix:") {
            (!path.is_empty()).then(|| Self::Unix(PathBuf::from(path)))
        } else if let Some(address) = text.strip_prefix("tcp:") {
            address.parse().ok().map(Self::Tcp)
        } else {
            None
        };
        parsed.ok_or_else(|| AddressError { text: text.to_owned() })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// Who is at the other end, for log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerName {
    /// A process of this machine, as it was when it connected.
    Unix {
        /// Its process id; 0 when it is in a namespace that can't be seen from here.
        pid: i32,
        /// Its user id.
        uid: u32,
    },
    /// Address and port.
    Tcp(SocketAddr),
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { pid, uid } => write!(f, "process {pid} of user {uid}"),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_they_are_written() {
        for text in ["unix:/run/tidemark/nbd.sock", "tcp:127.0.0.1:10809", "tcp:[::1]:1"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["", "unix:", "tcp:localhost:1", "tcp:127.0.0.1", "/run/x", "udp:1.2.3.4:5"] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
