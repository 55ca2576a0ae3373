//! Bytes of the handshake: flags and options of a client in, typed values out; replies the other
//! way. Nothing here does I/O, keeps state or allocates by what a peer claims.

use super::error::Violation;
use super::protocol::{
    ALLOCATION_CONTEXT, BASE_NAMESPACE, CLIENT_FIXED_NEWSTYLE, CLIENT_NO_ZEROES,
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, INIT_MAGIC, OPTION_BYTES_MAX, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, STRING_BYTES_MAX, info, option,
};

/// Length of the server's first message.
pub(super) const GREETING_BYTES: usize = 18;
/// Length of the client's flags.
pub(super) const CLIENT_FLAGS_BYTES: usize = 4;
/// Length of an option before its data.
pub(super) const OPTION_HEADER_BYTES: usize = 16;

/// The server's first message.
pub(super) fn greeting() -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    bytes[..8].copy_from_slice(&INIT_MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[16..].copy_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    bytes
}

/// The client's answer to the greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClientFlags {
    /// Leave out the zeroes behind the answer to `NBD_OPT_EXPORT_NAME`.
    pub(super) no_zeroes: bool,
}

/// Clients that do not claim fixed newstyle are served all the same, as the protocol permits.
pub(super) fn parse_client_flags(bytes: [u8; 4]) -> Result<ClientFlags, Violation> {
    let flags = u32::from_be_bytes(bytes);
    if flags & !(CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES) != 0 {
        return Err(Violation::ClientFlags(flags));
    }
    Ok(ClientFlags { no_zeroes: flags & CLIENT_NO_ZEROES != 0 })
}

/// An option before its data has been received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OptionHeader {
    pub(super) option: u32,
    /// At most [`OPTION_BYTES_MAX`].
    pub(super) data_bytes: usize,
}

pub(super) fn parse_option_header(
    bytes: &[u8; OPTION_HEADER_BYTES],
) -> Result<OptionHeader, Violation> {
    let [m0, m1, m2, m3, m4, m5, m6, m7, o0, o1, o2, o3, l0, l1, l2, l3] = *bytes;
    let magic = u64::from_be_bytes([m0, m1, m2, m3, m4, m5, m6, m7]);
    let option = u32::from_be_bytes([o0, o1, o2, o3]);
    let data_bytes = u32::from_be_bytes([l0, l1, l2, l3]);
    if magic != OPTION_MAGIC {
        return Err(Violation::OptionMagic(magic));
    }
    match usize::try_from(data_bytes) {
        Ok(bytes) if bytes <= OPTION_BYTES_MAX => Ok(OptionHeader { option, data_bytes: bytes }),
        _ => Err(Violation::OptionTooLong { option, data_bytes }),
    }
}

/// What a client asks for in the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ClientOption<'a> {
    ExportName(&'a str),
    Abort,
    List,
    StartTls,
    Info(InfoRequest<'a>),
    Go(InfoRequest<'a>),
    StructuredReply,
    ListMetaContext(MetaQuery<'a>),
    SetMetaContext(MetaQuery<'a>),
    Unknown,
}

/// Data of `NBD_OPT_INFO` and `NBD_OPT_GO`. The export's size and block sizes are always told, so
/// only the other two kinds of information are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InfoRequest<'a> {
    pub(super) name: &'a str,
    pub(super) wants_name: bool,
    pub(super) wants_description: bool,
}

/// Data of the two metadata options, reduced to what it says about the one context there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MetaQuery<'a> {
    pub(super) name: &'a str,
    /// No query at all: a listing then names every context.
    pub(super) is_empty: bool,
    /// A query names [`ALLOCATION_CONTEXT`].
    pub(super) allocation: bool,
    /// A query names all of [`BASE_NAMESPACE`], which only a listing may.
    pub(super) base: bool,
}

/// Why the data of an option is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OptionError {
    Invalid(&'static str),
    TooBig(&'static str),
}

const SHORT: OptionError = OptionError::Invalid("the data ends before what its lengths announce");

pub(super) fn parse_option(code: u32, data: &[u8]) -> Result<ClientOption<'_>, OptionError> {
    let without_data = |parsed| {
        if data.is_empty() {
            Ok(parsed)
        } else {
            Err(OptionError::Invalid("this option has no data"))
        }
    };
    match code {
        option::EXPORT_NAME => Ok(ClientOption::ExportName(text(data)?)),
        // A client that gives up is let go whatever it sends along.
        option::ABORT => Ok(ClientOption::Abort),
        option::LIST => without_data(ClientOption::List),
        option::START_TLS => without_data(ClientOption::StartTls),
        option::INFO => Ok(ClientOption::Info(info_request(data)?)),
        option::GO => Ok(ClientOption::Go(info_request(data)?)),
        option::STRUCTURED_REPLY => without_data(ClientOption::StructuredReply),
        option::LIST_META_CONTEXT => Ok(ClientOption::ListMetaContext(meta_query(data)?)),
        option::SET_META_CONTEXT => Ok(ClientOption::SetMetaContext(meta_query(data)?)),
        _ => Ok(ClientOption::Unknown),
    }
}

fn info_request(data: &[u8]) -> Result<InfoRequest<'_>, OptionError> {
    let mut reader = Reader { rest: data };
    let name = reader.text()?;
    let count = reader.u16().ok_or(SHORT)?;
    let mut request = InfoRequest { name, wants_name: false, wants_description: false };
    for _ in 0..count {
        match reader.u16().ok_or(SHORT)? {
            info::NAME => request.wants_name = true,
            info::DESCRIPTION => request.wants_description = true,
            _ => {}
        }
    }
    reader.end()?;
    Ok(request)
}

fn meta_query(data: &[u8]) -> Result<MetaQuery<'_>, OptionError> {
    let mut reader = Reader { rest: data };
    let name = reader.text()?;
    let count = reader.u32().ok_or(SHORT)?;
    let mut query = MetaQuery { name, is_empty: count == 0, allocation: false, base: false };
    // A count that lies ends with the data, after at most a quarter as many turns as bytes.
    for _ in 0..count {
        match reader.text()? {
            ALLOCATION_CONTEXT => query.allocation = true,
            BASE_NAMESPACE => query.base = true,
            other if other.contains(':') => {}
            _ => return Err(OptionError::Invalid("a metadata query begins with a namespace")),
        }
    }
    reader.end()?;
    Ok(query)
}

fn text(bytes: &[u8]) -> Result<&str, OptionError> {
    if bytes.len() > STRING_BYTES_MAX {
        return Err(OptionError::TooBig("a string has at most 4096 bytes"));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(OptionError::Invalid("a string is UTF-8 without NUL")),
    }
}

/// Appends one reply to an option.
pub(super) fn push_option_reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[&[u8]]) {
    let data_bytes: usize = data.iter().map(|part| part.len()).sum();
    let data_bytes = u32::try_from(data_bytes).expect("replies hold two bounded strings at most");
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&data_bytes.to_be_bytes());
    for part in data {
        out.extend_from_slice(part);
    }
}

/// Takes numbers and strings off the front of bytes.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*first)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn text(&mut self) -> Result<&'a str, OptionError> {
        let len = usize::try_from(self.u32().ok_or(SHORT)?).map_err(|_| SHORT)?;
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(SHORT)?;
        self.rest = rest;
        text(bytes)
    }

    fn end(&self) -> Result<(), OptionError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(OptionError::Invalid("the data goes on behind its end"))
        }
    }
}
