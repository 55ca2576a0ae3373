//! The one that everything is asked of while the agent runs: it owns the set of volumes, the
//! configuration in force and how volumes are attached.
//!
//! In: an [`Event`] from the thread that waits for signals, from connections of the control socket,
//! from a thread that made, took away, resized or mended a device, or from the kernel. Out: answers,
//! and changes of the volumes. It handles one event after the other; what may take long for reasons
//! outside of this process runs on a thread of its own and comes back as an event.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use nix::sys::signal::Signal;
use tidemark_block::engine::socket::Address;

use super::attachment::{Attachment, Records, Work};
use super::links::LostLinks;
use super::resize::Outcome;
use super::volumes::Volumes;
use super::{notify, placement, reload, ublk};
use crate::attach::{
    self, AttachError, AttachErrorKind, Attached, LinkLoss, Links, Options, Reattached, Source, Via,
};
use crate::clock::Clock;
use crate::config::{Attach, Config};
use crate::control::api::{Answer, ReloadReport, Request};
use crate::control::server::Ask;

/// What may wait in front of the owner; who comes beyond that waits.
pub(super) const EVENTS_MAX: usize = 64;

/// What the owner is told or asked.
pub(super) enum Event {
    /// A signal came.
    Signal(Signal),
    /// Somebody asks.
    Asked(Request, Sender<Answer>),
    /// A device was made, or not.
    Attached(String, Result<Attached, AttachError>, Sender<Answer>),
    /// A device was taken away, or not.
    Detached(String, Result<(), AttachError>, Sender<Answer>),
    /// A volume has another size, or not.
    Resized(String, Outcome, Option<Sender<Answer>>),
    /// The kernel gave up connections of NBD devices.
    LinksLost(LinkLoss),
    /// The connections of a volume's device are due to be mended.
    LinksDue(String),
    /// They are, or not.
    LinksMended(String, Result<Links, AttachError>),
}

/// Whether the agent goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It does.
    GoOn,
    /// It was told to stop.
    Stop,
}

/// See the module's documentation.
pub(super) struct Owner {
    pub(super) config: Config,
    pub(super) config_path: PathBuf,
    pub(super) volumes: Volumes,
    pub(super) records: Records,
    /// Where NBD is served, for the kernel's client.
    pub(super) nbd: Option<Address>,
    /// Who serves ublk devices.
    pub(super) ublk: Arc<ublk::Devices>,
    pub(super) links: LostLinks,
    /// To itself.
    pub(super) events: Sender<Event>,
}

/// How connections of the control socket ask the owner behind `events`.
pub(super) fn ask_through(events: Sender<Event>) -> Arc<Ask> {
    Arc::new(move |request| {
        let (reply, answer) = crossbeam_channel::bounded(1);
        let stopping = || Answer::Refused { message: "the agent is stopping".into() };
        match events.send(Event::Asked(request, reply)) {
            Ok(()) => answer.recv().unwrap_or_else(|_| stopping()),
            Err(_) => stopping(),
        }
    })
}

impl Owner {
    /// Handles one event.
    pub(super) fn handle(&mut self, event: Event) -> Next {
        match event {
            Event::Signal(Signal::SIGHUP) => {
                let answer = self.reload();
                if let Answer::Refused { message } = answer {
                    tracing::error!("{message}");
                }
            }
            Event::Signal(signal) => {
                tracing::info!("{signal}: stopping");
                return Next::Stop;
            }
            Event::Asked(Request::List, reply) => {
                answer(&reply, Answer::Volumes { volumes: self.volumes.list() });
            }
            Event::Asked(Request::Reload, reply) => answer(&reply, self.reload()),
            Event::Asked(Request::Attach { volume, via }, reply) => {
                if let Err(message) = self.begin_attach(&volume, via, &reply) {
                    answer(&reply, Answer::Refused { message });
                }
            }
            Event::Asked(Request::Detach { volume }, reply) => {
                if let Err(message) = self.begin_detach(&volume, &reply) {
                    answer(&reply, Answer::Refused { message });
                }
            }
            Event::Asked(Request::Resize { volume }, reply) => {
                if let Err(message) = self.begin_resize(&volume, Some(reply.clone())) {
                    answer(&reply, Answer::Refused { message });
                }
            }
            Event::Resized(volume, outcome, reply) => self.end_resize(&volume, outcome, reply),
            Event::Attached(volume, result, reply) => {
                answer(&reply, self.end_attach(&volume, result));
            }
            Event::Detached(volume, result, reply) => {
                answer(&reply, self.end_detach(&volume, result));
            }
            Event::LinksLost(loss) => self.lost_links(loss),
            Event::LinksDue(volume) => self.mend_links(&volume),
            Event::LinksMended(volume, result) => self.mended_links(&volume, result),
        }
        Next::GoOn
    }

