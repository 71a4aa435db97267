//! The errors of the engine, kept distinct up to the command line.

use super::cancel::Cancelled;
use super::mirror_error::MirrorError;
use super::name::Name;
use super::size::precise;
use super::units::{BlockAddr, BlockIndex, Generation, Sequence, VolumeId};
use std::cmp::Ordering;
use std::io;

/// The engine's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The reason for which the engine refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device or the host failed.
    #[error("{action}: {source}")]
    Io {
        /// The action that failed, e.g. `"read the pool"`.
        action: &'static str,
        /// The host's error.
        source: io::Error,
    },
    /// An earlier write or flush failed, and the pool has stopped: it no longer knows what is on
    /// disk.
    #[error(
        "the pool stopped after a failed {action}: {source}; close it and open it again once the device works"
    )]
    FailStopped {
        /// The action that failed first.
        action: &'static str,
        /// The error of that action.
        source: io::Error,
    },
    /// The pool's bytes are not those that the engine wrote.
    #[error("the pool is damaged: {0}")]
    Corrupt(CorruptKind),
    /// The device holds no pool.
    #[error("this is not a cowshed pool")]
    NotAPool,
    /// The device holds data, and the caller did not ask to overwrite it.
    #[error("it already holds {found}")]
    DeviceNotEmpty {
        /// The kind of data, as far as it is known.
        found: &'static str,
    },
    /// The pool was written by a version whose format this one does not know.
    #[error("{}", incompatible(*version, *known, *features))]
    Incompatible {
        /// The pool's format version.
        version: u32,
        /// The format version that this code knows.
        known: u32,
        /// The features of the pool that this code does not know.
        features: u64,
    },
    /// Another process has the pool open.
    #[error("the pool is in use by another process")]
    InUse,
    /// No space is left for this.
    #[error("no space left in the pool; remove something or grow the pool")]
    NoSpace,
    /// There is no volume of this name or id.
    #[error("there is no volume {0}")]
    NotFound(Name),
    /// No volume has this id.
    #[error("there is no volume {0}")]
    NoSuchVolume(VolumeId),
    /// The name is taken.
    #[error("{0} already exists")]
    Exists(Name),
    /// The text is not a valid name.
    #[error("a name is 1 to 255 of A-Z a-z 0-9 . _ : / @ -, the first one a letter or digit")]
    InvalidName,
    /// A size that no volume, pool or log can have.
    #[error("{what} must be {} to {}", precise(*min_bytes), precise(*max_bytes))]
    InvalidSize {
        /// The size's name, for the message.
        what: &'static str,
        /// The smallest valid size.
        min_bytes: u64,
        /// The largest valid size.
        max_bytes: u64,
    },
    /// The pool's block device is shorter than the requested size.
    #[error(
        "the block device has {}, and a pool cannot be larger than its device; enlarge the device first, or choose a smaller size",
        precise(*device_bytes)
    )]
    BeyondDevice {
        /// The device's size.
        device_bytes: u64,
    },
    /// The range does not lie inside the volume.
    #[error(
        "the range of {len_bytes} bytes at offset {offset_bytes} is outside the volume's {size_bytes} bytes"
    )]
    OutOfRange {
        /// The range's offset.
        offset_bytes: u64,
        /// The range's length.
        len_bytes: u64,
        /// The volume's size.
        size_bytes: u64,
    },
    /// A frozen volume cannot be written.
    #[error("{0} is a snapshot, which cannot be written; clone it")]
    Frozen(Name),
    /// The operation needs a snapshot.
    #[error("{0} is not a snapshot; take one of it first")]
    NotFrozen(Name),
    /// The snapshot is not an ancestor of the volume.
    #[error("{snapshot} is not an ancestor of {volume}")]
    NotAncestor {
        /// The volume that was to be rolled back.
        volume: Name,
        /// The snapshot that was to be rolled back to.
        snapshot: Name,
    },
    /// The volume is attached, mounted or otherwise in use.
    #[error("{0} is in use; detach or unmount it first")]
    Busy(Name),
    /// A volume that somebody holds is not removed.
    #[error("{volume} is held by {}; release it first", list(tags))]
    Held {
        /// The volume.
        volume: Name,
        /// The tags of those who hold it.
        tags: Box<[Name]>,
    },
    /// A label or record is larger than the format allows.
    #[error("{what} is larger than {max_bytes} bytes")]
    TooLarge {
        /// The name of what is too large, for the message.
        what: &'static str,
        /// The largest allowed size.
        max_bytes: u64,
    },
    /// The pool was opened read-only.
    #[error("the pool is open read-only")]
    ReadOnly,
    /// The sides of a mirror do not allow it.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// The pool was closed while the call ran.
    #[error("the pool is closed")]
    Closed,
    /// The work was cancelled; nothing half-made is left.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

fn list(names: &[Name]) -> String {
    let names: Vec<_> = names.iter().map(Name::as_str).collect();
    names.join(", ")
}

/// Says why a pool of another format is refused, and which program to use.
fn incompatible(version: u32, known: u32, features: u64) -> String {
    match version.cmp(&known) {
        Ordering::Less => format!(
            "the pool has format version {version}, older than version {known} of this cowshed, \
             which cannot read it; use the cowshed that made it: export its volumes there, and \
             import them into a new pool"
        ),
        Ordering::Greater => format!(
            "the pool has format version {version}, newer than version {known} of this cowshed; \
             use a newer cowshed"
        ),
        Ordering::Equal => format!(
            "the pool uses features {features:#x}, which this cowshed does not know; use a newer \
             cowshed"
        ),
    }
}

