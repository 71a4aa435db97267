//! Sizes as options take them.

pub(crate) use cowshed_daemon::size::Size;
use cowshed_daemon::size::SizeError;
use std::str::FromStr;

/// A smaller number of bytes is probably one whose unit was forgotten.
const PLAIN_BYTES_MIN: u64 = 1 << 20;

/// A new size for an existing object: a small number needs a unit, because a forgotten unit would
/// cost data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NewSize(pub u64);

/// The reason why a text is not a new size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NewSizeError {
    /// It is not a size.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// It is small and has no unit.
    #[error("{0} without a unit is {0} bytes; use {0}G or {0}M, or {0}B for bytes")]
    NoUnit(u64),
}

impl FromStr for NewSize {
    type Err = NewSizeError;

    fn from_str(text: &str) -> Result<Self, NewSizeError> {
        let Size(bytes) = text.parse()?;
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
        if is_plain && bytes < PLAIN_BYTES_MIN {
            return Err(NewSizeError::NoUnit(bytes));
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_number_without_a_unit_is_no_new_size() {
        assert_eq!("20".parse::<NewSize>(), Err(NewSizeError::NoUnit(20)));
        assert_eq!(
            "1048575".parse::<NewSize>(),
            Err(NewSizeError::NoUnit(1_048_575))
        );
        assert_eq!("1048576".parse(), Ok(NewSize(1 << 20)));
        assert_eq!("4096B".parse(), Ok(NewSize(4096)));
        assert_eq!("20G".parse(), Ok(NewSize(20 << 30)));
        assert_eq!(
            "0".parse::<NewSize>(),
            Err(NewSizeError::Size(SizeError::Zero))
        );
    }
}
