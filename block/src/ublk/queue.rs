//! The server of one device: a thread, an executor, and a task for each request that the kernel
//! may have in flight.
//!
//! A task fetches a request, carries it out, and gives the answer together with the wish for the
//! next one. The kernel wants all that from one and the same thread. The thread ends when the
//! kernel stops the device or when [`Server::stop`] asks for it; a request that is not answered by
//! then is asked of the next server.
//!
//! The order at a stop: requests end, the thread ends, its ring goes. The kernel (seen with 6.12)
//! looks once, when the ring goes, which requests the thread holds, and takes those back. One that
//! is on its way to the thread just then is taken back because the thread is no more; while it lives
//! the request may be given to it after that look, on a ring that nobody reads, and the device waits
//! for it for ever, with all other commands about it. So the ring is held until the thread has ended,
//! and it is a plain one: with deferred task work such a request would wait on the ring for the thread
//! to come for it, also when there is none.
//!
//! Bounds: 128 requests; 8 MiB for the payloads of reads, beyond which a read waits for another.
//! A write holds memory of the device for one part of it at a time, so none waits for memory that
//! only its own end would free.

use std::cell::{Cell, OnceCell};
use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::abi::{self, Descriptor, QueueCommand};
use super::request::{Request, errno_of};
use super::{Number, REQUESTS_MAX};
use crate::device::{Device, DeviceError, Durability, Payload, ZeroOptions};
use crate::engine::{BufferPool, Event, Executor, ExecutorConfig, driver_command, sleep, spawn};
use crate::range::ByteRange;

/// A longer read is done in pieces, one after the other.
const READ_PIECE_BYTES: usize = 128 << 10;
/// Pieces of reads at a time, all requests together.
const READ_PIECES_MAX: usize = 64;

/// What the kernel writes for each request.
const DESCRIPTORS_BYTES: usize = {
    let bytes = REQUESTS_MAX as usize * size_of::<Descriptor>();
    bytes.next_multiple_of(4096)
};

/// Serves a device. Dropped, it goes on until the kernel stops the device.
#[derive(Debug)]
pub struct Server {
    stop: Arc<Stop>,
    thread: JoinHandle<()>,
    /// Of the thread; see the module's text.
    ring: OwnedFd,
}

struct Stop {
    asked: AtomicBool,
    /// It was asked for, or a task has ended.
    event: Event,
}

impl std::fmt::Debug for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stop").field("asked", &self.is_asked()).finish_non_exhaustive()
    }
}

impl Stop {
    fn is_asked(&self) -> bool {
        // Acquire pairs with the release in `Server::stop`.
        self.asked.load(Ordering::Acquire)
    }
}

impl Server {
    /// Begins to serve a device that has just been added, or whose recovery was begun. The kernel
    /// uses it from [`Control::start`](super::Control::start), or
    /// [`end_recovery`](super::Control::end_recovery), on.
    ///
    /// # Errors
    /// The system's, for the device's file, its memory, a ring or a thread.
    pub fn start<D: Device>(number: Number, device: Arc<D>) -> io::Result<Self> {
        let stop = Arc::new(Stop { asked: AtomicBool::new(false), event: Event::new() });
        let (report, reported) = mpsc::sync_channel(1);
        let asked = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name(format!("ublk-{}", number.0))
            .spawn(move || run(number, device, asked, &report))?;
        let panicked = || io::Error::other("the thread that serves the device panicked");
        let ring = reported.recv().map_err(|_| panicked())??;
        Ok(Self { stop, thread, ring })
    }

    /// True when it serves no more: the device was stopped.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends it. Requests in flight are carried out first, and not answered: the device waits, with
    /// them, for the next server. Blocks as long as the slowest of them takes.
    pub fn stop(self) {
        // Release pairs with the acquire in `Stop::is_asked`.
        self.stop.asked.store(true, Ordering::Release);
        self.stop.event.notify_all();
        if self.thread.join().is_err() {
            tracing::error!("a thread that served a ublk device had panicked");
        }
        // Not before: see the module's text.
        drop(self.ring);
    }
}

