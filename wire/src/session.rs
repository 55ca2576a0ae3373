//! Messages that open, steer and end a session: one volume over one connection.
//!
//! ```text
//! agent      Hello ───────────────▶
//!                  ◀─────────────── Welcome (or Refuse)      collector
//!            Standing, Records,
//!            Progress, Compare ───▶
//!                  ◀─────────────── Ack, Token, BookmarkRequest, Differ, Instruct
//!            Obeyed, Verified ────▶
//!            Goodbye ─────────────▶
//! ```
//! The agent decides from [`Welcome`] whether the stream fits: it does when the journal is the
//! one it sent to before, on the same timeline, and `released <= durable <= newest`. Then it
//! sends what follows `durable`. In every other case it sends a gap or resync-begin record and
//! copies the volume; the collector accepts a record whose predecessor it does not hold only
//! when that record is one of these two.
//!
//! Epochs tell who has an older memory. The agent keeps the epoch of a welcome before it says
//! anything more, and the collector keeps that it heard something in that epoch before it
//! acknowledges a record of it. So a hello with an epoch before the newest heard one is of a
//! clone, or of a machine that was put back to an older state; one beyond the collector's own is
//! told to a collector that was put back. [`Lineage`] says which, and neither stream goes on.

use std::mem::size_of;
use std::time::Duration;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::body::{GapReason, cut, take_text, text_len};
use crate::error::{DecodeError, DecodeErrorKind};
use crate::frame::WIRE_VERSION;
use crate::id::{AgentId, AgentRun, Epoch, JournalId, Seq, Timeline, VolumeId, WallMicros};
use crate::limits::{COUNTER_MAX, NAME_BYTES_MAX, TEXT_BYTES_MAX, VOLUME_BYTES_MAX};

/// How often an agent says at least how its stream stands. While that is not whole it answers no
/// token, and the collector tells by this alone that it is there.
pub const SIGN_OF_LIFE_EVERY: Duration = Duration::from_secs(1);

/// The agent's opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Who sends.
    pub agent: AgentId,
    /// Which volume the session is for.
    pub volume: VolumeId,
    /// The journal that the agent sent to last; `NIL` when to none.
    pub journal: JournalId,
    /// The volume's timeline as the agent knows it.
    pub timeline: Timeline,
    /// The epoch of the agent's last session of this volume.
    pub epoch: Epoch,
    /// Everything up to here was acknowledged and is no longer in the ring: the record before
    /// the oldest one in the ring.
    pub released: Seq,
    /// The newest record in the ring; `released` when the ring is empty.
    pub newest: Seq,
    /// Size of the volume in bytes.
    pub size_bytes: u64,
    /// Smallest unit in which it is written, in bytes.
    pub block_bytes: u32,
    /// The volume's name, for people.
    pub name: String,
    /// Which run of the agent sends: a session of the same run is a connection that it lost.
    pub run: AgentRun,
    /// The agent's machine lost its power, or may have been put back to an older state: records
    /// behind this one may be ones that it does not remember, and whose regions have no bit in its
    /// write-intent log. [`Welcome::unsure`] names them.
    pub unsure_after: Option<Seq>,
}

/// Bit of the hello's flags: [`Hello::unsure_after`] is given.
const FLAG_UNSURE: u32 = 1;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct HelloFixed {
    version_min: U16,
    version_max: U16,
    flags: U32,
    agent: [u8; 16],
    volume: [u8; 16],
    journal: [u8; 16],
    size_bytes: U64,
    block_bytes: U32,
    timeline: U32,
    epoch: U64,
    released: U64,
    newest: U64,
    name_bytes: U16,
    run: [u8; 6],
    unsure_after: U64,
}
const _: () = assert!(size_of::<HelloFixed>() == 112);

