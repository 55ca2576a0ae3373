//! Peers that break the protocol, flood, stall or vanish; and the stop of a server in the middle
//! of work.

#![allow(clippy::disallowed_methods, reason = "a test waits in real time")]

mod nbd_support;

use std::io::Write;
use std::net::Shutdown;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use nbd_support::{Client, Fixture, MemoryDisk, Shape, cmd, err, flag, opt, pattern, wait_for};
use tidemark_block::engine::ExecutorConfig;
use tidemark_block::nbd::ServerConfig;

const MIB: u64 = 1 << 20;

/// Everything logged in this process.
fn log() -> &'static Arc<Mutex<Vec<u8>>> {
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    static LOG: OnceLock<Arc<Mutex<Vec<u8>>>> = OnceLock::new();
    LOG.get_or_init(|| {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&lines);
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || Sink(Arc::clone(&sink)))
            .init();
        lines
    })
}

fn log_lines(needle: &str) -> Vec<String> {
    let bytes = log().lock().expect("no panic").clone();
    let text = String::from_utf8(bytes).expect("the log is UTF-8");
    text.lines().filter(|line| line.contains(needle)).map(str::to_owned).collect()
}

/// Checks that a client is cut off, alone, as a breach of the protocol.
fn expect_violation(export: &str, reason: &str, act: impl FnOnce(&Fixture) -> Client) {
    log();
    let disk = MemoryDisk::sized(MIB);
    let fixture = Fixture::with_disk(export, disk);
    let mut bystander = fixture.connect().flags().go(export, true);
    let mut peer = act(&fixture);
    assert!(peer.is_cut_off(), "{reason}");
    fixture.wait_for("the violation's count", |stats| stats.violations == 1);
    bystander.request(flag::NONE, cmd::READ, 1, 0, 512);
    assert!(bystander.chunk().done, "another client is not touched");
    fixture.wait_for("the end of the connection", |stats| stats.connections_open == 1);
    let lines = log_lines(reason);
    assert_eq!(lines.len(), 1, "{lines:?}");
    let expected = ["WARN", "peer=", "export=", "reason="];
    assert!(expected.iter().all(|part| lines[0].contains(part)), "{}", lines[0]);
}

#[test]
fn a_request_without_its_magic_number() {
    expect_violation("magic", "a request began with 0x12345678", |fixture| {
        let mut peer = fixture.connect().flags().go("magic", true);
        peer.send(&0x1234_5678_u32.to_be_bytes());
        peer.send(&[0; 24]);
        peer
    });
    assert!(log_lines("0x12345678")[0].contains("export=\"magic\""));
}

#[test]
fn a_write_that_is_too_long() {
    expect_violation("long-write", "a write of 33554433 bytes", |fixture| {
        let mut peer = fixture.connect().flags().go("long-write", false);
        peer.request(flag::NONE, cmd::WRITE, 1, 0, (32 << 20) + 1);
        peer
    });
}

#[test]
fn an_option_without_its_magic_number() {
    expect_violation("option", "an option began with 0x0000000000000007", |fixture| {
        let mut peer = fixture.connect().flags();
        peer.send(&[7_u64.to_be_bytes(), [0; 8]].concat());
        peer
    });
}

