//! Memory that reads of one connection are answered from.
//!
//! Each connection has its own, so that a client that does not take its answers starves itself
//! alone. Memory that was never used is never touched. When all is in use, a read waits until the
//! socket has taken an earlier answer.

use crate::chunk::Chunk;
use crate::engine::BufferPool;

/// Longest piece in which the disk is read and content is sent, in bytes.
pub(super) const PIECE_BYTES_MAX: usize = 256 * 1024;

/// Most small reads stay below this length, in bytes.
const SMALL_BYTES: usize = 16 * 1024;

/// One piece on the socket while the next one is read.
const TURN_PIECES: usize = 2;

/// See the module's text.
pub(super) struct ReadBuffers {
    small: BufferPool,
    large: BufferPool,
    turn: BufferPool,
}

impl ReadBuffers {
    pub(super) fn new(requests_max: usize, bytes_max: usize) -> Self {
        let large = (bytes_max / PIECE_BYTES_MAX).max(1);
        Self {
            small: BufferPool::new(requests_max, SMALL_BYTES),
            large: BufferPool::new(large, PIECE_BYTES_MAX),
            turn: BufferPool::new(TURN_PIECES, PIECE_BYTES_MAX),
        }
    }

    /// Memory for `len` bytes, at most [`PIECE_BYTES_MAX`].
    pub(super) async fn take(&self, len: usize) -> Chunk {
        let pool = if len <= SMALL_BYTES { &self.small } else { &self.large };
        cut(pool.take().await, len)
    }

    /// The same for the reply that has the turn. It must not wait for the others, which wait for
    /// its end.
    pub(super) async fn take_in_turn(&self, len: usize) -> Chunk {
        cut(self.turn.take().await, len)
    }
}

fn cut(mut chunk: Chunk, len: usize) -> Chunk {
    debug_assert!(len <= chunk.len(), "reads are cut into pieces before they take memory");
    chunk.truncate(len);
    chunk
}
