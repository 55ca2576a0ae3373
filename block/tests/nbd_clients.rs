//! The NBD server under clients that other people wrote. One that is not installed is reported as
//! skipped.

#![allow(clippy::disallowed_methods, reason = "a test waits in real time")]

mod nbd_support;

use std::io::{Read, Seek, SeekFrom, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tidemark_block::file_device::FileDevice;
use tidemark_block::store::{OpenMode, UringStore};

use nbd_support::{Fixture, MemoryDisk, Shape, pattern};

/// Runs a tool and gives its output; `None`, with a line that says so, when it is missing.
fn run(tool: &str, arguments: &[&str]) -> Option<String> {
    run_status(tool, arguments).map(|(ok, output)| {
        assert!(ok, "{tool} {arguments:?}: {output}");
        output
    })
}

fn run_status(tool: &str, arguments: &[&str]) -> Option<(bool, String)> {
    match Command::new(tool).args(arguments).output() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            Some((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("SKIPPED: {tool} is not installed");
            None
        }
        Err(error) => panic!("{tool}: {error}"),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have names of UTF-8")
}

#[test]
fn the_nbd_crate_reads_back_what_it_wrote() {
    let disk = MemoryDisk::sized(8 << 20);
    let fixture = Fixture::with_disk("disk", disk.clone());
    let mut socket = UnixStream::connect(fixture.socket()).expect("the server listens");
    let export = nbd::client::handshake(&mut socket, b"disk").expect("an export");
    assert_eq!(export.size, 8 << 20);
    assert!(export.send_flush && export.send_trim && !export.readonly);
    let mut client = nbd::client::NbdClient::new(socket, &export);
    let data = pattern(1 << 20, 1);
    client.seek(SeekFrom::Start(12_345)).expect("inside");
    client.write_all(&data).expect("a write");
    client.flush().expect("a flush");
    assert_eq!(disk.get(12_345, data.len()), data);
    assert_eq!(disk.flushes.load(Ordering::Relaxed), 1);
    client.seek(SeekFrom::Start(12_345)).expect("inside");
    let mut back = vec![0; data.len()];
    client.read_exact(&mut back).expect("a read of four buffers in one simple reply");
    assert!(back == data);
}

#[test]
fn the_nbd_crate_is_served_over_tcp_too() {
    let disk = MemoryDisk::sized(1 << 20);
    let fixture = Fixture::with_disk("disk", disk.clone());
    let mut socket = TcpStream::connect(fixture.tcp).expect("the server listens");
    let export = nbd::client::handshake(&mut socket, b"disk").expect("an export");
    let mut client = nbd::client::NbdClient::new(socket, &export);
    let data = pattern(300 << 10, 4);
    client.write_all(&data).expect("a write");
    client.flush().expect("a flush");
    assert!(disk.get(0, data.len()) == data);
}

#[test]
fn nbdinfo_sees_the_exports_their_abilities_and_their_map() {
    let disk = MemoryDisk::sized(1 << 20);
    disk.put(128 << 10, &pattern(64 << 10, 2));
    let fixture = Fixture::with_disk("disk", disk);
    fixture.add(
        "other",
        "read-only",
        MemoryDisk::new(Shape { read_only: true, ..Shape::default() }),
    );
    let uri = fixture.uri("disk");
    let Some(info) = run("nbdinfo", &["--json", &uri]) else { return };
    for expected in [
        "\"export-size\": 1048576",
        "\"export-name\": \"disk\"",
        "\"description\": \"the test's disk disk\"",
        "\"is_read_only\": false",
        "\"can_cache\": true",
        "\"can_df\": true",
        "\"can_fast_zero\": true",
        "\"can_flush\": true",
        "\"can_fua\": true",
        "\"can_multi_conn\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"block_size_minimum\": 1,",
        "\"block_size_preferred\": 4096,",
        "\"block_size_maximum\": 33554432",
        "base:allocation",
    ] {
        assert!(info.contains(expected), "{expected} is missing in {info}");
    }
    let list = run("nbdinfo", &["--list", &fixture.uri("")]).expect("installed, as seen above");
    assert!(list.contains("export=\"disk\"") && list.contains("export=\"other\""), "{list}");
    let map = run("nbdinfo", &["--map", &uri]).expect("installed, as seen above");
    let rows: Vec<Vec<&str>> =
        map.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    assert_eq!(
        rows,
        [["0", "131072", "3"], ["131072", "65536", "0"], ["196608", "851968", "3"]],
        "{map}"
    );
}

#[test]
fn nbdcopy_moves_a_disk_both_ways_over_several_connections() {
    let disk = MemoryDisk::sized(32 << 20);
    let fixture = Fixture::with_disk("disk", disk.clone());
    let mut data = pattern(32 << 20, 3);
    data[(4 << 20)..(9 << 20)].fill(0);
    let source = fixture.folder().join("source");
    let back = fixture.folder().join("back");
    std::fs::write(&source, &data).expect("room for 32 MiB");
    let uri = fixture.uri("disk");
    if run("nbdcopy", &["--connections=4", "--flush", text(&source), &uri]).is_none() {
        return;
    }
    assert!(disk.get(0, data.len()) == data);
    assert!(disk.flushes.load(Ordering::Relaxed) > 0);
    run("nbdcopy", &["--connections=4", &uri, text(&back)]);
    assert!(std::fs::read(&back).expect("nbdcopy wrote it") == data);
    run("nbdcopy", &["--synchronous", "--request-size=1048576", &uri, text(&back)]);
    assert!(std::fs::read(&back).expect("nbdcopy wrote it") == data);
}

#[test]
fn qemu_writes_reads_compares_and_maps() {
    let disk = MemoryDisk::sized(16 << 20);
    let fixture = Fixture::with_disk("disk", disk.clone());
    let uri = fixture.uri("disk");
    let script = [
        "write -P 0x11 0 1M",
        "write -f -P 0x22 4096 512",
        "write -z -u 2M 1M",
        "write -z 513k 3k",
        "discard 8M 4M",
        "flush",
        "read -P 0x11 0 4096",
        "read -P 0x22 4096 512",
        "read -P 0 513k 3k",
        "read -P 0 2M 14M",
        "aio_write -P 0x33 12M 2M",
        "aio_flush",
        "read -P 0x33 12M 2M",
    ];
    let mut arguments = vec!["-f", "raw", "-t", "none"];
    for line in script {
        arguments.extend(["-c", line]);
    }
    arguments.push(&uri);
    let Some(output) = run("qemu-io", &arguments) else { return };
    assert!(!output.contains("failed"), "{output}");
    assert!(disk.stable_writes.load(Ordering::Relaxed) > 0, "-f is forced unit access");
    let copy = fixture.folder().join("copy.raw");
    run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, text(&copy)]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&copy), &uri]);
    assert!(std::fs::read(&copy).expect("qemu-img wrote it") == disk.get(0, 16 << 20));
    if let Some(map) = run("qemu-img", &["map", "-f", "raw", "--output=json", &uri]) {
        assert!(map.contains("\"data\": false"), "holes are seen: {map}");
    }
    disk.bad_byte.store(5 << 20, Ordering::Relaxed);
    let refused = ["-f", "raw", "-c", "read 5M 4k", "-c", "read 6M 4k", &uri];
    let (_, output) = run_status("qemu-io", &refused).expect("installed, as seen above");
    assert!(output.contains("read failed") && output.contains("read 4096/4096"), "{output}");
}

