//! Requests on the way from the fuser threads to the executors, and their answers.
//!
//! Enters: a decoded request with its open file and the object that answers it. Leaves: the
//! answer, sent from the executor's thread. A request belongs to the mailbox, then to its task,
//! and is answered exactly once; one that can't be delivered is answered by who could not. What a
//! crash loses is what was in flight, and the kernel tells those clients.
//!
//! Bounds: [`Outbox`] has a mailbox for each worker; a full one blocks the fuser threads, which
//! leaves further requests in the kernel's queue. A worker runs a bounded number of requests at a
//! time; beyond it the task that empties the mailbox runs one itself, and takes no other
//! meanwhile.

use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use fuser::{Errno, ReplyData, ReplyEmpty, ReplyLseek, ReplyWrite};

use super::errno::errno_of;
use super::files::OpenFile;
use super::seek::{Target, seek};
use super::split::{SplitWrite, SplitWrites};
use crate::chunk::Chunk;
use crate::device::{Device, DeviceError, Durability, ZeroOptions};
use crate::engine::{BufferPool, MailReceiver, MailSender, TaskPool, WorkersHandle, mailbox};
use crate::range::ByteRange;

/// A request for a device.
pub(super) struct Request<D: Device> {
    pub(super) open: Arc<OpenFile<D>>,
    pub(super) action: Action<D>,
}

/// What is asked, and who answers.
pub(super) enum Action<D: Device> {
    Read(ByteRange, ReplyData),
    Write(D::Payload, Durability, WriteReply),
    Flush(ReplyEmpty),
    Zero(ByteRange, ZeroOptions, ReplyEmpty),
    Seek(u64, Target, ReplyLseek),
}

/// The answer to a write, which may be shared by the parts of it.
pub(super) enum WriteReply {
    Whole(ReplyWrite, u32),
    Part(Arc<SplitWrite<(ReplyWrite, u32)>>, Arc<SplitWrites<(ReplyWrite, u32)>>),
}

impl WriteReply {
    /// Answers the write, or says that this part of it has ended.
    pub(super) fn end(self, result: Result<(), Errno>) {
        match self {
            Self::Whole(reply, len) => answer_write(reply, len, result),
            Self::Part(write, kept) => {
                if let Some(((reply, len), outcome)) = write.end_part(result) {
                    answer_write(reply, len, outcome);
                    kept.keep(write);
                }
            }
        }
    }
}

fn answer_write(reply: ReplyWrite, len: u32, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.written(len),
        Err(errno) => reply.error(errno),
    }
}

