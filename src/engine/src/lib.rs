//! A copy-on-write pool of thin volumes in one file or block device.
//!
//! A [`Pool`] has named volumes of any size. Any number of threads may read and write a
//! volume at any offset; a snapshot or a clone of it takes a microsecond and no space. Flushed data
//! survives a power cut, and written data survives the process. Damage of the medium makes the
//! damaged range an error to read and affects nothing else.
//!
//! ```
//! use cowshed_engine::{CreateFile, CreateOptions, FileDevice, Name, OpenOptions, Pool};
//! use std::sync::Arc;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("pool");
//! let device = FileDevice::create(path, 64 << 20, CreateFile::default())?;
//! Pool::create(&device, &CreateOptions::default())?;
//! let pool = Pool::open(Arc::new(device), &OpenOptions::default())?;
//!
//! let volume = pool.create_volume(&Name::new("disk")?, 1 << 30)?;
//! volume.write_at(b"first", 0)?;
//! let snapshot = pool.snapshot(&volume, &Name::new("disk@1")?)?;
//! volume.write_at(b"other", 0)?;
//! pool.flush()?;
//!
//! let mut found = [0; 5];
//! snapshot.read_at(&mut found, 0)?;
//! assert_eq!(&found, b"first");
//! # Ok(())
//! # }
//! ```
//!
//! It knows no files in volumes, no containers, and none of its callers: `cowshed-export` serves
//! volumes, `cowshed-host` makes images and containers of them. The place and the meaning of a
//! pool's bytes belong to `cowshed-format`, which `cowshed-check` reads without this crate.
//!
//! | module | what it does | uses |
//! |---|---|---|
//! | `space` | which blocks are free | |
//! | `log` | the ring of records of what was done since the last checkpoint | |
//! | `map` | where each block of a volume lies | `space` |
//! | `pool` | volumes, writes, checkpoints, recovery | all of them |
//!
//! # Invariants
//! - A write that has returned is in the log region of the device; a flushed write is durable.
//! - A block that a durable checkpoint or a log record needs is not overwritten.
//! - No bytes of a device make it panic; bytes that do not verify are an error.

mod log;
mod map;
mod pool;
mod space;

// What a user of pools needs of the crate below.
pub use cowshed_format::base::{CorruptKind, Error, Name, Result, VolumeId};
pub use cowshed_format::device::{CreateFile, Device, FileDevice, FileOptions};
#[cfg(feature = "loom")]
pub use map::entries_models;
pub use pool::{
    CopyProgress, CreateOptions, Extent, ExtentKind, FORMAT_VERSION, FlushPause, FullOptions,
    FullPolicy, Hold, KeptByReader, KeyAndValue, Labels, LastScrub, MAX_KEY_BYTES,
    MAX_LABELS_BYTES, MAX_VALUE_BYTES, MAX_VOLUME_BYTES, MetadataCopies, Missing, NewSide, Notes,
    OpenOptions, Pool, PoolState, RecordKind, RemovedVolume, ScrubFault, ScrubFaultKind,
    ScrubReport, Status, Transaction, Volume, VolumeInfo, VolumeKind, WaitFreely, Waiter, Waiting,
    Watermark, is_side_alone, prepare, refuse_unless_empty, uuid_of,
};
