//! Whether a backing store was changed while no agent served it.
//!
//! What enters are a store's identity, size, times and counters; what leaves is a [`Change`], which
//! makes the caller compare the whole volume. A mark is kept in two places: in the volume's state
//! file when the agent stops in order ([`MarkKeeper::finish`]), and about every second in a file
//! beside the change ring, on tmpfs, where it costs no disk write ([`MarkKeeper::keep`]). A crash
//! of the machine loses the second one together with the ring; for a start after it the state file
//! has one that is at most [`STALE`] old, also while an agent runs. In doubt there is a change: a needless comparison costs reading, a missed one
//! costs the data.
//!
//! | how the last agent ended | regular file | block device |
//! | --- | --- | --- |
//! | in order, same boot | same inode, device, generation, size, mtime, ctime | same disk sequence, number, size, sectors written |
//! | in order, another boot | the same without the device, whose number may change | in doubt |
//! | killed | same inode, device, generation, size; no time went back; none is later than the ring's last record by more than [`SLACK`] | as in order: where the agent itself wrote after the last mark, in doubt |
//! | power cut, or the ring was lost | same inode, generation, size; no time is earlier or later than the mark's by more than [`STALE`], in the same boot [`STALE_IN_BOOT`] | same size; in another boot nothing was written to it yet, in the same one as in order |
//!
//! | what somebody did meanwhile | regular file | block device |
//! | --- | --- | --- |
//! | nothing | no change | no change within a boot |
//! | edited it | its ctime, which nobody can set | sectors written |
//! | replaced it | inode, generation; a copy back over it: ctime | disk sequence |
//! | grew or shrank it | size | size |
//!
//! What it can't see: an edit within [`SLACK`] of the last record of a killed agent, or within
//! [`STALE`] of a power cut; an edit of a device in a boot that lies between the power cut and the
//! start; a clock that was set back by as much as the edit came later; and writes to a partition
//! through the whole disk or below a mapped device.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidemark_wire::WallMicros;

use crate::clock::Clock;
use crate::intent_log::sweep::SWEEP_EVERY;
use crate::state::{BackingKind, BackingMark};

/// How much later than the claim of its record a write may reach the backing store, as the file's
/// times tell it.
const SLACK: Duration = Duration::from_millis(100);
/// How old the mark in the state file may be, and how late a file's own times may be written, when
/// the machine crashes.
pub const STALE: Duration = Duration::from_secs(60);
/// The same of the mark beside the change ring, which is there within a boot.
pub const STALE_IN_BOOT: Duration = Duration::from_secs(5);
const _: () = assert!(STALE.as_secs() >= 2 * SWEEP_EVERY.as_secs());
/// How coarse the times of files may be: a change within it can't be told from the one before.
const TICK: Duration = Duration::from_millis(20);
/// How often the mark of a running agent is renewed.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// The extended attribute that names the generation of a file.
const GENERATION: &std::ffi::CStr = c"user.tidemark";
/// A device that does not count its writes.
const SECTORS_UNKNOWN: u64 = u64::MAX;

/// How the last agent that served a store ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// In order: the mark was taken after its last write.
    Clean,
    /// Killed, within this boot.
    Killed {
        /// Time of the last record in its change ring.
        last_record: WallMicros,
    },
    /// With the machine, or its change ring was lost.
    PowerCut {
        /// How old the mark may be: [`STALE`] or [`STALE_IN_BOOT`].
        stale: Duration,
    },
}

/// What tells that a store is not as the last agent left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// No mark of it was kept, or none that says enough.
    Doubt(&'static str),
    /// It is another file or device.
    Replaced,
    /// Its size is another one, in bytes.
    Resized {
        /// When it was last served.
        was: u64,
        /// Now.
        is: u64,
        /// Nothing else was changed.
        only_size: bool,
    },
    /// It was written.
    Edited,
    /// Its times lie before those that were seen.
    WentBack,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Doubt(why) => write!(f, "whether it was changed can't be told: {why}"),
            Self::Replaced => f.write_str("it is another one than was served last"),
            Self::Resized { was, is, .. } => {
                write!(f, "it has {is} bytes and had {was} when it was served last")
            }
            Self::Edited => f.write_str("it was written while no agent served it"),
            Self::WentBack => {
                f.write_str("it is older than when it was served last, as after a rollback")
            }
        }
    }
}

