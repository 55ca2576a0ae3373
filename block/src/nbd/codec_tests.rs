//! The pure parts under bytes of any kind: no panic, bounded answers, and what was encoded by the
//! book is understood.

use std::sync::Arc;

use proptest::prelude::*;

use crate::chunk::Chunk;
use crate::device::{
    Device, DeviceError, Durability, Geometry, Payload, StatusExtent, ZeroOptions, check_range,
};
use crate::exports::{Export, ExportList};
use crate::range::ByteRange;

use super::error::{Access, ErrorCode, MESSAGE_BYTES_MAX, Refusal, Violation};
use super::negotiation::{Negotiation, Next};
use super::option::{
    ClientFlags, ClientOption, InfoRequest, MetaQuery, OPTION_HEADER_BYTES, parse_client_flags,
    parse_option, parse_option_header,
};
use super::protocol::{OPTION_BYTES_MAX, REQUEST_BYTES_MAX, option};
use super::reply::{EXTENTS_MAX, HEAD_BYTES_MAX, Reply, descriptors};
use super::request::{Command, Cookie, Job, Negotiated, REQUEST_BYTES, Request};

/// A disk that is only looked at.
struct Facade(Geometry);

struct NoPayload;

impl Payload for NoPayload {
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut []
    }
}

const NOT_CALLED: DeviceError = DeviceError::Unsupported("this disk is only looked at");

impl Device for Facade {
    type Payload = NoPayload;

    fn geometry(&self) -> Geometry {
        self.0
    }
    async fn reserve(&self, _: ByteRange) -> Result<NoPayload, DeviceError> {
        Err(NOT_CALLED)
    }
    async fn write(&self, _: NoPayload, _: Durability) -> Result<(), DeviceError> {
        Err(NOT_CALLED)
    }
    async fn read(&self, _: u64, _: Chunk) -> Result<Chunk, DeviceError> {
        Err(NOT_CALLED)
    }
    async fn flush(&self) -> Result<(), DeviceError> {
        Err(NOT_CALLED)
    }
    async fn trim(&self, _: ByteRange, _: Durability) -> Result<(), DeviceError> {
        Err(NOT_CALLED)
    }
    async fn write_zeroes(&self, _: ByteRange, _: ZeroOptions) -> Result<(), DeviceError> {
        Err(NOT_CALLED)
    }
    async fn block_status(
        &self,
        _: ByteRange,
        _: usize,
        _: &mut Vec<StatusExtent>,
    ) -> Result<(), DeviceError> {
        Err(NOT_CALLED)
    }
    async fn cache(&self, _: ByteRange) -> Result<(), DeviceError> {
        Err(NOT_CALLED)
    }
}

fn geometry() -> impl Strategy<Value = Geometry> {
    (0..1_u64 << 40, 0..13_u32, any::<bool>(), any::<bool>()).prop_map(
        |(blocks, shift, read_only, fast_zero)| Geometry {
            size_bytes: (blocks >> shift) << shift,
            block_bytes_min: 1 << shift,
            block_bytes_preferred: 4096,
            read_only,
            fast_zero,
        },
    )
}

fn request_bytes(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    [
        &0x2560_9513_u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ]
    .concat()
}

fn text(bytes: &str) -> Vec<u8> {
    let len = u32::try_from(bytes.len()).expect("short");
    [&len.to_be_bytes()[..], bytes.as_bytes()].concat()
}

/// Names and queries with the interesting ones among them.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("disk".to_owned()),
        Just("base:allocation".to_owned()),
        Just("base:".to_owned()),
        "[a-z:/ä\u{0}]{0,20}",
    ]
}

/// Options as clients send them, half right, or noise.
fn option_and_data() -> impl Strategy<Value = (u32, Vec<u8>)> {
    let info = (name(), proptest::collection::vec(0..5_u16, 0..4)).prop_map(|(name, infos)| {
        let count = u16::try_from(infos.len()).expect("few");
        let infos: Vec<u8> = infos.iter().flat_map(|info| info.to_be_bytes()).collect();
        [text(&name), count.to_be_bytes().to_vec(), infos].concat()
    });
    let meta = (name(), proptest::collection::vec(name(), 0..4)).prop_map(|(name, queries)| {
        let count = u32::try_from(queries.len()).expect("few");
        let queries: Vec<u8> = queries.iter().flat_map(|query| text(query)).collect();
        [text(&name), count.to_be_bytes().to_vec(), queries].concat()
    });
    let noise = proptest::collection::vec(any::<u8>(), 0..200);
    let data = prop_oneof![Just(Vec::new()), Just(b"disk".to_vec()), info, meta, noise];
    (prop_oneof![0..14_u32, any::<u32>()], data)
}

