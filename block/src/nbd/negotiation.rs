//! What the server answers to the options of one client.
//!
//! In: one option with its data. Out: the bytes to send and whether to go on. The state lives as
//! long as the handshake of one connection and does no I/O, so every dialogue can be played
//! without a socket. An answer is bounded by the list of exports.

use crate::device::{Device, Geometry};
use crate::exports::{Export, ExportList};

use super::error::MESSAGE_BYTES_MAX;
use super::option::{
    ClientFlags, ClientOption, InfoRequest, MetaQuery, OptionError, parse_option, push_option_reply,
};
use super::protocol::{
    ALLOCATION_CONTEXT, ALLOCATION_CONTEXT_ID, EXPORT_NAME_PADDING_BYTES, REQUEST_BYTES_MAX, info,
    option, option_reply, transmission,
};
use super::request::Negotiated;

/// State of a handshake after the flags.
pub(super) struct Negotiation<'a, D> {
    exports: &'a ExportList<D>,
    flags: ClientFlags,
    structured: bool,
    /// Name of the export for which `base:allocation` was chosen last.
    allocation_of: Option<String>,
}

/// What to do after sending an answer.
pub(super) enum Next<D> {
    /// Read the next option.
    Option,
    /// Let the client go; it asked for that.
    Close,
    /// Hang up, as `NBD_OPT_EXPORT_NAME` has no error reply. The name is cut to a length that is
    /// fit for a log.
    NoSuchExport(String),
    /// Serve requests on this export.
    Transmission(Export<D>, Negotiated),
}

/// Bytes to send and what comes then.
pub(super) struct Answer<D> {
    pub(super) bytes: Vec<u8>,
    pub(super) next: Next<D>,
}

impl<'a, D: Device> Negotiation<'a, D> {
    pub(super) fn new(exports: &'a ExportList<D>, flags: ClientFlags) -> Self {
        Self { exports, flags, structured: false, allocation_of: None }
    }

    /// Answers one option.
    pub(super) fn apply(&mut self, code: u32, data: &[u8]) -> Answer<D> {
        let mut reply = Replies { option: code, bytes: Vec::new() };
        let next = self.answer(code, data, &mut reply);
        Answer { bytes: reply.bytes, next }
    }

    fn answer(&mut self, code: u32, data: &[u8], reply: &mut Replies) -> Next<D> {
        let parsed = match parse_option(code, data) {
            Ok(parsed) => parsed,
            Err(_) if code == option::EXPORT_NAME => {
                let front = &data[..data.len().min(MESSAGE_BYTES_MAX)];
                return Next::NoSuchExport(String::from_utf8_lossy(front).into_owned());
            }
            Err(error) => {
                if code == option::SET_META_CONTEXT {
                    self.allocation_of = None;
                }
                reply.refuse_data(error);
                return Next::Option;
            }
        };
        match parsed {
            ClientOption::ExportName(name) => return self.export_name(name, reply),
            ClientOption::Abort => {
                reply.ack();
                return Next::Close;
            }
            ClientOption::List => self.list(reply),
            // The place of TLS: an acknowledgement, the TLS handshake, and a fresh negotiation
            // on the stream that comes out of it.
            ClientOption::StartTls => {
                reply.error(option_reply::ERR_POLICY, "TLS is not offered on this socket");
            }
            ClientOption::Info(request) => {
                self.describe(request, reply);
            }
            ClientOption::Go(request) => {
                if let Some(export) = self.describe(request, reply) {
                    let negotiated = self.negotiated(&export);
                    return Next::Transmission(export, negotiated);
                }
            }
            ClientOption::StructuredReply => {
                self.structured = true;
                reply.ack();
            }
            ClientOption::ListMetaContext(query) => {
                let wanted = query.is_empty || query.allocation || query.base;
                self.meta_context(query, wanted, reply);
            }
            ClientOption::SetMetaContext(query) => {
                self.allocation_of = None;
                if let Some(export) = self.meta_context(query, query.allocation, reply)
                    && query.allocation
                {
                    self.allocation_of = Some(export.name);
                }
            }
            ClientOption::Unknown => {
                reply.error(option_reply::ERR_UNSUPPORTED, "unknown option");
            }
        }
        Next::Option
    }

    fn export_name(&self, name: &str, reply: &mut Replies) -> Next<D> {
        let Some(export) = self.find(name) else {
            let front = &name[..name.floor_char_boundary(MESSAGE_BYTES_MAX)];
            return Next::NoSuchExport(front.to_owned());
        };
        let geometry = export.device.geometry();
        let flags = transmission_flags(&geometry, self.structured);
        reply.bytes.extend_from_slice(&geometry.size_bytes.to_be_bytes());
        reply.bytes.extend_from_slice(&flags.to_be_bytes());
        if !self.flags.no_zeroes {
            reply.bytes.extend_from_slice(&[0; EXPORT_NAME_PADDING_BYTES]);
        }
        let negotiated = self.negotiated(&export);
        Next::Transmission(export, negotiated)
    }