    /// Waits at most `patience` for the threads that are at a device. Everything else that waits
    /// is dropped with its answer: who asked is told that the agent is stopping.
    pub(super) fn finish_attachments(
        &mut self,
        events: &Receiver<Event>,
        patience: Duration,
        clock: &dyn Clock,
    ) {
        let deadline = clock.monotonic() + patience;
        while self.volumes.any_attachment_in_work() {
            match events.recv_timeout(deadline.saturating_sub(clock.monotonic())) {
                Ok(event @ (Event::Attached(..) | Event::Detached(..) | Event::Resized(..))) => {
                    self.handle(event);
                }
                Ok(_) => {}
                Err(_) => {
                    tracing::warn!("a device that is just being attached or detached is left");
                    return;
                }
            }
        }
    }

    /// Says which devices go on without the agent, and how.
    pub(super) fn warn_of_devices(&self) {
        for (volume, attached) in self.volumes.attached() {
            let device = attached.device.display();
            match attached.via {
                Via::Nbd => tracing::warn!(
                    volume,
                    "{device} stays attached; what is asked of it waits {} s for the next agent",
                    self.config.attach.dead_connection_seconds
                ),
                Via::Ublk => tracing::warn!(
                    volume,
                    "{device} stays attached; what is asked of it waits for the next agent, \
                     however long that takes"
                ),
                Via::Loop => tracing::warn!(
                    volume,
                    "{device} stays attached, and fails from now on; detach it before the agent \
                     is stopped"
                ),
            }
        }
    }

    /// The volumes, at the end.
    pub(super) fn into_volumes(self) -> Volumes {
        self.volumes
    }

    /// Reads the configuration anew. A file that is no good changes nothing.
    fn reload(&mut self) -> Answer {
        notify::reloading();
        let answer = match self.try_reload() {
            Ok(report) => {
                for line in report.lines() {
                    tracing::info!("configuration read anew: {line}");
                }
                Answer::Reloaded { report }
            }
            Err(error) => {
                let message = format!("nothing was changed: {error}");
                Answer::Refused { message }
            }
        };
        notify::ready();
        answer
    }

    fn try_reload(&mut self) -> anyhow::Result<ReloadReport> {
        let new = Config::load(&self.config_path)?;
        let plan = reload::plan(&self.config, &new);
        plan.config.check().map_err(anyhow::Error::msg)?;
        placement::check(&plan.config, &self.config_path, self.volumes.devices())?;
        let mut report =
            ReloadReport { changed: plan.changed, kept: plan.kept, ..ReloadReport::default() };
        let old = std::mem::replace(&mut self.config, plan.config);
        for name in plan.removed {
            match self.volumes.remove(&name) {
                Ok(()) => report.removed.push(name),
                Err(error) => {
                    report.problems.push(format!("{error:#}"));
                    // It is still there, and removed by the next reload.
                    let kept = old.volumes.iter().find(|volume| volume.name == name);
                    self.config.volumes.extend(kept.cloned());
                }
            }
        }
        for volume in &plan.rates {
            self.volumes.set_copy_rate(volume);
        }
        for volume in plan.added {
            match self.volumes.add(&self.config, &volume) {
                Ok(()) => report.added.push(volume.name),
                Err(error) => {
                    report.problems.push(format!("{error:#}"));
                    self.config.volumes.retain(|other| other.name != volume.name);
                }
            }
        }
        Ok(report)
    }

