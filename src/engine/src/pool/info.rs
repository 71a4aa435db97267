//! What the pool tells about itself and its volumes, and the options of its calls.

use cowshed_format::base::{Generation, Name, VolumeId};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Labels of a volume: keys and values, at most 16 KiB together.
pub type Labels = BTreeMap<String, String>;

/// How a pool is made.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// Bytes in the log ring; `None` chooses by the pool's size (4 to 256 MiB).
    pub log_bytes: Option<u64>,
    /// Overwrite what the device holds.
    pub force: bool,
}

/// How a pool is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The limit of the node cache in bytes, dirty nodes included.
    pub cache_bytes: u64,
    /// Run the background threads (checkpoint by time and log fill, reclaim, hole punching).
    /// Without them all of it happens in `checkpoint`, `reclaim` and `close`: for tests.
    pub background: bool,
    /// What is done when the pool is full.
    pub full: FullOptions,
    /// Go on where a process stopped that had the pool open until a moment ago, on a kernel that
    /// has run on since: the newest superblock known to be durable then (`Notes::durable`). What
    /// that process wrote is all there, flushed or not, so nothing needs to be verified or made
    /// durable before the pool serves. Without it, or if the device has a newer superblock, the
    /// pool is recovered as after a power cut.
    pub resumes: Option<Generation>,
    /// Who is told of what a successor must know.
    pub notes: Notes,
    /// Write nothing to the device: recovery happens in memory, every change is refused with
    /// `ReadOnly`, and no background thread runs. For a pool whose host takes no writes.
    pub read_only: bool,
}

/// Who is told, from the opening on, of what a successor of this process must know.
#[derive(Clone, Default)]
pub struct Notes {
    /// Called when the device fails and the pool stops, before anybody is answered with that: what
    /// the host reported as not written may be in its page cache all the same, and must not be
    /// taken for durable by whoever opens the pool next.
    pub device_failed: Option<Arc<dyn Fn() + Send + Sync>>,
    /// Called with the generation of each superblock that has become durable: what a successor
    /// needs in order to go on (`OpenOptions::resumes`).
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

/// What is done when the pool is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FullOptions {
    /// What becomes of a write that finds no room.
    pub policy: FullPolicy,
    /// The size up to which the pool grows by itself, in bytes; `None` for never. Only a pool in a
    /// regular file grows.
    pub max_size_bytes: Option<u64>,
}

/// What becomes of a write that finds no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FullPolicy {
    /// It answers `NoSpace` at once.
    #[default]
    Error,
    /// It is held for so long while someone makes room, and then answers `NoSpace`.
    Wait(Duration),
    /// A write to what is mounted or attached is held for so long; any other answers `NoSpace` at
    /// once, as its caller can tell its user.
    WaitAttached(Duration),
}

/// Whether a volume can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeKind {
    /// Writable.
    Volume,
    /// Frozen for ever.
    Snapshot,
}

/// What is known of a volume, all of it O(1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// The volume's id.
    pub id: VolumeId,
    /// Its name.
    pub name: Name,
    /// The volume that it was cloned from or that was snapshotted from it.
    pub parent: Option<VolumeId>,
    /// Writable or frozen.
    pub kind: VolumeKind,
    /// The virtual size in bytes.
    pub size_bytes: u64,
    /// Bytes (data and map) that only this volume owns.
    pub own_bytes: u64,
    /// Bytes of data that the volume maps, whoever owns them.
    pub referenced_bytes: u64,
    /// When it was made.
    pub created: SystemTime,
    /// Its labels.
    pub labels: Labels,
    /// How many volumes have it as their parent.
    pub children: u32,
}

/// A volume that was removed and of which something is still there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedVolume {
    /// The id that it had.
    pub id: VolumeId,
    /// The volume that it was cloned from or that was snapshotted from it.
    pub parent: Option<VolumeId>,
    /// The virtual size in bytes.
    pub size_bytes: u64,
    /// Bytes (data and map) that it still keeps.
    pub own_bytes: u64,
    /// Bytes of data that it maps, whoever owns them.
    pub referenced_bytes: u64,
    /// When it was made.
    pub created: SystemTime,
    /// The volumes that read from it. With two or more it keeps what any of them needs, until one
    /// is left; with fewer it is about to go.
    pub children: Vec<VolumeId>,
    /// Whether a volume with a name stands on it, itself or through others: then its bytes are in
    /// use, and otherwise about to be freed.
    pub is_needed: bool,
}