    fn list(&self, reply: &mut Replies) {
        for name in self.exports.names() {
            // One that was removed meanwhile is left out.
            if let Some(export) = self.exports.get(&name) {
                let name_bytes = u32::try_from(name.len()).expect("names have at most 255 bytes");
                reply.push(
                    option_reply::SERVER,
                    &[&name_bytes.to_be_bytes(), name.as_bytes(), export.description.as_bytes()],
                );
            }
        }
        reply.ack();
    }

    /// Answers INFO and GO; gives the export when there is one.
    fn describe(&self, request: InfoRequest<'_>, reply: &mut Replies) -> Option<Export<D>> {
        let Some(export) = self.find(request.name) else {
            reply.no_such_export(request.name);
            return None;
        };
        let geometry = export.device.geometry();
        let flags = transmission_flags(&geometry, self.structured);
        reply.info(info::EXPORT, &[&geometry.size_bytes.to_be_bytes(), &flags.to_be_bytes()]);
        if request.wants_name {
            reply.info(info::NAME, &[export.name.as_bytes()]);
        }
        if request.wants_description && !export.description.is_empty() {
            reply.info(info::DESCRIPTION, &[export.description.as_bytes()]);
        }
        // Told unasked as well: a client that does not know it ignores it, one that does
        // addresses the disk in the way it is fast.
        reply.info(
            info::BLOCK_SIZE,
            &[
                &geometry.block_bytes_min.to_be_bytes(),
                &geometry.block_bytes_preferred.to_be_bytes(),
                &REQUEST_BYTES_MAX.to_be_bytes(),
            ],
        );
        reply.ack();
        Some(export)
    }

    /// Answers the two metadata options; gives the export when the option succeeded.
    fn meta_context(
        &self,
        query: MetaQuery<'_>,
        wanted: bool,
        reply: &mut Replies,
    ) -> Option<Export<D>> {
        if !self.structured {
            reply.error(option_reply::ERR_INVALID, "structured replies come first");
            return None;
        }
        let Some(export) = self.find(query.name) else {
            reply.no_such_export(query.name);
            return None;
        };
        if wanted {
            // A listing's identifier is to be zero, a selection's is the one used later.
            let id = match reply.option {
                option::SET_META_CONTEXT => ALLOCATION_CONTEXT_ID,
                _ => 0,
            };
            let name = ALLOCATION_CONTEXT.as_bytes();
            reply.push(option_reply::META_CONTEXT, &[&id.to_be_bytes(), name]);
        }
        reply.ack();
        Some(export)
    }

    /// The empty name stands for the only export.
    fn find(&self, name: &str) -> Option<Export<D>> {
        if name.is_empty() { self.exports.only() } else { self.exports.get(name) }
    }

    fn negotiated(&self, export: &Export<D>) -> Negotiated {
        Negotiated {
            structured: self.structured,
            allocation: self.allocation_of.as_ref() == Some(&export.name),
        }
    }
}

/// What a client may ask of a disk. Flushes cover all connections, so several may be used at
/// once.
fn transmission_flags(geometry: &Geometry, structured: bool) -> u16 {
    let mut flags = transmission::HAS_FLAGS
        | transmission::SEND_FLUSH
        | transmission::SEND_CACHE
        | transmission::CAN_MULTI_CONN;
    if geometry.read_only {
        flags |= transmission::READ_ONLY;
    } else {
        flags |= transmission::SEND_FUA | transmission::SEND_TRIM;
        flags |= transmission::SEND_WRITE_ZEROES;
        if geometry.fast_zero {
            flags |= transmission::SEND_FAST_ZERO;
        }
    }
    if structured {
        flags |= transmission::SEND_DF;
    }
    flags
}

/// The replies to one option.
struct Replies {
    option: u32,
    bytes: Vec<u8>,
}

impl Replies {
    fn push(&mut self, kind: u32, data: &[&[u8]]) {
        push_option_reply(&mut self.bytes, self.option, kind, data);
    }

    fn ack(&mut self) {
        self.push(option_reply::ACK, &[]);
    }

    fn info(&mut self, kind: u16, data: &[&[u8]]) {
        self.push(option_reply::INFO, &[&kind.to_be_bytes(), &data.concat()]);
    }

    fn error(&mut self, kind: u32, message: &str) {
        let cut = message.floor_char_boundary(MESSAGE_BYTES_MAX);
        self.push(kind, &[&message.as_bytes()[..cut]]);
    }

    fn refuse_data(&mut self, error: OptionError) {
        match error {
            OptionError::Invalid(message) => self.error(option_reply::ERR_INVALID, message),
            OptionError::TooBig(message) => self.error(option_reply::ERR_TOO_BIG, message),
        }
    }

    fn no_such_export(&mut self, name: &str) {
        let message = if name.is_empty() {
            "there is no single export that could be the default; name one".to_owned()
        } else {
            format!("there is no export named {name:?}")
        };
        self.error(option_reply::ERR_UNKNOWN, &message);
    }
}