#[test]
fn an_option_that_is_too_long() {
    expect_violation("long-option", "option 7 carries 4294967295 bytes", |fixture| {
        let mut peer = fixture.connect().flags();
        peer.send(b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff");
        peer
    });
}

#[test]
fn client_flags_that_nobody_offered() {
    expect_violation("flags", "client flags 0x00000103", |fixture| {
        let mut peer = fixture.connect();
        peer.send(&0x103_u32.to_be_bytes());
        peer
    });
}

#[test]
fn options_without_end() {
    expect_violation("endless", "more than 1024 options", |fixture| {
        let mut peer = fixture.connect().flags();
        for _ in 0..1024 {
            assert_eq!(peer.option(opt::LIST, b"").len(), 2);
        }
        peer
    });
}

#[test]
fn a_handshake_that_takes_too_long() {
    let config = ServerConfig { handshake_seconds_max: 1, ..ServerConfig::default() };
    let fixture = Fixture::with_config("slow", MemoryDisk::sized(MIB), config);
    let mut idle = fixture.connect();
    let mut attached = fixture.connect().flags().go("slow", true);
    assert!(idle.is_cut_off());
    fixture.wait_for("the violation's count", |stats| stats.violations == 1);
    attached.request(flag::NONE, cmd::READ, 1, 0, 512);
    assert!(attached.chunk().done, "the limit ends with the handshake");
}

#[test]
fn a_payload_that_never_ends() {
    let config = ServerConfig { payload_seconds_max: 1, ..ServerConfig::default() };
    let fixture = Fixture::with_config("stall", MemoryDisk::sized(MIB), config);
    let mut idle = fixture.connect().flags().go("stall", false);
    let mut stalled = fixture.connect().flags().go("stall", false);
    stalled.request(flag::NONE, cmd::WRITE, 1, 0, 4096);
    stalled.send(&[1; 4095]);
    assert!(stalled.is_cut_off());
    fixture.wait_for("the violation's count", |stats| stats.violations == 1);
    idle.request(flag::NONE, cmd::FLUSH, 1, 0, 0);
    assert_eq!(idle.simple(), (0, 1), "to be idle between requests is no breach");
}

#[test]
fn peers_that_vanish_anywhere_leave_nothing_behind() {
    let disk = MemoryDisk::sized(MIB);
    disk.delay_ms.store(20, Ordering::Relaxed);
    let fixture = Fixture::with_disk("disk", disk.clone());
    drop(fixture.connect());
    drop(fixture.connect().flags());
    let mut half_option = fixture.connect().flags();
    half_option.send(b"IHAVEOPT\0\0\0\x07\0\0\0\x10half");
    drop(half_option);
    let mut half_request = fixture.connect().flags().go("disk", true);
    half_request.send(&[0x25, 0x60, 0x95]);
    drop(half_request);
    let mut half_payload = fixture.connect().flags().go("disk", true);
    half_payload.request(flag::NONE, cmd::WRITE, 1, 0, 8192);
    half_payload.send(&[1; 5000]);
    drop(half_payload);
    let mut unanswered = fixture.connect().flags().go("disk", true);
    for cookie in 0..64 {
        unanswered.request(flag::NONE, cmd::READ, cookie, 0, 1 << 20);
    }
    drop(unanswered);
    let mut leaving = fixture.connect().flags().go("disk", true);
    leaving.request(flag::NONE, cmd::READ, 5, 0, 4096);
    leaving.request(flag::NONE, cmd::DISC, 6, 0, 0);
    assert!(leaving.chunk().done, "what is in flight is answered before a leave");
    assert!(leaving.is_cut_off());
    fixture.wait_for("the end of all connections", |stats| stats.connections_open == 0);
    assert_eq!(fixture.stats().violations, 0, "to vanish breaks no rule");
    assert_eq!(disk.get(0, 8192), vec![0; 8192], "half a payload is not written");
}

#[test]
fn a_client_that_takes_no_answers_is_bounded_and_alone() {
    let disk = MemoryDisk::sized(64 * MIB);
    disk.put(0, &pattern(1 << 20, 1));
    let fixture = Fixture::with_disk("disk", disk);
    let mut greedy = fixture.connect().flags().go("disk", true);
    greedy.socket.set_nonblocking(true).expect("a socket option");
    let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
    request.extend_from_slice(&[0; 20]);
    request.extend_from_slice(&(1_u32 << 20).to_be_bytes());
    let mut sent = 0;
    let mut idle_rounds = 0;
    while idle_rounds < 20 && sent < 1_000_000 {
        match greedy.socket.write(&request) {
            Ok(bytes) => {
                sent += bytes;
                assert_eq!(bytes % 28, 0, "this test sends whole requests");
                idle_rounds = 0;
            }
            Err(_) => {
                idle_rounds += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
    assert!(idle_rounds == 20, "the server stops reading at its bound");
    assert!(fixture.stats().requests < 400, "{:?}", fixture.stats());
    let mut other = fixture.connect().flags().go("disk", true);
    other.request(flag::NONE, cmd::READ, 1, 0, 1 << 20);
    assert_eq!(other.chunks().len(), 4, "others are served");
    greedy.socket.shutdown(Shutdown::Both).expect("still open");
    fixture.wait_for("the end of the greedy one", |stats| stats.connections_open == 1);
}

#[test]
fn in_flight_is_bounded_and_beyond_it_nothing_is_lost() {
    let disk = MemoryDisk::sized(64 * MIB);
    disk.delay_ms.store(5, Ordering::Relaxed);
    let config = ServerConfig {
        in_flight_max: 4,
        payload_bytes_in_flight_max: 300 << 10,
        ..ServerConfig::default()
    };
    let fixture = Fixture::with_config("disk", disk.clone(), config);
    let client = fixture.connect().flags().go("disk", true);
    let socket = client.socket.try_clone().expect("a descriptor");
    let writer = std::thread::spawn(move || {
        let mut writer = Client { socket };
        for cookie in 0..50 {
            writer.write(flag::NONE, cookie, cookie * MIB, &pattern(200 << 10, cookie));
            writer.request(flag::NONE, cmd::READ, 100 + cookie, 0, 4096);
            writer.request(flag::NONE, cmd::READ, 200 + cookie, 0, 300 << 10);
        }
    });
    let mut client = client;
    let mut answered = 0;
    while answered < 150 {
        // Writes have simple replies, reads structured ones: told apart by the first byte.
        let mut magic = [0; 4];
        loop {
            match nix::sys::socket::recv(
                std::os::fd::AsRawFd::as_raw_fd(&client.socket),
                &mut magic,
                nix::sys::socket::MsgFlags::MSG_PEEK,
            ) {
                Ok(4) => break,
                other => assert!(other.is_ok_and(|bytes| bytes > 0), "{other:?}"),
            }
        }
        if magic[0] == 0x67 {
            assert_eq!(client.simple().0, 0);
            answered += 1;
        } else if client.chunk().done {
            answered += 1;
        }
    }
    writer.join().expect("the writer is done");
    for cookie in 0..50 {
        assert!(disk.get(cookie * MIB, 200 << 10) == pattern(200 << 10, cookie));
    }
    assert!(disk.running_max.load(Ordering::Relaxed) <= 4);
}

/// A client that goes on over another connection must not see its own past come back.
#[test]
fn a_change_that_was_given_up_is_not_begun() {
    let disk = MemoryDisk::sized(MIB);
    disk.delay_ms.store(300, Ordering::Relaxed);
    let config = ServerConfig { in_flight_max: 1, ..ServerConfig::default() };
    let fixture = Fixture::with_config("disk", disk.clone(), config);
    for command in [cmd::WRITE, cmd::TRIM, cmd::ZEROES] {
        let mut client = fixture.connect().flags().go("disk", true);
        disk.put(4096, &[7; 4096]);
        client.write(flag::NONE, 1, 0, &pattern(4096, 1));
        if command == cmd::WRITE {
            client.write(flag::NONE, 2, 4096, &pattern(4096, 2));
        } else {
            client.request(flag::NONE, command, 2, 4096, 4096);
        }
        fixture.wait_for("the first write", |stats| stats.requests % 2 == 1);
        client.socket.shutdown(Shutdown::Both).expect("still open");
        fixture.wait_for("the end of the connection", |stats| stats.connections_open == 0);
        assert!(disk.get(0, 4096) == pattern(4096, 1), "what has begun is carried out");
        assert!(disk.get(4096, 4096) == [7; 4096], "command {command} was begun");
    }
}

/// A client that takes its leave, or only says that it has no more to ask, gets what it asked for.
#[test]
fn a_change_before_the_end_is_carried_out() {
    let disk = MemoryDisk::sized(MIB);
    let fixture = Fixture::with_disk("disk", disk.clone());
    for (round, end) in [(1, Shutdown::Both), (2, Shutdown::Write), (3, Shutdown::Write)] {
        let mut client = fixture.connect().flags().go("disk", true);
        let mut requests = Vec::new();
        write_request(&mut requests, cmd::WRITE, round, 4096);
        requests.extend_from_slice(&pattern(4096, round));
        if round < 3 {
            write_request(&mut requests, cmd::DISC, 9, 0);
        }
        client.send(&requests);
        client.socket.shutdown(end).expect("still open");
        fixture.wait_for("the end of the connection", |stats| stats.connections_open == 0);
        assert!(disk.get(0, 4096) == pattern(4096, round), "round {round}");
    }
}

/// A request for the first bytes of the disk, as it goes over the wire.
fn write_request(to: &mut Vec<u8>, command: u16, cookie: u64, len: u32) {
    to.extend_from_slice(&0x2560_9513_u32.to_be_bytes());
    to.extend_from_slice(&flag::NONE.to_be_bytes());
    to.extend_from_slice(&command.to_be_bytes());
    to.extend_from_slice(&cookie.to_be_bytes());
    to.extend_from_slice(&0_u64.to_be_bytes());
    to.extend_from_slice(&len.to_be_bytes());
}

#[test]
fn connections_are_bounded() {
    let config = ServerConfig { connections_max: 2, ..ServerConfig::default() };
    let fixture = Fixture::with_config("disk", MemoryDisk::sized(MIB), config);
    let first = fixture.connect();
    let _second = fixture.connect();
    let mut third = Client {
        socket: std::os::unix::net::UnixStream::connect(fixture.socket()).expect("it listens"),
    };
    assert!(third.is_cut_off());
    assert_eq!(fixture.stats().connections_refused, 1);
    drop(first);
    fixture.wait_for("a free place", |stats| stats.connections_open == 1);
    fixture.connect();
}

#[test]
fn workers_without_room_turn_clients_away_and_go_on() {
    let executors = ExecutorConfig { tasks_max: 6, ..ExecutorConfig::default() };
    let config = ServerConfig::default();
    let disk = MemoryDisk::sized(MIB);
    let fixture = Fixture::with_executors("disk", disk, config, executors);
    let mut first = fixture.connect().flags().go("disk", true);
    let mut second = fixture.connect().flags().go("disk", true);
    let mut third = fixture.connect().flags().go("disk", true);
    assert!(third.is_cut_off());
    for client in [&mut first, &mut second] {
        for cookie in 0..64 {
            client.request(flag::NONE, cmd::READ, cookie, 0, 4096);
        }
        for _ in 0..64 {
            assert!(client.chunk().done);
        }
    }
    drop(second);
    fixture.wait_for("room", |stats| stats.connections_open == 1);
    fixture.connect().flags().go("disk", true).request(flag::NONE, cmd::DISC, 0, 0, 0);
}

#[test]
fn a_stop_answers_what_is_in_flight_and_refuses_what_comes() {
    let disk = MemoryDisk::sized(MIB);
    let mut fixture = Fixture::with_disk("disk", disk.clone());
    let mut client = fixture.connect().flags().go("disk", true);
    let mut idle = fixture.connect().flags();
    disk.delay_ms.store(400, Ordering::Relaxed);
    client.write(flag::NONE, 1, 0, &[7; 4096]);
    wait_for("the write's start", || disk.running_max.load(Ordering::Relaxed) == 1);
    let stopping = std::thread::spawn(move || {
        let start = Instant::now();
        fixture.stop();
        (fixture, start.elapsed())
    });
    std::thread::sleep(Duration::from_millis(100));
    client.request(flag::NONE, cmd::READ, 2, 0, 4096);
    assert_eq!(client.refusal(2), err::ESHUTDOWN);
    assert_eq!(client.simple(), (0, 1), "the write ends");
    assert!(client.is_cut_off() && idle.is_cut_off());
    let (fixture, took) = stopping.join().expect("the stop ends");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(disk.get(0, 4096), vec![7; 4096]);
    assert!(!fixture.socket().exists(), "the socket's file is gone");
    fixture.exports.remove("disk").expect("it is there");
    assert_eq!(Arc::strong_count(&disk), 1, "nobody holds the disk any more");
}

#[test]
fn a_stop_does_not_wait_for_a_disk_that_hangs() {
    let disk = MemoryDisk::new(Shape { size_bytes: MIB, ..Shape::default() });
    let config = ServerConfig { stop_seconds_max: 1, ..ServerConfig::default() };
    let mut fixture = Fixture::with_config("disk", disk.clone(), config);
    let mut client = fixture.connect().flags().go("disk", true);
    disk.delay_ms.store(5000, Ordering::Relaxed);
    client.request(flag::NONE, cmd::READ, 1, 0, 4096);
    wait_for("the read's start", || disk.running_max.load(Ordering::Relaxed) == 1);
    let start = Instant::now();
    fixture.stop();
    assert!(start.elapsed() < Duration::from_millis(4500), "{:?}", start.elapsed());
    assert!(client.is_cut_off());
}
