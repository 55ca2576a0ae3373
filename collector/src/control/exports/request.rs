//! What a request for an export means, or why it can't mean anything.

use crate::catalog::Front;
use crate::config::Address;
use crate::control::api;
use crate::error::{Failure, Result};

/// Smallest space of a clone: one block.
const SPACE_BYTES_MIN: u64 = 4096;

/// See the module.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) front: Front,
    /// Empty for a file.
    pub(super) listen: String,
    /// `None` for a state that is only read.
    pub(super) space_bytes: Option<u64>,
}

impl Wanted {
    /// Checks a request; `space_bytes_default` is for a clone whose request names no space.
    pub(super) fn check(new: &api::NewExport, space_bytes_default: u64) -> Result<Self> {
        let (front, listen) = match (&new.listen, new.fuse) {
            (Some(listen), false) => (Front::Nbd, address(listen)?),
            (None, true) => (Front::File, String::new()),
            (Some(_), true) => {
                return Err(Failure::invalid("listen and fuse exclude each other"));
            }
            (None, false) => {
                return Err(Failure::invalid("neither listen nor fuse says where to serve it"));
            }
        };
        let space_bytes = match (new.writable, new.space_bytes) {
            (false, Some(_)) => {
                return Err(Failure::invalid("a read-only export needs no space")
                    .with_hint("ask for a writable one, or leave space_bytes out"));
            }
            (true, Some(space)) if space < SPACE_BYTES_MIN => {
                return Err(Failure::invalid(format!(
                    "a space of {space} bytes holds nothing, at least {SPACE_BYTES_MIN} are needed"
                )));
            }
            (true, space) => Some(space.unwrap_or(space_bytes_default)),
            (false, None) => None,
        };
        Ok(Self { front, listen, space_bytes })
    }
}

fn address(text: &str) -> Result<String> {
    let listen: Address =
        text.parse().map_err(|error| Failure::invalid(format!("listen: {error}")))?;
    if matches!(&listen, Address::Unix(path) if !path.is_absolute()) {
        return Err(Failure::invalid(format!("listen: {listen} needs an absolute path")));
    }
    Ok(listen.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn new(listen: Option<&str>, fuse: bool, writable: bool, space: Option<u64>) -> api::NewExport {
        api::NewExport {
            listen: listen.map(str::to_owned),
            fuse,
            writable,
            space_bytes: space,
            ..api::NewExport::default()
        }
    }

    #[test]
    fn a_request_names_one_place_and_space_only_for_a_clone() {
        let unix = Some("unix:/x");
        let wanted = Wanted::check(&new(unix, false, true, None), 7 << 20).unwrap();
        assert_eq!((wanted.front, wanted.space_bytes), (Front::Nbd, Some(7 << 20)));
        let wanted = Wanted::check(&new(None, true, false, None), 1).unwrap();
        assert_eq!((wanted.front, wanted.space_bytes), (Front::File, None));
        for wrong in [
            new(None, false, false, None),
            new(unix, true, false, None),
            new(unix, false, false, Some(1 << 20)),
            new(unix, false, true, Some(100)),
            new(Some("unix:relative"), false, false, None),
            new(Some("nonsense"), false, false, None),
        ] {
            Wanted::check(&wrong, 1 << 20).unwrap_err();
        }
    }
}