impl Hello {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let name = cut(&self.name, NAME_BYTES_MAX);
        let fixed = HelloFixed {
            version_min: WIRE_VERSION.into(),
            version_max: WIRE_VERSION.into(),
            flags: self.unsure_after.map_or(0, |_| FLAG_UNSURE).into(),
            agent: self.agent.to_bytes(),
            volume: self.volume.to_bytes(),
            journal: self.journal.to_bytes(),
            size_bytes: self.size_bytes.into(),
            block_bytes: self.block_bytes.into(),
            timeline: self.timeline.0.into(),
            epoch: self.epoch.0.into(),
            released: self.released.0.into(),
            newest: self.newest.0.into(),
            name_bytes: text_len(name),
            run: self.run.0,
            unsure_after: self.unsure_after.map_or(0, |seq| seq.0).into(),
        };
        out.extend_from_slice(fixed.as_bytes());
        out.extend_from_slice(name.as_bytes());
    }

    /// Decodes a body.
    ///
    /// # Errors
    /// `Truncated` or `Field`.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "hello";
        let (fixed, rest) = HelloFixed::ref_from_prefix(bytes)
            .map_err(|_| DecodeError::truncated(WHAT, bytes.len(), size_of::<HelloFixed>()))?;
        let (min, max) = (fixed.version_min.get(), fixed.version_max.get());
        if !(min..=max).contains(&WIRE_VERSION) {
            let detail = format!("the agent speaks versions {min} to {max}, not {WIRE_VERSION}");
            return Err(DecodeError::field(WHAT, detail));
        }
        let size_bytes = fixed.size_bytes.get();
        check_size(WHAT, size_bytes)?;
        let (released, newest) = (Seq(fixed.released.get()), Seq(fixed.newest.get()));
        if newest < released {
            let detail = format!("newest record {newest} before the released one {released}");
            return Err(DecodeError::field(WHAT, detail));
        }
        check_counters(WHAT, &[newest.0, fixed.epoch.get(), fixed.unsure_after.get()])?;
        let is_unsure = fixed.flags.get() & FLAG_UNSURE != 0;
        let (name, _) = take_text(WHAT, rest, fixed.name_bytes.get(), NAME_BYTES_MAX)?;
        Ok(Self {
            agent: AgentId::from_bytes(fixed.agent),
            volume: VolumeId::from_bytes(fixed.volume),
            journal: JournalId::from_bytes(fixed.journal),
            timeline: Timeline(fixed.timeline.get()),
            epoch: Epoch(fixed.epoch.get()),
            released,
            newest,
            size_bytes,
            block_bytes: fixed.block_bytes.get(),
            name,
            run: AgentRun(fixed.run),
            unsure_after: is_unsure.then(|| Seq(fixed.unsure_after.get())),
        })
    }
}

/// What the epoch of a [`Hello`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lineage {
    /// Agent and collector go on from the same session.
    Same,
    /// The collector has heard a later session than this agent has had: the agent is a clone, or
    /// its machine was put back to an older state.
    SourceOlder,
    /// The agent has had a later session than this collector knows of: the collector's data was
    /// put back to an older state.
    CollectorOlder,
}

/// The collector's answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Identity of the collector's copy.
    pub journal: JournalId,
    /// The timeline on which it goes on.
    pub timeline: Timeline,
    /// Epoch of this session, raised durably; every older session is fenced.
    pub epoch: Epoch,
    /// The newest record that is on stable storage; 0 when there is none.
    pub durable: Seq,
    /// The gap or resync-begin record of a span that has not ended; 0 when none is open.
    pub span_open: Seq,
    /// Bytes of records that may be on their way without an acknowledgement.
    pub window_bytes: u32,
    /// The image below the journal is not all zero, also while `durable` is 0: zeroes can't be
    /// left out of a copy into it.
    pub seeded: bool,
    /// Time of the newest durable record, or of the image below the journal; 0 when there is
    /// none. No later record of the timeline has a smaller one.
    pub last_time: WallMicros,
    /// Size of the volume behind `durable`, in bytes. Where the agent's stream goes on with
    /// another one, it says so by a resize record.
    pub size_bytes: u64,
    /// Who remembers less.
    pub lineage: Lineage,
    /// The agent has told in an earlier session that what it keeps of the differences is not to be
    /// relied on by its next start ([`Standing::compare_next`]).
    pub compare: bool,
    /// Ranges (first byte and length) that cover what the durable records behind
    /// [`Hello::unsure_after`] have changed; none when that was not given.
    pub unsure: Vec<(u64, u64)>,
}

