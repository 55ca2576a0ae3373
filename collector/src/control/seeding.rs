//! Seeding: a volume begins with an image that a person brings, and its agent sends only what
//! differs.
//!
//! What enters: a raw image, as a file or a block device, of exactly the volume's size. What
//! leaves: a job. A seeding that ends early leaves the volume as it was; begun again it starts
//! from the beginning of the image.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::api;
use super::desk::{Desk, blocking};
use super::jobs::{Ended, SEED};
use crate::catalog::{JobRow, JobStatus};
use crate::error::{Failure, Result};
use crate::ingest::seeding::Seeding;
use crate::restore::{Progress, quoted};
use crate::storage::Storage;

/// Bytes that are read at once; a multiple of the seed's blocks.
const STEP_BYTES: usize = 1 << 20;
/// First bytes of images that are not raw, with their names.
const OTHER_FORMATS: [(&[u8], &str); 4] =
    [(b"QFI\xfb", "qcow2"), (b"KDMV", "vmdk"), (b"vhdxfile", "vhdx"), (b"conectix", "vpc")];

impl<S: Storage> Desk<S> {
    pub(super) async fn create_seed(
        self: &Arc<Self>,
        volume: &str,
        new: api::NewSeed,
    ) -> Result<api::Job> {
        let volume = self.sources.volumes.find(volume)?;
        let (name, size_bytes) = (volume.name(), volume.facts().manifest.size_bytes);
        let (path, owner) = (new.image, name.clone());
        let (image, path) = blocking(move || Ok((open(&path, &owner, size_bytes)?, path))).await?;
        let (volumes, target) = (Arc::clone(&self.sources.volumes), Arc::clone(&volume));
        let seeding = blocking(move || volumes.begin_seeding(&target)).await?;
        let row = JobRow {
            id: 0,
            kind: SEED.to_owned(),
            volume: name.clone(),
            at: String::new(),
            seq: tidemark_wire::Seq(0),
            time: None,
            target: path.clone(),
            status: JobStatus::Running,
            done_bytes: 0,
            total_bytes: size_bytes,
            started: self.sources.clock.wall(),
            finished: None,
            written_bytes: None,
            checksums_verified: None,
            comparison: None,
            error: None,
        };
        let volumes = Arc::clone(&self.sources.volumes);
        self.begin_job(row, move |progress| {
            let Some(written_bytes) = import(&image, &path, &seeding, size_bytes, progress)? else {
                return Ok(Ended::Cancelled);
            };
            volumes.finish_seeding(seeding)?;
            let message = format!(
                "volume {name} begins with the image {}; its agent compares and sends what differs",
                path.display()
            );
            Ok(Ended::Done { written_bytes, checksums_verified: 0, message })
        })
        .await
    }
}

/// Opens an image, and refuses one that can't be the volume's.
fn open(path: &Path, volume: &str, size_bytes: u64) -> Result<File> {
    let shown = path.display();
    if !path.is_absolute() {
        return Err(Failure::invalid(format!("{shown} is not an absolute path")));
    }
    let failed = |doing: &'static str| move |source| Failure::io(doing, path, source);
    let kind = std::fs::metadata(path).map_err(failed("look at"))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Failure::invalid(format!("{shown} is neither a file nor a block device")));
    }
    let mut image = File::open(path).map_err(failed("open"))?;
    let mut start = [0; 16];
    let read = image.read_at(&mut start, 0).map_err(failed("read"))?;
    let other = OTHER_FORMATS.iter().find(|(magic, _)| start[..read].starts_with(magic));
    if let Some((_, format)) = other {
        let quoted = quoted(&path.to_string_lossy());
        let convert = format!("qemu-img convert -O raw {quoted} RAW");
        return Err(Failure::invalid(format!("{shown} is an image of format {format}, not raw"))
            .with_hint(format!("make a raw one of it: {convert}")));
    }
    let found = image.seek(SeekFrom::End(0)).map_err(failed("look at"))?;
    if found != size_bytes {
        let message = format!("{shown} has {found} bytes, volume {volume} has {size_bytes}");
        return Err(Failure::conflict(message).with_hint("bring an image of this very disk"));
    }
    Ok(image)
}

/// Reads the image into the new seed; what are holes in it stays one. `None` when cancelled.
fn import<S: Storage>(
    image: &File,
    path: &Path,
    seeding: &Seeding<S>,
    size_bytes: u64,
    progress: &Progress,
) -> Result<Option<u64>> {
    let mut buffer = vec![0; STEP_BYTES];
    let (mut at, mut written_bytes) = (0, 0);
    while at < size_bytes {
        if progress.is_cancelled() {
            return Ok(None);
        }
        let data = data_from(image, at, size_bytes);
        progress.add(data - at);
        at = data;
        let left = usize::try_from(size_bytes - at).unwrap_or(usize::MAX);
        let bytes = &mut buffer[..left.min(STEP_BYTES)];
        let read = image.read_exact_at(bytes, at);
        read.map_err(|source| Failure::io("read", path, source))?;
        seeding.write(at, bytes)?;
        at += bytes.len() as u64;
        written_bytes += bytes.len() as u64;
        progress.add(bytes.len() as u64);
    }
    Ok(Some(written_bytes))
}

/// Where the next step begins that has data, from a place on; the end when there is none.
fn data_from(image: &File, at: u64, size_bytes: u64) -> u64 {
    let Ok(start) = i64::try_from(at) else { return at };
    match lseek(image, start, Whence::SeekData) {
        Ok(data) => {
            let data = data.cast_unsigned();
            (data - data % STEP_BYTES as u64).clamp(at, size_bytes)
        }
        Err(Errno::ENXIO) => size_bytes,
        // A device, or a file system without holes: all of it is read.
        Err(_) => at,
    }
}
