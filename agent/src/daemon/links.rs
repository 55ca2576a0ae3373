//! Connections of NBD devices that the kernel gave up while the agent lives.
//!
//! In: what the kernel says of them. Out: new connections, made on a thread for each volume, since
//! the kernel and this agent's own server have to answer. The kernel gives up what does not answer
//! in time, and what it gave up it never takes up again: a disk that stood still for half a minute
//! would cost the device its connections one after the other, and then fail.
//!
//! A volume has at most one such thread; what is lost meanwhile, or while the device is in other
//! work, is mended behind that. What fails is tried again every [`MEND_PAUSE`], until the device is
//! whole or gone.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crossbeam_channel::Sender;

use super::attachment::Attachment;
use super::owner::{Event, Owner};
use crate::attach::{self, AttachError, Attached, LinkLoss, LinkWatch, Via};
use crate::clock::{Clock, SystemClock};

/// The kernel gives up connections of one device one after the other.
const GATHER_PAUSE: Duration = Duration::from_millis(200);
const MEND_PAUSE: Duration = Duration::from_secs(5);
/// How often the one that listens looks whether it is still wanted.
const LISTEN_PATIENCE: Duration = Duration::from_secs(1);

/// What is known of lost connections.
#[derive(Default)]
pub(super) struct Links {
    /// There while somebody listens; who listens has it weakly.
    listening: Option<Arc<()>>,
    mending: HashMap<String, Mending>,
}

/// A thread that is at a volume's connections.
#[derive(Default)]
struct Mending {
    /// More was lost since it began.
    again: bool,
    failures: u32,
}

impl Owner {
    /// Listens whether the connections of NBD devices last. To be called before a device is made
    /// or taken over, and again when one was made: the kernel's client may have been loaded for it.
    pub(super) fn listen_to_links(&mut self) {
        if self.links.listening.is_some() {
            return;
        }
        let wanted = Arc::new(());
        match listen(self.events.clone(), Arc::downgrade(&wanted)) {
            Ok(true) => self.links.listening = Some(wanted),
            Ok(false) => {}
            Err(error) => tracing::warn!("can't hear which NBD connections are given up: {error}"),
        }
    }

    /// Gives the devices new connections for those that were lost.
    pub(super) fn lost_links(&mut self, loss: &LinkLoss) {
        let is_meant = |attached: &Attached| match loss {
            LinkLoss::Of(device) => attached.device == *device,
            LinkLoss::OfAny => true,
        };
        let volumes: Vec<_> = self
            .volumes
            .attached()
            .filter(|(_, attached)| attached.via == Via::Nbd && is_meant(attached))
            .map(|(volume, _)| volume.to_owned())
            .collect();
        for volume in volumes {
            if let LinkLoss::Of(device) = loss {
                tracing::info!(volume, "the kernel gave up a connection of {}", device.display());
            }
            match self.links.mending.get_mut(&volume) {
                Some(mending) => mending.again = true,
                None => self.mend(&volume, Mending::default(), GATHER_PAUSE),
            }
        }
    }

    /// Ends what [`Owner::lost_links`] began, or goes on with it.
    pub(super) fn mended_links(&mut self, volume: &str, result: Result<(), AttachError>) {
        let Some(mending) = self.links.mending.remove(volume) else { return };
        match result {
            Ok(()) if mending.again => self.mend(volume, Mending::default(), GATHER_PAUSE),
            Ok(()) => {
                if let Some(Attachment::Here { problem, .. }) = self.volumes.attachment(volume) {
                    *problem = None;
                }
                tracing::debug!(volume, "the device has all its connections");
            }
            Err(error) => {
                let failures = mending.failures.saturating_add(1);
                if failures.is_power_of_two() {
                    tracing::warn!(volume, failures, "no new connections for the device: {error}");
                }
                self.mend(volume, Mending { again: false, failures }, MEND_PAUSE);
            }
        }
    }

    fn mend(&mut self, volume: &str, mut mending: Mending, pause: Duration) {
        let Some(attachment) = self.volumes.attachment(volume) else { return };
        let Some(attached) = attachment.attached().cloned() else { return };
        let is_in_work = attachment.is_in_work();
        mending.again |= is_in_work;
        let pause = if is_in_work { MEND_PAUSE } else { pause };
        let work = self.device_work(volume, move |source, options| match is_in_work {
            true => Ok(()),
            false => attach::mend_links(&attached, source, options),
        });
        let Ok(work) = work else { return };
        let (name, events) = (volume.to_owned(), self.events.clone());
        let begun = std::thread::Builder::new().name("links".into()).spawn(move || {
            SystemClock::default().sleep(pause);
            // The owner is gone when the agent stops.
            let _ = events.send(Event::Mended(name, work()));
        });
        match begun {
            Ok(_) => drop(self.links.mending.insert(volume.to_owned(), mending)),
            Err(error) => tracing::error!(volume, "no thread for its connections: {error}"),
        }
    }
}

/// Passes on what the kernel says, until nobody wants it; false when it has no NBD client.
fn listen(events: Sender<Event>, wanted: Weak<()>) -> std::io::Result<bool> {
    let Some(mut watch) = LinkWatch::open()? else { return Ok(false) };
    std::thread::Builder::new().name("nbd-links".into()).spawn(move || {
        while wanted.strong_count() > 0 {
            let sent = match watch.next(LISTEN_PATIENCE) {
                Ok(None) => continue,
                Ok(Some(loss)) => events.send(Event::LinksLost(loss)),
                Err(error) => {
                    tracing::error!("NBD connections that are given up stay so: {error}");
                    return;
                }
            };
            // The owner is gone when the agent stops.
            if sent.is_err() {
                return;
            }
        }
    })?;
    Ok(true)
}