fn run<D: Device>(
    number: Number,
    device: Arc<D>,
    stop: Arc<Stop>,
    report: &mpsc::SyncSender<io::Result<OwnedFd>>,
) {
    let config = ExecutorConfig { tasks_max: REQUESTS_MAX.into(), ..Default::default() };
    let started = Executor::with_plain_ring(&config).and_then(|executor| {
        let ring = executor.hold_ring()?;
        Ok((executor, ring, Rc::new(Queue::open(number, device, stop)?)))
    });
    // The starter waits for exactly one message.
    let (executor, ring, queue) = match started {
        Ok(started) => started,
        Err(error) => {
            let _ = report.send(Err(error));
            return;
        }
    };
    executor.block_on(async {
        let begun = fetch_all(&queue).await;
        let is_served = begun.is_ok();
        let _ = report.send(begun.map(|()| ring));
        if is_served {
            until_over(&queue).await;
        }
    });
    // What the tasks have fetched and not answered stays in flight, and needs the queue's file
    // until the executor is gone.
    drop(executor);
    tracing::debug!(number = number.0, "the ublk device is served no more");
}

/// Fetches for all places of the queue, and only then maps what the kernel describes requests in.
/// The other way round, a process that is killed in between leaves a device that nobody can take
/// over: the kernel lets only the first process map it, and forgets which that was only for a
/// queue that was fetched for.
async fn fetch_all<D: Device>(queue: &Rc<Queue<D>>) -> io::Result<()> {
    for tag in 0..REQUESTS_MAX {
        spawn(serve_slot(Rc::clone(queue), tag));
    }
    // Over when the kernel has got everything that was queued with it.
    sleep(Duration::ZERO).await;
    let mapped = Descriptors::map(&queue.file)?;
    assert!(queue.descriptors.set(mapped).is_ok(), "mapped once");
    Ok(())
}

/// Returns when no task is left, or when a stop was asked for and no request is carried out.
async fn until_over<D: Device>(queue: &Queue<D>) {
    loop {
        let changed = queue.stop.event.wait();
        let is_over = queue.open.get() == 0 || (queue.stop.is_asked() && queue.busy.get() == 0);
        if is_over {
            return;
        }
        changed.await;
    }
}

/// Carries out the requests of one place of the queue, one after the other.
async fn serve_slot<D: Device>(queue: Rc<Queue<D>>, tag: u16) {
    let mut command = (abi::FETCH_REQUEST, 0);
    loop {
        let (number, result) = command;
        let body = QueueCommand { queue: 0, tag, result, address: 0 }.to_bytes();
        match driver_command(queue.file.as_fd(), number, body).await {
            Ok(_) => {}
            // The kernel's word that the device was stopped.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => break,
            Err(error) => {
                tracing::error!(tag, "the ublk driver gives no more requests: {error}");
                break;
            }
        }
        if queue.stop.is_asked() {
            break;
        }
        queue.busy.set(queue.busy.get() + 1);
        let answer = queue.carry_out(tag).await;
        queue.busy.set(queue.busy.get() - 1);
        if queue.stop.is_asked() {
            break;
        }
        command = (abi::COMMIT_AND_FETCH_REQUEST, answer);
    }
    queue.open.set(queue.open.get() - 1);
    queue.stop.event.notify_all();
}

struct Queue<D> {
    device: Arc<D>,
    file: File,
    /// There when the first request is.
    descriptors: OnceCell<Descriptors>,
    read_buffers: BufferPool,
    stop: Arc<Stop>,
    /// Tasks that have not ended.
    open: Cell<u16>,
    /// Those among them that carry out a request.
    busy: Cell<u16>,
    failures: Cell<u64>,
}

impl<D: Device> Queue<D> {
    fn open(number: Number, device: Arc<D>, stop: Arc<Stop>) -> io::Result<Self> {
        let path = number.queue_file();
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(|error| {
            io::Error::new(error.kind(), format!("can't open {}: {error}", path.display()))
        })?;
        Ok(Self {
            device,
            file,
            descriptors: OnceCell::new(),
            read_buffers: BufferPool::new(READ_PIECES_MAX, READ_PIECE_BYTES),
            stop,
            open: Cell::new(REQUESTS_MAX),
            busy: Cell::new(0),
            failures: Cell::new(0),
        })
    }

