//! Marks of backing stores: each way in which an agent ends, times what somebody did to the store
//! before the next one starts, on real files and, where root may make one, a real block device.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test may sleep")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;
use tidemark_agent::backing_mark::{
    Backing, Change, Ending, MarkKeeper, STALE, STALE_IN_BOOT, Served, judge,
};
use tidemark_agent::clock::SystemClock;
use tidemark_agent::state::BackingMark;
use tidemark_wire::WallMicros;

const SIZE: u64 = 1 << 20;
const SERVED: Served = Served { size_bytes: SIZE, unit_bytes: 512 };
const BOOT: [u8; 16] = [1; 16];
/// Beyond what counts as the killed agent's own last write.
const LATER: Duration = Duration::from_millis(150);

fn mark(path: &Path, boot: [u8; 16]) -> BackingMark {
    let backing = Backing::open(path, boot).unwrap();
    backing.settle().unwrap();
    backing.mark().unwrap()
}

fn now() -> WallMicros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    WallMicros(u64::try_from(since.as_micros()).unwrap())
}

fn write(path: &Path, at: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"somebody was here", at).unwrap();
    file.sync_all().unwrap();
}

/// A backing file with its mark as a clean stop leaves it.
fn file() -> (TempDir, PathBuf, BackingMark) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    File::create(&path).unwrap().set_len(SIZE).unwrap();
    let backing = Backing::open(&path, BOOT).unwrap();
    backing.name_generation([9; 16]).unwrap();
    let mut keeper = MarkKeeper::new(backing, dir.path().join("last.mark"));
    let mark = keeper.finish(&SystemClock::default(), SERVED).unwrap();
    (dir, path, mark)
}

/// What was done to a file, with what a clean stop and a kill make of it.
type Deed = fn(&Path);

fn nothing(_: &Path) {}

fn edit(path: &Path) {
    write(path, 4096);
}

/// As a person who wants to hide it.
fn edit_and_set_back(path: &Path) {
    let before = fs::metadata(path).unwrap().modified().unwrap();
    write(path, 4096);
    File::options().write(true).open(path).unwrap().set_modified(before).unwrap();
}

fn replace(path: &Path) {
    let copy = path.with_extension("copy");
    fs::copy(path, &copy).unwrap();
    fs::rename(&copy, path).unwrap();
}

fn grow(path: &Path) {
    File::options().write(true).open(path).unwrap().set_len(2 * SIZE).unwrap();
}

fn verdicts(deed: Deed, boot: [u8; 16]) -> [Option<Change>; 2] {
    let (_dir, path, was) = file();
    let last_record = now();
    std::thread::sleep(LATER);
    deed(&path);
    let is = mark(&path, boot);
    [Ending::Clean, Ending::Killed { last_record }].map(|ending| judge(Some(&was), &is, ending))
}

#[test]
fn a_file_that_somebody_changed_is_noticed_after_any_end() {
    let resized = Change::Resized { was: SIZE, is: 2 * SIZE, only_size: false };
    for (deed, wanted) in [
        (nothing as Deed, None),
        (edit, Some(Change::Edited)),
        (edit_and_set_back, Some(Change::Edited)),
        (replace, Some(Change::Replaced)),
        (grow, Some(resized)),
    ] {
        let [clean, killed] = verdicts(deed, BOOT);
        assert_eq!(clean, wanted);
        assert_eq!(killed, wanted);
        // The times of a file outlive the machine's boot.
        assert_eq!(verdicts(deed, [2; 16])[0], wanted);
    }
}

#[test]
fn an_edit_at_the_very_moment_of_a_clean_stop_is_noticed() {
    let (_dir, path, was) = file();
    edit(&path);
    assert_eq!(judge(Some(&was), &mark(&path, BOOT), Ending::Clean), Some(Change::Edited));
}

#[test]
fn what_a_killed_agent_wrote_itself_is_no_change() {
    let (_dir, path, was) = file();
    std::thread::sleep(LATER);
    let last_record = now();
    edit(&path);
    let is = mark(&path, BOOT);
    assert_eq!(judge(Some(&was), &is, Ending::Killed { last_record }), None);
}

#[test]
fn a_file_that_was_rolled_back_is_noticed() {
    let (_dir, path, was) = file();
    let newer = BackingMark { ctime_ns: was.ctime_ns + 1_000_000_000, ..was };
    let is = mark(&path, BOOT);
    let killed = Ending::Killed { last_record: WallMicros(u64::MAX / 2) };
    for ending in [Ending::Clean, killed] {
        assert_eq!(judge(Some(&newer), &is, ending), Some(Change::WentBack));
    }
    assert!(matches!(judge(None, &is, Ending::Clean), Some(Change::Doubt(_))));
}

#[test]
fn a_mark_of_a_running_agent_is_found_by_the_next_one() {
    let (dir, path, was) = file();
    let place = dir.path().join("disk.mark");
    assert_eq!(MarkKeeper::found(&place), None);
    let mut keeper = MarkKeeper::new(Backing::open(&path, BOOT).unwrap(), place.clone());
    keeper.keep(Duration::ZERO, SERVED).unwrap();
    assert_eq!(MarkKeeper::found(&place), Some(was.clone()));
    edit(&path);
    keeper.keep(Duration::from_millis(999), SERVED).unwrap();
    assert_eq!(MarkKeeper::found(&place), Some(was), "not yet time");
    keeper.keep(Duration::from_secs(1), SERVED).unwrap();
    assert_eq!(MarkKeeper::found(&place), Some(mark(&path, BOOT)));
    fs::write(&place, "cut o").unwrap();
    assert_eq!(MarkKeeper::found(&place), None, "nothing to be relied on");
    keeper.discard();
    assert!(!place.exists());
}

