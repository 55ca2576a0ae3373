//! What people want of the agent, handed on by the collector, and what the agent answers.
//!
//! ```text
//! collector   Instruct ──────────▶
//!                      ◀────────── Obeyed, once it is begun or done        agent
//!                      ◀────────── Verified, now and then while a verification runs, and at its end
//! ```
//! [`Obeyed`] comes behind the [`crate::session::Standing`] that the wish has changed, so whoever
//! has it sees nothing older. It answers every wish, also one that found nothing to do.

use std::mem::size_of;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{DecodeError, DecodeErrorKind};
use crate::limits::VOLUME_BYTES_MAX;

/// Names one wish; the collector gives it.
pub type InstructId = [u8; 16];

/// What a person wants of the agent. The numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum InstructKind {
    /// Changes are not captured until a person wants them to be again.
    Pause = 1,
    /// Changes are captured again, and what was missed is copied.
    Resume = 2,
    /// The whole volume is compared with the collector's copy, and made equal.
    Compare = 3,
    /// What is known to differ or may differ is compared and made equal, nothing else.
    CompareMarked = 4,
    /// The whole volume is compared with the collector's copy, and nothing is changed.
    Verify = 5,
    /// A verification that runs ends where it is.
    StopVerify = 6,
}

impl InstructKind {
    /// From its number in the format.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Pause,
            2 => Self::Resume,
            3 => Self::Compare,
            4 => Self::CompareMarked,
            5 => Self::Verify,
            6 => Self::StopVerify,
            _ => return None,
        })
    }
}

/// The collector hands on what a person wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruct {
    /// Which wish this is. A verification has the same one to its end.
    pub id: InstructId,
    /// What.
    pub what: InstructKind,
    /// Where a verification begins; 0 for everything else.
    pub from_bytes: u64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct InstructFixed {
    what: u8,
    reserved: [u8; 7],
    from_bytes: U64,
    id: [u8; 16],
}
const _: () = assert!(size_of::<InstructFixed>() == 32);

impl Instruct {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let fixed = InstructFixed {
            what: self.what as u8,
            reserved: [0; 7],
            from_bytes: self.from_bytes.into(),
            id: self.id,
        };
        out.extend_from_slice(fixed.as_bytes());
    }

    /// Decodes a body.
    ///
    /// # Errors
    /// `Truncated` or `Field`.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "instruction";
        let (fixed, _) = InstructFixed::ref_from_prefix(bytes)
            .map_err(|_| DecodeError::truncated(WHAT, bytes.len(), size_of::<InstructFixed>()))?;
        let what = InstructKind::from_byte(fixed.what)
            .ok_or_else(|| DecodeError::field(WHAT, format!("number {}", fixed.what)))?;
        check_bytes(WHAT, &[fixed.from_bytes.get()])?;
        Ok(Self { id: fixed.id, what, from_bytes: fixed.from_bytes.get() })
    }
}

/// The agent has begun or done what was wanted.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Obeyed {
    /// As in [`Instruct`].
    pub id: InstructId,
}
const _: () = assert!(size_of::<Obeyed>() == 16);

impl Obeyed {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_bytes());
    }

    /// Decodes a body.
    ///
    /// # Errors
    /// `Truncated`.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let decoded = Self::read_from_prefix(bytes).map(|(message, _)| message);
        decoded.map_err(|_| DecodeError::truncated("obeyed", bytes.len(), size_of::<Self>()))
    }
}

/// How a verification stands. The numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum VerifyState {
    /// It goes on.
    Running = 1,
    /// The whole volume was compared.
    Done = 2,
    /// It was told to end.
    Stopped = 3,
    /// A copy of the volume is wanted or runs, or protection is paused: what differs then says
    /// nothing.
    NotWhole = 4,
}

impl VerifyState {
    /// From its number in the format.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Running,
            2 => Self::Done,
            3 => Self::Stopped,
            4 => Self::NotWhole,
            _ => return None,
        })
    }
}

/// Ranges that one [`Verified`] names, at most.
pub const VERIFIED_RANGES_MAX: usize = 16;

/// How far a verification is, and what it has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The wish that began it.
    pub id: InstructId,
    /// How it stands.
    pub state: VerifyState,
    /// Everything before this place was compared; a later one may begin here.
    pub reached_bytes: u64,
    /// Bytes that were compared.
    pub compared_bytes: u64,
    /// Bytes of leaves that differ.
    pub differing_bytes: u64,
    /// Bytes of leaves that one of the sides can't read, so that nothing is known of them.
    pub unreadable_bytes: u64,
    /// The first ranges that differ or can't be read: first byte and length.
    pub ranges: Vec<(u64, u64)>,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct VerifiedFixed {
    id: [u8; 16],
    state: u8,
    reserved: [u8; 3],
    range_count: U32,
    reached_bytes: U64,
    compared_bytes: U64,
    differing_bytes: U64,
    unreadable_bytes: U64,
}
const _: () = assert!(size_of::<VerifiedFixed>() == 56);

