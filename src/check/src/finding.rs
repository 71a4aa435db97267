//! The findings of a check, as typed values: the violated fact, its place, and the numbers.
//!
//! A finding is damage. A note is information that needs no repair.

use cowshed_format::base::{
    BLOCK_SHIFT, BlockAddr, BlockIndex, CorruptKind, Error, Generation, Name, Sequence, VolumeId,
};
use std::fmt;

/// Maximum number of findings that a report keeps; it counts the rest.
pub const FINDINGS_MAX: usize = 10_000;

/// The fact that is violated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FindingKind {
    /// A superblock slot or copy cannot be read.
    SuperblockUnreadable,
    /// A field of the superblock contradicts the contents of the pool.
    SuperblockField,
    /// The superblock's count of blocks in use is wrong.
    UsedCount,
    /// The superblock's count of volumes is wrong.
    VolumeCount,
    /// No bitmap slot of a group is readable.
    BitmapUnreadable,
    /// Blocks are marked as used, but nothing refers to them.
    BlocksLeaked,
    /// Blocks are referred to, but not marked as used.
    BlocksUnmarked,
    /// One of the two copies of a map node or of a block of the catalogue is damaged; the other is
    /// good.
    CopyDamaged,
    /// A map node cannot be read or has a wrong checksum.
    NodeUnreadable,
    /// A map node or a root breaks the format.
    NodeIllFormed,
    /// A block of data cannot be read.
    DataUnreadable,
    /// A block of data has a wrong checksum.
    DataChecksum,
    /// A block has two owners.
    BlockUsedTwice,
    /// A pointer that an ancestor should own is not the parent's pointer at this place.
    PointerNotInherited,
    /// A volume without a known parent may have blocks of this one, which is not marked so.
    PinMissing,
    /// A volume's count of its own blocks is wrong.
    OwnCount,
    /// A volume's count of the blocks that it maps is wrong.
    MappedCount,
    /// A volume's parent does not exist.
    ParentMissing,
    /// Volumes are each other's ancestors.
    ForestCycle,
    /// A volume that has children can still be written.
    ParentWritable,
    /// A volume left its parent before the parent itself began, or in the future.
    BranchOrder,
    /// A volume's reclaim cursor is impossible.
    ReclaimCursor,
    /// A block of the catalogue cannot be read or is ill-formed.
    CatalogueBlock,
    /// A part of a catalogue entry is missing.
    CataloguePartMissing,
    /// A part of a catalogue entry exists twice, or its parts disagree.
    CataloguePartTwice,
    /// A catalogue entry is ill-formed.
    CatalogueEntry,
    /// Two volumes have the same name, or two records the same key.
    NameTwice,
    /// A log record that had been flushed is damaged.
    LogDamaged,
    /// The log cannot be read.
    LogUnreadable,
    /// A log record has a valid checksum, but its operations are invalid.
    LogRecord,
}

impl FindingKind {
    /// Returns true if contents of volumes are lost, which nothing else in the pool has.
    #[must_use]
    pub const fn is_data(self) -> bool {
        matches!(self, Self::DataUnreadable | Self::DataChecksum)
    }

    /// Returns the kind as a word for machines.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SuperblockUnreadable => "superblock-unreadable",
            Self::SuperblockField => "superblock-field",
            Self::UsedCount => "used-count",
            Self::VolumeCount => "volume-count",
            Self::BitmapUnreadable => "bitmap-unreadable",
            Self::BlocksLeaked => "blocks-leaked",
            Self::BlocksUnmarked => "blocks-unmarked",
            Self::CopyDamaged => "copy-damaged",
            Self::NodeUnreadable => "node-unreadable",
            Self::NodeIllFormed => "node-ill-formed",
            Self::DataUnreadable => "data-unreadable",
            Self::DataChecksum => "data-checksum",
            Self::BlockUsedTwice => "block-used-twice",
            Self::PointerNotInherited => "pointer-not-inherited",
            Self::PinMissing => "pin-missing",
            Self::OwnCount => "own-count",
            Self::MappedCount => "mapped-count",
            Self::ParentMissing => "parent-missing",
            Self::ForestCycle => "forest-cycle",
            Self::ParentWritable => "parent-writable",
            Self::BranchOrder => "branch-order",
            Self::ReclaimCursor => "reclaim-cursor",
            Self::CatalogueBlock => "catalogue-block",
            Self::CataloguePartMissing => "catalogue-part-missing",
            Self::CataloguePartTwice => "catalogue-part-twice",
            Self::CatalogueEntry => "catalogue-entry",
            Self::NameTwice => "name-twice",
            Self::LogDamaged => "log-damaged",
            Self::LogUnreadable => "log-unreadable",
            Self::LogRecord => "log-record",
        }
    }
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The place of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// The pool as a whole.
    Pool,
    /// A superblock slot, or its copy at the end.
    Superblock {
        /// Slot 0 or 1.
        slot: u8,
        /// True for the copy.
        copy: bool,
    },
    /// An allocation group.
    Group(u64),
    /// A run of pool blocks.
    Blocks {
        /// The first one.
        first: BlockAddr,
        /// The number of blocks.
        count: u64,
    },
    /// A volume as a whole.
    Volume(VolumeId),
    /// A map node of a volume (volume 0 is the catalogue).
    Node {
        /// The volume.
        volume: VolumeId,
        /// The node's level; leaves are level 1.
        level: u8,
        /// The first block of the volume that it covers.
        first: BlockIndex,
        /// The node's address.
        addr: BlockAddr,
    },
    /// A block of a volume (volume 0 is the catalogue).
    Data {
        /// The volume.
        volume: VolumeId,
        /// The block of the volume.
        block: BlockIndex,
        /// The block's address.
        addr: BlockAddr,
    },
    /// Adjacent blocks of a volume, which are adjacent in the pool, too.
    DataRange {
        /// The volume.
        volume: VolumeId,
        /// The first block of the volume.
        first: BlockIndex,
        /// Its address.
        addr: BlockAddr,
        /// The number of blocks.
        blocks: u64,
    },
    /// A catalogue entry of a record, by its number.
    Record(u64),
    /// A log record.
    Log(Sequence),
}

