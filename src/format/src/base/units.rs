//! The units of the engine as types, so that a block address cannot be mistaken for a block index.

use std::fmt;

/// Number of bytes in a block, the unit of allocation, mapping, checksum and sharing.
pub const BLOCK_BYTES: usize = 4096;
/// `log2(BLOCK_BYTES)`.
pub const BLOCK_SHIFT: u32 = 12;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

unit!(
    /// The address of a block in the pool, counted in blocks from the start of the device.
    BlockAddr
);
unit!(
    /// The index of a block of a volume, counted in blocks from the volume's start.
    BlockIndex
);
unit!(
    /// Identifies a volume for the life of the pool; never reused after removal.
    VolumeId
);
unit!(
    /// A 48-bit counter, raised at each branch (snapshot, clone) and each checkpoint.
    Generation
);
unit!(
    /// The number of a log record; rises by one with each record.
    Sequence
);

impl BlockAddr {
    /// Returns the byte offset of the block in the device.
    #[must_use]
    pub const fn offset_bytes(self) -> u64 {
        self.0 << BLOCK_SHIFT
    }
}

impl Generation {
    /// The largest generation that a pointer can hold.
    pub const MAX: Self = Self((1 << 48) - 1);

    /// Returns the generation after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Sequence {
    /// Returns the sequence after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Returns the number of whole blocks that hold `len_bytes`.
#[must_use]
pub const fn blocks_for(len_bytes: u64) -> u64 {
    len_bytes.div_ceil(BLOCK_BYTES as u64)
}
