//! The bytes that agent and collector agree on. Pure: no I/O, no clock, no allocation that a
//! peer can drive beyond [`limits`].
//!
//! What a write becomes here: the agent describes it in a [`record::RecordHeader`] with one
//! checksum per 4 KiB piece of payload ([`checksum`]), the shipper packs records into
//! [`frame`]s, and a session is opened, acknowledged and refused by the messages in
//! [`session`]. A copy of the volume is compared by the messages in [`compare`], and people steer
//! the agent by those in [`instruct`]. The collector stores records byte for byte as they came in.
//!
//! All integers are little-endian. Each struct that is bytes on a wire or a disk is `repr(C)`
//! with its offsets asserted beside it; that struct is the documentation of the format.

pub mod body;
pub mod checksum;
pub mod codec;
pub mod compare;
pub mod error;
pub mod frame;
pub mod id;
pub mod instruct;
pub mod limits;
pub mod record;
pub mod session;

pub use error::{DecodeError, DecodeErrorKind};
pub use id::{
    AgentId, AgentRun, Epoch, JournalId, KeyId, PointId, Seq, SessionToken, Timeline, VolumeId,
    WallMicros,
};
pub use record::{Record, RecordHeader, RecordKind};
