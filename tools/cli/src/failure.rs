//! Why a command failed, in words for a person, and the exit status that goes with it.

use std::fmt;

use tidemark_collector::control::api::{ErrorInfo, ErrorKind};
use tidemark_collector::control::client::ClientError;

/// A command's failure: what happened, and what to do about it where that is known.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    hint: Option<String>,
    usage: bool,
}

impl Failure {
    /// A failure without a hint.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, usage: false }
    }

    /// Says what to do, in addition to what is said already.
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        self.hint = Some(match self.hint {
            Some(first) => format!("{first}\n  {hint}"),
            None => hint,
        });
        self
    }

    /// 2 when the request made no sense, 1 otherwise.
    pub(crate) fn exit_status(&self) -> u8 {
        if self.usage { 2 } else { 1 }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tidemark: {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  {hint}"),
            None => Ok(()),
        }
    }
}

impl From<ErrorInfo> for Failure {
    fn from(error: ErrorInfo) -> Self {
        Self { message: error.message, hint: error.hint, usage: error.kind == ErrorKind::Invalid }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let hint = match error {
            ClientError::Refused(info) => return info.into(),
            ClientError::Connect { ref source, .. } => Some(connect_hint(source.kind())),
            ClientError::Timeout { .. } => Some("Look at the collector's log.".to_owned()),
            ClientError::Protocol { .. } => {
                Some("Are tidemark and the collector of the same version?".to_owned())
            }
            ClientError::Setup(_) => None,
        };
        Self { message: error.to_string(), hint, usage: false }
    }
}

fn connect_hint(kind: std::io::ErrorKind) -> String {
    match kind {
        std::io::ErrorKind::PermissionDenied => {
            "The socket is the administrator's: run this as root."
        }
        _ => {
            "Is tidemark-collector running? Name its control socket with --socket or \
             TIDEMARK_SOCKET if it is elsewhere."
        }
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_collector_is_named_by_its_socket() {
        let failure = Failure::from(ClientError::Connect {
            path: "/run/nobody.sock".into(),
            source: std::io::ErrorKind::NotFound.into(),
        });
        let text = failure.to_string();
        assert!(text.contains("/run/nobody.sock") && text.contains("--socket"), "{text}");
        assert_eq!(failure.exit_status(), 1);
    }

    #[test]
    fn a_senseless_request_is_usage_and_a_missing_thing_is_not() {
        let refuse = |kind| {
            Failure::from(ClientError::Refused(ErrorInfo {
                kind,
                message: "no state at '5 parsecs'".into(),
                hint: Some("try 5m".into()),
            }))
        };
        assert_eq!(refuse(ErrorKind::Invalid).exit_status(), 2);
        assert_eq!(refuse(ErrorKind::NotFound).exit_status(), 1);
        assert_eq!(
            refuse(ErrorKind::NotFound).to_string(),
            "tidemark: no state at '5 parsecs'\n  try 5m"
        );
    }
}
