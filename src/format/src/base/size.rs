//! Sizes as tables and messages show them: three digits and a unit (`1.50 GiB`).

/// Returns `len_bytes` for people: exact below 1 KiB, three digits above.
#[must_use]
pub fn human(len_bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if len_bytes < 1024 {
        return format!("{len_bytes} B");
    }
    // In hundredths of a unit, rounded to the nearest, to avoid floats.
    let mut unit = 0;
    let mut hundredths = rounded_hundredths(len_bytes, 10);
    while hundredths >= 1024 * 100 && unit + 1 < UNITS.len() {
        unit += 1;
        hundredths = rounded_hundredths(len_bytes, 10 * (unit + 1));
    }
    let (whole, part) = (hundredths / 100, hundredths % 100);
    match whole {
        0..10 => format!("{whole}.{part:02} {}", UNITS[unit]),
        10..100 => format!("{whole}.{} {}", part / 10, UNITS[unit]),
        _ => format!("{whole} {}", UNITS[unit]),
    }
}

/// Returns `len_bytes` for people who compare it: in whole units if possible, otherwise in bytes.
#[must_use]
pub fn precise(len_bytes: u64) -> String {
    const UNITS: [(u32, &str); 4] = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = UNITS.iter().find(|(shift, _)| len_bytes >= 1 << shift);
    match unit {
        Some((shift, unit)) if len_bytes.trailing_zeros() >= *shift => {
            format!("{} {unit}", len_bytes >> shift)
        }
        Some(_) => format!("{} ({len_bytes} bytes)", human(len_bytes)),
        None => format!("{len_bytes} bytes"),
    }
}

fn rounded_hundredths(len_bytes: u64, shift: usize) -> u64 {
    let scaled = (u128::from(len_bytes) * 100 + (1 << (shift - 1))) >> shift;
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_to_compare_with_are_whole_or_have_their_bytes() {
        for (bytes, text) in [
            (1, "1 bytes"),
            (2 << 20, "2 MiB"),
            ((2 << 20) + 1, "2.00 MiB (2097153 bytes)"),
            (512 << 30, "512 GiB"),
            (3 << 39, "1.50 TiB (1649267441664 bytes)"),
        ] {
            assert_eq!(precise(bytes), text);
        }
    }

    #[test]
    fn sizes_are_shown_with_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (10 << 10, "10.0 KiB"),
            (100 << 10, "100 KiB"),
            ((1 << 20) - 1, "1.00 MiB"),
            (1 << 20, "1.00 MiB"),
            (10 << 30, "10.0 GiB"),
            (1 << 40, "1.00 TiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(human(bytes), text, "{bytes}");
        }
    }
}
