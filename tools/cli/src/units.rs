//! Sizes as people type them.

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
}
