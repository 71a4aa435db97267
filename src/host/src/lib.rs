//! Images as stacks of frozen volumes and containers as thin clones of them, on this host.
//!
//! Not a runtime: nothing is executed in a container. A [`Host`] ties a pool to a folder of this
//! host, and every operation is one of its methods: [`Host::import_image`] and its like in
//! `import`, `image` and `archive`, [`Host::create_container`] and its like in `root`, `diff`,
//! `commit` and `copy`, [`Host::create_data_volume`] and its like in `data`; `roots` shows volumes
//! to others without a record of its own. `filesystem` and `ext4` know what is in a volume,
//! `record` what is in the catalogue, `changes` what two volumes' file systems differ in and `tree`
//! what two mounted trees do.
//!
//! # Invariants
//! - What an operation makes has a name in work until one transaction gives it its place; whatever
//!   interrupts it leaves nothing that the next start does not remove.
//! - No lock of the pool is held while a file on a mounted volume is read or written: this process
//!   may be the one that serves that volume.
//! - Every volume that an operation leaves holds a clean file system.

mod adoption;
mod archive;
mod changes;
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
mod tree;
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
