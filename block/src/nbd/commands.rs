//! What a request task does: calls the device, puts the answer into the reply queue.
//!
//! One task type serves all commands, so that tasks live in memory that was allocated when the
//! connection began; a read or write of 4 KiB allocates nothing. Reads longer than a piece are in
//! [`super::long_read`].
//!
//! A change that its client has given up is not begun. A client with several connections, as the
//! kernel's is, closes one that does not answer in time, asks over another one, and goes on when that
//! is answered; the first request, which may still lie unread in its socket, would then bring back
//! what was there before. This sees it on a unix socket; over TCP a close looks like the end of what
//! a client has to say. What has begun is another matter: the device carries out changes of the same
//! place in the order in which they begin.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::device::{Device, Durability, ZeroOptions};
use crate::range::ByteRange;

use super::connection::{Connection, Pass};
use super::error::{Access, Refusal};
use super::long_read;
use super::pieces::PIECE_BYTES_MAX;
use super::reply::{EXTENTS_MAX, Reply, descriptors};
use super::request::{Cookie, Job};

/// Reads from this length on are asked for holes first, where the client can be told of them.
const HOLE_QUERY_BYTES_MIN: usize = 64 * 1024;

/// What a request task is to do.
pub(super) enum Work<D: Device> {
    /// Writes a payload that has been received; `range` is the place it was reserved for.
    Write { payload: D::Payload, range: ByteRange, durability: Durability, answer: PartOf },
    /// Anything without a payload.
    Job { cookie: Cookie, job: Job },
}

/// The write that a written part belongs to.
pub(super) enum PartOf {
    /// The part is all of it.
    Alone(Cookie),
    /// There are others.
    Joint(Rc<JointWrite>),
}

/// A write in several parts: answered when all have ended, with the first failure if any. The
/// reader counts as a part until it has received all the others.
pub(super) struct JointWrite {
    cookie: Cookie,
    parts_left: Cell<usize>,
    failure: RefCell<Option<Refusal>>,
}

impl JointWrite {
    pub(super) fn new(cookie: Cookie) -> Rc<Self> {
        Rc::new(Self { cookie, parts_left: Cell::new(1), failure: RefCell::new(None) })
    }

    /// Counts another part in.
    pub(super) fn part(self: &Rc<Self>) -> Rc<Self> {
        self.parts_left.set(self.parts_left.get() + 1);
        Rc::clone(self)
    }
}

impl PartOf {
    /// Ends a part and answers when it was the last one.
    pub(super) async fn end<D: Device>(
        self,
        connection: &Connection<D>,
        result: Result<(), Refusal>,
    ) {
        let (cookie, result) = match self {
            Self::Alone(cookie) => (cookie, result),
            Self::Joint(joint) => {
                if let Err(refusal) = result {
                    joint.failure.borrow_mut().get_or_insert(refusal);
                }
                joint.parts_left.set(joint.parts_left.get() - 1);
                if joint.parts_left.get() > 0 {
                    return;
                }
                (joint.cookie, joint.failure.take().map_or(Ok(()), Err))
            }
        };
        answer(connection, cookie, result).await;
    }
}

/// A request task.
pub(super) async fn run<D: Device>(connection: Pass<D>, work: Work<D>) {
    match work {
        Work::Write { range, .. } if connection.is_given_up() => {
            tracing::debug!(%range, "an nbd write was given up by its client: not begun");
        }
        Work::Write { payload, range, durability, answer } => {
            let result = connection.device.write(payload, durability).await;
            if let Err(error) = &result {
                tracing::debug!(%range, %error, "nbd write failed");
            }
            let result = result.map_err(|error| Refusal::from_device(&error, Access::Write));
            answer.end(&connection, result).await;
        }
        Work::Job { cookie, job } => carry_out(&connection, cookie, job).await,
    }
}

