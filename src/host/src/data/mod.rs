//! Data volumes: thin ext4 file systems for data that outlives containers.
//!
//! A data volume is just the writable volume `data/NAME`: there is no record that could disagree
//! with it, and commands on volumes (snapshot, clone, rename, remove) work on it too. A clone with
//! such a name is a data volume. Mounting is in `mounted`.
//!
//! # Invariants
//! - A volume gets the name of a data volume in the transaction that completes it.
//! - Creating one again in the same way, and removing one that does not exist, succeed: the caller
//!   may have missed the first result.

mod mounted;

use crate::error::{Error, Kind, Result};
use crate::mounts::filesystem::{self, Mode};
use crate::mounts::{Mounts, WorkVolumes, ext4};
use cowshed_engine::{Labels, Pool, Volume, VolumeInfo, VolumeKind};
use cowshed_ext4diff::Superblock;
use cowshed_format::base::{self, Name, VolumeId};
use mounted::DataMount;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

/// The prefix of the name of a data volume's volume.
const PREFIX: &str = "data/";
/// The label that stores the options of a data volume's creation.
const ORIGIN_LABEL: &str = "cowshed.data-volume";

/// The options for creating a data volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreateDataVolume {
    /// The size of its file system: by default that of the source, or the default size; never less
    /// than the source's.
    pub size_bytes: Option<u64>,
    /// Its initial content: a data volume, or any volume or snapshot of the pool. By default an
    /// empty file system.
    pub from: Option<String>,
}

/// The properties of a data volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataVolume {
    /// Its name.
    pub name: String,
    /// The name of its volume in the pool.
    pub volume: String,
    /// The mount point, if it is mounted.
    pub mounted: Option<PathBuf>,
    /// The time when it was created.
    pub created: SystemTime,
    /// The size that it shows.
    pub size_bytes: u64,
    /// Bytes that only it holds.
    pub own_bytes: u64,
    /// Bytes that it maps, including shared ones.
    pub referenced_bytes: u64,
}

impl CreateDataVolume {
    fn label(&self) -> String {
        let size = self.size_bytes.map_or_else(String::new, |n| n.to_string());
        format!(
            "size={size} from={}",
            self.from.as_deref().unwrap_or_default()
        )
    }
}

/// The data volumes of one pool on this host; thread safe.
pub struct DataVolumes {
    mounts: Arc<Mounts>,
    /// The mounted data volumes.
    mounted: Mutex<BTreeMap<VolumeId, DataMount>>,
}

impl DataVolumes {
    pub(crate) fn new(mounts: &Arc<Mounts>) -> Self {
        Self {
            mounts: Arc::clone(mounts),
            mounted: Mutex::default(),
        }
    }

    fn pool(&self) -> &Pool {
        self.mounts.pool()
    }

    /// Creates the data volume `name`. Durable when it returns. One that was created in the same
    /// way is left unchanged.
    ///
    /// # Errors
    /// `DataVolumeName`, `DataVolumeExists`, `NoFileSystem`, `TooSmall`, and errors of the pool.
    pub fn create(&self, name: &str, options: &CreateDataVolume) -> Result<()> {
        let volume_name = volume_name(name)?;
        if let Some(found) = self.find(name)? {
            let made_so = found.info()?.labels.get(ORIGIN_LABEL) == Some(&options.label());
            return if made_so {
                Ok(self.pool().flush()?)
            } else {
                Err(Error::DataVolumeExists(name.into()))
            };
        }
        let mut work = WorkVolumes::new(self.pool());
        let origin = self.origin(options, &mut work)?;
        let mut transaction = self.pool().transaction();
        let volume = if origin.is_frozen() {
            transaction.clone_volume(origin.id(), &volume_name)
        } else {
            transaction.rename(origin.id(), &volume_name);
            origin.id()
        };
        let label = (ORIGIN_LABEL.to_owned(), options.label());
        transaction.set_labels(volume, Labels::from([label]));
        match transaction.commit() {
            Err(base::Error::Exists(_)) => return Err(Error::DataVolumeExists(name.into())),
            committed => committed?,
        }
        // Other temporary volumes (a snapshot of the source) are removed.
        work.keep_named();
        Ok(self.pool().flush()?)
    }

    /// A frozen volume to clone, or a temporary one to use directly.
    fn origin(&self, options: &CreateDataVolume, work: &mut WorkVolumes<'_>) -> Result<Volume> {
        let Some(from) = &options.from else {
            let size_bytes = options.size_bytes.unwrap_or(filesystem::DEFAULT_SIZE_BYTES);
            let name = self.mounts.work_name()?;
            if size_bytes == filesystem::DEFAULT_SIZE_BYTES {
                return filesystem::template(self.pool(), size_bytes, &name);
            }
            let volume = filesystem::fresh(self.pool(), size_bytes, &name)?;
            work.push(volume.clone());
            return Ok(volume);
        };
        let source = match self.find(from) {
            Ok(Some(found)) => found,
            _ => self.pool().volume(from)?,
        };
        if ext4::superblock(&source)?.is_none() {
            return Err(Error::NoFileSystem(source.name()));
        }
        let frozen = if source.is_frozen() {
            source
        } else {
            let snapshot = self.mounts.snapshot(&source, &self.mounts.work_name()?)?;
            work.push(snapshot.clone());
            snapshot
        };
        let min_bytes = frozen.size_bytes();
        match options.size_bytes {
            Some(size_bytes) if size_bytes < min_bytes => Err(Error::TooSmall { min_bytes }),
            Some(size_bytes) if size_bytes > min_bytes => {
                let volume = self
                    .pool()
                    .clone_volume(&frozen, &self.mounts.work_name()?)?;
                work.push(volume.clone());
                self.pool().resize(&volume, size_bytes)?;
                self.fit_file_system(&volume)?;
                Ok(volume)
            }
            _ => Ok(frozen),
        }
    }

