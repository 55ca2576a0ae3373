//! One checksum per 4 KiB block of payload, on the volume's own grid.
//!
//! The pieces of a payload are cut where the volume's 4 KiB blocks begin, not where the write
//! begins, so that merging and re-cutting records keeps the checksums of whole blocks as they
//! were made at capture. Only the first and the last piece may be shorter than a block.

use std::ops::Range;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::limits::CHECK_BLOCK_BYTES;

const BLOCK: usize = CHECK_BLOCK_BYTES as usize;

/// XXH3-64 of some bytes: the checksum of one piece of payload.
#[must_use]
pub fn sum(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// XXH3-64 of several byte strings one after the other.
#[must_use]
pub fn sum_parts(parts: &[&[u8]]) -> u64 {
    let mut state = Xxh3::new();
    for part in parts {
        state.update(part);
    }
    state.digest()
}

/// How many pieces a payload of `len_bytes` at `offset_bytes` of the volume has.
#[must_use]
pub fn piece_count(offset_bytes: u64, len_bytes: u32) -> u32 {
    if len_bytes == 0 {
        return 0;
    }
    let lead = lead_bytes(offset_bytes);
    (lead + len_bytes).div_ceil(CHECK_BLOCK_BYTES)
}

/// Bytes of the volume's block that lie before the payload's first byte.
#[must_use]
pub fn lead_bytes(offset_bytes: u64) -> u32 {
    // The remainder of a division by 4096 fits in 32 bits.
    #[allow(clippy::cast_possible_truncation)]
    let lead = (offset_bytes % u64::from(CHECK_BLOCK_BYTES)) as u32;
    lead
}

/// The pieces of a payload of `len` bytes at `offset_bytes`, as ranges within the payload.
pub fn pieces(offset_bytes: u64, len: usize) -> impl Iterator<Item = Range<usize>> {
    let first_end = (BLOCK - lead_bytes(offset_bytes) as usize).min(len);
    let mut start = 0;
    let mut end = first_end;
    std::iter::from_fn(move || {
        if start >= len {
            return None;
        }
        let piece = start..end;
        start = end;
        end = (end + BLOCK).min(len);
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_cover_the_payload_and_end_on_blocks(offset in 0u64..100_000, len in 0usize..20_000) {
            let all: Vec<_> = pieces(offset, len).collect();
            let count = piece_count(offset, u32::try_from(len).expect("small"));
            prop_assert_eq!(all.len(), count as usize);
            let mut at = 0;
            for piece in &all {
                prop_assert_eq!(piece.start, at);
                prop_assert!(piece.end > piece.start);
                at = piece.end;
                if at < len {
                    prop_assert_eq!((offset + at as u64) % 4096, 0);
                }
            }
            prop_assert_eq!(at, len);
        }
    }
}
