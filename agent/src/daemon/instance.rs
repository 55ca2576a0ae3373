//! One agent per state directory, and its identity.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use tidemark_wire::AgentId;

use super::holder;
use crate::random::Random;

/// The lock on a state directory; it lasts as long as this value.
pub(super) struct Instance {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Instance {
    /// Locks `dir`, which is created when it is missing.
    pub(super) fn lock(dir: &Path) -> anyhow::Result<Self> {
        super::create_dir(dir)?;
        let path = dir.join("agent.lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                // The lock tells who has it; the number in the file may be that of the one before.
                let holder = holder::of(&path).unwrap_or_else(|| {
                    let mut pid = String::new();
                    // It is only for the message.
                    let _ = file.read_to_string(&mut pid);
                    format!("process {}", pid.trim())
                });
                bail!(
                    "state directory {}: another agent uses it, {holder}; stop that one, or give \
                     this one a state_dir of its own",
                    dir.display()
                );
            }
            Err((_, error)) => {
                return Err(error).with_context(|| format!("lock {}", path.display()));
            }
        };
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .with_context(|| format!("write {}", path.display()))?;
        Ok(Self { dir: dir.to_owned(), _lock: lock })
    }

    /// The agent's identity, made at its first start.
    pub(super) fn agent_id(&self, random: &dyn Random) -> anyhow::Result<AgentId> {
        let path = self.dir.join("agent-id");
        match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().with_context(|| {
                format!("{} does not hold an identity; restore or remove it", path.display())
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let id = AgentId::from_random(random.bytes());
                let written = File::create(&path).and_then(|mut file| {
                    writeln!(file, "{id}")?;
                    file.sync_all()?;
                    File::open(&self.dir)?.sync_all()
                });
                written.with_context(|| format!("write {}", path.display()))?;
                Ok(id)
            }
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }
}