    /// Begins to make a device; the answer follows when it is there, or at once with an error.
    fn begin_attach(
        &mut self,
        volume: &str,
        via: Option<Via>,
        reply: &Sender<Answer>,
    ) -> Result<(), String> {
        let attachment = self.attachment(volume)?;
        if let Some(why) = attachment.keeps() {
            return Err(format!("volume {volume:?} {why}"));
        }
        self.listen_to_links();
        let work =
            self.device_work(volume, move |source, options| attach::attach(source, options, via))?;
        let (name, events, reply) = (volume.to_owned(), self.events.clone(), reply.clone());
        self.begin(volume, Work::Attach, move || {
            // The owner is gone when the agent stops without waiting any longer.
            let _ = events.send(Event::Attached(name, work(), reply));
        })
    }

    fn end_attach(&mut self, volume: &str, result: Result<Attached, AttachError>) -> Answer {
        let (attachment, answer) = match result {
            Ok(mut attached) => {
                if let Err(error) = self.records.store(volume, &attached) {
                    attached.notes.push(format!(
                        "it is not remembered ({error:#}): after a restart of the agent detach it \
                         by hand"
                    ));
                }
                tracing::info!(volume, "attached as {}", attached.device.display());
                self.mend_new(volume, &attached);
                let answer = Answer::Attached { attached: attached.clone() };
                (Attachment::Here { attached, problem: None }, answer)
            }
            Err(error) => {
                (Attachment::None, Answer::Refused { message: format!("volume {error}") })
            }
        };
        self.set_attachment(volume, attachment);
        answer
    }

    /// Begins to take a device away.
    fn begin_detach(&mut self, volume: &str, reply: &Sender<Answer>) -> Result<(), String> {
        let attached = match self.attachment(volume)? {
            Attachment::Here { attached, .. } => attached.clone(),
            Attachment::None => return Err(format!("volume {volume:?} is not attached")),
            busy @ Attachment::InWork(_) => {
                return Err(format!("volume {volume:?} {}", busy.keeps().unwrap_or_default()));
            }
        };
        let (name, events, reply) = (volume.to_owned(), self.events.clone(), reply.clone());
        let device = attached.clone();
        self.begin(volume, Work::Detach(attached), move || {
            // As above.
            let _ = events.send(Event::Detached(name, attach::detach(&device), reply));
        })
    }

    fn end_detach(&mut self, volume: &str, result: Result<(), AttachError>) -> Answer {
        let attached = self.attachment(volume).ok().and_then(|found| found.attached().cloned());
        let Some(attached) = attached else {
            return Answer::Refused { message: format!("volume {volume:?} is not attached") };
        };
        match result {
            Err(error) if error.kind != AttachErrorKind::Gone => {
                self.set_attachment(volume, Attachment::Here { attached, problem: None });
                return Answer::Refused { message: error.to_string() };
            }
            Err(error) => tracing::warn!(volume, "{error}: its record is removed"),
            Ok(()) => tracing::info!(volume, "detached from {}", attached.device.display()),
        }
        if let Err(error) = self.records.remove(volume) {
            tracing::warn!(volume, "{error:#}");
        }
        self.set_attachment(volume, Attachment::None);
        Answer::Detached { device: attached.device }
    }

