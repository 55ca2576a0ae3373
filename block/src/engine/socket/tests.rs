//! Streams and listeners.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use super::*;
use crate::chunk::Chunk;
use crate::device::Payload;
use crate::engine::{Executor, ExecutorConfig, sleep, spawn};

struct Bytes(Chunk);

impl Payload for Bytes {
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_slice()
    }
}

fn on_executor<F: Future>(future: F) -> F::Output {
    Executor::new(&ExecutorConfig::default()).unwrap().block_on(future)
}

fn pair() -> (Stream, UnixStream) {
    let (here, there) = UnixStream::pair().unwrap();
    (Stream::from(here), there)
}

fn numbered(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

#[test]
fn a_payload_and_the_next_header_arrive_however_they_are_torn() {
    const HEADER: usize = 28;
    let sent = numbered(100_000 + HEADER);
    for piece in [1000, 99_990, 100_000, 100_010, sent.len()] {
        let (stream, mut peer) = pair();
        let bytes = sent.clone();
        let other = std::thread::spawn(move || {
            for part in bytes.chunks(piece) {
                peer.write_all(part).unwrap();
                std::thread::sleep(Duration::from_micros(200));
            }
            peer
        });
        on_executor(async {
            let (filled, payload, next) =
                stream.recv_payload(Bytes(Chunk::zeroed(100_000)), Chunk::zeroed(HEADER)).await;
            assert_eq!(payload.0.as_slice(), &sent[..100_000]);
            let have = filled.unwrap();
            let mut front = next;
            let rest = front.split_off(have);
            assert_eq!(front.as_slice(), &sent[100_000..100_000 + have]);
            let (received, rest) = stream.recv_exact(rest).await;
            received.unwrap();
            assert_eq!(rest.as_slice(), &sent[100_000 + have..]);
        });
        drop(other.join().unwrap());
    }
}

#[test]
fn header_and_payload_in_one_piece_take_one_call() {
    let (stream, mut peer) = pair();
    peer.write_all(&numbered(4096 + 28)).unwrap();
    on_executor(async {
        let payload = Bytes(Chunk::zeroed(4096));
        let (filled, ..) = stream.recv_payload(payload, Chunk::zeroed(28)).await;
        assert_eq!(filled.unwrap(), 28);
        let nothing = Bytes(Chunk::zeroed(0));
        let (filled, ..) = stream.recv_payload(nothing, Chunk::zeroed(28)).await;
        assert_eq!(filled.unwrap(), 0, "an empty payload is there at once");
    });
}

#[test]
fn a_peer_that_closes_early_is_an_unexpected_end() {
    on_executor(async {
        let (stream, mut peer) = pair();
        peer.write_all(&[1; 10]).unwrap();
        drop(peer);
        let (received, _) = stream.recv_exact(Chunk::zeroed(11)).await;
        assert_eq!(received.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        let (stream, mut peer) = pair();
        peer.write_all(&[1; 10]).unwrap();
        drop(peer);
        let (received, ..) = stream.recv_payload(Bytes(Chunk::zeroed(11)), Chunk::zeroed(28)).await;
        assert_eq!(received.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        let (received, _) = stream.recv(Chunk::zeroed(1)).await;
        assert_eq!(received.unwrap(), 0);
        let mut parts = Parts::new();
        assert!(parts.push(Chunk::zeroed(1)).is_ok());
        let (sent, _) = stream.send_all(parts).await;
        assert_eq!(sent.unwrap_err().kind(), ErrorKind::BrokenPipe, "and no signal");
    });
}

#[test]
fn many_parts_go_out_whole_through_a_slow_socket() {
    let (stream, mut peer) = pair();
    let all = numbered(PARTS_MAX * 40_000);
    let expected = all.clone();
    let other = std::thread::spawn(move || {
        let mut received = vec![0; expected.len()];
        for part in received.chunks_mut(70_001) {
            peer.read_exact(part).unwrap();
            std::thread::sleep(Duration::from_micros(200));
        }
        assert!(received == expected);
    });
    on_executor(async {
        let mut parts = Parts::new();
        for part in all.chunks(40_000) {
            let mut chunk = Chunk::zeroed(part.len());
            chunk.as_mut_slice().copy_from_slice(part);
            assert!(parts.push(chunk).is_ok());
        }
        assert!(parts.push(Chunk::zeroed(1)).is_err(), "the list is full");
        let (sent, mut parts) = stream.send_all(parts).await;
        sent.unwrap();
        assert_eq!(parts.len(), PARTS_MAX);
        parts.clear();
        let (sent, _) = stream.send_all(parts).await;
        sent.unwrap();
    });
    other.join().unwrap();
}

#[test]
fn a_short_send_goes_on_where_it_stopped() {
    let mut parts = Parts::new();
    for len in [3, 0, 5, 2] {
        assert!(parts.push(Chunk::zeroed(len)).is_ok());
    }
    let lengths = |parts: &mut Parts, skipped| -> Vec<usize> {
        parts.listed_from(skipped).iter().map(|vector| vector.iov_len).collect()
    };
    assert_eq!(lengths(&mut parts, 0), [3, 5, 2]);
    assert_eq!(lengths(&mut parts, 2), [1, 5, 2]);
    assert_eq!(lengths(&mut parts, 3), [5, 2]);
    assert_eq!(lengths(&mut parts, 9), [1]);
    assert_eq!(parts.len_bytes(), 10);
}

#[test]
fn a_shutdown_ends_a_pending_receive() {
    let (stream, _peer) = pair();
    let stream = std::rc::Rc::new(stream);
    on_executor(async {
        let other = std::rc::Rc::clone(&stream);
        spawn(async move {
            sleep(Duration::from_millis(5)).await;
            other.shutdown();
        });
        let (received, _) = stream.recv(Chunk::zeroed(16)).await;
        assert_eq!(received.unwrap(), 0);
    });
}

#[test]
fn connections_arrive_with_their_names() {
    on_executor(async {
        let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
        let Address::Tcp(at) = *listener.address() else { panic!("bound to TCP") };
        let client = std::net::TcpStream::connect(at).unwrap();
        let (_stream, peer) = listener.accept().await.unwrap();
        assert_eq!(peer, PeerName::Tcp(client.local_addr().unwrap()));

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = Listener::bind(&Address::Unix(path.clone())).unwrap();
        let _client = UnixStream::connect(path).unwrap();
        let (_stream, peer) = listener.accept().await.unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(matches!(peer, PeerName::Unix { pid: found, .. } if found == pid), "{peer}");
    });
}

#[test]
fn socket_files_are_replaced_only_when_nobody_listens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let address = Address::Unix(path.clone());
    drop(UnixListener::bind(&path).unwrap());
    let first = Listener::bind(&address).expect("the stale file is replaced");
    let refused = Listener::bind(&address).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AddrInUse);
    assert!(refused.to_string().contains(path.to_str().unwrap()), "{refused}");
    drop(first);
    assert!(!path.exists(), "a listener takes its file away");
    std::fs::write(&path, "precious").unwrap();
    assert_eq!(Listener::bind(&address).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert!(path.exists());
}

#[test]
fn other_machines_can_not_be_listened_to() {
    let refused = Listener::bind(&"tcp:0.0.0.0:0".parse().unwrap()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    assert!(refused.to_string().contains("tcp:0.0.0.0:0"), "{refused}");
}
