//! The executor and what runs on it, together.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use super::file::File;
use super::ring::Ring;
use super::socket::Stream;
use super::*;
use crate::chunk::Chunk;
use crate::device::Durability;
use crate::range::ByteRange;

fn executor() -> Executor {
    Executor::new(&ExecutorConfig::default()).unwrap()
}

/// Counts down when a task ends, however it ends.
struct Ends(Rc<Cell<usize>>);

impl Ends {
    fn new(running: &Rc<Cell<usize>>) -> Self {
        running.set(running.get() + 1);
        Self(Rc::clone(running))
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

async fn until_none(running: &Cell<usize>) {
    while running.get() > 0 {
        sleep(Duration::from_millis(1)).await;
    }
}

/// Polls a future once and expects it to wait.
async fn poll_once(future: &mut (impl Future + Unpin)) {
    poll_fn(|cx| {
        assert!(std::pin::Pin::new(&mut *future).poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
}

#[test]
fn sleeping_tasks_run_beside_each_other() {
    let running = Rc::new(Cell::new(0));
    let begin = Instant::now();
    executor().block_on(async {
        for _ in 0..100 {
            let end = Ends::new(&running);
            spawn(async move {
                sleep(Duration::from_millis(20)).await;
                drop(end);
            });
        }
        until_none(&running).await;
    });
    assert!(begin.elapsed() >= Duration::from_millis(20));
    assert!(begin.elapsed() < Duration::from_millis(1000), "they slept one after another");
}

/// On the ring of this kernel and on that of an old one.
fn on_both_rings(config: ExecutorConfig, test: impl Fn(&Executor)) {
    test(&Executor::new(&config).unwrap());
    test(&Executor::over(Ring::plain(config.ring_entries).unwrap(), &config).unwrap());
}

#[test]
fn a_mailbox_carries_everything_in_order_from_another_thread() {
    on_both_rings(ExecutorConfig::default(), |executor| {
        let (sender, mut receiver) = mailbox::<u32>(4);
        let other = std::thread::spawn(move || {
            for number in 0..10_000 {
                sender.send(number).unwrap();
            }
        });
        executor.block_on(async {
            for expected in 0..10_000 {
                assert_eq!(receiver.recv().await, Some(expected));
            }
            assert_eq!(receiver.recv().await, None, "every sender is gone");
        });
        other.join().unwrap();
    });
}

#[test]
fn a_closed_mailbox_gives_messages_back() {
    let (sender, mut receiver) = mailbox::<u32>(1);
    sender.try_send(1).unwrap();
    assert!(matches!(sender.try_send(2), Err(TrySendError::Full(2))));
    assert_eq!(receiver.try_recv(), Some(1));
    assert_eq!(receiver.try_recv(), None);
    sender.send(3).unwrap();
    let blocked = sender.clone();
    let other = std::thread::spawn(move || blocked.send(4));
    std::thread::sleep(Duration::from_millis(10));
    drop(receiver);
    assert_eq!(other.join().unwrap().unwrap_err().0, 4, "the blocked sender is let go");
    assert!(matches!(sender.try_send(5), Err(TrySendError::Closed(5))));
}

#[test]
fn an_event_wakes_waiters_on_every_thread_and_is_not_missed() {
    const ROUNDS: usize = 2000;
    let event = Arc::new(Event::new());
    let reached = Arc::new(AtomicUsize::new(0));
    let workers = Workers::start("event", 2, ExecutorConfig::default()).unwrap();
    let ended = Arc::new(AtomicUsize::new(0));
    for task in 0..8 {
        let (event, reached, ended) =
            (Arc::clone(&event), Arc::clone(&reached), Arc::clone(&ended));
        workers.spawn_on(task, move || async move {
            loop {
                let wait = event.wait();
                if reached.load(Ordering::SeqCst) == ROUNDS {
                    break;
                }
                wait.await;
            }
            ended.fetch_add(1, Ordering::SeqCst);
        });
    }
    for _ in 0..ROUNDS {
        reached.fetch_add(1, Ordering::SeqCst);
        event.notify_all();
    }
    workers.shutdown();
    assert_eq!(ended.load(Ordering::SeqCst), 8);
}

#[test]
fn a_dropped_wait_leaves_no_waker_behind() {
    let event = Event::new();
    executor().block_on(async {
        let mut wait = event.wait();
        poll_once(&mut wait).await;
        drop(wait);
        let wait = event.wait();
        event.notify_all();
        wait.await;
    });
}

#[test]
fn workers_run_everything_started_before_the_shutdown() {
    let config = ExecutorConfig { ring_entries: 8, tasks_max: 4 };
    let workers = Workers::start("busy", 2, config).unwrap();
    let ended = Arc::new(AtomicUsize::new(0));
    for task in 0..100 {
        let ended = Arc::clone(&ended);
        workers.spawn_on(task, move || async move {
            sleep(Duration::from_millis(1)).await;
            ended.fetch_add(1, Ordering::SeqCst);
        });
    }
    let late = workers.handle();
    workers.shutdown();
    assert_eq!(ended.load(Ordering::SeqCst), 100, "a full task table only delays");
    late.spawn_on(0, || async { panic!("started after the shutdown") });
}

#[test]
fn a_task_pool_reuses_its_places_and_says_when_it_is_full() {
    async fn task(end: Ends) {
        sleep(Duration::from_millis(1)).await;
        drop(end);
    }
    let running = Rc::new(Cell::new(0));
    executor().block_on(async {
        let pool = TaskPool::new(3);
        for _ in 0..10 {
            for _ in 0..3 {
                assert!(pool.try_spawn(task(Ends::new(&running))).is_ok());
            }
            assert!(pool.try_spawn(task(Ends::new(&running))).is_err());
            until_none(&running).await;
        }
    });
}

#[test]
fn tasks_left_over_are_dropped_with_the_executor() {
    async fn forever(end: Ends, stream: Stream) {
        let _ = stream.recv(Chunk::zeroed(16)).await;
        drop(end);
    }
    let running = Rc::new(Cell::new(0));
    let mut peers = Vec::new();
    let mut stream = || {
        let (here, there) = UnixStream::pair().unwrap();
        peers.push(there);
        Stream::from(here)
    };
    let executor = executor();
    executor.block_on(async {
        let pool = TaskPool::new(1);
        assert!(pool.try_spawn(forever(Ends::new(&running), stream())).is_ok());
        spawn(forever(Ends::new(&running), stream()));
        sleep(Duration::from_millis(5)).await;
    });
    assert_eq!(running.get(), 2);
    drop(executor);
    assert_eq!(running.get(), 0);
}

#[test]
fn a_dropped_operation_is_over_before_its_memory_is_given_back() {
    let pool = BufferPool::new(1, 4096);
    let (here, mut there) = UnixStream::pair().unwrap();
    let stream = Stream::from(here);
    executor().block_on(async {
        for round in 0..100_u8 {
            let buffer = pool.try_take().expect("the last operation gave the buffer back");
            {
                let mut receive = pin!(stream.recv(buffer));
                poll_once(&mut receive).await;
                if round % 2 == 0 {
                    sleep(Duration::ZERO).await;
                }
            }
            let mut buffer = pool.try_take().unwrap();
            buffer.as_mut_slice().fill(round);
            std::io::Write::write_all(&mut there, &[200]).unwrap();
            assert!(buffer.as_slice().iter().all(|byte| *byte == round));
            drop(buffer);
            let (received, buffer) = stream.recv(pool.try_take().unwrap()).await;
            assert_eq!((received.unwrap(), buffer.as_slice()[0]), (1, 200));
        }
    });
}

#[test]
fn a_dropped_accept_leaks_no_connection() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = socket::Listener::bind(&socket::Address::Unix(path.clone())).unwrap();
    executor().block_on(async {
        let mut accept = Box::pin(listener.accept());
        poll_once(&mut accept).await;
        sleep(Duration::ZERO).await;
        let mut client = UnixStream::connect(&path).unwrap();
        drop(accept);
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        drop(listener);
        let ended = std::io::Read::read(&mut client, &mut [0]);
        assert!(
            matches!(ended, Ok(0)) || ended.unwrap_err().kind() != std::io::ErrorKind::WouldBlock
        );
    });
}

#[test]
fn more_operations_than_the_queues_hold_all_complete() {
    let config = ExecutorConfig { ring_entries: 4, tasks_max: 2000 };
    on_both_rings(config, |executor| {
        let file = Rc::new(File::from(tempfile::tempfile().unwrap()));
        let running = Rc::new(Cell::new(0));
        executor.block_on(async {
            for task in 0..1500_u32 {
                let (file, end) = (Rc::clone(&file), Ends::new(&running));
                spawn(async move {
                    write_sleep_read(&file, task).await;
                    drop(end);
                });
            }
            until_none(&running).await;
        });
    });
}

async fn write_sleep_read(file: &File, task: u32) {
    let mut buffer = Chunk::zeroed(8);
    buffer.as_mut_slice()[..4].copy_from_slice(&task.to_le_bytes());
    let at = u64::from(task) * 8;
    let (written, buffer) = file.write_at(buffer, at, Durability::Cached).await;
    assert_eq!(written.unwrap(), 8);
    sleep(Duration::from_millis(u64::from(task % 3))).await;
    let (read, buffer) = file.read_at(buffer, at).await;
    assert_eq!(read.unwrap(), 8);
    assert_eq!(buffer.as_slice()[..4], task.to_le_bytes());
}

#[test]
fn a_dropped_read_writes_nothing_later() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let file = File::from(file);
    let pool = BufferPool::new(1, 1 << 20);
    executor().block_on(async {
        for _ in 0..50 {
            {
                let mut read = pin!(file.read_at(pool.try_take().unwrap(), 0));
                poll_once(&mut read).await;
            }
            let mut buffer = pool.try_take().expect("the read gave the buffer back");
            buffer.as_mut_slice().fill(1);
            sleep(Duration::ZERO).await;
            assert!(buffer.as_slice().iter().all(|byte| *byte == 1));
        }
    });
}

#[test]
fn a_promised_buffer_passes_on_when_its_task_gives_up() {
    let pool = BufferPool::new(1, 1);
    let held = pool.try_take().unwrap();
    executor().block_on(async {
        let mut first = Box::pin(pool.take());
        let mut second = Box::pin(pool.take());
        poll_once(&mut first).await;
        poll_once(&mut second).await;
        drop(held);
        assert!(pool.try_take().is_none(), "the one who waits comes first");
        poll_once(&mut second).await;
        drop(first);
        drop(second.await);
    });
    assert!(pool.try_take().is_some());
}

#[test]
fn threads_share_a_pool_of_few_buffers() {
    let pool = BufferPool::new(3, 64);
    let workers = Workers::start("pool", 2, ExecutorConfig::default()).unwrap();
    for task in 0..32 {
        let pool = pool.clone();
        workers.spawn_on(task, move || async move {
            for round in 0..300 {
                let mut buffer = pool.take().await;
                buffer.as_mut_slice().fill(1);
                let rest = buffer.split_off(32);
                if round % 8 == 0 {
                    sleep(Duration::from_micros(10)).await;
                }
                drop((buffer, rest));
            }
        });
    }
    workers.shutdown();
    let all = [pool.try_take(), pool.try_take(), pool.try_take()];
    assert!(all.iter().all(Option::is_some) && pool.try_take().is_none());
}

#[test]
fn a_buffer_waited_for_comes_in_turn_and_from_any_thread() {
    let pool = BufferPool::new(2, 100);
    let mut held = vec![pool.try_take().unwrap(), pool.try_take().unwrap()];
    assert!(pool.try_take().is_none());
    let rest = held[0].split_off(50);
    drop(held.remove(0));
    assert!(pool.try_take().is_none(), "the rest of a chunk keeps its buffer");
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(10));
        drop(rest);
    });
    executor().block_on(async {
        let mut given_up = Box::pin(pool.take());
        poll_once(&mut given_up).await;
        let first = pool.take();
        drop(given_up);
        assert_eq!(first.await.len(), 100);
    });
    other.join().unwrap();
    assert_eq!(held[0].as_ptr().addr() % 4096, 0);
}

#[test]
fn files_sync_and_allocate() {
    let file = File::from(OwnedFd::from(tempfile::tempfile().unwrap()));
    executor().block_on(async {
        let range = ByteRange::new(0, 8192).unwrap();
        file.fallocate(0, range).await.unwrap();
        let (written, buffer) = file.write_at(Chunk::zeroed(4096), 0, Durability::Stable).await;
        assert_eq!(written.unwrap(), 4096);
        file.datasync().await.unwrap();
        let (read, _) = file.read_at(buffer, 8000).await;
        assert_eq!(read.unwrap(), 192, "a read ends with the file");
    });
}
