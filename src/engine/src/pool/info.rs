//! The properties that a pool reports about itself and its volumes, and the options of its calls.

use super::missing::Missing;
use cowshed_format::base::{Generation, Name, Sequence, VolumeId};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Labels of a volume: keys and values, at most 16 KiB together.
pub type Labels = BTreeMap<String, String>;

/// Options for creating a pool.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// Bytes in the log ring; `None` chooses by the pool's size (256 KiB to 256 MiB).
    pub log_bytes: Option<u64>,
    /// Overwrites what the device holds.
    pub force: bool,
    /// Number of copies of map nodes and catalogue; `None` chooses two, or one in a pool under 16
    /// MiB.
    pub metadata_copies: Option<MetadataCopies>,
}

/// The number of copies in which a pool keeps its map nodes and its catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataCopies {
    /// A damaged block of metadata is lost, with everything that only it led to.
    One,
    /// A damaged block is read from its copy, and written anew.
    Two,
}

/// Smallest pool that keeps two copies of its metadata unless asked otherwise.
const TWO_COPIES_BYTES: u64 = 16 << 20;

impl CreateOptions {
    /// Returns the number of copies of the metadata of a pool of `pool_bytes`.
    pub(super) fn copies_for(&self, pool_bytes: u64) -> u8 {
        match self.metadata_copies {
            Some(MetadataCopies::One) => 1,
            Some(MetadataCopies::Two) => 2,
            None if pool_bytes < TWO_COPIES_BYTES => 1,
            None => 2,
        }
    }
}

/// Options for opening a pool.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The limit of the node cache in bytes, dirty nodes included.
    pub cache_bytes: u64,
    /// Runs the background threads (checkpoint by time and log fill, reclaim, hole punching).
    /// Without them, all of that happens in `checkpoint`, `reclaim` and `close`: for tests.
    pub background: bool,
    /// The behaviour when the pool is full.
    pub full: FullOptions,
    /// Continues where another process stopped that had the pool open until a moment ago, on a
    /// kernel that has kept running since. The value is the newest superblock known to be durable
    /// then (`Notes::durable`). Everything that process wrote is in place, flushed or not, so
    /// nothing needs to be verified or made durable before the pool serves. Without this, or if the
    /// device has a newer superblock, the pool is recovered as after a power cut.
    pub resumes: Option<Generation>,
    /// Callbacks that learn what a successor must know.
    pub notes: Notes,
    /// Writes nothing to the device: recovery happens in memory, every change is refused with
    /// `ReadOnly`, and no background thread runs. For a pool whose host refuses writes, or whose log
    /// is damaged: then it has its state before the damaged record (`Status::log_damaged_at`).
    pub read_only: bool,
}

/// Callbacks that, from the opening on, learn what a successor of this process must know.
#[derive(Clone, Default)]
pub struct Notes {
    /// Called when the device fails and the pool stops, before any caller gets the error. Data that
    /// the host reported as not written may still be in its page cache, and the process that opens
    /// the pool next must not take it for durable.
    pub device_failed: Option<Arc<dyn Fn() + Send + Sync>>,
    /// Called with the generation of each superblock that has become durable; a successor needs it
    /// to continue (`OpenOptions::resumes`).
    pub durable: Option<Arc<dyn Fn(Generation) + Send + Sync>>,
}

impl fmt::Debug for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notes")
            .field("device_failed", &self.device_failed.is_some())
            .field("durable", &self.durable.is_some())
            .finish()
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 256 << 20,
            background: true,
            full: FullOptions::default(),
            resumes: None,
            notes: Notes::default(),
            read_only: false,
        }
    }
}

/// The behaviour when the pool is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FullOptions {
    /// The treatment of a write that finds no space.
    pub policy: FullPolicy,
    /// The size up to which the pool grows by itself, in bytes; `None` for never. Only a pool in a
    /// regular file grows.
    pub max_size_bytes: Option<u64>,
}

/// The treatment of a write that finds no space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FullPolicy {
    /// It returns `NoSpace` at once.
    #[default]
    Error,
    /// It is held for at most this time while space is made, and then returns `NoSpace`.
    Wait(Duration),
    /// A write to a mounted or attached volume is held for at most this time; any other write
    /// returns `NoSpace` at once, as its caller can tell its user.
    WaitAttached(Duration),
}

/// Tells whether a volume can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeKind {
    /// Writable.
    Volume,
    /// Frozen permanently.
    Snapshot,
}

