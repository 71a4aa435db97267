//! Containers: thin writable roots, each a clone of its image's top layer.
//!
//! A container is a record, a name and the volume `container/<id>`, created and removed in single
//! transactions. A mount is not stored: it belongs to this host and to the life of this process.
//! `diff` finds the changes of a container, `commit` makes an image of them, `copy` copies files in
//! and out, `send` takes a snapshot for a stream, `adopt` takes over the mounts of a process that died.
//!
//! # Invariants
//! - A container's own lock is held while its volume is mounted, unmounted, compared or removed.
//! - The lock of the catalogue, which [`Images`] has, is taken after it.

mod adopt;
mod commit;
mod copy;
mod diff;
mod roles;
mod send;
mod users;
mod words;

pub use copy::{CopyOptions, CopyReport, CopySide};
pub use diff::{ChangeKind, ContainerChange};
pub use roles::{VolumeRole, VolumeRoles};
pub use users::VolumeUsers;

use crate::error::{Error, Kind, Result};
use crate::images::Images;
use crate::layers::Layers;
use crate::mounts::filesystem::{self, Access, Mode};
use crate::mounts::{Locks, Mounts, WorkVolumes, hold, random_hex};
use crate::record::{self, ContainerRecord, FoundImage};
use cowshed_engine::{Labels, Pool, Volume};
use cowshed_format::base::{self, Name};
use cowshed_oci::Digest;
use cowshed_sys::mount;
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// Number of attempts to find a random name before an unlikely long one is used.
const NAME_TRIES: u32 = 8;

/// The options for creating a container.
#[derive(Clone, Debug, Default)]
pub struct CreateContainer {
    /// Its name; by default two random words.
    pub name: Option<Name>,
    /// The size of its file system. By default that of the image, or more if the image leaves
    /// little of the usual free space; never less than the image's.
    pub size_bytes: Option<u64>,
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

/// The origin of a container.
struct Origin {
    image: Digest,
    image_name: String,
    layer: Volume,
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

/// The mount of a container.
#[derive(Clone, Debug)]
struct ContainerMount {
    path: PathBuf,
    device: PathBuf,
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

    /// Creates a container of `image`. Durable when it returns.
    ///
    /// # Errors
    /// `NotFound` or `Ambiguous` for the image, `EmptyImage` if it has no layers,
    /// `ContainerExists`, `TooSmall`, and errors of the pool.
    pub fn create(&self, image: &str, options: &CreateContainer) -> Result<CreatedContainer> {
        let origin = self.origin(image)?;
        let layer_bytes = origin.layer.size_bytes();
        let size_bytes = match options.size_bytes {
            Some(size_bytes) => size_bytes,
            None => self
                .layers
                .size_with_room(&origin.layer, filesystem::DEFAULT_SIZE_BYTES)?
                .unwrap_or(layer_bytes),
        };
        check_size(size_bytes, layer_bytes)?;
        let mut work = WorkVolumes::new(self.pool());
        let mut larger = None;
        if size_bytes > layer_bytes {
            larger = Some(
                self.mounts
                    .larger_copy(&origin.layer, size_bytes, &mut work)?,
            );
        }
        let record = self.add_container(origin, larger, options)?;
        work.keep();
        self.pool().flush()?;
        Ok(CreatedContainer {
            id: record.id,
            name: record.name,
        })
    }

    fn origin(&self, image: &str) -> Result<Origin> {
        let FoundImage { id, record, name } = record::find_image(self.pool(), image)?;
        let top = record.layers.last();
        let top = top.ok_or_else(|| Error::EmptyImage(image.into()))?;
        Ok(Origin {
            image: id,
            image_name: name.map_or_else(|| id.to_string(), |name| name.shown),
            layer: self.images.layer(top.chain_id)?,
        })
    }

    /// Commits the container's record and volume: `larger`, or a clone of the layer.
    fn add_container(
        &self,
        origin: Origin,
        larger: Option<Volume>,
        options: &CreateContainer,
    ) -> Result<ContainerRecord> {
        let _held = self.images.lock_catalogue();
        if record::image(self.pool(), origin.image)?.is_none() {
            // The image was removed while the file system was grown.
            return Err(Error::not_found(Kind::Image, &origin.image_name));
        }
        let name = self.free_name(options.name.as_ref())?;
        let id = random_hex::<32>()?;
        let record = ContainerRecord::new(id, &name, origin.image, origin.image_name);
        let volume_name = record::container_volume_name(&record.id)?;
        let mut transaction = self.pool().transaction();
        let volume = match larger {
            Some(larger) => {
                transaction.rename(larger.id(), &volume_name);
                larger.id()
            }
            None => transaction.clone_volume(origin.layer.id(), &volume_name),
        };
        let label = ("cowshed.container".to_owned(), record.name.clone());
        transaction.set_labels(volume, Labels::from([label]));
        record::put_container(&mut transaction, &record)?;
        transaction.commit()?;
        Ok(record)
    }

