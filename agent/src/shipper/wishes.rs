//! What people want of a volume, as the collector hands it on, and what it is told of that.
//!
//! In: an instruction. It is done at once, or begun; what has to outlive the process is in the
//! volume's state file first. Out: how the stream stands, that a wish was obeyed, behind the
//! standing that it has changed, and how the verification stands that was wanted last.

use std::io::Write;
use std::time::Duration;

use tidemark_wire::frame::FrameKind;
use tidemark_wire::instruct::{Instruct, InstructId, InstructKind, Obeyed};
use tidemark_wire::session::{SIGN_OF_LIFE_EVERY, Standing};

use super::ShipperParts;
use super::incoming::StreamError;
use super::stream::say;
use crate::capture::verification::VerifyWish;

/// How often the collector is told figures that change all the time, and how the stream stands also
/// when nothing has changed: that tells an agent that is there from a connection that is dead.
const FIGURES_EVERY: Duration = SIGN_OF_LIFE_EVERY;

/// What one session owes the collector.
#[derive(Default)]
pub(super) struct Wishes {
    /// What it was told of the stream, and when that was.
    standing: Option<(Standing, Duration)>,
    obeyed: Vec<InstructId>,
    /// The report of a verification that was sent last: its turn, and when the next one is due.
    verified: Option<(u64, Duration)>,
}

impl Wishes {
    /// Does what a person wants.
    pub(super) fn obey(&mut self, parts: &ShipperParts, wanted: Instruct) {
        let capture = &parts.capture;
        let keep = |paused| parts.state.update(|state| state.paused = paused);
        match wanted.what {
            InstructKind::Pause => match keep(true) {
                Ok(()) => capture.pause(),
                Err(error) => {
                    tracing::error!(volume = capture.name(), "protection is not paused: {error}");
                }
            },
            InstructKind::Resume => match keep(false) {
                Ok(()) => capture.resume(),
                Err(error) => {
                    tracing::error!(volume = capture.name(), "protection stays paused: {error}");
                }
            },
            InstructKind::Compare => capture.ask_whole_copy(),
            InstructKind::CompareMarked => capture.ask_copy(),
            InstructKind::Verify => {
                capture.verify(VerifyWish { id: wanted.id, from_bytes: wanted.from_bytes });
            }
            InstructKind::StopVerify => capture.stop_verify(),
        }
        self.obeyed.push(wanted.id);
    }

    /// Says what there is to say.
    pub(super) fn say(
        &mut self,
        parts: &ShipperParts,
        writer: &mut dyn Write,
    ) -> Result<(), StreamError> {
        let now = parts.clock.monotonic();
        let standing = parts.capture.standing();
        let is_said = |(told, at): (Standing, Duration)| {
            let figures = (standing.differing_bytes, told.differing_bytes);
            let is_late = now >= at + FIGURES_EVERY;
            let turns = (figures.0 == 0) != (figures.1 == 0);
            let same = Standing { differing_bytes: told.differing_bytes, ..standing } == told;
            same && !turns && !is_late
        };
        if !self.standing.is_some_and(is_said) {
            self.standing = Some((standing, now));
            say(writer, FrameKind::Standing, |body| standing.encode(body))?;
        }
        for id in self.obeyed.drain(..) {
            say(writer, FrameKind::Obeyed, |body| Obeyed { id }.encode(body))?;
        }
        let Some((turn, report)) = parts.capture.verifications().newest() else { return Ok(()) };
        let is_said =
            |(said, due): (u64, Duration)| said == turn && (now < due || report.is_over());
        if self.verified.is_some_and(is_said) {
            return Ok(());
        }
        self.verified = Some((turn, now + FIGURES_EVERY));
        say(writer, FrameKind::Verified, |body| report.encode(body))
    }
}
