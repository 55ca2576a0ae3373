//! What a volume does by itself: its write-intent log is swept.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tidemark_block::engine::first_of;
use tidemark_block::store::Store;
use tidemark_wire::Seq;

use super::Volume;
use crate::clock::Timer;
use crate::intent_log::sweep::Swept;

/// Sweeps the write-intent log until the volume is taken down.
pub async fn run<S: Store, T: Timer>(volume: Arc<Volume<S>>, timer: T) {
    let volume = volume.as_ref();
    volume.intent().run(&Sweeping { volume, timer }).await;
}

struct Sweeping<'a, S, T> {
    volume: &'a Volume<S>,
    timer: T,
}

impl<S: Store, T: Timer> Swept for Sweeping<'_, S, T> {
    fn newest(&self) -> Seq {
        Seq(self.volume.ring().next_seq().0.saturating_sub(1))
    }

    fn released(&self) -> Option<Seq> {
        let ring = self.volume.ring();
        // A ring that is empty after this has released all of it, also what was void.
        let newest = self.newest();
        let released = if ring.is_empty() { newest } else { ring.released_seq() };
        self.volume.capture().phases().is_welcomed().then_some(released)
    }

    async fn flush(&self) -> io::Result<()> {
        self.volume.sync_for_itself().await
    }

    async fn pause(&self, duration: Duration) -> bool {
        let phases = self.volume.capture().phases();
        first_of(phases.closed(), self.timer.sleep(duration)).await;
        !phases.is_closed()
    }
}
