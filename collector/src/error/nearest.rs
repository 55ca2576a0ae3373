//! The name that a person probably meant.

use strsim::levenshtein;

/// The candidate with the fewest edits from `wanted`, when it is near enough to be meant: at
/// most a third of its characters, and at least one, differ. Upper and lower case are the same.
pub fn nearest<'a>(wanted: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted_lower = wanted.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (levenshtein(&wanted_lower, &candidate.to_lowercase()), candidate))
        .min_by_key(|(edits, _)| *edits)
        .filter(|(edits, candidate)| {
            let longer = wanted.chars().count().max(candidate.chars().count());
            *edits <= (longer / 3).max(1)
        })
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_that_was_meant_is_found() {
        let keys = ["data_dir", "listen", "control_socket"];
        assert_eq!(nearest("datadir", keys), Some("data_dir"));
        assert_eq!(nearest("Listne", keys), Some("listen"));
        assert_eq!(nearest("retention", keys), None);
        assert_eq!(nearest("x", []), None);
    }
}