impl Place {
    /// Returns the volume in which it is, if it is in one.
    #[must_use]
    pub const fn volume(&self) -> Option<VolumeId> {
        match *self {
            Self::Volume(volume)
            | Self::Node { volume, .. }
            | Self::Data { volume, .. }
            | Self::DataRange { volume, .. } => Some(volume),
            _ => None,
        }
    }

    /// Returns the range of both places, if they are blocks of data and `next` adjoins the end.
    fn joined(self, next: Self) -> Option<Self> {
        let (volume, first, addr, blocks) = match self {
            Self::Data {
                volume,
                block,
                addr,
            } => (volume, block, addr, 1),
            Self::DataRange {
                volume,
                first,
                addr,
                blocks,
            } => (volume, first, addr, blocks),
            _ => return None,
        };
        let end = Self::Data {
            volume,
            block: BlockIndex(first.0.checked_add(blocks)?),
            addr: BlockAddr(addr.0.checked_add(blocks)?),
        };
        (end == next).then_some(Self::DataRange {
            volume,
            first,
            addr,
            blocks: blocks + 1,
        })
    }

    /// Writes the place, with the name of its volume, if that is known.
    fn write(&self, f: &mut fmt::Formatter<'_>, name: Option<&Name>) -> fmt::Result {
        match *self {
            Self::Pool => f.write_str("the pool"),
            Self::Superblock { slot, copy: false } => write!(f, "superblock slot {slot}"),
            Self::Superblock { slot, copy: true } => {
                write!(f, "the copy of superblock slot {slot}")
            }
            Self::Group(group) => write!(f, "allocation group {group}"),
            Self::Blocks { first, count: 1 } => write!(f, "pool block {first}"),
            Self::Blocks { first, count } => {
                let last = first.0.saturating_add(count.saturating_sub(1));
                write!(f, "pool blocks {first} to {last}")
            }
            Self::Volume(volume) => owner(f, volume, name),
            Self::Node {
                volume,
                level,
                first,
                addr,
            } => {
                owner(f, volume, name)?;
                let offset = u128::from(first.0) << BLOCK_SHIFT;
                write!(
                    f,
                    ", map level {level} at offset {offset}, pool block {addr}"
                )
            }
            Self::Data {
                volume,
                block,
                addr,
            } => {
                owner(f, volume, name)?;
                let offset = u128::from(block.0) << BLOCK_SHIFT;
                write!(f, ", offset {offset}, pool block {addr}")
            }
            Self::DataRange {
                volume,
                first,
                addr,
                blocks,
            } => {
                owner(f, volume, name)?;
                let bytes = |blocks: u64| u128::from(blocks) << BLOCK_SHIFT;
                let (len, offset) = (bytes(blocks), bytes(first.0));
                let last = addr.0.saturating_add(blocks.saturating_sub(1));
                write!(
                    f,
                    ", {len} bytes at offset {offset}, pool blocks {addr} to {last}"
                )
            }
            Self::Record(id) => write!(f, "catalogue record {id}"),
            Self::Log(sequence) => write!(f, "log record {sequence}"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, None)
    }
}

fn owner(f: &mut fmt::Formatter<'_>, volume: VolumeId, name: Option<&Name>) -> fmt::Result {
    match (volume, name) {
        (VolumeId(0), _) => f.write_str("the catalogue"),
        (volume, None) => write!(f, "volume {volume}"),
        (volume, Some(name)) => write!(f, "volume {volume} ({name})"),
    }
}

/// The numbers of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// There is nothing beyond kind and place.
    None,
    /// The violated fact of the format.
    Corrupt(CorruptKind),
    /// The host's error number, where there is one.
    Io(Option<i32>),
    /// A number that differs from the counted one.
    Count {
        /// The number in the pool.
        recorded: u64,
        /// The counted number.
        counted: u64,
    },
    /// The other volume concerned.
    Volume(VolumeId),
    /// A generation that contradicts another.
    Generations {
        /// The wrong generation.
        found: Generation,
        /// The generation that it contradicts.
        bound: Generation,
    },
    /// A description in words.
    Fact(&'static str),
}

impl Detail {
    /// Returns the detail of a failed read or decode.
    #[must_use]
    pub(super) fn of(error: &Error) -> Self {
        match error {
            Error::Corrupt(kind) => Self::Corrupt(*kind),
            Error::Io { source, .. } | Error::FailStopped { source, .. } => {
                Self::Io(source.raw_os_error())
            }
            Error::NotAPool => Self::Fact("it holds no superblock"),
            Error::Incompatible { .. } => Self::Fact("its version is unknown"),
            _ => Self::None,
        }
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Corrupt(kind) => kind.fmt(f),
            Self::Io(Some(errno)) => std::io::Error::from_raw_os_error(*errno).fmt(f),
            Self::Io(None) => f.write_str("the device failed to read it"),
            Self::Count { recorded, counted } => {
                write!(f, "recorded {recorded}, counted {counted}")
            }
            Self::Volume(volume) => write!(f, "volume {volume}"),
            Self::Generations { found, bound } => {
                write!(f, "generation {found} contradicts generation {bound}")
            }
            Self::Fact(fact) => f.write_str(fact),
        }
    }
}

