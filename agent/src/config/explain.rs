//! What is said of a line that is not understood.

use std::path::Path;

use super::ConfigError;

/// Names file, line and, for an unknown key of any table, the nearest right one.
pub(super) fn explain(error: &toml::de::Error, text: &str, path: &Path) -> ConfigError {
    let start = error.span().map_or(0, |span| span.start);
    let line = text.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1;
    let message = error.message();
    // An unknown key's message quotes that key, then the right ones.
    let mut quoted = message.split('`').skip(1).step_by(2);
    let detail = match quoted.next() {
        Some(key) if message.starts_with("unknown field") => {
            let keys: Vec<&str> = quoted.collect();
            let advice = match nearest(key, &keys) {
                Some(right) => format!("did you mean {right}?"),
                None => format!("the keys here are {}", keys.join(", ")),
            };
            format!("there is no key {key:?}; {advice}")
        }
        _ => message.to_owned(),
    };
    ConfigError::Line { path: path.into(), line, detail }
}

/// The key that was probably meant: the one with the fewest edits, at most a third of it.
pub(super) fn nearest<'a>(typed: &str, keys: &[&'a str]) -> Option<&'a str> {
    let edits = |key: &&str| strsim::levenshtein(typed, key);
    let best = keys.iter().copied().min_by_key(edits)?;
    (edits(&best) <= (typed.len().max(best.len()) / 3).max(1)).then_some(best)
}
