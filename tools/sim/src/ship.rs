//! Drives the agent's shipper, as its thread does: see `tidemark_agent::shipper`.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tidemark_agent::ring::Consumer;
use tidemark_agent::shipper::incoming::{StreamError, greet, receive_event, receive_welcome};
use tidemark_agent::shipper::pauses::{Next, Pauses};
use tidemark_agent::shipper::stream::{Past, Session, Wait, hello};
use tidemark_agent::shipper::{Drained, Orders, ShipperParts};

use crate::executor::{Executor, first_of};
use crate::figures::Step;
use crate::network::{Link, Network};
use crate::trace::Trace;

/// How late a pause notices that the shipper is told to stop.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Longest silence of the collector, as in the agent's link.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What the shipper has to do with.
pub(crate) struct Shipping {
    pub(crate) parts: ShipperParts,
    pub(crate) executor: Rc<Executor>,
    pub(crate) network: Rc<Network>,
    pub(crate) trace: Rc<Trace>,
    pub(crate) orders: Rc<Cell<Orders>>,
}

/// Session after session, until the shipper is stopped.
pub(crate) async fn run(shipping: Shipping) -> Drained {
    let parts = &shipping.parts;
    let mut consumer = parts.capture.ring().consumer().expect("a ring has one shipper");
    let mut pauses = Pauses::new("the collector".into());
    let mut past = Past::new(parts);
    loop {
        shipping.executor.at(Step::Ship);
        match pauses.next(parts, &mut consumer, shipping.orders.get()) {
            Next::Done(drained) => return drained,
            Next::Rest(left) => shipping.executor.time.sleep(left.min(LOOK_EVERY)).await,
            Next::Dial => match shipping.serve(&mut consumer, &mut past).await {
                Ok(drained) => return drained,
                Err(error) => {
                    shipping.trace.say(|| format!("agent: session ends: {error}"));
                    pauses.begin(parts, &error);
                }
            },
        }
    }
}

impl Shipping {
    async fn serve(
        &self,
        consumer: &mut Consumer,
        past: &mut Past,
    ) -> Result<Drained, StreamError> {
        self.executor.at(Step::Greet);
        let link = self.network.dial().await.map_err(StreamError::Dial)?;
        let hello = hello(&self.parts, past);
        greet(&hello, &mut &link)?;
        first_of(link.readable(), self.executor.time.sleep(SILENCE_MAX)).await;
        let welcome = receive_welcome(&mut &link)?;
        self.trace.say(|| {
            format!(
                "agent: welcomed with epoch {}, durable {}, span {}",
                welcome.epoch, welcome.durable, welcome.span_open
            )
        });
        let mut session = Session::open(&self.parts, consumer, past, &hello, &welcome)?;
        self.executor.at(Step::Ship);
        let ended = self.drive(&mut session, consumer, &link).await;
        ended.map_err(|error| session.ended(error))
    }

    async fn drive(
        &self,
        session: &mut Session<'_>,
        consumer: &mut Consumer,
        link: &Link,
    ) -> Result<Drained, StreamError> {
        let time = &self.executor.time;
        let mut body = Vec::new();
        let mut heard_at = time.now();
        loop {
            while link.is_readable() {
                session.receive(consumer, receive_event(&mut &*link, &mut body))?;
                heard_at = time.now();
            }
            if time.now() >= heard_at + SILENCE_MAX {
                return Err(StreamError::Lost(std::io::ErrorKind::TimedOut.into()));
            }
            match session.step(consumer, &mut &*link, self.orders.get())? {
                Wait::No => {}
                Wait::Event(longest) => first_of(link.readable(), time.sleep(longest)).await,
                Wait::Ring(longest) => {
                    let more = self.wait_for_ring(consumer);
                    first_of(first_of(link.readable(), more), time.sleep(longest)).await;
                }
                Wait::Rest(rest) => time.sleep(rest).await,
                Wait::Done(drained) => return Ok(drained),
            }
        }
    }

    async fn wait_for_ring(&self, consumer: &Consumer) {
        loop {
            let more = self.executor.ring_event().wait();
            if consumer.is_ready() {
                return;
            }
            more.await;
        }
    }
}