/// Ranges that one [`Welcome`] names, at most.
pub const UNSURE_RANGES_MAX: usize = 4096;

/// Bit of the welcome's flags: [`Welcome::seeded`].
const FLAG_SEEDED: u16 = 1;
/// [`Lineage::SourceOlder`].
const FLAG_SOURCE_OLDER: u16 = 2;
/// [`Lineage::CollectorOlder`].
const FLAG_COLLECTOR_OLDER: u16 = 4;
/// [`Welcome::compare`].
const FLAG_COMPARE: u16 = 8;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WelcomeFixed {
    version: U16,
    flags: U16,
    timeline: U32,
    journal: [u8; 16],
    epoch: U64,
    durable: U64,
    span_open: U64,
    window_bytes: U32,
    range_count: U32,
    last_time_us: U64,
    size_bytes: U64,
}
const _: () = assert!(size_of::<WelcomeFixed>() == 72);

impl Welcome {
    /// Appends the body.
    ///
    /// # Panics
    /// With more than [`UNSURE_RANGES_MAX`] ranges: a programmer's mistake.
    pub fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.unsure.len() <= UNSURE_RANGES_MAX, "ranges of a welcome");
        let lineage = match self.lineage {
            Lineage::Same => 0,
            Lineage::SourceOlder => FLAG_SOURCE_OLDER,
            Lineage::CollectorOlder => FLAG_COLLECTOR_OLDER,
        };
        let seeded = if self.seeded { FLAG_SEEDED } else { 0 };
        let compare = if self.compare { FLAG_COMPARE } else { 0 };
        let fixed = WelcomeFixed {
            version: WIRE_VERSION.into(),
            flags: (seeded | lineage | compare).into(),
            timeline: self.timeline.0.into(),
            journal: self.journal.to_bytes(),
            epoch: self.epoch.0.into(),
            durable: self.durable.0.into(),
            span_open: self.span_open.0.into(),
            window_bytes: self.window_bytes.into(),
            range_count: u32::try_from(self.unsure.len()).expect("they are few").into(),
            last_time_us: self.last_time.0.into(),
            size_bytes: self.size_bytes.into(),
        };
        out.extend_from_slice(fixed.as_bytes());
        for (start, len) in &self.unsure {
            out.extend_from_slice(&start.to_le_bytes());
            out.extend_from_slice(&len.to_le_bytes());
        }
    }

    /// Decodes a body.
    ///
    /// # Errors
    /// `Truncated`, `Field` or `Limit`.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "welcome";
        let (fixed, rest) = WelcomeFixed::ref_from_prefix(bytes)
            .map_err(|_| DecodeError::truncated(WHAT, bytes.len(), size_of::<WelcomeFixed>()))?;
        if fixed.version.get() != WIRE_VERSION {
            let detail = format!("the collector chose version {}", fixed.version);
            return Err(DecodeError::field(WHAT, detail));
        }
        let times = fixed.last_time_us.get();
        let counters = [fixed.epoch.get(), fixed.durable.get(), fixed.span_open.get(), times];
        check_counters(WHAT, &counters)?;
        check_size(WHAT, fixed.size_bytes.get())?;
        let flags = fixed.flags.get();
        let lineage = match flags & (FLAG_SOURCE_OLDER | FLAG_COLLECTOR_OLDER) {
            0 => Lineage::Same,
            FLAG_SOURCE_OLDER => Lineage::SourceOlder,
            FLAG_COLLECTOR_OLDER => Lineage::CollectorOlder,
            _ => return Err(DecodeError::field(WHAT, "both sides remember less")),
        };
        let unsure = decode_ranges(WHAT, rest, fixed.range_count.get() as usize)?;
        Ok(Self {
            journal: JournalId::from_bytes(fixed.journal),
            timeline: Timeline(fixed.timeline.get()),
            epoch: Epoch(fixed.epoch.get()),
            durable: Seq(fixed.durable.get()),
            span_open: Seq(fixed.span_open.get()),
            window_bytes: fixed.window_bytes.get(),
            seeded: flags & FLAG_SEEDED != 0,
            last_time: WallMicros(fixed.last_time_us.get()),
            size_bytes: fixed.size_bytes.get(),
            lineage,
            compare: flags & FLAG_COMPARE != 0,
            unsure,
        })
    }
}

