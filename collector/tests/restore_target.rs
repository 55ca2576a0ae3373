//! Where a restore may write, that two of them never write into one file, and that one which has
//! ended early goes on: into a raw file, a qcow2 image and a block device.
#![allow(clippy::unwrap_used, reason = "tests")]

mod journal_support;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use journal_support::{Batch, Random, identity, make, spec};
use nix::fcntl::{Flock, FlockArg};
use tidemark_collector::error::{Failure, FailureKind};
use tidemark_collector::journal::{Journal, JournalConfig, JournalIdentity};
use tidemark_collector::restore::{
    Format, Plan, Progress, Restored, Subject, Wanted, plan, restore,
};
use tidemark_collector::seed::Seed;
use tidemark_collector::storage::RealStorage;
use tidemark_collector::view::View;
use tidemark_wire::{RecordKind, Seq};

const MIB: u64 = 1 << 20;
/// Seven chunks; the last one ends within a block.
const SIZE_BYTES: u64 = 6 * MIB + 512;
const DATA_BYTES: usize = 128 << 10;

/// A volume with some bytes in each of its first six MiB, and directories to restore from and to.
struct Bed {
    journal: Journal<RealStorage>,
    seed: Arc<Seed<RealStorage>>,
    image: Vec<u8>,
    dir: tempfile::TempDir,
    last: Seq,
    /// Where the bytes lie that are read last: file and offset.
    last_data: (PathBuf, u64),
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let files = data.join("journal");
        fs::create_dir_all(&files).unwrap();
        fs::create_dir_all(dir.path().join("out")).unwrap();
        let (storage, identity) = (Arc::new(RealStorage), Self::identity());
        let seed = Seed::open_or_create(&storage, &data.join("seed.img"), SIZE_BYTES).unwrap();
        let opened = Journal::open_or_create(storage, &files, identity, JournalConfig::default());
        let mut journal = opened.unwrap().0;
        let mut image = vec![0; usize::try_from(SIZE_BYTES).unwrap()];
        let (mut random, mut prev, mut payload) = (Random::new(5), Seq(0), Vec::new());
        for mib in 0..6 {
            let offset = mib * MIB + 300_000;
            payload = (0..DATA_BYTES).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
            let spec = spec(RecordKind::Write, offset, payload.len() as u64, payload.len());
            let made = make(&spec, prev.0 + 1, &payload, false);
            journal_support::apply(&mut image, &made.bytes);
            Batch::of(prev, std::slice::from_ref(&made)).append_to(&mut journal).unwrap();
            prev = made.seq;
        }
        journal.commit().unwrap();
        let file = fs::read_dir(&files).unwrap().next().unwrap().unwrap().path();
        let bytes = fs::read(&file).unwrap();
        let at = bytes.windows(64).rposition(|window| window == &payload[..64]).unwrap() as u64;
        let last_data = (file, at + 1000);
        Self { journal, seed: Arc::new(seed), image, dir, last: prev, last_data }
    }

    fn identity() -> JournalIdentity {
        JournalIdentity { size_bytes: SIZE_BYTES, ..identity() }
    }

    fn view(&self, at: Seq) -> View {
        View::open(self.journal.reader(), Arc::clone(&self.seed), at).unwrap()
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn data_names(&self) -> BTreeSet<OsString> {
        fs::read_dir(self.data()).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join("out").join(name)
    }

    fn plan_at(&self, wanted: &Wanted, seq: Seq) -> Result<Plan, Failure> {
        let identity = Self::identity();
        let subject = Subject {
            volume: identity.volume,
            name: "disk".into(),
            journal: identity.journal,
            timeline: identity.timeline,
            seq,
            size_bytes: SIZE_BYTES,
        };
        plan(wanted, subject, &self.data())
    }

    fn plan(&self, wanted: &Wanted) -> Result<Plan, Failure> {
        self.plan_at(wanted, self.last)
    }

    fn restore(&self, wanted: &Wanted) -> Result<Restored, Failure> {
        restore(&self.view(self.last), self.plan(wanted)?, &Progress::default())
    }

    /// Damages the bytes that are read last, or repairs them.
    fn flip(&self) {
        let file = OpenOptions::new().read(true).write(true).open(&self.last_data.0).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, self.last_data.1).unwrap();
        file.write_all_at(&[byte[0] ^ 1], self.last_data.1).unwrap();
    }

    /// Leaves a restore that has failed at damage in the last chunk but one.
    fn leave_unfinished(&self, wanted: &Wanted) {
        self.flip();
        let error = self.restore(wanted).unwrap_err();
        self.flip();
        assert_eq!(error.kind, FailureKind::Internal, "{error}");
        assert_eq!(self.plan(wanted).unwrap().resumes_at(), 5 * MIB);
    }

    /// Restores, is ended early, goes on; with what was written spoiled in two places meanwhile
    /// when `spoil` says how. Returns what the last run wrote.
    fn go_on(&self, wanted: &Wanted, spoil: impl FnOnce()) -> u64 {
        self.leave_unfinished(wanted);
        spoil();
        let (resumed, progress) = (self.plan(wanted).unwrap(), Progress::default());
        let restored = restore(&self.view(self.last), resumed, &progress).unwrap();
        assert_eq!(progress.done_bytes(), SIZE_BYTES);
        written(restored)
    }
}

