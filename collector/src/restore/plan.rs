//! What a restore would do, and whether it may.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::device::too_small;
use super::device_facts::DeviceFacts;
use super::place::{
    Place, check_unused, device_record, exists, is_unfinished_name, parent_of, partial_of,
    record_of,
};
pub use super::record::Format;
use super::record::Record;
use super::{Subject, qcow2};
use crate::error::{Failure, Result};

/// What a person asks for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Absolute path of a file to make, or of a block device.
    pub target: PathBuf,
    /// How the file is to be laid out; by its name when nobody says (`.qcow2`), or as an
    /// unfinished restore to it has begun.
    pub format: Option<Format>,
    /// Replace the file when it exists.
    pub overwrite: bool,
    /// Begin anew, whatever an earlier run has written.
    pub restart: bool,
}

/// A restore that may begin.
#[derive(Debug)]
pub struct Plan {
    pub(super) subject: Subject,
    pub(super) place: Place,
    pub(super) resume: Option<Record>,
    pub(super) overwrite: bool,
}

impl Plan {
    /// What is lost when it runs, for the question that a person is asked; nothing for files,
    /// since those are only replaced when that was asked for.
    #[must_use]
    pub fn destroys(&self) -> Option<String> {
        match &self.place {
            Place::Device { facts, .. } => Some(facts.describe()),
            Place::Raw { .. } | Place::Qcow2 { .. } => None,
        }
    }

    /// What a person should know before it begins.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let size_bytes = self.subject.size_bytes;
        match &self.place {
            Place::Device { path, facts, .. } if facts.size_bytes > size_bytes => Some(format!(
                "{} is larger than the volume; its last {} bytes stay as they are",
                path.display(),
                facts.size_bytes - size_bytes
            )),
            _ => None,
        }
    }

    /// Bytes from the start of the disk that an earlier run has written; they are checked.
    #[must_use]
    pub fn resumes_at(&self) -> u64 {
        self.resume.as_ref().map_or(0, Record::done_bytes)
    }

    /// Where it goes: a device by its own name.
    #[must_use]
    pub fn target(&self) -> &Path {
        match &self.place {
            Place::Raw { path } | Place::Qcow2 { path, .. } | Place::Device { path, .. } => path,
        }
    }

    /// How the bytes are laid out there.
    #[must_use]
    pub fn format(&self) -> Format {
        self.place.format()
    }
}

/// Looks at everything that can be wrong before a restore begins.
///
/// # Errors
/// `Invalid`, `NotFound` or `Conflict`, with the path and what to do.
pub fn plan(wanted: &Wanted, subject: Subject, data_dir: &Path) -> Result<Plan> {
    let target = &wanted.target;
    let shown = target.display();
    if !target.is_absolute() || target.file_name().is_none() {
        return Err(Failure::invalid(format!("{shown} is not the absolute path of a file")));
    }
    match fs::metadata(target) {
        Ok(found) if found.file_type().is_block_device() => plan_device(wanted, subject, data_dir),
        _ => plan_file(wanted, subject, data_dir),
    }
}

fn plan_device(wanted: &Wanted, subject: Subject, data_dir: &Path) -> Result<Plan> {
    let facts = DeviceFacts::of(&wanted.target)?;
    let path = real(&wanted.target)?;
    if wanted.format == Some(Format::Qcow2) {
        let message = format!("{} is a block device, and is written raw", path.display());
        return Err(Failure::invalid(message).with_hint("leave out --format"));
    }
    facts.check_not_ours(data_dir)?;
    let users = facts.users();
    if !users.is_empty() {
        return Err(Failure::conflict(format!("{} is {}", path.display(), users.join(", ")))
            .with_hint("unmount it or stop what uses it, or choose another device"));
    }
    if facts.size_bytes < subject.size_bytes {
        return Err(too_small(&path, facts.size_bytes, subject.size_bytes));
    }
    let record = device_record(data_dir, &path);
    let resume = resumable(wanted, &subject, &path, &record)?;
    Ok(Plan { subject, place: Place::Device { path, facts, record }, resume, overwrite: true })
}

fn plan_file(wanted: &Wanted, subject: Subject, data_dir: &Path) -> Result<Plan> {
    let target = &wanted.target;
    let shown = target.display();
    if is_unfinished_name(target) {
        let message = format!("{shown} is named as unfinished restores are");
        return Err(Failure::invalid(message).with_hint("choose another name"));
    }
    let parent = parent_of(target);
    let above =
        fs::metadata(parent).map_err(|source| Failure::io("restore into", parent, source))?;
    if !above.is_dir() {
        return Err(Failure::invalid(format!("{} is not a directory", parent.display())));
    }
    check_outside(target, data_dir)?;
    let resume = match fs::symlink_metadata(partial_of(target)) {
        Ok(found) if found.is_file() => resumable(wanted, &subject, target, &record_of(target))?,
        _ => None,
    };
    let overwrite = wanted.overwrite || resume.as_ref().is_some_and(|record| record.overwrite);
    match fs::symlink_metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(Failure::io("look at", target, source)),
        Ok(found) if !found.is_file() => {
            return Err(Failure::conflict(format!("{shown} exists and is not a plain file")));
        }
        Ok(_) if overwrite => check_unused(target)?,
        Ok(_) => return Err(exists(target)),
    }
    let by_name = match target.extension() {
        Some(extension) if extension == "qcow2" => Format::Qcow2,
        _ => Format::Raw,
    };
    let begun = resume.as_ref().map(|record| record.target_format);
    let path = target.clone();
    let place = match wanted.format.or(begun).unwrap_or(by_name) {
        Format::Raw => Place::Raw { path },
        Format::Qcow2 => {
            qcow2::check_tools()?;
            Place::Qcow2 { path, run_dir: data_dir.to_owned() }
        }
    };
    Ok(Plan { subject, place, resume, overwrite })
}

/// What an earlier run has left and this one goes on with.
fn resumable(
    wanted: &Wanted,
    subject: &Subject,
    target: &Path,
    record: &Path,
) -> Result<Option<Record>> {
    if wanted.restart {
        return Ok(None);
    }
    let Some(found) = Record::load(record)?.filter(|found| found.done_bytes() > 0) else {
        return Ok(None);
    };
    let refused = |message: String| {
        let hint = format!(
            "go on with that one: {}; or discard what it has written (--restart)",
            found.command(target)
        );
        Err(Failure::conflict(message).with_hint(hint))
    };
    let unfinished = format!("{} holds an unfinished restore of", target.display());
    if !found.is_of(subject) {
        return refused(format!("{unfinished} {}", found.describe()));
    }
    if wanted.format.is_some_and(|format| format != found.target_format) {
        return refused(format!("{unfinished} this state in another format"));
    }
    Ok(Some(found))
}

/// Refuses a target below the directory in which the collector keeps everything: a restore
/// there could replace a seed, a segment or the catalog.
fn check_outside(target: &Path, data_dir: &Path) -> Result<()> {
    if real(parent_of(target))?.starts_with(real(data_dir)?) {
        let (target, data_dir) = (target.display(), data_dir.display());
        let message = format!("{target} lies in the collector's own directory {data_dir}");
        return Err(Failure::invalid(message).with_hint("restore to a path outside of it"));
    }
    Ok(())
}

fn real(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).map_err(|source| Failure::io("look at", path, source))
}
