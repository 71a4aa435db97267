//! A copy-on-write pool of thin volumes in one file or block device.
//!
//! A [`Pool`] has named volumes of any size. A volume is read and written at any offset
//! by any number of threads; a snapshot or a clone of it takes a microsecond and no space. What was
//! flushed survives a power cut, what was written survives the process, and what the medium damages
//! is an error to read and nothing else.
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
//! It knows no files in volumes, no containers, and nobody who calls it: `cowshed-export` serves
//! volumes, `cowshed-host` makes images and containers of them. Where a pool's bytes lie and what
//! they mean is `cowshed-format`, which `cowshed-check` reads without this crate.
//!
//! | module | what it does | uses |
//! |---|---|---|
//! | `space` | which blocks are free | |
//! | `log` | the ring of records of what was done since the last checkpoint | |
//! | `map` | where each block of a volume lies | `space` |
//! | `pool` | volumes, writes, checkpoints, recovery | all of them |
//!
//! # Invariants
//! - A write that has returned is in the log region of the device; one that was flushed is durable.
//! - A block that a durable checkpoint or a record of the log needs is not written over.
//! - No bytes of a device make it panic; what does not verify is an error.

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
    CreateOptions, Extent, ExtentKind, FORMAT_VERSION, FlushPause, FullOptions, FullPolicy, Hold,
    KeyAndValue, Labels, MAX_KEY_BYTES, MAX_LABELS_BYTES, MAX_VALUE_BYTES, MAX_VOLUME_BYTES, Notes,
    OpenOptions, Pool, PoolState, RecordKind, RemovedVolume, ScrubFault, ScrubFaultKind,
    ScrubReport, Status, Transaction, Volume, VolumeInfo, VolumeKind, Watermark, uuid_of,
};
