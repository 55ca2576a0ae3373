//! Where answers go: standard output, as JSON for programs or as text for people.

use std::io::{self, Write};

use jiff::Timestamp;
use serde::Serialize;

/// Why a command ended early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// It failed.
    Failed(crate::failure::Failure),
    /// The reader of our output has gone; nobody wants the rest.
    ReaderGone,
}

impl<E: Into<crate::failure::Failure>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Standard output and how to write to it.
pub(crate) struct Console<'a> {
    out: Box<dyn Write + 'a>,
    json: bool,
    /// The moment from which ages are told.
    pub(crate) now: Timestamp,
}

impl<'a> Console<'a> {
    /// A console that writes to `out`.
    pub(crate) fn new(out: impl Write + 'a, json: bool, now: Timestamp) -> Self {
        Self { out: Box::new(out), json, now }
    }

    /// True when answers are for programs.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Shows an answer: itself as JSON, or the text that `render` makes of it.
    pub(crate) fn show<T: Serialize + ?Sized>(
        &mut self,
        answer: &T,
        render: impl FnOnce(&T) -> String,
    ) -> Result<(), Stop> {
        let text = if self.json {
            serde_json::to_string_pretty(answer)
                .map_err(|e| crate::failure::Failure::new(format!("no JSON of the answer: {e}")))?
        } else {
            render(answer)
        };
        let text = text.trim_end_matches('\n');
        writeln!(self.out, "{text}").and_then(|()| self.out.flush()).map_err(write_failed)
    }
}

fn write_failed(error: io::Error) -> Stop {
    if error.kind() == io::ErrorKind::BrokenPipe {
        Stop::ReaderGone
    } else {
        crate::failure::Failure::new(format!("can't write to standard output: {error}")).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(io::ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn json_or_text() {
        for (json, wanted) in [(true, "[\n  1\n]\n"), (false, "one\n")] {
            let mut bytes = Vec::new();
            Console::new(&mut bytes, json, Timestamp::UNIX_EPOCH)
                .show(&[1], |_| "one\n".to_owned())
                .expect("memory takes everything");
            assert_eq!(String::from_utf8_lossy(&bytes), wanted);
        }
    }

    #[test]
    fn a_gone_reader_is_no_failure_and_a_full_disk_is_one() {
        let show = |kind| {
            Console::new(Broken(kind), true, Timestamp::UNIX_EPOCH).show(&1, |_| String::new())
        };
        assert!(matches!(show(io::ErrorKind::BrokenPipe), Err(Stop::ReaderGone)));
        assert!(matches!(show(io::ErrorKind::StorageFull), Err(Stop::Failed(_))));
    }
}
