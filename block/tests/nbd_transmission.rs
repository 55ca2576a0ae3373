//! The transmission phase, command by command and error by error, over a raw socket.

#![allow(clippy::disallowed_methods, reason = "a test waits in real time")]

mod nbd_support;

use std::io::Read;
use std::sync::atomic::Ordering;

use nbd_support::{Client, Fixture, MemoryDisk, Shape, cmd, err, flag, pattern};

const MIB: u64 = 1 << 20;

#[test]
fn small_reads_answer_in_the_negotiated_form_and_ask_for_no_status() {
    let disk = MemoryDisk::sized(MIB);
    let data = pattern(8192, 1);
    disk.put(4096, &data);
    let fixture = Fixture::with_disk("disk", disk.clone());
    let mut simple = fixture.connect().flags().go("disk", false);
    simple.request(flag::NONE, cmd::READ, 7, 4097, 5000);
    assert_eq!(simple.simple(), (0, 7));
    assert_eq!(simple.take_vec(5000), data[1..5001]);
    let mut structured = fixture.connect().flags().go("disk", true);
    structured.request(flag::NONE, cmd::READ, 8, 4096, 4096);
    let chunk = structured.chunk();
    assert_eq!((chunk.done, chunk.cookie, chunk.content()), (true, 8, (4096, &data[..4096])));
    structured.request(flag::FUA, cmd::READ, 9, 0, 4096);
    assert_eq!(structured.chunk().content(), (0, &[0; 4096][..]), "small holes are data");
    assert_eq!(disk.status_calls.load(Ordering::Relaxed), 0);
}

