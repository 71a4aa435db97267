//! The token of an interrupted receive: which stream, and where it goes on. As text it is one word
//! of hexadecimal digits with a checksum.

use crate::error::Error;
use crate::identity::Identity;
use crate::record::{put_base, take_base};
use cowshed_format::base::checksum::crc32;
use cowshed_format::base::codec::{Reader, Writer};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// The version of a token of one snapshot.
const SNAPSHOT: u8 = 1;
/// The version of a token of a set.
const SET: u8 = 2;
const CRC_BYTES: usize = 4;
/// Number of bytes that stand for the members of a set that came.
const MEMBERS_BYTES: usize = 16;
/// Maximum length of a token's text: more is not a token.
const TEXT_BYTES_MAX: usize = 512;

/// Where an interrupted receive goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// In the stream of one snapshot.
    Snapshot(Place),
    /// In the stream of a set.
    Set(SetPlace),
}

/// A place in the stream of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The snapshot that is sent.
    pub identity: Identity,
    /// The base, if the stream is a difference.
    pub base: Option<Identity>,
    /// Everything below this offset was received.
    pub position: u64,
}

/// A place in the stream of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetPlace {
    /// Which of its snapshots came as a whole.
    pub whole: Whole,
    /// The place in the member that came in part.
    pub part: Option<Place>,
}

/// The first snapshots of a set, in the order in which they are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole {
    /// How many they are.
    pub count: u32,
    digest: [u8; MEMBERS_BYTES],
}

impl Whole {
    /// Returns what stands for these snapshots.
    #[must_use]
    pub fn of<'a>(identities: impl IntoIterator<Item = &'a Identity>) -> Self {
        let (mut count, mut hash) = (0, Sha256::new());
        for identity in identities {
            let mut bytes = Writer::new();
            identity.encode(&mut bytes);
            hash.update(bytes.into_bytes());
            count += 1;
        }
        let mut digest = [0; MEMBERS_BYTES];
        digest.copy_from_slice(&hash.finalize()[..MEMBERS_BYTES]);
        Self { count, digest }
    }
}

impl Place {
    fn encode(&self, out: &mut Writer) {
        self.identity.encode(out);
        put_base(out, self.base.as_ref());
        out.u64(self.position);
    }

    fn decode(input: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            identity: Identity::decode(input)?,
            base: take_base(input)?,
            position: input.u64()?,
        })
    }
}

impl SetPlace {
    fn encode(&self, out: &mut Writer) {
        out.u32(self.whole.count).bytes(&self.whole.digest);
        match &self.part {
            None => drop(out.u8(0)),
            Some(part) => part.encode(out.u8(1)),
        }
    }

    fn decode(input: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            whole: Whole {
                count: input.u32()?,
                digest: input.bytes(MEMBERS_BYTES)?.try_into().ok()?,
            },
            part: match input.u8()? {
                0 => None,
                1 => Some(Place::decode(input)?),
                _ => return None,
            },
        })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = Writer::new();
        match self {
            Self::Snapshot(place) => place.encode(out.u8(SNAPSHOT)),
            Self::Set(place) => place.encode(out.u8(SET)),
        }
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
    let token = match input.u8()? {
        SNAPSHOT => Token::Snapshot(Place::decode(&mut input)?),
        SET => Token::Set(SetPlace::decode(&mut input)?),
        _ => return None,
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

    fn tokens() -> Vec<Token> {
        let place = |base| Place {
            identity: identity(1),
            base,
            position: 1 << 40,
        };
        let set = |part| {
            Token::Set(SetPlace {
                whole: Whole::of([&identity(3), &identity(4)]),
                part,
            })
        };
        vec![
            Token::Snapshot(place(None)),
            Token::Snapshot(place(Some(identity(2)))),
            set(None),
            set(Some(place(Some(identity(2))))),
        ]
    }

    #[test]
    fn a_token_survives_as_text_and_any_changed_digit_is_found() {
        for token in tokens() {
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

    #[test]
    fn the_order_of_a_sets_members_counts() {
        let [a, b] = [identity(1), identity(2)];
        assert_ne!(Whole::of([&a, &b]), Whole::of([&b, &a]));
        assert_eq!(Whole::of([&a, &b]).count, 2);
    }
}
