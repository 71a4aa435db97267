//! What an image may ask of us at most: hostile input costs bounded memory and bounded descriptors.

/// The largest index or manifest document, in bytes (registries refuse larger ones as well).
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// The largest image configuration, in bytes.
pub const CONFIG_BYTES_MAX: u64 = 8 << 20;
/// How many indexes may refer to each other before a manifest is reached.
pub const INDEX_DEPTH_MAX: u32 = 4;
/// The most layers of one image (`overlayfs` itself stops at 500 below).
pub const LAYERS_MAX: usize = 1024;
/// The most members of an archive that holds an image.
pub const MEMBERS_MAX: usize = 65_536;
/// How deep below folders, each the only one of its parent, an image is looked for.
pub const WRAPPING_MAX: usize = 4;
/// How many names at the top of an input are looked at to tell what it is.
pub const TOP_NAMES_MAX: usize = 4096;
/// How often a link inside an archive may lead to another link.
pub const MEMBER_LINKS_MAX: u32 = 8;

/// The longest path of an entry, in bytes: the kernel's `PATH_MAX`, and what marks a removal.
pub const PATH_BYTES_MAX: usize = 4096 + 4;
/// The most components of an entry's path: as many as such a path can have.
pub const DEPTH_MAX: usize = PATH_BYTES_MAX / 2;
/// The most bytes of one extended (PAX) header: names, times and all extended attributes.
pub const PAX_BYTES_MAX: u64 = 1 << 20;
/// The most data segments of a sparse file.
pub const SEGMENTS_MAX: usize = 1 << 19;
/// The most entries of an access control list in its text form: what fits an ext4 block.
pub const ACL_ENTRIES_MAX: usize = 512;
/// How much of an image's list of users or groups is looked at, in bytes.
pub const ACCOUNTS_BYTES_MAX: u64 = 1 << 20;
/// The most zeros that one layer is given in the place of holes, in bytes; what has more holes is
/// written in a sparse form.
pub const PLAIN_HOLES_BYTES_MAX: u64 = 256 << 20;
/// How many symbolic links are followed to make a missing parent directory.
pub const SYMLINKS_MAX: u32 = 40;

/// The buffer for file contents, in bytes.
pub const COPY_BUFFER_BYTES: usize = 1 << 20;
/// The buffer in front of a decompressor or archive, in bytes.
pub const READ_BUFFER_BYTES: usize = 256 << 10;
/// How much of an unseekable archive is looked at to tell what it is, in bytes.
pub const PROBE_BYTES: usize = 1 << 20;
/// Aligned zero runs of this size become holes.
pub const HOLE_BYTES: usize = 4096;