/// The properties of a volume, all of them O(1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// The volume's id.
    pub id: VolumeId,
    /// Its name.
    pub name: Name,
    /// The volume that it was cloned from, or a snapshot taken of it.
    pub parent: Option<VolumeId>,
    /// Writable or frozen.
    pub kind: VolumeKind,
    /// The virtual size in bytes.
    pub size_bytes: u64,
    /// Bytes (data and map) that only this volume owns.
    pub own_bytes: u64,
    /// Bytes of data that the volume maps, whichever volume owns them.
    pub referenced_bytes: u64,
    /// The creation time.
    pub created: SystemTime,
    /// Its labels.
    pub labels: Labels,
    /// Number of volumes that have it as their parent.
    pub children: u32,
}

/// A removed volume that still exists in part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedVolume {
    /// Its former id.
    pub id: VolumeId,
    /// The volume that it was cloned from, or a snapshot taken of it.
    pub parent: Option<VolumeId>,
    /// The virtual size in bytes.
    pub size_bytes: u64,
    /// Bytes (data and map) that it still keeps.
    pub own_bytes: u64,
    /// Bytes of data that it maps, whichever volume owns them.
    pub referenced_bytes: u64,
    /// The creation time.
    pub created: SystemTime,
    /// The volumes that read from it. With two or more, it keeps what any of them needs, until one
    /// is left; with fewer, it is about to be freed.
    pub children: Vec<VolumeId>,
    /// True if a named volume descends from it, directly or through others: then its bytes are in
    /// use, otherwise about to be freed.
    pub is_needed: bool,
}

/// The state of the pool as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Size of the pool.
    pub size_bytes: u64,
    /// Bytes in use by data and map. With `free_bytes`, `pending_free_bytes`, `reserved_bytes` and
    /// `metadata_bytes` it makes up the size.
    pub used_bytes: u64,
    /// Bytes that can be allocated now.
    pub free_bytes: u64,
    /// Bytes freed that wait for a checkpoint or for background reclaim.
    pub pending_free_bytes: u64,
    /// Bytes that are free, but promised to changes that so far only the log holds, or reserved so
    /// that removals and checkpoints succeed in a full pool.
    pub reserved_bytes: u64,
    /// Part of `used_bytes`: bytes that removed volumes own because others still descend from them.
    pub removed_shared_bytes: u64,
    /// Bytes of superblocks, log and bitmaps, and of a rest at the end that is too short for a
    /// group.
    pub metadata_bytes: u64,
    /// Bytes that the pool takes on its host.
    pub host_bytes: u64,
    /// Bytes that the host's file system has left; `None` if the pool has all its space already.
    pub host_free_bytes: Option<u64>,
    /// True while the host is full and writes are refused for that; false before the first one is.
    pub host_refuses_writes: bool,
    /// The size up to which the pool grows by itself; its present size if it does not.
    pub limit_bytes: u64,
    /// Number of named volumes and snapshots.
    pub volumes: u64,
    /// The current generation.
    pub generation: u64,
    /// Bytes of log since the last checkpoint.
    pub log_used_bytes: u64,
    /// Size of the log ring.
    pub log_bytes: u64,
    /// `Open`, `Full`, or `Stopped` after a device failure.
    pub state: PoolState,
    /// True while a write is held until there is space.
    pub holds_writes: bool,
    /// The watermark that the pool has reached; space that it can grow into counts as free.
    pub low_water: Watermark,
    /// Number of copies in which map nodes and catalogue are written, 1 or 2.
    pub metadata_copies: u8,
    /// Number of damaged blocks that were written anew since the pool was opened: from their copies,
    /// and on one side of a mirror from another.
    pub healed_blocks: u64,
    /// True if a side of the mirror is missing or behind.
    pub degraded: bool,
    /// What is missing since the catalogue was damaged.
    pub missing: Missing,
    /// The damaged log record before whose changes a pool that is only read stands.
    pub log_damaged_at: Option<Sequence>,
}

impl Status {
    /// Returns the bytes that can still be written, including those freed soon and those that the
    /// pool can grow by itself.
    #[must_use]
    pub const fn available_bytes(&self) -> u64 {
        let growth = self.limit_bytes - self.size_bytes;
        self.free_bytes + self.pending_free_bytes + growth
    }

    /// Returns the bytes of data and map that the pool can hold, grown to its limit.
    #[must_use]
    pub const fn capacity_bytes(&self) -> u64 {
        self.limit_bytes - self.metadata_bytes
    }