/// A disk that was cut while no agent served it, and has grown to what it was before the one that
/// serves it since has looked again: a kill in between may not hide that.
#[test]
fn a_mark_has_the_size_that_is_served() {
    let (dir, path, _) = file();
    let mut keeper = MarkKeeper::new(Backing::open(&path, BOOT).unwrap(), dir.path().join("mark"));
    let cut = Served { size_bytes: SIZE - 4096, ..SERVED };
    keeper.keep(Duration::ZERO, cut).unwrap();
    let kept = MarkKeeper::found(&dir.path().join("mark")).unwrap();
    let killed = Ending::Killed { last_record: now() };
    let resized = Change::Resized { was: SIZE - 4096, is: SIZE, only_size: false };
    assert_eq!(judge(Some(&kept), &mark(&path, BOOT), killed), Some(resized.clone()));
    let stopped = keeper.finish(&SystemClock::default(), cut).unwrap();
    assert_eq!(judge(Some(&stopped), &mark(&path, BOOT), Ending::Clean), Some(resized));
    // What is less than a unit is never served, and no change.
    let odd = Served { size_bytes: SIZE - 4096, unit_bytes: 8192 };
    assert_eq!(keeper.now(odd).unwrap().size_bytes, SIZE);
}

/// A loop device, detached at the end.
struct LoopDevice(PathBuf);

impl LoopDevice {
    /// `None`, which is said, where this machine or user can't have one.
    fn over(file: &Path) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        match made {
            Ok(made) if made.status.success() => {
                Some(Self(String::from_utf8(made.stdout).unwrap().trim().into()))
            }
            _ => {
                eprintln!("skipped: no loop device can be made here");
                None
            }
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn a_device_that_somebody_changed_is_noticed_within_a_boot_and_in_doubt_beyond() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    File::create(&path).unwrap().set_len(SIZE).unwrap();
    let Some(device) = LoopDevice::over(&path) else { return };
    let device = &device.0;
    let was = mark(device, BOOT);
    assert_eq!(was.size_bytes, SIZE);
    let killed = Ending::Killed { last_record: now() };
    assert_eq!(judge(Some(&was), &mark(device, BOOT), Ending::Clean), None);
    assert_eq!(judge(Some(&was), &mark(device, BOOT), killed), None);
    let other_boot = judge(Some(&was), &mark(device, [2; 16]), Ending::Clean);
    assert!(matches!(other_boot, Some(Change::Doubt(_))), "{other_boot:?}");

    write(device, 4096);
    let is = mark(device, BOOT);
    assert_eq!(judge(Some(&was), &is, Ending::Clean), Some(Change::Edited));
    assert!(matches!(judge(Some(&was), &is, killed), Some(Change::Doubt(_))));

    grow(&path);
    assert!(Command::new("losetup").arg("--set-capacity").arg(device).status().unwrap().success());
    let resized = Some(Change::Resized { was: SIZE, is: 2 * SIZE, only_size: false });
    assert_eq!(judge(Some(&was), &mark(device, BOOT), Ending::Clean), resized);
}

#[test]
fn after_a_power_cut_a_file_may_differ_by_what_the_mark_is_old() {
    let (_dir, path, was) = file();
    let cut = |now: &BackingMark, stale| judge(Some(&was), now, Ending::PowerCut { stale });
    let now = mark(&path, [2; 16]);
    assert_eq!(cut(&now, STALE), None, "another boot is no change");
    let shifted = |seconds: i64| BackingMark {
        mtime_ns: now.mtime_ns + seconds * 1_000_000_000,
        ctime_ns: now.ctime_ns + seconds * 1_000_000_000,
        ..now.clone()
    };
    for (seconds, stale, wanted) in [
        (50, STALE, None),
        (70, STALE, Some(Change::Edited)),
        (-50, STALE, None),
        (-70, STALE, Some(Change::WentBack)),
        (2, STALE_IN_BOOT, None),
        (10, STALE_IN_BOOT, Some(Change::Edited)),
    ] {
        assert_eq!(cut(&shifted(seconds), stale), wanted, "{seconds} s");
    }
    assert!(judge(None, &now, Ending::PowerCut { stale: STALE }).is_some(), "no mark");
    replace(&path);
    assert_eq!(cut(&mark(&path, [2; 16]), STALE), Some(Change::Replaced));
}

#[test]
fn after_a_power_cut_a_device_that_nobody_has_written_yet_is_as_it_was() {
    let (_dir, _path, of_file) = file();
    let was = BackingMark {
        kind: tidemark_agent::state::BackingKind::Device,
        inode: 7,
        sectors_written: 1000,
        ..of_file
    };
    let now = |boot, sectors_written| BackingMark {
        boot_id: boot,
        inode: 9,
        device: 99,
        sectors_written,
        ..was.clone()
    };
    let cut = |now: &BackingMark| judge(Some(&was), now, Ending::PowerCut { stale: STALE });
    assert_eq!(cut(&now([2; 16], 0)), None);
    assert!(matches!(cut(&now([2; 16], 8)), Some(Change::Doubt(_))));
    assert_eq!(cut(&now(BOOT, 1000)), Some(Change::Replaced), "another disk of the same boot");
}
