//! Who has a file open: for a message, so what can't be looked at is left out.

use std::fs;
use std::path::Path;

/// Users that are named.
const NAMED_MAX: usize = 8;

/// Loop devices over the file, then processes that have it open.
pub(super) fn of_file(path: &Path) -> Vec<String> {
    let mut users = loop_devices(path);
    users.extend(processes(path));
    users.truncate(NAMED_MAX);
    users
}

fn loop_devices(path: &Path) -> Vec<String> {
    let Ok(devices) = fs::read_dir("/sys/block") else { return Vec::new() };
    let mut found = Vec::new();
    for device in devices.flatten() {
        let backing = fs::read_to_string(device.path().join("loop/backing_file"));
        if backing.is_ok_and(|backing| Path::new(backing.trim_end_matches('\n')) == path) {
            found.push(format!("/dev/{}", device.file_name().to_string_lossy()));
        }
    }
    found.sort_unstable();
    found
}

fn processes(path: &Path) -> Vec<String> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found = Vec::new();
    for process in processes.flatten() {
        let name = process.file_name().to_string_lossy().into_owned();
        if !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let Ok(open) = fs::read_dir(process.path().join("fd")) else { continue };
        if open.flatten().any(|one| fs::read_link(one.path()).is_ok_and(|link| link == path)) {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("process {name} ({})", command.trim_end()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_has_the_file_open_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let users = of_file(file.path());
        let us = format!("process {} (", std::process::id());
        assert!(users.len() == 1 && users[0].starts_with(&us), "{users:?}");
        let (_, path) = file.keep().expect("it stays");
        let users = of_file(&path);
        fs::remove_file(&path).expect("it is removed");
        assert_eq!(users, Vec::<String>::new());
    }
}
