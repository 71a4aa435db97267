//! The blocks of a file system, wherever they are stored.

use cowshed_format::base::Result;

/// The bytes of a volume, a file or a device that may hold an ext4. They do not change while a
/// comparison reads them.
pub trait BlockSource {
    /// Returns the number of bytes.
    fn size_bytes(&self) -> u64;

    /// Fills `buf` from the offset on, which lies inside with all of `buf`; a hole reads as zeros.
    ///
    /// # Errors
    /// The reason why the bytes cannot be read.
    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()>;

    /// Returns the number of bytes that are not in holes. It bounds the number of blocks that a
    /// comparison reads.
    ///
    /// # Errors
    /// The reason why it is not known.
    fn stored_bytes(&self) -> Result<u64>;

    /// Returns a number that belongs to this content alone and for ever, if the content can never
    /// change: what was read from it may be cached under this number.
    fn identity(&self) -> Option<u64>;
}