fn decode_ranges(
    what: &'static str,
    bytes: &[u8],
    count: usize,
) -> Result<Vec<(u64, u64)>, DecodeError> {
    if count > UNSURE_RANGES_MAX {
        return Err(DecodeError::new(DecodeErrorKind::Limit, what, format!("{count} ranges")));
    }
    let (ranges, _) = <[[U64; 2]]>::ref_from_prefix_with_elems(bytes, count)
        .map_err(|_| DecodeError::truncated(what, bytes.len(), count * size_of::<[U64; 2]>()))?;
    let decoded = ranges.iter().map(|[start, len]| {
        let (start, len) = (start.get(), len.get());
        if start > VOLUME_BYTES_MAX || len > VOLUME_BYTES_MAX - start {
            let detail = format!("{len} bytes at byte {start} of a volume");
            return Err(DecodeError::field(what, detail));
        }
        Ok((start, len))
    });
    decoded.collect()
}

/// Refuses numbers (and times) from which a receiver could not go on counting.
fn check_counters(what: &'static str, counters: &[u64]) -> Result<(), DecodeError> {
    match counters.iter().find(|counter| **counter > COUNTER_MAX) {
        Some(counter) => {
            Err(DecodeError::field(what, format!("a number, epoch or time of {counter}")))
        }
        None => Ok(()),
    }
}

/// Refuses a size that no volume has.
fn check_size(what: &'static str, size_bytes: u64) -> Result<(), DecodeError> {
    if (1..=VOLUME_BYTES_MAX).contains(&size_bytes) {
        return Ok(());
    }
    Err(DecodeError::field(what, format!("a volume of {size_bytes} bytes")))
}

/// Why the collector does not take a session, or ends one. The numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum RefuseReason {
    /// The peer broke the protocol.
    Protocol = 1,
    /// Another agent has the volume: a newer session exists, or the one that lives is of another
    /// run of an agent with the same identity.
    Fenced = 2,
    /// The collector can't write (disk full, I/O error); try again later.
    Unavailable = 3,
    /// The volume does not fit what the collector knows of it (agent, timeline).
    Mismatch = 4,
    /// The collector is stopping; try again later.
    Stopping = 5,
    /// The collector found the data damaged on receipt; send again.
    Damaged = 6,
    /// A person has retired the volume; it may be taken back.
    Retired = 7,
}

impl RefuseReason {
    /// From its number in the format.
    #[must_use]
    pub const fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Protocol,
            2 => Self::Fenced,
            3 => Self::Unavailable,
            4 => Self::Mismatch,
            5 => Self::Stopping,
            6 => Self::Damaged,
            7 => Self::Retired,
            _ => return None,
        })
    }
}

/// The collector's refusal; it closes the connection after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refuse {
    /// Why, for the program.
    pub reason: RefuseReason,
    /// Why, for a person.
    pub text: String,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RefuseFixed {
    reason: U16,
    text_bytes: U16,
}
const _: () = assert!(size_of::<RefuseFixed>() == 4);

impl Refuse {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let text = cut(&self.text, TEXT_BYTES_MAX);
        let fixed = RefuseFixed { reason: (self.reason as u16).into(), text_bytes: text_len(text) };
        out.extend_from_slice(fixed.as_bytes());
        out.extend_from_slice(text.as_bytes());
    }

    /// Decodes a body.
    ///
    /// # Errors
    /// `Truncated` or `Field`.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "refusal";
        let (fixed, rest) = RefuseFixed::ref_from_prefix(bytes)
            .map_err(|_| DecodeError::truncated(WHAT, bytes.len(), size_of::<RefuseFixed>()))?;
        let reason = RefuseReason::from_number(fixed.reason.get())
            .ok_or_else(|| DecodeError::field(WHAT, format!("reason {}", fixed.reason)))?;
        let (text, _) = take_text(WHAT, rest, fixed.text_bytes.get(), TEXT_BYTES_MAX)?;
        Ok(Self { reason, text })
    }
}

