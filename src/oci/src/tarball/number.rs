//! Numbers and times as tar headers and PAX records write them.

use super::Time;

const NANOSECONDS: u32 = 1_000_000_000;

/// Returns the number in a header field: octal digits, or base-256 if the first bit is set. An
/// empty field is 0. `None` if it is not a number or does not fit.
pub(super) fn field(bytes: &[u8]) -> Option<i64> {
    let (first, rest) = bytes.split_first()?;
    if first & 0x80 == 0 {
        return octal(bytes);
    }
    // Bit 6 is the sign of a two's complement number that fills the field.
    let start = if first & 0x40 == 0 {
        i128::from(first & 0x3f)
    } else {
        i128::from(first | 0x3f) - 256
    };
    let mut value = if first & 0x40 == 0 {
        start
    } else {
        i128::from(*first) - 256
    };
    for byte in rest {
        value = value.checked_mul(256)?.checked_add(i128::from(*byte))?;
    }
    i64::try_from(value).ok()
}

/// As [`field`], for values that cannot be negative.
pub(super) fn unsigned(bytes: &[u8]) -> Option<u64> {
    u64::try_from(field(bytes)?).ok()
}

fn octal(bytes: &[u8]) -> Option<i64> {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    let text = bytes[..end].trim_ascii();
    let mut value = 0_i64;
    for digit in text {
        if !(b'0'..=b'7').contains(digit) {
            return None;
        }
        value = value.checked_mul(8)?.checked_add(i64::from(digit - b'0'))?;
    }
    Some(value)
}

/// Returns the decimal number that `text` consists of.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Parses a PAX time: decimal seconds, possibly negative, possibly with a fraction, which is
/// rounded down to nanoseconds as in GNU tar.
pub(super) fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let dot = text.iter().position(|byte| *byte == b'.');
    let (whole, fraction) = match dot {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &[][..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    let mut nanoseconds = 0;
    let mut beyond = false;
    for (place, digit) in fraction.iter().enumerate() {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        match u32::try_from(place)
            .ok()
            .and_then(|place| 8_u32.checked_sub(place))
        {
            Some(power) => nanoseconds += u32::from(digit) * 10_u32.pow(power),
            None => beyond |= digit != 0,
        }
    }
    if !negative {
        return Some(Time {
            seconds,
            nanoseconds,
        });
    }
    // Rounded towards the past, as positive times are.
    let nanoseconds = nanoseconds + u32::from(beyond);
    if nanoseconds == 0 {
        Some(Time {
            seconds: -seconds,
            nanoseconds,
        })
    } else {
        Some(Time {
            seconds: -seconds - 1,
            nanoseconds: NANOSECONDS - nanoseconds,
        })
    }
}

/// Formats a time as in a PAX record: exact, in the shortest form.
pub(crate) fn format_time(time: Time) -> String {
    let (sign, seconds, nanoseconds) = if time.seconds < 0 && time.nanoseconds > 0 {
        (
            "-",
            (time.seconds + 1).unsigned_abs(),
            NANOSECONDS - time.nanoseconds,
        )
    } else {
        (
            if time.seconds < 0 { "-" } else { "" },
            time.seconds.unsigned_abs(),
            time.nanoseconds,
        )
    };
    if nanoseconds == 0 {
        return format!("{sign}{seconds}");
    }
    let fraction = format!("{nanoseconds:09}");
    format!("{sign}{seconds}.{}", fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_fields_are_octal_or_base_256() {
        assert_eq!(field(b"0000644\0"), Some(0o644));
        assert_eq!(field(b"   17 \0\0"), Some(0o17));
        assert_eq!(field(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(field(b"0000648\0"), None);
        assert_eq!(field(b"-0000001"), None);
        assert_eq!(field(b"\x80\0\0\0\x7f\xff\xff\xff"), Some(0x7fff_ffff));
        assert_eq!(field(&[0xff; 12]), Some(-1));
        assert_eq!(
            field(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00"),
            Some(-256)
        );
        assert_eq!(field(b"\x80\x01\0\0\0\0\0\0\0\0\0\0"), None);
        assert_eq!(unsigned(&[0xff; 12]), None);
    }

    #[test]
    fn times_are_exact_on_both_sides_of_1970() {
        for text in [
            "0",
            "-1",
            "1.5",
            "-1.5",
            "-0.000000001",
            "1700000000.123456789",
        ] {
            assert_eq!(format_time(time(text.as_bytes()).unwrap()), text);
        }
        assert_eq!(
            time(b"-1.5"),
            Some(Time {
                seconds: -2,
                nanoseconds: 500_000_000
            })
        );
        assert_eq!(
            time(b"1.9999999999"),
            Some(Time {
                seconds: 1,
                nanoseconds: 999_999_999
            })
        );
        for wrong in ["", ".", "1.x", "x", "--1", "99999999999999999999"] {
            assert_eq!(time(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