/// Compares the mark that was kept with the one that is found now; `None` when nothing was
/// changed.
#[must_use]
pub fn judge(was: Option<&BackingMark>, now: &BackingMark, ending: Ending) -> Option<Change> {
    let Some(was) = was else {
        return Some(Change::Doubt("no mark of it was kept"));
    };
    let same_boot = was.boot_id == now.boot_id;
    // A device has no inode, and its sequence is that of a boot.
    let counts_inode = was.kind == BackingKind::File || same_boot;
    let is_other = was.kind != now.kind
        || (counts_inode && was.inode != now.inode)
        || was.generation != now.generation
        || (same_boot && was.device != now.device);
    if was.kind == BackingKind::Device
        && !same_boot
        && was.kind == now.kind
        && !matches!(ending, Ending::PowerCut { .. })
    {
        return Some(Change::Doubt("the machine was started anew, and a device keeps no mark"));
    }
    if is_other {
        return Some(Change::Replaced);
    }
    if was.size_bytes != now.size_bytes {
        // The times of a file tell of its size as they do of its bytes.
        let only_size =
            now.kind == BackingKind::Device && judge_counter(was, now, ending).is_none();
        return Some(Change::Resized { was: was.size_bytes, is: now.size_bytes, only_size });
    }
    match now.kind {
        BackingKind::Device => judge_counter(was, now, ending),
        BackingKind::File => judge_times(was, now, ending, same_boot),
    }
}

fn judge_counter(was: &BackingMark, now: &BackingMark, ending: Ending) -> Option<Change> {
    if was.sectors_written == SECTORS_UNKNOWN || now.sectors_written == SECTORS_UNKNOWN {
        return Some(Change::Doubt("the kernel does not count its writes"));
    }
    match ending {
        Ending::PowerCut { .. } if was.boot_id != now.boot_id => {
            let why = "it was written since the machine was started";
            (now.sectors_written > 0).then_some(Change::Doubt(why))
        }
        _ if was.sectors_written == now.sectors_written => None,
        Ending::Clean => Some(Change::Edited),
        Ending::PowerCut { .. } => {
            Some(Change::Doubt("it was written after the last mark, maybe by the last agent"))
        }
        Ending::Killed { .. } => {
            Some(Change::Doubt("it was written after the last mark, maybe by the killed agent"))
        }
    }
}

fn judge_times(
    was: &BackingMark,
    now: &BackingMark,
    ending: Ending,
    same_boot: bool,
) -> Option<Change> {
    if was.mtime_ns == now.mtime_ns && was.ctime_ns == now.ctime_ns {
        return None;
    }
    let slack = match ending {
        Ending::PowerCut { stale } => i64::try_from(stale.as_nanos()).unwrap_or(i64::MAX),
        Ending::Clean | Ending::Killed { .. } => 0,
    };
    let earlier = |now: i64, was: i64| now.saturating_add(slack) < was;
    if earlier(now.mtime_ns, was.mtime_ns) || earlier(now.ctime_ns, was.ctime_ns) {
        return Some(Change::WentBack);
    }
    match ending {
        Ending::PowerCut { .. } => {
            let later = |now: i64, was: i64| now > was.saturating_add(slack);
            let is_later = later(now.mtime_ns, was.mtime_ns) || later(now.ctime_ns, was.ctime_ns);
            is_later.then_some(Change::Edited)
        }
        Ending::Clean => Some(Change::Edited),
        Ending::Killed { .. } if !same_boot => {
            Some(Change::Doubt("the machine was started anew since"))
        }
        Ending::Killed { last_record } => {
            let last = Duration::from_micros(last_record.0) + SLACK;
            let newest = u128::try_from(now.mtime_ns.max(now.ctime_ns)).unwrap_or(0);
            (newest > last.as_nanos()).then_some(Change::Edited)
        }
    }
}

