//! How a payload is stored: as it is, or compressed where that makes it smaller.

use crate::error::{DecodeError, DecodeErrorKind};
use crate::limits::RECORD_PAYLOAD_BYTES_MAX;

/// How the payload of a record is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// As it is.
    Raw = 0,
    /// One raw Snappy block.
    Snappy = 1,
}

impl Codec {
    /// From its byte in a record header.
    ///
    /// # Errors
    /// `Field` when no codec has this number.
    pub fn from_byte(byte: u8) -> Result<Self, DecodeError> {
        match byte {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Snappy),
            other => Err(DecodeError::field("record header", format!("codec {other} is unknown"))),
        }
    }
}

/// Compresses payloads, reusing its memory.
pub struct Compressor {
    encoder: snap::raw::Encoder,
    out: Vec<u8>,
}

impl Default for Compressor {
    fn default() -> Self {
        let room = snap::raw::max_compress_len(RECORD_PAYLOAD_BYTES_MAX as usize);
        Self { encoder: snap::raw::Encoder::new(), out: vec![0; room] }
    }
}

impl Compressor {
    /// The compressed payload, or `None` when it saves less than one part in eight (then it is
    /// not worth the work of expanding it on every read).
    ///
    /// # Panics
    /// When the payload is longer than [`RECORD_PAYLOAD_BYTES_MAX`]: a programmer's mistake.
    pub fn compress(&mut self, payload: &[u8]) -> Option<&[u8]> {
        assert!(payload.len() <= RECORD_PAYLOAD_BYTES_MAX as usize, "payload beyond its limit");
        let len = self.encoder.compress(payload, &mut self.out).ok()?;
        (len <= payload.len() - payload.len() / 8).then(|| &self.out[..len])
    }
}

/// Expands a stored payload into `out`, which gets exactly `payload_bytes` bytes.
///
/// # Errors
/// `Field` when the stored bytes are not what the codec makes, or of another length.
pub fn expand(
    codec: Codec,
    stored: &[u8],
    payload_bytes: u32,
    out: &mut Vec<u8>,
) -> Result<(), DecodeError> {
    let want = payload_bytes as usize;
    if payload_bytes > RECORD_PAYLOAD_BYTES_MAX {
        return Err(DecodeError::new(DecodeErrorKind::Limit, "payload", format!("{want} bytes")));
    }
    out.clear();
    match codec {
        Codec::Raw => out.extend_from_slice(stored),
        Codec::Snappy => {
            let bad = |e: snap::Error| DecodeError::field("compressed payload", e.to_string());
            let len = snap::raw::decompress_len(stored).map_err(bad)?;
            if len != want {
                let detail = format!("expands to {len} bytes instead of {want}");
                return Err(DecodeError::field("compressed payload", detail));
            }
            out.resize(want, 0);
            snap::raw::Decoder::new().decompress(stored, out).map_err(bad)?;
        }
    }
    if out.len() == want {
        Ok(())
    } else {
        Err(DecodeError::field("payload", format!("{} bytes instead of {want}", out.len())))
    }
}
