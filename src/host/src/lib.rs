//! Images as stacks of frozen volumes and containers as thin clones of them, on this host.
//!
//! This crate is not a runtime: it executes nothing in a container. A [`Host`] ties a pool to a
//! folder of this host, and every operation is one of its methods: [`Host::import_image`] and its
//! like in `import`, `image` and `archive`, [`Host::create_container`] and its like in `root`,
//! `diff`, `commit` and `copy`, [`Host::create_data_volume`] and its like in `data`; `roots` shows
//! volumes to others without keeping a record. `filesystem` and `ext4` handle the content of a
//! volume, `record` that of the catalogue.
//!
//! # Invariants
//! - A volume that an operation makes has a temporary name until one transaction gives it its final
//!   one; an interruption leaves nothing that the next start does not remove.
//! - No lock of the pool is held while a file on a mounted volume is read or written: this process
//!   may be the one that serves that volume.
//! - Every volume that an operation leaves holds a clean file system.

mod adoption;
mod archive;
mod commit;
mod copy;
mod data;
mod data_mounts;
mod diff;
mod error;
mod ext4;
mod filesystem;
mod frozen;
mod host;
mod image;
mod import;
mod quiesce;
mod record;
mod refusals;
mod room;
mod root;
mod roots;
mod stacked;
mod streams;
mod time;
mod transfer;
mod users;
mod words;

pub use adoption::clean_stale_mounts;
pub use archive::{ExportedImage, ExportedLayer};
pub use copy::{CopyOptions, CopyReport, CopySide};
pub use data::{CreateDataVolume, DataVolume};
pub use diff::{ChangeKind, Comparison, ContainerChange};
pub use error::{Error, Kind, Names, RecordFault, Result, Shortage};
pub use filesystem::{DEFAULT_SIZE_BYTES, ERRORS_OPTION, MAX_SIZE_BYTES, MIN_SIZE_BYTES};
pub use host::Host;
pub use image::{HistoryStep, ImageDetails, ImageSummary, LayerDetails, RemovedImage};
pub use import::{ImportOptions, ImportProgress, ImportedImage, ImportedLayer};
pub use room::Sizing;
pub use root::{ContainerSummary, CreateContainer, CreatedContainer, MountedContainer};
pub use roots::{LayerOptions, QuiescedRoot, RootUse, Sealed};
pub use users::VolumeUsers;