/// What the pool as a whole looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Size of the pool.
    pub size_bytes: u64,
    /// In use by data and map. With `free_bytes`, `pending_free_bytes`, `reserved_bytes` and
    /// `metadata_bytes` it makes up the size.
    pub used_bytes: u64,
    /// Can be allocated now.
    pub free_bytes: u64,
    /// Freed, waiting for a checkpoint or for background reclaim.
    pub pending_free_bytes: u64,
    /// Free, but promised to changes that only the log has yet, or kept back so that removing and
    /// checkpoints go through in a full pool.
    pub reserved_bytes: u64,
    /// Of `used_bytes`: what removed volumes own because others still stand on them.
    pub removed_shared_bytes: u64,
    /// Superblocks, log and bitmaps, and a rest at the end that is too short for a group.
    pub metadata_bytes: u64,
    /// What the pool takes on its host.
    pub host_bytes: u64,
    /// What the host's file system has left; `None` where the pool has all its space already.
    pub host_free_bytes: Option<u64>,
    /// The size up to which the pool grows by itself; its present size if it does not.
    pub limit_bytes: u64,
    /// Named volumes and snapshots.
    pub volumes: u64,
    /// The current generation.
    pub generation: u64,
    /// Bytes of log since the last checkpoint.
    pub log_used_bytes: u64,
    /// Size of the log ring.
    pub log_bytes: u64,
    /// `Open`, `Full`, or `Stopped` after a device failure.
    pub state: PoolState,
    /// A write is held until there is room.
    pub holds_writes: bool,
    /// How near it is to being full, growth by itself counted as room.
    pub low_water: Watermark,
}

impl Status {
    /// Bytes that can still be written, with what is freed soon and what the pool grows by itself.
    #[must_use]
    pub const fn available_bytes(&self) -> u64 {
        let growth = self.limit_bytes - self.size_bytes;
        self.free_bytes + self.pending_free_bytes + growth
    }

    /// Bytes of data and map that the pool can hold, grown to its limit.
    #[must_use]
    pub const fn capacity_bytes(&self) -> u64 {
        self.limit_bytes - self.metadata_bytes
    }

    /// By how much the host's file system has less room than the pool may still take; `None`
    /// when it has enough.
    #[must_use]
    pub fn host_shortage_bytes(&self) -> Option<u64> {
        let wanted = self.limit_bytes.saturating_sub(self.host_bytes);
        let short = wanted.saturating_sub(self.host_free_bytes?);
        (short > 0).then_some(short)
    }
}

/// How near a pool is to being full.
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
            Self::Ample => "the pool has ample room",
            Self::Low => "less than 10 % of the pool is left",
            Self::VeryLow => "less than 5 % of the pool is left",
            Self::Critical => "less than 1 % of the pool is left",
            Self::Full => "the pool is full",
        })
    }
}

/// Whether the pool takes writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolState {
    /// All well.
    Open,
    /// Writes are refused for want of space.
    Full,
    /// The device failed; close and open again.
    Stopped,
    /// It was opened for reading only.
    ReadOnly,
}

/// What a range of a volume holds.
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
    /// Where it starts in bytes.
    pub offset_bytes: u64,
    /// How long it is in bytes.
    pub len_bytes: u64,
    /// What it holds.
    pub kind: ExtentKind,
}

/// What kind of record the catalogue keeps for the crates above (images, containers, …). The pool
/// keeps keys and values as bytes, in the same transactions as the volumes.
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
}

/// How far a scrub got.
#[derive(Clone, Debug, Default)]
pub struct ScrubReport {
    /// Blocks read and verified by this call.
    pub blocks: u64,
    /// An earlier scrub was gone on with.
    pub resumed: bool,
    /// It came to the end; otherwise the next one goes on from here.
    pub finished: bool,
    /// Blocks that could not be read or had a wrong checksum; at most 10,000.
    pub bad: Vec<ScrubFault>,
    /// How many more there were.
    pub bad_omitted: u64,
}

/// What a bad block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScrubFaultKind {
    /// A block of a volume's data.
    Data,
    /// A node of a volume's map; what it leads to cannot be read.
    Map,
    /// A range of a volume that an earlier repair or recovery has given up.
    Lost,
    /// A block or node of the catalogue.
    Catalogue,
    /// The bitmap of an allocation group; the next checkpoint writes it anew.
    Bitmap,
    /// A superblock or its copy.
    Superblock,
}

impl ScrubFaultKind {
    /// The kind as a word for machines.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Map => "map",
            Self::Lost => "lost",
            Self::Catalogue => "catalogue",
            Self::Bitmap => "bitmap",
            Self::Superblock => "superblock",
        }
    }
}

/// One bad block, found by a scrub.
#[derive(Clone, Debug)]
pub struct ScrubFault {
    /// What it is.
    pub kind: ScrubFaultKind,
    /// The volume in which it was found; 0 is none (the catalogue, or the pool).
    pub volume: VolumeId,
    /// Where in the volume what cannot be read starts.
    pub offset_bytes: u64,
    /// How much cannot be read.
    pub len_bytes: u64,
    /// Its address in the pool, in bytes.
    pub pool_offset_bytes: u64,
}