/// One violated fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The violated fact.
    pub kind: FindingKind,
    /// Its place.
    pub place: Place,
    /// The numbers.
    pub detail: Detail,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (finding, name) = (*self, None);
        NamedFinding { finding, name }.fmt(f)
    }
}

/// A finding to be shown with the name of its volume.
#[derive(Clone, Copy, Debug)]
pub struct NamedFinding<'n> {
    /// The finding.
    pub finding: Finding,
    /// The name; `None` if it is in no volume, or its volume has been removed.
    pub name: Option<&'n Name>,
}

impl fmt::Display for NamedFinding<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.finding.kind)?;
        self.finding.place.write(f, self.name)?;
        match self.finding.detail {
            Detail::None => Ok(()),
            detail => write!(f, ": {detail}"),
        }
    }
}

/// Information that is not damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// The pool was not closed: the next open replays the log, and the findings describe the state
    /// before that.
    LogToReplay {
        /// The number of records.
        records: u64,
    },
    /// The log ends with a write that was never acknowledged as flushed and is incomplete.
    UnfinishedWrite(Sequence),
    /// A superblock's copy is of an earlier checkpoint: the process stopped between writing the
    /// two.
    CopyOutdated {
        /// The slot.
        slot: u8,
    },
    /// A range of a volume was given up with a damaged map node; reading it is an error until it
    /// is written or discarded.
    Lost {
        /// The volume.
        volume: VolumeId,
        /// The first block.
        first: BlockIndex,
        /// The number of blocks.
        blocks: u64,
    },
    /// Removed volumes wait to be reclaimed.
    Reclaiming {
        /// The number of volumes.
        volumes: u64,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LogToReplay { records } => write!(f, "the log holds {records} records to replay"),
            Self::UnfinishedWrite(sequence) => write!(
                f,
                "the log ends at record {sequence}, which was not completely written"
            ),
            Self::CopyOutdated { slot } => {
                write!(
                    f,
                    "the copy of superblock slot {slot} is of an earlier checkpoint"
                )
            }
            Self::Lost {
                volume,
                first,
                blocks,
            } => {
                let bytes = |blocks: u64| u128::from(blocks) << BLOCK_SHIFT;
                write!(
                    f,
                    "volume {volume} has lost {} bytes at offset {} with a damaged map node",
                    bytes(*blocks),
                    bytes(first.0)
                )
            }
            Self::Reclaiming { volumes } => {
                write!(f, "{volumes} removed volumes wait to be reclaimed")
            }
        }
    }
}

/// Collects findings up to the limit, and counts the rest.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings {
    pub(super) list: Vec<Finding>,
    pub(super) omitted: u64,
}

impl Findings {
    /// Adds a finding; of data that is damaged in the same way beside the last one, that one grows.
    pub(super) fn add(&mut self, kind: FindingKind, place: Place, detail: Detail) {
        if kind.is_data()
            && let Some(last) = self.list.last_mut()
            && (last.kind, last.detail) == (kind, detail)
            && let Some(joined) = last.place.joined(place)
        {
            last.place = joined;
            return;
        }
        if self.list.len() < FINDINGS_MAX {
            self.list.push(Finding {
                kind,
                place,
                detail,
            });
        } else {
            self.omitted += 1;
        }
    }
}
