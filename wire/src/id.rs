//! Identifiers and counters, each a type of its own.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 16]);

        impl $name {
            /// From its sixteen bytes, in the order in which a UUID is written.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// Its sixteen bytes.
            #[must_use]
            pub const fn to_bytes(self) -> [u8; 16] {
                self.0
            }

            /// A random (version 4) identifier from sixteen random bytes.
            #[must_use]
            pub fn from_random(bytes: [u8; 16]) -> Self {
                Self(*uuid::Builder::from_random_bytes(bytes).as_uuid().as_bytes())
            }

            /// The identifier of nothing: all bytes zero.
            pub const NIL: Self = Self([0; 16]);
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&Uuid::from_bytes(self.0), f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::from_str(text).map(|id| Self(*id.as_bytes()))
            }
        }
    };
}

uuid_id!(
    /// One protected disk.
    VolumeId
);
uuid_id!(
    /// One installation of the agent.
    AgentId
);
uuid_id!(
    /// The collector's copy of a volume; a new copy has a new identity.
    JournalId
);
uuid_id!(
    /// A recovery point.
    PointId
);

/// One run of an agent: drawn at random when its process starts. Zeroes: not told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentRun(pub [u8; 6]);

impl AgentRun {
    /// From random bytes.
    #[must_use]
    pub const fn from_random([a, b, c, d, e, f, ..]: [u8; 16]) -> Self {
        Self([a, b, c, d, e, f])
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

counter!(
    /// Sequence number: strictly increasing per volume and timeline, never reused, with gaps.
    /// Zero is the state before the first record.
    Seq(u64)
);
counter!(
    /// A branch of a volume's history; the first is 1.
    Timeline(u32)
);
counter!(
    /// Counter of a volume's sessions, raised durably by the collector for each new one.
    Epoch(u64)
);
counter!(
    /// Which key encrypts; 0 is none.
    KeyId(u32)
);
counter!(
    /// The collector's mark for measuring RPO; 0 is none.
    SessionToken(u64)
);
counter!(
    /// Wall-clock time in microseconds since the Unix epoch, monotone per timeline.
    WallMicros(u64)
);