    /// Carries out the request that the kernel has put there; the result for the driver.
    async fn carry_out(&self, tag: u16) -> i32 {
        let descriptors = self.descriptors.get().expect("the kernel asks after it was mapped");
        let request = match Request::decode(&descriptors.get(tag)) {
            Ok(request) => request,
            Err(errno) => return -errno,
        };
        let result = match request {
            Request::Read(range) => self.read(tag, range).await,
            Request::Write(range, durability) => self.write(tag, range, durability).await,
            Request::Flush => self.device.flush().await,
            Request::Trim(range, durability) => self.device.trim(range, durability).await,
            Request::WriteZeroes { range, no_hole, durability } => {
                let options = ZeroOptions { no_hole, fast: false, durability };
                self.device.write_zeroes(range, options).await
            }
        };
        match result {
            Ok(()) => request.answer(),
            Err(error) => {
                self.failed(&request, &error);
                -errno_of(&error)
            }
        }
    }

    async fn write(
        &self,
        tag: u16,
        range: ByteRange,
        durability: Durability,
    ) -> Result<(), DeviceError> {
        let mut at = range.start();
        while let Some(rest) = ByteRange::between(at, range.end()).filter(|rest| !rest.is_empty()) {
            let mut payload = self.device.reserve(rest).await?;
            let bytes = payload.bytes_mut();
            assert!(!bytes.is_empty(), "a reservation holds at least a byte");
            let len = bytes.len() as u64;
            // A copy in memory: it waits for nobody.
            self.file
                .read_exact_at(bytes, abi::payload_place(tag, at - range.start()))
                .map_err(|source| DeviceError::io(rest, source))?;
            self.device.write(payload, durability).await?;
            at += len;
        }
        Ok(())
    }

    async fn read(&self, tag: u16, range: ByteRange) -> Result<(), DeviceError> {
        let mut at = range.start();
        while let Some(rest) = ByteRange::between(at, range.end()).filter(|rest| !rest.is_empty()) {
            let mut buffer = self.read_buffers.take().await;
            buffer.truncate(usize::try_from(rest.len()).unwrap_or(usize::MAX));
            let len = buffer.len() as u64;
            let buffer = self.device.read(at, buffer).await?;
            // As in `write`.
            self.file
                .write_all_at(buffer.as_slice(), abi::payload_place(tag, at - range.start()))
                .map_err(|source| DeviceError::io(rest, source))?;
            at += len;
        }
        Ok(())
    }

    /// The client sees only a number, so the log says what it was; ever more seldom for a disk
    /// that keeps failing.
    fn failed(&self, request: &Request, error: &DeviceError) {
        let failures = self.failures.get().wrapping_add(1);
        self.failures.set(failures);
        if failures.is_power_of_two() {
            tracing::error!(failures, ?request, %error, "a request over ublk failed");
        }
    }
}

/// The memory in which the kernel describes requests.
struct Descriptors {
    start: NonNull<Descriptor>,
}

impl Descriptors {
    fn map(file: &File) -> io::Result<Self> {
        let bytes = NonZeroUsize::new(DESCRIPTORS_BYTES).expect("not empty");
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start = unsafe { mmap(None, bytes, ProtFlags::PROT_READ, flags, file, 0) }?;
        Ok(Self { start: start.cast() })
    }

    /// What was described last for `tag`. To be read between the completion of a fetch and the
    /// answer: the kernel writes only outside of that.
    fn get(&self, tag: u16) -> Descriptor {
        assert!(tag < REQUESTS_MAX, "a tag of this queue");
        // SAFETY: within the mapping, which holds REQUESTS_MAX of them; any bytes are a valid
        // value. The kernel wrote it before the completion, which was read with acquire ordering.
        unsafe { self.start.add(tag.into()).read_volatile() }
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: mapped with this length in `map`, and nothing points into it any more.
        if let Err(errno) = unsafe { munmap(self.start.cast(), DESCRIPTORS_BYTES) } {
            tracing::warn!("can't unmap the descriptors of a ublk device: {errno}");
        }
    }
}
