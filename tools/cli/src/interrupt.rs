//! SIGINT and SIGTERM as something to wait for.

use std::cell::RefCell;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;

/// From its making on, SIGINT and SIGTERM don't end the program but are noticed here.
pub(crate) struct Interrupt {
    runtime: Runtime,
    signals: RefCell<[Signal; 2]>,
}

impl Interrupt {
    /// Catches the signals from now on.
    pub(crate) fn catch() -> Result<Self, Failure> {
        let failed = |e| Failure::new(format!("can't catch signals: {e}"));
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let signals = {
            let _inside = runtime.enter();
            [SignalKind::interrupt(), SignalKind::terminate()].map(signal)
        };
        let [first, second] = signals;
        let signals = RefCell::new([first.map_err(failed)?, second.map_err(failed)?]);
        Ok(Self { runtime, signals })
    }

    /// Waits for the given time; true at once when a signal came, also one from before.
    pub(crate) fn came_within(&self, wait: Duration) -> bool {
        let [first, second] = &mut *self.signals.borrow_mut();
        self.runtime.block_on(async {
            tokio::select! {
                _ = first.recv() => true,
                _ = second.recv() => true,
                () = tokio::time::sleep(wait) => false,
            }
        })
    }
}