impl Verified {
    /// True when nothing will follow.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state != VerifyState::Running
    }

    /// Appends the body; ranges beyond [`VERIFIED_RANGES_MAX`] are left out.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let ranges = &self.ranges[..self.ranges.len().min(VERIFIED_RANGES_MAX)];
        let fixed = VerifiedFixed {
            id: self.id,
            state: self.state as u8,
            reserved: [0; 3],
            range_count: u32::try_from(ranges.len()).expect("they are few").into(),
            reached_bytes: self.reached_bytes.into(),
            compared_bytes: self.compared_bytes.into(),
            differing_bytes: self.differing_bytes.into(),
            unreadable_bytes: self.unreadable_bytes.into(),
        };
        out.extend_from_slice(fixed.as_bytes());
        for (start, len) in ranges {
            out.extend_from_slice(&start.to_le_bytes());
            out.extend_from_slice(&len.to_le_bytes());
        }
    }

    /// Decodes a body.
    ///
    /// # Errors
    /// `Truncated`, `Field` or `Limit`.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "verification";
        let (fixed, rest) = VerifiedFixed::ref_from_prefix(bytes)
            .map_err(|_| DecodeError::truncated(WHAT, bytes.len(), size_of::<VerifiedFixed>()))?;
        let state = VerifyState::from_byte(fixed.state)
            .ok_or_else(|| DecodeError::field(WHAT, format!("state {}", fixed.state)))?;
        let count = fixed.range_count.get() as usize;
        if count > VERIFIED_RANGES_MAX {
            let detail = format!("{count} ranges");
            return Err(DecodeError::new(DecodeErrorKind::Limit, WHAT, detail));
        }
        let (ranges, _) = <[[U64; 2]]>::ref_from_prefix_with_elems(rest, count)
            .map_err(|_| DecodeError::truncated(WHAT, rest.len(), count * size_of::<[U64; 2]>()))?;
        let decoded = Self {
            id: fixed.id,
            state,
            reached_bytes: fixed.reached_bytes.get(),
            compared_bytes: fixed.compared_bytes.get(),
            differing_bytes: fixed.differing_bytes.get(),
            unreadable_bytes: fixed.unreadable_bytes.get(),
            ranges: ranges.iter().map(|[start, len]| (start.get(), len.get())).collect(),
        };
        let figures = [
            decoded.reached_bytes,
            decoded.compared_bytes,
            decoded.differing_bytes,
            decoded.unreadable_bytes,
        ];
        check_bytes(WHAT, &figures)?;
        decoded.ranges.iter().try_for_each(|(start, len)| check_bytes(WHAT, &[*start, *len]))?;
        Ok(decoded)
    }
}

/// Refuses what no volume has.
fn check_bytes(what: &'static str, figures: &[u64]) -> Result<(), DecodeError> {
    match figures.iter().find(|figure| **figure > VOLUME_BYTES_MAX) {
        Some(figure) => Err(DecodeError::field(what, format!("{figure} bytes of a volume"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut body = Vec::new();
        encode(&mut body);
        body
    }

    fn verified(ranges: usize) -> Verified {
        Verified {
            id: [7; 16],
            state: VerifyState::Done,
            reached_bytes: 1 << 30,
            compared_bytes: 1 << 20,
            differing_bytes: 65_536,
            unreadable_bytes: 512,
            ranges: (0..ranges as u64).map(|at| (at << 20, 65_536)).collect(),
        }
    }

    #[test]
    fn every_instruction_comes_back() {
        for byte in 0..=u8::MAX {
            let mut bytes = [0; 32];
            (bytes[0], bytes[9], bytes[16]) = (byte, 1, 3);
            match InstructKind::from_byte(byte) {
                Some(what) => {
                    let decoded = Instruct::decode(&bytes).expect("a good one");
                    assert_eq!((decoded.what, decoded.from_bytes, decoded.id[0]), (what, 256, 3));
                    assert_eq!(encoded(|out| decoded.encode(out)), bytes);
                }
                None => assert!(Instruct::decode(&bytes).is_err(), "{byte}"),
            }
        }
        let obeyed = Obeyed { id: [9; 16] };
        assert_eq!(Obeyed::decode(&encoded(|out| obeyed.encode(out))), Ok(obeyed));
    }

    #[test]
    fn a_verification_names_some_ranges_and_no_more() {
        for count in [0, 1, VERIFIED_RANGES_MAX] {
            let body = encoded(|out| verified(count).encode(out));
            assert_eq!(Verified::decode(&body), Ok(verified(count)));
            assert!(Verified::decode(&body[..body.len() - 1]).is_err());
        }
        let mut body = encoded(|out| verified(VERIFIED_RANGES_MAX + 1).encode(out));
        assert_eq!(Verified::decode(&body), Ok(verified(VERIFIED_RANGES_MAX)));
        body[20] += 1;
        body.resize(1000, 0);
        let refused = Verified::decode(&body).expect_err("too many");
        assert_eq!(refused.kind, DecodeErrorKind::Limit);
    }

    proptest! {
        #[test]
        fn no_bytes_break_a_decoder(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = (Instruct::decode(&bytes), Obeyed::decode(&bytes), Verified::decode(&bytes));
        }
    }
}
