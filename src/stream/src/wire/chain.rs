//! The running digest of a stream: each record's checksum is the start of the digest of everything
//! up to it, so a record that was altered, left out or moved is found at once.

use super::{CHECKSUM_BYTES, DIGEST_BYTES, PREAMBLE_BYTES};
use sha2::{Digest, Sha256};

/// The digest of a stream up to a record.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    digest: [u8; DIGEST_BYTES],
}

impl Chain {
    /// Returns the digest of the bytes before the first record.
    pub(super) fn new(preamble: &[u8; PREAMBLE_BYTES]) -> Self {
        let digest = Sha256::digest(preamble).into();
        Self { digest }
    }

    /// Adds a record, which may be in two pieces; returns its checksum.
    pub(super) fn add(&mut self, header: &[u8], payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
        let mut hash = Sha256::new();
        hash.update(self.digest);
        hash.update(header);
        hash.update(payload);
        self.digest = hash.finalize().into();
        let mut checksum = [0; CHECKSUM_BYTES];
        checksum.copy_from_slice(&self.digest[..CHECKSUM_BYTES]);
        checksum
    }

    /// Returns the digest of all records so far.
    pub(super) const fn digest(&self) -> [u8; DIGEST_BYTES] {
        self.digest
    }
}
