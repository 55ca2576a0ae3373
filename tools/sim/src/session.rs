//! Drives one session of the collector, as its connection's thread does: see
//! `tidemark_collector::ingest::session`.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tidemark_collector::ingest::compare::answer;
use tidemark_collector::ingest::connection::read_frame;
use tidemark_collector::ingest::owner::{Command, Opening};
use tidemark_collector::ingest::port::SessionPort;
use tidemark_collector::ingest::session::{Action, Session};
use tidemark_wire::compare::Compare;
use tidemark_wire::frame::RecordsBody;
use tidemark_wire::session::{Refuse, RefuseReason};

use crate::agent::NAME;
use crate::collector::{Queue, SimVolume};
use crate::executor::{Group, first_of};
use crate::figures::Step;
use crate::network::Link;
use crate::witness::Port;
use crate::world::World;

struct Driver {
    world: Rc<World>,
    link: Link,
    session: Session,
    port: Arc<Port>,
    volume: Option<(Arc<SimVolume>, Rc<Queue>)>,
}

/// Serves a connection.
pub(crate) fn start(world: &Rc<World>, mut link: Link) {
    world.figures.borrow_mut().sessions += 1;
    let theirs = Rc::clone(world);
    link.is_muted = Rc::new(move || {
        theirs.collector_is_dead.get() || theirs.collector.storage.borrow().is_crashed()
    });
    let driver = Driver {
        session: Session::new(world.time.now()),
        port: Arc::new(Port::new(Arc::clone(&world.collector.witness))),
        world: Rc::clone(world),
        link,
        volume: None,
    };
    world.executor.spawn(Group::Collector, Step::Session, driver.run());
}

impl Driver {
    async fn run(mut self) {
        let (mut todo, mut out) = (VecDeque::new(), Vec::new());
        while !self.session.is_over() {
            self.wait(&mut out).await;
            todo.extend(out.drain(..));
            while let Some(action) = todo.pop_front() {
                self.perform(action, &mut out);
                todo.extend(out.drain(..));
            }
        }
        if let Some((_, queue)) = &self.volume {
            queue.send(Command::Closed(self.port.clone()));
        }
    }

    async fn wait(&mut self, out: &mut Vec<Action>) {
        let (time, port) = (Arc::clone(&self.world.time), Arc::clone(&self.port));
        let rung = port.rung.wait();
        // What came in since the last look, before anything is waited for.
        if !self.take_answers(out) && !self.link.is_readable() {
            let due = self.session.due().unwrap_or(time.now() + Duration::from_secs(3600));
            first_of(first_of(rung, self.link.readable()), time.sleep_until(due)).await;
            self.take_answers(out);
        }
        if self.link.is_readable() {
            let now = self.world.time.now();
            match read_frame(&mut &self.link) {
                Ok(Ok((header, kind, body))) => {
                    self.port.inbox.heard(now);
                    self.session.frame(now, &header, kind, body, out);
                }
                Ok(Err(error)) => self.session.broken(&error, out),
                Err(error) => self.session.lost(error.to_string(), out),
            }
        }
        self.session.tick(self.world.time.now(), out);
    }

    /// Says whether there was anything.
    fn take_answers(&mut self, out: &mut Vec<Action>) -> bool {
        let pending = self.port.inbox.take();
        let before = out.len();
        if let Some(answer) = pending.opened {
            self.session.opened(self.world.time.now(), answer, out);
        }
        if let Some(seq) = pending.durable {
            self.session.durable(seq, out);
        }
        pending.bookmarks.iter().for_each(|wanted| self.session.bookmark(wanted, out));
        pending.instructions.iter().for_each(|wanted| self.session.instruct(wanted, out));
        pending.differs.iter().for_each(|differ| self.session.differed(differ, out));
        if let Some(refusal) = pending.end {
            self.session.end(refusal, out);
        }
        out.len() > before
    }

    fn perform(&mut self, action: Action, out: &mut Vec<Action>) {
        match action {
            Action::Open(hello) => {
                match self.world.collector.get_or_register(&self.world, &hello) {
                    Ok((volume, queue)) => {
                        let port: Arc<dyn SessionPort> = self.port.clone();
                        let (now, peer) = (self.world.time.now(), "the agent".to_owned());
                        let opening = Opening { hello: *hello, peer, now, port };
                        queue.send(Command::Open(Box::new(opening)));
                        self.volume = Some((volume, queue));
                    }
                    Err(text) => {
                        let refusal = Refuse { reason: RefuseReason::Unavailable, text };
                        self.session.opened(self.world.time.now(), Err(refusal), out);
                    }
                }
            }
            Action::Append(batch) => {
                let Some((_, queue)) = &self.volume else { return };
                if let Ok(frame) = RecordsBody::decode(&batch.body) {
                    let witness = &self.world.collector.witness;
                    let records = frame.records().filter_map(Result::ok);
                    records.for_each(|record| witness.record(record.header));
                }
                queue.send(Command::Append(batch));
            }
            Action::Progress(progress) => {
                if let Some((volume, _)) = &self.volume {
                    volume.set_progress(progress);
                }
            }
            Action::Standing { epoch, standing } => {
                if let Some((volume, queue)) = &self.volume {
                    volume.set_standing(standing);
                    queue.send(Command::Standing { epoch, standing });
                }
            }
            Action::Obeyed(id) => {
                if let Some((volume, _)) = &self.volume {
                    volume.set_obeyed(id);
                }
            }
            Action::Verified(verified) => {
                if verified.differing_bytes > 0 {
                    let bytes = verified.differing_bytes;
                    self.world.breaks(format!("a verification found {bytes} bytes that differ"));
                }
                if let Some((volume, _)) = &self.volume {
                    volume.set_verified(verified);
                }
            }
            Action::Compare(question) => self.compare(*question),
            Action::Send(bytes) => {
                if let Err(error) = std::io::Write::write_all(&mut &self.link, &bytes) {
                    self.session.lost(error.to_string(), out);
                }
            }
            Action::Close(close) => {
                self.world.trace.say(|| format!("collector: session ends: {close:?}"));
            }
        }
    }

    /// Answers a question beside the session, as its comparing thread does.
    fn compare(&self, question: Compare) {
        let Some((volume, _)) = &self.volume else { return };
        let (world, port, volume) =
            (Rc::clone(&self.world), Arc::clone(&self.port), Arc::clone(volume));
        self.world.executor.spawn(Group::Collector, Step::Compare, async move {
            let micros = world.random.between(50, 5_000);
            world.time.sleep(Duration::from_micros(micros)).await;
            let Ok(held) = volume.held() else { return };
            if let Some(differ) = answer(NAME, &held, &question, &|| true) {
                world.time.sleep(Duration::from_micros(world.random.below(500))).await;
                port.inbox.differ(differ);
                port.rung.notify_all();
            }
        });
    }
}
