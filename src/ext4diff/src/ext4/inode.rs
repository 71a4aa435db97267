//! The inode: 256 bytes of a table. Source: `Documentation/filesystems/ext4/inodes.rst`.

use super::fault::{Fault, Result};
use super::{Block, le16, le32};

/// Size of an inode in the file systems that are read.
pub const INODE_BYTES: usize = 256;
/// The offset of `i_block`.
pub(super) const BLOCK_FIELD: usize = 0x28;
/// Length of `i_block`.
pub(super) const BLOCK_FIELD_BYTES: usize = 60;
/// The end of the fields that every ext4 has.
pub(super) const CLASSIC_BYTES: usize = 128;

const FLAG_ENCRYPT: u32 = 0x800;
const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_VERITY: u32 = 0x10_0000;
const FLAG_EA_INODE: u32 = 0x20_0000;
const FLAG_INLINE_DATA: u32 = 0x1000_0000;
/// The offset of the entry for the double-indirect block.
const DOUBLE_INDIRECT: usize = BLOCK_FIELD + 13 * 4;
/// `i_mtime_extra`.
const MTIME_EXTRA: usize = 0x88;

/// The kind of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InodeKind {
    /// A pipe with a name.
    Fifo,
    /// A character device.
    CharDevice,
    /// A directory.
    Directory,
    /// A block device.
    BlockDevice,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A socket.
    Socket,
    /// A type that Linux does not know.
    Unknown,
}

/// One inode.
#[derive(Clone)]
pub struct Inode {
    number: u32,
    pub(super) bytes: [u8; INODE_BYTES],
}

/// The metadata that two objects of the same kind must share to be the same, apart from attributes
/// and content.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Metadata {
    mode: u16,
    owner: (u32, u32),
    mtime: (i64, u32),
    device: u64,
    /// The size of a regular file.
    size_bytes: Option<u64>,
}

impl Inode {
    /// Returns an inode of a table that was never used.
    pub(super) const fn unused(number: u32) -> Self {
        Self {
            number,
            bytes: [0; INODE_BYTES],
        }
    }

    /// Returns the inode at `index` of a block of a table.
    pub(super) fn in_block(number: u32, block: &Block, index: u32) -> Self {
        let mut inode = Self::unused(number);
        let start = usize::try_from(index).unwrap_or(0) * INODE_BYTES;
        inode
            .bytes
            .copy_from_slice(&block[start..start + INODE_BYTES]);
        inode
    }

    /// Returns its number.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// Returns true if both are the same in every bit.
    pub(crate) fn is_identical(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }

    /// Returns true if a directory may name it.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.links() > 0 && self.mode() != 0
    }

    /// Returns an error if the inode is stored in a format that the reader does not know.
    pub(crate) fn check_known(&self) -> Result<()> {
        let unknown = FLAG_ENCRYPT | FLAG_VERITY | FLAG_EA_INODE | FLAG_INLINE_DATA;
        if self.flags() & unknown == 0 {
            Ok(())
        } else {
            Err(Fault::Unsupported("files of an unsupported kind"))
        }
    }

    /// Returns the kind of the object.
    #[must_use]
    pub fn kind(&self) -> InodeKind {
        match self.mode() >> 12 {
            1 => InodeKind::Fifo,
            2 => InodeKind::CharDevice,
            4 => InodeKind::Directory,
            6 => InodeKind::BlockDevice,
            8 => InodeKind::File,
            10 => InodeKind::Symlink,
            12 => InodeKind::Socket,
            _ => InodeKind::Unknown,
        }
    }

    /// Returns true if it is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.kind() == InodeKind::Directory
    }

    /// Returns true if it is in use as a directory.
    #[must_use]
    pub fn is_live_directory(&self) -> bool {
        self.is_live() && self.is_directory()
    }

    /// Returns true if it has names besides the one that led to it.
    pub(crate) fn has_other_names(&self) -> bool {
        !self.is_directory() && self.links() > 1
    }

    fn mode(&self) -> u16 {
        le16(&self.bytes, 0x0)
    }

    fn links(&self) -> u16 {
        le16(&self.bytes, 0x1A)
    }

    pub(super) fn flags(&self) -> u32 {
        le32(&self.bytes, 0x20)
    }

    pub(super) fn has_extents(&self) -> bool {
        self.flags() & FLAG_EXTENTS != 0
    }

    /// Returns the size of its content.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        u64::from(le32(&self.bytes, 0x6C)) << 32 | u64::from(le32(&self.bytes, 0x4))
    }

    /// Returns the bytes of `i_block`.
    pub(super) fn block_field(&self) -> &[u8] {
        &self.bytes[BLOCK_FIELD..BLOCK_FIELD + BLOCK_FIELD_BYTES]
    }

    /// Returns the block of attributes, if there is one.
    #[must_use]
    pub fn attribute_block(&self) -> Option<u64> {
        let block = u64::from(le16(&self.bytes, 0x76)) << 32 | u64::from(le32(&self.bytes, 0x68));
        (block != 0).then_some(block)
    }

    /// Returns the double-indirect block of a file without extents.
    pub(crate) fn double_indirect_block(&self) -> u64 {
        u64::from(le32(&self.bytes, DOUBLE_INDIRECT))
    }

    /// Returns the number of bytes after `CLASSIC_BYTES` that hold further fields; attributes
    /// follow.
    pub(super) fn extra_bytes(&self) -> Result<usize> {
        let extra = usize::from(le16(&self.bytes, 0x80));
        if extra <= INODE_BYTES - CLASSIC_BYTES && extra.is_multiple_of(4) {
            Ok(extra)
        } else {
            Err(Fault::Corrupt("the extra fields of an inode"))
        }
    }

    pub(crate) fn metadata(&self) -> Result<Metadata> {
        let half = |low: usize, high: usize| {
            u32::from(le16(&self.bytes, high)) << 16 | u32::from(le16(&self.bytes, low))
        };
        let mut mtime = (i64::from(le32(&self.bytes, 0x10).cast_signed()), 0);
        if CLASSIC_BYTES + self.extra_bytes()? >= MTIME_EXTRA + 4 {
            let extra = le32(&self.bytes, MTIME_EXTRA);
            mtime.0 += i64::from(extra & 3) << 32;
            mtime.1 = extra >> 2;
        }
        let kind = self.kind();
        let is_device = matches!(kind, InodeKind::CharDevice | InodeKind::BlockDevice);
        let field = self.block_field();
        Ok(Metadata {
            mode: self.mode(),
            owner: (half(0x2, 0x78), half(0x18, 0x7A)),
            mtime,
            device: if is_device { device(field) } else { 0 },
            size_bytes: (kind == InodeKind::File).then(|| self.size_bytes()),
        })
    }
}

/// Returns the major and minor number, from the old or the new encoding.
fn device(field: &[u8]) -> u64 {
    let old = le32(field, 0);
    let (major, minor) = if old != 0 {
        (old >> 8 & 0xFF, old & 0xFF)
    } else {
        let new = le32(field, 4);
        (new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xF_FF00)
    };
    u64::from(major) << 32 | u64::from(minor)
}
