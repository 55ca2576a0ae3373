//! The pieces in which long requests are handled, so that memory is bounded.

use crate::range::ByteRange;

/// Longest piece in which the disk is read and content is sent, in bytes.
pub(super) const PIECE_BYTES_MAX: usize = 256 * 1024;

/// The first bytes of a range, at most `len`, and the rest.
pub(super) fn cut(range: ByteRange, len: u64) -> (ByteRange, ByteRange) {
    let middle = range.start().saturating_add(len).min(range.end());
    let front = ByteRange::between(range.start(), middle);
    let rest = ByteRange::between(middle, range.end());
    (front.expect("the middle is not before"), rest.expect("the middle is not behind"))
}

/// The first piece of a range, its length, and the rest.
pub(super) fn cut_piece(range: ByteRange) -> (ByteRange, usize, ByteRange) {
    let (piece, rest) = cut(range, PIECE_BYTES_MAX as u64);
    (piece, usize::try_from(piece.len()).expect("a piece has at most 256 KiB"), rest)
}
