//! The checksum of a file's content in tar-split: CRC-64 of ISO 3309, as Go's `hash/crc64` computes it.

/// The reversed polynomial.
const POLYNOMIAL: u64 = 0xd800_0000_0000_0000;
static TABLE: [u64; 256] = table();

const fn table() -> [u64; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 {
                value >> 1 ^ POLYNOMIAL
            } else {
                value >> 1
            };
            bit += 1;
        }
        table[byte] = value;
        byte += 1;
    }
    table
}

/// A checksum under computation.
pub(super) struct Crc64 {
    inverted: u64,
}

impl Default for Crc64 {
    fn default() -> Self {
        Self { inverted: !0 }
    }
}

impl Crc64 {
    /// Adds `bytes`.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let index = usize::from(self.inverted.to_le_bytes()[0] ^ byte);
            self.inverted = TABLE[index] ^ self.inverted >> 8;
        }
    }

    /// Returns the checksum of all bytes so far.
    pub(super) const fn value(&self) -> u64 {
        !self.inverted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_catalogue_of_algorithms() {
        let mut crc = Crc64::default();
        crc.update(b"1234");
        crc.update(b"56789");
        // CRC-64/GO-ISO in the catalogue of parametrised CRC algorithms.
        assert_eq!(crc.value(), 0xb909_56c7_75a4_1001);
    }
}
