//! The handshake, option by option, over a raw socket.

#![allow(clippy::disallowed_methods, reason = "a test waits in real time")]

mod nbd_support;

use nbd_support::{Client, Fixture, MemoryDisk, OptionReply, Shape, cmd, err, flag, opt, rep};

fn fixture() -> Fixture {
    Fixture::with_disk("disk", MemoryDisk::sized(1 << 20))
}

fn kinds(replies: &[OptionReply]) -> Vec<u32> {
    replies.iter().map(|reply| reply.kind).collect()
}

/// The payload of an information of one type.
fn info(replies: &[OptionReply], kind: u16) -> Option<&[u8]> {
    let kind = kind.to_be_bytes();
    let found = replies.iter().find(|reply| reply.kind == rep::INFO && reply.data[..2] == kind);
    found.map(|reply| &reply.data[2..])
}

fn flags_of(replies: &[OptionReply]) -> u16 {
    let export = info(replies, 0).expect("always told");
    u16::from_be_bytes(export[8..].try_into().expect("2 bytes"))
}

#[test]
fn info_tells_size_flags_block_sizes_and_what_is_asked_for() {
    let fixture = fixture();
    let mut client = fixture.connect().flags();
    let plain = client.option(opt::INFO, &Client::info_data("disk", &[]));
    assert_eq!(info(&plain, 0).expect("always told")[..8], (1_u64 << 20).to_be_bytes());
    assert_eq!((info(&plain, 1), info(&plain, 2)), (None, None));
    let sizes = [1_u32, 4096, 32 << 20].map(u32::to_be_bytes).concat();
    assert_eq!(info(&plain, 3), Some(&sizes[..]));
    let asked = client.option(opt::INFO, &Client::info_data("disk", &[1, 2, 3, 77]));
    assert_eq!(info(&asked, 1), Some(&b"disk"[..]));
    assert_eq!(info(&asked, 2), Some(&b"the test's disk disk"[..]));
    // INFO leaves the client where it was.
    assert_eq!(kinds(&client.option(opt::ABORT, b"")), [rep::ACK]);
    assert!(client.is_cut_off());
}

#[test]
fn flags_fit_the_disk_and_what_was_negotiated() {
    let fixture = fixture();
    let read_only = Shape { read_only: true, ..Shape::default() };
    let slow = Shape { fast_zero: false, ..Shape::default() };
    fixture.add("read-only", "", MemoryDisk::new(read_only));
    fixture.add("slow", "", MemoryDisk::new(slow));
    let mut client = fixture.connect().flags();
    let mut flags = |name| flags_of(&client.option(opt::INFO, &Client::info_data(name, &[])));
    // HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, MULTI_CONN, CACHE, FAST_ZERO.
    assert_eq!(flags("disk"), 0b1101_0110_1101);
    assert_eq!(flags("slow"), 0b0101_0110_1101);
    // HAS_FLAGS, READ_ONLY, FLUSH, MULTI_CONN, CACHE.
    assert_eq!(flags("read-only"), 0b0101_0000_0111);
    client.option(opt::STRUCTURED, b"");
    let replies = client.option(opt::INFO, &Client::info_data("disk", &[]));
    assert_eq!(flags_of(&replies), 0b1101_1110_1101, "DF comes with structured replies");
}

#[test]
fn list_names_every_export_with_its_description() {
    let fixture = fixture();
    fixture.add("second", "", MemoryDisk::sized(4096));
    let mut client = fixture.connect().flags();
    let replies = client.option(opt::LIST, b"");
    assert_eq!(kinds(&replies), [rep::SERVER, rep::SERVER, rep::ACK]);
    assert_eq!(replies[0].data, b"\0\0\0\x04diskthe test's disk disk");
    assert_eq!(replies[1].data, b"\0\0\0\x06second");
    fixture.exports.remove("second").expect("it is there");
    assert_eq!(client.option(opt::LIST, b"").len(), 2);
    assert_eq!(kinds(&client.option(opt::LIST, b"x")), [rep::ERR_INVALID]);
}

#[test]
fn unknown_exports_are_named_in_the_error_and_the_client_may_go_on() {
    let fixture = fixture();
    let mut client = fixture.connect().flags();
    let replies = client.option(opt::GO, &Client::info_data("nope", &[]));
    assert_eq!(kinds(&replies), [rep::ERR_UNKNOWN]);
    assert!(String::from_utf8_lossy(&replies[0].data).contains("nope"));
    // A name as long as the protocol allows does not make the message as long.
    let replies = client.option(opt::INFO, &Client::info_data(&"\u{1}".repeat(4096), &[]));
    assert_eq!(kinds(&replies), [rep::ERR_UNKNOWN]);
    assert!(replies[0].data.len() <= 256);
    let mut client = client.go("disk", false);
    client.request(flag::NONE, cmd::READ, 1, 0, 4);
    assert_eq!(client.simple(), (0, 1));
}

#[test]
fn the_empty_name_is_the_only_export() {
    let fixture = fixture();
    let mut client = fixture.connect().flags();
    let replies = client.option(opt::INFO, &Client::info_data("", &[1]));
    assert_eq!(info(&replies, 1), Some(&b"disk"[..]));
    fixture.add("second", "", MemoryDisk::sized(4096));
    let replies = client.option(opt::INFO, &Client::info_data("", &[1]));
    assert_eq!(kinds(&replies), [rep::ERR_UNKNOWN]);
}

