//! What a person decides of a volume: its policy, whether it is retired.
//!
//! What enters: a [`Change`], in the order of the volume's other commands. What leaves: a new
//! manifest, durable before it takes effect, and the answer to whoever wanted it. The volume's
//! writer owns the manifest, so a change and the opening of a session never overwrite each other.
//! A crash leaves the old decision or the new one; the answer is only given for a durable one.

use crossbeam_channel::Sender;
use tidemark_wire::session::RefuseReason;

use super::manifest::{Manifest, Retired};
use super::owner::VolumeCore;
use crate::error::{Failure, Result, Severity};
use crate::policy::Overrides;
use crate::storage::Storage;

/// A decision and who waits for it.
pub struct Change {
    /// What.
    pub what: Decision,
    /// Is told when it is durable, or why it is not. Whoever does not wait any more does not
    /// take the decision back.
    pub done: Sender<Result<Manifest>>,
}

/// What a person decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// These instead of the policy's defaults.
    Policy(Overrides),
    /// Protect it no longer; its history stays for a while.
    Retire(Retired),
    /// Protect it again.
    Unretire,
    /// Let no agent in until an image is in the place of the empty disk below the journal; see
    /// [`super::seeding`].
    BeginSeed,
}

impl<S: Storage> VolumeCore<S> {
    pub(super) fn change(&mut self, change: Change) {
        let done = self.decide(change.what).map(|()| self.manifest.clone());
        // See `Change::done`.
        let _ = change.done.send(done);
    }

    fn decide(&mut self, what: Decision) -> Result<()> {
        if what == Decision::BeginSeed {
            return self.begin_seed();
        }
        let name = &self.manifest.name;
        let mut changed = self.manifest.clone();
        match what {
            Decision::Policy(policy) => changed.policy = policy,
            Decision::Retire(retired) => {
                if self.manifest.retired.is_some() {
                    return Err(Failure::conflict(format!("volume {name} is retired already")));
                }
                changed.retired = Some(retired);
            }
            Decision::BeginSeed => {}
            Decision::Unretire => {
                if changed.retired.take().is_none() {
                    return Err(Failure::conflict(format!("volume {name} is not retired")));
                }
            }
        }
        changed.store(&self.storage, self.shared.dir())?;
        self.put_in_force(changed);
        match what {
            Decision::BeginSeed => {}
            Decision::Policy(_) => self.report(Severity::Info, "the policy has changed".into()),
            Decision::Retire(_) => {
                let text = self.retired_text();
                self.report(Severity::Warning, text.clone());
                self.end_live(RefuseReason::Retired, text);
            }
            Decision::Unretire => {
                let text = "the volume is taken back; its agent may come again".to_owned();
                self.report(Severity::Info, text);
            }
        }
        Ok(())
    }

    /// A manifest that is durable becomes the one that everybody sees.
    pub(super) fn put_in_force(&mut self, manifest: Manifest) {
        self.manifest = manifest;
        self.observer.volume(&self.manifest);
        self.shared.lock().manifest = self.manifest.clone();
    }

    /// Why a retired volume takes no session.
    pub(super) fn retired_text(&self) -> String {
        let name = &self.manifest.name;
        format!(
            "volume {name} is retired: it is not protected, and its history is kept for a while; \
             `tidemark volume unretire {name}` takes it back, or remove it from the agent"
        )
    }
}
