//! Modules of the kernel that a way to attach needs.

use std::process::{Command, Stdio};

/// Has the kernel load a module. Whether that worked shows only in whether the way is there then:
/// a machine without modprobe, or an agent without the right to load modules, may have it already.
pub(super) fn load(name: &str) {
    let mut modprobe = Command::new("modprobe");
    modprobe.args(["--quiet", name]).stdin(Stdio::null()).stdout(Stdio::null());
    match modprobe.stderr(Stdio::null()).status() {
        Ok(status) if status.success() => tracing::info!("loaded the kernel module {name}"),
        Ok(_) => {}
        Err(error) => tracing::debug!("modprobe can't be run: {error}"),
    }
}