fn answer(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

impl<D: Device> Request<D> {
    /// Answers with an error.
    fn refuse(self, errno: Errno) {
        match self.action {
            Action::Read(_, reply) => reply.error(errno),
            Action::Write(payload, _, reply) => {
                // Memory first: the client may be back before this line ends.
                drop(payload);
                reply.end(Err(errno));
            }
            Action::Flush(reply) | Action::Zero(_, _, reply) => reply.error(errno),
            Action::Seek(_, _, reply) => reply.error(errno),
        }
    }
}

/// Buffers for reads, in two sizes: many small ones for random reads, few that hold the longest
/// read the kernel makes. At the bound a read waits for another one to be answered.
#[derive(Clone)]
pub(super) struct ReadBuffers {
    small: BufferPool,
    large: BufferPool,
}

impl ReadBuffers {
    const SMALL: (usize, usize) = (64, 64 << 10);
    const LARGE: (usize, usize) = (16, READ_BYTES_MAX as usize);

    pub(super) fn new() -> Self {
        Self {
            small: BufferPool::new(Self::SMALL.0, Self::SMALL.1),
            large: BufferPool::new(Self::LARGE.0, Self::LARGE.1),
        }
    }

    async fn take(&self, len: usize) -> Chunk {
        let pool = if len <= Self::SMALL.1 { &self.small } else { &self.large };
        let mut chunk = pool.take().await;
        chunk.truncate(len);
        chunk
    }
}

/// Longest read that is answered in full, in bytes; the kernel's own limit is the same.
pub(super) const READ_BYTES_MAX: u32 = 1 << 20;

/// The fuser threads' end.
pub(super) struct Outbox<D: Device> {
    mailboxes: RwLock<Arc<[MailSender<Request<D>>]>>,
    next: AtomicUsize,
}

impl<D: Device> Outbox<D> {
    /// Starts the receiving task on every worker. Each runs at most `in_flight_max` requests (and
    /// one more, see the module), and as many may wait in front of it.
    pub(super) fn start(workers: &WorkersHandle, in_flight_max: usize) -> Self {
        let buffers = ReadBuffers::new();
        let mailboxes: Vec<_> = (0..workers.count())
            .map(|worker| {
                let (sender, receiver) = mailbox(in_flight_max);
                let buffers = buffers.clone();
                workers.spawn_on(worker, move || serve::<D>(receiver, in_flight_max, buffers));
                sender
            })
            .collect();
        Self { mailboxes: RwLock::new(mailboxes.into()), next: AtomicUsize::new(0) }
    }

    /// Hands a request over to the workers in turn. Blocks while the worker's mailbox is full.
    pub(super) fn send(&self, request: Request<D>) {
        let mailboxes = Arc::clone(&self.mailboxes.read().unwrap_or_else(PoisonError::into_inner));
        if mailboxes.is_empty() {
            return request.refuse(Errno::ESHUTDOWN);
        }
        // Relaxed: it spreads the load, nothing is ordered by it.
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        if let Err(refused) = mailboxes[turn % mailboxes.len()].send(request) {
            refused.0.refuse(Errno::ESHUTDOWN);
        }
    }

    /// Refuses requests from now on. What was sent before is still answered; then the workers'
    /// tasks end.
    pub(super) fn close(&self) {
        *self.mailboxes.write().unwrap_or_else(PoisonError::into_inner) = Arc::new([]);
    }
}

/// Runs what arrives in one worker's mailbox.
async fn serve<D: Device>(
    mut receiver: MailReceiver<Request<D>>,
    in_flight_max: usize,
    buffers: ReadBuffers,
) {
    let buffers = Rc::new(buffers);
    let tasks = TaskPool::new(in_flight_max);
    while let Some(request) = receiver.recv().await {
        if let Err(task) = tasks.try_spawn(perform(request, Rc::clone(&buffers))) {
            task.await;
        }
    }
}

async fn perform<D: Device>(request: Request<D>, buffers: Rc<ReadBuffers>) {
    let open = &*request.open;
    let device = &*open.device;
    match request.action {
        Action::Read(range, reply) => {
            // The decoder cut the range to READ_BYTES_MAX, so it fits in usize.
            let buffer = buffers.take(usize::try_from(range.len()).unwrap_or(usize::MAX)).await;
            match device.read(range.start(), buffer).await {
                Ok(chunk) => reply.data(chunk.as_slice()),
                Err(error) => reply.error(failed(open, "read", &error)),
            }
        }
        Action::Write(payload, durability, reply) => {
            let result = device.write(payload, durability).await;
            reply.end(changed(open, "write", result));
        }
        Action::Flush(reply) => {
            let result = device.flush().await;
            answer(reply, result.map_err(|error| failed(open, "flush", &error)));
        }
        Action::Zero(range, options, reply) => {
            let result = device.write_zeroes(range, options).await;
            answer(reply, changed(open, "write zeroes", result));
        }
        Action::Seek(offset, target, reply) => match seek(device, offset, target).await {
            Ok(Some(found)) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(error) => reply.error(failed(open, "block status", &error)),
        },
    }
}

/// The outcome of a change, which moves the file's time.
fn changed<D>(
    open: &OpenFile<D>,
    what: &str,
    result: Result<(), DeviceError>,
) -> Result<(), Errno> {
    match result {
        Ok(()) => {
            open.file.set_modified(SystemTime::now());
            Ok(())
        }
        Err(error) => Err(failed(open, what, &error)),
    }
}

/// The errno for a failed request. The error itself goes to the log, since the client sees only
/// the number; ever more seldom for a disk that keeps failing.
pub(super) fn failed<D>(open: &OpenFile<D>, what: &str, error: &DeviceError) -> Errno {
    if let Some(failures) = open.file.count_failure() {
        let export = open.file.name.as_str();
        tracing::error!(export, failures, %error, "a {what} over FUSE failed");
    }
    errno_of(error)
}
