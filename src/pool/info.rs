//! What the pool tells about itself and its volumes, and the options of its calls.

use crate::base::{Name, VolumeId};
use std::collections::BTreeMap;
use std::time::SystemTime;

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
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 256 << 20,
            background: true,
        }
    }
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

/// What the pool as a whole looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Size of the pool.
    pub size_bytes: u64,
    /// In use by data and map.
    pub used_bytes: u64,
    /// Can be allocated now.
    pub free_bytes: u64,
    /// Freed, waiting for a checkpoint or for background reclaim.
    pub pending_free_bytes: u64,
    /// Superblocks, log, bitmaps, catalogue and map nodes.
    pub metadata_bytes: u64,
    /// What the pool takes on its host.
    pub host_bytes: u64,
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

/// What kind of record the catalogue keeps for the rooms above (images, containers, …). The pool
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
    /// Blocks that could not be read or had a wrong checksum.
    pub bad: Vec<ScrubFault>,
}

/// One bad block, found by a scrub.
#[derive(Clone, Debug)]
pub struct ScrubFault {
    /// The volume in which it was found.
    pub volume: VolumeId,
    /// Where in the volume.
    pub offset_bytes: u64,
    /// Its address in the pool, in bytes.
    pub pool_offset_bytes: u64,
}