#[test]
fn export_name_answers_with_and_without_zeroes() {
    let fixture = fixture();
    for (client_flags, padding) in [(1_u32, 124), (3, 0), (0, 124)] {
        let mut client = fixture.connect();
        client.send(&client_flags.to_be_bytes());
        client.send_option(opt::EXPORT_NAME, b"disk");
        assert_eq!(u64::from_be_bytes(client.take()), 1 << 20);
        assert_eq!(u16::from_be_bytes(client.take()) & 1, 1);
        assert_eq!(client.take_vec(padding), vec![0; padding]);
        client.request(flag::NONE, cmd::FLUSH, 9, 0, 0);
        assert_eq!(client.simple(), (0, 9));
    }
    let mut client = fixture.connect().flags();
    client.send_option(opt::EXPORT_NAME, b"nope");
    assert!(client.is_cut_off());
    let mut client = fixture.connect().flags();
    client.send_option(opt::EXPORT_NAME, b"\xff\xff");
    assert!(client.is_cut_off());
    assert_eq!(fixture.stats().violations, 0, "a wrong name breaks no rule");
}

#[test]
fn options_that_are_not_offered_get_their_error() {
    let fixture = fixture();
    let mut client = fixture.connect().flags();
    assert_eq!(kinds(&client.option(opt::STARTTLS, b"")), [rep::ERR_POLICY]);
    assert_eq!(kinds(&client.option(opt::STARTTLS, b"data")), [rep::ERR_INVALID]);
    for unknown in [0, 4, 8 + 3, 12, 0xffff_ffff] {
        assert_eq!(kinds(&client.option(unknown, b"whatever")), [rep::ERR_UNSUP], "{unknown}");
    }
    assert_eq!(kinds(&client.option(opt::STRUCTURED, b"x")), [rep::ERR_INVALID]);
    assert_eq!(kinds(&client.option(opt::GO, b"\0\0\0\x09disk")), [rep::ERR_INVALID]);
    assert_eq!(kinds(&client.option(opt::GO, b"\0\0\0\x04disk\0\x02\0\x01")), [rep::ERR_INVALID]);
    assert_eq!(kinds(&client.option(opt::GO, b"\0\0\0\x04disk\0\0rest")), [rep::ERR_INVALID]);
    assert_eq!(kinds(&client.option(opt::GO, b"\0\0\0\x02\xff\xff\0\0")), [rep::ERR_INVALID]);
    let long = Client::info_data(&"x".repeat(4097), &[]);
    assert_eq!(kinds(&client.option(opt::GO, &long)), [rep::ERR_TOO_BIG]);
    assert_eq!(kinds(&client.option(opt::GO, &Client::info_data("disk", &[]))).last(), Some(&1));
}

#[test]
fn metadata_contexts_are_listed_and_chosen() {
    let fixture = fixture();
    let mut client = fixture.connect().flags();
    let data = Client::meta_data("disk", &["base:allocation"]);
    assert_eq!(kinds(&client.option(opt::LIST_META, &data)), [rep::ERR_INVALID]);
    assert_eq!(kinds(&client.option(opt::SET_META, &data)), [rep::ERR_INVALID]);
    client.option(opt::STRUCTURED, b"");
    for queries in [&[][..], &["base:"], &["x-other:thing", "base:allocation"]] {
        let replies = client.option(opt::LIST_META, &Client::meta_data("disk", queries));
        assert_eq!(kinds(&replies), [rep::META, rep::ACK], "{queries:?}");
        assert_eq!(replies[0].data, b"\0\0\0\0base:allocation");
    }
    for queries in [&[][..], &["base:"], &["base:other"], &["x-other:thing"]] {
        let replies = client.option(opt::SET_META, &Client::meta_data("disk", queries));
        assert_eq!(kinds(&replies), [rep::ACK], "{queries:?}");
    }
    let data = Client::meta_data("nope", &["base:allocation"]);
    assert_eq!(kinds(&client.option(opt::SET_META, &data)), [rep::ERR_UNKNOWN]);
    let data = Client::meta_data("disk", &["allocation"]);
    assert_eq!(kinds(&client.option(opt::SET_META, &data)), [rep::ERR_INVALID]);
    let lie = b"\0\0\0\x04disk\xff\xff\xff\xff";
    assert_eq!(kinds(&client.option(opt::SET_META, lie)), [rep::ERR_INVALID]);
    let data = Client::meta_data("disk", &["base:allocation"]);
    let replies = client.option(opt::SET_META, &data);
    assert_eq!(replies[0].data, b"\0\0\0\x01base:allocation");
}

#[test]
fn a_context_holds_for_the_export_it_was_chosen_for_and_until_the_next_choice() {
    let fixture = fixture();
    fixture.add("second", "", MemoryDisk::sized(1 << 20));
    let choose = |names: &[(&str, &[&str])], go: &str| {
        let mut client = fixture.connect().flags();
        client.option(opt::STRUCTURED, b"");
        for (name, queries) in names {
            client.option(opt::SET_META, &Client::meta_data(name, queries));
        }
        client.option(opt::GO, &Client::info_data(go, &[]));
        client.request(flag::NONE, cmd::STATUS, 5, 0, 4096);
        client.chunk()
    };
    let wanted: &[&str] = &["base:allocation"];
    assert_eq!(choose(&[("disk", wanted)], "disk").extents(), [(4096, 3)]);
    let refused = [
        choose(&[("second", wanted)], "disk"),
        choose(&[], "disk"),
        choose(&[("disk", wanted), ("disk", &[])], "disk"),
        choose(&[("disk", wanted), ("nope", wanted)], "disk"),
        choose(&[("disk", wanted), ("disk", &["no namespace"])], "disk"),
    ];
    for chunk in refused {
        assert_eq!(chunk.error().0, err::EINVAL);
    }
}
