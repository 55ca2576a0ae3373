//! `tidemark volume seed`: an image becomes the beginning of a volume. The collector imports it as
//! a job; this follows it as a restore is followed.

use std::path::Path;

use tidemark_collector::control::api::{Job, JobState, NewSeed};
use tidemark_collector::control::client::Client;

use crate::console::{Console, Stop};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::{follow, render};

/// Starts the job and follows it to its end.
pub(crate) fn run(
    volume: &str,
    from: &Path,
    client: &Client,
    console: &mut Console<'_>,
) -> Result<(), Stop> {
    let image = std::path::absolute(from)
        .map_err(|e| Failure::new(format!("no absolute path of {}: {e}", from.display())))?;
    let interrupt = Interrupt::catch()?;
    let started = client.create_seed(volume, &NewSeed { image })?;
    let ended = follow::to_the_end(client, &interrupt, started)?;
    match ended.state {
        JobState::Done => console.show(&ended, text),
        _ => Err(follow::ended_early(&ended, "seeding", "the volume is as it was").into()),
    }
}

fn text(ended: &Job) -> String {
    format!(
        "Volume {} begins with {} ({} read). Its agent compares and sends what differs; see: \
         tidemark volume show {}\n",
        ended.volume,
        ended.target.display(),
        render::size(ended.result.map_or(0, |result| result.written_bytes)),
        ended.volume
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::tests::half_done;

    #[test]
    fn the_end_says_what_comes_next() {
        let shown = text(&half_done());
        assert!(shown.starts_with("Volume disk begins with /srv/back.img (0 B read)."), "{shown}");
        assert!(shown.contains("tidemark volume show disk"), "{shown}");
    }
}
