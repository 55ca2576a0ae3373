//! The handshake on a socket: reads options, sends what [`Negotiation`] answers.
//!
//! In: a fresh connection. Out: the export the client chose and what was agreed on. Bounded by the
//! number of options and the length of each; the caller bounds the time. A breach of the protocol
//! is an error, a client that leaves between two options is not.

use crate::chunk::Chunk;
use crate::device::Device;
use crate::engine::socket::{Parts, Stream};
use crate::exports::{Export, ExportList};

use super::error::{ConnectionError, Violation};
use super::inbox::socket_error;
use super::negotiation::{Negotiation, Next};
use super::option::{
    CLIENT_FLAGS_BYTES, OPTION_HEADER_BYTES, greeting, parse_client_flags, parse_option_header,
};
use super::request::Negotiated;

/// Options that one client may send; a client in good faith needs fewer than ten for each export.
const OPTIONS_MAX: u32 = 1024;

/// Leads a client to an export; `None` when it left.
pub(super) async fn handshake<D: Device>(
    stream: &Stream,
    exports: &ExportList<D>,
) -> Result<Option<(Export<D>, Negotiated)>, ConnectionError> {
    send(stream, &greeting()).await?;
    let Some(flags) = receive_array::<CLIENT_FLAGS_BYTES>(stream).await? else { return Ok(None) };
    let mut negotiation = Negotiation::new(exports, parse_client_flags(flags)?);
    for _ in 0..OPTIONS_MAX {
        let Some(header) = receive_array::<OPTION_HEADER_BYTES>(stream).await? else {
            return Ok(None);
        };
        let header = parse_option_header(&header)?;
        let data = receive(stream, header.data_bytes).await?;
        let answer = negotiation.apply(header.option, data.as_slice());
        send(stream, &answer.bytes).await?;
        match answer.next {
            Next::Option => {}
            Next::Close => return Ok(None),
            Next::NoSuchExport(name) => return Err(ConnectionError::NoSuchExport(name)),
            Next::Transmission(export, negotiated) => return Ok(Some((export, negotiated))),
        }
    }
    Err(Violation::TooManyOptions(OPTIONS_MAX).into())
}

async fn send(stream: &Stream, bytes: &[u8]) -> Result<(), ConnectionError> {
    if bytes.is_empty() {
        return Ok(());
    }
    let mut chunk = Chunk::zeroed(bytes.len());
    chunk.as_mut_slice().copy_from_slice(bytes);
    let mut parts = Parts::new();
    assert!(parts.push(chunk).is_ok(), "a new list has room");
    let (result, _) = stream.send_all(parts).await;
    result.map_err(socket_error("answering an option"))
}

async fn receive(stream: &Stream, bytes: usize) -> Result<Chunk, ConnectionError> {
    let chunk = Chunk::zeroed(bytes);
    if bytes == 0 {
        return Ok(chunk);
    }
    let (result, chunk) = stream.recv_exact(chunk).await;
    result.map_err(socket_error("receiving an option"))?;
    Ok(chunk)
}

/// `None` when the client hung up before or within; what it then meant to say does not matter.
async fn receive_array<const N: usize>(
    stream: &Stream,
) -> Result<Option<[u8; N]>, ConnectionError> {
    let (result, chunk) = stream.recv_exact(Chunk::zeroed(N)).await;
    match result {
        Ok(()) => Ok(chunk.as_slice().first_chunk::<N>().copied()),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(socket_error("receiving an option")(error)),
    }
}