macro_rules! fixed_message {
    ($name:ident, $what:literal, $bytes:literal) => {
        const _: () = assert!(size_of::<$name>() == $bytes);

        impl $name {
            /// Appends the body.
            pub fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(self.as_bytes());
            }

            /// Decodes a body.
            ///
            /// # Errors
            /// `Truncated`.
            pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
                Self::read_from_prefix(bytes)
                    .map(|(message, _)| message)
                    .map_err(|_| DecodeError::truncated($what, bytes.len(), size_of::<Self>()))
            }
        }
    };
}

/// The collector: everything up to here is on stable storage.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Ack {
    /// [`Seq`] of the newest durable record.
    pub durable: U64,
}
fixed_message!(Ack, "acknowledgement", 8);

/// The collector's mark: the agent sends it back in a frame behind all writes that were
/// acknowledged to clients when it arrived.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Token {
    /// [`crate::SessionToken`].
    pub token: U64,
}
fixed_message!(Token, "token", 8);

/// How far the copy of a volume is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Progress {
    /// Bytes of the volume that were looked at.
    pub done_bytes: U64,
    /// Bytes of the volume to look at.
    pub total_bytes: U64,
    /// Bytes that had to be sent so far.
    pub sent_bytes: U64,
}
fixed_message!(Progress, "progress", 24);

/// Whether the agent's stream is whole. The numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StandingState {
    /// Every change is captured and no copy is wanted.
    Whole = 1,
    /// Every change is captured, and a copy runs that closes what was missed.
    Copying = 2,
    /// Changes are not captured until a copy has begun.
    Lost = 3,
    /// Changes are not captured, because a person wants it so.
    Paused = 4,
}

impl StandingState {
    /// From its number in the format.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Whole,
            2 => Self::Copying,
            3 => Self::Lost,
            4 => Self::Paused,
            _ => return None,
        })
    }
}

/// The agent tells how its stream stands: after the welcome, at each change, and now and then as a
/// sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How it stands.
    pub state: StandingState,
    /// Why it is not whole; `None` when it is, and for a first copy.
    pub reason: Option<GapReason>,
    /// Since when, by the agent's wall clock.
    pub since: WallMicros,
    /// How many bytes of the volume differ at most from what the stream says; 0 when none do.
    pub differing_bytes: u64,
    /// The agent can't keep what may differ. If it ends now, its next start has to compare the
    /// whole volume, and only the collector may be able to tell it so ([`Welcome::compare`]).
    pub compare_next: bool,
}

/// Bit of a standing's flags: [`Standing::compare_next`].
const FLAG_COMPARE_NEXT: u8 = 1;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct StandingFixed {
    state: u8,
    reason: u8,
    flags: u8,
    reserved: [u8; 5],
    since_us: U64,
    differing_bytes: U64,
}
const _: () = assert!(size_of::<StandingFixed>() == 24);

impl Standing {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let fixed = StandingFixed {
            state: self.state as u8,
            reason: self.reason.map_or(0, |reason| reason as u8),
            flags: if self.compare_next { FLAG_COMPARE_NEXT } else { 0 },
            reserved: [0; 5],
            since_us: self.since.0.into(),
            differing_bytes: self.differing_bytes.into(),
        };
        out.extend_from_slice(fixed.as_bytes());
    }

    /// Decodes a body.
    ///
    /// # Errors
    /// `Truncated` or `Field`.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "standing";
        let (fixed, _) = StandingFixed::ref_from_prefix(bytes)
            .map_err(|_| DecodeError::truncated(WHAT, bytes.len(), size_of::<StandingFixed>()))?;
        let state = StandingState::from_byte(fixed.state)
            .ok_or_else(|| DecodeError::field(WHAT, format!("state {}", fixed.state)))?;
        let reason = match fixed.reason {
            0 => None,
            number => Some(
                GapReason::from_number(number.into())
                    .ok_or_else(|| DecodeError::field(WHAT, format!("reason {number}")))?,
            ),
        };
        let compare_next = fixed.flags & FLAG_COMPARE_NEXT != 0;
        let (since, differing_bytes) = (fixed.since_us.get(), fixed.differing_bytes.get());
        check_counters(WHAT, &[since, differing_bytes])?;
        Ok(Self { state, reason, since: WallMicros(since), differing_bytes, compare_next })
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
