//! Asking a person before something is lost.

use std::io::{BufRead, IsTerminal, Write};

use crate::failure::Failure;

/// Whether a person sits there who can answer.
fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks on the terminal; only `y` and `yes` agree. `None` where nobody can answer.
pub(crate) fn agrees(question: &str) -> Result<Option<bool>, Failure> {
    if !can_ask() {
        return Ok(None);
    }
    let failed = |e| Failure::new(format!("can't ask: {e}"));
    let mut terminal = std::io::stderr();
    write!(terminal, "{question} [y/N] ").and_then(|()| terminal.flush()).map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    Ok(Some(is_yes(&answer)))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_agrees() {
        assert!(is_yes("y\n") && is_yes(" YES \n"));
        assert!(!is_yes("") && !is_yes("\n") && !is_yes("yep\n") && !is_yes("no\n"));
    }
}
