//! The limits on an image: hostile input costs bounded memory and bounded descriptors.

/// The largest index or manifest document, in bytes (registries refuse larger ones as well).
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// The largest image configuration, in bytes.
pub const CONFIG_BYTES_MAX: u64 = 8 << 20;
/// The longest message about an image that is offered, in bytes: a configuration as a JSON string may
/// take six times its size.
pub const OFFER_BYTES_MAX: u32 = 64 << 20;
/// The maximum depth of nested indexes above a manifest.
pub const INDEX_DEPTH_MAX: u32 = 4;
/// The maximum number of layers of one image (`overlayfs` itself stops at 500 lower layers).
pub const LAYERS_MAX: usize = 1024;
/// The maximum number of members of an archive that holds an image.
pub const MEMBERS_MAX: usize = 65_536;
/// The maximum depth, below folders that are each the only one of their parent, at which an image
/// is searched.
pub const WRAPPING_MAX: usize = 4;
/// The maximum number of names at the top of an input that are read to detect its format.
pub const TOP_NAMES_MAX: usize = 4096;
/// The maximum number of links in a chain inside an archive.
pub const MEMBER_LINKS_MAX: u32 = 8;

/// The maximum length of an entry's path, in bytes: the kernel's `PATH_MAX`, and the prefix that
/// marks a removal.
pub const PATH_BYTES_MAX: usize = 4096 + 4;
/// The maximum number of components of an entry's path: as many as such a path can have.
pub const DEPTH_MAX: usize = PATH_BYTES_MAX / 2;
/// The maximum number of bytes of one extended (PAX) header: names, times and all extended
/// attributes.
pub const PAX_BYTES_MAX: u64 = 1 << 20;
/// The maximum number of data segments of a sparse file.
pub const SEGMENTS_MAX: usize = 1 << 19;
/// The maximum number of entries of an access control list in its text form: as many as fit an ext4
/// block.
pub const ACL_ENTRIES_MAX: usize = 512;
/// The maximum number of bytes that are read of an image's list of users or groups.
pub const ACCOUNTS_BYTES_MAX: u64 = 1 << 20;
/// The maximum number of zeros that one layer gets in place of holes, in bytes; files with more
/// holes are written in a sparse form.
pub const PLAIN_HOLES_BYTES_MAX: u64 = 256 << 20;
/// The maximum number of symbolic links that are followed to create a missing parent directory.
pub const SYMLINKS_MAX: u32 = 40;

/// The maximum number of names in a folder of an old store.
pub const STORE_NAMES_MAX: usize = 1 << 20;
/// The largest list of images, layers or names of an old store, in bytes.
pub const STORE_LIST_BYTES_MAX: u64 = 256 << 20;
/// The maximum number of bytes of all documents of an old store.
pub const STORE_BYTES_MAX: u64 = 1 << 30;
/// The longest line of what tar-split keeps of a layer's tar, in bytes.
pub const SPLIT_LINE_BYTES_MAX: u64 = 64 << 20;

/// The size of the buffer for file contents, in bytes.
pub const COPY_BUFFER_BYTES: usize = 1 << 20;
/// The size of the buffer in front of a decompressor or archive, in bytes.
pub const READ_BUFFER_BYTES: usize = 256 << 10;
/// The maximum number of bytes of an unseekable archive that are read to detect its format.
pub const PROBE_BYTES: usize = 1 << 20;
/// Aligned zero runs of this size become holes.
pub const HOLE_BYTES: usize = 4096;
