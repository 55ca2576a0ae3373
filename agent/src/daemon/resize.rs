//! Volumes whose backing store has got another size.
//!
//! In: what the look at each volume's backing store found ([`Owner::follow_sizes`], about every
//! second), or a person who does not want to wait. A thread waits until every request before has
//! ended, gives the volume its size, and then the device that it is attached as. Out: an answer,
//! and what the log says. FUSE files show the size at once; NBD clients that connect from then on
//! get it. After a crash in between the device keeps its size until somebody asks again.

use std::sync::Arc;

use anyhow::Context;
use crossbeam_channel::Sender;
use tidemark_block::engine::{Executor, ExecutorConfig};

use super::attachment::{Attachment, Work};
use super::owner::{Event, Owner, answer};
use super::running::ProtectedVolume;
use crate::attach::{self, Attached, Source};
use crate::control::api::Answer;
use crate::volume::Resized;

const CLIENTS_NOTE: &str = "programs that use it over NBD see the size when they connect anew";

/// What became of a volume.
pub(super) struct Outcome {
    /// Its size in bytes; `None` in place of a change that there was not.
    volume: anyhow::Result<(u64, Option<Resized>)>,
    /// Its device.
    attached: Option<Attached>,
    /// What a person should know of the device; the error is why it keeps its size.
    device: Result<Vec<String>, String>,
}

impl Owner {
    /// Begins to resize the volumes whose backing store has another size.
    pub(super) fn follow_sizes(&mut self) {
        for volume in self.volumes.resized() {
            if let Err(message) = self.begin_resize(&volume, None) {
                tracing::warn!(volume, "its backing store has another size: {message}");
            }
        }
    }

    /// Begins to give a volume the size of its backing store; the answer follows, or an error at
    /// once.
    pub(super) fn begin_resize(
        &mut self,
        volume: &str,
        reply: Option<Sender<Answer>>,
    ) -> Result<(), String> {
        let attached = match self.volumes.attachment(volume) {
            Some(busy @ Attachment::InWork(_)) => {
                return Err(format!("volume {volume:?} {}", busy.keeps().unwrap_or_default()));
            }
            Some(Attachment::Here { attached, .. }) => Some(attached.clone()),
            Some(Attachment::None) | None => None,
        };
        let Some(protected) = self.volumes.protected(volume) else {
            return Err(self.unknown(volume));
        };
        let device = match attached.clone() {
            None => None,
            Some(attached) => {
                let resized = Arc::clone(&protected);
                Some(self.device_work(volume, move |source, options| {
                    let source = Source { size_bytes: resized.size_bytes(), ..*source };
                    attach::resize(&attached, &source, options)
                })?)
            }
        };
        let (name, events) = (volume.to_owned(), self.events.clone());
        self.begin(volume, Work::Resize(attached.clone()), move || {
            let volume = resize(&protected);
            let device = match (&volume, device) {
                (Ok(_), Some(device)) => device().map_err(|error| error.to_string()),
                _ => Ok(Vec::new()),
            };
            drop(protected);
            // The owner is gone when the agent stops without waiting any longer.
            let _ = events.send(Event::Resized(name, Outcome { volume, attached, device }, reply));
        })
    }

    /// The thread of [`Owner::begin_resize`] has ended.
    pub(super) fn end_resize(
        &mut self,
        volume: &str,
        outcome: Outcome,
        reply: Option<Sender<Answer>>,
    ) {
        let Outcome { volume: resized, attached, device } = outcome;
        let problem = device.as_ref().err().cloned();
        if let Some(problem) = &problem {
            tracing::warn!(volume, "its device does not follow its size: {problem}");
        }
        let mut notes = device.unwrap_or_else(|problem| vec![problem]);
        let here = |attached| Attachment::Here { attached, problem };
        self.set_attachment(volume, attached.map_or(Attachment::None, here));
        self.volumes.note_resize(volume, resized.is_ok());
        let told = match resized {
            Ok((size_bytes, None)) => {
                Answer::Resized { old_bytes: size_bytes, new_bytes: size_bytes, notes }
            }
            Ok((_, Some(Resized { old_bytes, new_bytes, is_recorded }))) => {
                let verb = if new_bytes > old_bytes { "grew" } else { "shrank" };
                let how = if is_recorded { "" } else { "; a copy follows by itself" };
                tracing::info!(volume, "{verb} from {old_bytes} to {new_bytes} bytes{how}");
                notes.push(CLIENTS_NOTE.to_owned());
                Answer::Resized { old_bytes, new_bytes, notes }
            }
            Err(error) => {
                tracing::error!(volume, "it keeps its size: {error:#}");
                Answer::Refused { message: format!("volume {volume:?} keeps its size: {error:#}") }
            }
        };
        if let Some(reply) = reply {
            answer(&reply, told);
        }
    }
}

/// Gives the volume its size, and says what it is.
fn resize(volume: &ProtectedVolume) -> anyhow::Result<(u64, Option<Resized>)> {
    let executor = Executor::new(&ExecutorConfig::default()).context("start an executor")?;
    let resized = executor.block_on(volume.resize())?;
    Ok((volume.size_bytes(), resized))
}