/// A backing store that marks are taken of.
pub struct Backing {
    file: File,
    kind: BackingKind,
    boot_id: [u8; 16],
}

impl Backing {
    /// Opens the file or block device at `path` beside the store that serves it.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(path: &Path, boot_id: [u8; 16]) -> io::Result<Self> {
        let file = File::open(path)?;
        let is_device = file.metadata()?.file_type().is_block_device();
        let kind = if is_device { BackingKind::Device } else { BackingKind::File };
        Ok(Self { file, kind, boot_id })
    }

    /// The mark of what is there now.
    ///
    /// # Errors
    /// The operating system's.
    pub fn mark(&self) -> io::Result<BackingMark> {
        let found = self.file.metadata()?;
        let is_device = self.kind == BackingKind::Device;
        let device = if is_device { found.rdev() } else { found.dev() };
        let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000) + nanos;
        let mark = BackingMark {
            kind: self.kind,
            size_bytes: found.len(),
            inode: found.ino(),
            device,
            mtime_ns: nanos(found.mtime(), found.mtime_nsec()),
            ctime_ns: nanos(found.ctime(), found.ctime_nsec()),
            generation: read_generation(&self.file)?.unwrap_or_default(),
            boot_id: self.boot_id,
            sectors_written: 0,
        };
        if !is_device {
            return Ok(mark);
        }
        // The node of a device says nothing about what is on it.
        Ok(BackingMark {
            size_bytes: (&self.file).seek(SeekFrom::End(0))?,
            inode: disk_sequence(device),
            mtime_ns: 0,
            ctime_ns: 0,
            generation: [0; 16],
            sectors_written: sectors_written(device),
            ..mark
        })
    }

    /// Lets everything that was written become visible in the mark: what others left in the page
    /// cache of a device is counted when it is written out.
    ///
    /// # Errors
    /// The operating system's.
    pub fn settle(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Names the file's generation where it has none yet and its file system can keep one. This
    /// changes its ctime.
    ///
    /// # Errors
    /// The operating system's, but not that there are no extended attributes.
    pub fn name_generation(&self, generation: [u8; 16]) -> io::Result<()> {
        if self.kind == BackingKind::Device || read_generation(&self.file)?.is_some() {
            return Ok(());
        }
        // SAFETY: the name is NUL-terminated, and the value is 16 bytes that live through the call.
        let result = unsafe {
            libc::fsetxattr(
                self.file.as_raw_fd(),
                GENERATION.as_ptr(),
                generation.as_ptr().cast(),
                generation.len(),
                0,
            )
        };
        if result == 0 { Ok(()) } else { without_attributes(io::Error::last_os_error(), ()) }
    }
}

/// The generation that a file carries.
fn read_generation(file: &File) -> io::Result<Option<[u8; 16]>> {
    let mut generation = [0; 16];
    // SAFETY: the name is NUL-terminated, and at most 16 bytes are written to the 16 there are.
    let read = unsafe {
        libc::fgetxattr(
            file.as_raw_fd(),
            GENERATION.as_ptr(),
            generation.as_mut_ptr().cast(),
            generation.len(),
        )
    };
    match usize::try_from(read) {
        Ok(read) => Ok((read == generation.len()).then_some(generation)),
        Err(_) => without_attributes(io::Error::last_os_error(), None),
    }
}

/// `otherwise` where a file can't have the attribute, or has none of this size.
fn without_attributes<T>(error: io::Error, otherwise: T) -> io::Result<T> {
    match error.raw_os_error() {
        Some(libc::ENODATA | libc::EOPNOTSUPP | libc::ERANGE | libc::EPERM) => Ok(otherwise),
        _ => Err(error),
    }
}

fn sys_dir(device: u64) -> PathBuf {
    format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device)).into()
}

