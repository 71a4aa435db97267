//! The token of an interrupted receive: which stream, and where it goes on. As text it is one word
//! of hexadecimal digits with a checksum.

use crate::error::Error;
use crate::identity::Identity;
use crate::record::{put_base, take_base};
use cowshed_format::base::checksum::crc32;
use cowshed_format::base::codec::{Reader, Writer};
use std::fmt;
use std::str::FromStr;

const VERSION: u8 = 1;
const CRC_BYTES: usize = 4;
/// Maximum length of a token's text: more is not a token.
const TEXT_BYTES_MAX: usize = 512;

/// Where an interrupted stream goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// The snapshot that is sent.
    pub identity: Identity,
    /// The base, if the stream is a difference.
    pub base: Option<Identity>,
    /// Everything below this offset was received.
    pub position: u64,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = Writer::new();
        self.identity.encode(out.u8(VERSION));
        put_base(&mut out, self.base.as_ref());
        out.u64(self.position);
        let mut bytes = out.into_bytes();
        let crc = crc32(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Token {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text.trim()).ok_or(Error::NotAToken)
    }
}

fn parse(text: &str) -> Option<Token> {
    let digits = text.as_bytes();
    if digits.len() > TEXT_BYTES_MAX || !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let byte = |pair: &[u8]| u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok();
    let bytes: Vec<u8> = digits.chunks_exact(2).map(byte).collect::<Option<_>>()?;
    let (body, crc) = bytes.split_at_checked(bytes.len().checked_sub(CRC_BYTES)?)?;
    if crc32(body).to_le_bytes() != crc {
        return None;
    }
    let mut input = Reader::new(body);
    (input.u8()? == VERSION).then_some(())?;
    let token = Token {
        identity: Identity::decode(&mut input)?,
        base: take_base(&mut input)?,
        position: input.u64()?,
    };
    input.is_empty().then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(seed: u8) -> Identity {
        Identity {
            pool: [seed; 16],
            volume: 7,
            created_ns: u64::MAX,
        }
    }

    #[test]
    fn a_token_survives_as_text_and_any_changed_digit_is_found() {
        for base in [None, Some(identity(2))] {
            let token = Token {
                identity: identity(1),
                base,
                position: 1 << 40,
            };
            let text = token.to_string();
            assert_eq!(text.parse::<Token>().unwrap(), token);
            for at in 0..text.len() {
                let mut changed = text.clone().into_bytes();
                changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
                let changed = String::from_utf8(changed).unwrap();
                assert!(changed.parse::<Token>().is_err(), "{at}");
                assert!(text[..at].parse::<Token>().is_err());
            }
        }
        for bad in ["", "zz", "ä", "0", &"00".repeat(4000)] {
            assert!(bad.parse::<Token>().is_err());
        }
    }
}
