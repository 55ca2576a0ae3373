//! Reads that do not fit into one buffer, or that may contain holes.
//!
//! Memory is bounded whatever the length is: the disk is read piece by piece, and each piece is
//! handed to the writer before the next one is read.

use crate::chunk::Chunk;
use crate::device::{Device, DeviceError, StatusExtent};
use crate::range::ByteRange;

use super::commands::refuse;
use super::connection::Connection;
use super::error::{Access, ConnectionError, Refusal};
use super::pieces::{cut, cut_piece};
use super::reply::{EXTENTS_MAX, Reply};
use super::reply_queue::Turn;
use super::request::Cookie;

/// Answers by several chunks of a structured reply, holes told as such. Other replies may come
/// between. After a failure nothing more is read: the client sees where it happened.
pub(super) async fn in_chunks<D: Device>(
    connection: &Connection<D>,
    cookie: Cookie,
    range: ByteRange,
) {
    let mut extents = Vec::with_capacity(EXTENTS_MAX);
    let mut left = range;
    while !left.is_empty() {
        extents.clear();
        // What the device can't tell is read as data.
        if connection.device.block_status(left, EXTENTS_MAX, &mut extents).await.is_err() {
            extents.clear();
        }
        if extents.iter().all(|extent| extent.len_bytes == 0) {
            extents.push(StatusExtent { len_bytes: left.len(), hole: false, zero: false });
        }
        for extent in &extents {
            let (part, rest) = cut(left, extent.len_bytes);
            if part.is_empty() {
                continue;
            }
            left = rest;
            let alive = if extent.zero {
                let hole = Reply::Hole { cookie, range: part, last: left.is_empty() };
                connection.replies.push(hole).await
            } else {
                send_data(connection, cookie, part, left.is_empty()).await
            };
            if !alive {
                return;
            }
        }
    }
}

/// Sends content; false when the reply has ended early.
async fn send_data<D: Device>(
    connection: &Connection<D>,
    cookie: Cookie,
    range: ByteRange,
    ends_reply: bool,
) -> bool {
    let mut left = range;
    while !left.is_empty() {
        let (piece, len, rest) = cut_piece(left);
        left = rest;
        let buffer = connection.buffers.take(len).await;
        let offset = piece.start();
        match connection.device.read(offset, buffer).await {
            Ok(data) => {
                connection.counters().count_read(data.len());
                let last = ends_reply && left.is_empty();
                if !connection.replies.push(Reply::Data { cookie, offset, data, last }).await {
                    return false;
                }
            }
            Err(error) => {
                let refusal = Refusal::from_device(&error, Access::Read);
                connection.replies.push(Reply::Error { cookie, refusal, at: Some(offset) }).await;
                return false;
            }
        }
    }
    true
}

/// Answers by one unbroken payload, which the client asked for or knows nothing else than. The
/// first piece is read before the reply begins, so the usual failures can still be told.
pub(super) async fn in_one_reply<D: Device>(
    connection: &Connection<D>,
    cookie: Cookie,
    range: ByteRange,
) {
    let (piece, len, rest) = cut_piece(range);
    let buffer = connection.buffers.take(len).await;
    let first = match connection.device.read(piece.start(), buffer).await {
        Ok(data) => data,
        Err(error) => {
            refuse(connection, cookie, Refusal::from_device(&error, Access::Read)).await;
            return;
        }
    };
    let structured = connection.negotiated.structured;
    let turn = connection.replies.take_turn().await;
    let payload_bytes = u32::try_from(range.len()).expect("reads are limited to 32 MiB");
    let structured_at = structured.then_some(range.start());
    turn.push(Reply::StreamHead { cookie, payload_bytes, structured_at });
    connection.counters().count_read(first.len());
    turn.push(Reply::StreamPiece { data: first });
    let failed = send_rest(connection, &turn, rest).await;
    match failed {
        None if structured => {
            turn.push(Reply::Finished { cookie });
        }
        None => {}
        Some((at, error)) if structured => {
            let refusal = Refusal::from_device(&error, Access::Read);
            turn.push(Reply::Error { cookie, refusal, at: Some(at) });
        }
        Some((_, error)) => connection.fail(ConnectionError::ReplyBroken(error)),
    }
}

/// Sends the rest of an unbroken payload. After a failure, whose offset it gives, what is owed of
/// a structured reply is filled up with zeroes.
async fn send_rest<D: Device>(
    connection: &Connection<D>,
    turn: &Turn<'_>,
    range: ByteRange,
) -> Option<(u64, DeviceError)> {
    let mut failed = None;
    let mut left = range;
    while !left.is_empty() {
        let (piece, len, rest) = cut_piece(left);
        left = rest;
        let buffer = connection.buffers.take_in_turn(len).await;
        let data = if failed.is_some() {
            zeroed(buffer)
        } else {
            match connection.device.read(piece.start(), buffer).await {
                Ok(data) => data,
                Err(error) if connection.negotiated.structured => {
                    failed = Some((piece.start(), error));
                    zeroed(connection.buffers.take_in_turn(len).await)
                }
                Err(error) => return Some((piece.start(), error)),
            }
        };
        connection.counters().count_read(data.len());
        if !turn.push(Reply::StreamPiece { data }) {
            return failed;
        }
    }
    failed
}

fn zeroed(mut chunk: Chunk) -> Chunk {
    chunk.as_mut_slice().fill(0);
    chunk
}