fn wanted(target: PathBuf) -> Wanted {
    Wanted { target, format: None, overwrite: false, restart: false }
}

fn written(restored: Restored) -> u64 {
    let Restored::Done { written_bytes, .. } = restored else { panic!("{restored:?}") };
    written_bytes
}

fn spoil(path: &Path, places: &[u64]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    places.iter().for_each(|at| file.write_all_at(&[0x5a], *at).unwrap());
    file.sync_all().unwrap();
}

#[test]
fn a_partial_file_that_another_restore_writes_is_not_touched() {
    let bed = Bed::new();
    let (target, partial) = (bed.out("disk.img"), bed.out("disk.img.partial"));
    fs::write(&partial, b"half a disk").unwrap();
    let running = File::open(&partial).unwrap();
    let running = Flock::lock(running, FlockArg::LockExclusiveNonblock).unwrap();
    let error = bed.restore(&wanted(target.clone())).unwrap_err();
    assert_eq!(error.kind, FailureKind::Conflict, "{error}");
    assert_eq!(fs::read(&partial).unwrap(), b"half a disk");
    assert!(!target.exists());

    drop(running);
    assert!(written(bed.restore(&wanted(target.clone())).unwrap()) > 0);
    assert!(fs::read(&target).unwrap() == bed.image);
    assert!(fs::metadata(&target).unwrap().blocks() * 512 < SIZE_BYTES / 2, "sparse");
    assert_eq!(fs::read_dir(bed.out("")).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn names_of_unfinished_restores_and_the_collectors_own_files_are_refused() {
    let bed = Bed::new();
    for name in
        ["out/disk.partial", "out/disk.partial.json", "data/catalog.sqlite", "data/../data/x"]
    {
        let error = bed.plan(&wanted(bed.dir.path().join(name))).unwrap_err();
        assert_eq!(error.kind, FailureKind::Invalid, "{error}");
    }
    bed.plan(&wanted(bed.out("database.img"))).unwrap();
    let error = bed.plan(&wanted("relative.img".into())).unwrap_err();
    assert_eq!(error.kind, FailureKind::Invalid, "{error}");
    let error = bed.plan(&wanted("/dev/null".into())).unwrap_err();
    assert_eq!(error.kind, FailureKind::Conflict, "{error}");
}

#[test]
fn a_file_goes_on_with_what_holds_and_writes_anew_what_does_not() {
    let bed = Bed::new();
    let target = bed.out("disk.img");
    let whole = written(bed.restore(&wanted(bed.out("other.img"))).unwrap());
    let rest = bed.go_on(&wanted(target.clone()), || {});
    assert_eq!(rest, whole / 6, "the last of six parts");
    assert!(fs::read(&target).unwrap() == bed.image);

    // One byte of data, one where zeroes should be, one behind what was recorded.
    fs::remove_file(&target).unwrap();
    let partial = bed.out("disk.img.partial");
    let places = [300_500, 3 * MIB + 7, 5 * MIB + 200_000, 6 * MIB + 100];
    let again = bed.go_on(&wanted(target.clone()), || spoil(&partial, &places));
    assert_eq!(again, whole / 6 * 3, "two chunks anew, and the last part");
    assert!(fs::read(&target).unwrap() == bed.image);
    assert_eq!(fs::read_dir(bed.out("")).unwrap().count(), 2, "nothing else is left");
}

#[test]
fn an_unfinished_restore_is_gone_on_with_or_discarded_but_never_mixed() {
    let bed = Bed::new();
    let target = bed.out("a disk.img");
    let first = Wanted { overwrite: true, ..wanted(target.clone()) };
    fs::write(&target, b"old").unwrap();
    bed.leave_unfinished(&first);
    assert_eq!(fs::read(&target).unwrap(), b"old");
    // That it may replace the file is remembered.
    assert_eq!(bed.plan(&wanted(target.clone())).unwrap().resumes_at(), 5 * MIB);
    let error = bed.plan_at(&wanted(target.clone()), Seq(3)).unwrap_err();
    assert_eq!(error.kind, FailureKind::Conflict);
    let text = error.to_string();
    let command = format!("tidemark restore disk --at seq:6 --to '{}'", target.display());
    assert!(text.contains(&command) && text.contains("--restart"), "{text}");
    let other = Wanted { format: Some(Format::Qcow2), ..wanted(target.clone()) };
    assert_eq!(bed.plan(&other).unwrap_err().kind, FailureKind::Conflict);

    let restart = Wanted { restart: true, ..first };
    let plan = bed.plan_at(&restart, Seq(3)).unwrap();
    assert_eq!(plan.resumes_at(), 0);
    restore(&bed.view(Seq(3)), plan, &Progress::default()).unwrap();
    assert!(fs::read(&target).unwrap()[..3 << 20] == bed.image[..3 << 20]);
    assert_eq!(fs::read_dir(bed.out("")).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn a_cancel_before_anything_was_written_leaves_nothing() {
    let bed = Bed::new();
    let progress = Progress::default();
    progress.cancel();
    let plan = bed.plan(&wanted(bed.out("disk.img"))).unwrap();
    assert_eq!(restore(&bed.view(bed.last), plan, &progress).unwrap(), Restored::Cancelled);
    assert_eq!(fs::read_dir(bed.out("")).unwrap().count(), 0);
}

/// Runs a tool; `None` when it is not installed.
fn tool(name: &str, arguments: &[&str]) -> Option<String> {
    match Command::new(name).args(arguments).output() {
        Ok(run) => {
            let errors = String::from_utf8_lossy(&run.stderr).into_owned();
            assert!(run.status.success(), "{name} {arguments:?}: {errors}");
            Some(String::from_utf8_lossy(&run.stdout).trim().to_owned())
        }
        Err(error) => {
            eprintln!("SKIPPED: {name}: {error}");
            None
        }
    }
}

#[test]
fn a_qcow2_image_is_the_state_sparse_clean_and_gone_on_with() {
    if tool("qemu-nbd", &["--version"]).is_none() {
        return;
    }
    let bed = Bed::new();
    let own = bed.data_names();
    let target = bed.out("disk.qcow2");
    let is_the_state = |name: &Path| {
        let (image, raw) = (name.to_str().unwrap(), bed.out("raw.img"));
        tool("qemu-img", &["check", "-q", "-f", "qcow2", image]).unwrap();
        tool("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", image, raw.to_str().unwrap()]);
        assert!(fs::read(&raw).unwrap() == bed.image);
        assert!(fs::metadata(name).unwrap().blocks() * 512 < SIZE_BYTES / 2, "sparse");
        fs::remove_file(&raw).unwrap();
    };
    let whole = written(bed.restore(&wanted(target.clone())).unwrap());
    is_the_state(&target);

    let again = Wanted { overwrite: true, ..wanted(target.clone()) };
    assert_eq!(bed.go_on(&again, || {}), whole / 6);
    is_the_state(&target);

    let partial = bed.out("disk.qcow2.partial");
    let spoiled = bed.go_on(&again, || {
        for at in ["300500", "3145735", "5400000", "6291556"] {
            let write = format!("write -q -P 90 {at} 1");
            tool("qemu-io", &["-f", "qcow2", "-c", &write, partial.to_str().unwrap()]);
        }
    });
    assert_eq!(spoiled, whole / 6 * 3);
    is_the_state(&target);
    assert_eq!(fs::read_dir(bed.out("")).unwrap().count(), 1, "nothing else is left");
    assert_eq!(bed.data_names(), own, "no socket is left");
}

/// A loop device; it goes with this value.
struct Loop(String);

impl Loop {
    fn attach(file: &Path, size_bytes: u64) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: loop devices need root");
            return None;
        }
        File::create(file).unwrap().set_len(size_bytes).unwrap();
        spoil(file, &[0, 2 * MIB + 5, 4 * MIB + 300_100, size_bytes - 1]);
        tool("losetup", &["--find", "--show", file.to_str().unwrap()]).map(Self)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_device_is_written_whole_gone_on_with_and_kept_from_other_users() {
    let bed = Bed::new();
    let Some(device) = Loop::attach(&bed.out("back.img"), 8 * MIB) else { return };
    let target = wanted(device.0.clone().into());
    let plan = bed.plan(&target).unwrap();
    let destroys = plan.destroys().unwrap();
    assert!(destroys.contains(&device.0) && destroys.contains("8388608 bytes"), "{destroys}");
    assert!(plan.note().unwrap().contains("last 2096640 bytes stay"), "{:?}", plan.note());
    let whole = written(restore(&bed.view(bed.last), plan, &Progress::default()).unwrap());
    let is_the_state = || {
        let bytes = fs::read(&device.0).unwrap();
        assert!(bytes[..bed.image.len()] == bed.image[..]);
        assert_eq!(bytes.last(), Some(&0x5a), "what lies behind stays");
    };
    is_the_state();
    assert_eq!(bed.go_on(&target, || {}), whole / 6);
    let places = [300_500, 3 * MIB + 7, 5 * MIB + 200_000, 6 * MIB + 100];
    let spoiled = bed.go_on(&target, || spoil(Path::new(&device.0), &places));
    assert_eq!(spoiled, whole / 6 * 3);
    is_the_state();
    assert_eq!(fs::read_dir(bed.data().join("restores")).unwrap().count(), 0);

    let plan = bed.plan(&target).unwrap();
    let exclusive = nix::fcntl::OFlag::O_EXCL.bits();
    let held = OpenOptions::new().read(true).custom_flags(exclusive).open(&device.0).unwrap();
    let error = restore(&bed.view(bed.last), plan, &Progress::default()).unwrap_err();
    assert_eq!(error.kind, FailureKind::Conflict, "{error}");
    assert!(error.to_string().contains("in use"), "{error}");
    drop(held);
    let qcow2 = Wanted { format: Some(Format::Qcow2), ..target };
    assert_eq!(bed.plan(&qcow2).unwrap_err().kind, FailureKind::Invalid);
}

#[test]
fn devices_that_must_not_be_written_are_refused_by_name() {
    let bed = Bed::new();
    let Some(small) = Loop::attach(&bed.out("small.img"), 5 * MIB) else { return };
    let error = bed.plan(&wanted(small.0.clone().into())).unwrap_err();
    assert!(error.to_string().contains("5242880 bytes, the volume has 6291968"), "{error}");
    let own = Loop::attach(&bed.data().join("some.img"), 8 * MIB).unwrap();
    let error = bed.plan(&wanted(own.0.clone().into())).unwrap_err();
    assert!(error.to_string().contains("collector's own data"), "{error}");

    let mounted = Loop::attach(&bed.out("mounted.img"), 32 * MIB).unwrap();
    let dir = bed.out("mnt");
    fs::create_dir(&dir).unwrap();
    tool("mkfs.ext4", &["-q", "-L", "keep me", &mounted.0]).unwrap();
    let destroys = bed.plan(&wanted(mounted.0.clone().into())).unwrap().destroys().unwrap();
    assert!(destroys.contains("ext4 labelled keep me"), "{destroys}");
    tool("mount", &[&mounted.0, dir.to_str().unwrap()]).unwrap();
    let refused = bed.plan(&wanted(mounted.0.clone().into()));
    tool("umount", &[dir.to_str().unwrap()]).unwrap();
    let error = refused.unwrap_err();
    assert_eq!(error.kind, FailureKind::Conflict);
    assert!(error.to_string().contains(&format!("mounted on {}", dir.display())), "{error}");
    let found = fs::metadata(bed.data()).unwrap().dev();
    let own =
        format!("/sys/dev/block/{}:{}", nix::sys::stat::major(found), nix::sys::stat::minor(found));
    let Ok(own) = fs::canonicalize(own) else { return };
    let own = Path::new("/dev").join(own.file_name().unwrap());
    if own.exists() {
        let error = bed.plan(&wanted(own)).unwrap_err();
        assert!(error.to_string().contains("holds the collector's own data"), "{error}");
    }
}
