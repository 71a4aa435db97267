//! Sizes as people write them.
//!
//! Accepted: a whole number and one of `B K M G T` (also `KiB`, `KB`, lower case), powers of 1024.

use cowshed_format::base::size::human;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A size in bytes as an option takes it; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size(pub u64);

/// The reason why a text is not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// The text does not begin with a whole number, or its unit is unknown.
    #[error("write a whole number with K, M, G or T, as in 4096, 64K or 10G")]
    Form,
    /// A size of zero is not allowed.
    #[error("the size must be more than zero")]
    Zero,
    /// The size does not fit into 64 bits.
    #[error("the size is too large")]
    TooLarge,
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let digits_end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (digits, unit) = text.split_at(digits_end);
        if digits.is_empty() {
            return Err(SizeError::Form);
        }
        let shift = unit_shift(unit).ok_or(SizeError::Form)?;
        // All characters are digits, so only the range can be wrong.
        let number: u64 = digits.parse().map_err(|_| SizeError::TooLarge)?;
        if number == 0 {
            return Err(SizeError::Zero);
        }
        number
            .checked_mul(1 << shift)
            .map(Self)
            .ok_or(SizeError::TooLarge)
    }
}

fn unit_shift(unit: &str) -> Option<u32> {
    let lower = unit.to_ascii_lowercase();
    match lower.as_str() {
        "" | "b" => Some(0),
        "k" | "kb" | "kib" => Some(10),
        "m" | "mb" | "mib" => Some(20),
        "g" | "gb" | "gib" => Some(30),
        "t" | "tb" | "tib" => Some(40),
        _ => None,
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&human(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        for (text, bytes) in [
            ("4096", 4096),
            ("1b", 1),
            ("64K", 64 << 10),
            ("64k", 64 << 10),
            ("64KiB", 64 << 10),
            ("64kb", 64 << 10),
            ("3M", 3 << 20),
            ("10G", 10 << 30),
            ("10GiB", 10 << 30),
            ("1T", 1 << 40),
            ("16777215T", 16_777_215 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn junk_zero_and_overflow_are_refused_each_with_its_reason() {
        for text in [
            "", "K", "-1", "1.5G", "1 G", "0x10", "1GG", "1Gi", "1P", "١", "1K ",
        ] {
            assert_eq!(text.parse::<Size>(), Err(SizeError::Form), "{text:?}");
        }
        for text in ["0", "0K", "000T"] {
            assert_eq!(text.parse::<Size>(), Err(SizeError::Zero), "{text:?}");
        }
        for text in ["16777216T", "18446744073709551616", "99999999999999999999G"] {
            assert_eq!(text.parse::<Size>(), Err(SizeError::TooLarge), "{text:?}");
        }
    }
}