impl Error {
    /// Returns an `Io` error about `action`.
    #[must_use]
    pub const fn io(action: &'static str, source: io::Error) -> Self {
        Self::Io { action, source }
    }

    /// Returns true if the host had no space for a write: space may become free, and nothing else
    /// is wrong.
    #[must_use]
    pub fn is_host_full(&self) -> bool {
        let Self::Io { source, .. } = self else {
            return false;
        };
        matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
    }

    /// Returns true if the host or the pool had no space.
    #[must_use]
    pub fn is_no_room(&self) -> bool {
        matches!(self, Self::NoSpace) || self.is_host_full()
    }

    /// Returns the errno that a file system or block device reports for this error.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Io { source, .. } | Self::FailStopped { source, .. } => {
                match source.raw_os_error() {
                    // To the volume's user, a quota of the host is a lack of space.
                    Some(libc::EDQUOT) => libc::ENOSPC,
                    Some(errno) => errno,
                    None => libc::EIO,
                }
            }
            Self::NoSpace => libc::ENOSPC,
            Self::NotFound(_) | Self::NoSuchVolume(_) => libc::ENOENT,
            Self::Exists(_) => libc::EEXIST,
            Self::InvalidName
            | Self::InvalidSize { .. }
            | Self::BeyondDevice { .. }
            | Self::OutOfRange { .. } => libc::EINVAL,
            Self::TooLarge { .. } => libc::E2BIG,
            Self::Frozen(_) | Self::ReadOnly => libc::EROFS,
            Self::InUse | Self::Busy(_) | Self::Held { .. } => libc::EBUSY,
            Self::NotFrozen(_) | Self::NotAncestor { .. } => libc::EINVAL,
            Self::DeviceNotEmpty { .. } => libc::EEXIST,
            Self::Mirror(_) => libc::EINVAL,
            Self::Cancelled(_) => libc::ECANCELED,
            Self::Corrupt(_) | Self::NotAPool | Self::Incompatible { .. } | Self::Closed => {
                libc::EIO
            }
        }
    }

    /// Returns a copy, for callers that share one failure (an I/O error keeps its errno).
    #[must_use]
    pub fn copy_io(source: &io::Error) -> io::Error {
        source.raw_os_error().map_or_else(
            || io::Error::from(source.kind()),
            io::Error::from_raw_os_error,
        )
    }
}

impl From<CorruptKind> for Error {
    fn from(kind: CorruptKind) -> Self {
        Self::Corrupt(kind)
    }
}

/// The fact about the format that was violated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CorruptKind {
    /// No superblock slot is valid.
    #[error("no superblock slot is readable")]
    NoSuperblock,
    /// A superblock newer than this one, the newest readable one, was durable.
    #[error("the newest superblock cannot be read, only one of generation {}", .0.0)]
    SuperblockLost(Generation),
    /// A superblock field contradicts another or the device.
    #[error("the superblock's {0} is invalid")]
    SuperblockField(&'static str),
    /// The device is shorter than the pool on it.
    #[error(
        "the device has {device_blocks} blocks but the pool has {pool_blocks}; the device was truncated"
    )]
    Truncated {
        /// Blocks in the device.
        device_blocks: u64,
        /// Blocks in the pool.
        pool_blocks: u64,
    },
    /// A data block does not have the checksum that its pointer holds.
    #[error("block {block} of volume {volume}, at pool block {addr}, has a wrong checksum")]
    DataChecksum {
        /// The volume.
        volume: VolumeId,
        /// The block of the volume.
        block: BlockIndex,
        /// The block's address.
        addr: BlockAddr,
    },
    /// A map node does not have the checksum that its pointer holds.
    #[error("the map node at pool block {0} has a wrong checksum")]
    NodeChecksum(BlockAddr),
    /// A block's map node was damaged and has been given up.
    #[error(
        "block {block} of volume {volume} was lost with a damaged map node; write all of it, or discard it, to use it again"
    )]
    Lost {
        /// The volume.
        volume: VolumeId,
        /// The block of the volume.
        block: BlockIndex,
    },
    /// A range was given up with a damaged map node.
    #[error("a part of the map was lost with a damaged map node")]
    LostRange,
    /// A pointer inside a map node breaks the format.
    #[error("entry {entry} of the map node at pool block {node} is ill-formed")]
    NodeEntry {
        /// The node's address.
        node: BlockAddr,
        /// The entry's number.
        entry: u16,
    },
    /// A pointer leads outside the pool's groups.
    #[error("a pointer refers to pool block {0}, which cannot hold data")]
    PointerRange(BlockAddr),
    /// A pointer's birth lies in the future.
    #[error("a pointer has birth generation {birth}, but the pool is in generation {now}")]
    PointerBirth {
        /// The pointer's birth.
        birth: Generation,
        /// The pool's generation.
        now: Generation,
    },
    /// A block is used by two owners.
    #[error("pool block {0} is used twice")]
    UsedTwice(BlockAddr),
    /// A block is freed that was not in use.
    #[error("pool block {0} is freed but was not in use")]
    FreedTwice(BlockAddr),
    /// No bitmap slot of a group is valid.
    #[error("neither bitmap of allocation group {0} is readable")]
    GroupBitmap(u64),
    /// A catalogue block or record is ill-formed.
    #[error("the catalogue is ill-formed: {0}")]
    Catalogue(&'static str),
    /// A log record is damaged although a later one says that it was durable.
    #[error("the log is damaged at record {0}, which had been flushed")]
    LogRecord(Sequence),
    /// A log record is valid but impossible at this point.
    #[error("log record {sequence} is invalid: {what}")]
    LogReplay {
        /// The record's sequence.
        sequence: Sequence,
        /// The contradiction.
        what: &'static str,
    },
}