#[test]
fn long_reads_come_in_pieces_with_holes_told_as_such() {
    let disk = MemoryDisk::sized(8 * MIB);
    let data = pattern(600 << 10, 2);
    disk.put(MIB, &data);
    let fixture = Fixture::with_disk("disk", disk);
    let mut client = fixture.connect().flags().go("disk", true);
    client.request(flag::NONE, cmd::READ, 3, 4096 + 1, 4 << 20);
    let mut back = vec![0xee; 4 << 20];
    let (mut data_chunks, mut holes) = (0, 0);
    for chunk in client.chunks() {
        assert_eq!(chunk.cookie, 3);
        let (offset, bytes) = match chunk.kind {
            2 => {
                holes += 1;
                let (offset, len) = chunk.hole();
                (offset, vec![0; len as usize])
            }
            _ => {
                data_chunks += 1;
                let (offset, bytes) = chunk.content();
                assert!(bytes.len() <= 256 << 10);
                (offset, bytes.to_vec())
            }
        };
        let at = usize::try_from(offset - 4097).expect("inside the request");
        assert!(back[at..at + bytes.len()].iter().all(|byte| *byte == 0xee), "no overlap");
        back[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    assert_eq!((data_chunks, holes), (3, 2));
    let start = usize::try_from(MIB - 4097).expect("small");
    assert!(back[start..start + data.len()] == data);
    assert!(back[..start].iter().chain(&back[start + data.len()..]).all(|byte| *byte == 0));
}

#[test]
fn unbroken_reads_are_whole_while_others_are_answered_too() {
    let disk = MemoryDisk::sized(8 * MIB);
    let data = pattern(8 << 20, 3);
    disk.put(0, &data);
    let fixture = Fixture::with_disk("disk", disk);
    let mut client = fixture.connect().flags().go("disk", true);
    for cookie in 0..8 {
        client.request(flag::DF, cmd::READ, cookie, cookie * 4096, 3 << 20);
        client.request(flag::NONE, cmd::READ, 100 + cookie, cookie * 4096, 4096);
    }
    let mut seen = Vec::new();
    while seen.len() < 16 {
        let chunk = client.chunk();
        let at = usize::try_from(chunk.cookie % 100).expect("small") * 4096;
        if chunk.kind == 1 {
            let (offset, bytes) = chunk.content();
            assert!(offset == at as u64 && bytes == &data[at..at + bytes.len()]);
            assert_eq!(bytes.len(), if chunk.cookie < 100 { 3 << 20 } else { 4096 });
        }
        if chunk.done {
            seen.push(chunk.cookie);
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6, 7, 100, 101, 102, 103, 104, 105, 106, 107]);
    let mut client = fixture.connect().flags().go("disk", false);
    client.request(flag::NONE, cmd::READ, 1, 0, 8 << 20);
    client.request(flag::NONE, cmd::READ, 2, 0, 8 << 20);
    for _ in 0..2 {
        assert_eq!(client.simple().0, 0);
        assert!(client.take_vec(8 << 20) == data);
    }
}

#[test]
fn reads_that_fail_say_where_and_the_connection_goes_on() {
    let disk = MemoryDisk::sized(8 * MIB);
    let data = pattern(8 << 20, 4);
    disk.put(0, &data);
    disk.bad_byte.store(3 * MIB + 5, Ordering::Relaxed);
    let fixture = Fixture::with_disk("disk", disk);
    let mut client = fixture.connect().flags().go("disk", true);
    client.request(flag::NONE, cmd::READ, 1, 3 * MIB, 4096);
    assert_eq!(client.refusal(1), err::EIO);
    client.request(flag::NONE, cmd::READ, 2, 2 * MIB, 4 << 20);
    let chunks = client.chunks();
    let (last, content) = chunks.split_last().expect("at least the error");
    let (code, message, at) = last.error();
    assert_eq!((code, at), (err::EIO, Some(3 * MIB)), "{message}");
    assert_eq!(content.len(), 4, "the pieces before the failure");
    client.request(flag::DF, cmd::READ, 3, 2 * MIB, 4 << 20);
    let chunks = client.chunks();
    assert_eq!(chunks.len(), 2);
    let (offset, bytes) = chunks[0].content();
    assert_eq!((offset, bytes.len()), (2 * MIB, 4 << 20), "what was announced is sent");
    assert!(bytes[..1 << 20] == data[2 << 20..3 << 20]);
    assert_eq!(chunks[1].error().2, Some(3 * MIB));
    client.request(flag::NONE, cmd::READ, 4, 0, 4096);
    assert_eq!(client.chunk().content().1, &data[..4096]);
    let mut simple = fixture.connect().flags().go("disk", false);
    simple.request(flag::NONE, cmd::READ, 5, 3 * MIB, 1 << 20);
    assert_eq!(simple.simple(), (err::EIO, 5));
    simple.request(flag::NONE, cmd::READ, 6, 2 * MIB, 4 << 20);
    assert_eq!(simple.simple(), (0, 6));
    // A simple reply that has begun can't be taken back: the server hangs up.
    let mut front = Vec::new();
    simple.socket.read_to_end(&mut front).expect("the end of the stream");
    assert!(front.len() <= 1 << 20 && front == data[2 << 20..][..front.len()]);
    client.request(flag::NONE, cmd::FLUSH, 7, 0, 0);
    assert_eq!(client.simple(), (0, 7), "another connection is not touched");
}

#[test]
fn writes_of_every_length_land_whole() {
    let disk = MemoryDisk::sized(64 * MIB);
    let fixture = Fixture::with_disk("disk", disk.clone());
    let mut client = fixture.connect().flags().go("disk", true);
    let mut at = 1;
    for (cookie, len) in (0_u64..).zip([1, 27, 28, 511, 4096, 4097, 262_144, 262_145, 33_554_432]) {
        let data = pattern(len, cookie);
        let durable = if cookie % 2 == 0 { flag::FUA } else { flag::NONE };
        client.write(durable, cookie, at, &data);
        assert_eq!(client.simple(), (0, cookie));
        assert!(disk.get(at, len) == data, "{len} bytes at {at}");
        at += len as u64;
    }
    assert!(disk.stable_writes.load(Ordering::Relaxed) >= 5);
    assert_eq!(disk.reserves.load(Ordering::Relaxed), 7 + 2 + 128);
    client.write(flag::NONE, 50, 0, b"");
    assert_eq!(client.simple(), (0, 50));
}

#[test]
fn writes_without_a_pause_are_told_apart() {
    let disk = MemoryDisk::new(Shape { payload_bytes_max: 3000, ..Shape::default() });
    let fixture = Fixture::with_disk("disk", disk.clone());
    let mut client = fixture.connect().flags().go("disk", true);
    let mut script = Vec::new();
    let mut expected = Vec::new();
    for cookie in 0..100_u64 {
        let data = pattern(usize::try_from(cookie * 97 % 9000).expect("small"), cookie);
        let len = u32::try_from(data.len()).expect("small");
        script.extend_from_slice(&0x2560_9513_u32.to_be_bytes());
        script.extend_from_slice(&[0, 0, 0, 1]);
        script.extend_from_slice(&cookie.to_be_bytes());
        script.extend_from_slice(&(cookie * 10_000).to_be_bytes());
        script.extend_from_slice(&len.to_be_bytes());
        script.extend_from_slice(&data);
        expected.push(data);
    }
    client.send(&script);
    let mut answered: Vec<u64> = (0..100).map(|_| client.simple().1).collect();
    answered.sort_unstable();
    assert_eq!(answered, (0..100).collect::<Vec<_>>());
    for (at, data) in (0_u64..).step_by(10_000).zip(&expected) {
        assert!(disk.get(at, data.len()) == *data, "at {at}");
    }
}

/// Sends a write that has to fail and a flush behind it, which shows that the payload is gone.
fn failing_write(client: &mut Client, flags: u16, offset: u64, len: usize) -> u32 {
    client.write(flags, 1, offset, &pattern(len, 9));
    let code = client.refusal(1);
    client.request(flag::NONE, cmd::FLUSH, 2, 0, 0);
    assert_eq!(client.simple(), (0, 2));
    code
}

#[test]
fn refused_writes_are_drained() {
    let disk = MemoryDisk::new(Shape { size_bytes: MIB, block_bytes_min: 512, ..Shape::default() });
    let fixture = Fixture::with_disk("disk", disk.clone());
    let mut client = fixture.connect().flags().go("disk", true);
    assert_eq!(failing_write(&mut client, flag::NONE, MIB, 512), err::ENOSPC);
    assert_eq!(failing_write(&mut client, flag::NONE, MIB - 512, 32 << 20), err::ENOSPC);
    assert_eq!(failing_write(&mut client, flag::NONE, u64::MAX, 512), err::ENOSPC);
    assert_eq!(failing_write(&mut client, flag::NONE, 1, 512), err::EINVAL);
    assert_eq!(failing_write(&mut client, flag::NONE, 0, 100), err::EINVAL);
    assert_eq!(failing_write(&mut client, flag::DF, 0, 512), err::EINVAL);
    assert_eq!(failing_write(&mut client, 1 << 15, 0, 512), err::EINVAL);
    disk.full.store(true, Ordering::Relaxed);
    assert_eq!(failing_write(&mut client, flag::NONE, 0, 700 << 10), err::ENOSPC);
    disk.full.store(false, Ordering::Relaxed);
    disk.bad_byte.store(300 << 10, Ordering::Relaxed);
    assert_eq!(failing_write(&mut client, flag::NONE, 0, 700 << 10), err::EIO, "one part of three");
    let mut simple = fixture.connect().flags().go("disk", false);
    simple.write(flag::NONE, 3, MIB, &pattern(4096, 1));
    assert_eq!(simple.simple(), (err::ENOSPC, 3));
    simple.request(flag::NONE, cmd::READ, 4, 1, 512);
    assert_eq!(simple.simple(), (err::EINVAL, 4));
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let disk = MemoryDisk::new(Shape { read_only: true, ..Shape::default() });
    let fixture = Fixture::with_disk("disk", disk);
    let mut client = fixture.connect().flags().go("disk", true);
    assert_eq!(failing_write(&mut client, flag::NONE, 0, 4096), err::EPERM);
    for command in [cmd::TRIM, cmd::ZEROES] {
        client.request(flag::NONE, command, 1, 0, 4096);
        assert_eq!(client.refusal(1), err::EPERM);
    }
    client.request(flag::NONE, cmd::READ, 1, 0, 16);
    assert_eq!(client.chunk().content().1, [0; 16]);
}

#[test]
fn zeroes_trims_flushes_and_caching_reach_the_disk() {
    let disk = MemoryDisk::sized(8 * MIB);
    disk.put(0, &pattern(8 << 20, 5));
    let fixture = Fixture::with_disk("disk", disk.clone());
    let mut client = fixture.connect().flags().go("disk", true);
    let mut send = |flags, command, offset, len| {
        client.request(flags, command, 1, offset, len);
        client.simple()
    };
    assert_eq!(send(flag::NO_HOLE | flag::FUA, cmd::ZEROES, 4096, 8192), (0, 1));
    assert_eq!(send(flag::FAST_ZERO, cmd::ZEROES, 2 * MIB, 1 << 20), (0, 1));
    assert_eq!(send(flag::FUA, cmd::TRIM, 4 * MIB, 1 << 20), (0, 1));
    assert_eq!(disk.stable_writes.load(Ordering::Relaxed), 2);
    assert_eq!(send(flag::NONE, cmd::CACHE, 100, 200), (0, 1));
    assert_eq!(disk.cached.lock().expect("no panic").len(), 1);
    assert_eq!(send(flag::NONE, cmd::FLUSH, 0, 0), (0, 1));
    assert_eq!(disk.flushes.load(Ordering::Relaxed), 1);
    for command in [cmd::ZEROES, cmd::TRIM, cmd::CACHE] {
        assert_eq!(send(flag::NONE, command, 8 * MIB, 0), (0, 1), "no bytes at the end");
    }
    assert!(disk.get(4096, 8192).iter().all(|byte| *byte == 0));
    client.request(flag::NONE, cmd::STATUS, 2, 0, 8 << 20);
    let extents = client.chunk().extents();
    let mib = 1 << 20;
    assert_eq!(extents, [(2 * mib, 0), (mib, 3), (mib, 0), (mib, 3), (3 * mib, 0)]);
    client.request(flag::REQ_ONE, cmd::STATUS, 3, 2 * MIB + 512, 4 << 20);
    assert_eq!(client.chunk().extents(), [(mib - 512, 3)]);
}

#[test]
fn wrong_requests_get_the_right_error() {
    let disk = MemoryDisk::new(Shape { size_bytes: MIB, fast_zero: false, ..Shape::default() });
    let fixture = Fixture::with_disk("disk", disk);
    fixture.add("fast", "", MemoryDisk::sized(MIB));
    let mut client = fixture.connect().flags().go("disk", true);
    let wrong = [
        (flag::NONE, cmd::READ, MIB - 1, 2, err::EINVAL),
        (flag::NONE, cmd::READ, u64::MAX, 2, err::EINVAL),
        (flag::NONE, cmd::READ, 0, (32 << 20) + 1, err::EINVAL),
        (flag::DF, cmd::READ, 0, (32 << 20) + 1, err::EOVERFLOW),
        (flag::REQ_ONE, cmd::READ, 0, 1, err::EINVAL),
        (flag::NONE, cmd::TRIM, MIB - 1, 2, err::EINVAL),
        (flag::NO_HOLE, cmd::TRIM, 0, 1, err::EINVAL),
        (flag::NONE, cmd::ZEROES, MIB - 1, 2, err::ENOSPC),
        (flag::FAST_ZERO, cmd::ZEROES, 0, 4096, err::EINVAL),
        (flag::NONE, cmd::FLUSH, 1, 0, err::EINVAL),
        (flag::NONE, cmd::FLUSH, 0, 1, err::EINVAL),
        (flag::NONE, cmd::CACHE, MIB - 1, 2, err::EINVAL),
        (flag::DF, cmd::CACHE, 0, 1, err::EINVAL),
        (flag::NONE, cmd::STATUS, 0, 0, err::EINVAL),
        (flag::NONE, cmd::STATUS, MIB - 1, 2, err::EINVAL),
        (flag::NONE, 8, 0, 0, err::EINVAL),
        (flag::NONE, 0xffff, 0, 0xffff_ffff, err::EINVAL),
    ];
    for (flags, command, offset, len, code) in wrong {
        client.request(flags, command, 77, offset, len);
        assert_eq!(client.refusal(77), code, "command {command} at {offset}+{len}");
    }
    client.request(flag::NONE, cmd::READ, 1, MIB, 0);
    let chunk = client.chunk();
    assert_eq!((chunk.done, chunk.kind, chunk.data.len()), (true, 0, 0), "no bytes are no error");
    let mut simple = fixture.connect().flags().go("disk", false);
    for (flags, command) in [(flag::DF, cmd::READ), (flag::NONE, cmd::STATUS)] {
        simple.request(flags, command, 1, 0, 1);
        assert_eq!(simple.simple(), (err::EINVAL, 1), "needs structured replies");
    }
    simple.request(flag::NONE, cmd::READ, 2, 0, 0);
    assert_eq!(simple.simple(), (0, 2));
    let mut fast = fixture.connect().flags().go("fast", true);
    fast.request(flag::FAST_ZERO | flag::NO_HOLE, cmd::ZEROES, 1, 0, 4096);
    assert_eq!(fast.refusal(1), err::ENOTSUP);
}

#[test]
fn requests_of_one_connection_run_side_by_side() {
    let disk = MemoryDisk::sized(MIB);
    disk.delay_ms.store(100, Ordering::Relaxed);
    let fixture = Fixture::with_disk("disk", disk.clone());
    let mut client = fixture.connect().flags().go("disk", true);
    for cookie in 0..32 {
        client.request(flag::NONE, cmd::READ, cookie, cookie * 4096, 4096);
    }
    client.request(flag::NONE, cmd::FLUSH, 99, 0, 0);
    assert_eq!(client.simple(), (0, 99), "what is fast overtakes what is slow");
    for _ in 0..32 {
        assert!(client.chunk().done);
    }
    assert_eq!(disk.running_max.load(Ordering::Relaxed), 32);
}
