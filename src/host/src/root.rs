//! Containers: thin writable roots, each a clone of its image's top layer.
//!
//! A container is a record, a name and the volume `container/<id>`, made and removed in single
//! transactions. Mounting is a matter of this host and of this process's life: it is not stored.

use super::error::{Error, Kind, Names, Result};
use super::filesystem::{self, Access, Mode};
use super::host::{ContainerMount, Host, WorkVolumes, hold, random_hex};
use super::record::{self, ContainerRecord, FoundImage};
use super::words;
use cowshed_engine::{Labels, Volume};
use cowshed_format::base::{self, Name};
use cowshed_oci::Digest;
use cowshed_sys::mount;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// How often a random name is tried before an unlikely long one is taken.
const NAME_TRIES: u32 = 8;

/// How a container is made.
#[derive(Clone, Debug, Default)]
pub struct CreateContainer {
    /// Its name; two random words unless given.
    pub name: Option<Name>,
    /// The size of its file system; the image's unless given, or more where the image leaves little
    /// of the usual room; and never less.
    pub size_bytes: Option<u64>,
}

/// A container that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CreatedContainer {
    /// 256 random bits in hexadecimal.
    pub id: String,
    /// The name.
    pub name: String,
}

/// Where a container is mounted.
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
    /// The image as it was named when the container was made.
    pub image: String,
    /// Where it is mounted, if it is.
    pub mounted: Option<PathBuf>,
    /// Bytes that only this container holds.
    pub own_bytes: u64,
    /// Bytes that its root shows, shared ones included.
    pub virtual_bytes: u64,
    /// When it was made.
    #[serde(serialize_with = "super::time::rfc3339")]
    pub created: SystemTime,
}

/// What a container is made of.
struct Origin {
    image: Digest,
    image_name: String,
    layer: Volume,
}

