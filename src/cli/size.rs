//! Sizes as people write and read them.

/// The binary units, largest first.
const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

/// Reads a size in bytes: a whole number, alone or with KiB, MiB, GiB or TiB. The B may be left
/// out, as Kubernetes does. Decimal units are refused rather than taken for binary ones.
pub(crate) fn parse(text: &str) -> Result<i64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text[digits.len()..].trim_start();
    let shift = match unit {
        "" | "B" => 0,
        _ => UNITS
            .iter()
            .find(|(name, _)| *name == unit || name.trim_end_matches('B') == unit)
            .map(|(_, shift)| *shift)
            .ok_or_else(|| {
                format!("{unit:?} is no unit of size: write bytes, or KiB, MiB, GiB or TiB")
            })?,
    };
    let number: i64 =
        digits.parse().map_err(|_| "a size starts with a whole number, as in 20GiB".to_owned())?;
    number
        .checked_mul(1 << shift)
        .filter(|bytes| *bytes >= 0)
        .ok_or_else(|| "a size is between 0 and 2^63-1 bytes".to_owned())
}

/// [`show`] of a size that is never negative.
pub(crate) fn show_unsigned(bytes: u64) -> String {
    i64::try_from(bytes).map_or_else(|_| bytes.to_string(), show)
}

/// Writes a size: exactly in the largest unit that divides it, else in bytes with an approximation
/// beside it.
pub(crate) fn show(bytes: i64) -> String {
    let Some((unit, shift)) = UNITS.into_iter().find(|(_, shift)| bytes >> shift != 0) else {
        return format!("{bytes}");
    };
    if bytes < 0 {
        return format!("{bytes}");
    }
    let (whole, rest) = (bytes >> shift, bytes & ((1 << shift) - 1));
    if rest == 0 {
        return format!("{whole}{unit}");
    }
    let tenths = (rest >> (shift - 10)) * 10 / 1024;
    format!("{bytes} (about {whole}.{tenths}{unit})")
}

/// A size for a column of a table: rounded to a tenth of its largest unit.
pub(crate) fn short(bytes: u64) -> String {
    match UNITS.into_iter().find(|(_, shift)| bytes >> shift != 0) {
        None => format!("{bytes}B"),
        Some((unit, shift)) if bytes.trailing_zeros() >= shift => {
            format!("{}{unit}", bytes >> shift)
        }
        Some((unit, shift)) => {
            let tenths = ((bytes >> (shift - 10)) * 10 + 512) >> 10;
            format!("{}.{}{unit}", tenths / 10, tenths % 10)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_binary_units() {
        let cases = [
            ("0", 0),
            ("123", 123),
            ("4096B", 4096),
            ("1KiB", 1 << 10),
            ("3MiB", 3 << 20),
            ("20GiB", 20 << 30),
            ("20 GiB", 20 << 30),
            ("20Gi", 20 << 30),
            ("2TiB", 2 << 40),
            ("9223372036854775807", i64::MAX),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_the_reason() {
        let cases = [
            ("", "whole number"),
            ("GiB", "whole number"),
            ("1.5GiB", "whole number"),
            ("-1", "between 0"),
            ("20GB", "no unit of size"),
            ("20gib", "no unit of size"),
            ("1 GiB x", "no unit of size"),
            ("99999999999999999999", "whole number"),
            ("8388608TiB", "between 0"),
        ];
        for (text, reason) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_in_tables_are_short() {
        let cases = [
            (0, "0B"),
            (1000, "1000B"),
            (4 << 20, "4MiB"),
            (1536 << 20, "1.5GiB"),
            ((1 << 40) + 1, "1.0TiB"),
            ((2 << 30) - 1, "2.0GiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(short(bytes), text);
        }
    }

    #[test]
    fn sizes_are_written_exactly_or_with_their_bytes() {
        let cases = [
            (0, "0"),
            (1023, "1023"),
            (1024, "1KiB"),
            (20 << 30, "20GiB"),
            (1536 << 20, "1610612736 (about 1.5GiB)"),
            ((1 << 40) + 1, "1099511627777 (about 1.0TiB)"),
            (-1, "-1"),
        ];
        for (bytes, text) in cases {
            assert_eq!(show(bytes), text);
        }
    }
}