    /// Returns the number of bytes that the host's file system lacks for what the pool may still
    /// take; `None` if it has enough.
    #[must_use]
    pub fn host_shortage_bytes(&self) -> Option<u64> {
        let wanted = self.limit_bytes.saturating_sub(self.host_bytes);
        let short = wanted.saturating_sub(self.host_free_bytes?);
        (short > 0).then_some(short)
    }
}

/// Steps on the way to a full pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Watermark {
    /// A tenth or more is left.
    #[default]
    Ample,
    /// Less than a tenth is left.
    Low,
    /// Less than a twentieth is left.
    VeryLow,
    /// Less than a hundredth is left.
    Critical,
    /// Writes are refused or held.
    Full,
}

impl fmt::Display for Watermark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ample => "the pool has ample free space",
            Self::Low => "less than 10 % of the pool is free",
            Self::VeryLow => "less than 5 % of the pool is free",
            Self::Critical => "less than 1 % of the pool is free",
            Self::Full => "the pool is full",
        })
    }
}

/// Tells whether the pool takes writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolState {
    /// It takes writes.
    Open,
    /// Writes are refused for lack of space.
    Full,
    /// The device failed; close and open again.
    Stopped,
    /// It was opened for reading only.
    ReadOnly,
}

/// The kind of a volume's range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Blocks that are mapped.
    Data,
    /// A hole: reads as zeros.
    Zero,
}

/// A range of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The offset in bytes.
    pub offset_bytes: u64,
    /// The length in bytes.
    pub len_bytes: u64,
    /// The kind of the range.
    pub kind: ExtentKind,
}

/// The kind of a record that the catalogue keeps for the crates above (images, containers, …). The
/// pool keeps keys and values as bytes, in the same transactions as the volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKind(pub u16);

impl RecordKind {
    /// An image; the key is its id.
    pub const IMAGE: Self = Self(1);
    /// A container; the key is its id.
    pub const CONTAINER: Self = Self(2);
    /// A reference (tag) to an image; the key is the reference.
    pub const REFERENCE: Self = Self(3);
    /// A snapshot that was made for containerd; the key is its key or name there.
    pub const SNAPSHOT: Self = Self(4);
    /// A volume to which a write was refused; the key is its id in decimal, and there is no value.
    pub const REFUSED: Self = Self(5);
    /// A hold, which keeps a volume from being removed: see `Transaction::hold`.
    pub const HOLD: Self = Self(6);
}

/// The progress and the findings of a scrub.
#[derive(Clone, Debug, Default)]
pub struct ScrubReport {
    /// Blocks read and verified by this call.
    pub blocks: u64,
    /// True if an earlier scrub was continued.
    pub resumed: bool,
    /// True if it reached the end; otherwise the next one continues from here.
    pub finished: bool,
    /// Blocks that could not be read or had a wrong checksum; at most 10,000.
    pub bad: Vec<ScrubFault>,
    /// Number of further bad blocks.
    pub bad_omitted: u64,
    /// Number of damaged blocks that were written anew from their copies. They are not bad.
    pub healed: u64,
}

/// The end of the last scrub that read everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastScrub {
    /// The time at which it ended.
    pub finished: SystemTime,
    /// Number of bad blocks that it found.
    pub bad: u64,
}

/// The kind of a bad block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScrubFaultKind {
    /// A block of a volume's data.
    Data,
    /// A node of a volume's map; everything below it cannot be read.
    Map,
    /// A range of a volume that an earlier repair or recovery has given up.
    Lost,
    /// A block or node of the catalogue.
    Catalogue,
    /// The bitmap of an allocation group; the next checkpoint writes it anew.
    Bitmap,
    /// A superblock or its copy.
    Superblock,
    /// One of two copies of a map node or of a block of the catalogue, or a block of data on one side
    /// of a mirror, which could not be written anew; another one is good.
    Copy,
}

impl ScrubFaultKind {
    /// Returns the kind as a word for machines.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Map => "map",
            Self::Lost => "lost",
            Self::Catalogue => "catalogue",
            Self::Bitmap => "bitmap",
            Self::Superblock => "superblock",
            Self::Copy => "copy",
        }
    }
}

/// One bad block, found by a scrub.
#[derive(Clone, Debug)]
pub struct ScrubFault {
    /// The kind of block.
    pub kind: ScrubFaultKind,
    /// The volume in which it was found; 0 stands for none (the catalogue, or the pool).
    pub volume: VolumeId,
    /// Offset in the volume at which the unreadable range starts.
    pub offset_bytes: u64,
    /// Length of the unreadable range.
    pub len_bytes: u64,
    /// Its address in the pool, in bytes.
    pub pool_offset_bytes: u64,
}
