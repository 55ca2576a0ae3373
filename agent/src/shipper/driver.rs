//! The thread that drives the stream of one volume: it dials, gives a [`Session`] what comes in,
//! and waits for what the session says. The real counterpart of the simulator's; it decides
//! nothing.

use std::io;
use std::thread;
use std::time::Duration;

use super::incoming::{Event, StreamError, greet, read_events, receive_welcome};
use super::link::Dial;
use super::pauses::{Next, Pauses};
use super::stream::{Past, Session, Wait, hello};
use super::{Drained, Refused, ShipperParts, StopSignal};
use crate::ring::Consumer;
use crossbeam_channel::{Receiver, TryRecvError, bounded};

/// Messages of the collector that wait to be looked at, at most; then its reader waits.
const EVENTS_MAX: usize = 256;
/// How late a pause notices that the shipper is told to stop.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Session after session, until the shipper is stopped.
pub(super) fn run(
    parts: &ShipperParts,
    dial: &dyn Dial,
    mut consumer: Consumer,
    stop: &StopSignal,
    refused: &Refused,
) -> Drained {
    let mut pauses = Pauses::new(dial.peer());
    let mut past = Past::new(parts);
    loop {
        match pauses.next(parts, &mut consumer, stop.orders()) {
            Next::Done(drained) => return drained,
            Next::Rest(left) => parts.clock.sleep(left.min(LOOK_EVERY)),
            Next::Dial => {
                let ended = serve(parts, dial, &mut consumer, &mut past, (stop, refused));
                match ended {
                    Ok(drained) => return drained,
                    Err(error) => {
                        pauses.begin(parts, &error);
                        refused.note(error.refusal());
                    }
                }
            }
        }
    }
}

/// Dials, opens a session and serves it until it ends or the shipper is stopped.
fn serve(
    parts: &ShipperParts,
    dial: &dyn Dial,
    consumer: &mut Consumer,
    past: &mut Past,
    (stop, refused): (&StopSignal, &Refused),
) -> Result<Drained, StreamError> {
    let mut link = dial.dial().map_err(StreamError::Dial)?;
    let closer = stop.guard(link.closer);
    let hello = hello(parts, past);
    greet(&hello, link.writer.as_mut())?;
    let welcome = receive_welcome(link.reader.as_mut())?;
    refused.note(None);
    let mut session = Session::open(parts, consumer, past, &hello, &welcome)?;
    let (events, inbox) = bounded(EVENTS_MAX);
    let (mut reader, writer) = (link.reader, link.writer.as_mut());
    thread::scope(|scope| {
        let ring = parts.capture.ring();
        scope.spawn(move || {
            read_events(reader.as_mut(), &events, || ring.wake_consumer());
        });
        let ended = drive(&mut session, consumer, writer, &inbox, parts, stop);
        // Ends the reader: it either waits in a read or for room in the inbox.
        drop(closer);
        drop(inbox);
        ended.map_err(|error| session.ended(error))
    })
}

fn drive(
    session: &mut Session<'_>,
    consumer: &mut Consumer,
    writer: &mut dyn io::Write,
    inbox: &Receiver<Event>,
    parts: &ShipperParts,
    stop: &StopSignal,
) -> Result<Drained, StreamError> {
    loop {
        loop {
            match inbox.try_recv() {
                Ok(event) => session.receive(consumer, event)?,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    return Err(StreamError::Lost(io::ErrorKind::ConnectionAborted.into()));
                }
            }
        }
        match session.step(consumer, writer, stop.orders())? {
            Wait::No => {}
            Wait::Event(longest) => {
                if let Ok(event) = inbox.recv_timeout(longest) {
                    session.receive(consumer, event)?;
                }
            }
            Wait::Ring(longest) => consumer.wait(longest),
            Wait::Rest(time) => parts.clock.sleep(time),
            Wait::Done(drained) => return Ok(drained),
        }
    }
}
