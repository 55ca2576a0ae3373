//! Connections of NBD devices that the kernel gave up while the agent lives.
//!
//! In: what the kernel says of them. Out: new connections, made on a thread for each volume, since
//! the kernel and this agent's own server have to answer. The kernel gives up what does not answer
//! in time, and what it gave up it never takes up again: a disk that stood still for half a minute
//! would cost the device its connections one after the other, and then fail. A device that is being
//! detached or resized needs them as much as any: it is flushed.
//!
//! A volume is *due* once a pause has passed, then a thread is at it; what is lost until that begins
//! is mended with it, what is lost later behind it. What fails is tried again every [`MEND_PAUSE`],
//! until the device is whole or gone.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Sender;

use super::owner::{Event, Owner};
use crate::attach::{self, AttachError, Attached, LinkLoss, LinkWatch, Links, Via};
use crate::clock::{Clock, SystemClock};

/// The kernel gives up connections of one device one after the other.
const GATHER_PAUSE: Duration = Duration::from_millis(200);
const MEND_PAUSE: Duration = Duration::from_secs(5);
/// How often the one that listens looks whether it is still wanted.
const LISTEN_PATIENCE: Duration = Duration::from_secs(1);

/// What is known of lost connections.
#[derive(Default)]
pub(super) struct LostLinks {
    /// The one that listens, and what it has weakly.
    listener: Option<(JoinHandle<()>, Arc<()>)>,
    mending: HashMap<String, Mending>,
    /// Devices that lost one while they, or others, were just being attached.
    unknown: HashSet<PathBuf>,
}

/// What is done about a volume's connections.
#[derive(Default)]
struct Mending {
    /// A thread is at it.
    is_begun: bool,
    /// More was lost since that began.
    again: bool,
    failures: u32,
}

impl Owner {
    /// Listens whether the connections of NBD devices last. To be called before a device is made
    /// or taken over, and again when one was made: the kernel's client may have been loaded for it.
    pub(super) fn listen_to_links(&mut self) {
        if self.links.listener.as_ref().is_some_and(|(thread, _)| !thread.is_finished()) {
            return;
        }
        let wanted = Arc::new(());
        match listen(self.events.clone(), Arc::downgrade(&wanted)) {
            Ok(listener) => self.links.listener = listener.map(|thread| (thread, wanted)),
            Err(error) => tracing::warn!("can't hear which NBD connections are given up: {error}"),
        }
    }

    /// Gives the devices new connections for those that were lost.
    pub(super) fn lost_links(&mut self, loss: LinkLoss) {
        let is_meant = |attached: &Attached| match &loss {
            LinkLoss::Of(device) => attached.device == *device,
            LinkLoss::OfAny => true,
        };
        let volumes: Vec<_> = self
            .volumes
            .attached()
            .filter(|(_, attached)| attached.via == Via::Nbd && is_meant(attached))
            .map(|(volume, _)| volume.to_owned())
            .collect();
        for volume in &volumes {
            tracing::info!(volume, "the kernel gave up a connection of the volume's NBD device");
            match self.links.mending.get_mut(volume) {
                Some(mending) => mending.again |= mending.is_begun,
                None => self.mend_later(volume, 0, GATHER_PAUSE),
            }
        }
        if let LinkLoss::Of(device) = loss
            && volumes.is_empty()
            && self.volumes.any_attachment_in_work()
        {
            self.links.unknown.insert(device);
        }
    }

    /// A device was attached: what it has lost already is mended.
    pub(super) fn mend_new(&mut self, volume: &str, attached: &Attached) {
        self.listen_to_links();
        if self.links.unknown.remove(&attached.device) {
            self.mend_later(volume, 0, GATHER_PAUSE);
        }
    }

    fn mend_later(&mut self, volume: &str, failures: u32, pause: Duration) {
        let mending = Mending { failures, ..Mending::default() };
        let due = volume.to_owned();
        self.mend_apart(volume, mending, move || {
            SystemClock::default().sleep(pause);
            Event::LinksDue(due)
        });
    }

    /// Begins what is due.
    pub(super) fn mend_links(&mut self, volume: &str) {
        let Some(mending) = self.links.mending.remove(volume) else { return };
        // The device may be gone, and the volume too.
        let Some(attachment) = self.volumes.attachment(volume) else { return };
        let Some(attached) = attachment.attached().cloned() else { return };
        let work = self.device_work(volume, move |source, options| {
            attach::mend_links(&attached, source, options)
        });
        let Ok(work) = work else { return };
        let name = volume.to_owned();
        let begun = Mending { is_begun: true, ..mending };
        self.mend_apart(volume, begun, move || Event::LinksMended(name, work()));
    }

    /// Ends what was begun, or goes on with it.
    pub(super) fn mended_links(&mut self, volume: &str, result: Result<Links, AttachError>) {
        let Some(mending) = self.links.mending.remove(volume) else { return };
        let failures = mending.failures.saturating_add(1);
        let why = match result {
            Ok(Links::Whole) if mending.again => {
                return self.mend_later(volume, 0, GATHER_PAUSE);
            }
            Ok(Links::Whole) => return,
            Ok(Links::Some(why)) | Err(why) => why,
        };
        if failures.is_power_of_two() {
            tracing::warn!(volume, failures, "the device lacks connections: {why}");
        }
        self.mend_later(volume, failures, MEND_PAUSE);
    }

    /// Runs `work` on a thread of its own, which says what it gives.
    fn mend_apart(
        &mut self,
        volume: &str,
        mending: Mending,
        work: impl FnOnce() -> Event + Send + 'static,
    ) {
        let events = self.events.clone();
        let begun = std::thread::Builder::new().name("links".into()).spawn(move || {
            // The owner is gone when the agent stops.
            let _ = events.send(work());
        });
        match begun {
            Ok(_) => drop(self.links.mending.insert(volume.to_owned(), mending)),
            Err(error) => tracing::error!(volume, "no thread for its connections: {error}"),
        }
    }
}

/// Passes on what the kernel says, until nobody wants it; `None` when it has no NBD client.
fn listen(events: Sender<Event>, wanted: Weak<()>) -> std::io::Result<Option<JoinHandle<()>>> {
    let Some(mut watch) = LinkWatch::open()? else { return Ok(None) };
    let thread = std::thread::Builder::new().name("nbd-links".into()).spawn(move || {
        while wanted.strong_count() > 0 {
            let sent = match watch.next(LISTEN_PATIENCE) {
                Ok(None) => continue,
                Ok(Some(loss)) => events.send(Event::LinksLost(loss)),
                Err(error) => {
                    tracing::error!("can't hear which NBD connections are given up: {error}");
                    return;
                }
            };
            // The owner is gone when the agent stops.
            if sent.is_err() {
                return;
            }
        }
    })?;
    Ok(Some(thread))
}
