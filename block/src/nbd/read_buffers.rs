//! Memory that reads of one connection are answered from.
//!
//! Each connection has its own, so that a client that does not take its answers starves itself
//! alone. Memory of a kind is allocated when it is first needed. When all is in use, a read waits
//! until the socket has taken an earlier answer.

use std::cell::OnceCell;

use crate::chunk::Chunk;
use crate::engine::BufferPool;

use super::pieces::PIECE_BYTES_MAX;

/// Most small reads stay below this length, in bytes.
const SMALL_BYTES: usize = 16 * 1024;

/// One piece on the socket while the next one is read.
const TURN_PIECES: usize = 2;

/// See the module's text.
pub(super) struct ReadBuffers {
    small: Kind,
    large: Kind,
    turn: Kind,
}

struct Kind {
    pool: OnceCell<BufferPool>,
    count: usize,
    buffer_bytes: usize,
}

impl ReadBuffers {
    pub(super) fn new(requests_max: usize, bytes_max: usize) -> Self {
        let large = (bytes_max / PIECE_BYTES_MAX).max(1);
        let kind = |count, buffer_bytes| Kind { pool: OnceCell::new(), count, buffer_bytes };
        Self {
            small: kind(requests_max, SMALL_BYTES),
            large: kind(large, PIECE_BYTES_MAX),
            turn: kind(TURN_PIECES, PIECE_BYTES_MAX),
        }
    }

    /// Memory for `len` bytes, at most [`PIECE_BYTES_MAX`].
    pub(super) async fn take(&self, len: usize) -> Chunk {
        let kind = if len <= SMALL_BYTES { &self.small } else { &self.large };
        kind.take(len).await
    }

    /// The same for the reply that has the turn. It must not wait for the others, which wait for
    /// its end.
    pub(super) async fn take_in_turn(&self, len: usize) -> Chunk {
        self.turn.take(len).await
    }
}

impl Kind {
    async fn take(&self, len: usize) -> Chunk {
        debug_assert!(len <= self.buffer_bytes, "reads are cut into pieces before");
        let pool = self.pool.get_or_init(|| BufferPool::new(self.count, self.buffer_bytes));
        let mut chunk = pool.take().await;
        chunk.truncate(len);
        chunk
    }
}