#[test]
fn fio_verifies_what_it_wrote_to_a_file_behind_the_server() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("disk");
    let file = std::fs::File::create(&path).expect("a fresh folder");
    file.set_len(64 << 20).expect("a sparse file");
    drop(file);
    let store = UringStore::open(&path, OpenMode::ReadWrite).expect("nobody else has it");
    let fixture = Fixture::with_disk("disk", Arc::new(FileDevice::new(store)));
    let uri = format!("--uri={}", fixture.uri("disk"));
    let job = [
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        "--size=64M",
        "--io_size=32M",
        "--rw=randwrite",
        "--bsrange=512-512k",
        "--bs_unaligned",
        "--iodepth=32",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--randseed=7",
        "--fsync=50",
    ];
    let Some(output) = run("fio", &job) else { return };
    assert!(output.contains("err= 0"), "{output}");
}

const NBDSH_SCRIPT: &str = r#"
import errno, nbd, sys
h = nbd.NBD()
h.set_strict_mode(0)
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(sys.argv[1])
size = h.get_size()

def fails(code, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except nbd.Error as error:
        assert error.errnum == code, (error.errnum, code, str(error))
        return str(error)
    raise AssertionError("no error")

h.pwrite(b"x" * 4096, 0, nbd.CMD_FLAG_FUA)
h.pwrite(b"y" * (32 << 20), 0)
assert h.pread(32 << 20, 0) == b"y" * (32 << 20)
assert h.pread(32 << 20, 0, nbd.CMD_FLAG_DF) == b"y" * (32 << 20)
h.flush()
h.zero(1 << 20, 4096, nbd.CMD_FLAG_FAST_ZERO)
h.trim(1 << 20, 8 << 20)
h.cache(1 << 20, 0)
fails(errno.ENOTSUP, h.zero, 4096, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
fails(errno.EINVAL, h.pread, 4096, size - 1)
fails(errno.ENOSPC, h.pwrite, b"z" * 4096, size - 1)
fails(errno.ENOSPC, h.zero, 4096, size - 1)
fails(errno.EINVAL, h.pread, 4096, 0, nbd.CMD_FLAG_REQ_ONE)
extents = []
h.block_status(64 << 20, 0, lambda name, offset, entries, error: extents.extend(entries) and 0)
assert sum(extents[::2]) == 64 << 20, extents
one = []
h.block_status(64 << 20, 0, lambda name, offset, entries, error: one.extend(entries) and 0, nbd.CMD_FLAG_REQ_ONE)
assert len(one) == 2, one
pieces = []
buffer = h.pread_structured(2 << 20, 0, lambda data, offset, status, error: pieces.append(status) and 0)
assert nbd.READ_HOLE in pieces and nbd.READ_DATA in pieces, pieces
assert buffer[4096:4096 + (1 << 20)] == bytes(1 << 20)
jobs = [h.aio_pread(nbd.Buffer(65536), i * 65536) for i in range(100)]
while h.aio_in_flight() > 0:
    h.poll(-1)
h.shutdown()
print("nbdsh is content")
"#;

#[test]
fn libnbd_finds_every_command_and_error_as_the_protocol_has_it() {
    let disk = MemoryDisk::sized(64 << 20);
    let fixture = Fixture::with_disk("disk", disk);
    let script = fixture.folder().join("script.py");
    std::fs::write(&script, NBDSH_SCRIPT).expect("room for a script");
    let python = "/usr/bin/python3";
    match run_status(python, &["-c", "import nbd"]) {
        None => return,
        Some((false, _)) => {
            eprintln!("SKIPPED: python3-libnbd is not installed");
            return;
        }
        Some((true, _)) => {}
    }
    let output = run(python, &[text(&script), &fixture.uri("disk")]).expect("python is there");
    assert!(output.contains("nbdsh is content"), "{output}");
}
