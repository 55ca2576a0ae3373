//! The states of a clone's blocks, two bits each, in memory.
//!
//! The bytes are exactly those of the map in its files; see [`super::format`].

use std::ops::Range;

use super::format::{BLOCK_BYTES, PAGE_BYTES};

/// Where the bytes of a block are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum BlockState {
    /// In the state below.
    Absent = 0,
    /// In the clone's own file.
    Data = 1,
    /// Nowhere: they are zeroes.
    Zero = 2,
}

impl BlockState {
    const fn of_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Absent),
            1 => Some(Self::Data),
            2 => Some(Self::Zero),
            _ => None,
        }
    }

    /// Four blocks of this state in a byte.
    const fn four(self) -> u8 {
        self as u8 * 0b0101_0101
    }
}

/// Blocks in a byte of the map.
const PER_BYTE: u64 = 4;

/// See the module. 64 MiB for a disk of 1 TiB, of which only what is used takes memory.
pub(super) struct States {
    bytes: Vec<u8>,
    blocks: u64,
    data_blocks: u64,
}

/// Bytes of the map of a disk.
pub(super) fn map_bytes(size_bytes: u64) -> usize {
    let bytes = size_bytes.div_ceil(BLOCK_BYTES).div_ceil(PER_BYTE);
    usize::try_from(bytes).expect("a map of a volume fits in the address space")
}

/// Pages of the map of a disk.
pub(super) fn page_count(size_bytes: u64) -> u32 {
    u32::try_from(map_bytes(size_bytes).div_ceil(PAGE_BYTES)).expect("2^32 pages are 2^58 bytes")
}

impl States {
    /// All blocks of a disk, absent.
    pub(super) fn absent(size_bytes: u64) -> Self {
        let blocks = size_bytes.div_ceil(BLOCK_BYTES);
        Self { bytes: vec![0; map_bytes(size_bytes)], blocks, data_blocks: 0 }
    }

