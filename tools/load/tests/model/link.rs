//! The shipper's connection, made worse: slow, or lost in the middle of a frame.

use std::io::{self, IoSlice, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidemark_agent::shipper::link::{Dial, Link, SocketDial};

use super::plan::LinkSort;

/// Connections of one case that are lost, at most; the next one holds.
const CUTS_MAX: u64 = 6;

/// Dials as [`SocketDial`] does.
pub(crate) struct WorseDial {
    pub(crate) dial: SocketDial,
    pub(crate) sort: LinkSort,
    /// Connections that were lost so far.
    pub(crate) cuts: Arc<AtomicU64>,
}

impl Dial for WorseDial {
    fn dial(&self) -> io::Result<Link> {
        let Link { reader, writer, closer } = self.dial.dial()?;
        // Relaxed: a count that orders nothing.
        let cuts = self.cuts.load(Ordering::Relaxed);
        let writer: Box<dyn Write + Send> = match self.sort {
            LinkSort::Steady => writer,
            LinkSort::Slow { millis } => {
                Box::new(SlowWriter { writer, pause: Duration::from_millis(millis) })
            }
            LinkSort::Cutting { .. } if cuts >= CUTS_MAX => writer,
            LinkSort::Cutting { after_bytes } => {
                // Every connection gets somewhat further than the one before.
                let left = after_bytes + cuts * 7919;
                Box::new(CutWriter { writer, left, cuts: Arc::clone(&self.cuts) })
            }
        };
        Ok(Link { reader, writer, closer })
    }

    fn peer(&self) -> String {
        self.dial.peer()
    }
}

struct SlowWriter {
    writer: Box<dyn Write + Send>,
    pause: Duration,
}

impl Write for SlowWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        std::thread::sleep(self.pause);
        self.writer.write(bytes)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        std::thread::sleep(self.pause);
        self.writer.write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

struct CutWriter {
    writer: Box<dyn Write + Send>,
    left: u64,
    cuts: Arc<AtomicU64>,
}

impl CutWriter {
    fn cut(&self) -> io::Error {
        self.cuts.fetch_add(1, Ordering::Relaxed);
        io::ErrorKind::ConnectionReset.into()
    }
}

impl Write for CutWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left == 0 && !bytes.is_empty() {
            return Err(self.cut());
        }
        let len = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let sent = self.writer.write(&bytes[..len])?;
        self.left -= sent as u64;
        Ok(sent)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        // The first part alone may be all that fits; whoever writes goes on from there.
        match parts.iter().find(|part| !part.is_empty()) {
            Some(part) => self.write(part),
            None => Ok(0),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