proptest! {
    #[test]
    fn any_option_header_is_a_header_or_a_violation(
        bytes in any::<[u8; OPTION_HEADER_BYTES]>(),
        with_magic in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if with_magic {
            bytes[..8].copy_from_slice(b"IHAVEOPT");
        }
        match parse_option_header(&bytes) {
            Ok(header) => prop_assert!(with_magic && header.data_bytes <= OPTION_BYTES_MAX),
            Err(Violation::OptionTooLong { data_bytes, .. }) => {
                prop_assert!(data_bytes as usize > OPTION_BYTES_MAX);
            }
            Err(error) => prop_assert!(!with_magic, "{error}"),
        }
    }

    #[test]
    fn any_dialogue_is_answered_within_bounds(
        dialogue in proptest::collection::vec(option_and_data(), 0..30),
        no_zeroes in any::<bool>(),
        geometry in geometry(),
    ) {
        let exports = ExportList::new();
        for name in ["disk", "other"] {
            let (name, description) = (name.to_owned(), "d".repeat(100));
            let export = Export { name, description, device: Arc::new(Facade(geometry)) };
            exports.add(export).expect("a valid name");
        }
        let mut negotiation = Negotiation::new(&exports, ClientFlags { no_zeroes });
        for (code, data) in dialogue {
            let answer = negotiation.apply(code, &data);
            prop_assert!(answer.bytes.len() <= 1024, "{} bytes", answer.bytes.len());
            match answer.next {
                Next::Option => prop_assert!(!answer.bytes.is_empty(), "every option has an answer"),
                Next::Close => prop_assert_eq!(code, option::ABORT),
                Next::NoSuchExport(_) => prop_assert!(answer.bytes.is_empty()),
                Next::Transmission(export, negotiated) => {
                    prop_assert!(code == option::GO || code == option::EXPORT_NAME);
                    prop_assert!(negotiated.structured || !negotiated.allocation);
                    prop_assert!(export.name == "disk" || export.name == "other");
                }
            }
        }
    }

    #[test]
    fn any_request_is_checked_against_the_disk(
        bytes in any::<[u8; REQUEST_BYTES]>(),
        by_the_book in proptest::option::of((0..32_u16, 0..10_u16, 0..1_u64 << 20, 0..1_u32 << 20)),
        geometry in geometry(),
        structured in any::<bool>(),
        allocation in any::<bool>(),
    ) {
        let bytes = match by_the_book {
            Some((flags, command, offset, len)) => {
                request_bytes(flags, command, 5, offset, len).try_into().expect("28 bytes")
            }
            None => bytes,
        };
        let Ok(request) = Request::parse(&bytes) else { return Ok(()) };
        prop_assert!(request.payload_bytes() <= REQUEST_BYTES_MAX);
        let negotiated = Negotiated { structured, allocation: structured && allocation };
        let range = match request.check(&geometry, negotiated) {
            Err(refusal) => {
                prop_assert!(!refusal.message_sent().is_empty());
                return Ok(());
            }
            Ok(Command::Disconnect | Command::Job(Job::Flush)) => return Ok(()),
            Ok(
                Command::Write { range, .. }
                | Command::Job(Job::Trim { range, .. } | Job::WriteZeroes { range, .. }),
            ) => {
                prop_assert!(!geometry.read_only);
                range
            }
            Ok(Command::Job(Job::Read { range, whole })) => {
                prop_assert!(whole || structured);
                prop_assert!(range.len() <= u64::from(REQUEST_BYTES_MAX));
                range
            }
            Ok(Command::Job(Job::BlockStatus { range, .. })) => {
                prop_assert!(negotiated.allocation && !range.is_empty());
                range
            }
            Ok(Command::Job(Job::Cache { range })) => range,
        };
        prop_assert!(check_range(&geometry, range).is_ok());
    }

    #[test]
    fn requests_are_understood_as_sent(cookie in any::<u64>(), offset in 0..1_u64 << 30, len in 1..1_u32 << 20) {
        let geometry = Geometry {
            size_bytes: 1 << 31,
            block_bytes_min: 1,
            block_bytes_preferred: 4096,
            read_only: false,
            fast_zero: true,
        };
        let parse = |flags, command| {
            let bytes = request_bytes(flags, command, cookie, offset, len);
            let request = Request::parse(&bytes.try_into().expect("28 bytes")).expect("valid");
            assert_eq!(request.cookie, Cookie(cookie.to_be_bytes()));
            let all = Negotiated { structured: true, allocation: true };
            request.check(&geometry, all).expect("inside")
        };
        let range = ByteRange::new(offset, u64::from(len)).expect("inside");
        let durability = Durability::Stable;
        prop_assert_eq!(parse(1, 1), Command::Write { range, durability });
        prop_assert_eq!(parse(0, 0), Command::Job(Job::Read { range, whole: false }));
        prop_assert_eq!(parse(4, 0), Command::Job(Job::Read { range, whole: true }));
        prop_assert_eq!(parse(1, 4), Command::Job(Job::Trim { range, durability }));
        prop_assert_eq!(parse(0, 5), Command::Job(Job::Cache { range }));
        let options = ZeroOptions { no_hole: true, fast: true, durability };
        prop_assert_eq!(parse(1 | 2 | 16, 6), Command::Job(Job::WriteZeroes { range, options }));
        prop_assert_eq!(parse(8, 7), Command::Job(Job::BlockStatus { range, one: true }));
    }

    #[test]
    fn descriptors_cover_the_front_of_the_range_and_no_more(
        len in 1..u64::from(u32::MAX),
        extents in proptest::collection::vec((0..1_u64 << 33, any::<bool>(), any::<bool>()), 0..20),
        max in 1..EXTENTS_MAX,
    ) {
        let extents: Vec<StatusExtent> = extents
            .into_iter()
            .map(|(len_bytes, hole, zero)| StatusExtent { len_bytes, hole, zero })
            .collect();
        let range = ByteRange::new(7, len).expect("fits");
        let sent = descriptors(range, &extents, max);
        prop_assert!((1..=max).contains(&sent.len()));
        let mut head = vec![0; HEAD_BYTES_MAX];
        let cookie = Cookie([1; 8]);
        let (bytes, payload) = Reply::Status { cookie, extents: sent }.encode(&mut head);
        prop_assert!(payload.is_none());
        let words: Vec<u32> = head[24..bytes]
            .chunks_exact(4)
            .map(|word| u32::from_be_bytes(word.try_into().expect("4 bytes")))
            .collect();
        let total: u64 = words.chunks_exact(2).map(|pair| u64::from(pair[0])).sum();
        prop_assert!((1..=len).contains(&total));
        prop_assert!(words.chunks_exact(2).all(|pair| pair[0] > 0 && pair[1] < 4));
        prop_assert!(words.chunks_exact(2).zip(words.chunks_exact(2).skip(1)).all(|(a, b)| a[1] != b[1]));
    }

    #[test]
    fn errors_fit_into_the_space_for_heads(message in "\\PC{0,300}", at in proptest::option::of(any::<u64>())) {
        let refusal = Refusal { code: ErrorCode::Io, message: message.clone().into() };
        let sent = refusal.message_sent().to_owned();
        prop_assert!(sent.len() <= MESSAGE_BYTES_MAX && message.starts_with(&sent));
        let mut head = vec![0; HEAD_BYTES_MAX];
        let reply = Reply::Error { cookie: Cookie([9; 8]), refusal, at };
        let (bytes, _) = reply.encode(&mut head);
        let announced = u32::from_be_bytes(head[16..20].try_into().expect("4 bytes"));
        prop_assert_eq!(announced as usize, bytes - 20);
        prop_assert_eq!(&head[26..26 + sent.len()], sent.as_bytes());
    }
}

