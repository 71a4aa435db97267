//! Names of volumes, images and containers.

use super::error::Error;
use std::fmt;

/// A name: 1 to 255 of `[A-Za-z0-9._:/@-]`, the first one a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<str>);

impl Name {
    /// Maximum length of a name, in bytes.
    pub const MAX_BYTES: usize = 255;

    /// Checks `text` and returns it as a name.
    ///
    /// # Errors
    /// `InvalidName` when the text is empty, too long, or has a character that is not allowed.
    pub fn new(text: &str) -> Result<Self, Error> {
        let allowed = |c: u8| c.is_ascii_alphanumeric() || b"._:/@-".contains(&c);
        let starts_well = text
            .bytes()
            .next()
            .is_some_and(|c| c.is_ascii_alphanumeric());
        if starts_well && text.len() <= Self::MAX_BYTES && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(Error::InvalidName)
        }
    }

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_documented_alphabet() {
        for good in ["a", "0", "debian:12", "layer/sha256:00ff", "x@y.z-1_"] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }
        let long = "a".repeat(256);
        for bad in ["", "-a", ".a", "a b", "a\0", "_a", "a%", "ä", long.as_str()] {
            assert!(Name::new(bad).is_err(), "{bad:?} was taken");
        }
    }
}
