//! What the engine costs in the steady state: no allocation at all, and fewer than two system
//! calls for the request that counts: 4 KiB received from a unix socket at depth 32, written to a
//! file, answered. Messages and wake-ups between threads allocate nothing either.

#![allow(clippy::disallowed_methods, reason = "a test waits in real time")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tidemark_block::engine::socket::{Parts, Stream};
use tidemark_block::engine::{
    BufferPool, Event, Executor, ExecutorConfig, MailReceiver, MailSender, TaskPool, mailbox,
    sleep, spawn,
};
use tidemark_block::store::{OpenMode, Store, UringStore};
use tidemark_block::{Chunk, Durability, Payload};

const DEPTH: usize = 32;
const HEADER_BYTES: usize = 28;
const PAYLOAD_BYTES: usize = 4096;
const REPLY_BYTES: usize = 16;
/// Both are multiples of the depth.
const WARM_UP: usize = 2_048;
const REQUESTS: usize = 20_480;
const DISK_BYTES: u64 = 64 * 1024 * 1024;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending allocates without being counted.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

struct WritePayload(Chunk);

impl Payload for WritePayload {
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_slice()
    }
}

/// Takes every answer.
fn take_answers(mut socket: UnixStream) {
    let mut reply = [0; REPLY_BYTES];
    for _ in 0..WARM_UP + REQUESTS {
        socket.read_exact(&mut reply).unwrap();
    }
}

async fn handle(
    store: Rc<UringStore>,
    payload: WritePayload,
    number: usize,
    answers: MailSender<usize>,
) {
    let at = (number * PAYLOAD_BYTES) as u64 * 7 % DISK_BYTES;
    let (written, _) = store.write_at(payload.0, at, Durability::Cached).await;
    written.unwrap();
    assert!(answers.try_send(number).is_ok());
}

/// Sends what is answered, as much at once as there is.
async fn answer(stream: Rc<Stream>, mut answers: MailReceiver<usize>, replies: BufferPool) {
    let mut parts = Parts::new();
    while let Some(_first) = answers.recv().await {
        let mut waiting = 1;
        while waiting < DEPTH && answers.try_recv().is_some() {
            waiting += 1;
        }
        for _ in 0..waiting {
            let mut reply = replies.take().await;
            reply.truncate(REPLY_BYTES);
            assert!(parts.push(reply).is_ok());
        }
        let (sent, back) = stream.send_all(parts).await;
        sent.unwrap();
        parts = back;
        parts.clear();
    }
}

struct Cost {
    allocations: u64,
    enter_calls: u64,
    seconds: f64,
}

/// Serves requests that `client` sends 32 at a time, from this thread, so that they are there
/// however busy the machine is.
async fn serve(
    executor: &Executor,
    stream: Stream,
    mut client: UnixStream,
    store: UringStore,
) -> Cost {
    let burst = vec![7; DEPTH * (HEADER_BYTES + PAYLOAD_BYTES)];
    let (stream, store) = (Rc::new(stream), Rc::new(store));
    let headers = BufferPool::new(4, HEADER_BYTES);
    let payloads = BufferPool::new(2 * DEPTH, PAYLOAD_BYTES);
    let tasks = TaskPool::new(2 * DEPTH);
    let (sender, receiver) = mailbox(WARM_UP + REQUESTS);
    spawn(answer(Rc::clone(&stream), receiver, BufferPool::new(2 * DEPTH, REPLY_BYTES)));
    let mut before = (0, 0, Instant::now());
    let mut have = 0;
    for number in 0..WARM_UP + REQUESTS {
        if number == WARM_UP {
            before = (ALLOCATIONS.get(), executor.enter_calls(), Instant::now());
        }
        if number % DEPTH == 0 {
            client.write_all(&burst).unwrap();
        }
        let rest = headers.take().await.split_off(have);
        let (received, _) = stream.recv_exact(rest).await;
        received.unwrap();
        let payload = WritePayload(payloads.take().await);
        let mut next = headers.take().await;
        if number + 1 == WARM_UP + REQUESTS {
            next.truncate(0);
        }
        let (behind, payload, _) = stream.recv_payload(payload, next).await;
        have = behind.unwrap();
        let task = handle(Rc::clone(&store), payload, number, sender.clone());
        assert!(tasks.try_spawn(task).is_ok());
    }
    let cost = Cost {
        allocations: ALLOCATIONS.get() - before.0,
        enter_calls: executor.enter_calls() - before.1,
        seconds: before.2.elapsed().as_secs_f64(),
    };
    drop(sender);
    // The client reads its last answers before it ends.
    sleep(Duration::from_millis(50)).await;
    cost
}

#[test]
fn a_write_at_depth_32_allocates_nothing_and_shares_its_system_calls() {
    // In memory: on a slow disk every write ends alone and has its calls for itself.
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = folder.path().join("disk");
    std::fs::File::create(&path).unwrap().set_len(DISK_BYTES).unwrap();
    let store = UringStore::open(&path, OpenMode::ReadWrite).unwrap();
    let direct = store.direct();
    let (here, there) = UnixStream::pair().unwrap();
    let answers = there.try_clone().unwrap();
    let other = std::thread::spawn(move || take_answers(answers));
    let executor = Executor::new(&ExecutorConfig::default()).unwrap();
    let cost = executor.block_on(serve(&executor, here.into(), there, store));
    other.join().unwrap();
    let requests = f64::from(u32::try_from(REQUESTS).unwrap());
    let calls = f64::from(u32::try_from(cost.enter_calls).unwrap()) / requests;
    println!(
        "direct I/O {direct}: {:.0} requests/s, {calls:.2} io_uring_enter calls for each, {} \
         allocations for {REQUESTS} requests",
        requests / cost.seconds,
        cost.allocations
    );
    // A queue may grow once more where more requests are under way at once than in the warm-up.
    assert!(cost.allocations * 100 < REQUESTS as u64, "{} allocations", cost.allocations);
    assert!(calls < 2.0, "{calls:.2} system calls for each request");
}

/// Sends numbers, and says by an event that more of them are announced.
fn announce(sender: &MailSender<usize>, announced: &AtomicUsize, event: &Event) -> u64 {
    let mut before = 0;
    for number in 0..WARM_UP + REQUESTS {
        if number == WARM_UP {
            before = ALLOCATIONS.get();
        }
        // Release pairs with the acquire in the test's loop.
        announced.store(number + 1, Ordering::Release);
        event.notify_all();
        sender.send(number).unwrap();
    }
    ALLOCATIONS.get() - before
}

#[test]
fn messages_and_events_between_threads_allocate_nothing() {
    let (sender, mut receiver) = mailbox(8);
    let announced = AtomicUsize::new(0);
    let event = Event::new();
    let executor = Executor::new(&ExecutorConfig::default()).unwrap();
    let receive = async {
        let mut before = 0;
        for number in 0..WARM_UP + REQUESTS {
            if number == WARM_UP {
                before = ALLOCATIONS.get();
            }
            loop {
                let wait = event.wait();
                // Acquire pairs with the release in `announce`.
                if announced.load(Ordering::Acquire) > number {
                    break;
                }
                wait.await;
            }
            assert_eq!(receiver.recv().await, Some(number));
        }
        ALLOCATIONS.get() - before
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| announce(&sender, &announced, &event));
        let here = executor.block_on(receive);
        assert_eq!((here, other.join().unwrap()), (0, 0));
    });
}