    /// Runs `work` on a thread of its own while the volume's device is in work.
    pub(super) fn begin(
        &mut self,
        volume: &str,
        what: Work,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<(), String> {
        let before = self.set_attachment(volume, Attachment::InWork(what));
        if let Err(error) = std::thread::Builder::new().name("device".into()).spawn(work) {
            self.set_attachment(volume, before);
            return Err(format!("volume {volume:?}: no thread for it: {error}"));
        }
        Ok(())
    }

    pub(super) fn set_attachment(&mut self, volume: &str, attachment: Attachment) -> Attachment {
        let place = self.volumes.attachment(volume);
        // A volume whose device is in work, or there, is not removed.
        place.map_or(Attachment::None, |place| std::mem::replace(place, attachment))
    }

    fn attachment(&mut self, volume: &str) -> Result<&mut Attachment, String> {
        let unknown = self.unknown(volume);
        self.volumes.attachment(volume).ok_or(unknown)
    }

    /// That there is no such volume, and which one may be meant.
    pub(super) fn unknown(&self, volume: &str) -> String {
        let names = self.volumes.names();
        match names.iter().min_by_key(|name| strsim::levenshtein(volume, name)) {
            Some(near) => format!("there is no volume {volume:?}; is {near:?} meant?"),
            None => format!("there is no volume {volume:?}, nor any other"),
        }
    }

    /// What calls `call` with what it has to know of a volume.
    pub(super) fn device_work<T>(
        &self,
        volume: &str,
        call: impl FnOnce(&Source<'_>, &Options) -> T + Send + 'static,
    ) -> Result<impl FnOnce() -> T + Send + 'static, String> {
        let facts = self.volumes.facts(volume).ok_or("the volume is being removed")?;
        let nbd = self.nbd.clone();
        let devices = Arc::clone(&self.ublk);
        let fuse_file = self.config.fuse.as_ref().map(|fuse| fuse.mount.join(volume));
        let options = options(&self.config.attach);
        let name = volume.to_owned();
        Ok(move || {
            let ublk = ublk::OfVolume { devices: &devices, volume: &name };
            let source = Source {
                volume: &name,
                id: facts.id,
                size_bytes: facts.size_bytes,
                block_bytes: facts.block_bytes,
                nbd: nbd.as_ref(),
                ublk: Some(&ublk),
                fuse_file: fuse_file.as_deref(),
            };
            call(&source, &options)
        })
    }

    /// Takes over the devices that an earlier agent made. Blocks; the frontends serve already.
    pub(super) fn reattach_all(&mut self) {
        let names = match self.records.names() {
            Ok(names) => names,
            Err(error) => {
                tracing::error!("can't look for attached volumes: {error}");
                return;
            }
        };
        for volume in names {
            match self.reattach(&volume) {
                Ok(Some(problem)) => tracing::error!(volume, "{problem}"),
                Ok(None) => {}
                Err(error) => tracing::error!(volume, "attached before, not taken over: {error:#}"),
            }
        }
    }

    /// Gives what a person has to do about the device.
    fn reattach(&mut self, volume: &str) -> anyhow::Result<Option<String>> {
        let Some(attached) = self.records.load(volume)? else {
            return Ok(None);
        };
        if self.volumes.attachment(volume).is_none() {
            return Ok(Some(format!(
                "{} was made of it, but the configuration has no such volume any more: what is on \
                 the device fails; put the volume back and start the agent anew",
                attached.device.display()
            )));
        }
        self.listen_to_links();
        let device = attached.clone();
        let work = self
            .device_work(volume, move |source, options| attach::reattach(&device, source, options))
            .map_err(anyhow::Error::msg)?;
        let problem = match work() {
            Ok(Reattached::Answers) => {
                tracing::info!(volume, "still attached as {}", attached.device.display());
                None
            }
            Ok(Reattached::Gone(why)) => {
                tracing::info!(volume, "not attached any more: {why}");
                self.records.remove(volume)?;
                return Ok(None);
            }
            Ok(Reattached::Dead(what_to_do)) => Some(what_to_do),
            Err(error) => Some(error.to_string()),
        };
        self.set_attachment(volume, Attachment::Here { attached, problem: problem.clone() });
        Ok(problem)
    }
}

pub(super) fn answer(to: &Sender<Answer>, answer: Answer) {
    // Who asked may have gone away.
    let _ = to.send(answer);
}

fn options(attach: &Attach) -> Options {
    Options {
        nbd_connections: attach.nbd_connections,
        request_seconds_max: attach.request_seconds_max.into(),
        dead_connection_seconds: attach.dead_connection_seconds.into(),
    }
}
