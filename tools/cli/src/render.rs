//! Sizes, ages, times and tables as people read them.

use comfy_table::{CellAlignment, Table, presets};
use jiff::Timestamp;

/// Where a table's column stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    /// Words: on the left.
    Text(&'static str),
    /// Numbers: on the right.
    Number(&'static str),
}

/// A table without lines; one row for a line, so that `grep` and `awk` can use it.
pub(crate) fn table(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(columns.iter().map(|column| match *column {
        Column::Text(name) | Column::Number(name) => name,
    }));
    for row in rows {
        table.add_row(row);
    }
    for (index, column) in columns.iter().enumerate() {
        let shown = table.column_mut(index).expect("the header has made every column");
        shown.set_padding((0, 2));
        if matches!(column, Column::Number(_)) {
            shown.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt() + "\n"
}

/// Names and values in two columns; values that are `None` are left out.
pub(crate) fn facts(facts: impl IntoIterator<Item = (&'static str, Option<String>)>) -> String {
    let facts: Vec<_> =
        facts.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    facts.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

/// A size in the largest binary unit that keeps it at 1 or above.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Tenths in whole numbers: a float would round 1023.99 MiB up to 1024.0.
    let unit = (bytes.ilog2() / 10) as usize;
    let tenths = (u128::from(bytes) * 10) >> (10 * unit);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit - 1])
}

/// A span of time in its two largest units.
pub(crate) fn duration(seconds: f64) -> String {
    if seconds < 10.0 {
        return format!("{:.1} s", seconds.max(0.0));
    }
    let whole = jiff::SignedDuration::try_from_secs_f64(seconds.round())
        .unwrap_or(jiff::SignedDuration::MAX)
        .as_secs();
    let (days, hours, minutes, seconds) =
        (whole / 86_400, whole / 3_600 % 24, whole / 60 % 60, whole % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {seconds} s"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// How long before `now` something happened.
pub(crate) fn age(time: Timestamp, now: Timestamp) -> String {
    format!("{} ago", duration(now.duration_since(time).as_secs_f64()))
}

/// A time that can be given back as AT: RFC 3339 with everything that is known.
pub(crate) fn time(time: Timestamp) -> String {
    time.to_string()
}

/// What stands where there is nothing to say.
pub(crate) const NOTHING: &str = "-";

/// A value or a dash.
pub(crate) fn or_dash<T>(value: Option<T>, render: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| NOTHING.to_owned(), render)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_never_round_up_to_the_next_unit() {
        for (bytes, wanted) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
            (512 << 20, "512.0 MiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(size(bytes), wanted);
        }
    }

    #[test]
    fn durations_have_two_units() {
        for (seconds, wanted) in [
            (-1.0, "0.0 s"),
            (0.25, "0.2 s"),
            (59.4, "59 s"),
            (59.6, "1 min 0 s"),
            (3_725.0, "1 h 2 min"),
            (200_000.0, "2 d 7 h"),
        ] {
            assert_eq!(duration(seconds), wanted, "{seconds}");
        }
    }

    #[test]
    fn tables_have_one_line_for_each_row_and_no_trailing_blanks() {
        let columns = [Column::Text("NAME"), Column::Number("SIZE")];
        let shown = table(&columns, [vec!["a longer name".into(), size(1 << 30)]]);
        assert_eq!(shown, "NAME              SIZE\na longer name  1.0 GiB\n");
        assert_eq!(table(&columns, []), "NAME  SIZE\n");
    }

    #[test]
    fn facts_leave_out_what_is_unknown() {
        let shown = facts([("name", Some("disk".into())), ("problem", None), ("id", None)]);
        assert_eq!(shown, "name  disk\n");
    }
}
