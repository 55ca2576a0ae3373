//! The reading side of a connection.
//!
//! In: bytes of the client. Out: request tasks, each with its place within the connection's
//! bounds; at the bound the reader takes in nothing more. A write's payload is received into the
//! memory that the device reserves for it; each part that the device gives is written at once.
//! After a refusal the payload is drained, so the connection goes on.

use std::future::Future;
use std::rc::Rc;

use crate::device::{Device, Durability, PAYLOAD_BYTES_MAX, Payload};
use crate::range::ByteRange;

use super::commands::{JointWrite, PartOf, Work, refuse};
use super::connection::{Connection, Pass};
use super::error::{Access, ConnectionError, ErrorCode, Refusal};
use super::inbox::Inbox;
use super::pieces::cut;
use super::reply::Reply;
use super::request::{Command, Cookie, Request};

/// See the module's text. `start` starts a request task, or gives it back.
pub(super) struct Reader<'a, D, S> {
    connection: &'a Rc<Connection<D>>,
    inbox: Inbox,
    start: S,
}

impl<'a, D, S, F> Reader<'a, D, S>
where
    D: Device,
    S: Fn(Pass<D>, Work<D>) -> Result<(), F>,
    F: Future<Output = ()>,
{
    pub(super) fn new(connection: &'a Rc<Connection<D>>, start: S) -> Self {
        Self { connection, inbox: Inbox::new(), start }
    }

    /// Reads until the client leaves.
    ///
    /// # Errors
    /// When it broke the protocol or left in the middle of a request.
    pub(super) async fn run(mut self) -> Result<(), ConnectionError> {
        loop {
            self.connection.gate.room(0).await;
            let Some(request) = self.inbox.request(&self.connection.stream).await? else {
                return Ok(());
            };
            self.connection.counters().count_request();
            let geometry = self.connection.device.geometry();
            let checked = match request.check(&geometry, self.connection.negotiated) {
                Ok(command) if self.connection.stopping.get() => match command {
                    Command::Disconnect => Ok(command),
                    _ => Err(Refusal::new(ErrorCode::ShuttingDown, "the server is stopping")),
                },
                checked => checked,
            };
            match checked {
                Ok(Command::Disconnect) => {
                    self.connection.leaving.set(true);
                    return Ok(());
                }
                Ok(Command::Write { range, durability }) => {
                    self.receive_write(request.cookie, range, durability).await?;
                }
                Ok(Command::Job(job)) => {
                    let pass = Pass::new(self.connection, 0);
                    self.start(pass, Work::Job { cookie: request.cookie, job }).await;
                }
                Err(refusal) => self.refuse(&request, refusal).await?,
            }
        }
    }

    async fn refuse(&mut self, request: &Request, refusal: Refusal) -> Result<(), ConnectionError> {
        self.discard(u64::from(request.payload_bytes())).await?;
        refuse(self.connection, request.cookie, refusal).await;
        Ok(())
    }

    async fn receive_write(
        &mut self,
        cookie: Cookie,
        range: ByteRange,
        durability: Durability,
    ) -> Result<(), ConnectionError> {
        if range.is_empty() {
            self.connection.replies.push(Reply::Done { cookie }).await;
            return Ok(());
        }
        let mut joint = None;
        let mut left = range;
        while !left.is_empty() {
            // The device says how much it gives only after it has given it.
            let bytes_max =
                PAYLOAD_BYTES_MAX.min(usize::try_from(left.len()).unwrap_or(usize::MAX));
            self.connection.gate.room(bytes_max).await;
            let mut payload = match self.connection.device.reserve(left).await {
                Ok(payload) => payload,
                Err(error) => {
                    let refusal = Refusal::from_device(&error, Access::Write);
                    self.discard(left.len()).await?;
                    self.end_write(cookie, joint, Err(refusal)).await;
                    return Ok(());
                }
            };
            let bytes = payload.bytes_mut().len();
            assert!((1..=bytes_max).contains(&bytes), "{bytes} bytes reserved for {left}");
            self.connection.payload_watch.begin();
            let payload = self.inbox.payload(&self.connection.stream, payload).await?;
            self.connection.payload_watch.end();
            self.connection.counters().count_written(bytes);
            let (part, rest) = cut(left, bytes as u64);
            if joint.is_none() && !rest.is_empty() {
                joint = Some(JointWrite::new(cookie));
            }
            left = rest;
            let answer = match &joint {
                None => PartOf::Alone(cookie),
                Some(joint) => PartOf::Joint(joint.part()),
            };
            let pass = Pass::new(self.connection, bytes);
            self.start(pass, Work::Write { payload, range: part, durability, answer }).await;
        }
        if joint.is_some() {
            self.end_write(cookie, joint, Ok(())).await;
        }
        Ok(())
    }

    /// Ends the reader's own part of a write.
    async fn end_write(
        &self,
        cookie: Cookie,
        joint: Option<Rc<JointWrite>>,
        result: Result<(), Refusal>,
    ) {
        let answer = match joint {
            None => PartOf::Alone(cookie),
            Some(joint) => PartOf::Joint(joint),
        };
        answer.end(self.connection, result).await;
    }

    async fn discard(&mut self, payload_bytes: u64) -> Result<(), ConnectionError> {
        self.inbox.discard(&self.connection.stream, payload_bytes).await
    }

    /// Starts a task; one that finds no place is carried out here, which holds the reader up.
    async fn start(&self, pass: Pass<D>, work: Work<D>) {
        if let Err(task) = (self.start)(pass, work) {
            task.await;
        }
    }
}