    fn free_name(&self, wanted: Option<&Name>) -> Result<Name> {
        let is_taken = |name: &Name| record::is_container_name_taken(self.pool(), name);
        if let Some(wanted) = wanted {
            if is_taken(wanted) {
                return Err(Error::ContainerExists(wanted.clone()));
            }
            return Ok(wanted.clone());
        }
        for _ in 0..NAME_TRIES {
            let name = Name::new(&words::random_name())?;
            if !is_taken(&name) {
                return Ok(name);
            }
        }
        Ok(Name::new(&format!(
            "{}-{}",
            words::random_name(),
            random_hex::<4>()?
        ))?)
    }

    /// Mounts the container's root at `dir`, or in the state folder. A container that is mounted
    /// there already stays mounted.
    ///
    /// # Errors
    /// `NotFound`, `MountedElsewhere`, and any error of the host.
    pub fn mount(&self, container: &str, dir: Option<&Path>) -> Result<MountedContainer> {
        let record = record::find_container(self.pool(), container)?;
        let lock = self.locks.of(&record.id);
        let _held = hold(&lock)?;
        let dir = dir.map(|dir| mount::resolve(dir).map_err(Error::io("find the directory", dir)));
        let dir = dir.transpose()?;
        if let Some(path) = self.mounted_at(&record)? {
            return match dir {
                Some(dir) if dir != path => Err(Error::MountedElsewhere {
                    container: record.name.into(),
                    path,
                }),
                _ => Ok(MountedContainer { path }),
            };
        }
        // Wherever it is mounted, this folder tells a successor that it is mounted.
        let own = self.dir().join(&record.id);
        fs::create_dir_all(&own).map_err(Error::io("create the directory", &own))?;
        let path = dir.unwrap_or_else(|| own.clone());
        let device = record
            .volume(self.pool())
            .and_then(|volume| {
                self.mounts
                    .attach_and_mount(&volume, &path, Mode::Container, Access::Programs)
            })
            .inspect_err(|_| {
                // Nothing is mounted there; at worst an empty folder remains.
                let _ = fs::remove_dir(&own);
            })?;
        let mount = ContainerMount {
            path: path.clone(),
            device,
        };
        self.mounted.lock().insert(record.id, mount);
        Ok(MountedContainer { path })
    }

    /// Returns the container's mount point, if it is mounted. Cleans up after a mount that somebody
    /// else has removed.
    pub(crate) fn mounted_at(&self, record: &ContainerRecord) -> Result<Option<PathBuf>> {
        let Some(known) = self.mounted.lock().get(&record.id).cloned() else {
            return Ok(None);
        };
        let found = mount::mount_at(&known.path)
            .map_err(Error::io("read", Path::new("/proc/self/mountinfo")))?;
        if found.is_some_and(|entry| Path::new(&entry.source) == known.device) {
            return Ok(Some(known.path));
        }
        self.mounts.export()?.detach(&record.volume(self.pool())?)?;
        self.mounted.lock().remove(&record.id);
        // An empty folder that remains does no harm.
        let _ = fs::remove_dir(self.dir().join(&record.id));
        Ok(None)
    }

    /// Unmounts the container. Data written to it is durable afterwards.
    ///
    /// # Errors
    /// `NotFound`, `NotMounted`, and `MountBusy` while a process uses it.
    pub fn unmount(&self, container: &str) -> Result<MountedContainer> {
        let record = record::find_container(self.pool(), container)?;
        let lock = self.locks.of(&record.id);
        let _held = hold(&lock)?;
        let Some(path) = self.mounted_at(&record)? else {
            return Err(Error::NotMounted(record.name.into()));
        };
        self.unmount_locked(&record.id, &record.volume(self.pool())?)?;
        self.pool().flush()?;
        Ok(MountedContainer { path })
    }

    fn unmount_locked(&self, id: &str, volume: &Volume) -> Result<()> {
        let known = self.mounted.lock().get(id).cloned();
        let Some(known) = known else {
            return Ok(());
        };
        self.mounts.unmount_and_detach(volume, &known.path)?;
        self.mounted.lock().remove(id);
        // An empty folder that remains does no harm.
        let _ = fs::remove_dir(self.dir().join(id));
        Ok(())
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
                virtual_bytes: info.referenced_bytes,
                created,
            });
        }
        summaries.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        Ok(summaries)
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

fn check_size(size_bytes: u64, min_bytes: u64) -> Result<()> {
    if size_bytes < min_bytes {
        return Err(Error::TooSmall { min_bytes });
    }
    if size_bytes > filesystem::MAX_SIZE_BYTES {
        return Err(Error::Pool(base::Error::InvalidSize {
            what: "a container's file system",
            min_bytes,
            max_bytes: filesystem::MAX_SIZE_BYTES,
        }));
    }
    Ok(())
}
