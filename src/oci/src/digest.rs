//! SHA-256 digests, streams that hash the data that passes through them, and chain ids.
//!
//! Digests of other algorithms are not supported: every registry and archive in use states SHA-256.

use super::error::{Error, Printable, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

const PREFIX: &str = "sha256:";
/// Number of bytes of a SHA-256 value.
const VALUE_BYTES: usize = 32;

/// The SHA-256 of some bytes, written as `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; VALUE_BYTES]);

impl Digest {
    /// Returns the digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Returns the digest with these raw bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; VALUE_BYTES]) -> Self {
        Self(bytes)
    }

    /// Returns the 64 hexadecimal digits alone, as they name a blob's file.
    #[must_use]
    pub fn hex(&self) -> String {
        let mut text = String::with_capacity(2 * VALUE_BYTES);
        for byte in self.0 {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
            }
        }
        text
    }

    /// Returns the digest whose 64 lower-case hexadecimal digits are `hex`; `None` if they are not
    /// such digits.
    #[must_use]
    pub fn from_hex(hex: &str) -> Option<Self> {
        if hex.len() != 2 * VALUE_BYTES {
            return None;
        }
        let mut value = [0; VALUE_BYTES];
        for (byte, pair) in value.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Some(Self(value))
    }

    /// Returns the raw 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; VALUE_BYTES] {
        &self.0
    }
}

const fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{PREFIX}{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.strip_prefix(PREFIX)
            .and_then(Self::from_hex)
            .ok_or_else(|| Error::UnsupportedDigest(Printable::from(text)))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Returns the identity of a stack of layers, lowest first; `None` for an empty stack.
///
/// Source: OCI image specification, `config.md`, "Layer ChainID".
#[must_use]
pub fn chain_id(diff_ids: &[Digest]) -> Option<Digest> {
    diff_ids
        .iter()
        .fold(None, |below, diff_id| Some(chain_above(below, *diff_id)))
}

/// Returns the chain id of the layer `diff_id` on top of the stack `below`.
#[must_use]
pub fn chain_above(below: Option<Digest>, diff_id: Digest) -> Digest {
    match below {
        None => diff_id,
        Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
    }
}

/// A SHA-256 computation, with the number of bytes so far.
#[derive(Clone, Default)]
pub struct Hasher {
    state: Sha256,
    len_bytes: u64,
}

impl Hasher {
    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
        // A usize always fits u64 on the hosts that this crate supports; saturate rather than wrap.
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.len_bytes = self.len_bytes.saturating_add(len);
    }

    /// Returns the digest of all bytes so far.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest(self.state.clone().finalize().into())
    }

    /// Returns the number of bytes so far.
    #[must_use]
    pub const fn len_bytes(&self) -> u64 {
        self.len_bytes
    }
}

/// A reader that hashes the bytes read through it.
pub struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
}

impl<R> HashingReader<R> {
    /// Hashes the bytes that will be read from `inner`.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            hasher: Hasher::default(),
        }
    }

    /// Returns the hasher of the bytes read so far.
    pub const fn hasher(&self) -> &Hasher {
        &self.hasher
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..len]);
        Ok(len)
    }
}

/// A writer that hashes the bytes written through it.
pub struct HashingWriter<W> {
    inner: W,
    hasher: Hasher,
}

impl<W> HashingWriter<W> {
    /// Hashes the bytes that will be written to `inner`.
    pub fn new(inner: W) -> Self {
        Self {
            inner,
            hasher: Hasher::default(),
        }
    }

    /// Returns the underlying writer, and the hasher of the written bytes.
    pub fn into_parts(self) -> (W, Hasher) {
        (self.inner, self.hasher)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_is_written_as_it_is_read() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(b""));
        for wrong in [
            "",
            "sha256:",
            "sha512:00",
            &EMPTY[..70],
            &EMPTY.to_uppercase(),
            &EMPTY[7..],
        ] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_chain_id_names_every_layer_below_it() {
        let layers = [Digest::of(b"a"), Digest::of(b"b"), Digest::of(b"c")];
        assert_eq!(chain_id(&[]), None);
        assert_eq!(chain_id(&layers[..1]), Some(layers[0]));
        let two = Digest::of(format!("{} {}", layers[0], layers[1]).as_bytes());
        assert_eq!(chain_id(&layers[..2]), Some(two));
        let three = Digest::of(format!("{two} {}", layers[2]).as_bytes());
        assert_eq!(chain_id(&layers), Some(three));
    }

    #[test]
    fn streams_hash_exactly_what_passes() {
        let mut reader = HashingReader::new(&b"some bytes"[..]);
        let mut writer = HashingWriter::new(Vec::new());
        io::copy(&mut reader, &mut writer).unwrap();
        let (written, hasher) = writer.into_parts();
        assert_eq!(written, b"some bytes");
        assert_eq!(hasher.digest(), Digest::of(b"some bytes"));
        assert_eq!(reader.hasher().digest(), hasher.digest());
        assert_eq!(hasher.len_bytes(), 10);
    }
}
