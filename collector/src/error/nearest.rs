//! The name that a person probably meant.

/// The candidate with the fewest edits from `wanted`, when it is near enough to be meant: at
/// most a third of its characters, and at least one, differ. Upper and lower case are the same.
pub fn nearest<'a>(wanted: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted_lower = wanted.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (distance(&wanted_lower, &candidate.to_lowercase()), candidate))
        .min_by_key(|(edits, _)| *edits)
        .filter(|(edits, candidate)| {
            let longer = wanted.chars().count().max(candidate.chars().count());
            *edits <= (longer / 3).max(1)
        })
        .map(|(_, candidate)| candidate)
}

/// Edit distance (insert, delete, replace one character) by the two-row table.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, from) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
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

    #[test]
    fn distances_count_single_edits() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
    }
}
