//! How a volume is attached as a block device, and the record of it.
//!
//! A record says which device an agent made, so that the next one takes it over. It is written when
//! the device answers and removed when it is gone; both are durable before a person is told. An
//! agent killed in between leaves a device without a record, which `attach` then finds and names,
//! or a record without a device, which the next start removes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::attach::Attached;

/// How a volume is attached.
pub(super) enum Attachment {
    /// It is not.
    None,
    /// A thread is at it.
    InWork(Work),
    /// It is.
    Here {
        /// The device.
        attached: Attached,
        /// Why it does not answer.
        problem: Option<String>,
    },
}

/// What a thread does.
pub(super) enum Work {
    /// It makes the device.
    Attach,
    /// It takes this one away.
    Detach(Attached),
    /// It gives the volume, and its device if there is one, another size.
    Resize(Option<Attached>),
}

impl Work {
    fn attached(&self) -> Option<&Attached> {
        match self {
            Self::Attach => None,
            Self::Detach(attached) => Some(attached),
            Self::Resize(attached) => attached.as_ref(),
        }
    }

    fn text(&self) -> &'static str {
        match self {
            Self::Attach => "is just being attached",
            Self::Detach(_) => "is just being detached",
            Self::Resize(_) => "is just getting another size",
        }
    }
}

impl Attachment {
    /// True while a thread is at it.
    pub(super) fn is_in_work(&self) -> bool {
        matches!(self, Self::InWork(_))
    }

    /// The device.
    pub(super) fn attached(&self) -> Option<&Attached> {
        match self {
            Self::None => None,
            Self::InWork(work) => work.attached(),
            Self::Here { attached, .. } => Some(attached),
        }
    }

    /// Why the volume can't be removed now, to be put behind its name.
    pub(super) fn keeps(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::InWork(work) => Some(format!("{}; try again", work.text())),
            Self::Here { attached, .. } => {
                Some(format!("is attached as {}; detach it first", attached.device.display()))
            }
        }
    }

    /// What a person should know of it.
    pub(super) fn note(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::InWork(work) => Some(work.text().into()),
            Self::Here { problem, .. } => problem.clone(),
        }
    }
}

/// The records of all volumes, one file each in the state directory.
pub(super) struct Records {
    dir: PathBuf,
}

impl Records {
    /// Those in the state directory `dir`.
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    fn path(&self, volume: &str) -> PathBuf {
        self.dir.join(format!("{volume}.attached.json"))
    }

    /// The record of a volume.
    pub(super) fn load(&self, volume: &str) -> anyhow::Result<Option<Attached>> {
        let path = self.path(volume);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        serde_json::from_slice(&text).map(Some).with_context(|| {
            format!("{} is no record of an attached volume; remove it", path.display())
        })
    }

    /// Keeps the record of a volume, durably.
    pub(super) fn store(&self, volume: &str, attached: &Attached) -> anyhow::Result<()> {
        let path = self.path(volume);
        let beside = path.with_extension("json.new");
        let text = serde_json::to_vec_pretty(attached).context("encode a record")?;
        let written = File::create(&beside).and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(&self.dir)?.sync_all()
        });
        written.with_context(|| format!("write {}", path.display()))
    }

    /// Removes the record of a volume, durably.
    pub(super) fn remove(&self, volume: &str) -> anyhow::Result<()> {
        let path = self.path(volume);
        match fs::remove_file(&path).and_then(|()| File::open(&self.dir)?.sync_all()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", path.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The volumes that have a record.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(".attached.json"));
            names.extend(name.map(str::to_owned));
        }
        Ok(names)
    }
}
