//! Logs go to the standard error stream.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// Variable with the filter, as `info` or `tidemark_collector=debug`.
const FILTER_VARIABLE: &str = "TIDEMARK_LOG";

/// Begins to log. Colours only on a terminal; no time where the journal of the system adds one.
pub fn start() {
    let filter = EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| "info".into());
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        logs.without_time().finish().init();
    } else {
        logs.finish().init();
    }
}
