//! Why bytes were not understood.

/// What is wrong with the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeErrorKind {
    /// More bytes are needed: at the end of a file this is a torn tail.
    Truncated,
    /// The magic number is not the one expected here.
    Magic,
    /// A version that this program does not know.
    Version,
    /// A checksum does not match its bytes.
    Checksum,
    /// A field has a value that it can't have.
    Field,
    /// A length is beyond its limit.
    Limit,
}

/// Bytes from a peer or a file that do not decode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {detail}")]
pub struct DecodeError {
    /// Sort of damage.
    pub kind: DecodeErrorKind,
    /// What was being decoded, for a person: "record header", "hello".
    pub what: &'static str,
    /// What was found.
    pub detail: String,
}

impl DecodeError {
    /// An error about `what`.
    #[must_use]
    pub fn new(kind: DecodeErrorKind, what: &'static str, detail: impl Into<String>) -> Self {
        Self { kind, what, detail: detail.into() }
    }

    pub(crate) fn truncated(what: &'static str, have: usize, need: usize) -> Self {
        Self::new(DecodeErrorKind::Truncated, what, format!("{have} of {need} bytes are there"))
    }

    pub(crate) fn field(what: &'static str, detail: impl Into<String>) -> Self {
        Self::new(DecodeErrorKind::Field, what, detail)
    }
}
