//! Bounds that both sides hold, so that no peer can make the other allocate without end.

/// Payload bytes of one change record, at most. A longer write becomes several records.
pub const RECORD_PAYLOAD_BYTES_MAX: u32 = 256 * 1024;

/// Unit of checksums, in bytes, on the grid of the volume (not of the write).
pub const CHECK_BLOCK_BYTES: u32 = 4096;

/// Checksums of one record, at most: a longest payload that starts inside a block touches one
/// block more than its length divided by the block.
pub const RECORD_SUMS_MAX: u32 = RECORD_PAYLOAD_BYTES_MAX / CHECK_BLOCK_BYTES + 1;

/// Bytes of the body of one frame, at most. A frame of records always has room for one record
/// of the longest kind.
pub const FRAME_BODY_BYTES_MAX: u32 = 2 * 1024 * 1024;

/// Records in one frame, at most.
pub const FRAME_RECORDS_MAX: u32 = 8192;

/// Bytes sent and not acknowledged on one session, at most, unless the collector asks for less.
pub const WINDOW_BYTES_MAX: u32 = 16 * 1024 * 1024;

/// Bytes of a volume's name or a bookmark's label, at most.
pub const NAME_BYTES_MAX: usize = 255;

/// Bytes of a free text (a refusal, a reason), at most.
pub const TEXT_BYTES_MAX: usize = 1024;

/// Largest sequence number and epoch that a peer may name: sums with it can't wrap, and nobody
/// gets there in a lifetime.
pub const COUNTER_MAX: u64 = 1 << 56;

/// Largest volume, in bytes: 1 PiB, what a segment's index can address.
pub const VOLUME_BYTES_MAX: u64 = 1 << 50;

/// Nodes that one question of a comparison may ask for; its answer then has at most 66 KiB.
pub const COMPARE_NODES_MAX: usize = 64;
