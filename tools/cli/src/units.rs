//! Sizes and spans of time as people type them.

/// Units, largest first; a bare number is bytes.
const UNITS: [(&str, u64); 8] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("T", 1 << 40),
    ("G", 1 << 30),
    ("M", 1 << 20),
    ("K", 1 << 10),
];

/// Bytes of a size such as `10GiB`, `512M` or `4096`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size; write for instance 10GiB or 512MiB");
    let unit = UNITS.iter().find(|(name, _)| text.ends_with(name));
    let (number, unit) = unit.map_or((text, 1), |(name, unit)| {
        (text.strip_suffix(name).expect("it ends with it").trim_end(), *unit)
    });
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(unit).ok_or_else(wrong)
}

/// A span of time such as `30s`, `2h` or `1d12h`, in seconds; `0` is none.
pub(crate) fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || "write for instance 30s, 5m, 2h, 7d or 1d12h".to_owned();
    let (mut total, mut rest) = (0u64, text);
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let mut behind = rest[digits..].chars();
        let seconds = match behind.next() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3_600,
            Some('d') => 86_400,
            Some('w') => 7 * 86_400,
            _ => return Err(wrong()),
        };
        let part = number.checked_mul(seconds).ok_or_else(wrong)?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = behind.as_str();
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_1024() {
        for (text, wanted) in
            [("4096", 4096), ("1K", 1024), ("512MiB", 512 << 20), ("10 GiB", 10 << 30)]
        {
            assert_eq!(size(text), Ok(wanted));
        }
        for text in ["", "GiB", "1.5G", "-1", "1GB", "99999999TiB"] {
            size(text).expect_err(text);
        }
    }

    #[test]
    fn spans_of_time_have_units() {
        for (text, wanted) in [("0", 0), ("30s", 30), ("1d12h", 129_600), ("2w", 1_209_600)] {
            assert_eq!(seconds(text), Ok(wanted), "{text}");
        }
        for text in ["", "5", "s", "5y", "-1s", "99999999999999999999s", "18446744073709551615w"] {
            seconds(text).expect_err(text);
        }
    }
}
