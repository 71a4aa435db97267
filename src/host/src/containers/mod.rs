//! Containers: thin writable roots of images.
//!
//! A container is a record, a name and the volume `container/<id>`, created and removed in single
//! transactions. A block root is a clone of the image's top layer; an overlay root has that layer
//! below it, and its own volume holds what it changed. A mount is not stored: it belongs to this
//! host and to the life of this process. `mounting` mounts and unmounts both kinds, `create` makes
//! them, `diff` finds the changes of a container, `commit` makes an image of them, `copy` copies
//! files in and out, `send` takes a snapshot for a stream, `adopt` takes over the mounts of a process that died.
//!
//! # Invariants
//! - A container's own lock is held while its volume is mounted, unmounted, compared or removed.
//! - The lock of the catalogue, which [`Images`] has, is taken after it.

mod adopt;
mod commit;
mod copy;
mod create;
mod diff;
mod mounting;
mod roles;
mod send;
mod users;
mod words;

pub use copy::{CopyOptions, CopyReport, CopySide};
pub use diff::{ChangeKind, ContainerChange};
pub use roles::{VolumeRole, VolumeRoles};
pub use users::VolumeUsers;

use crate::error::Result;
use crate::images::Images;
use crate::layers::Layers;
use crate::mounts::{Locks, Mounts, hold};
use crate::record::{self, ContainerRecord, RootKind};
use cowshed_engine::Pool;
use cowshed_format::base::Name;
use mounting::ContainerMount;
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

/// The options for creating a container.
#[derive(Clone, Debug, Default)]
pub struct CreateContainer {
    /// Its name; by default two random words.
    pub name: Option<Name>,
    /// The size of its file system. By default that of the image, or more if the image leaves
    /// little of the usual free space; never less than the image's. The file system of an overlay
    /// root holds only what changed, and is of the usual size.
    pub size_bytes: Option<u64>,
    /// The kind of its root.
    pub root: RootKind,
}

/// A container that was created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CreatedContainer {
    /// 256 random bits in hexadecimal.
    pub id: String,
    /// The name.
    pub name: String,
}

/// A mounted container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MountedContainer {
    /// The directory that is its root.
    pub path: PathBuf,
}

/// A container in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ContainerSummary {
    /// 256 random bits in hexadecimal.
    pub id: String,
    /// The name.
    pub name: String,
    /// The image's name when the container was created.
    pub image: String,
    /// The kind of its root.
    pub root: RootKind,
    /// The mount point, if it is mounted.
    pub mounted: Option<PathBuf>,
    /// Bytes that only this container holds.
    pub own_bytes: u64,
    /// Bytes that its root shows, including shared ones.
    pub virtual_bytes: u64,
    /// The time when it was created.
    #[serde(serialize_with = "crate::time::rfc3339")]
    pub created: SystemTime,
}

/// The containers of one pool on this host; thread safe.
pub struct Containers {
    mounts: Arc<Mounts>,
    layers: Arc<Layers>,
    images: Arc<Images>,
    /// The mounted containers, by id.
    mounted: Mutex<BTreeMap<String, ContainerMount>>,
    /// The locks of the containers, by id.
    locks: Locks<String>,
}

impl Containers {
    pub(crate) fn new(mounts: &Arc<Mounts>, layers: &Arc<Layers>, images: &Arc<Images>) -> Self {
        Self {
            mounts: Arc::clone(mounts),
            layers: Arc::clone(layers),
            images: Arc::clone(images),
            mounted: Mutex::default(),
            locks: Locks::default(),
        }
    }

    fn pool(&self) -> &Pool {
        self.mounts.pool()
    }

    /// Returns the folder in which containers are mounted by default, each in its own folder.
    pub(crate) fn dir(&self) -> PathBuf {
        self.mounts.state_dir().join("mounts")
    }

    /// Unmounts all containers.
    ///
    /// # Errors
    /// `MountBusy` and similar errors for the first that is in use.
    pub(crate) fn close(&self) -> Result<()> {
        let mounted: Vec<String> = self.mounted.lock().keys().cloned().collect();
        for id in mounted {
            self.unmount(&id)?;
        }
        Ok(())
    }

    /// Forgets the mounts without unmounting them, for a successor to find.
    pub(crate) fn leave(&self) {
        self.mounted.lock().clear();
    }

    /// Returns all containers, newest last.
    ///
    /// # Errors
    /// `Record` if a record is unreadable, and errors of the pool.
    pub fn list(&self) -> Result<Vec<ContainerSummary>> {
        let mut summaries = Vec::new();
        for record in record::containers(self.pool())? {
            // A container that is removed meanwhile is not listed.
            let Some(info) = record.volume(self.pool()).and_then(|v| Ok(v.info()?)).ok() else {
                continue;
            };
            let created = record.created();
            let virtual_bytes = info.referenced_bytes + self.lower_bytes(&record);
            summaries.push(ContainerSummary {
                mounted: self
                    .mounted
                    .lock()
                    .get(&record.id)
                    .map(|mount| mount.path.clone()),
                id: record.id,
                name: record.name,
                image: record::short_name(&record.image_name),
                own_bytes: info.own_bytes,
                virtual_bytes,
                root: record.root,
                created,
            });
        }
        summaries.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        Ok(summaries)
    }

    /// Returns the bytes that a container shows of the lower layer of its overlay.
    fn lower_bytes(&self, record: &ContainerRecord) -> u64 {
        if record.root == RootKind::Block {
            return 0;
        }
        let info = self.image_top(record).and_then(|top| Ok(top.info()?));
        info.map_or(0, |info| info.referenced_bytes)
    }

    /// Removes the container; it is unmounted first if no process uses it.
    ///
    /// # Errors
    /// `NotFound`, and `MountBusy` while a process uses it.
    pub fn remove(&self, container: &str) -> Result<CreatedContainer> {
        let record = record::find_container(self.pool(), container)?;
        let lock = self.locks.of(&record.id);
        let _held = hold(&lock)?;
        let volume = record.volume(self.pool())?;
        if self.mounted_at(&record)?.is_some() {
            self.unmount_locked(&record.id, &volume)?;
        }
        {
            let _held = self.images.lock_catalogue();
            let mut transaction = self.pool().transaction();
            record::remove_container(&mut transaction, &record);
            transaction.remove(volume.id());
            transaction.commit()?;
        }
        self.pool().flush()?;
        self.locks.forget(&record.id);
        Ok(CreatedContainer {
            id: record.id,
            name: record.name,
        })
    }
}