async fn carry_out<D: Device>(connection: &Connection<D>, cookie: Cookie, job: Job) {
    let device = &connection.device;
    if matches!(job, Job::Trim { .. } | Job::WriteZeroes { .. }) && connection.is_given_up() {
        tracing::debug!(?job, "an nbd request was given up by its client: not begun");
        return;
    }
    let (result, access) = match job {
        Job::Read { range, whole } => return read(connection, cookie, range, whole).await,
        Job::BlockStatus { range, one } => {
            return block_status(connection, cookie, range, one).await;
        }
        Job::Flush => (device.flush().await, Access::Write),
        Job::Trim { range, .. } | Job::WriteZeroes { range, .. } if range.is_empty() => {
            (Ok(()), Access::Write)
        }
        Job::Trim { range, durability } => (device.trim(range, durability).await, Access::Write),
        Job::WriteZeroes { range, options } => {
            (device.write_zeroes(range, options).await, zeroing(options))
        }
        Job::Cache { range } => (device.cache(range).await, Access::Read),
    };
    let result = result.map_err(|error| Refusal::from_device(&error, access));
    answer(connection, cookie, result).await;
}

fn zeroing(options: ZeroOptions) -> Access {
    if options.fast { Access::FastZero } else { Access::Write }
}

/// Answers a request that has no content.
async fn answer<D: Device>(
    connection: &Connection<D>,
    cookie: Cookie,
    result: Result<(), Refusal>,
) {
    match result {
        Ok(()) => {
            connection.replies.push(Reply::Done { cookie }).await;
        }
        Err(refusal) => refuse(connection, cookie, refusal).await,
    }
}

/// Refuses a request, with a message where the client can take one.
pub(super) async fn refuse<D: Device>(
    connection: &Connection<D>,
    cookie: Cookie,
    refusal: Refusal,
) {
    let reply = if connection.negotiated.structured {
        Reply::Error { cookie, refusal, at: None }
    } else {
        Reply::Failed { cookie, refusal }
    };
    connection.replies.push(reply).await;
}

async fn read<D: Device>(
    connection: &Connection<D>,
    cookie: Cookie,
    range: ByteRange,
    whole: bool,
) {
    let len = usize::try_from(range.len()).expect("reads are limited to 32 MiB");
    if len == 0 {
        let reply = if connection.negotiated.structured {
            Reply::Finished { cookie }
        } else {
            Reply::Done { cookie }
        };
        connection.replies.push(reply).await;
    } else if !whole && len >= HOLE_QUERY_BYTES_MIN {
        long_read::in_chunks(connection, cookie, range).await;
    } else if len > PIECE_BYTES_MAX {
        long_read::in_one_reply(connection, cookie, range).await;
    } else {
        let buffer = connection.buffers.take(len).await;
        match connection.device.read(range.start(), buffer).await {
            Ok(data) => {
                connection.counters().count_read(len);
                let reply = if connection.negotiated.structured {
                    Reply::Data { cookie, offset: range.start(), data, last: true }
                } else {
                    Reply::SimpleData { cookie, data }
                };
                connection.replies.push(reply).await;
            }
            Err(error) => {
                refuse(connection, cookie, Refusal::from_device(&error, Access::Read)).await;
            }
        }
    }
}

async fn block_status<D: Device>(
    connection: &Connection<D>,
    cookie: Cookie,
    range: ByteRange,
    one: bool,
) {
    let max = if one { 1 } else { EXTENTS_MAX };
    // For one extent several are asked for, as neighbours that are alike count as one.
    let mut extents = Vec::with_capacity(EXTENTS_MAX);
    match connection.device.block_status(range, EXTENTS_MAX, &mut extents).await {
        Ok(()) => {
            let extents = descriptors(range, &extents, max);
            connection.replies.push(Reply::Status { cookie, extents }).await;
        }
        Err(error) => {
            refuse(connection, cookie, Refusal::from_device(&error, Access::Read)).await;
        }
    }
}
