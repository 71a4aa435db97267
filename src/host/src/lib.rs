//! Images as stacks of frozen volumes and containers as thin clones of them, on this host.
//!
//! This crate is not a runtime: it executes nothing in a container. A [`Host`] ties a pool to a
//! folder of this host. It opens, adopts and closes the parts of this crate in the right order, and
//! hands them out:
//!
//! | part | what it does | uses |
//! |---|---|---|
//! | [`Mounts`] | volumes attached and mounted, and snapshots of mounted ones | |
//! | [`Layers`] | the changes between volumes, written and unpacked as layers | `mounts` |
//! | [`Images`] | importing, listing, exporting and removing images | `mounts`, `layers` |
//! | [`Containers`] | creating, mounting, comparing, committing and copying | all three |
//! | [`Roots`] | volumes shown to containerd and Docker, without a record here | `mounts`, `layers` |
//! | [`DataVolumes`] | file systems for data that outlives containers | `mounts` |
//! | [`transfer`] | sets of images, containers and volumes for streams | all but the last two |
//!
//! Each has a module with its name. Below all of them, `error` has the errors, `record` the records
//! of images and containers in the pool's catalogue, and `time` the format of times.
//!
//! # Invariants
//! - A volume that an operation makes has a temporary name until one transaction gives it its final
//!   one; an interruption leaves nothing that the next start does not remove.
//! - No lock of the pool is held while a file on a mounted volume is read or written: this process
//!   may be the one that serves that volume.
//! - Every volume that an operation leaves holds a clean file system.
//! - Locks are taken in this order: a container's or root's own, a volume's, the catalogue's.

mod containers;
mod data;
mod error;
mod host;
mod images;
mod layers;
mod mounts;
mod record;
mod roots;
mod time;
pub mod transfer;

pub use containers::{
    ChangeKind, ContainerChange, ContainerSummary, Containers, CopyOptions, CopyReport, CopySide,
    CreateContainer, CreatedContainer, MountedContainer, VolumeRole, VolumeRoles, VolumeUsers,
};
pub use data::{CreateDataVolume, DataVolume, DataVolumes};
pub use error::{Error, Kind, Names, RecordFault, Result, Shortage};
pub use host::Host;
pub use images::{
    ExportedImage, ExportedLayer, HistoryStep, ImageDetails, ImageSummary, Images, ImportOptions,
    ImportProgress, ImportedImage, ImportedLayer, LayerDetails, RemovedImage, TaggedImage,
};
pub use layers::{Comparison, Layers, Sizing};
pub use mounts::filesystem::{DEFAULT_SIZE_BYTES, ERRORS_OPTION, MAX_SIZE_BYTES, MIN_SIZE_BYTES};
pub use mounts::{Mounts, clean_stale_mounts};
pub use record::{RootKind, UnknownRootKind, is_image_name};
pub use roots::{LayerOptions, QuiescedRoot, RootUse, Roots, Sealed};