#[test]
fn options_are_understood_as_sent() {
    let go = [text("disk"), vec![0, 2, 0, 1, 0, 3]].concat();
    let request = InfoRequest { name: "disk", wants_name: true, wants_description: false };
    assert_eq!(parse_option(option::GO, &go), Ok(ClientOption::Go(request)));
    let set = [text("disk"), vec![0, 0, 0, 2], text("x-a:b"), text("base:allocation")].concat();
    let query = MetaQuery { name: "disk", is_empty: false, allocation: true, base: false };
    assert_eq!(
        parse_option(option::SET_META_CONTEXT, &set),
        Ok(ClientOption::SetMetaContext(query))
    );
    assert_eq!(parse_client_flags([0, 0, 0, 3]), Ok(ClientFlags { no_zeroes: true }));
    assert_eq!(parse_client_flags([0, 0, 0, 4]), Err(Violation::ClientFlags(4)));
}

#[test]
fn device_failures_have_their_error_values() {
    let range = ByteRange::new(0, 8192).expect("fits");
    let io = |kind: std::io::ErrorKind| DeviceError::Io { range, source: kind.into() };
    let out = DeviceError::OutOfRange { range, size_bytes: 4096 };
    let unaligned = DeviceError::OutOfRange { range, size_bytes: 1 << 20 };
    let cases = [
        (&out, Access::Read, ErrorCode::Invalid),
        (&out, Access::Write, ErrorCode::NoSpace),
        (&unaligned, Access::Write, ErrorCode::Invalid),
        (&DeviceError::ReadOnly, Access::Write, ErrorCode::NotPermitted),
        (&NOT_CALLED, Access::FastZero, ErrorCode::NotSupported),
        (&NOT_CALLED, Access::Write, ErrorCode::Invalid),
        (&DeviceError::NoSpace, Access::Write, ErrorCode::NoSpace),
        (&DeviceError::ShuttingDown, Access::Read, ErrorCode::ShuttingDown),
        (&io(std::io::ErrorKind::QuotaExceeded), Access::Write, ErrorCode::NoSpace),
        (&io(std::io::ErrorKind::FileTooLarge), Access::Write, ErrorCode::NoSpace),
        (&io(std::io::ErrorKind::Other), Access::Write, ErrorCode::Io),
        (&DeviceError::Damaged { range, detail: "a checksum".into() }, Access::Read, ErrorCode::Io),
    ];
    for (error, access, code) in cases {
        assert_eq!(Refusal::from_device(error, access).code, code, "{error} {access:?}");
    }
}