    /// Grows the volume's unmounted file system until it fills the volume.
    fn fit_file_system(&self, volume: &Volume) -> Result<()> {
        let superblock = || -> Result<Superblock> {
            ext4::superblock(volume)?.ok_or_else(|| Error::NoFileSystem(volume.name()))
        };
        let found = superblock()?;
        let room = volume.size_bytes() - volume.size_bytes() % base::BLOCK_BYTES as u64;
        if found.size_bytes() >= room {
            return Ok(());
        }
        if room > filesystem::MAX_SIZE_BYTES {
            return Err(Error::Pool(base::Error::InvalidSize {
                what: "a file system",
                min_bytes: filesystem::MIN_SIZE_BYTES,
                max_bytes: filesystem::MAX_SIZE_BYTES,
            }));
        }
        if !found.is_clean() {
            // The kernel replays the journal.
            self.mounts
                .mount_for_work(volume, Mode::Container)?
                .unmount()?;
        }
        self.mounts.grow(volume)
    }

    /// Removes the data volume `name`; returns true if it existed. Durable when it returns.
    ///
    /// # Errors
    /// `DataVolumeInUse`, `MountBusy`, and errors of the pool.
    pub fn remove(&self, name: &str) -> Result<bool> {
        let Some(volume) = self.find(name)? else {
            return Ok(false);
        };
        let lock = self.mounts.volume_lock(volume.id());
        let held = lock.lock();
        self.release_unused(name, &volume)?;
        match self.pool().remove(&volume) {
            Ok(()) => {}
            Err(base::Error::NoSuchVolume(_)) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        drop(held);
        self.mounts.forget_volume_lock(volume.id());
        self.pool().flush()?;
        Ok(true)
    }

    /// Returns the properties of the data volume `name`.
    ///
    /// # Errors
    /// `NotFound`, `DataVolumeName`, and errors of the pool.
    pub fn get(&self, name: &str) -> Result<DataVolume> {
        let volume = self.known(name)?;
        Ok(self.describe(name.to_owned(), &volume.info()?))
    }

    /// Returns all data volumes, sorted by name.
    #[must_use]
    pub fn list(&self) -> Vec<DataVolume> {
        let all = self.pool().volumes().into_iter();
        let of_data = all.filter_map(|info| {
            let name = info.name.as_str().strip_prefix(PREFIX)?.to_owned();
            let is_one = info.kind == VolumeKind::Volume && is_name(&name);
            is_one.then(|| self.describe(name, &info))
        });
        of_data.collect()
    }

    fn describe(&self, name: String, info: &VolumeInfo) -> DataVolume {
        DataVolume {
            name,
            mounted: self.path_of(info.id),
            volume: info.name.to_string(),
            created: info.created,
            size_bytes: info.size_bytes,
            own_bytes: info.own_bytes,
            referenced_bytes: info.referenced_bytes,
        }
    }

    /// Returns the volume of the data volume `name`, if there is one.
    fn find(&self, name: &str) -> Result<Option<Volume>> {
        match self.pool().volume(volume_name(name)?.as_str()) {
            Ok(volume) if volume.is_frozen() => Ok(None),
            Ok(volume) => Ok(Some(volume)),
            Err(base::Error::NotFound(_) | base::Error::NoSuchVolume(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn known(&self, name: &str) -> Result<Volume> {
        let found = self.find(name)?;
        found.ok_or_else(|| Error::not_found(Kind::DataVolume, name))
    }
}

fn volume_name(name: &str) -> Result<Name> {
    let made = Name::new(&format!("{PREFIX}{name}"));
    made.ok()
        .filter(|_| is_name(name))
        .ok_or_else(|| Error::DataVolumeName(name.chars().take(Name::MAX_BYTES).collect()))
}

/// Returns true if programs that work with data volumes accept this name.
fn is_name(name: &str) -> bool {
    let starts_well = name
        .bytes()
        .next()
        .is_some_and(|c| c.is_ascii_alphanumeric());
    starts_well
        && name
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_name_a_data_volume() {
        let long = "a".repeat(Name::MAX_BYTES - PREFIX.len());
        for good in ["db", "0", "a_b.c-d", &long] {
            assert_eq!(volume_name(good).unwrap().as_str(), format!("data/{good}"));
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a:b",
            "-a",
            "_a",
            "a b",
            "ä",
            &format!("{long}a"),
        ] {
            assert!(
                matches!(volume_name(bad), Err(Error::DataVolumeName(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn the_label_tells_different_wishes_apart() {
        let wish = |size_bytes, from: Option<&str>| {
            let from = from.map(str::to_owned);
            CreateDataVolume { size_bytes, from }.label()
        };
        let all = [
            wish(None, None),
            wish(Some(1), None),
            wish(None, Some("1")),
            wish(Some(1), Some("1")),
        ];
        for (index, label) in all.iter().enumerate() {
            assert!(!all[..index].contains(label), "{label}");
        }
    }
}
