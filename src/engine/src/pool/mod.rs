//! The pool: volumes, their forest, and opening, writing, checkpoints and reclaim.
//!
//! This is the engine's public interface: [`Pool`], [`Volume`] and [`Transaction`]. It knows
//! nothing of files, loop devices, images or containers; for the crates above it stores records as
//! bytes.
//!
//! `lock_order` lists the locks in the order in which they are taken. Reading data takes none of
//! them. No lock is held while data is read or written.

mod background;
mod catalogue;
mod change;
mod checkpoint;
mod create;
mod differences;
mod discard;
mod forest;
mod grow;
mod handle;
mod heal;
mod holds;
mod host;
mod info;
mod keep;
mod lock_order;
mod mirror;
mod missing;
mod open;
mod pause;
mod plan;
mod prune;
mod publish;
mod read;
mod rebuild;
mod reclaim;
mod replay;
mod resync;
mod scrub;
mod scrub_data;
mod shared;
mod sides;
mod space_wait;
mod status;
mod superblocks;
mod transaction;
mod volume;
mod waiter;
mod watermark;
mod write;

#[cfg(test)]
mod tests;

pub use cowshed_format::superblock::VERSION as FORMAT_VERSION;
pub use create::refuse_unless_empty;
pub use forest::KeyAndValue;
pub use handle::{Hold, Pool, Volume};
pub use info::{
    CreateOptions, Extent, ExtentKind, FullOptions, FullPolicy, Labels, LastScrub, MetadataCopies,
    Notes, OpenOptions, PoolState, RecordKind, RemovedVolume, ScrubFault, ScrubFaultKind,
    ScrubReport, Status, VolumeInfo, VolumeKind, Watermark,
};
pub use keep::KeptByReader;
pub use mirror::NewSide;
pub use missing::Missing;
pub use open::{is_side_alone, prepare, uuid_of};
pub use pause::FlushPause;
pub use resync::CopyProgress;
pub use transaction::Transaction;
pub use waiter::{WaitFreely, Waiter, Waiting};

pub use cowshed_format::catalogue::MAX_VOLUME_BYTES;
/// Maximum length of a record's key in bytes.
pub const MAX_KEY_BYTES: usize = 1024;
/// Maximum length of a record's value in bytes.
pub const MAX_VALUE_BYTES: usize = 1 << 20;
/// Maximum number of bytes of all labels of a volume together.
pub const MAX_LABELS_BYTES: usize = 16 << 10;