    /// From the bytes of a map; `None` when they hold a state that nobody writes, or one of a
    /// block behind the disk's end.
    pub(super) fn from_bytes(size_bytes: u64, bytes: Vec<u8>) -> Option<Self> {
        let blocks = size_bytes.div_ceil(BLOCK_BYTES);
        let valid = |byte: &u8| byte & (byte >> 1) & 0b0101_0101 == 0;
        if bytes.len() != map_bytes(size_bytes) || !bytes.iter().all(valid) {
            return None;
        }
        let used = blocks % PER_BYTE;
        let beyond = if used == 0 { 0 } else { bytes.last()? >> (2 * used) };
        let mut states = Self { bytes, blocks, data_blocks: 0 };
        states.data_blocks = states.count_data(0..blocks);
        (beyond == 0).then_some(states)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// One page of the map; the last one may be shorter than the others.
    pub(super) fn page(&self, page: u32) -> &[u8] {
        let start = page as usize * PAGE_BYTES;
        &self.bytes[start..self.bytes.len().min(start + PAGE_BYTES)]
    }

    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Blocks that are data.
    pub(super) fn data_blocks(&self) -> u64 {
        self.data_blocks
    }

    pub(super) fn get(&self, block: u64) -> BlockState {
        let bits = self.bytes[index(block)] >> (2 * (block % PER_BYTE)) & 0b11;
        BlockState::of_bits(bits).expect("checked when loaded, and never set")
    }

    /// The state of the first block of `blocks`, and where the run of that state ends within it.
    pub(super) fn run(&self, blocks: Range<u64>) -> (BlockState, u64) {
        let state = self.get(blocks.start);
        let mut at = blocks.start + 1;
        while at < blocks.end {
            if at.is_multiple_of(PER_BYTE) && self.bytes[index(at)] == state.four() {
                at += PER_BYTE;
            } else if self.get(at) == state {
                at += 1;
            } else {
                break;
            }
        }
        (state, at.min(blocks.end))
    }

    /// How many of some blocks are data.
    pub(super) fn count_data(&self, blocks: Range<u64>) -> u64 {
        let (mut count, mut at) = (0, blocks.start);
        while at < blocks.end {
            if at.is_multiple_of(PER_BYTE) && at + PER_BYTE <= blocks.end {
                // A valid pair is data exactly when its low bit is set.
                count += u64::from((self.bytes[index(at)] & 0b0101_0101).count_ones());
                at += PER_BYTE;
            } else {
                count += u64::from(self.get(at) == BlockState::Data);
                at += 1;
            }
        }
        count
    }

    /// Sets the state of some blocks. Gives the bytes of the map that hold them; `None` when all
    /// were in that state already.
    pub(super) fn set(&mut self, blocks: Range<u64>, state: BlockState) -> Option<Range<usize>> {
        if blocks.is_empty() || self.run(blocks.clone()) == (state, blocks.end) {
            return None;
        }
        let before = self.count_data(blocks.clone());
        let mut at = blocks.start;
        while at < blocks.end {
            if at.is_multiple_of(PER_BYTE) && at + PER_BYTE <= blocks.end {
                let whole = index(at)..index(blocks.end - blocks.end % PER_BYTE);
                at += whole.len() as u64 * PER_BYTE;
                self.bytes[whole].fill(state.four());
            } else {
                let shift = 2 * (at % PER_BYTE);
                let byte = &mut self.bytes[index(at)];
                *byte = *byte & !(0b11 << shift) | (state as u8) << shift;
                at += 1;
            }
        }
        let after = if state == BlockState::Data { blocks.end - blocks.start } else { 0 };
        self.data_blocks = self.data_blocks - before + after;
        Some(index(blocks.start)..index(blocks.end - 1) + 1)
    }
}

fn index(block: u64) -> usize {
    usize::try_from(block / PER_BYTE).expect("blocks lie on the disk, whose map is in memory")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCKS: u64 = 61;

    fn state() -> impl Strategy<Value = BlockState> {
        prop_oneof![Just(BlockState::Absent), Just(BlockState::Data), Just(BlockState::Zero)]
    }

    proptest! {
        #[test]
        fn states_are_those_of_a_plain_list(
            changes in prop::collection::vec((0..BLOCKS, 1..BLOCKS, state()), 1..40)
        ) {
            let size_bytes = BLOCKS * BLOCK_BYTES - 100;
            let mut states = States::absent(size_bytes);
            let mut model = vec![BlockState::Absent; usize::try_from(BLOCKS).unwrap()];
            for (start, len, state) in changes {
                let end = (start + len).min(BLOCKS);
                let part = usize::try_from(start).unwrap()..usize::try_from(end).unwrap();
                let same = model[part.clone()].iter().all(|one| *one == state);
                prop_assert_eq!(states.set(start..end, state).is_none(), same);
                model[part].fill(state);
                let data = model.iter().filter(|one| **one == BlockState::Data).count() as u64;
                prop_assert_eq!(states.data_blocks(), data);
                for (block, wanted) in (0..).zip(&model) {
                    prop_assert_eq!(states.get(block), *wanted);
                }
                let mut at = 0;
                while at < BLOCKS {
                    let (state, end) = states.run(at..BLOCKS);
                    for block in at..end { prop_assert_eq!(states.get(block), state); }
                    prop_assert!(end == BLOCKS || states.get(end) != state);
                    at = end;
                }
            }
            let again = States::from_bytes(size_bytes, states.bytes().to_vec()).unwrap();
            prop_assert_eq!(again.data_blocks(), states.data_blocks());
        }
    }

    #[test]
    fn states_that_nobody_writes_are_refused() {
        let size_bytes = 5 * BLOCK_BYTES;
        assert!(States::from_bytes(size_bytes, vec![0, 0b01]).is_some());
        assert!(States::from_bytes(size_bytes, vec![0b11, 0]).is_none());
        assert!(States::from_bytes(size_bytes, vec![0, 0b0100]).is_none(), "behind the end");
        assert!(States::from_bytes(size_bytes, vec![0]).is_none());
    }
}