/// The kernel's number for this appearance of a disk, which it uses once in a boot; 0 where it
/// does not tell.
fn disk_sequence(device: u64) -> u64 {
    of_disk(device, "diskseq").and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Sectors of 512 bytes that were written to a device in this boot.
fn sectors_written(device: u64) -> u64 {
    if of_disk(device, "queue/iostats").is_some_and(|text| text == "0") {
        return SECTORS_UNKNOWN;
    }
    // The seventh figure, as the kernel's block/stat.rst has it.
    let stat = fs::read_to_string(sys_dir(device).join("stat")).ok();
    stat.and_then(|text| text.split_whitespace().nth(6)?.parse().ok()).unwrap_or(SECTORS_UNKNOWN)
}

/// A file of a disk below `/sys`; that of a partition is one level up.
fn of_disk(device: u64, name: &str) -> Option<String> {
    let dir = sys_dir(device);
    let read = |path: PathBuf| fs::read_to_string(path).ok();
    let text = read(dir.join(name)).or_else(|| read(dir.join("..").join(name)))?;
    Some(text.trim().to_owned())
}

/// The size with which a store is served, in bytes.
///
/// A mark has this one, and not the store's where that has got another one: the next agent has to
/// find out what this one has not noticed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// The volume's size.
    pub size_bytes: u64,
    /// Its unit; what a file has beyond whole ones is not served.
    pub unit_bytes: u64,
}

impl Served {
    fn as_served(self, mark: BackingMark) -> BackingMark {
        let is_known =
            (self.size_bytes..self.size_bytes + self.unit_bytes.max(1)).contains(&mark.size_bytes);
        if is_known { mark } else { BackingMark { size_bytes: self.size_bytes, ..mark } }
    }
}

/// Keeps the mark of a store that is served.
pub struct MarkKeeper {
    backing: Backing,
    path: PathBuf,
    kept: Option<BackingMark>,
    next: Duration,
}

impl MarkKeeper {
    /// Keeps marks of `backing` in the file `path`, which lies on tmpfs.
    #[must_use]
    pub fn new(backing: Backing, path: PathBuf) -> Self {
        Self { backing, path, kept: None, next: Duration::ZERO }
    }

    /// The mark that an agent which was killed kept in `path`; `None` when there is none to be
    /// relied on.
    #[must_use]
    pub fn found(path: &Path) -> Option<BackingMark> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Renews the mark when it is time to, at the monotonic time `now`.
    ///
    /// # Errors
    /// The operating system's; the mark before then stays, which at worst makes the next agent
    /// compare the volume.
    pub fn keep(&mut self, now: Duration, served: Served) -> io::Result<()> {
        if now < self.next {
            return Ok(());
        }
        self.next = now + KEEP_EVERY;
        let mark = self.now(served)?;
        self.store(mark)
    }

    /// What the store looks like now.
    ///
    /// # Errors
    /// The operating system's.
    pub fn now(&self, served: Served) -> io::Result<BackingMark> {
        self.backing.mark().map(|mark| served.as_served(mark))
    }

    fn store(&mut self, mark: BackingMark) -> io::Result<()> {
        if self.kept.as_ref() == Some(&mark) {
            return Ok(());
        }
        // Replaced whole, so that a kill leaves one of the two.
        let beside = self.path.with_extension("mark.new");
        fs::write(&beside, serde_json::to_vec(&mark)?)?;
        fs::rename(&beside, &self.path)?;
        self.kept = Some(mark);
        Ok(())
    }

    /// The last mark, behind the last write of this agent; also kept, for a stop that is not clean.
    /// Waits until a later change of the file must have a later time.
    ///
    /// # Errors
    /// The operating system's.
    pub fn finish(&mut self, clock: &dyn Clock, served: Served) -> io::Result<BackingMark> {
        // The times of a file have to be as durable as what they tell about.
        self.backing.settle()?;
        clock.sleep(TICK);
        let mark = self.now(served)?;
        self.store(mark.clone())?;
        Ok(mark)
    }

    /// Removes the mark of a running agent: the last one is in the state file.
    pub fn discard(&self) {
        // A file that stays is of no use and does no harm: it is only asked for after a kill.
        let _ = fs::remove_file(&self.path);
    }
}
