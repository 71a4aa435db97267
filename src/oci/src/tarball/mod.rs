//! The tar format: entries as values, parsed from an untrusted stream.
//!
//! Supported are v7, ustar, star's, GNU (long names, sparse, incremental, base-256 numbers) and PAX
//! (all records that matter for a root file system, sparse 0.0, 0.1 and 1.0). Data that a root file
//! system cannot hold is counted ([`Loss`](super::dropped::Loss)) or refused. The layout of the
//! headers comes from the `tar` crate; the iteration is implemented here, because memory must stay
//! bounded, sizes may be stated in PAX records only, and the writer of a file must know its holes.
//!
//! Invariants: no length that an archive claims is allocated before it is checked against a limit
//! of [`super::limits`]; the segments of an entry ascend, do not overlap, end within its size and
//! together have exactly the bytes that follow in the archive.

mod header;
mod number;
mod pax;
mod reader;
mod sparse;

pub(crate) use number::format_time;
pub(crate) use pax::put_record;
pub(crate) use reader::{TarReader, looks_like_header};

/// The reason why a later volume cannot be read.
const MULTI_VOLUME: &str = "it continues from another volume of a multi-volume archive; extract \
                            all volumes together and import the directory";

/// The unit of a tar archive, in bytes.
pub(crate) const RECORD_BYTES: usize = 512;

/// Attributes that belong to the host and its mounts and not to an image: never stored nor cleared.
pub(crate) const HOST_XATTRS: [&[u8]; 2] = [b"security.selinux", b"system.nfs4_acl"];

/// The kind of object that an entry creates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file, whose content follows.
    File,
    /// Another name of an earlier file.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// A point in time: seconds since 1970, possibly before it, and nanoseconds after that second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds, rounded down.
    pub seconds: i64,
    /// Nanoseconds after that second, less than a thousand million.
    pub nanoseconds: u32,
}

/// A part of a sparse file that holds data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset_bytes: u64,
    pub(crate) len_bytes: u64,
}

/// An extended attribute: its name and its value.
pub(crate) type Xattr = (Vec<u8>, Vec<u8>);

/// One entry of an archive, with all data of its headers.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permissions with setuid, setgid and sticky: at most `0o7777`.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) atime: Option<Time>,
    /// The target of a link, else empty.
    pub(crate) link: Vec<u8>,
    /// The size of the resulting file.
    pub(crate) size_bytes: u64,
    /// The ranges of the file that the following data fills.
    pub(crate) segments: Vec<Segment>,
    pub(crate) device_major: u32,
    pub(crate) device_minor: u32,
    pub(crate) xattrs: Vec<Xattr>,
    /// Access control lists in their text form.
    pub(crate) acl_access: Option<Vec<u8>>,
    pub(crate) acl_default: Option<Vec<u8>>,
}

impl Entry {
    /// Returns true if it has attributes or access control lists.
    pub(crate) const fn has_attributes(&self) -> bool {
        !self.xattrs.is_empty() || self.acl_access.is_some() || self.acl_default.is_some()
    }
}