impl Host {
    /// Makes a container of `image`. Durable when it returns.
    ///
    /// # Errors
    /// `NotFound` or `Ambiguous` for the image, `EmptyImage` when it has no layers,
    /// `ContainerExists`, `TooSmall`, and the pool's.
    pub fn create_container(
        &self,
        image: &str,
        options: &CreateContainer,
    ) -> Result<CreatedContainer> {
        let origin = self.origin(image)?;
        let layer_bytes = origin.layer.size_bytes();
        let size_bytes = match options.size_bytes {
            Some(size_bytes) => size_bytes,
            None => self
                .size_with_room(&origin.layer, filesystem::DEFAULT_SIZE_BYTES)?
                .unwrap_or(layer_bytes),
        };
        check_size(size_bytes, layer_bytes)?;
        let mut work = WorkVolumes::new(self.pool());
        let mut larger = None;
        if size_bytes > layer_bytes {
            larger = Some(self.larger_copy(&origin.layer, size_bytes, &mut work)?);
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
            layer: self.layer(top.chain_id)?,
        })
    }

    /// A clone of `layer` in work, whose file system has been grown.
    pub(super) fn larger_copy(
        &self,
        layer: &Volume,
        size_bytes: u64,
        work: &mut WorkVolumes<'_>,
    ) -> Result<Volume> {
        let volume = self.pool().clone_volume(layer, &self.work_name()?)?;
        work.push(volume.clone());
        self.pool().resize(&volume, size_bytes)?;
        let export = self.export()?;
        let device = export.attach_loop(&volume, false)?;
        let grown = filesystem::grow(&device);
        export.detach(&volume)?;
        grown?;
        self.check_complete(&volume)?;
        Ok(volume)
    }

    /// Commits the container's record and volume: `larger`, or a clone of the layer.
    fn add_container(
        &self,
        origin: Origin,
        larger: Option<Volume>,
        options: &CreateContainer,
    ) -> Result<ContainerRecord> {
        let _held = self.lock_catalogue();
        if record::image(self.pool(), origin.image)?.is_none() {
            // It was removed while the file system was grown.
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
    /// there already stays so.
    ///
    /// # Errors
    /// `NotFound`, `MountedElsewhere`, and what the host answers.
    pub fn mount_container(&self, container: &str, dir: Option<&Path>) -> Result<MountedContainer> {
        let record = record::find_container(self.pool(), container)?;
        let lock = self.container_lock(&record.id);
        let _held = hold(&lock)?;
        let dir = dir.map(|dir| mount::resolve(dir).map_err(Error::io("find the folder", dir)));
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
        // Wherever it is mounted, this folder tells a successor that it is.
        let own = self.mounts_dir().join(&record.id);
        fs::create_dir_all(&own).map_err(Error::io("make the folder", &own))?;
        let path = dir.unwrap_or_else(|| own.clone());
        let device = record
            .volume(self.pool())
            .and_then(|volume| {
                self.attach_and_mount(&volume, &path, Mode::Container, Access::Programs)
            })
            .inspect_err(|_| {
                // Nothing is mounted there; at worst an empty folder stays.
                let _ = fs::remove_dir(&own);
            })?;
        let mount = ContainerMount {
            path: path.clone(),
            device,
        };
        self.mounts.lock().insert(record.id, mount);
        Ok(MountedContainer { path })
    }

    /// Where the container is mounted, if it is. A mount that somebody else has taken away is
    /// tidied up.
    pub(super) fn mounted_at(&self, record: &ContainerRecord) -> Result<Option<PathBuf>> {
        let Some(known) = self.mounts.lock().get(&record.id).cloned() else {
            return Ok(None);
        };
        let found = mount::mount_at(&known.path)
            .map_err(Error::io("read", Path::new("/proc/self/mountinfo")))?;
        if found.is_some_and(|entry| Path::new(&entry.source) == known.device) {
            return Ok(Some(known.path));
        }
        self.export()?.detach(&record.volume(self.pool())?)?;
        self.mounts.lock().remove(&record.id);
        // An empty folder that stays does no harm.
        let _ = fs::remove_dir(self.mounts_dir().join(&record.id));
        Ok(None)
    }

    /// Unmounts the container. What was written to it is durable afterwards.
    ///
    /// # Errors
    /// `NotFound`, `NotMounted`, and `MountBusy` while a process uses it.
    pub fn unmount_container(&self, container: &str) -> Result<MountedContainer> {
        let record = record::find_container(self.pool(), container)?;
        let lock = self.container_lock(&record.id);
        let _held = hold(&lock)?;
        let Some(path) = self.mounted_at(&record)? else {
            return Err(Error::NotMounted(record.name.into()));
        };
        self.unmount_locked(&record.id, &record.volume(self.pool())?)?;
        self.pool().flush()?;
        Ok(MountedContainer { path })
    }

    fn unmount_locked(&self, id: &str, volume: &Volume) -> Result<()> {
        let known = self.mounts.lock().get(id).cloned();
        let Some(known) = known else {
            return Ok(());
        };
        self.unmount_and_detach(volume, &known.path)?;
        self.mounts.lock().remove(id);
        // An empty folder that stays does no harm.
        let _ = fs::remove_dir(self.mounts_dir().join(id));
        Ok(())
    }

    /// All containers, newest last.
    ///
    /// # Errors
    /// `Record` when a record is unreadable, and the pool's.
    pub fn containers(&self) -> Result<Vec<ContainerSummary>> {
        let mut summaries = Vec::new();
        for record in record::containers(self.pool())? {
            // A container that is removed meanwhile is simply not listed.
            let Some(info) = record.volume(self.pool()).and_then(|v| Ok(v.info()?)).ok() else {
                continue;
            };
            let created = record.created();
            summaries.push(ContainerSummary {
                mounted: self
                    .mounts
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
    pub fn remove_container(&self, container: &str) -> Result<CreatedContainer> {
        let record = record::find_container(self.pool(), container)?;
        let lock = self.container_lock(&record.id);
        let _held = hold(&lock)?;
        let volume = record.volume(self.pool())?;
        if self.mounted_at(&record)?.is_some() {
            self.unmount_locked(&record.id, &volume)?;
        }
        {
            let _held = self.lock_catalogue();
            let mut transaction = self.pool().transaction();
            record::remove_container(&mut transaction, &record);
            transaction.remove(volume.id());
            transaction.commit()?;
        }
        self.pool().flush()?;
        self.forget_container_lock(&record.id);
        Ok(CreatedContainer {
            id: record.id,
            name: record.name,
        })
    }

    /// The volume of the layer that completes the stack `chain_id`.
    pub(super) fn layer(&self, chain_id: Digest) -> Result<Volume> {
        record::layer_volume(self.pool(), chain_id)?
            .ok_or_else(|| Error::not_found(Kind::Layer, &chain_id.to_string()))
    }

    /// The names of the containers that stand on the image.
    pub(super) fn users_of(&self, image: Digest) -> Result<Names> {
        let all = record::containers(self.pool())?;
        let users = all.into_iter().filter(|container| container.image == image);
        Ok(Names(users.map(|container| container.name).collect()))
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
